//! Faults that end the process.

use crate::{
    config::ConfigError,
    hsm::{BoxError, TokenError},
    store::StoreError,
};

/// Why the process ends. Cut by its exit code.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Something failed while running.
    #[error(transparent)]
    Runtime(BoxError),
    /// The configuration is refused.
    #[error(transparent)]
    Configuration(#[from] ConfigError),
    /// Something that the configuration names can't be used.
    #[error(transparent)]
    Setting(BoxError),
    /// The token is refused, or refuses us.
    #[error(transparent)]
    Token(BoxError),
    /// The store is refused.
    #[error(transparent)]
    Store(BoxError),
    /// The database or the token is away. Started again, the service may find it: the only fault before
    /// it serves that a restart can mend.
    #[error(transparent)]
    Away(BoxError),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unreachable { .. } | StoreError::Unknown { .. } => Self::Away(error.into()),
            _ => Self::Store(error.into()),
        }
    }
}

impl From<TokenError> for Fault {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Unreachable { .. } | TokenError::Busy | TokenError::TimedOut { .. } => {
                Self::Away(error.into())
            }
            // A PIN that was refused among them: tried again and again it locks the token.
            TokenError::Refused { .. } | TokenError::Unfit { .. } => Self::Token(error.into()),
        }
    }
}

//! Why a step of an association is not taken.

use kms_core::audit::NodeId;

/// The reason why a step of an association is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAssociated {
    /// Nothing is known under this name.
    #[error(
        "no association is open under this handle: it has expired, was used up, or the server was restarted; begin a new one"
    )]
    Unknown,
    /// Another node has issued the challenge.
    #[error(
        "node {0} began this association and is the only one that knows it: make the call there, or begin a new one here"
    )]
    OfAnotherNode(NodeId),
    /// The step was taken already, or another comes first.
    #[error("{0}")]
    OutOfOrder(&'static str),
    /// There are too many.
    #[error("{open} associations are open, and {whose}: end some, or wait until they expire")]
    TooMany {
        /// So many.
        open: usize,
        /// Whose bound it is.
        whose: &'static str,
    },
    /// The system has no random bytes.
    #[error("the operating system's random generator failed")]
    NoRandomness,
}

impl NotAssociated {
    /// The word for it.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Unknown => "ASSOCIATION_UNKNOWN",
            Self::OfAnotherNode(_) => "ASSOCIATION_OF_ANOTHER_NODE",
            Self::OutOfOrder(_) => "ASSOCIATION_OUT_OF_ORDER",
            Self::TooMany { .. } => "TOO_MANY_ASSOCIATIONS",
            Self::NoRandomness => "FAULT",
        }
    }
}

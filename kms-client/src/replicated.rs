//! Whether the other site has a change.

use kms_proto::v1;
use serde::Serialize;

use crate::call::ProtocolError;

/// Whether the other site has a change that is on disk at the site that took it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Replicated {
    /// There is no other site, or nothing was changed.
    #[default]
    NotApplicable,
    /// The other site has it on disk.
    Replicated,
    /// The other site did not confirm it in time: were the primary lost now, the change would be lost, too.
    Unreplicated,
}

impl Replicated {
    /// Whether it is to be said: nothing is, where there is nothing to replicate.
    pub(crate) fn is_nothing(&self) -> bool {
        *self == Self::NotApplicable
    }

    pub(crate) fn from_wire(number: i32) -> Result<Self, ProtocolError> {
        match v1::Replicated::try_from(number) {
            Ok(v1::Replicated::Unspecified) => Ok(Self::NotApplicable),
            Ok(v1::Replicated::Replicated) => Ok(Self::Replicated),
            Ok(v1::Replicated::Unreplicated) => Ok(Self::Unreplicated),
            Err(_) => Err(ProtocolError::UnknownNumber { what: "replicated", number }),
        }
    }
}

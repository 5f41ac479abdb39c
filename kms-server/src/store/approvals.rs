//! Calls that wait for their second person: rows of this site's own, which all of its servers share. Whoever reads one
//! verifies it.

use super::StoreError;
use kms_core::{audit::Signature, two_people::CallName};

/// Rows that are read at once. There are never so many unless somebody else put them there.
pub const READ_MAX: u32 = 2_048;

/// A call that waits, as the token signed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredApproval {
    /// The call; there is one row of each.
    pub name: CallName,
    /// The number under which it waits.
    pub number: u64,
    /// When it is over: only for clearing away.
    pub expires_ms: u64,
    /// As it was signed.
    pub body: Vec<u8>,
    /// Of the site's token.
    pub signature: Signature,
}

/// A change of one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApprovalStep {
    /// The call.
    pub name: CallName,
    /// The signature of the row that is there; `None`: there is none.
    pub before: Option<Signature>,
    /// The row that takes its place; `None`: it goes.
    pub after: Option<StoredApproval>,
    /// Rows that were over by then go as well.
    pub over_by_ms: u64,
}

impl ApprovalStep {
    /// Somebody else was first.
    pub(super) fn taken(&self) -> StoreError {
        StoreError::Taken { what: "the place of call", value: hex::encode(self.name) }
    }
}

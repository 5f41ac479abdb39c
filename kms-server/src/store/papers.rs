//! Signed papers about the two sites: of each kind and site the newest. Whoever reads one verifies it.

use async_trait::async_trait;

use super::StoreError;
use kms_core::{BlockNo, Epoch, Numbered as _, RecordKey, audit::Signature};

kms_core::numbered! {
    /// A kind of paper.
    pub enum PaperKind "kind of paper" {
        /// The last report of readiness in which all was proved.
        Readiness = 1 "READINESS",
        /// The newest head table that the site has shown.
        HeadTable = 2 "HEAD_TABLE",
    }
}

/// A signed paper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paper {
    /// The kind.
    pub kind: PaperKind,
    /// The site that it is about.
    pub site: String,
    /// Its place among those of its kind and site: an older one never takes the place of a newer one.
    pub place: (Epoch, u64),
    /// As it was signed.
    pub body: Vec<u8>,
    /// Whose, the body says.
    pub signature: Signature,
    /// SHA-256 of the key that it verifies with. A paper of another key takes the place of any: the site has a new token.
    pub signer: [u8; 32],
}

/// Records that begin as none that this release reads. Not verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strange {
    /// The number of all of them.
    pub count: u64,
    /// The first ones.
    pub some: Vec<(BlockNo, RecordKey)>,
}

/// Keeps signed papers. They are no part of any block, and no change of one is audited: each is signed.
#[async_trait]
pub trait PaperStore: Send + Sync + 'static {
    /// All of them.
    async fn papers(&self) -> Result<Vec<Paper>, StoreError>;

    /// Keeps one. False: one that is as new is there, and stays.
    async fn put_paper(&self, paper: &Paper) -> Result<bool, StoreError>;
}

impl PaperKind {
    /// The kind as a database keeps it.
    pub(super) fn kept(number: u8) -> Result<Self, StoreError> {
        let known = Self::from_number(number);
        known.ok_or_else(|| StoreError::Damaged(format!("there is no kind of paper {number}")))
    }
}

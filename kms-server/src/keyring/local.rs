//! The keys of rows that are this site's own and in no record.

use std::sync::Arc;

use super::{error::SharedError, opening::Opener};
use kms_core::{
    BlockNo, SystemTitle,
    block::{keys::BlockKeys, local::LocalKey},
};

/// Gives blocks' `local` keys. It changes nothing.
pub struct LocalKeys {
    opener: Arc<Opener>,
}

impl LocalKeys {
    /// Over the same blocks as `opener`.
    pub(super) fn new(opener: Arc<Opener>) -> Self {
        Self { opener }
    }

    /// The block that a title belongs to.
    pub fn block_of(&self, title: &SystemTitle) -> BlockNo {
        self.opener.resident.blocks().block_of(title)
    }

    /// The number of blocks.
    pub fn blocks(&self) -> u32 {
        self.opener.resident.blocks().get()
    }

    /// This site's name.
    pub fn site(&self) -> &str {
        &self.opener.domain.site
    }

    /// The key of a block at the site of this name. The block is opened if need be; `None`: it has no keys that could be
    /// used.
    pub async fn of(&self, block: BlockNo, site: &str) -> Result<Option<LocalKey>, SharedError> {
        let table = self.opener.open(block).await?;
        let domain = self.opener.domain.domain;
        let keys = table.subkeys().and_then(|subkeys| BlockKeys::new(domain, subkeys));
        Ok(keys.map(|keys| LocalKey::of(&keys, site)))
    }

    /// The same under the other secrets of the block, which it was under or is to come under: rows that were written then
    /// are good until the former secret is gone.
    pub async fn others(&self, block: BlockNo, site: &str) -> Result<Vec<LocalKey>, SharedError> {
        let present = self.opener.open(block).await?.secret_version();
        let others = self.opener.others(block, present).await.map_err(Arc::new)?;
        Ok(others.iter().map(|other| LocalKey::of(&other.keys, site)).collect())
    }
}

//! A promotion's part for each block: its head is verified and brought into the new epoch, and its counters begin there.

use std::sync::Arc;

use super::{
    opening::Room,
    roles::{NotChanged, Roles},
};
use crate::store::BlockChange;
use kms_core::{
    BlockNo, Epoch, Head,
    block::{BlockMark, entering::enter, keys::BlockKeys, local::LocalKey},
    counters::{allocator::Mark, mark::StoredMark},
};

/// Blocks in a new epoch.
#[derive(Default)]
pub(super) struct Entered {
    pub(super) changes: Vec<BlockChange>,
    /// Where the counters of each begin.
    pub(super) marks: Vec<StoredMark>,
    pub(super) left: Vec<(BlockNo, String)>,
}

impl Roles {
    /// All blocks in `epoch`. One of which nothing is known stays, if `may_leave`.
    pub(super) async fn enter_all(
        &self,
        heads: Vec<Head>,
        epoch: Epoch,
        may_leave: bool,
    ) -> Result<Entered, NotChanged> {
        let mut entered = Entered::default();
        for head in &heads {
            let block = head.block;
            match self.enter_one(head, epoch).await {
                Ok((change, mark)) => {
                    entered.changes.push(change);
                    entered.marks.push(mark);
                }
                Err(why) if may_leave => entered.left.push((block, why)),
                Err(why) => return Err(NotChanged::Block { block, why }),
            }
        }
        Ok(entered)
    }

    /// The keys of a block, if its head is authentic and not older than a state that is known.
    pub(super) async fn check(&self, head: &Head) -> Result<BlockKeys, String> {
        let said = |error: &dyn std::fmt::Display| error.to_string();
        let opener = &self.opener;
        let table = match opener.resident.table(head.block) {
            // One that another server brought under another secret is read anew.
            Some(table) if table.secret_version() == head.secret_version => table,
            _ => {
                let opened = opener.open_now(head.block, Room::MayCloseOthers).await;
                Arc::new(opened.map_err(|error| said(&error))?)
            }
        };
        let keys = table.subkeys().and_then(|bytes| BlockKeys::new(opener.domain.domain, bytes));
        let keys = keys.ok_or_else(|| "its subkeys are incomplete".to_owned())?;
        if !keys.head_is_authentic(head) {
            return Err("its head is not what this block's writer wrote".to_owned());
        }
        let (block, position, digest) = (head.block, head.position, head.digest);
        let admitted = opener.freshness.admit(&BlockMark { block, position, digest });
        admitted.map_err(|_| "it is older than a state that is known".to_owned())?;
        Ok(keys)
    }

    async fn enter_one(
        &self,
        head: &Head,
        epoch: Epoch,
    ) -> Result<(BlockChange, StoredMark), String> {
        let keys = self.check(head).await?;
        let new = enter(&keys, head, epoch).map_err(|error| error.to_string())?;
        let local = LocalKey::of(&keys, &self.opener.domain.site);
        let mark = StoredMark::sealed(Mark::first(head.block, epoch), head.secret_version, &local);
        let (seals, records) = (Vec::new(), Vec::new());
        Ok((BlockChange { expected: Some(head.position), head: new, seals, records }, mark))
    }
}

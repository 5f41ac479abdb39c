//! A restore drill: all of a database that came out of a backup is gone through with the token.

use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::error::BackupError;
use crate::{
    hsm::Hsm,
    keyring::{Records, Roles},
    store::WriteStore,
};
use kms_core::{
    BlockNo, DomainRecord,
    audit::{ChainTip, SiteKeys, Verifier},
    block::BlockMark,
    freshness::Freshness,
};

/// Blocks that are opened at the same time.
const AT_ONCE: usize = 4;

/// Events and heads that are read at a time.
const PAGE: u32 = 1_000;

/// The database and what it is gone through with.
pub struct Drill<'a> {
    /// The token.
    pub hsm: &'a Hsm,
    /// The database.
    pub store: Arc<dyn WriteStore>,
    /// Its domain.
    pub domain: &'a DomainRecord,
    /// Its blocks.
    pub records: &'a Records,
    /// Its role records.
    pub roles: &'a Roles,
    /// The knowledge that `records` holds blocks against.
    pub freshness: &'a Freshness,
}

/// The outcome of a drill that found nothing wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drilled {
    /// Blocks that were opened and verified: secret, head, digest, the MAC of each record.
    pub blocks: u64,
    /// Records in them.
    pub records: u64,
    /// Events of all audit chains, each hash computed anew.
    pub events: u64,
    /// Signed heads of them that fit.
    pub heads: u64,
    /// Role records whose signatures hold.
    pub role_records: u64,
}

impl Drill<'_> {
    /// Goes through everything; the first fault ends it, by name. `tell` hears of blocks so far.
    pub async fn run(&self, mut tell: impl FnMut(u64)) -> Result<Drilled, BackupError> {
        // Canaries first: a token that is another one opens nothing, and says so for each block.
        self.hsm.check().await?;
        let keys = self.hsm.site_keys().await?;
        let table =
            self.store.head_table().await?.and_then(|table| table.open(&self.domain.domain, &keys));
        let found = |what: &str| BackupError::Found(what.to_owned());
        let table =
            table.ok_or_else(|| found("the head table is missing, or not signed by the token"))?;
        table.marks().for_each(|mark| self.freshness.know(&mark));
        let mut drilled = Drilled::default();
        for end in self.store.audit_chains().await? {
            self.chain(end, table.tip_of(end.node), &keys, &mut drilled).await?;
        }
        let records = self.roles.records().await;
        let records =
            records.map_err(|error| BackupError::Found(format!("role records: {error}")))?;
        drilled.role_records = records.len() as u64;
        let all = (0..self.domain.blocks.get()).map(BlockNo);
        let mut opening = stream::iter(all).map(|block| self.block(block)).buffered(AT_ONCE);
        while let Some(records) = opening.try_next().await? {
            drilled.blocks += 1;
            drilled.records += records;
            tell(drilled.blocks);
        }
        Ok(drilled)
    }

    /// A chain from its first event to its end, against each head that was signed of it; the states of blocks that it
    /// tells behind the table's are known then.
    async fn chain(
        &self,
        end: ChainTip,
        signed: ChainTip,
        keys: &SiteKeys,
        drilled: &mut Drilled,
    ) -> Result<(), BackupError> {
        let mut verifier = Verifier::new(ChainTip::empty(end.node), keys.clone());
        let mut after = 0;
        loop {
            let heads = self.store.audit_checkpoints(&end.node, after, PAGE).await?;
            let Some(last) = heads.last() else { break };
            after = last.tip.sequence;
            for head in heads {
                verifier.head(head)?;
            }
        }
        while verifier.tip().sequence < end.sequence {
            let after = verifier.tip().sequence;
            let events = self.store.audit_events(&end.node, after, PAGE).await?;
            if events.is_empty() {
                let what = format!("event {} of node {} is missing", after + 1, end.node);
                return Err(BackupError::Found(what));
            }
            for stored in &events {
                let event = verifier.event(stored)?;
                if event.sequence == signed.sequence && verifier.tip() != signed {
                    let what = "the head table was signed over another event of an audit chain";
                    return Err(BackupError::Found(what.to_owned()));
                }
                if event.sequence > signed.sequence {
                    event.entry.heads.iter().for_each(|mark| self.freshness.hear(mark));
                }
                drilled.events += 1;
            }
        }
        if verifier.tip() != end {
            let what = format!("the audit chain of node {} does not end where it says", end.node);
            return Err(BackupError::Found(what));
        }
        drilled.heads += verifier.heads_seen();
        Ok(())
    }

    /// Opens a block: secret, head, digest and every record. The number of its records.
    async fn block(&self, block: BlockNo) -> Result<u64, BackupError> {
        let head = self.records.head(block).await;
        let head = head.map_err(|error| BackupError::Found(error.to_string()))?;
        let mark = BlockMark { block, position: head.position, digest: head.digest };
        self.freshness.admit(&mark).map_err(|_| {
            BackupError::Found(format!(
                "block {} is not in the newest state that is told of it",
                block.0
            ))
        })?;
        Ok(u64::from(head.count))
    }
}

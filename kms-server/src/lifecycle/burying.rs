//! Burying a meter whose record is damaged: the supported way to be rid of it.

use super::{
    error::LifecycleError,
    verbs::{Lifecycle, TRIES},
};
use kms_core::{
    BlockNo, ChangeMark, RecordKey, SystemTitle,
    audit::{AuditOutcome, AuditedCall, Subject},
    block::BlockMark,
    record::Tombstone,
};

impl Lifecycle {
    /// Writes a tombstone over the damaged record of the meter with this title. The tombstone has no
    /// name: it does not know which keys the meter had. Refused for a meter whose record is good.
    ///
    /// `block`: where the record is, if not in its title's own block; a record whose title was changed
    /// stands in another. Also buries a title of which only the index knows. What comes back is the block that has the
    /// tombstone, and its state.
    pub async fn bury(
        &self,
        call: &AuditedCall,
        title: &SystemTitle,
        block: Option<BlockNo>,
    ) -> Result<(BlockNo, Vec<BlockMark>), LifecycleError> {
        for attempt in 0..TRIES {
            match self.bury_once(call, title, block).await {
                Err(LifecycleError::Busy) => self.step_back(attempt).await,
                done => return done,
            }
        }
        Err(LifecycleError::Busy)
    }

    async fn bury_once(
        &self,
        call: &AuditedCall,
        title: &SystemTitle,
        block: Option<BlockNo>,
    ) -> Result<(BlockNo, Vec<BlockMark>), LifecycleError> {
        let own = self.records.block_of(title);
        let block = block.unwrap_or(own);
        let not_damaged = || LifecycleError::NotDamaged { title: *title, block };
        if !self.records.has_block(block) {
            return Err(not_damaged());
        }
        let mut changes = self.writer.change(&[block]).await?;
        let change = changes.first_mut().ok_or_else(not_damaged)?;
        let mut keys = change.damaged_keys(title);
        let plain = RecordKey::meter(title);
        let is_free = block == own && !keys.contains(&plain) && !change.has(&plain);
        // A record whose kind was changed stands beside its title's own place; and one whose title was
        // changed has left an entry of the index behind, which a tombstone takes away.
        if is_free && (!keys.is_empty() || self.store.find_title(title).await?.is_some()) {
            keys.push(plain);
        }
        if keys.is_empty() {
            return Err(not_damaged());
        }
        let now_ms = self.clock.unix_ms();
        for key in keys {
            let tombstone = Tombstone {
                meter_id: None,
                system_title: *title,
                keys: Vec::new(),
                deleted_ms: now_ms,
                changed_by: ChangeMark { at_ms: now_ms, file: None },
                readmitted_ms: None,
            };
            change.bury(key, tombstone);
        }
        let subject = Subject { block: Some(block), ..Subject::title(*title) };
        let entry = call.entry(now_ms, subject, AuditOutcome::Done);
        let states = self.writer.commit(changes, vec![entry]).await?;
        Ok((block, states))
    }
}

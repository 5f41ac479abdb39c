//! A meter is a member of one live campaign: looked at once more in the very commit that brings it in, since two may begin at
//! one time.

use std::collections::BTreeSet;

use crate::{
    keyring::Change,
    lifecycle::{error::LifecycleError, verbs::Lifecycle},
};
use kms_core::{
    BlockNo, Record, RecordKey, SystemTitle,
    campaign::{CampaignId, Part, SLOTS, row::Row},
    fact::{Fact, FactName},
};

impl Lifecycle {
    /// The records that say whether these are free: all other campaigns, and what they have of these meters.
    pub(super) fn others(&self, slot: u8, rows: &[&Row]) -> Vec<(BlockNo, RecordKey)> {
        let others = || (0..SLOTS).filter(|other| *other != slot);
        let name = |other| FactName::of_campaign(other);
        let campaigns = others()
            .map(|other| (self.records.block_of_fact(&name(other)), RecordKey::fact(&name(other))));
        let parts = rows.iter().flat_map(|row| {
            others()
                .map(|other| (self.records.block_of(&row.title), self.part_of(&row.title, other)))
        });
        campaigns.chain(parts).collect()
    }

    fn part_of(&self, title: &SystemTitle, slot: u8) -> RecordKey {
        let place = (self.records.block_of(title), self.records.blocks());
        RecordKey::fact(&FactName::of_campaign_part(place, slot, Part::chunk_of(title)))
    }

    /// Refused if another live campaign has come to one of these first: whoever asks again hears which.
    pub(super) fn check_free(
        &self,
        changes: &[Change],
        slot: u8,
        rows: &[&Row],
    ) -> Result<(), LifecycleError> {
        let live = self.live(changes, slot)?;
        for row in rows {
            let block = self.records.block_of(&row.title);
            let change =
                changes.iter().find(|it| it.block() == block).ok_or(LifecycleError::Busy)?;
            for other in (0..SLOTS).filter(|other| *other != slot) {
                let stands = change.stands(&self.part_of(&row.title, other))?;
                if stands.is_some_and(|it| has_open(&it, &live, &row.title)) {
                    return Err(LifecycleError::Busy);
                }
            }
        }
        Ok(())
    }

    /// The other campaigns that are not over.
    fn live(&self, changes: &[Change], slot: u8) -> Result<BTreeSet<CampaignId>, LifecycleError> {
        let mut live = BTreeSet::new();
        for name in (0..SLOTS).filter(|other| *other != slot).map(FactName::of_campaign) {
            let block = self.records.block_of_fact(&name);
            let change =
                changes.iter().find(|it| it.block() == block).ok_or(LifecycleError::Busy)?;
            if let Some(Record::Fact(Fact::Campaign(it))) =
                change.stands(&RecordKey::fact(&name))?
                && !it.status.is_over()
            {
                live.insert(it.id);
            }
        }
        Ok(live)
    }
}

/// Whether a part of a live campaign has this meter, and is not done with it.
fn has_open(part: &Record, live: &BTreeSet<CampaignId>, title: &SystemTitle) -> bool {
    let Record::Fact(Fact::CampaignPart(part)) = part else { return false };
    let is_open = |row: &Row| !row.phase.is_over() || row.is_exposed();
    live.contains(&part.campaign) && part.row(title).is_some_and(is_open)
}

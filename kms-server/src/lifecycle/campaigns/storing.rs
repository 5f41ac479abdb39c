//! What is stored of campaigns: found, read, and changed. Whoever changes one has it as it is stored, and is the node that
//! drives it; both are checked in the very commit.

use std::collections::BTreeMap;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::table::{Held, Shared};
use crate::{
    keyring::Change,
    lifecycle::{error::LifecycleError, refusal::refusal, verbs::Lifecycle},
};
use kms_core::{
    BlockNo, Record, RecordKey, RefusalCode,
    audit::AuditEntry,
    block::BlockMark,
    campaign::{Campaign, Part, SLOTS, driving::Driven, row::Row},
    fact::{Fact, FactName},
};

/// How long a node drives a campaign without saying so again.
const CLAIM_MS: u64 = 60_000;
/// Blocks that are read at the same time.
const AT_ONCE: usize = 8;

/// What a change of a campaign leads to.
pub(super) struct News {
    /// The campaign.
    pub(super) campaign: Campaign,
    /// Rows that are other ones now, or new.
    pub(super) rows: Vec<Row>,
    /// For the audit log.
    pub(super) entries: Vec<AuditEntry>,
}

impl Lifecycle {
    /// All campaigns that are remembered.
    pub(super) async fn stored_campaigns(&self) -> Result<Vec<Campaign>, LifecycleError> {
        let mut all = Vec::new();
        for slot in 0..SLOTS {
            let fact = self.records.fact(&FactName::of_campaign(slot)).await?;
            if let Some(Fact::Campaign(campaign)) = fact {
                all.push(*campaign);
            }
        }
        Ok(all)
    }

    /// The campaign of this name as it is stored.
    pub(super) async fn stored_campaign(&self, name: &str) -> Result<Campaign, LifecycleError> {
        let mut all = self.stored_campaigns().await?.into_iter();
        all.find(|it| it.name == name).ok_or_else(|| no_such(name))
    }

    /// A campaign with all of its members, as they are stored.
    pub(super) async fn read_campaign(&self, campaign: Campaign) -> Result<Driven, LifecycleError> {
        let blocks = (0..self.records.blocks().get()).map(BlockNo);
        let read = stream::iter(blocks).map(|block| self.members_of(block, &campaign));
        let rows: Vec<Vec<Row>> = read.buffer_unordered(AT_ONCE).try_collect().await?;
        Ok(Driven::new(campaign, rows.into_iter().flatten()))
    }

    async fn members_of(
        &self,
        block: BlockNo,
        campaign: &Campaign,
    ) -> Result<Vec<Row>, LifecycleError> {
        let facts = self.records.facts_of(block, FactName::CAMPAIGN_PART).await?;
        let rows = facts.into_iter().filter_map(|fact| match fact {
            Fact::CampaignPart(part) if part.campaign == campaign.id => Some(part.rows),
            _ => None,
        });
        Ok(rows.flatten().collect())
    }

    /// The campaign of this name, to be driven here: refused where another node drives it.
    pub(super) async fn drive(&self, name: &str) -> Result<Shared, LifecycleError> {
        self.check_writes()?;
        if let Some(shared) = self.ours(self.campaigns.named(name)).await {
            return Ok(shared);
        }
        let stored = self.stored_campaign(name).await?;
        self.drive_stored(stored).await
    }

    /// The same of one as it is stored.
    pub(super) async fn drive_stored(&self, stored: Campaign) -> Result<Shared, LifecycleError> {
        self.check_driver(&stored)?;
        if let Some(shared) = self.campaigns.get(&stored.id) {
            let held = shared.lock().await;
            let known = &held.driven.campaign;
            // Of what this node drives it knows later states than what was read a moment ago.
            if *known == stored || known.changes > stored.changes && self.is_ours(known) {
                drop(held);
                return Ok(shared);
            }
        }
        self.campaigns.forget(&stored.id);
        let driven = self.read_campaign(stored).await?;
        Ok(self.campaigns.put(driven))
    }

    /// The campaign in a place, if it is driven here.
    pub(super) async fn driven_at(&self, slot: u8) -> Option<Shared> {
        self.ours(self.campaigns.at(slot)).await
    }

    async fn ours(&self, found: Option<Shared>) -> Option<Shared> {
        let shared = found?;
        let is_ours = self.is_ours(&shared.lock().await.driven.campaign);
        is_ours.then_some(shared)
    }

    fn is_ours(&self, campaign: &Campaign) -> bool {
        let now_ms = self.clock.unix_ms();
        campaign.driver == self.campaigns.node
            && campaign.driver_epoch == self.counting.standing().epoch.0
            && now_ms < campaign.driver_until_ms
    }

    fn check_driver(&self, campaign: &Campaign) -> Result<(), LifecycleError> {
        let now_ms = self.clock.unix_ms();
        let is_held = campaign.driver_epoch == self.counting.standing().epoch.0
            && now_ms < campaign.driver_until_ms
            && !campaign.driver.is_empty();
        if is_held && campaign.driver != self.campaigns.node {
            let reason = format!(
                "campaign {} is driven by node {} until {} ms from now: ask there, or later",
                campaign.name,
                campaign.driver,
                campaign.driver_until_ms.saturating_sub(now_ms)
            );
            return Err(LifecycleError::Refused(refusal(RefusalCode::DrivenElsewhere, reason)));
        }
        Ok(())
    }

    /// Stores what a campaign has come to: all of it or nothing, with the word that this node drives it.
    pub(super) async fn store_campaign(
        &self,
        held: &mut Held,
        before: &Campaign,
        news: News,
    ) -> Result<Vec<BlockMark>, LifecycleError> {
        let stored = self.try_store(held, before, news).await;
        if stored.is_err() {
            // It may be there or not, or somebody else's may be: whoever comes next reads it.
            self.campaigns.forget(&before.id);
        }
        stored
    }

    async fn try_store(
        &self,
        held: &mut Held,
        before: &Campaign,
        news: News,
    ) -> Result<Vec<BlockMark>, LifecycleError> {
        self.check_driver(before)?;
        let News { mut campaign, rows, entries } = news;
        let name = FactName::of_campaign(campaign.slot);
        let by_part = self.by_part(campaign.slot, &rows);
        let parts = by_part.keys().map(|(block, name)| (*block, RecordKey::fact(name)));
        let own = (self.records.block_of_fact(&name), RecordKey::fact(&name));
        let comes: Vec<&Row> =
            rows.iter().filter(|row| held.driven.row(&row.title).is_none()).collect();
        let others = if comes.is_empty() { Vec::new() } else { self.others(campaign.slot, &comes) };
        let mut changes = self.writer.change_records(parts.chain([own]).chain(others)).await?;
        if !comes.is_empty() {
            self.check_free(&changes, campaign.slot, &comes)?;
        }
        campaign.driver.clone_from(&self.campaigns.node);
        campaign.driver_epoch = self.counting.standing().epoch.0;
        campaign.driver_until_ms = self.clock.unix_ms().saturating_add(CLAIM_MS);
        campaign.paced_ms = held.driven.paced_ms;
        campaign.changes = before.changes.saturating_add(1);
        for change in &mut changes {
            if change.block() == own.0 {
                if !stands_as(change, &own.1, before)? {
                    return Err(LifecycleError::Busy);
                }
                change.put(Record::Fact(Fact::Campaign(Box::new(campaign.clone()))));
            }
            let block = change.block();
            for ((_, name), rows) in by_part.iter().filter(|((at, _), _)| *at == block) {
                let part = self.part_with(change, name, (&campaign, held), rows)?;
                change.put(Record::Fact(Fact::CampaignPart(part)));
            }
        }
        let states = self.writer.commit(changes, entries).await?;
        held.driven.campaign = campaign;
        rows.into_iter().for_each(|row| held.driven.put(row));
        Ok(states)
    }

    fn by_part<'r>(
        &self,
        slot: u8,
        rows: &'r [Row],
    ) -> BTreeMap<(BlockNo, FactName), Vec<&'r Row>> {
        let blocks = self.records.blocks();
        let mut by_part: BTreeMap<_, Vec<&Row>> = BTreeMap::new();
        for row in rows {
            let block = self.records.block_of(&row.title);
            let chunk = Part::chunk_of(&row.title);
            let name = FactName::of_campaign_part((block, blocks), slot, chunk);
            by_part.entry((block, name)).or_default().push(row);
        }
        by_part
    }

    /// The part as it is stored, with these rows in it. Refused where others of them stand there than this node knows.
    fn part_with(
        &self,
        change: &Change,
        name: &FactName,
        (campaign, held): (&Campaign, &Held),
        rows: &[&Row],
    ) -> Result<Part, LifecycleError> {
        let first = rows.first().ok_or(LifecycleError::Busy)?;
        let mut part = match change.stands(&RecordKey::fact(name))? {
            Some(Record::Fact(Fact::CampaignPart(part))) if part.campaign == campaign.id => part,
            // That of a campaign which was in this place before.
            _ => Part {
                block: change.block(),
                blocks: self.records.blocks(),
                slot: campaign.slot,
                chunk: Part::chunk_of(&first.title),
                campaign: campaign.id,
                started_ms: campaign.started_ms,
                rows: Vec::new(),
            },
        };
        for row in rows {
            if part.row(&row.title) != held.driven.row(&row.title) {
                return Err(LifecycleError::Busy);
            }
            part.put_row((*row).clone());
        }
        Ok(part)
    }
}

/// Whether the campaign stands as it was read; of a new one, whether its place is as it was.
fn stands_as(change: &Change, key: &RecordKey, before: &Campaign) -> Result<bool, LifecycleError> {
    Ok(match change.stands(key)? {
        Some(Record::Fact(Fact::Campaign(stored))) => {
            *stored == *before || (before.changes == 0 && stored.status.is_over())
        }
        _ => before.changes == 0,
    })
}

pub(super) fn no_such(name: &str) -> LifecycleError {
    let reason = format!(
        "there is no campaign {name}: `ami-tool rotate list` shows those that are remembered"
    );
    LifecycleError::Refused(refusal(RefusalCode::NoSuchCampaign, reason))
}

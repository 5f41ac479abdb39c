//! A campaign begins: its members are looked for block by block, and come in with one commit for some blocks at a time. Cut
//! off, the same call goes on.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    selecting::{LeftOut, check, label, place_of},
    selection::Selection,
    storing::News,
    table::Held,
    viewing::{CampaignView, view},
};
use crate::lifecycle::{error::LifecycleError, refusal::refusal, verbs::Lifecycle};
use kms_core::{
    BlockNo, MeterId, MeterRecord, RefusalCode, SystemTitle,
    audit::{AuditEntry, AuditOutcome, AuditedCall, Detail, Subject},
    block::BlockMark,
    campaign::{
        Campaign, CampaignId, MEMBERS_MAX, Part, ROWS_MAX, SLOTS, Status, driving::Driven, is_name,
        policy::Policy, row::Row,
    },
    fact::{Fact, FactName},
};

/// Blocks whose members come in with one commit.
const BLOCKS_AT_ONCE: u32 = 16;
/// Meters that are left out and named.
const NAMED_MAX: usize = 1_000;
/// Ids of one call.
pub(crate) const IDS_MAX: usize = 10_000;

/// A campaign that somebody wants.
#[derive(Clone, Debug)]
pub struct Starting {
    /// Its name.
    pub name: String,
    /// How it goes about it.
    pub policy: Policy,
    /// Which meters.
    pub selection: Selection,
    /// Only to be told of.
    pub dry_run: bool,
    /// More members come with another call.
    pub more: bool,
}

/// What became of that.
#[derive(Clone, Debug)]
pub struct Started {
    /// The campaign.
    pub view: CampaignView,
    /// Members that came in.
    pub added: u64,
    /// Those that were in before.
    pub already: u64,
    /// Those that were left out, the first ones by name.
    pub left_out: Vec<LeftOut>,
    /// All of those.
    pub left_out_total: u64,
    /// The states that blocks have now.
    pub states: Vec<BlockMark>,
}

/// Meters of some blocks, on their way in.
struct Lot {
    /// Those that are asked for.
    wanted: Vec<MeterRecord>,
}

impl Lifecycle {
    /// Begins a campaign, or goes on with the one of this name that is still filling.
    pub async fn start_campaign(
        &self,
        call: &AuditedCall,
        wanted: &Starting,
    ) -> Result<Started, LifecycleError> {
        check_wanted(wanted)?;
        self.check_writes()?;
        let known = self.stored_campaigns().await?;
        let same = known.iter().find(|it| it.name == wanted.name).cloned();
        let campaign = match &same {
            Some(campaign) => going_on(campaign, wanted)?,
            None => self.new_campaign(&known, call, wanted)?,
        };
        let mut started = Started {
            view: view(&Driven::new(campaign.clone(), []), self.clock.unix_ms()),
            added: 0,
            already: 0,
            left_out: Vec::new(),
            left_out_total: 0,
            states: Vec::new(),
        };
        let others: Vec<Campaign> =
            known.into_iter().filter(|it| it.id != campaign.id && !it.status.is_over()).collect();
        if wanted.dry_run {
            return self.try_start(wanted, &others, started).await;
        }
        let shared = match same {
            Some(campaign) => self.drive_stored(campaign).await?,
            None => self.campaigns.put(Driven::new(campaign, [])),
        };
        let mut held = shared.lock().await;
        let filled = self.fill(call, &mut held, (wanted, &others), &mut started).await;
        if filled.is_err() {
            // One that never came to be is driven by nobody.
            self.campaigns.forget(&held.driven.campaign.id);
        }
        filled?;
        started.view = view(&held.driven, self.clock.unix_ms());
        Ok(started)
    }

    async fn fill(
        &self,
        call: &AuditedCall,
        held: &mut Held,
        (wanted, others): (&Starting, &[Campaign]),
        started: &mut Started,
    ) -> Result<(), LifecycleError> {
        let by_block = self.listed(&wanted.selection, started).await?;
        for blocks in self.some_blocks(by_block.as_ref()) {
            let lot = self.lot(&blocks, by_block.as_ref(), wanted).await?;
            self.bring_in(call, held, (lot, others), started).await?;
        }
        self.set_running(call, held, wanted.more, started).await
    }

    fn new_campaign(
        &self,
        known: &[Campaign],
        call: &AuditedCall,
        wanted: &Starting,
    ) -> Result<Campaign, LifecycleError> {
        let slot = free_slot(known).ok_or_else(no_slot)?;
        let mut id = [0; 16];
        self.draw(&mut id)?;
        Ok(Campaign {
            slot,
            id: CampaignId(id),
            name: wanted.name.clone(),
            asked_by: call.caller.as_str().chars().take(kms_core::campaign::REASON_MAX).collect(),
            policy: wanted.policy.clone(),
            status: Status::Filling,
            reason: String::new(),
            started_ms: self.clock.unix_ms(),
            ended_ms: None,
            labels: Vec::new(),
            forgiven: 0,
            paced_ms: 0,
            driver: String::new(),
            driver_epoch: 0,
            driver_until_ms: 0,
            changes: 0,
        })
    }

    /// What would be begun.
    async fn try_start(
        &self,
        wanted: &Starting,
        others: &[Campaign],
        mut started: Started,
    ) -> Result<Started, LifecycleError> {
        let by_block = self.listed(&wanted.selection, &mut started).await?;
        let mut held = Held::of(self.read_campaign(started.view.campaign.clone()).await?);
        for blocks in self.some_blocks(by_block.as_ref()) {
            let lot = self.lot(&blocks, by_block.as_ref(), wanted).await?;
            let taken = self.taken_by(&blocks, others).await?;
            let (campaign, rows) = self.rows_for(&held, (&lot, &taken), &mut started);
            held.driven.campaign = campaign;
            rows.into_iter().for_each(|row| held.driven.put(row));
        }
        started.view = view(&held.driven, self.clock.unix_ms());
        Ok(started)
    }

    /// Meters that are named, by block; `None`: none is, all are looked at.
    async fn listed(
        &self,
        selection: &Selection,
        started: &mut Started,
    ) -> Result<Option<BTreeMap<BlockNo, BTreeSet<SystemTitle>>>, LifecycleError> {
        if selection.meter_ids.is_empty() {
            return Ok(None);
        }
        let mut by_block: BTreeMap<BlockNo, BTreeSet<SystemTitle>> = BTreeMap::new();
        for id in &selection.meter_ids {
            match self.title_of(id).await {
                Ok(title) => {
                    by_block.entry(self.records.block_of(&title)).or_default().insert(title);
                }
                Err(error) => {
                    let Some(code) = code_of(&error) else { return Err(error) };
                    leave_out(started, id, code, error.to_string());
                }
            }
        }
        Ok(Some(by_block))
    }

    fn some_blocks(
        &self,
        listed: Option<&BTreeMap<BlockNo, BTreeSet<SystemTitle>>>,
    ) -> Vec<Vec<BlockNo>> {
        let all: Vec<BlockNo> = match listed {
            Some(listed) => listed.keys().copied().collect(),
            None => (0..self.records.blocks().get()).map(BlockNo).collect(),
        };
        all.chunks(BLOCKS_AT_ONCE as usize).map(<[BlockNo]>::to_vec).collect()
    }

    async fn lot(
        &self,
        blocks: &[BlockNo],
        listed: Option<&BTreeMap<BlockNo, BTreeSet<SystemTitle>>>,
        wanted: &Starting,
    ) -> Result<Lot, LifecycleError> {
        let now_ms = self.clock.unix_ms();
        let mut lot = Lot { wanted: Vec::new() };
        for block in blocks {
            let named = listed.and_then(|it| it.get(block));
            let meters = self.records.meters_of(*block).await?;
            let is_named =
                |meter: &MeterRecord| named.is_none_or(|it| it.contains(&meter.system_title));
            lot.wanted.extend(meters.into_iter().filter(|meter| {
                is_named(meter) && wanted.selection.has(meter, &wanted.policy, now_ms)
            }));
        }
        Ok(lot)
    }

    /// Meters of these blocks that are members of other live campaigns, with those.
    async fn taken_by(
        &self,
        blocks: &[BlockNo],
        others: &[Campaign],
    ) -> Result<BTreeMap<SystemTitle, String>, LifecycleError> {
        let mut taken = BTreeMap::new();
        if others.is_empty() {
            return Ok(taken);
        }
        for block in blocks {
            for fact in self.records.facts_of(*block, FactName::CAMPAIGN_PART).await? {
                let Fact::CampaignPart(Part { campaign, rows, .. }) = fact else { continue };
                let Some(other) = others.iter().find(|it| it.id == campaign) else { continue };
                let open = rows.into_iter().filter(|row| !row.phase.is_over() || row.is_exposed());
                taken.extend(open.map(|row| (row.title, other.name.clone())));
            }
        }
        Ok(taken)
    }

    /// The rows of those that may come in, and the campaign with their labels.
    fn rows_for(
        &self,
        held: &Held,
        (lot, taken): (&Lot, &BTreeMap<SystemTitle, String>),
        started: &mut Started,
    ) -> (Campaign, Vec<Row>) {
        let mut campaign = held.driven.campaign.clone();
        let (now_ms, times) = (self.clock.unix_ms(), &self.config.times);
        let mut rows = Vec::new();
        for meter in &lot.wanted {
            let title = meter.system_title;
            if held.driven.row(&title).is_some() {
                started.already += 1;
                continue;
            }
            if let Some(other) = taken.get(&title) {
                let reason = format!("it is a member of campaign {other}, which is not over");
                leave_out(started, &meter.meter_id, RefusalCode::InAnotherCampaign, reason);
                continue;
            }
            if let Err(why) = check(meter, &campaign.policy, times, now_ms) {
                leave_out(started, &meter.meter_id, why.code, why.reason);
                continue;
            }
            let label = place_of(&mut campaign.labels, label(meter));
            rows.push(Row::new(title, label));
            started.added += 1;
        }
        (campaign, rows)
    }

    async fn bring_in(
        &self,
        call: &AuditedCall,
        held: &mut Held,
        (lot, others): (Lot, &[Campaign]),
        started: &mut Started,
    ) -> Result<(), LifecycleError> {
        let blocks: BTreeSet<BlockNo> =
            lot.wanted.iter().map(|it| self.records.block_of(&it.system_title)).collect();
        let blocks: Vec<BlockNo> = blocks.into_iter().collect();
        let taken = self.taken_by(&blocks, others).await?;
        let (campaign, rows) = self.rows_for(held, (&lot, &taken), started);
        if rows.is_empty() {
            return Ok(());
        }
        let members = held.driven.len() + rows.len();
        if members > MEMBERS_MAX || largest(&rows, self) > ROWS_MAX {
            let reason = format!(
                "{members} meters are more than one campaign has place for ({MEMBERS_MAX}, spread over the blocks): make \
                 several, by profile or title"
            );
            return Err(LifecycleError::Refused(refusal(RefusalCode::TooManyMembers, reason)));
        }
        let before = held.driven.campaign.clone();
        let entries = vec![self.campaign_entry(call, rows.len())];
        let news = News { campaign, rows, entries };
        started.states.extend(self.store_campaign(held, &before, news).await?);
        Ok(())
    }

    async fn set_running(
        &self,
        call: &AuditedCall,
        held: &mut Held,
        more: bool,
        started: &mut Started,
    ) -> Result<(), LifecycleError> {
        let before = held.driven.campaign.clone();
        // One that is new is there also where no member came in yet.
        if more && before.changes > 0 {
            return Ok(());
        }
        if !more && held.driven.is_empty() {
            let reason = "no meter of the selection can be a member: the campaign would be over before it began; \
                          `--dry-run` says why each one is left out";
            return Err(LifecycleError::Refused(refusal(RefusalCode::CampaignState, reason)));
        }
        let status = if more { Status::Filling } else { Status::Running };
        let campaign = Campaign { status, ..before.clone() };
        let entries = vec![self.campaign_entry(call, held.driven.len())];
        let news = News { campaign, rows: Vec::new(), entries };
        started.states.extend(self.store_campaign(held, &before, news).await?);
        Ok(())
    }

    pub(super) fn campaign_entry(&self, call: &AuditedCall, items: usize) -> AuditEntry {
        let entry = call.entry(self.clock.unix_ms(), Subject::NONE, AuditOutcome::Done);
        entry.with(Detail::Items, items as u64)
    }
}

fn largest(rows: &[Row], on: &Lifecycle) -> usize {
    let part = |row: &Row| (on.records.block_of(&row.title), Part::chunk_of(&row.title));
    let mut parts: BTreeMap<(BlockNo, u8), usize> = BTreeMap::new();
    rows.iter().for_each(|row| *parts.entry(part(row)).or_default() += 1);
    parts.into_values().max().unwrap_or_default()
}

fn leave_out(started: &mut Started, id: &MeterId, code: RefusalCode, reason: String) {
    started.left_out_total += 1;
    if started.left_out.len() < NAMED_MAX {
        started.left_out.push(LeftOut { meter_id: id.clone(), code, reason });
    }
}

fn check_wanted(wanted: &Starting) -> Result<(), LifecycleError> {
    let bad = |reason: String| Err(LifecycleError::Refused(refusal(RefusalCode::BadField, reason)));
    if !is_name(&wanted.name) {
        return bad(
            "a campaign's name is 1 to 64 letters, digits, dots, dashes and underscores".to_owned()
        );
    }
    if wanted.selection.meter_ids.len() > IDS_MAX {
        return bad(format!(
            "one call names at most {IDS_MAX} meters: the others come with another one (`more`)"
        ));
    }
    wanted.policy.check().or_else(|why| bad(why.to_string()))
}

/// One that is filling goes on, as it was asked for.
fn going_on(campaign: &Campaign, wanted: &Starting) -> Result<Campaign, LifecycleError> {
    let refused =
        |reason: String| Err(LifecycleError::Refused(refusal(RefusalCode::CampaignState, reason)));
    if campaign.status != Status::Filling {
        return refused(format!(
            "campaign {} is {}: give the new one another name",
            campaign.name,
            campaign.status.word()
        ));
    }
    if campaign.policy != wanted.policy {
        return refused(format!(
            "campaign {} is filling under another policy: repeat the call with that, or cancel it",
            campaign.name
        ));
    }
    Ok(campaign.clone())
}

fn no_slot() -> LifecycleError {
    let reason = format!(
        "{SLOTS} campaigns are live, and a domain remembers no more: let one come to its end, or cancel it \
         (`ami-tool rotate cancel`)"
    );
    LifecycleError::Refused(refusal(RefusalCode::TooManyCampaigns, reason))
}

/// Why a meter that is named is left out; `None`: this is no matter of the meter's.
const fn code_of(error: &LifecycleError) -> Option<RefusalCode> {
    match error {
        LifecycleError::NotFound(_) => Some(RefusalCode::MeterUnknown),
        LifecycleError::Damaged { .. } => Some(RefusalCode::MeterDamaged),
        _ => None,
    }
}

/// A place that nobody has, or that of the campaign that is over for the longest time.
fn free_slot(known: &[Campaign]) -> Option<u8> {
    let free = (0..SLOTS).find(|slot| known.iter().all(|it| it.slot != *slot));
    let over = known.iter().filter(|it| it.status.is_over()).min_by_key(|it| it.ended_ms);
    free.or_else(|| over.map(|it| it.slot))
}

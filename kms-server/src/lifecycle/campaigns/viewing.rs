//! What people see of campaigns, at any node.

use std::sync::Arc;

use crate::lifecycle::{error::LifecycleError, verbs::Lifecycle};
use kms_core::{
    MeterId, MeterRecord, Record, SystemTitle,
    campaign::{
        Campaign, Part,
        advice::{Advice, advice},
        driving::Driven,
        progress::{Progress, forecast, progress},
        row::{Phase, Row},
        stepping::pairs,
    },
    fact::{Fact, FactName},
    life::choosing::Pair,
};

/// A campaign, and how far it is.
#[derive(Clone, Debug)]
pub struct CampaignView {
    /// It.
    pub campaign: Campaign,
    /// In all.
    pub progress: Progress,
    /// By label, in the order of the campaign's.
    pub labels: Vec<Progress>,
    /// Whether the canaries of each label are through.
    pub canaries_done: Vec<bool>,
    /// Done within an hour.
    pub done_last_hour: u64,
    /// All are done then; milliseconds since 1970.
    pub forecast_ms: Option<u64>,
}

/// Which members.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// In this phase.
    pub phase: Option<Phase>,
    /// Only those that are exposed.
    pub exposed: bool,
    /// Behind this one.
    pub after: Option<SystemTitle>,
    /// At most.
    pub limit: usize,
}

/// A member, for people.
#[derive(Clone, Debug)]
pub struct MemberView {
    /// Its meter's id; empty: it can't be read.
    pub meter_id: String,
    /// Its row.
    pub row: Row,
    /// Its label.
    pub label: String,
    /// Whether it is under a lease.
    pub leased: bool,
}

/// A page of members.
#[derive(Clone, Debug, Default)]
pub struct Members {
    /// In the order of their titles.
    pub members: Vec<MemberView>,
    /// Where the next page begins behind.
    pub next: Option<SystemTitle>,
}

/// What stands of one meter.
#[derive(Clone, Debug)]
pub struct MeterRotation {
    /// Its record.
    pub meter: MeterRecord,
    /// The live campaign that it is a member of.
    pub member: Option<(String, MemberView)>,
    /// Pairs that may open what it sends.
    pub pairs: Vec<Pair>,
    /// What may be done.
    pub advice: Vec<Advice>,
}

impl Wanted {
    fn has(&self, row: &Row) -> bool {
        let is_in_phase = self.phase.is_none_or(|phase| row.phase == phase);
        is_in_phase && (!self.exposed || row.is_exposed())
    }
}

impl Lifecycle {
    /// A campaign as it stands.
    pub async fn get_campaign(&self, name: &str) -> Result<CampaignView, LifecycleError> {
        let stored = self.stored_campaign(name).await?;
        self.seen(stored, view).await
    }

    /// All that are remembered, the newest first.
    pub async fn list_campaigns(&self) -> Result<Vec<CampaignView>, LifecycleError> {
        let mut all = self.stored_campaigns().await?;
        all.sort_by_key(|it| std::cmp::Reverse(it.started_ms));
        let mut views = Vec::with_capacity(all.len());
        for stored in all {
            views.push(self.seen(stored, view).await?);
        }
        Ok(views)
    }

    /// Members of a campaign.
    pub async fn list_campaign_members(
        &self,
        name: &str,
        wanted: Wanted,
    ) -> Result<Members, LifecycleError> {
        let stored = self.stored_campaign(name).await?;
        let labels = stored.labels.clone();
        let (mut rows, now_ms): (Vec<Row>, u64) = self
            .seen(stored, |driven, now_ms| {
                let behind = driven.rows_after(wanted.after).filter(|row| wanted.has(row));
                (behind.take(wanted.limit.saturating_add(1)).cloned().collect(), now_ms)
            })
            .await?;
        let more = rows.len() > wanted.limit;
        rows.truncate(wanted.limit);
        let next = rows.last().filter(|_| more).map(|row| row.title);
        let mut members = Vec::with_capacity(rows.len());
        for row in rows {
            let id = self.id_for_people(&row.title).await;
            members.push(member(id, row, &labels, now_ms));
        }
        Ok(Members { members, next })
    }

    /// Empty: the meter can't be read.
    async fn id_for_people(&self, title: &SystemTitle) -> String {
        match self.records.read(title).await {
            Ok(Some(Record::Meter(meter))) => meter.meter_id.to_string(),
            _ => String::new(),
        }
    }

    /// What stands of a meter whose keys are being changed.
    pub async fn meter_rotation(&self, id: &MeterId) -> Result<MeterRotation, LifecycleError> {
        let meter = self.get(id).await?.record;
        let title = meter.system_title;
        let stored = self.stored_campaigns().await?;
        let block = self.records.block_of(&title);
        let mut found: Option<(&Campaign, Row)> = None;
        for fact in self.records.facts_of(block, FactName::CAMPAIGN_PART).await? {
            let Fact::CampaignPart(part) = fact else { continue };
            let Part { campaign, .. } = &part;
            let Some(campaign) = stored.iter().find(|it| it.id == *campaign) else { continue };
            let Some(row) = part.row(&title) else { continue };
            let newer = found.as_ref().is_none_or(|(it, _)| it.started_ms < campaign.started_ms);
            if newer {
                found = Some((campaign, row.clone()));
            }
        }
        let now_ms = self.clock.unix_ms();
        let member = found.map(|(campaign, row)| {
            let view = member(id.to_string(), row, &campaign.labels, now_ms);
            (campaign.name.clone(), view)
        });
        let setup = member.as_ref().and_then(|(name, _)| stored.iter().find(|it| it.name == *name));
        let setup = setup.map_or_else(Default::default, |it| it.policy.carrier.setup);
        let (pairs, advice) = (pairs(&meter, setup), advice(&meter));
        Ok(MeterRotation { meter, member, pairs, advice })
    }

    /// Looks at a campaign: as this node drives it, or else as it is stored.
    async fn seen<T>(
        &self,
        stored: Campaign,
        look: impl FnOnce(&Driven, u64) -> T,
    ) -> Result<T, LifecycleError> {
        let now_ms = self.clock.unix_ms();
        if let Some(shared) = self.campaigns.get(&stored.id) {
            let held = shared.lock().await;
            if held.driven.campaign.changes >= stored.changes {
                return Ok(look(&held.driven, now_ms));
            }
        }
        let driven = match self.campaigns.seen(&stored) {
            Some(seen) => seen,
            None => Arc::new(self.read_campaign(stored).await?),
        };
        self.campaigns.note_seen(&driven);
        Ok(look(&driven, now_ms))
    }
}

pub(super) fn view(driven: &Driven, now_ms: u64) -> CampaignView {
    let (progress, labels) = progress(driven, now_ms);
    let canaries_done = (0..labels.len()).map(|label| driven.canaries_done(label)).collect();
    CampaignView {
        campaign: driven.campaign.clone(),
        canaries_done,
        done_last_hour: driven.done_last_hour(now_ms),
        forecast_ms: forecast(driven, progress.left(), now_ms),
        progress,
        labels,
    }
}

fn member(meter_id: String, row: Row, labels: &[String], now_ms: u64) -> MemberView {
    let label = labels.get(usize::from(row.label)).cloned().unwrap_or_default();
    MemberView { meter_id, leased: row.is_leased(now_ms), row, label }
}

//! Campaigns: many meters' keys are rotated under one policy. Whoever plans them starts, watches and stops them; whoever
//! drives the meters takes work and reports what came of it.
//!
//! What says the same thing twice is sent again where its answer was lost, at the same site. Work that was handed out, a
//! report, and the start that sets a campaign running are not: each says below what to do instead.

mod parts;
mod policy;
mod view;
mod watch;
mod work;

use futures_util::Stream;
use kms_proto::v1;

use crate::call::{CallError, ProtocolError};
use crate::names::MeterId;
use crate::rotation::Rotation;
use crate::sites::Errand;
use crate::stubs::rotation as stub;

pub use kms_core::campaign::Status as CampaignStatus;
pub use kms_core::campaign::row::{
    Action as WorkAction, Outcome as TransportOutcome, Phase as CampaignMemberState,
};
pub use policy::{CampaignPolicy, CampaignStart, CampaignWindow, MeterSelection};
pub use view::{
    Campaign, CampaignLabel, CampaignMember, CampaignProgress, CampaignStarted, KeyTried, LeftOut,
    MembersOf, MeterRotation, NextAction,
};
pub use work::{KeyPair, TakenWork, Work, WorkReport, WorkVerdict};

type Answer<T> = Result<T, CallError>;
type Checked<T> = Result<T, ProtocolError>;

impl Rotation {
    /// Starts a campaign, or goes on with the one of this name whose meters are still coming in. A selection that says
    /// nothing is all meters. A dry run, and a call that more are to follow, are sent again if their answer was lost; the
    /// last call, which sets the campaign running, is not: begun twice it would be refused as `CAMPAIGN_STATE`.
    /// [`Rotation::campaign`] shows whether it runs.
    pub async fn start_campaign(&self, start: &CampaignStart) -> Answer<CampaignStarted> {
        let send = |link, request| async move { stub(link).start_campaign(request).await };
        let errand = if start.dry_run || start.more { Errand::AtPrimary } else { Errand::Write };
        let reply = self.transport().call(errand, start.to_wire(), send).await?;
        Ok(CampaignStarted::from_wire(reply)?)
    }

    /// A campaign, and how far it is. The site that writes knows its pace, another one what is stored.
    pub async fn campaign(&self, name: &str) -> Result<Campaign, CallError> {
        let send = |link, request| async move { stub(link).get_campaign(request).await };
        let request = v1::GetCampaignRequest { name: name.to_owned() };
        let reply = self.transport().call(Errand::AtPrimary, request, send).await?;
        Ok(Campaign::from_wire(reply)?)
    }

    /// All campaigns that are remembered, the newest first.
    pub async fn campaigns(&self) -> Result<Vec<Campaign>, CallError> {
        let send = |link, request| async move { stub(link).list_campaigns(request).await };
        let request = v1::ListCampaignsRequest {};
        let reply = self.transport().call(Errand::AtPrimary, request, send).await?;
        let campaigns = reply.campaigns.into_iter().map(Campaign::from_wire);
        Ok(campaigns.collect::<Result<_, _>>()?)
    }

    /// Members of a campaign in the order of their titles, fetched a page at a time as they are taken.
    pub fn campaign_members(
        &self,
        which: MembersOf,
    ) -> impl Stream<Item = Result<CampaignMember, CallError>> + Send + Unpin + 'static {
        view::members(self.clone(), which)
    }

    /// No meter is begun any more; what is under way comes to its end. Sent again it changes nothing.
    pub async fn pause_campaign(&self, name: &str, reason: &str) -> Result<Campaign, CallError> {
        let send = |link, request| async move { stub(link).pause_campaign(request).await };
        let request = v1::PauseCampaignRequest { name: name.to_owned(), reason: reason.to_owned() };
        let reply = self.transport().call(Errand::AtPrimary, request, send).await?;
        Ok(Campaign::from_wire(reply)?)
    }

    /// It goes on; with `retry_failed` also with what failed, of one that is finished, too. Sent again it changes nothing.
    pub async fn resume_campaign(&self, name: &str, retry_failed: bool) -> Answer<Campaign> {
        let send = |link, request| async move { stub(link).resume_campaign(request).await };
        let request = v1::ResumeCampaignRequest { name: name.to_owned(), retry_failed };
        let reply = self.transport().call(Errand::AtPrimary, request, send).await?;
        Ok(Campaign::from_wire(reply)?)
    }

    /// Ends it. What was sent stays staged, and is named as an orphan until its meter shows it. Sent again it changes
    /// nothing.
    pub async fn cancel_campaign(&self, name: &str, reason: &str) -> Result<Campaign, CallError> {
        let send = |link, request| async move { stub(link).cancel_campaign(request).await };
        let request =
            v1::CancelCampaignRequest { name: name.to_owned(), reason: reason.to_owned() };
        let reply = self.transport().call(Errand::AtPrimary, request, send).await?;
        Ok(Campaign::from_wire(reply)?)
    }

    /// Its progress, every so many seconds (0: the service's choice), from now to its end: the last one says that it is
    /// over. A connection that breaks is made again.
    pub fn watch_campaign(
        &self,
        name: &str,
        every_s: u32,
    ) -> impl Stream<Item = Result<Campaign, CallError>> + Send + Unpin + 'static {
        watch::watch(self.clone(), name.to_owned(), every_s)
    }

    /// Meters to change now, at most `most` (1 to 256; 0: 16), of this campaign or of any that runs; `worker` is the name of
    /// who does it, for people. Never sent twice: whoever gets [`CallError::OutcomeUnknown`] takes work again, and what was
    /// handed out comes back when its lease is over.
    pub async fn take_work(
        &self,
        campaign: Option<&str>,
        worker: &str,
        most: u32,
    ) -> Result<TakenWork, CallError> {
        let send = |link, request| async move { stub(link).take_work(request).await };
        let campaign = campaign.unwrap_or_default().to_owned();
        let request = v1::TakeWorkRequest { campaign, most, worker: worker.to_owned() };
        let reply = self.transport().call(Errand::Write, request, send).await?;
        Ok(TakenWork::from_wire(reply)?)
    }

    /// Says what came of work, 1 to 256 meters: a verdict each, in their order. Never sent twice: a failure would count
    /// twice. Whoever gets [`CallError::OutcomeUnknown`] takes work again; what the meters sent counts whenever it is opened.
    pub async fn report_work(&self, reports: &[WorkReport]) -> Result<Vec<WorkVerdict>, CallError> {
        let send = |link, request| async move { stub(link).report_work(request).await };
        let wire = reports.iter().map(WorkReport::to_wire).collect();
        let request = v1::ReportWorkRequest { reports: wire };
        let reply = self.transport().call(Errand::Write, request, send).await?;
        Ok(verdicts(reports.len(), reply)?)
    }

    /// What stands of one meter whose keys are being changed, and what may be done next.
    pub async fn meter_rotation(&self, meter_id: &MeterId) -> Result<MeterRotation, CallError> {
        let send = |link, request| async move { stub(link).get_meter_rotation(request).await };
        let request = v1::GetMeterRotationRequest { meter_id: meter_id.to_string() };
        let reply = self.transport().call(Errand::AtPrimary, request, send).await?;
        Ok(MeterRotation::from_wire(reply)?)
    }
}

/// A verdict for each report.
fn verdicts(items: usize, reply: v1::ReportWorkResponse) -> Checked<Vec<WorkVerdict>> {
    same_count(items, reply.verdicts.len())?;
    reply.verdicts.into_iter().map(WorkVerdict::from_wire).collect()
}

fn same_count(items: usize, found: usize) -> Checked<()> {
    let wrong = ProtocolError::ColumnLength { column: "verdicts", found, items };
    if items == found { Ok(()) } else { Err(wrong) }
}

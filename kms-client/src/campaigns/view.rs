//! What is seen of campaigns, of their members, and of one meter.

use bytes::Bytes;
use dlms::SystemTitle;
use futures_util::{Stream, stream};
use kms_core::campaign::Status as CampaignStatus;
use kms_core::campaign::row::{Outcome as TransportOutcome, Phase as CampaignMemberState};
use kms_proto::v1;
use serde::Serialize;

use super::parts::{optional, said, there, time};
use super::policy::CampaignPolicy;
use super::work::KeyPair;
use crate::call::{CallError, ProtocolError};
use crate::meter::{KeyInfo, numbered, title};
use crate::names::title_hex;
use crate::replicated::Replicated;
use crate::rotation::Rotation;
use crate::sites::Errand;
use crate::stubs;

/// Members of one page.
const PAGE_SIZE: u32 = 500;

/// Which members of a campaign are shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MembersOf {
    /// The campaign.
    pub name: String,
    /// Only those in this state.
    pub state: Option<CampaignMemberState>,
    /// Only those that may hold a key that they have not shown.
    pub exposed: bool,
    /// At most so many; `None`: all.
    pub limit: Option<usize>,
}

/// A campaign, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Campaign {
    /// Its name.
    pub name: String,
    /// How it stands.
    pub status: CampaignStatus,
    /// Why it is paused or cancelled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How it goes about it.
    pub policy: CampaignPolicy,
    /// Milliseconds since 1970.
    pub started_ms: u64,
    /// Milliseconds since 1970. Absent: it is not over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
    /// Who asked for it.
    pub asked_by: String,
    /// The server that drives it. Absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// In all.
    pub progress: CampaignProgress,
    /// By label.
    pub labels: Vec<CampaignLabel>,
}

/// Counts of members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CampaignProgress {
    /// All.
    pub members: u64,
    /// Not begun.
    pub waiting: u64,
    /// Their key is staged and was not handed out.
    pub staged: u64,
    /// They may hold the key.
    pub sent: u64,
    /// Canaries that are to be restarted.
    pub proved: u64,
    /// They have shown all their keys.
    pub done: u64,
    /// Their tries are used up.
    pub failed: u64,
    /// They can't be done, and nothing was sent.
    pub skipped: u64,
    /// Cancelled before they were begun.
    pub left: u64,
    /// Neither done nor failed, and the last try did not reach them.
    pub unreachable: u64,
    /// Under a lease now.
    pub leased: u64,
    /// Between sent and proved, failed ones included.
    pub exposed: u64,
    /// Exposed, and nobody is going to do anything about them by itself.
    pub orphans: u64,
    /// Done in the last hour.
    pub done_last_hour: u64,
    /// At that pace the rest is done then; milliseconds since 1970. Absent: nobody can say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forecast_ms: Option<u64>,
}

/// The members of one label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CampaignLabel {
    /// The device profile; without one, the manufacturer's three letters.
    pub label: String,
    /// How far they are.
    pub progress: CampaignProgress,
    /// All of its canaries are through.
    pub canaries_done: bool,
}

/// What became of a start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CampaignStarted {
    /// As it stands, or would stand.
    pub campaign: Campaign,
    /// Meters of this call that came in, or would.
    pub added: u64,
    /// Those that were in before.
    pub already: u64,
    /// Those that were left out, the first ones of very many.
    pub left_out: Vec<LeftOut>,
    /// All of those.
    pub left_out_total: u64,
    /// Whether the other site has that.
    #[serde(skip_serializing_if = "Replicated::is_nothing")]
    pub replicated: Replicated,
}

/// A meter that was left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// The meter.
    pub meter_id: String,
    /// A word for machines.
    pub code: String,
    /// A sentence for people.
    pub reason: String,
}

/// A meter of a campaign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CampaignMember {
    /// The operator's name; empty: its record can't be read.
    pub meter_id: String,
    /// The name on the wire.
    #[serde(with = "title_hex")]
    pub system_title: SystemTitle,
    /// Its label.
    pub label: String,
    /// How far it is.
    pub state: CampaignMemberState,
    /// One of the first of its label.
    pub canary: bool,
    /// It may hold a key that it has not shown.
    pub exposed: bool,
    /// The last try did not reach it.
    pub unreachable: bool,
    /// Tries that failed.
    pub failures: u32,
    /// The end of its lease, or the time at which it is tried again; milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<u64>,
    /// Somebody has it now.
    pub leased: bool,
    /// How the last try went. Absent: there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_outcome: Option<TransportOutcome>,
    /// Why it was refused: a word of the service's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The last pairs that were tried, the latest at the end.
    pub tried: Vec<KeyTried>,
}

/// A pair that was tried on a meter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyTried {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// The pair.
    pub pair: KeyPair,
    /// How that went.
    pub outcome: TransportOutcome,
    /// The beginning of what the meter answered, as hex digits; empty: nothing.
    pub frame: String,
}

/// What stands of one meter whose keys are being changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MeterRotation {
    /// All versions of its GUEK, GAK, GBEK and KEK.
    pub keys: Vec<KeyInfo>,
    /// The newest campaign that it is a member of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub campaign: Option<String>,
    /// How far it is in that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub member: Option<CampaignMember>,
    /// Pairs that may open what it sends, the likeliest first.
    pub pairs: Vec<KeyPair>,
    /// What may be done next, the gentlest first.
    pub actions: Vec<NextAction>,
}

/// A step that somebody may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NextAction {
    /// As it is typed.
    pub command: String,
    /// Why that.
    pub reason: String,
}

impl Campaign {
    pub(super) fn from_wire(wire: v1::Campaign) -> Result<Self, ProtocolError> {
        Ok(Self {
            name: wire.name,
            status: numbered(wire.status)?,
            reason: said(wire.reason),
            policy: CampaignPolicy::from_wire(there(wire.policy, "policy")?)?,
            started_ms: wire.started_ms,
            ended_ms: time(wire.ended_ms),
            asked_by: wire.asked_by,
            driver: said(wire.driver),
            progress: CampaignProgress::from_wire(&there(wire.progress, "progress")?),
            labels: wire
                .labels
                .into_iter()
                .map(CampaignLabel::from_wire)
                .collect::<Result<_, _>>()?,
        })
    }
}

impl CampaignProgress {
    fn from_wire(wire: &v1::CampaignProgress) -> Self {
        Self {
            members: wire.members,
            waiting: wire.waiting,
            staged: wire.staged,
            sent: wire.sent,
            proved: wire.proved,
            done: wire.done,
            failed: wire.failed,
            skipped: wire.skipped,
            left: wire.left,
            unreachable: wire.unreachable,
            leased: wire.leased,
            exposed: wire.exposed,
            orphans: wire.orphans,
            done_last_hour: wire.done_last_hour,
            forecast_ms: time(wire.forecast_ms),
        }
    }

    /// Members that nothing is left to do about.
    pub fn over(&self) -> u64 {
        self.done + self.failed + self.skipped + self.left
    }
}

impl CampaignLabel {
    fn from_wire(wire: v1::LabelProgress) -> Result<Self, ProtocolError> {
        let v1::LabelProgress { label, progress, canaries_done } = wire;
        let progress = CampaignProgress::from_wire(&there(progress, "progress")?);
        Ok(Self { label, progress, canaries_done })
    }
}

impl CampaignStarted {
    pub(super) fn from_wire(wire: v1::StartCampaignResponse) -> Result<Self, ProtocolError> {
        let left = |v1::LeftOut { meter_id, code, reason }| LeftOut { meter_id, code, reason };
        Ok(Self {
            campaign: Campaign::from_wire(there(wire.campaign, "campaign")?)?,
            added: wire.added,
            already: wire.already,
            left_out: wire.left_out.into_iter().map(left).collect(),
            left_out_total: wire.left_out_total,
            replicated: Replicated::from_wire(wire.replicated)?,
        })
    }
}

impl CampaignMember {
    pub(super) fn from_wire(wire: v1::CampaignMember) -> Result<Self, ProtocolError> {
        Ok(Self {
            meter_id: wire.meter_id,
            system_title: title(&wire.system_title)?,
            label: wire.label,
            state: numbered(wire.state)?,
            canary: wire.canary,
            exposed: wire.exposed,
            unreachable: wire.unreachable,
            failures: wire.failures,
            until_ms: time(wire.until_ms),
            leased: wire.leased,
            last_outcome: optional(wire.last_outcome)?,
            reason: said(wire.reason),
            tried: wire.tried.into_iter().map(KeyTried::from_wire).collect::<Result<_, _>>()?,
        })
    }
}

impl KeyTried {
    fn from_wire(wire: v1::KeyTried) -> Result<Self, ProtocolError> {
        let v1::KeyTried { at_ms, pair, outcome, frame } = wire;
        let pair = KeyPair::from_wire(&there(pair, "pair")?)?;
        Ok(Self { at_ms, pair, outcome: numbered(outcome)?, frame: hex::encode_upper(frame) })
    }
}

impl MeterRotation {
    pub(super) fn from_wire(wire: v1::GetMeterRotationResponse) -> Result<Self, ProtocolError> {
        let action = |v1::NextAction { command, reason }| NextAction { command, reason };
        Ok(Self {
            keys: wire.keys.into_iter().map(KeyInfo::from_wire).collect::<Result<_, _>>()?,
            campaign: said(wire.campaign),
            member: wire.member.map(CampaignMember::from_wire).transpose()?,
            pairs: wire.pairs.iter().map(KeyPair::from_wire).collect::<Result<_, _>>()?,
            actions: wire.actions.into_iter().map(action).collect(),
        })
    }
}

type Listed = v1::ListCampaignMembersResponse;

/// Where the next page begins, if there is one: further on than this one.
fn next_after(next: Bytes, after: &[u8]) -> Result<Option<Bytes>, ProtocolError> {
    if !next.is_empty() && next <= after {
        return Err(ProtocolError::EndlessList(hex::encode_upper(after)));
    }
    Ok(Some(next).filter(|next| !next.is_empty()))
}

/// The place that a list of members has got to.
struct Page {
    rotation: Rotation,
    which: MembersOf,
    /// The title behind which the next page begins; `None`: there is no next page.
    next: Option<Bytes>,
    left: usize,
    members: std::vec::IntoIter<v1::CampaignMember>,
}

/// Members, a page at a time.
pub(super) fn members(
    rotation: Rotation,
    which: MembersOf,
) -> impl Stream<Item = Result<CampaignMember, CallError>> + Send + Unpin + 'static {
    let start = Page {
        rotation,
        left: which.limit.unwrap_or(usize::MAX),
        which,
        next: Some(Bytes::new()),
        members: Vec::new().into_iter(),
    };
    Box::pin(stream::try_unfold(start, Page::advance))
}

impl Page {
    async fn advance(mut self) -> Result<Option<(CampaignMember, Self)>, CallError> {
        loop {
            if self.left == 0 {
                return Ok(None);
            }
            if let Some(member) = self.members.next() {
                self.left -= 1;
                return Ok(Some((CampaignMember::from_wire(member)?, self)));
            }
            let Some(after) = self.next.take() else { return Ok(None) };
            self.fetch(after).await?;
        }
    }

    async fn fetch(&mut self, after: Bytes) -> Result<(), CallError> {
        let send = |link, request| async move {
            stubs::rotation(link).list_campaign_members(request).await
        };
        let (transport, request) = (self.rotation.transport(), self.request(after.clone()));
        let reply = transport.call(Errand::AtPrimary, request, send).await?;
        Ok(self.turn_to(reply, &after)?)
    }

    fn turn_to(&mut self, reply: Listed, after: &[u8]) -> Result<(), ProtocolError> {
        let Listed { members, next } = reply;
        self.next = next_after(next, after)?;
        self.members = members.into_iter();
        Ok(())
    }

    fn request(&self, after: Bytes) -> v1::ListCampaignMembersRequest {
        let MembersOf { name, state, exposed, limit: _ } = &self.which;
        let (name, exposed) = (name.clone(), *exposed);
        let state = state.map_or(0, |state| state as i32);
        let limit = u32::try_from(self.left).map_or(PAGE_SIZE, |left| left.min(PAGE_SIZE));
        v1::ListCampaignMembersRequest { name, state, exposed, after, limit }
    }
}

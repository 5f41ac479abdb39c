//! What one site wrote alone when the other was promoted, and what people decide about it.

pub use kms_core::block::reconciling::{Decision, Parting};

use kms_core::{KeyKind, KeyState, Numbered};
use kms_proto::v1;
use kms_proto::v1::site_client::SiteClient;
use serde::Serialize;

use crate::call::{CallError, ProtocolError};
use crate::replicated::Replicated;
use crate::role::{SiteStanding, present};
use crate::sites::Errand;
use crate::transport::Transport;

/// A page of records that were set aside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DivergencePage {
    /// In order.
    pub rows: Vec<DivergenceRow>,
    /// Where the next page starts; `None`: this was the last.
    pub next: Option<Vec<u8>>,
    /// How many wait for a decision, on all pages.
    pub undecided: u64,
}

/// A record that was set aside, beside the one that stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DivergenceRow {
    /// Its block and its MAC, in hexadecimal digits: names it in `show`, `accept` and `discard`.
    pub id: String,
    /// Its block.
    pub block: u32,
    /// The epoch in which it was written.
    pub epoch: u64,
    /// The number of its change in the block.
    pub sequence: u64,
    /// The site that wrote it.
    pub site: String,
    /// Milliseconds since 1970.
    pub set_aside_ms: u64,
    /// Of a meter; empty of others, and where it can't be read.
    pub meter_id: String,
    /// Of a meter, 16 hexadecimal digits.
    pub system_title: String,
    /// What it is, beside the record that stands: by this a rule decides.
    pub parting: &'static str,
    /// Keys that only it has, or that are in another state.
    pub keys: Vec<DivergentKey>,
    /// Its policy is another one.
    pub other_policy: bool,
    /// Its names are other ones.
    pub other_names: bool,
    /// What was decided; `None`: nothing yet.
    pub decided: Option<DivergenceDecision>,
}

/// A key of a record that was set aside. Never its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DivergentKey {
    /// 32 hexadecimal digits.
    pub key_id: String,
    /// Its kind.
    pub kind: &'static str,
    /// The security setup that it belongs to.
    pub security_setup: u32,
    /// Its state in the record that was set aside.
    pub aside: &'static str,
    /// Its state in the record that stands; `None`: that one does not have it.
    pub stands: Option<&'static str>,
}

/// A decision that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DivergenceDecision {
    /// The decision.
    pub decision: &'static str,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// The caller who decided.
    pub by: String,
}

/// Records to decide about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DivergenceRule {
    /// The one of this id.
    One(Vec<u8>),
    /// All that are this.
    Parting(Parting),
    /// All.
    All,
}

/// The outcome of decisions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DivergenceResolved {
    /// Records that were decided about.
    pub decided: u32,
    /// Records of meters or lines that changed by it.
    pub changed: u32,
    /// Those that were not decided about.
    pub left: Vec<DivergenceLeft>,
    /// There may be more: ask again.
    pub more: bool,
    /// Whether the other site has what changed.
    #[serde(skip_serializing_if = "Replicated::is_nothing")]
    pub replicated: Replicated,
}

/// A record that was not decided about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DivergenceLeft {
    /// Its id.
    pub id: String,
    /// The reason word.
    pub word: String,
    /// The reason.
    pub reason: String,
}

pub(crate) async fn list(
    transport: &Transport,
    after: Option<Vec<u8>>,
    decided: bool,
) -> Result<DivergencePage, CallError> {
    let after = after.unwrap_or_default().into();
    ask(transport, v1::ListDivergenceRequest { after, decided, ..Default::default() }).await
}

pub(crate) async fn show(
    transport: &Transport,
    id: Vec<u8>,
) -> Result<Vec<DivergenceRow>, CallError> {
    let request = v1::ListDivergenceRequest { id: id.into(), ..Default::default() };
    Ok(ask(transport, request).await?.rows)
}

async fn ask(
    transport: &Transport,
    request: v1::ListDivergenceRequest,
) -> Result<DivergencePage, CallError> {
    let send = |link, request| async move { SiteClient::new(link).list_divergence(request).await };
    let reply = transport.call(Errand::AtPrimary, request, send).await?;
    let v1::ListDivergenceResponse { rows, next, undecided } = reply;
    let rows = rows.into_iter().map(row).collect::<Result<_, _>>()?;
    Ok(DivergencePage { rows, next: (!next.is_empty()).then(|| next.into()), undecided })
}

/// Not tried again once it may have arrived, although that would change nothing.
pub(crate) async fn resolve(
    transport: &Transport,
    rule: DivergenceRule,
    decision: Decision,
) -> Result<DivergenceResolved, CallError> {
    let send =
        |link, request| async move { SiteClient::new(link).resolve_divergence(request).await };
    let (id, rule, all) = match rule {
        DivergenceRule::One(id) => (id, 0, false),
        DivergenceRule::Parting(parting) => (Vec::new(), i32::from(parting as u8), false),
        DivergenceRule::All => (Vec::new(), 0, true),
    };
    let decision = i32::from(decision as u8);
    let request = v1::ResolveDivergenceRequest { decision, id: id.into(), rule, all };
    let reply = transport.call(Errand::Write, request, send).await?;
    let v1::ResolveDivergenceResponse { decided, changed, left, more, replicated } = reply;
    let left = left.into_iter().map(|it| DivergenceLeft {
        id: hex::encode(&it.id),
        word: it.word,
        reason: it.reason,
    });
    let replicated = Replicated::from_wire(replicated)?;
    Ok(DivergenceResolved { decided, changed, left: left.collect(), more, replicated })
}

/// Not tried again once it may have arrived.
pub(crate) async fn admit(transport: &Transport, epoch: u64) -> Result<SiteStanding, CallError> {
    let send = |link, request| async move { SiteClient::new(link).admit_epoch(request).await };
    let reply = transport.call(Errand::Write, v1::AdmitEpochRequest { epoch }, send).await?;
    Ok(present(reply.standing)?)
}

/// Not tried again once it may have arrived.
pub(crate) async fn forget_list(
    transport: &Transport,
    [authority, number, from]: [&[u8]; 3],
) -> Result<(u32, Replicated), CallError> {
    let send =
        |link, request| async move { SiteClient::new(link).forget_revocation_list(request).await };
    let request = v1::ForgetRevocationListRequest {
        authority: authority.to_vec().into(),
        number: number.to_vec().into(),
        from_number: from.to_vec().into(),
    };
    let reply = transport.call(Errand::Write, request, send).await?;
    Ok((reply.resets, Replicated::from_wire(reply.replicated)?))
}

fn row(wire: v1::DivergenceRow) -> Result<DivergenceRow, ProtocolError> {
    let v1::DivergenceRow {
        id,
        block,
        epoch,
        sequence,
        site,
        set_aside_ms,
        meter_id,
        system_title,
        key: _,
        parting,
        keys,
        other_policy,
        other_names,
        decided,
    } = wire;
    let decided = decided.map(|it| {
        let decision = known::<Decision>("decision", it.decision)?.word();
        Ok::<_, ProtocolError>(DivergenceDecision { decision, at_ms: it.at_ms, by: it.by })
    });
    Ok(DivergenceRow {
        id: hex::encode(&id),
        block,
        epoch,
        sequence,
        site,
        set_aside_ms,
        meter_id,
        system_title: hex::encode(&system_title),
        parting: known::<Parting>("parting", parting)?.word(),
        keys: keys.into_iter().map(key).collect::<Result<_, _>>()?,
        other_policy,
        other_names,
        decided: decided.transpose()?,
    })
}

fn key(wire: v1::DivergentKey) -> Result<DivergentKey, ProtocolError> {
    let v1::DivergentKey { key_id, kind, security_setup, aside, stands } = wire;
    let stands = (stands != 0).then(|| known::<KeyState>("state", stands)).transpose()?;
    Ok(DivergentKey {
        key_id: hex::encode(&key_id),
        kind: known::<KeyKind>("kind", kind)?.word(),
        security_setup,
        aside: known::<KeyState>("state", aside)?.word(),
        stands: stands.map(|state| state.word()),
    })
}

fn known<T: Numbered>(what: &'static str, number: i32) -> Result<T, ProtocolError> {
    let known = u8::try_from(number).ok().and_then(T::from_number);
    known.ok_or(ProtocolError::UnknownNumber { what, number })
}

//! Who writes: a site's role, and how it is changed.

use kms_proto::Method;
use kms_proto::v1;
use kms_proto::v1::site_client::SiteClient;
use serde::Serialize;

use crate::approvals::{self, Approval};
use crate::call::{CallError, ProtocolError};
use crate::sites::Errand;
use crate::transport::Transport;

/// What a site is in its key domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[non_exhaustive]
pub enum SiteRole {
    /// It writes.
    Primary,
    /// It follows the site that writes, and can be promoted.
    Secondary,
    /// It was the primary, and another site was promoted since.
    Fenced,
    /// It follows, and is never promoted.
    Replica,
}

impl SiteRole {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Primary => "PRIMARY",
            Self::Secondary => "SECONDARY",
            Self::Fenced => "FENCED",
            Self::Replica => "REPLICA",
        }
    }
}

/// A site's role, and the epoch that goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SiteStanding {
    /// The role.
    pub role: SiteRole,
    /// The highest epoch that the site knows of: the one that the primary writes in.
    pub epoch: u64,
    /// Whether the site takes changes now.
    pub writes: bool,
}

impl SiteStanding {
    pub(crate) fn from_wire(wire: v1::SiteStanding) -> Result<Self, ProtocolError> {
        let v1::SiteStanding { role: number, epoch, writes } = wire;
        let role = match v1::SiteRole::try_from(number) {
            Ok(v1::SiteRole::Primary) => SiteRole::Primary,
            Ok(v1::SiteRole::Secondary) => SiteRole::Secondary,
            Ok(v1::SiteRole::Fenced) => SiteRole::Fenced,
            Ok(v1::SiteRole::Replica) => SiteRole::Replica,
            Ok(v1::SiteRole::Unspecified) | Err(_) => {
                return Err(ProtocolError::UnknownNumber { what: "role", number });
            }
        };
        Ok(Self { role, epoch, writes })
    }
}

/// How a site is to be promoted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PromoteOptions {
    /// The highest epoch that the site knows of: if it is another one by now, nothing is done.
    pub expected_epoch: u64,
    /// The primary is lost or cut off, and was not demoted.
    pub primary_is_lost: bool,
    /// The site was restored or rebuilt: the highest epoch that its peer, a coordinator or two people name.
    pub above_epoch: Option<u64>,
    /// Promote a site whose readiness is red, although what is not proved may not open there.
    pub although_unproved: bool,
}

impl PromoteOptions {
    /// The request: an approval is for its very bytes.
    fn to_wire(self) -> v1::PromoteRequest {
        let Self { expected_epoch, primary_is_lost, above_epoch, although_unproved } = self;
        v1::PromoteRequest { expected_epoch, primary_is_lost, above_epoch, although_unproved }
    }
}

/// A site that was promoted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Promoted {
    /// Its standing now.
    pub standing: SiteStanding,
    /// Blocks of which nothing is known: they stay as they are, and take no change.
    pub left: Vec<BlockLeft>,
}

/// A block that a promotion left as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BlockLeft {
    /// The block.
    pub block: u32,
    /// The reason.
    pub reason: String,
}

/// Not tried again once it may have arrived.
pub(crate) async fn promote(
    transport: &Transport,
    options: PromoteOptions,
) -> Result<Promoted, CallError> {
    let send = |link, request| async move { SiteClient::new(link).promote(request).await };
    let reply = transport.call(Errand::Write, options.to_wire(), send).await?;
    let v1::PromoteResponse { standing, left } = reply;
    let left = left.into_iter().map(|v1::BlockLeft { block, reason }| BlockLeft { block, reason });
    Ok(Promoted { standing: present(standing)?, left: left.collect() })
}

/// Not tried again once it may have arrived.
pub(crate) async fn demote(
    transport: &Transport,
    expected_epoch: u64,
) -> Result<SiteStanding, CallError> {
    let send = |link, request| async move { SiteClient::new(link).demote(request).await };
    let request = v1::DemoteRequest { expected_epoch };
    let reply = transport.call(Errand::Write, request, send).await?;
    Ok(present(reply.standing)?)
}

/// Asks for the second person of a promotion that is made later.
pub(crate) async fn ask_to_promote(
    transport: &Transport,
    options: PromoteOptions,
) -> Result<Option<Approval>, CallError> {
    approvals::ahead(transport, Method::SitePromote, &options.to_wire()).await
}

/// Asks for the second person of a demotion that is made later.
pub(crate) async fn ask_to_demote(
    transport: &Transport,
    expected_epoch: u64,
) -> Result<Option<Approval>, CallError> {
    approvals::ahead(transport, Method::SiteDemote, &v1::DemoteRequest { expected_epoch }).await
}

pub(crate) fn present(standing: Option<v1::SiteStanding>) -> Result<SiteStanding, ProtocolError> {
    SiteStanding::from_wire(standing.ok_or(ProtocolError::Missing("standing"))?)
}

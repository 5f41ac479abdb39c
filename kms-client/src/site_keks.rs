//! The rotation of a site KEK.

use kms_core::{Numbered as _, site::keks::KekStage};
use kms_proto::v1::{self, site_client::SiteClient};
use serde::Serialize;

use crate::call::{CallError, ProtocolError};
use crate::site_keys::BlockWaiting;
use crate::sites::Errand;
use crate::transport::Transport;

/// How far the rotation of the site KEK is, of the token of the server that answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SiteKekRotation {
    /// Its number; 0: there was none.
    pub generation: u32,
    /// When it was asked for; milliseconds since 1970.
    pub asked_ms: u64,
    /// Its stage, as `RETIRED`; empty: there was none.
    pub stage: &'static str,
    /// The id of the KEK that seals are made under, in hexadecimal.
    pub in_use: String,
    /// All blocks of the domain.
    pub blocks: u32,
    /// Of them, those whose secret has a seal under the new KEK.
    pub blocks_sealed: u32,
    /// Seals under the former KEK.
    pub seals: u32,
    /// Of them, those whose secret opened under the new KEK, as the server that was asked knows.
    pub proved: u32,
    /// Former KEKs that nothing is sealed under and that are not destroyed, by their ids.
    pub former: Vec<String>,
    /// Blocks that wait: the first hundred.
    pub waiting: Vec<BlockWaiting>,
    /// What keeps all of it; empty: nothing.
    pub fault: String,
}

impl SiteKekRotation {
    /// Whether nothing is left that goes on by itself.
    pub fn is_over(&self) -> bool {
        let over = [KekStage::Retired.word(), KekStage::Destroyed.word(), ""];
        over.contains(&self.stage)
    }

    fn from_wire(wire: Option<v1::SiteKekRotation>) -> Result<Self, ProtocolError> {
        let v1::SiteKekRotation {
            generation,
            asked_ms,
            stage,
            in_use,
            blocks,
            blocks_sealed,
            seals,
            proved,
            former,
            waiting,
            fault,
        } = wire.ok_or(ProtocolError::Missing("rotation"))?;
        let known = u8::try_from(stage).ok().and_then(KekStage::from_number);
        // A stage of a later release is none that it is over in.
        let stage = if stage == 0 { "" } else { known.map_or("UNKNOWN", KekStage::word) };
        let waits = |v1::BlockLeft { block, reason }| BlockWaiting { block, reason };
        Ok(Self {
            generation,
            asked_ms,
            stage,
            in_use: hex::encode(in_use),
            blocks,
            blocks_sealed,
            seals,
            proved,
            former: former.iter().map(hex::encode).collect(),
            waiting: waiting.into_iter().map(waits).collect(),
            fault,
        })
    }
}

/// Not tried again once it may have arrived: to ask for it again is harmless only while one is under way.
pub(crate) async fn rotate(transport: &Transport) -> Result<SiteKekRotation, CallError> {
    let send = |link, request| async move { SiteClient::new(link).rotate_site_kek(request).await };
    let reply = transport.call(Errand::Write, v1::RotateSiteKekRequest {}, send).await?;
    Ok(SiteKekRotation::from_wire(reply.rotation)?)
}

pub(crate) async fn look(transport: &Transport) -> Result<SiteKekRotation, CallError> {
    let send =
        |link, request| async move { SiteClient::new(link).get_site_kek_rotation(request).await };
    let reply = transport.call(Errand::Read, v1::GetSiteKekRotationRequest {}, send).await?;
    Ok(SiteKekRotation::from_wire(reply.rotation)?)
}

/// The former KEK of this id, and those before it.
pub(crate) async fn destroy(
    transport: &Transport,
    id: &[u8],
) -> Result<SiteKekRotation, CallError> {
    let send = |link, request| async move { SiteClient::new(link).destroy_site_kek(request).await };
    let request = v1::DestroySiteKekRequest { kek_id: id.to_vec().into() };
    let reply = transport.call(Errand::Write, request, send).await?;
    Ok(SiteKekRotation::from_wire(reply.rotation)?)
}

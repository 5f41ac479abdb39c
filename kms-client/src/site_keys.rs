//! The rotation of block secrets.

use kms_proto::v1::{self, site_client::SiteClient};
use serde::Serialize;

use crate::call::{CallError, ProtocolError};
use crate::sites::Errand;
use crate::transport::Transport;

/// How far the rotation of block secrets is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BlockSecretRotation {
    /// Its number; 0: there was none.
    pub generation: u32,
    /// When it was asked for; milliseconds since 1970.
    pub asked_ms: u64,
    /// All blocks of the domain.
    pub blocks: u32,
    /// Blocks that have a new secret, and are under the former one still.
    pub staged: u32,
    /// Blocks that are under the new one, and keep the former one.
    pub rewritten: u32,
    /// Blocks that are done.
    pub retired: u32,
    /// Blocks that wait: the first hundred.
    pub waiting: Vec<BlockWaiting>,
}

/// A block whose rotation waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BlockWaiting {
    /// The block.
    pub block: u32,
    /// For what, as a sentence.
    pub reason: String,
}

impl BlockSecretRotation {
    /// Whether nothing is left to do.
    pub fn is_over(&self) -> bool {
        self.retired == self.blocks
    }

    fn from_wire(wire: Option<v1::BlockSecretRotation>) -> Result<Self, ProtocolError> {
        let v1::BlockSecretRotation {
            generation,
            asked_ms,
            blocks,
            staged,
            rewritten,
            retired,
            waiting,
        } = wire.ok_or(ProtocolError::Missing("rotation"))?;
        let waits = |v1::BlockLeft { block, reason }| BlockWaiting { block, reason };
        let waiting = waiting.into_iter().map(waits).collect();
        Ok(Self { generation, asked_ms, blocks, staged, rewritten, retired, waiting })
    }
}

/// Not tried again once it may have arrived: to ask for it again is harmless only while one is under way.
pub(crate) async fn rotate(transport: &Transport) -> Result<BlockSecretRotation, CallError> {
    let send =
        |link, request| async move { SiteClient::new(link).rotate_block_secrets(request).await };
    let reply = transport.call(Errand::Write, v1::RotateBlockSecretsRequest {}, send).await?;
    Ok(BlockSecretRotation::from_wire(reply.rotation)?)
}

pub(crate) async fn look(transport: &Transport) -> Result<BlockSecretRotation, CallError> {
    let send = |link, request| async move {
        SiteClient::new(link).get_block_secret_rotation(request).await
    };
    let reply = transport.call(Errand::Read, v1::GetBlockSecretRotationRequest {}, send).await?;
    Ok(BlockSecretRotation::from_wire(reply.rotation)?)
}

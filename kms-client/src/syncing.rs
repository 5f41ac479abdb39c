//! A site brought in step with the primary, and proved to be.

use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use kms_proto::v1;
use kms_proto::v1::site_client::SiteClient;
use serde::Serialize;
use tokio::time::Instant;
use tonic::Status;

use crate::call::CallError;
use crate::sites::Errand;
use crate::transport::{Transport, connected, within};

/// The longest silence between two messages: a token opens blocks meanwhile.
const SILENCE_MAX: Duration = Duration::from_secs(90);

/// What is to be brought in step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncOptions {
    /// The site, by its name; empty: the one of the two that does not write.
    pub target: String,
    /// Compare every block with what the primary has stored, whatever state both say that it is in.
    pub force: bool,
    /// Compare, and change nothing.
    pub dry_run: bool,
    /// These blocks; empty: all.
    pub blocks: Vec<u32>,
}

/// How far it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SyncProgress {
    /// The primary.
    pub source: String,
    /// The site that is to be in step with it.
    pub target: String,
    /// Blocks that are looked at.
    pub blocks: u32,
    /// Of them, those that stand where the primary's do.
    pub in_step: u32,
    /// Of them, those that the target's token has opened as they are stored there.
    pub proved: u32,
    /// Written at the target since the call began.
    pub blocks_written: u32,
    /// Records of these.
    pub records_written: u64,
    /// Bytes of these.
    pub bytes_written: u64,
    /// Blocks that were found to differ since the message before.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<SyncDifference>,
    /// In the last message: blocks that are not in step or not proved.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<SyncFailure>,
    /// Nothing follows.
    pub done: bool,
}

/// A block that differs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SyncDifference {
    /// The block.
    pub block: u32,
    /// The difference.
    pub reason: String,
    /// Records that the target has not.
    pub records: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Meters of these, by their system titles; 16 hex digits each. Not all of very many.
    pub system_titles: Vec<String>,
}

/// A block that is not in step or not proved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SyncFailure {
    /// The block.
    pub block: u32,
    /// The reason.
    pub reason: String,
}

pub(crate) async fn sync(
    transport: &Transport,
    options: SyncOptions,
) -> Result<impl Stream<Item = Result<SyncProgress, CallError>> + Send + Unpin + use<>, CallError> {
    let SyncOptions { target, force, dry_run, blocks } = options;
    let request = v1::SyncNowRequest { target, force, dry_run, blocks };
    let until = Instant::now() + transport.deadline();
    let mut tries = transport.tries(Errand::AtPrimary, Some(until));
    let replies = loop {
        let link = tries.link();
        let begun = async {
            connected(until, &link).await?;
            let request = tries.request(request.clone());
            within(until, SiteClient::new(link.clone()).sync_now(request)).await
        };
        match begun.await {
            Ok(replies) => break replies.into_inner(),
            Err(status) => tries.after(&status).await?,
        }
    };
    let ends = |status: &Status| Err(CallError::from_status(status));
    Ok(Box::pin(stream::unfold(Some(replies), move |replies| async move {
        let mut replies = replies?;
        let reply = within(Instant::now() + SILENCE_MAX, replies.message()).await;
        match reply {
            Ok(Some(reply)) => Some((Ok(from_wire(reply)), Some(replies))),
            Ok(None) => None,
            Err(status) => Some((ends(&status), None)),
        }
    }))
    .fuse())
}

fn from_wire(wire: v1::SyncProgress) -> SyncProgress {
    let difference = |wire: v1::SyncDifference| {
        let v1::SyncDifference { block, reason, records, bytes, system_titles } = wire;
        let system_titles = system_titles.iter().map(hex::encode_upper).collect();
        SyncDifference { block, reason, records, bytes, system_titles }
    };
    let failure = |v1::SyncFailure { block, reason }| SyncFailure { block, reason };
    SyncProgress {
        source: wire.source,
        target: wire.target,
        blocks: wire.blocks,
        in_step: wire.in_step,
        proved: wire.proved,
        blocks_written: wire.blocks_written,
        records_written: wire.records_written,
        bytes_written: wire.bytes_written,
        differences: wire.differences.into_iter().map(difference).collect(),
        failures: wire.failures.into_iter().map(failure).collect(),
        done: wire.done,
    }
}

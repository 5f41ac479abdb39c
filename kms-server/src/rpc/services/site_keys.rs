//! The rotation of block secrets and of the site KEK, for `Site`.

use std::sync::Arc;

use kms_proto::v1;
use tonic::Status;

use super::in_order::to_its_end;
use crate::{
    keyring::{KeksError, KeyringError},
    lifecycle::LifecycleError,
    rpc::{
        gate::recording::Recorder,
        messages::{lifecycle_status::of_lifecycle, status::Refused},
    },
    site_keys::{
        BlockSecretRotation, KekError, KekProgress, NotRotated, Progress, SiteKekRotation,
    },
};
use kms_core::{
    BlockNo, Numbered as _,
    audit::{AuditedCall, Subject},
};

/// Begins a rotation, or tells of the one that is under way.
pub(super) async fn begin(
    rotation: &BlockSecretRotation,
    audit: &Recorder,
    call: &AuditedCall,
) -> Result<Progress, Status> {
    match rotation.begin(call).await {
        Ok(progress) => Ok(progress),
        Err(NotRotated::LeftOut(why)) => Err(Refused::SecondToken(why).into()),
        Err(NotRotated::Keyring(error)) => {
            let error = LifecycleError::from(error);
            Err(audit.failure(call, Subject::NONE, &error).await)
        }
    }
}

/// How far it is.
pub(super) async fn look(
    rotation: &BlockSecretRotation,
) -> Result<v1::BlockSecretRotation, Status> {
    let looked = rotation.look().await;
    let progress = looked.map_err(|error| of_lifecycle(&LifecycleError::from(error)))?;
    Ok(wire_rotation(progress))
}

pub(super) fn wire_rotation(progress: Progress) -> v1::BlockSecretRotation {
    let Progress { generation, asked_ms, blocks, staged, rewritten, retired, waiting } = progress;
    let left = |(block, reason): (kms_core::BlockNo, _)| v1::BlockLeft { block: block.0, reason };
    v1::BlockSecretRotation {
        generation,
        asked_ms,
        blocks,
        staged,
        rewritten,
        retired,
        waiting: waiting.into_iter().map(left).collect(),
    }
}

/// What is asked of the rotation of the site KEK.
pub(super) enum KekAsked {
    /// That there be one.
    Rotate,
    /// That the former one, of this id, be destroyed.
    Destroy(bytes::Bytes),
}

/// Does it, or tells of what is under way.
pub(super) async fn ask_kek(
    (rotation, audit, asked): (&Arc<SiteKekRotation>, &Recorder, KekAsked),
    call: AuditedCall,
) -> Result<v1::SiteKekRotation, Status> {
    let (rotation, audit) = (Arc::clone(rotation), audit.clone());
    to_its_end(async move {
        let done = match &asked {
            KekAsked::Rotate => rotation.begin(&call).await,
            KekAsked::Destroy(named) => rotation.destroy(&call, named).await,
        };
        match done {
            Ok(progress) => Ok(wire_kek(progress)),
            Err(KekError::Refused(why)) => Err(Refused::SiteKek(why).into()),
            Err(error) => Err(audit.failure(&call, Subject::NONE, &of_kek(error)).await),
        }
    })
    .await
}

/// How far it is.
pub(super) async fn look_at_kek(rotation: &SiteKekRotation) -> Result<v1::SiteKekRotation, Status> {
    match rotation.look().await {
        Ok(progress) => Ok(wire_kek(progress)),
        Err(KekError::Refused(why)) => Err(Refused::SiteKek(why).into()),
        Err(error) => Err(of_lifecycle(&of_kek(error))),
    }
}

/// Faults of no block are told as those of the first one.
fn of_kek(error: KekError) -> LifecycleError {
    let block = BlockNo(0);
    LifecycleError::from(match error {
        KekError::Store(error) | KekError::Keks(KeksError::Store(error)) => error.into(),
        KekError::Token(said) | KekError::Keks(KeksError::Token(said)) => {
            KeyringError::Token { block, said }
        }
        error @ (KekError::Refused(_) | KekError::Keks(_)) => {
            KeyringError::Damaged { block, what: error.to_string() }
        }
    })
}

fn wire_kek(progress: KekProgress) -> v1::SiteKekRotation {
    let KekProgress { generation, asked_ms, stage, in_use, looked, former, waiting, fault } =
        progress;
    let left = |(block, reason): (BlockNo, _)| v1::BlockLeft { block: block.0, reason };
    let count = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    v1::SiteKekRotation {
        generation,
        asked_ms,
        // The numbers are the same.
        stage: stage.map_or(0, |stage| i32::from(stage.number())),
        in_use: in_use.to_vec().into(),
        blocks: count(looked.blocks),
        blocks_sealed: count(looked.blocks_sealed),
        seals: count(looked.seals),
        proved: count(looked.proved),
        former: former.iter().map(|id| id.to_vec().into()).collect(),
        waiting: waiting.into_iter().map(left).collect(),
        fault: fault.unwrap_or_default(),
    }
}

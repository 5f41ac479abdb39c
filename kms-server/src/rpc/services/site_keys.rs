//! The rotation of block secrets, for `Site`.

use kms_proto::v1;
use tonic::Status;

use crate::{
    lifecycle::LifecycleError,
    rpc::{
        gate::recording::Recorder,
        messages::{lifecycle_status::of_lifecycle, status::Refused},
    },
    site_keys::{BlockSecretRotation, NotRotated, Progress},
};
use kms_core::audit::{AuditedCall, Subject};

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

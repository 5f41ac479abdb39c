//! The rotation of the service's own keys, started beside what serves.

use std::sync::Arc;

use super::{ground::Ground, outside::OperatingSystem};
use crate::{
    keyring::Keyring,
    site_keys::{BlockSecretRotation, Config, Parts, Sweeping},
};
use kms_core::ports::PeersProofs;

/// Starts it. `peer` has the other site prove blocks; `None`: there is none.
pub(super) fn start(
    ground: &Ground,
    keyring: &Keyring,
    peer: Option<Arc<dyn PeersProofs>>,
) -> Arc<BlockSecretRotation> {
    let parts = Parts {
        rotator: Arc::clone(&keyring.rotator),
        prover: Arc::clone(&keyring.prover),
        peer,
        site: ground.domain.site.clone(),
        clock: Arc::clone(&ground.clock),
        randomness: Arc::new(OperatingSystem),
    };
    let rotation = Arc::new(BlockSecretRotation::new(parts, Config::default()));
    tokio::spawn(Arc::clone(&rotation).run());
    let (store, clock) = (Arc::clone(&ground.store), Arc::clone(&ground.clock));
    tokio::spawn(Sweeping::new(Arc::clone(&keyring.rotator), store, clock).run());
    rotation
}

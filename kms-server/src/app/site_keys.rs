//! The rotation of the service's own keys, started beside what serves.

use std::sync::Arc;

use super::{fault::Fault, ground::Ground, init::random, outside::OperatingSystem};
use crate::{
    keyring::Keyring,
    site_keys::{BlockSecretRotation, Config, KekPace, KekParts, Parts, SiteKekRotation, Sweeping},
    store::AuditedStore,
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

/// Starts that of the site KEK: what other servers do of it is taken up by the way.
pub(super) fn start_kek(
    ground: &Ground,
    keyring: &Keyring,
    commits: &Arc<dyn AuditedStore>,
) -> Result<Arc<SiteKekRotation>, Fault> {
    let parts = KekParts {
        hsm: ground.hsm.clone(),
        keks: Arc::clone(&keyring.keks),
        store: ground.measured.clone(),
        commits: Arc::clone(commits),
        domain: ground.domain.clone(),
        clock: Arc::clone(&ground.clock),
    };
    let rotation = Arc::new(SiteKekRotation::new(parts, KekPace::default(), random()?));
    tokio::spawn(Arc::clone(&rotation).run());
    Ok(rotation)
}

//! The parts of a site that has a peer, wired.

use std::sync::Arc;

use super::{outside::OperatingSystem, serve::Ground};
use crate::{
    config::Peer as PeerSettings,
    keyring::Keyring,
    replication::{
        Answering, Cards, Config, Confirming, Fencing, Following, Ledger, Outside, Peer, Proving,
        Serving, Status,
    },
    rpc::{self, PeerClient, Replicating, ReplicationParts},
};

/// What a site with a peer stands on, before there is a keyring.
pub(super) struct TwoSites {
    config: Config,
    peer: Arc<dyn Peer>,
    cards: Cards,
    status: Arc<Status>,
    ledger: Arc<Ledger>,
}

impl TwoSites {
    /// To the peer of `settings`, with the identity of `tls`. `ledger` hears of what is committed here.
    pub(super) fn new(
        ground: &Ground,
        settings: PeerSettings,
        tls: rpc::TlsConfig,
        ledger: Arc<Ledger>,
    ) -> Self {
        let PeerSettings { connection, replication } = settings;
        let status = Status::new(replication.peer.clone(), Arc::clone(&ground.clock));
        Self {
            peer: Arc::new(PeerClient::new(connection, tls)),
            cards: Cards::new(ground.measured.clone(), &ground.domain),
            status: Arc::new(status),
            config: replication,
            ledger,
        }
    }

    /// Tells whether a write is replicated.
    pub(super) fn gate(&self) -> Arc<Confirming> {
        Arc::new(Confirming::new(
            Arc::clone(&self.peer),
            self.cards.clone(),
            Arc::clone(&self.status),
            self.config.write_wait,
        ))
    }

    /// Starts what goes on beside serving, and gives what serves.
    pub(super) fn start(self, ground: &Ground, keyring: &Keyring) -> Replicating {
        let Self { config, peer, cards, status, ledger } = self;
        let blocks = ground.domain.blocks;
        let fencing = Arc::new(Fencing::new(
            (Arc::clone(&keyring.roles), ground.measured.clone()),
            Arc::clone(&peer),
            cards.clone(),
            Arc::clone(&ground.clock),
            Arc::clone(&status),
        ));
        let serving = Serving::new(
            (ground.measured.clone(), Arc::clone(&ledger)),
            (cards.clone(), blocks),
            Arc::clone(&fencing),
            Arc::clone(&status),
            config.heartbeat,
        );
        let following = Following::new(
            config.clone(),
            (Arc::clone(&peer), ground.measured.clone()),
            (Arc::clone(&keyring.adopter), Arc::clone(&keyring.roles), fencing),
            (cards.clone(), Arc::clone(&ground.clock)),
            Arc::clone(&status),
        );
        let outside = Outside {
            peer,
            store: ground.measured.clone(),
            clock: Arc::clone(&ground.clock),
            randomness: Arc::new(OperatingSystem),
        };
        let prover = Arc::clone(&keyring.prover);
        let status_of_proving = Arc::clone(&status);
        let proving =
            Proving::new(config, outside, prover, (cards.clone(), blocks), status_of_proving);
        tokio::spawn(ledger.hear(ground.measured.clone()));
        tokio::spawn(async move { following.run().await });
        tokio::spawn(async move { proving.run().await });
        let answering = Arc::new(Answering::new(Arc::clone(&keyring.prover), cards));
        Replicating { parts: ReplicationParts { serving: Arc::new(serving), answering }, status }
    }
}

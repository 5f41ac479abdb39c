//! The parts of a site that has a peer, wired.

use std::sync::Arc;

use super::{ground::Ground, outside::OperatingSystem};
use crate::{
    ciphering::Floors,
    config::Peer as PeerSettings,
    keyring::Keyring,
    replication::{
        Answering, Cards, Confirming, Fencing, Flooring, Following, Grounds, Ledger, PeersMemory,
        Proving, Remembering, Serving, Status, Syncing, Telling,
    },
    rpc::{self, PeerClient, Replicating, ReplicationParts},
    transmitting::OtherSite,
};

/// What a site with a peer stands on, before there is a keyring.
pub(super) struct TwoSites {
    grounds: Grounds,
    ledger: Arc<Ledger>,
    remembering: Arc<Remembering>,
}

impl TwoSites {
    /// To the peer of `settings`, with the identity of `tls`. `ledger` hears of what is committed here.
    pub(super) fn new(
        ground: &Ground,
        settings: PeerSettings,
        tls: rpc::TlsConfig,
        ledger: Arc<Ledger>,
    ) -> Self {
        let PeerSettings { connection, replication: config } = settings;
        let clock = Arc::clone(&ground.clock);
        let status = Arc::new(Status::new(config.peer.clone(), Arc::clone(&clock)));
        let grounds = Grounds {
            config,
            peer: Arc::new(PeerClient::new(connection, tls)),
            store: ground.measured.clone(),
            cards: Cards::new(ground.measured.clone(), &ground.domain),
            blocks: ground.domain.blocks,
            clock,
            status,
        };
        let remembering = Arc::new(Remembering::new(&grounds, ground.measured.clone()));
        Self { grounds, ledger, remembering }
    }

    /// Tells whether a write is replicated.
    pub(super) fn gate(&self) -> Arc<Confirming> {
        Arc::new(Confirming::new(&self.grounds))
    }

    /// How counters ask the other site.
    pub(super) fn for_counters(&self) -> OtherSite {
        (self.gate(), Arc::new(PeersMemory::new(&self.grounds)))
    }

    /// Starts what goes on beside serving, and gives what serves.
    pub(super) async fn start(self, keyring: &Keyring, floors: Arc<Floors>) -> Replicating {
        let Self { grounds, ledger, remembering } = self;
        let fencing = Arc::new(Fencing::new(&grounds, Arc::clone(&keyring.roles)));
        let serving = Serving::new(&grounds, Arc::clone(&ledger), Arc::clone(&fencing));
        let (adopter, roles) = (Arc::clone(&keyring.adopter), Arc::clone(&keyring.roles));
        let flooring = Flooring::new(grounds.clone(), Arc::clone(&fencing), floors);
        let telling = Telling::new(grounds.clone(), Arc::clone(&adopter));
        let following =
            Arc::new(Following::new(grounds.clone(), adopter, roles, Arc::clone(&fencing)));
        // Before the first change: this site may have been promoted over, or put back.
        following.meet_first().await;
        let prover = Arc::clone(&keyring.prover);
        let proving = Proving::new(grounds.clone(), prover, Arc::new(OperatingSystem));
        let proving = Arc::new(proving);
        let syncing = Syncing::new(&grounds, Arc::clone(&proving), Arc::clone(&following));
        tokio::spawn(ledger.hear(Arc::clone(&grounds.store)));
        tokio::spawn(async move { following.run().await });
        tokio::spawn(async move { proving.run().await });
        tokio::spawn(async move { flooring.run().await });
        tokio::spawn(async move { telling.run().await });
        let Grounds { cards, status, .. } = grounds;
        let answering = Arc::new(Answering::new(Arc::clone(&keyring.prover), cards));
        let parts = ReplicationParts { serving: Arc::new(serving), answering, remembering };
        Replicating { parts, status, syncing: Arc::new(syncing), fencing }
    }
}

//! The parts of a site that has a peer, wired.

use std::sync::Arc;

use super::{ground::Ground, outside::OperatingSystem};
use crate::{
    ciphering::Ciphering,
    config::Peer as PeerSettings,
    keyring::{Keyring, Roles},
    replication::{
        Answering, Auditing, Cards, Confirming, EitherSite, Fencing, Flooring, Following, Grounds,
        Handing, Ledger, OnDemand, OwnMakeup, Peer, PeersMemory, Planning, Proving, Remembering,
        Reporting, Serving, Status, Syncing, Telling, Watching, Witnessing,
    },
    rpc::{self, PeerClient, Replicating, ReplicationParts},
    store::{WriteStore, measured::Measured, whole::WholeStore},
    transmitting::OtherSite,
};
use kms_core::{
    ports::{EvidenceCourier, PeersProofs, Randomness},
    site::makeup::Makeup,
};

/// What a site with a peer stands on, before there is a keyring.
pub(super) struct TwoSites {
    grounds: Grounds,
    ledger: Arc<Ledger>,
    tables: Arc<Measured<dyn WriteStore>>,
    whole: Arc<dyn WholeStore>,
    proofs: Arc<OnDemand>,
}

impl TwoSites {
    /// To the peer of `settings`, with the identity of `tls`. `ledger` hears of what is committed here; `unmet` is what
    /// the token does not do.
    pub(super) fn new(
        ground: &Ground,
        settings: PeerSettings,
        tls: rpc::TlsConfig,
        ledger: Arc<Ledger>,
        unmet: Vec<String>,
    ) -> Self {
        let clock = Arc::clone(&ground.clock);
        let makeup = Arc::new(OwnMakeup::new(made_of(
            unmet,
            ground.profiles.digest(),
            ground.signers.digest(),
        )));
        let status =
            Arc::new(Status::new(&settings.replication, Arc::clone(&clock), Arc::clone(&makeup)));
        let (peer, either) = ways(&settings, tls);
        let grounds = Grounds {
            config: settings.replication,
            peer,
            either,
            store: ground.measured.clone(),
            cards: Cards::new(ground.measured.clone(), &ground.domain, makeup),
            blocks: ground.domain.blocks,
            clock,
            status,
        };
        let (tables, whole) = (ground.measured.clone(), Arc::clone(&ground.whole));
        Self { grounds, ledger, tables, whole, proofs: Arc::default() }
    }

    /// Has the other site prove what somebody waits for.
    pub(super) fn proofs(&self) -> Arc<OnDemand> {
        Arc::clone(&self.proofs)
    }

    /// Tells whether a write is replicated.
    pub(super) fn gate(&self) -> Arc<Confirming> {
        Arc::new(Confirming::new(&self.grounds))
    }

    /// Brings what meters have shown here to the site that writes.
    pub(super) fn courier(&self) -> Arc<dyn EvidenceCourier> {
        Arc::new(Handing::new(&self.grounds))
    }

    /// How counters ask the other site.
    pub(super) fn for_counters(&self, roles: &Arc<Roles>) -> OtherSite {
        (self.gate(), Arc::new(PeersMemory::new(&self.grounds, Arc::clone(roles))))
    }

    /// Starts what goes on beside serving, and gives what serves, and has the other site prove blocks.
    pub(super) async fn start(
        self,
        keyring: &Keyring,
        ciphering: &Ciphering,
    ) -> (Replicating, Arc<dyn PeersProofs>) {
        let Self { grounds, ledger, tables, whole, proofs } = self;
        keyring.roles.keep_marks_in(whole);
        let remembering = Remembering::new(&grounds, tables.clone(), Arc::clone(&keyring.roles));
        let remembering = Arc::new(remembering);
        let beside = Beside::new(grounds.clone(), keyring, tables, Arc::new(OperatingSystem));
        let Beside { auditing, fencing, following, telling, reporting, .. } = beside;
        let Beside { proving, witnessing, planning, .. } = beside;
        proofs.begin(Arc::clone(&proving));
        let serving = Serving::new(&grounds, Arc::clone(&ledger), Arc::clone(&fencing));
        let floors = Arc::clone(ciphering.floors());
        let flooring = Flooring::new(grounds.clone(), Arc::clone(&fencing), floors);
        // Before the first change: this site may have been promoted over, or put back.
        following.meet_first().await;
        let syncing = Syncing::new(&grounds, Arc::clone(&proving), Arc::clone(&following));
        tokio::spawn(ledger.hear(Arc::clone(&grounds.store)));
        tokio::spawn(async move { following.run().await });
        let proofs: Arc<dyn PeersProofs> = Arc::clone(&proving) as _;
        tokio::spawn(async move { proving.run().await });
        tokio::spawn(Watching::new(&grounds).run());
        tokio::spawn(async move { flooring.run().await });
        tokio::spawn(async move { telling.run().await });
        let witness = Arc::clone(&witnessing);
        tokio::spawn(async move { witness.run().await });
        // A replica is nobody's witness, and whom it follows changes.
        if !grounds.cards.is_replica() {
            let copying = Arc::clone(&auditing);
            tokio::spawn(async move { copying.run().await });
        }
        let Grounds { cards, status, .. } = grounds;
        let makeup = Arc::clone(cards.makeup());
        let answering = Arc::new(Answering::new(Arc::clone(&keyring.prover), cards, reporting));
        let serving = Arc::new(serving);
        let parts = ReplicationParts { serving, answering, remembering, witnessing, auditing };
        let syncing = Arc::new(syncing);
        (Replicating { parts, status, syncing, fencing, planning, makeup }, proofs)
    }
}

/// The way to the peer; for a replica that follows either of two sites, the ways to both.
fn ways(settings: &PeerSettings, tls: rpc::TlsConfig) -> (Arc<dyn Peer>, Option<Arc<EitherSite>>) {
    let PeerSettings { connection, second, replication: config } = settings.clone();
    let client = |way| -> Arc<dyn Peer> { Arc::new(PeerClient::new(way, tls.clone())) };
    let first = client(connection);
    let Some((way, name)) = second.zip(config.second) else { return (first, None) };
    let either = EitherSite::new((config.peer.clone(), first), (name, client(way)));
    let either = Arc::new(either);
    (either.clone(), Some(either))
}

/// What goes on beside serving.
pub(crate) struct Beside {
    pub(crate) auditing: Arc<Auditing>,
    pub(crate) fencing: Arc<Fencing>,
    pub(crate) following: Arc<Following>,
    pub(crate) telling: Telling,
    pub(crate) reporting: Arc<Reporting>,
    pub(crate) proving: Arc<Proving>,
    pub(crate) witnessing: Arc<Witnessing>,
    pub(crate) planning: Arc<Planning>,
}

impl Beside {
    /// Over `grounds` and what the keyring does; papers are kept in `tables`.
    pub(crate) fn new<S: WriteStore + ?Sized>(
        grounds: Grounds,
        keyring: &Keyring,
        tables: Arc<Measured<S>>,
        randomness: Arc<dyn Randomness>,
    ) -> Self {
        let (prover, roles) = (&keyring.prover, &keyring.roles);
        let fencing = Arc::new(Fencing::new(&grounds, Arc::clone(roles)));
        let following = Following::new(
            grounds.clone(),
            Arc::clone(&keyring.adopter),
            Arc::clone(roles),
            Arc::clone(&fencing),
        );
        let telling = Telling::new(grounds.clone(), Arc::clone(&keyring.adopter));
        let reporting =
            Reporting::new(grounds.clone(), Arc::clone(prover), Arc::clone(roles), tables.clone());
        let reporting = Arc::new(reporting);
        let proving =
            Proving::new(grounds.clone(), Arc::clone(prover), randomness, Arc::clone(&reporting));
        let proving = Arc::new(proving);
        let witnessing = Witnessing::new(
            grounds.clone(),
            Arc::clone(prover),
            Arc::clone(&reporting),
            tables.clone(),
        );
        let witnessing = Arc::new(witnessing);
        let beside = (Arc::clone(&reporting), Arc::clone(&witnessing));
        let auditing = Arc::new(Auditing::new(grounds.clone(), beside, tables));
        let planning = Planning::new(
            grounds,
            Arc::clone(prover),
            Arc::clone(roles),
            Arc::clone(&proving),
            Arc::clone(&witnessing),
        );
        let (following, planning) = (Arc::new(following), Arc::new(planning));
        Self { auditing, fencing, following, telling, reporting, proving, witnessing, planning }
    }
}

/// What is known of this site from its start on.
fn made_of(unmet: Vec<String>, profiles: [u8; 32], signers: [u8; 32]) -> Makeup {
    Makeup {
        store_schema: SCHEMA,
        suites: SUITES.map(str::to_owned).to_vec(),
        profiles,
        signers,
        unmet,
        ..Makeup::default()
    }
}

/// The schema of the database: the number of its last migration.
const SCHEMA: u32 = 5;
/// The security suites whose messages are opened.
const SUITES: [&str; 1] = ["0"];

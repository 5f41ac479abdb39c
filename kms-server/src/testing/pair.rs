//! Two sites of one key domain, each with a database and a token of its own, and servers that reach each other by TLS
//! on loopback. The second one begins with the first one's block secrets, as enrolment leaves them.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use kms_core::{
    BlockNo, Position, Sequence,
    audit::{AuditEntry, AuditOutcome, Subject},
    block::keys::{BlockKeys, SUBKEYS_LEN, SecretBinding},
    site::{
        peer::{EnrolledIn, Peer as Enrolled, PeerKind, SignedPeer},
        role::SignedRoleRecord,
    },
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use tokio::{
    sync::oneshot,
    task::{AbortHandle, JoinHandle},
};

use super::{
    home::{Home, profiles},
    site_common::{Options, Site, call},
};
use crate::{
    app::{Beside, OperatingSystem},
    ciphering::Ciphering,
    keyring::{Arrived, Wish},
    lifecycle::{self, Lifecycle},
    replication::{
        Answering, Auditing, Cards, Config, Confirming, Fencing, Flooring, Grounds, OnDemand,
        OwnMakeup, PeersMemory, Planning, Remembering, Serving, Status, Syncing,
    },
    rpc::{
        self, CallerName, Limits, PeerClient, PeerConfig, Policy, Replicating, ReplicationParts,
        Role, TlsConfig,
    },
    site_keys::BlockSecretRotation,
    store::{BlockChange, SealedSecret, StoredBlock, sites::PeerStep},
    transmitting::{OtherSite, Transmitting},
};

pub(crate) const BLOCKS: u32 = 16;

/// Longer than anything here takes on a busy machine.
const SOON: Duration = Duration::from_secs(30);

/// The first site, of even epochs, which writes; and the second one, which begins with its block secrets.
pub(crate) async fn sites(north: &Home, south: &Home) -> (Arc<Site>, Arc<Site>) {
    let name = "north";
    let options = Options { blocks: BLOCKS, name, profiles: profiles(), ..Options::default() };
    let north = Site::with(north, options).await;
    let made = blocks_for(&north, south).await;
    let south = again(south, "south", Some(made)).await;
    let north = Arc::new(north);
    enrol(&north, &south).await;
    enrol(&south, &north).await;
    (north, south)
}

/// The first site, which writes, and a read-only replica of it.
pub(crate) async fn with_replica(north: &Home, east: &Home) -> (Arc<Site>, Arc<Site>) {
    let name = "north";
    let options = Options { blocks: BLOCKS, name, profiles: profiles(), ..Options::default() };
    let north = Arc::new(Site::with(north, options).await);
    let made = blocks_for(&north, east).await;
    let east = again(east, "east", Some(made)).await;
    enrol(&north, &east).await;
    enrol(&east, &north).await;
    (north, east)
}

/// A site over the database that `home` has.
pub(crate) async fn again(
    home: &Home,
    name: &'static str,
    blocks_made: Option<Vec<BlockChange>>,
) -> Arc<Site> {
    let kind = match name {
        "north" => PeerKind::Even,
        "south" => PeerKind::Odd,
        _ => PeerKind::Replica,
    };
    let profiles = profiles();
    let options =
        Options { blocks: BLOCKS, name, kind, blocks_made, profiles, ..Options::default() };
    let site = Site::with(home, options).await;
    site.keyring.roles.look().await.unwrap();
    Arc::new(site)
}

/// The blocks of `site` as they were founded, sealed for the other one's token.
async fn blocks_for(site: &Site, other: &Home) -> Vec<BlockChange> {
    let token = other.any_token();
    let hsm = crate::hsm::Hsm::new(token, 4, Duration::from_secs(1), Duration::from_secs(5));
    let mut made = Vec::new();
    for head in site.store.heads().await.unwrap() {
        let (keys, secret) = opened(site, head.block).await;
        let domain = &site.domain.domain;
        let binding = SecretBinding { domain, block: head.block, secret_version: 1 };
        let kek_id = hsm.status().site_kek_id;
        let (_, sealed) = hsm.seal(binding.seal_aad(&kek_id), secret).await.unwrap();
        let seals = vec![SealedSecret { secret_version: 1, kek_id, sealed }];
        let head = keys.first_head(head.block, 1, site.domain.epoch);
        made.push(BlockChange { expected: None, head, seals, records: Vec::new() });
    }
    made
}

/// The keys of a block, and its secret.
pub(crate) async fn opened(site: &Site, block: BlockNo) -> (BlockKeys, kms_core::BlockSecret) {
    let stored = site.store.block(block).await.unwrap().unwrap();
    let domain = &site.domain.domain;
    let binding = SecretBinding { domain, block, secret_version: 1 };
    let aad = binding.seal_aad(&site.hsm.status().site_kek_id);
    let secret = site.hsm.open(aad, stored.seals[0].sealed.clone()).await.unwrap();
    let mut subkeys = vec![0; SUBKEYS_LEN];
    binding.derive_subkeys(&secret, &mut subkeys);
    (BlockKeys::new(*domain, &subkeys).unwrap(), secret)
}

pub(crate) fn entry(verb: &str) -> AuditEntry {
    call(verb).entry(1, Subject::NONE, AuditOutcome::Done)
}

/// Makes `other` known at `site`.
async fn enrol(site: &Site, other: &Site) {
    let epoch = site.domain.epoch;
    enrol_in(site, other, EnrolledIn { first: epoch, last: epoch }).await;
}

/// The same, in these epochs.
pub(crate) async fn enrol_in(site: &Site, other: &Site, met: EnrolledIn) {
    let peer = Enrolled {
        domain: site.domain.domain,
        site: other.domain.site.clone(),
        kind: other.domain.kind,
        signing: other.hsm.public_key().await.unwrap(),
        transport_block: other.hsm.transport_block_key().await.unwrap().to_der(),
        enrolled_ms: 1,
        former: Vec::new(),
        enrolled_in: Some(met),
        tokens: None,
    };
    let signature = site.hsm.sign(peer.message()).await.unwrap();
    let there = site.store.peers().await.unwrap();
    let there = there.iter().find(|row| row.peer.site == peer.site);
    let expected = there.map(|row| row.signature);
    let step = PeerStep { expected, now: SignedPeer { peer, signature } };
    site.commits.put_peer(step, vec![entry("Site/EnrolPeer")]).await.unwrap();
}

/// Promotes a site whose peer is lost; the record of it.
pub(crate) async fn promote(site: &Site) -> SignedRoleRecord {
    let expected = site.store.role().await.unwrap().epoch;
    let wish = Wish { expected, is_lost: true, above: None };
    let promoted = site.keyring.roles.promote(wish, entry("Site/Promote"), 5).await.unwrap();
    assert!(promoted.left.is_empty(), "{promoted:?}");
    site.store.role_records().await.unwrap().pop().unwrap()
}

/// A certificate that is good for a server and for a client.
fn identity(ca: &CertifiedIssuer<'static, KeyPair>, name: &str) -> (String, String) {
    let mut params = CertificateParams::new([name.to_owned(), "localhost".to_owned()]).unwrap();
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, ca).unwrap();
    (certificate.pem(), key.serialize_pem())
}

/// Certificates and addresses of both sites.
pub(crate) struct Network {
    dir: Arc<tempfile::TempDir>,
    pub(crate) north: SocketAddr,
    pub(crate) south: SocketAddr,
}

impl Network {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
        write("ca.pem", ca.pem());
        for name in ["north", "south", "east"] {
            let (certificate, key) = identity(&ca, name);
            write(&format!("{name}.pem"), certificate);
            write(&format!("{name}.key"), key);
        }
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (north, south) = (free(), free());
        let (north, south) = (north.local_addr().unwrap(), south.local_addr().unwrap());
        Self { dir: Arc::new(dir), north, south }
    }

    /// The same, with a server of the second site at this address.
    pub(crate) fn listening_at(&self, south: SocketAddr) -> Self {
        Self { dir: Arc::clone(&self.dir), north: self.north, south }
    }

    fn tls(&self, name: &str) -> TlsConfig {
        let file = |name: String| self.dir.path().join(name);
        TlsConfig::new(
            file(format!("{name}.pem")),
            file(format!("{name}.key")),
            file("ca.pem".to_owned()),
        )
    }

    fn address(&self, name: &str) -> SocketAddr {
        if name == "north" { self.north } else { self.south }
    }

    /// The way of the site of this name to the other one, at this address.
    pub(crate) fn client(&self, own: &str, to: SocketAddr) -> PeerClient {
        let config = PeerConfig {
            endpoints: vec![to.to_string()],
            ca: self.dir.path().join("ca.pem"),
            server_name: Some("localhost".to_owned()),
            connect_timeout: Duration::from_secs(3),
        };
        PeerClient::new(config, self.tls(own))
    }

    fn config(&self, name: &str) -> rpc::Config {
        let peer = |name: &str| (CallerName::new(name).unwrap(), vec![Role::Peer]);
        let replica = (CallerName::new("east").unwrap(), vec![Role::Replica]);
        let policy = Policy::new([peer("north"), peer("south"), replica]);
        let limits = Limits { drain_timeout: Duration::from_millis(200), ..Limits::default() };
        rpc::Config::new(self.address(name), self.tls(name), limits, policy).unwrap()
    }
}

/// A site with its server, and all that goes on beside.
pub(crate) struct Running {
    pub(crate) site: Arc<Site>,
    pub(crate) status: Arc<Status>,
    pub(crate) gate: Arc<Confirming>,
    pub(crate) transmitting: Arc<Transmitting>,
    pub(crate) flooring: Flooring,
    pub(crate) fencing: Arc<Fencing>,
    pub(crate) planning: Arc<Planning>,
    pub(crate) auditing: Arc<Auditing>,
    pub(crate) makeup: Arc<OwnMakeup>,
    /// Its changes of meters, which ask the other site for proofs.
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) rotation: Arc<BlockSecretRotation>,
    tasks: Vec<AbortHandle>,
    server: JoinHandle<()>,
    stop: Option<oneshot::Sender<()>>,
}

/// As the settings say, with shorter intervals.
fn settings(peer: &str) -> Config {
    Config {
        peer: peer.to_owned(),
        second: None,
        heartbeat: Duration::from_millis(300),
        write_wait: Duration::from_secs(5),
        compare_interval: Duration::from_secs(3),
        prove_interval: Duration::from_secs(1),
        proof_age_max: Duration::from_secs(60),
    }
}

/// What goes on at a site beside serving, none of it started; the other one is at this address.
pub(crate) fn beside(site: &Site, network: &Network, to: SocketAddr) -> (Grounds, Beside) {
    let is_even = site.domain.kind == PeerKind::Even;
    let config = settings(if is_even { "south" } else { "north" });
    let makeup = Arc::new(OwnMakeup::default());
    let clock = Arc::clone(&site.clock);
    let status = Arc::new(Status::new(&config, Arc::clone(&clock), Arc::clone(&makeup)));
    let grounds = Grounds {
        config,
        peer: Arc::new(network.client(&site.domain.site, to)),
        either: None,
        store: site.measured.clone(),
        cards: Cards::new(site.measured.clone(), &site.domain, makeup),
        blocks: site.domain.blocks,
        clock,
        status,
    };
    let random = Arc::new(OperatingSystem);
    let beside = Beside::new(grounds.clone(), &site.keyring, site.measured.clone(), random);
    (grounds, beside)
}

impl Running {
    /// Starts the server of `site`.
    pub(crate) async fn start(site: Arc<Site>, network: &Network) -> Self {
        let is_even = site.domain.kind == PeerKind::Even;
        let to = if is_even { network.south } else { network.north };
        Self::start_towards(site, network, to).await
    }

    /// Starts it, with the other one at this address.
    pub(crate) async fn start_towards(site: Arc<Site>, network: &Network, to: SocketAddr) -> Self {
        let name = site.domain.site.clone();
        let (grounds, beside) = beside(&site, network, to);
        let (status, makeup) = (Arc::clone(&grounds.status), Arc::clone(grounds.cards.makeup()));
        let keyring = &site.keyring;
        let Beside { auditing, fencing, following, telling, reporting, .. } = beside;
        let Beside { proving, witnessing, planning, .. } = beside;
        let serving = Serving::new(&grounds, Arc::clone(&site.ledger), Arc::clone(&fencing));
        let floors = Arc::clone(site.ciphering.floors());
        let flooring = Flooring::new(grounds.clone(), Arc::clone(&fencing), floors);
        following.meet_first().await;
        let proofs = Arc::new(OnDemand::default());
        proofs.begin(Arc::clone(&proving));
        let lifecycle = Arc::new(lifecycle_of(&site, proofs));
        let syncing =
            Arc::new(Syncing::new(&grounds, Arc::clone(&proving), Arc::clone(&following)));
        let gate = Arc::new(Confirming::new(&grounds));
        let peer: OtherSite =
            (gate.clone(), Arc::new(PeersMemory::new(&grounds, Arc::clone(&keyring.roles))));
        let transmitting = Arc::new(site.transmitting(false, Some(peer)));
        let prover = Arc::clone(&keyring.prover);
        let answering = Arc::new(Answering::new(prover, grounds.cards.clone(), reporting));
        let witness = Arc::clone(&witnessing);
        let remembering =
            Remembering::new(&grounds, site.measured.clone(), Arc::clone(&keyring.roles));
        let replicating = Replicating {
            parts: ReplicationParts {
                serving: Arc::new(serving),
                answering,
                remembering: Arc::new(remembering),
                witnessing,
                auditing: Arc::clone(&auditing),
            },
            status: Arc::clone(&status),
            syncing,
            fencing: Arc::clone(&fencing),
            planning: Arc::clone(&planning),
            makeup: Arc::clone(&makeup),
        };
        let rotation = site.rotation(Some(Arc::clone(&proving) as _));
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, bound) = oneshot::channel();
        let served = rpc::serve(
            network.config(&name),
            parts(
                &site,
                replicating,
                (Arc::clone(&transmitting), Arc::clone(&lifecycle), Arc::clone(&rotation)),
            ),
            async { drop(stopped.await) },
            ready,
        );
        let server = tokio::spawn(async move { served.await.unwrap() });
        bound.await.unwrap();
        let roles = Arc::clone(&site.keyring.roles);
        let tasks = vec![
            tokio::spawn(Arc::clone(&site.ledger).hear(site.measured.clone())).abort_handle(),
            tokio::spawn(async move { roles.keep_looking().await }).abort_handle(),
            tokio::spawn(async move { following.run().await }).abort_handle(),
            tokio::spawn(async move { proving.run().await }).abort_handle(),
            tokio::spawn({
                let transmitting = Arc::clone(&transmitting);
                async move { transmitting.keep_witness().await }
            })
            .abort_handle(),
            tokio::spawn(async move { telling.run().await }).abort_handle(),
            tokio::spawn(async move { witness.run().await }).abort_handle(),
            tokio::spawn({
                let auditing = Arc::clone(&auditing);
                async move { auditing.run().await }
            })
            .abort_handle(),
        ];
        Self {
            site,
            status,
            gate,
            flooring,
            transmitting,
            fencing,
            planning,
            auditing,
            makeup,
            lifecycle,
            rotation,
            tasks,
            server,
            stop: Some(stop),
        }
    }

    /// Ends all of it in the middle of whatever it does.
    pub(crate) async fn cut(mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        self.stop.take();
        self.server.abort();
        let _ = self.server.await;
    }
}

fn lifecycle_of(site: &Site, proofs: Arc<OnDemand>) -> Lifecycle {
    let config = lifecycle::Config { allow_clear: true, times: kms_core::life::Times::default() };
    let (clock, randomness) = (Arc::clone(&site.clock), Arc::new(OperatingSystem));
    Lifecycle::new(config, &site.keyring, site.measured.clone(), clock, randomness)
        .with_proofs(proofs)
}

fn parts(
    site: &Arc<Site>,
    replicating: Replicating,
    (transmitting, lifecycle, rotation): (
        Arc<Transmitting>,
        Arc<Lifecycle>,
        Arc<BlockSecretRotation>,
    ),
) -> rpc::Parts {
    let token = site.hsm.clone();
    rpc::Parts {
        ciphering: Arc::new(
            Ciphering::new(
                site.keyring.reader.clone(),
                site.hsm.apdus(),
                Arc::clone(site.ciphering.floors()),
            )
            .with_evidence(site.evidence.clone()),
        ),
        associations: Arc::new(site.associations(Arc::clone(&transmitting), Arc::default())),
        transmitting,
        lifecycle,
        rotation,
        kek: site.kek_rotation(),
        keyring: Arc::clone(&site.keyring.overview),
        token_status: Arc::new(move || token.status()),
        store: site.measured.clone(),
        audit: Arc::clone(&site.audit),
        domain: site.domain.clone(),
        single_site: false,
        roles: Arc::clone(&site.keyring.roles),
        replication: Some(replicating),
        hsm: site.hsm.clone(),
        clock: Arc::clone(&site.clock),
        sources: Vec::new(),
    }
}

/// Waits until something is so.
pub(crate) async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let began = std::time::Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < SOON, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// All blocks as they are stored, without their seals.
pub(crate) async fn contents(site: &Site) -> Vec<StoredBlock> {
    let mut all = Vec::new();
    for block in 0..BLOCKS {
        let block = site.store.block(BlockNo(block)).await.unwrap().unwrap();
        all.push(StoredBlock { seals: Vec::new(), ..block });
    }
    all
}

/// Waits until both have the same bytes.
pub(crate) async fn in_step(one: &Site, other: &Site) {
    eventually("the sites are in step", async || contents(one).await == contents(other).await)
        .await;
}

/// All of a block, as `site` would send it.
pub(crate) async fn whole(site: &Site, block: BlockNo) -> Arrived {
    let StoredBlock { head, records, .. } = site.store.block(block).await.unwrap().unwrap();
    Arrived { head, records, is_whole: true }
}

/// What changed in a block, as `site` would send it.
pub(crate) async fn news(site: &Site, block: BlockNo, after: Position) -> Arrived {
    let changes = site.store.changes_after(block, after).await.unwrap().unwrap();
    Arrived { head: changes.head, records: changes.records, is_whole: false }
}

/// Where a block stands.
pub(crate) async fn position(site: &Site, block: BlockNo) -> Position {
    site.store.position(block).await.unwrap().unwrap()
}

/// Before all.
pub(crate) const fn nowhere() -> Position {
    Position { epoch: kms_core::Epoch(0), sequence: Sequence(0) }
}

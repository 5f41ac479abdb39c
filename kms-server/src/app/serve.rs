//! `kms-server serve`: from the checked configuration to a server that answers, and back.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{oneshot, watch},
    time::timeout,
};

use super::{
    alone::Alone,
    counter_marks::CounterFile,
    database::{alone_over, open_store},
    fault::Fault,
    ground::Ground,
    handing_on,
    last_backup::LastBackup,
    migrate::check_domain,
    node::node_id,
    outside::{OperatingSystem, SystemClock},
    own_chain::OwnChain,
    peers_seen::PeersFile,
    rolled_back::begin_anew_after,
    runtime::runtime,
    site_keys,
    site_tokens::{believe, named_in},
    timeline::Failovers,
    token::Asked,
    two_sites::TwoSites,
};
use crate::{
    associations::{self, Associations},
    audit::{self, Audit},
    ciphering::{Ciphering, Floors, FloorsConfig},
    config::Config,
    hsm::{
        Hsm,
        pkcs11::{Canaries, Pkcs11Token, ProbeDepth, own_canaries},
    },
    keyring::{self, Below, Keyring, NotChanged, Overview, Refresher, Roles, SiteRole},
    lifecycle::{self, Evidence, Lifecycle},
    replication::{Ledger, Noted},
    rpc,
    site_keys::{BlockSecretRotation, SiteKekRotation},
    store::{AuditedStore, ReadStore, WriteStore, measured::Measured, whole::WholeStore},
    telemetry::Log,
    transmitting::{self, Transmitting},
};
use kms_core::{
    DomainRecord,
    audit::NodeId,
    freshness::Freshness,
    ports::{Clock, EvidenceCourier, NoCourier},
    site::{
        peer::{Peer, PeerKind},
        restored::RestoreMark,
    },
};

/// The interval at which the token is asked whether its KEKs are still those of this database.
const TOKEN_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// The interval while the token is known to be away.
const TOKEN_RETURN_INTERVAL: Duration = Duration::from_secs(1);

/// The longest wait, at the end, for the audit log's last entry, which the token signs.
const LAST_ENTRY: Duration = Duration::from_secs(6);
/// The longest wait, at the end, for the database, and for tasks that are left.
const LAST_TASKS: Duration = Duration::from_secs(2);

/// Said where the settings are others than the ceremony.
const NEVER: &str = "correct the setting; what a site may become never changes";
pub(super) const REPLICA: &str = "a read-only replica: it can neither write nor witness; name the other of the two sites that may write";

/// Libraries that we stand on panic there, and no certificate is valid.
const BEFORE_1970: &str = "this machine's clock says a time before 1970: set it (timedatectl), and see to it that it is set before the service starts";

/// Serves until a signal says to stop, or a fault does. What `log` dropped is told as a figure.
pub fn serve(config: Config, log: Log) -> Result<(), Fault> {
    leave_no_core()?;
    let runtime = runtime(0)?;
    let served = runtime.block_on(run(config, log));
    // A token that hangs keeps the threads of its calls: they are left to it.
    runtime.shutdown_timeout(LAST_TASKS);
    served
}

/// No core dump of this process, and no debugger of the same user: both would show keys.
fn leave_no_core() -> Result<(), Fault> {
    let fault = |error: rustix::io::Errno| Fault::Runtime(error.into());
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).map_err(fault)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(fault)
}

/// No clock of before 1970; and nobody else has the database, before anything is changed in it.
fn may_begin(config: &Config) -> Result<(), Fault> {
    if SystemClock::is_before_1970() {
        return Err(Fault::Away(BEFORE_1970.into()));
    }
    alone_over(&config.store)?.into_iter().for_each(Alone::for_good);
    Ok(())
}

/// Builds what serves from the ground up, and serves.
async fn run(config: Config, log: Log) -> Result<(), Fault> {
    // First of all: who sees us listen may send a signal, and without a handler any of them kills.
    let mut signals = Signals::install().map_err(|error| Fault::Runtime(error.into()))?;
    may_begin(&config)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let store = open_store(&config, false).await?;
    let (domain, canaries) = named_in(store.as_ref()).await?;
    check_place(&config, &domain, store.as_ref()).await?;
    let Config {
        site,
        hsm,
        store: _,
        keyring,
        import,
        schedules,
        import_signers: signers,
        peer,
        nodes,
        profiles,
        floors,
        audit,
        rpc,
        log: _,
    } = config;
    let Some((hsm, mut unmet)) = connected(hsm, canaries, &mut signals).await? else {
        return Ok(());
    };
    unmet.extend(handing_on::noted(&site.data_dir));
    let rolled_back = check_domain(&hsm, store.as_ref(), &domain).await?;
    Alone::over_node(&site.data_dir)?.for_good();
    let (whole, store): (_, Arc<dyn WriteStore>) = (Arc::clone(&store), store);
    let measured = Arc::new(Measured::new(Arc::clone(&store)));
    let freshness = Arc::new(Freshness::default());
    let ground =
        Ground { site, domain, hsm, store, whole, measured, clock, freshness, profiles, signers };
    let rolled_back = ground.after_a_roll_back(rolled_back).await?;
    let audit = ground.open_audit(audit).await?;
    let ledger = Arc::new(Ledger::new(ground.domain.blocks));
    let commits: Arc<dyn AuditedStore> = Arc::new(Noted::new(audit.clone(), Arc::clone(&ledger)));
    let keyring = ground.keyring(keyring, &commits)?;
    go_by_role(&keyring.roles).await?;
    let two_sites =
        peer.map(|peer| TwoSites::new(&ground, peer, rpc.tls.clone(), Arc::clone(&ledger), unmet));
    let lifecycle = ground.lifecycle(import, &keyring).with_signers(ground.signers.clone());
    let lifecycle = lifecycle.with_campaigns(audit.status().node.to_string(), schedules);
    let lifecycle = gated(lifecycle, two_sites.as_ref());
    // A replica has no counters to ask about.
    let may_write = ground.domain.kind.parity().is_some();
    let peer = two_sites.as_ref().filter(|_| may_write).map(|it| it.for_counters(&keyring.roles));
    let transmitting = Arc::new(ground.transmitting(&keyring, peer, (nodes, &rpc.tls))?);
    attend_to(&keyring);
    tokio::spawn(keep_witness(Arc::clone(&transmitting)));
    let (node, mark) = (audit.status().node, rolled_back.as_ref());
    let evidence = Arc::new(Evidence::default());
    let courier = two_sites.as_ref().map_or_else(|| Arc::new(NoCourier) as _, TwoSites::courier);
    let ciphering = ground.ciphering(floors, (node, &evidence), &keyring, mark).await;
    let (replication, proofs) = match two_sites {
        Some(two_sites) => Some(two_sites.start(&keyring, &ciphering).await).unzip(),
        None => (None, None),
    };
    let rotation = site_keys::start(&ground, &keyring, proofs);
    let lifecycle = attended(lifecycle, evidence, courier);
    let kek = site_keys::start_kek(&ground, &keyring, &commits)?;
    let verbs = Verbs { ciphering, lifecycle, transmitting, rotation, kek };
    let parts = rpc::Parts { replication, ..ground.parts(audit, &keyring, verbs, log) };
    serve_on(&ground, rpc, parts, signals).await
}

/// Changes wait for the other site, and keys for its proofs, if there is one.
fn gated(lifecycle: Lifecycle, two_sites: Option<&TwoSites>) -> Lifecycle {
    match two_sites {
        Some(it) => lifecycle.with_gate(it.gate()).with_proofs(it.proofs()),
        None => lifecycle,
    }
}

/// The lives of keys go on from now on: by what meters show, and by time.
fn attended(
    lifecycle: Lifecycle,
    evidence: Arc<Evidence>,
    courier: Arc<dyn EvidenceCourier>,
) -> Arc<Lifecycle> {
    let lifecycle = Arc::new(lifecycle);
    tokio::spawn(Arc::clone(&lifecycle).take_evidence(evidence, courier));
    tokio::spawn(Arc::clone(&lifecycle).keep_dates());
    tokio::spawn(Arc::clone(&lifecycle).keep_campaigns());
    tokio::spawn(Arc::clone(&lifecycle).keep_schedules());
    lifecycle
}

/// Refuses settings that give this site another place than the ceremony did, or name a replica for its witness.
async fn check_place(
    config: &Config,
    domain: &DomainRecord,
    store: &dyn ReadStore,
) -> Result<(), Fault> {
    let refused = |sentence: String| Err(Fault::Setting(sentence.into()));
    if (domain.kind == PeerKind::Replica) != config.site.read_only {
        let (kind, setting) = (domain.kind, config.site.read_only);
        return refused(format!(
            "this site joined its key domain as {kind}, and `site.read_only` is {setting}: {NEVER}"
        ));
    }
    let Some(peer) = &config.peer else { return Ok(()) };
    let mut known = store.peers().await?.into_iter().map(|signed| signed.peer);
    let is_witness = |known: &Peer| peer.replication.is_peer(&known.site);
    match known.find(|known| known.kind == PeerKind::Replica && is_witness(known)) {
        Some(known) => refused(format!("[peer] names site {:?}, which is {REPLICA}", known.site)),
        None => Ok(()),
    }
}

/// The token, once it is connected; `None`: a signal came first.
async fn connected(
    config: crate::hsm::Config,
    known: Vec<Canaries>,
    signals: &mut Signals,
) -> Result<Option<(Hsm, Vec<String>)>, Fault> {
    let asked = Asked::of(&config);
    let (hsm, unmet) = tokio::select! {
        connected = asked.to(move || connect_token(config, known)) => connected??,
        _ = signals.terminate.recv() => return Ok(None),
        _ = signals.interrupt.recv() => return Ok(None),
    };
    // Its sessions end with the process. To close them would be to wait for a token that may hang.
    std::mem::forget(hsm.clone());
    Ok(Some((hsm, unmet)))
}

/// Serves until a signal or a fault says to stop, with all that goes on beside.
async fn serve_on(
    ground: &Ground,
    config: rpc::Config,
    parts: rpc::Parts,
    signals: Signals,
) -> Result<(), Fault> {
    let Signals { terminate, interrupt, hangup } = signals;
    let (audit, ciphering) = (Arc::clone(&parts.audit), Arc::clone(&parts.ciphering));
    let transmitting = Arc::clone(&parts.transmitting);
    let (stop, stopped) = watch::channel(None);
    let (ready, bound) = oneshot::channel();
    tokio::spawn(stop_on_signal(stop.clone(), terminate, interrupt));
    tokio::spawn(stop_on_failed_store(ground.store.clone(), stop.clone()));
    let (failovers, roles) = (ground.failovers(), Arc::clone(&parts.roles));
    tokio::spawn(stop_on_roll_back(failovers, (Arc::clone(&audit), roles), stop));
    let care = tokio::spawn(Arc::clone(&audit).take_care());
    tokio::spawn(watch_token(ground.hsm.clone()));
    tokio::spawn(hear_of_tokens(
        ground.hsm.clone(),
        Arc::clone(&ground.whole),
        ground.domain.clone(),
    ));
    tokio::spawn(greet(bound, hangup));
    let served = rpc::serve(config, parts, until_told(stopped.clone()), ready).await;
    care.abort();
    // Another node need not wait for what this one has reserved.
    let _ = timeout(LAST_TASKS, transmitting.close()).await;
    if timeout(LAST_TASKS, ciphering.floors().close()).await.is_err() {
        tracing::error!("receive floors are not stored: the database hangs");
    }
    close(&audit, ground.store.as_ref()).await;
    served.map_err(not_served)?;
    let reason = stopped.borrow().clone().flatten();
    reason.map_or(Ok(()), |reason| Err(Fault::Runtime(reason.into())))
}

/// What callers ask for: to read, to change, to send.
struct Verbs {
    ciphering: Arc<Ciphering>,
    lifecycle: Arc<Lifecycle>,
    transmitting: Arc<Transmitting>,
    rotation: Arc<BlockSecretRotation>,
    kek: Arc<SiteKekRotation>,
}

impl Ground {
    fn failovers(&self) -> Failovers {
        Failovers {
            data_dir: self.site.data_dir.clone(),
            hsm: self.hsm.clone(),
            store: Arc::clone(&self.whole),
            domain: self.domain.clone(),
            clock: Arc::clone(&self.clock),
        }
    }

    /// Begins anew as a node where the database was rolled back: by a restore, or by a failover that lost its tail.
    async fn after_a_roll_back(
        &self,
        known: Option<RestoreMark>,
    ) -> Result<Option<RestoreMark>, Fault> {
        let mark = match known {
            Some(mark) => Some(mark),
            None => self.failovers().at_start().await?,
        };
        if let Some(mark) = &mark {
            begin_anew_after(&self.site.data_dir, mark)?;
        }
        Ok(mark)
    }

    /// Opens this node's audit chain.
    async fn open_audit(&self, config: audit::Config) -> Result<Arc<Audit>, Fault> {
        let chain = OwnChain {
            data_dir: &self.site.data_dir,
            domain: &self.domain,
            freshness: Arc::clone(&self.freshness),
            store: self.measured.clone(),
            hsm: self.hsm.clone(),
            clock: Arc::clone(&self.clock),
        };
        chain.open(config).await
    }

    fn keyring(
        &self,
        config: keyring::Config,
        commits: &Arc<dyn AuditedStore>,
    ) -> Result<Keyring, Fault> {
        let below = Below {
            hsm: self.hsm.clone(),
            store: self.measured.clone(),
            clock: Arc::clone(&self.clock),
            freshness: Arc::clone(&self.freshness),
            role: Arc::new(SiteRole::unknown(&self.domain)),
            profiles: Arc::clone(&self.profiles),
        };
        let keyring = Keyring::new(config, self.domain.clone(), below, Arc::clone(commits));
        let keyring = keyring.map_err(|error| Fault::Setting(error.into()))?;
        let peers = Box::new(PeersFile::of(&self.site.data_dir));
        let remembered = keyring.roles.remember_peers_in(peers);
        remembered.map_err(|error| Fault::Setting(error.into()))?;
        keyring.roles.keep_epochs_in(Arc::new(self.failovers()));
        Ok(keyring)
    }

    fn lifecycle(&self, config: lifecycle::Config, keyring: &Keyring) -> Lifecycle {
        let (store, clock) = (self.measured.clone(), Arc::clone(&self.clock));
        Lifecycle::new(config, keyring, store, clock, Arc::new(OperatingSystem))
            .with_profiles(Arc::clone(&self.profiles))
    }

    /// The HES's verbs, and their receive floors, which are stored at an interval from now on.
    async fn ciphering(
        &self,
        config: FloorsConfig,
        (node, evidence): (NodeId, &Arc<Evidence>),
        keyring: &Keyring,
        rolled_back: Option<&RestoreMark>,
    ) -> Arc<Ciphering> {
        let (store, clock) = (self.measured.clone(), Arc::clone(&self.clock));
        let floors = Floors::new(config, store, Arc::clone(&keyring.local), node, clock);
        let floors = Arc::new(floors);
        if self.profiles.iter().any(|profile| !profile.floors.is_off()) {
            floors.begin(rolled_back).await;
        }
        tokio::spawn(Arc::clone(&floors).keep());
        let ciphering = Ciphering::new(keyring.reader.clone(), self.hsm.apdus(), floors);
        Arc::new(ciphering.with_evidence(Arc::clone(evidence) as _))
    }

    /// `peer`: how the other site is asked, if there is one; and where other nodes are.
    fn transmitting(
        &self,
        keyring: &Keyring,
        peer: Option<transmitting::OtherSite>,
        (nodes, tls): (BTreeMap<NodeId, rpc::PeerConfig>, &rpc::TlsConfig),
    ) -> Result<Transmitting, Fault> {
        let (data_dir, domain) = (&self.site.data_dir, &self.domain);
        let node = node_id(data_dir, &OperatingSystem)?;
        let grounds = transmitting::Grounds {
            store: self.measured.clone(),
            aside: self.measured.clone(),
            clock: Arc::clone(&self.clock),
            node,
            single_site: self.site.single_site,
            peer,
            has_others: nodes.keys().any(|other| *other != node),
            memory: Arc::new(CounterFile::open(data_dir, &domain.domain, domain.blocks)?),
        };
        let nodes = rpc::NodesClient::new(nodes, tls);
        Ok(Transmitting::new(keyring, grounds).with_nodes(Arc::new(nodes)))
    }

    /// Parts that the wire speaks for.
    fn parts(&self, audit: Arc<Audit>, keyring: &Keyring, verbs: Verbs, log: Log) -> rpc::Parts {
        let Verbs { ciphering, lifecycle, transmitting, rotation, kek } = verbs;
        let below = associations::Below {
            transmitting: Arc::clone(&transmitting),
            ciphering: Arc::clone(&ciphering),
            clock: Arc::clone(&self.clock),
            randomness: Arc::new(OperatingSystem),
            profiles: Arc::clone(&self.profiles),
        };
        let token = self.hsm.clone();
        rpc::Parts {
            ciphering,
            transmitting,
            associations: Arc::new(Associations::new(keyring, below)),
            lifecycle,
            rotation,
            kek,
            keyring: Arc::clone(&keyring.overview),
            roles: Arc::clone(&keyring.roles),
            hsm: self.hsm.clone(),
            token_status: Arc::new(move || token.status()),
            store: self.measured.clone(),
            audit,
            domain: self.domain.clone(),
            single_site: self.site.single_site,
            replication: None,
            clock: Arc::clone(&self.clock),
            // Parts that count and are not among the services.
            sources: vec![
                Arc::new(self.hsm.clone()),
                self.measured.clone(),
                Arc::new(log),
                Arc::new(LastBackup::of(&self.site.data_dir, Arc::clone(&self.clock))),
            ],
        }
    }
}

/// Signs the end of the log and closes the database, if they don't hang.
async fn close(audit: &Audit, store: &dyn WriteStore) {
    if timeout(LAST_ENTRY, audit.close()).await.is_err() {
        tracing::error!("the end of the audit log is not signed: the token or the database hangs");
    }
    if timeout(LAST_TASKS, store.close()).await.is_err() {
        tracing::error!("the database was not closed: calls that still run hold it");
    }
}

fn not_served(error: rpc::RpcError) -> Fault {
    match error {
        rpc::RpcError::Transport(_) => Fault::Runtime(error.into()),
        // Its address comes with the network; the one before us may still have it.
        error if error.is_passing() => Fault::Away(error.into()),
        _ => Fault::Setting(error.into()),
    }
}

/// Connects to the token and refuses one that does not withstand what it must.
/// With it, the names of what it does not do and that the service can do without.
fn connect_token(
    config: crate::hsm::Config,
    known: Vec<Canaries>,
) -> Result<(Hsm, Vec<String>), Fault> {
    let (width, patience, call_timeout) =
        (config.sessions_max, config.patience, config.call_timeout);
    let known = own_canaries(&config, known)?;
    let token = Pkcs11Token::connect(config, known)?;
    let report = token.probe(ProbeDepth::Start)?;
    match report.refusal() {
        Some(why) => Err(Fault::Token(why.into())),
        None => {
            let unmet = report.unmet().collect();
            Ok((Hsm::new(Arc::new(token), width, patience, call_timeout), unmet))
        }
    }
}

/// Takes this site's role from what is stored. Where that does not hold together, reading goes on, and nothing
/// is changed.
async fn go_by_role(roles: &Roles) -> Result<(), Fault> {
    match roles.look().await {
        Ok(standing) => {
            tracing::info!(role = %standing.role, epoch = standing.epoch.0, writes = standing.writes(), "this site's role");
            Ok(())
        }
        Err(NotChanged::Store(error)) => Err(error.into()),
        Err(NotChanged::Token(error)) => Err(Fault::Token(error.into())),
        Err(error) => {
            tracing::error!(%error, "this site's role can't be told: it changes nothing");
            Ok(())
        }
    }
}

/// The keyring's work beside serving: warm-up; following and mending, until the process ends.
fn attend_to(keyring: &Keyring) {
    let refresher = || Arc::clone(&keyring.refresher);
    tokio::spawn(warm_up(refresher(), Arc::clone(&keyring.overview)));
    let (follower, mender) = (refresher(), refresher());
    let roles = Arc::clone(&keyring.roles);
    tokio::spawn(async move { roles.keep_looking().await });
    tokio::spawn(async move { follower.follow().await });
    tokio::spawn(async move { mender.mend().await });
}

async fn keep_witness(transmitting: Arc<Transmitting>) {
    transmitting.keep_witness().await;
}

async fn warm_up(refresher: Arc<Refresher>, overview: Arc<Overview>) {
    refresher.warm_up().await;
    let status = overview.status();
    tracing::info!(
        blocks = status.blocks_open,
        meters = status.resident_meters,
        elapsed_ms = status.warm_up_elapsed_ms,
        "warm-up done"
    );
}

/// Another token of this site may be enrolled while this server runs, and another server serve with it.
async fn hear_of_tokens(hsm: Hsm, store: Arc<dyn WholeStore>, domain: DomainRecord) {
    loop {
        tokio::time::sleep(TOKEN_CHECK_INTERVAL).await;
        if let Err(error) = believe(&hsm, store.as_ref(), &domain).await {
            tracing::warn!(%error, "the tokens of this site can't be told: those that are known stay");
        }
    }
}

async fn watch_token(hsm: Hsm) {
    loop {
        if let Err(error) = hsm.check().await {
            tracing::warn!(%error, "the token did not pass its check");
        }
        let away = hsm.status().fault.is_some();
        tokio::time::sleep(if away { TOKEN_RETURN_INTERVAL } else { TOKEN_CHECK_INTERVAL }).await;
    }
}

/// Says where the server listens, then reads the certificates again at each SIGHUP.
async fn greet(bound: oneshot::Receiver<rpc::Bound>, mut hangup: Signal) {
    let Ok(rpc::Bound { address, control, .. }) = bound.await else { return };
    tracing::info!(%address, "serving");
    while hangup.recv().await.is_some() {
        match control.reload().await {
            Ok(outcome) => tracing::info!(?outcome, "certificates read again"),
            Err(error) => tracing::warn!(%error, "the certificates in use stay"),
        }
    }
}

/// Why the server is to stop; the inner `Some` is a fault.
type Stop = watch::Sender<Option<Option<String>>>;

/// The signals that we answer to.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn install() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

async fn stop_on_signal(stop: Stop, mut terminate: Signal, mut interrupt: Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping: calls that run may finish");
    stop.send_replace(Some(None));
}

/// A database that failed to write may have lost what it acknowledged: the process stops.
async fn stop_on_failed_store(store: Arc<dyn WriteStore>, stop: Stop) {
    let reason = store.until_failed().await;
    tracing::error!(reason, "stopping: the database has failed");
    stop.send_replace(Some(Some(reason)));
}

/// A server over a database that was rolled back begins anew: what it knows in memory is of a future that is no more.
async fn stop_on_roll_back(
    failovers: Failovers,
    (audit, roles): (Arc<Audit>, Arc<Roles>),
    stop: Stop,
) {
    let reason = failovers.until_rolled_back(&audit, &roles).await;
    tracing::error!(reason, "stopping, to begin anew");
    stop.send_replace(Some(Some(reason)));
}

async fn until_told(mut stopped: watch::Receiver<Option<Option<String>>>) {
    // An error says that nobody is left who could tell us to stop: then stop.
    let _ = stopped.wait_for(Option::is_some).await;
}

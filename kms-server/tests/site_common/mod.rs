//! A whole site without the wire: SoftHSM, SQLite, keyring, verbs.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "helpers of tests may"
)]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use dlms::{
    Envelope, FreshCounter, GeneralCipheringAad, Keys, Protection as Seal, SecurityControl, Suite,
    SystemTitle,
};
use kms_core::{
    BlockCount, BlockNo, ClearKey, DomainId, DomainRecord, Epoch, KeyKind, MeterId, MeterPolicy,
    Protection, SecuritySetup,
    audit::{AuditedCall, ChainTip, Checkpoint, NodeId},
    counters::allocator::Witnessed,
    freshness::{Freshness, HeadTable},
    ports::{
        Clock, CounterMemory, HeadWitness, KnownTips, PeersProofs, Randomness as _, WitnessFailed,
    },
    profile::Profiles,
    site::peer::PeerKind,
};
use kms_server::{
    app::{OperatingSystem, SystemClock},
    associations::{self, Associations},
    audit::{self, Audit, sign_head_table},
    ciphering::{Ciphering, Floors, FloorsConfig, Item, Named, OpenedBatch, Outcome, Want},
    hsm::{Hsm, Token},
    keyring::{
        self, Keyring,
        founding::{Made, make_blocks},
    },
    lifecycle::{self, Evidence, ImportResult, ImportRules, Lifecycle, NewKey, NewMeter},
    replication::{Ledger, Noted},
    site_keys::{self, BlockSecretRotation, SiteKekRotation},
    store::{
        AuditedStore, BlockChange, Founding, WriteStore,
        measured::Measured,
        sqlite::{self, SqliteStore},
    },
    transmitting::{self, Transmitting},
};

use super::hsm_common::Home;

pub struct Site {
    pub store: Arc<dyn WriteStore>,
    pub measured: Arc<Measured<dyn WriteStore>>,
    pub hsm: Hsm,
    pub keyring: Arc<Keyring>,
    pub ciphering: Ciphering,
    pub lifecycle: Lifecycle,
    /// What meters have shown.
    pub evidence: Arc<Evidence>,
    pub audit: Arc<Audit>,
    pub database: PathBuf,
    pub domain: DomainRecord,
    pub clock: Arc<dyn Clock>,
    /// Where its blocks stand, and the way to commit that it hears of.
    pub ledger: Arc<Ledger>,
    pub commits: Arc<dyn AuditedStore>,
    pub node: NodeId,
    /// What this node remembers of counters.
    pub counters: Arc<Remembered>,
}

/// A memory of counters, as long as it lives.
#[derive(Default)]
pub struct Remembered {
    marks: std::sync::Mutex<BTreeMap<BlockNo, Witnessed>>,
    /// Its disk takes nothing.
    pub is_full: std::sync::atomic::AtomicBool,
}

#[async_trait::async_trait]
impl CounterMemory for Remembered {
    fn known(&self) -> Vec<(BlockNo, Witnessed)> {
        self.marks.lock().unwrap().iter().map(|(block, mark)| (*block, *mark)).collect()
    }
    async fn keep(&self, marks: Vec<(BlockNo, Witnessed)>) -> Result<(), WitnessFailed> {
        if self.is_full.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(WitnessFailed("the disk is full".to_owned()));
        }
        let mut known = self.marks.lock().unwrap();
        for (block, mark) in marks {
            let kept = known.entry(block).or_insert(mark);
            *kept = (*kept).max(mark);
        }
        Ok(())
    }
}

/// A call by the operators of these tests.
pub fn call(verb: &str) -> AuditedCall {
    AuditedCall::new("operator", verb)
}

/// Remembers what it was told, as long as it lives.
#[derive(Default)]
pub struct Witness(pub std::sync::Mutex<Option<Checkpoint>>, pub std::sync::Mutex<KnownTips>);

#[async_trait::async_trait]
impl HeadWitness for Witness {
    async fn last(&self) -> Result<Option<Checkpoint>, WitnessFailed> {
        Ok(self.0.lock().unwrap().clone())
    }
    async fn keep(&self, head: &Checkpoint) -> Result<(), WitnessFailed> {
        *self.0.lock().unwrap() = Some(head.clone());
        Ok(())
    }
    fn note(&self, tip: &ChainTip) -> Result<(), WitnessFailed> {
        let mut known = self.1.lock().unwrap();
        known.tips.retain(|known| known.node != tip.node);
        known.tips.push(*tip);
        Ok(())
    }
    async fn known(&self) -> Result<KnownTips, WitnessFailed> {
        Ok(self.1.lock().unwrap().clone())
    }
    async fn keep_known(&self, known: &KnownTips) -> Result<(), WitnessFailed> {
        *self.1.lock().unwrap() = known.clone();
        Ok(())
    }
}

/// What a test may choose.
pub struct Options {
    pub blocks: u32,
    pub arena_bytes: usize,
    pub allow_clear: bool,
    pub profiles: Arc<Profiles>,
    /// Whose files are taken.
    pub signers: lifecycle::Signers,
    /// `None`: a new one, which remembers nothing.
    pub node: Option<(NodeId, Arc<Witness>)>,
    /// `None`: the system's.
    pub clock: Option<Arc<dyn Clock>>,
    /// The operator's name for it.
    pub name: &'static str,
    /// Whose epochs it writes in.
    pub kind: PeerKind,
    /// The blocks that a site which joins another one begins with, as they were made there; `None`: it makes them.
    pub blocks_made: Option<Vec<BlockChange>>,
}

impl Default for Options {
    fn default() -> Self {
        let signers = lifecycle::Signers::default();
        Self {
            blocks: 16,
            arena_bytes: 1 << 20,
            allow_clear: true,
            profiles: Arc::default(),
            signers,
            node: None,
            clock: None,
            name: "test",
            kind: PeerKind::Even,
            blocks_made: None,
        }
    }
}

impl Site {
    pub async fn new(home: &Home) -> Self {
        Self::with(home, Options::default()).await
    }

    pub async fn with(home: &Home, options: Options) -> Self {
        let token = home.any_token();
        Self::on(token, home.canaries().encode(), &home.tokens().join("../kms.db"), options).await
    }

    /// A site over this database, which may exist.
    pub async fn on(
        token: Arc<dyn Token>,
        canaries: Vec<u8>,
        database: &Path,
        options: Options,
    ) -> Self {
        let config = sqlite::Config { path: database.to_owned(), create: !database.exists() };
        let store = Arc::new(SqliteStore::open(config).await.unwrap());
        Self { database: database.to_owned(), ..Self::over(token, canaries, store, options).await }
    }

    /// A site over this store, which others may share.
    pub async fn over(
        token: Arc<dyn Token>,
        canaries: Vec<u8>,
        store: Arc<dyn WriteStore>,
        options: Options,
    ) -> Self {
        let mut domain = DomainRecord {
            domain: DomainId([7; 16]),
            blocks: BlockCount::new(options.blocks).unwrap(),
            site: options.name.into(),
            epoch: Epoch(2),
            kind: options.kind,
            canaries,
            created_ms: 0,
            signature: None,
        };
        let hsm = Hsm::new(token, 4, Duration::from_secs(1), Duration::from_secs(5));
        if store.domain().await.unwrap().is_none() {
            let Made { blocks, marks } = match options.blocks_made {
                Some(blocks) => Made { blocks, marks: Vec::new() },
                None => {
                    let blocks = (0..options.blocks).map(BlockNo).collect();
                    make_blocks(&hsm, &domain, blocks, |_| {}).await.unwrap()
                }
            };
            let heads = blocks.iter().map(|made| (made.head.position, made.head.digest)).collect();
            let key = hsm.public_key().await.unwrap();
            domain.signature = Some(hsm.sign(domain.message()).await.unwrap());
            let table = HeadTable { number: 1, at_ms: 0, tips: Vec::new(), heads };
            let table = sign_head_table(&hsm, &key, &domain.domain, &table).await.unwrap();
            let founding = Founding { marks, ..Founding::new(domain.clone(), blocks, table) };
            store.create_domain(&founding).await.unwrap();
        }
        let clock = options.clock.unwrap_or_else(|| Arc::new(SystemClock::new()));
        let measured = Arc::new(Measured::new(store.clone()));
        // A node of its own each time: two of these may live over one database.
        let (node, witness) = options.node.unwrap_or_else(|| {
            let mut node = [0; 16];
            OperatingSystem.fill(&mut node).unwrap();
            (NodeId(node), Arc::default())
        });
        let freshness = Arc::new(Freshness::default());
        let audit = Audit::open(
            audit::Config::default(),
            audit::Scope {
                node,
                domain: domain.domain,
                blocks: domain.blocks,
                freshness: Arc::clone(&freshness),
            },
            audit::Parts {
                store: measured.clone(),
                hsm: hsm.clone(),
                clock: Arc::clone(&clock),
                witness,
            },
        )
        .await
        .unwrap();
        let ledger = Arc::new(Ledger::new(domain.blocks));
        let commits: Arc<dyn AuditedStore> =
            Arc::new(Noted::new(audit.clone(), Arc::clone(&ledger)));
        let role = Arc::new(keyring::SiteRole::founding(&domain));
        let keyring = Keyring::new(
            keyring::Config {
                arena_bytes: options.arena_bytes,
                allow_unlocked: true,
                block_states_bytes: 1 << 20,
                warm_up_parallelism: 2,
            },
            domain.clone(),
            keyring::Below {
                hsm: hsm.clone(),
                store: measured.clone(),
                clock: Arc::clone(&clock),
                freshness,
                role,
                profiles: Arc::clone(&options.profiles),
            },
            Arc::clone(&commits),
        )
        .unwrap();
        let keyring = Arc::new(keyring);
        let floors = Arc::new(Floors::new(
            FloorsConfig::default(),
            measured.clone(),
            Arc::clone(&keyring.local),
            audit.status().node,
            Arc::clone(&clock),
        ));
        // Where the token is away, or the database is not to be believed, the founding role stays.
        let _ = keyring.roles.look().await;
        let evidence = Arc::new(Evidence::default());
        Self {
            counters: Arc::default(),
            ciphering: Ciphering::new(keyring.reader.clone(), hsm.apdus(), floors)
                .with_evidence(evidence.clone()),
            evidence,
            lifecycle: Lifecycle::new(
                lifecycle::Config {
                    allow_clear: options.allow_clear,
                    times: kms_core::life::Times::default(),
                },
                &keyring,
                measured.clone(),
                Arc::clone(&clock),
                Arc::new(OperatingSystem),
            )
            .with_signers(options.signers)
            .with_profiles(options.profiles),
            audit,
            keyring,
            hsm,
            store,
            measured,
            database: PathBuf::new(),
            domain,
            clock,
            ledger,
            commits,
            node,
        }
    }

    /// The rotation of its secrets, to be taken by hand.
    pub fn rotation(&self, peer: Option<Arc<dyn PeersProofs>>) -> Arc<BlockSecretRotation> {
        rotation_of(&self.keyring, &self.clock, peer)
    }

    /// The rotation of its token's site KEK, to be taken by hand: of another process each time.
    pub fn kek_rotation(&self) -> Arc<SiteKekRotation> {
        let parts = site_keys::KekParts {
            hsm: self.hsm.clone(),
            keks: Arc::clone(&self.keyring.keks),
            store: self.measured.clone(),
            commits: Arc::clone(&self.commits),
            domain: self.domain.clone(),
            clock: Arc::clone(&self.clock),
        };
        let pace = site_keys::KekPace {
            pause: Duration::ZERO,
            kept_ms: 0,
            ..site_keys::KekPace::default()
        };
        let mut me = [0; 16];
        OperatingSystem.fill(&mut me).unwrap();
        Arc::new(SiteKekRotation::new(parts, pace, me))
    }

    /// What is sent to meters, at this site's node: as a single site, or asking the other one.
    pub fn transmitting(
        &self,
        single_site: bool,
        peer: Option<transmitting::OtherSite>,
    ) -> Transmitting {
        self.transmitting_among(single_site, peer, false)
    }

    /// The same, where the site may have other servers.
    pub fn transmitting_among(
        &self,
        single_site: bool,
        peer: Option<transmitting::OtherSite>,
        has_others: bool,
    ) -> Transmitting {
        let (store, clock, node) = (self.measured.clone(), Arc::clone(&self.clock), self.node);
        let aside = self.measured.clone();
        let memory = self.counters.clone();
        let grounds = transmitting::Grounds {
            store,
            aside,
            clock,
            node,
            single_site,
            peer,
            has_others,
            memory,
        };
        Transmitting::new(&self.keyring, grounds)
    }

    /// Associations of this site's node, over its floors.
    pub fn associations(
        &self,
        transmitting: Arc<Transmitting>,
        profiles: Arc<Profiles>,
    ) -> Associations {
        let (reader, floors) = (self.keyring.reader.clone(), Arc::clone(self.ciphering.floors()));
        let below = associations::Below {
            transmitting,
            ciphering: Arc::new(
                Ciphering::new(reader, self.hsm.apdus(), floors)
                    .with_evidence(self.evidence.clone()),
            ),
            clock: Arc::clone(&self.clock),
            randomness: Arc::new(OperatingSystem),
            profiles,
        };
        Associations::new(&self.keyring, below)
    }

    /// Imports one meter and expects it to be accepted.
    pub async fn add(&self, meter: NewMeter) {
        let result = self.import(vec![meter], ImportRules::default()).await.remove(0);
        assert!(result.outcome.is_ok(), "{result:?}");
    }

    /// The same of one with several versions of a key.
    pub async fn add_versions(&self, meter: NewMeter) {
        let rules = ImportRules { add_versions: true, ..ImportRules::default() };
        let result = self.import(vec![meter], rules).await.remove(0);
        assert!(result.outcome.is_ok(), "{result:?}");
    }

    pub async fn import(&self, meters: Vec<NewMeter>, rules: ImportRules) -> Vec<ImportResult> {
        self.lifecycle.import(&call("Meters/ImportMeters"), meters, rules).await.unwrap().results
    }

    pub async fn open(&self, apdu: &[u8], named: Named<'_>) -> (Outcome, Vec<u8>) {
        self.open_with(apdu, named, None).await
    }

    pub async fn open_with(
        &self,
        apdu: &[u8],
        named: Named<'_>,
        setup: Option<SecuritySetup>,
    ) -> (Outcome, Vec<u8>) {
        let items = [Item { apdu, named, setup }];
        let OpenedBatch { plaintexts, mut outcomes, .. } =
            self.ciphering.open_batch(&items, Want::Plaintext).await;
        (outcomes.remove(0), plaintexts)
    }

    pub async fn verdict(&self, apdu: &[u8]) -> kms_core::Verdict {
        self.open(apdu, Named::InApdu).await.0.verdict
    }
}

/// The tests' runtime: as the server's, with two workers.
/// The rotation of the secrets of a site with this keyring, to be taken by hand.
pub fn rotation_of(
    keyring: &Keyring,
    clock: &Arc<dyn Clock>,
    peer: Option<Arc<dyn PeersProofs>>,
) -> Arc<BlockSecretRotation> {
    let parts = site_keys::Parts {
        rotator: Arc::clone(&keyring.rotator),
        prover: Arc::clone(&keyring.prover),
        peer,
        site: keyring.counting.domain().site.clone(),
        clock: Arc::clone(clock),
        randomness: Arc::new(OperatingSystem),
    };
    let config = site_keys::Config { pause: Duration::ZERO, ..site_keys::Config::default() };
    Arc::new(BlockSecretRotation::new(parts, config))
}

pub fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test);
}

/// The n-th meter of a made-up fleet, with keys of its own.
pub fn title(n: u64) -> SystemTitle {
    SystemTitle::new((0x414D_4900_0000_0000 | n).to_be_bytes())
}

pub fn id(n: u64) -> String {
    format!("meter-{n}")
}

/// A key value that nobody else has; `salt` tells kinds and versions apart.
pub fn value(n: u64, salt: u8) -> Vec<u8> {
    let mut bytes = vec![salt ^ 0x5A; 16];
    bytes[..8].copy_from_slice(&n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes());
    bytes[8] = salt;
    bytes
}

pub const GUEK: u8 = 1;
pub const GAK: u8 = 2;

pub fn key(kind: KeyKind, bytes: Vec<u8>) -> NewKey {
    NewKey { kind, setup: SecuritySetup(0), protection: None, value: ClearKey::new(bytes).into() }
}

pub fn meter(n: u64) -> NewMeter {
    NewMeter {
        meter_id: MeterId::new(&id(n)).unwrap(),
        system_title: title(n),
        logical_device_name: String::new(),
        keys: vec![key(KeyKind::Guek, value(n, GUEK)), key(KeyKind::Gak, value(n, GAK))],
        policy: None,
    }
}

pub fn meter_with(n: u64, keys: Vec<NewKey>, policy: MeterPolicy) -> NewMeter {
    NewMeter { keys, policy: Some(policy), ..meter(n) }
}

pub fn in_hsm(mut key: NewKey) -> NewKey {
    key.protection = Some(Protection::Hsm);
    key
}

/// A fresh counter for each APDU of a test.
static COUNTER: AtomicU64 = AtomicU64::new(1);

pub fn control(sc: u8) -> SecurityControl {
    SecurityControl::from_byte(sc).unwrap()
}

/// A push of meter `n`, protected with these keys as SC says.
pub fn push_with(
    n: u64,
    sc: u8,
    encryption: &[u8],
    authentication: &[u8],
    plain: &[u8],
) -> Vec<u8> {
    let counter = COUNTER.fetch_add(1, Ordering::Relaxed) as u32;
    let protection = Seal {
        envelope: Envelope::GeneralGlo(Some(title(n))),
        security_control: control(sc),
        originator: title(n),
        keys: Keys { encryption, authentication },
        gc_aad: GeneralCipheringAad::Spec,
    };
    let counter = FreshCounter::promise_never_used_under_this_key_and_title(counter);
    let mut out = Vec::new();
    dlms::protect(&protection, counter, plain, &mut out).unwrap();
    out
}

/// A push of meter `n` as it comes every quarter of an hour.
pub fn push(n: u64, plain: &[u8]) -> Vec<u8> {
    push_with(n, 0x30, &value(n, GUEK), &value(n, GAK), plain)
}

/// Suite 0, authenticated and encrypted.
pub const BOTH: SecurityControl = SecurityControl::authenticated_encryption(Suite::Suite0);

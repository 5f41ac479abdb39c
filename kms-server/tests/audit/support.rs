//! A log over a real database, with a token that only signs.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kms_core::{
    BlockCount, BlockSecret, ClearKey, DomainId, SealedKek,
    audit::{
        AuditEntry, AuditEvent, AuditOutcome, AuditedCall, ChainTip, Checkpoint, NodeId, PublicKey,
        Signature, StoredEvent, Subject,
    },
    freshness::{HeadTable, SignedHeadTable},
    ports::{HeadWitness, WitnessFailed},
};
use kms_server::{
    app::SystemClock,
    audit::{self, Audit, Config, Parts},
    hsm::{
        BlockSeals, CeremonyKey, Device, Enrols, GcmOpen, HandedKeks, Hsm, ImportKey, ImportsKeys,
        Made, MakeKeys, MakesKeys, NotAuthentic, NotTrusted, RsaKey, SealedKeys, ShareKey, Signs,
        SiteKeks, TakeKeys, Taken, TokenError, TokenStatus, WrappedKey,
    },
    store::{
        AuditStore as _, WriteStore,
        sqlite::{self, SqliteStore},
    },
};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};

pub(crate) const NODE: NodeId = NodeId([0xA1; 16]);

/// Signs, as the token does; can do nothing else.
pub(crate) struct Signer {
    pub(crate) key: EcdsaKeyPair,
    pub(crate) away: AtomicBool,
}

impl Signer {
    pub(crate) fn new() -> Arc<Self> {
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(algorithm, key.as_ref(), &random).unwrap();
        Arc::new(Self { key, away: AtomicBool::new(false) })
    }

    pub(crate) fn key(&self) -> PublicKey {
        self.key.public_key().as_ref().try_into().unwrap()
    }

    pub(crate) fn head(&self, tip: ChainTip) -> Checkpoint {
        let signature = self.sign(&Checkpoint::message(&tip, 7)).unwrap();
        Checkpoint { tip, at_ms: 7, signature }
    }

    pub(crate) fn table(&self, table: &HeadTable) -> SignedHeadTable {
        let body = table.encode();
        let signature = self.sign(&HeadTable::message(&place().domain, &body)).unwrap();
        SignedHeadTable { number: table.number, body, signature }
    }
}

impl Signs for Signer {
    fn sign(&self, message: &[u8]) -> Result<Signature, TokenError> {
        if self.away.load(Ordering::SeqCst) {
            return Err(TokenError::Busy);
        }
        let signature = self.key.sign(&SystemRandom::new(), message).unwrap();
        Ok(signature.as_ref().try_into().unwrap())
    }
    fn public_key(&self) -> Result<PublicKey, TokenError> {
        Ok(self.key())
    }
}

impl BlockSeals for Signer {
    fn seal(&self, _: &[u8], _: &BlockSecret) -> Result<Vec<u8>, TokenError> {
        Err(TokenError::Busy)
    }
    fn open(&self, _: &[u8], _: &[u8]) -> Result<BlockSecret, TokenError> {
        Err(TokenError::Busy)
    }
}

impl SiteKeks for Signer {}

impl SealedKeys for Signer {
    fn wrap(&self, _: SealedKek, _: &ClearKey) -> Result<Vec<u8>, TokenError> {
        Err(TokenError::Busy)
    }
    fn open_apdus(
        &self,
        _: &WrappedKey,
        _: &[GcmOpen],
    ) -> Result<Vec<Result<Vec<u8>, NotAuthentic>>, TokenError> {
        Err(TokenError::Busy)
    }
}

impl ImportsKeys for Signer {
    fn import_key(&self) -> Result<ImportKey, TokenError> {
        Err(TokenError::Busy)
    }
    fn take_keys(&self, _: &TakeKeys) -> Result<Taken, TokenError> {
        Err(TokenError::Busy)
    }
}

impl MakesKeys for Signer {
    fn make_keys(&self, _: &MakeKeys) -> Result<Made, TokenError> {
        Err(TokenError::Busy)
    }
    fn share_key(&self, _: &ShareKey) -> Result<Made, TokenError> {
        Err(TokenError::Busy)
    }
}

impl Enrols for Signer {
    fn transport_block_key(&self) -> Result<RsaKey, TokenError> {
        Err(TokenError::Busy)
    }
    fn hand_over_keks(
        &self,
        _: &CeremonyKey,
    ) -> Result<Result<HandedKeks, NotTrusted>, TokenError> {
        Err(TokenError::Busy)
    }
    fn receive_secret(&self, _: &[u8]) -> Result<BlockSecret, TokenError> {
        Err(TokenError::Busy)
    }
}

impl Device for Signer {
    fn random(&self, _: &mut [u8]) -> Result<(), TokenError> {
        Err(TokenError::Busy)
    }
    fn check(&self) -> Result<(), TokenError> {
        Ok(())
    }
    fn status(&self) -> TokenStatus {
        TokenStatus {
            label: "signer".into(),
            model: String::new(),
            site_kek_id: [0; 16],
            connection_epoch: 1,
            calls: 0,
            fault: None,
        }
    }
    fn sessions_open(&self) -> Option<usize> {
        None
    }
}

/// Remembers the last head.
#[derive(Default)]
pub(crate) struct Witness(pub(crate) Mutex<Option<Checkpoint>>);

#[async_trait::async_trait]
impl HeadWitness for Witness {
    async fn last(&self) -> Result<Option<Checkpoint>, WitnessFailed> {
        Ok(self.0.lock().unwrap().clone())
    }
    async fn keep(&self, head: &Checkpoint) -> Result<(), WitnessFailed> {
        *self.0.lock().unwrap() = Some(head.clone());
        Ok(())
    }
}

/// What outlives a process: database, token, witness.
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    pub(crate) signer: Arc<Signer>,
    pub(crate) witness: Arc<Witness>,
    _directory: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            path: directory.path().join("kms.db"),
            signer: Signer::new(),
            witness: Arc::default(),
            _directory: directory,
        }
    }

    /// Starts a process's worth of log.
    pub(crate) async fn start(&self) -> (Arc<SqliteStore>, Arc<Audit>) {
        let store = open_store(&self.path).await;
        let audit = self.audit(store.clone()).await;
        (store, audit)
    }

    pub(crate) async fn audit(&self, store: Arc<dyn WriteStore>) -> Arc<Audit> {
        begin_table(&*store, &self.signer).await;
        let second = Duration::from_secs(1);
        let hsm = Hsm::new(self.signer.clone(), 2, second, second * 5);
        let config = Config { traffic_interval: second * 3_600, ..Config::default() };
        let (clock, witness) = (Arc::new(SystemClock::new()), self.witness.clone());
        let parts = Parts { store, hsm, clock, witness };
        Audit::open(config, place(), parts).await.unwrap()
    }
}

/// A head table, as `init` leaves it; over another signer's, too.
pub(crate) async fn begin_table(store: &dyn WriteStore, signer: &Signer) {
    let place = place();
    let there = store.head_table().await.unwrap();
    if there.as_ref().is_some_and(|table| table.open(&place.domain, &signer.key()).is_some()) {
        return;
    }
    let there = there.map(|table| table.number);
    let heads = vec![Default::default(); place.blocks.get() as usize];
    let number = there.unwrap_or(0) + 1;
    let table = signer.table(&HeadTable { number, at_ms: 7, tips: Vec::new(), heads });
    assert!(store.put_head_table(there, &table).await.unwrap());
}

/// Where the test's node is. Nothing is known of blocks: there are none in these databases.
pub(crate) fn place() -> audit::Scope {
    let blocks = BlockCount::new(16).unwrap();
    audit::Scope { node: NODE, domain: DomainId([7; 16]), blocks, freshness: Arc::default() }
}

pub(crate) async fn open_store(path: &Path) -> Arc<SqliteStore> {
    let config = sqlite::Config { path: path.to_owned(), create: !path.exists() };
    Arc::new(SqliteStore::open(config).await.unwrap())
}

pub(crate) fn entry(n: u64) -> AuditEntry {
    let call = AuditedCall::new("operator", "Meters/GetMeter");
    call.entry(n, Subject::title(title(n)), AuditOutcome::Done)
}

pub(crate) fn title(n: u64) -> kms_core::SystemTitle {
    kms_core::SystemTitle::new(n.to_be_bytes())
}

/// All events of the test's node.
pub(crate) async fn events(store: &SqliteStore) -> Vec<StoredEvent> {
    store.audit_events(&NODE, 0, u32::MAX).await.unwrap()
}

pub(crate) fn decode(events: &[StoredEvent]) -> Vec<AuditEvent> {
    events.iter().map(|event| AuditEvent::decode(&event.body).unwrap()).collect()
}

/// Works on the database as somebody would who can write to it and has no key.
pub(crate) async fn tamper(path: &Path, statement: &str) {
    use sqlx::Connection as _;
    let url = format!("sqlite://{}", path.display());
    let mut database = sqlx::SqliteConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut database).await.unwrap();
    database.close().await.unwrap();
}

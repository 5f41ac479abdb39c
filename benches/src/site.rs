//! The service's parts in this process, without the wire.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use kms_core::{
    BlockNo, DomainId, DomainRecord, SystemTitle,
    audit::{AuditedCall, Checkpoint, NodeId, PublicKey},
    freshness::{Freshness, SignedHeadTable},
    ports::{Clock, HeadWitness, Randomness as _, WitnessFailed},
};
use kms_server::{
    app::{OperatingSystem, SystemClock},
    audit::{self, Audit},
    ciphering::{Ciphering, Floors, FloorsConfig},
    config::{Config, Store},
    hsm::{
        Hsm,
        pkcs11::{Canaries, Pkcs11Token},
    },
    keyring::{self, Keyring},
    lifecycle::{self, ImportRules, Lifecycle},
    store::{
        AuditStore as _, ReadStore,
        sqlite::{self, SqliteStore},
    },
};
use softhsm_tests::Site;

use crate::{Error, fleet};

/// Meters in one commit of the import.
const COMMIT_METERS: usize = 4_000;

/// Token, database and what stands on them.
pub struct Parts {
    hsm: Hsm,
    store: Arc<SqliteStore>,
    audit: Arc<Audit>,
    domain: DomainRecord,
    clock: Arc<dyn Clock>,
    freshness: Arc<Freshness>,
    keyring: keyring::Config,
    import: lifecycle::Config,
}

/// The cost of opening all blocks.
#[derive(Clone, Copy, Debug)]
pub struct WarmUp {
    /// Time.
    pub took: Duration,
    /// Calls to the token.
    pub hsm_calls: u64,
    /// Blocks there are.
    pub blocks: u32,
    /// Meters found.
    pub meters: u64,
    /// Bytes of the arena in use.
    pub arena_bytes: u64,
    /// Bytes by which this process grew, without what of the arena is not in use.
    pub grown_bytes: u64,
}

/// A site of the benches has one process, and none of its chains outlives it.
struct NoWitness;

#[async_trait]
impl HeadWitness for NoWitness {
    async fn last(&self) -> Result<Option<Checkpoint>, WitnessFailed> {
        Ok(None)
    }

    async fn keep(&self, _: &Checkpoint) -> Result<(), WitnessFailed> {
        Ok(())
    }
}

impl Parts {
    /// Connects to the site's token and database.
    pub async fn of(site: &Site) -> Result<Self, Error> {
        let config = Config::load(&site.places().kms_toml)?;
        let Store::Sqlite { path } = config.store else {
            return Err("the benches' sites are on SQLite".into());
        };
        let store = SqliteStore::open(sqlite::Config { path, create: false }).await?;
        let domain = store.domain().await?.ok_or("the site is not initialised")?;
        let (width, patience, timeout) =
            (config.hsm.sessions_max, config.hsm.patience, config.hsm.call_timeout);
        let token = Pkcs11Token::connect(config.hsm, Canaries::decode(&domain.canaries)?)?;
        let hsm = Hsm::new(Arc::new(token), width, patience, timeout);
        let store = Arc::new(store);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        // A node of its own each time: the site's server has another.
        let mut node = [0; 16];
        OperatingSystem.fill(&mut node)?;
        let freshness = Arc::new(Freshness::default());
        let audit = Audit::open(
            audit::Config::default(),
            audit::Scope {
                node: NodeId(node),
                domain: domain.domain,
                blocks: domain.blocks,
                freshness: Arc::clone(&freshness),
            },
            audit::Parts {
                store: store.clone(),
                hsm: hsm.clone(),
                clock: Arc::clone(&clock),
                witness: Arc::new(NoWitness),
            },
        )
        .await?;
        Ok(Self {
            hsm,
            store,
            audit,
            domain,
            clock,
            freshness,
            keyring: config.keyring,
            import: config.import,
        })
    }

    /// An empty keyring.
    pub fn keyring(&self) -> Result<Arc<Keyring>, Error> {
        let below = keyring::Below {
            hsm: self.hsm.clone(),
            store: self.store.clone(),
            clock: Arc::clone(&self.clock),
            freshness: Arc::clone(&self.freshness),
            role: Arc::new(keyring::SiteRole::founding(&self.domain)),
            profiles: Arc::default(),
        };
        let keyring = Keyring::new(self.keyring, self.domain.clone(), below, self.audit.clone());
        Ok(Arc::new(keyring?))
    }

    /// The verbs of meters over `keyring`.
    pub fn lifecycle(&self, keyring: &Keyring) -> Lifecycle {
        Lifecycle::new(
            self.import,
            keyring,
            self.store.clone(),
            Arc::clone(&self.clock),
            Arc::new(OperatingSystem),
        )
    }

    /// The block of a meter.
    pub fn block_of(&self, title: &SystemTitle) -> BlockNo {
        self.domain.blocks.block_of(title)
    }

    /// The HES's verbs over `keyring`.
    pub fn ciphering(&self, keyring: &Arc<Keyring>) -> Ciphering {
        let floors = Floors::new(
            FloorsConfig::default(),
            self.store.clone(),
            Arc::clone(&keyring.local),
            self.audit.status().node,
            Arc::clone(&self.clock),
        );
        Ciphering::new(keyring.reader.clone(), self.hsm.apdus(), Arc::new(floors))
    }

    /// Makes sure that meters 0 to `count` - 1 are stored: imports them, block by block, if the last
    /// of them is not. How long that took.
    pub async fn import(&self, count: u32) -> Result<Option<Duration>, Error> {
        let mut order: Vec<u32> = (0..count).collect();
        order.sort_by_key(|n| self.domain.blocks.block_of(&fleet::title(*n)));
        let Some(last) = order.last() else { return Ok(None) };
        if self.store.find_meter(&fleet::new_meter(*last)?.meter_id).await?.is_some() {
            return Ok(None);
        }
        let start = Instant::now();
        let keyring = self.keyring()?;
        let lifecycle = self.lifecycle(&keyring);
        let call = AuditedCall::new("benches", "Meters/ImportMeters");
        for some in order.chunks(COMMIT_METERS) {
            let meters = some.iter().map(|n| fleet::new_meter(*n)).collect::<Result<_, _>>()?;
            let results = lifecycle.import(&call, meters, ImportRules::default()).await?;
            if let Some(refused) = results.results.iter().find(|result| result.outcome.is_err()) {
                return Err(format!("a meter was refused: {refused:?}").into());
            }
        }
        let took = start.elapsed();
        // As a server does each minute: the next start reads what was not signed for.
        self.audit.sign_table(true).await;
        Ok(Some(took))
    }

    /// The head table that the import has signed, and what verifies it.
    pub async fn head_table(&self) -> Result<(SignedHeadTable, DomainId, PublicKey), Error> {
        let table = self.store.head_table().await?.ok_or("no head table was signed")?;
        Ok((table, self.domain.domain, *self.audit.keys().first()))
    }

    /// What imports one meter at a time, each in a commit of its own.
    pub fn importer(&self) -> Result<impl AsyncFnMut(u32) -> Result<(), Error>, Error> {
        let keyring = self.keyring()?;
        let lifecycle = self.lifecycle(&keyring);
        let call = AuditedCall::new("benches", "Meters/ImportMeters");
        Ok(async move |n| {
            let meters = vec![fleet::new_meter(n)?];
            let results = lifecycle.import(&call, meters, ImportRules::default()).await?;
            match results.results.iter().find(|result| result.outcome.is_err()) {
                Some(refused) => Err(format!("a meter was refused: {refused:?}").into()),
                None => Ok(()),
            }
        })
    }

    /// Opens every block in a new keyring.
    pub async fn warm_up(&self) -> Result<(Arc<Keyring>, WarmUp), Error> {
        let pid = std::process::id();
        let (calls, before) = (self.hsm.status().calls, crate::process::resident_bytes(pid)?);
        let keyring = self.keyring()?;
        let start = Instant::now();
        keyring.refresher.warm_up().await;
        let took = start.elapsed();
        let status = keyring.overview.status();
        if let Some(fault) = status.faults.first() {
            return Err(fault.clone().into());
        }
        let grown = crate::process::resident_bytes(pid)?.saturating_sub(before);
        // Locked memory is in RAM from the first moment, used or not.
        let idle = if status.memory_locked {
            status.arena_bytes_total - status.arena_bytes_used
        } else {
            0
        };
        let warm_up = WarmUp {
            took,
            hsm_calls: self.hsm.status().calls - calls,
            blocks: status.blocks_total,
            meters: status.resident_meters,
            arena_bytes: status.arena_bytes_used,
            grown_bytes: grown.saturating_sub(idle),
        };
        Ok((keyring, warm_up))
    }
}

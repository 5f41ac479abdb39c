//! The record of what was done: one hash chain a node, its ends signed by the token.
//!
//! A call that changes something brings its events into the change's own transaction (`chain`, behind
//! [`AuditedStore`]). What changes nothing is written by [`Audit::record`], many calls at once. Crypto
//! traffic is counted in memory and summed up once an interval (`traffic`). The end of the chain is
//! signed every so often (`heads`), and held against the chain at the next start. What can't be
//! recorded is refused.

mod chain;
mod heads;
mod reading;
mod tables;
mod traffic;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    hsm::{Hsm, TokenError},
    store::{AuditedStore, BlockChange, StoreError, WriteStore},
    telemetry::{
        catalogue,
        metrics::{Page as MetricsPage, Source},
    },
};
use kms_core::{
    BlockCount, DomainId, SystemTitle, Verdict,
    audit::{
        AuditEntry, AuditOutcome, AuditText, AuditedCall, ChainTip, Detail, NodeId, PublicKey,
        Subject,
    },
    block::BlockMark,
    freshness::Freshness,
    ports::{Clock, HeadWitness},
};

use chain::Chain;
use heads::Heads;
pub use reading::{PAGE_MAX, Page, Verification};
use tables::Tables;
pub use tables::sign_head_table;
use traffic::Traffic;

/// What the audit needs, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long crypto traffic is counted before it is written.
    pub traffic_interval: Duration,
    /// Blocks that get a row of their own in one interval's record of a caller, a call and a verdict;
    /// the rest is counted together.
    pub traffic_blocks_max: usize,
    /// Events after which the end of the chain is signed.
    pub checkpoint_events: u64,
    /// How long an event waits at most for a signature behind it.
    pub checkpoint_interval: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            traffic_interval: Duration::from_secs(60),
            traffic_blocks_max: 256,
            checkpoint_events: 1_000,
            checkpoint_interval: Duration::from_secs(60),
        }
    }
}

/// Whose chain it is, and which blocks its events are about.
#[derive(Clone, Debug)]
pub struct Place {
    /// The node.
    pub node: NodeId,
    /// Its site's key domain.
    pub domain: DomainId,
    /// How many blocks that has.
    pub blocks: BlockCount,
    /// What is known of them; the keyring holds blocks against it.
    pub freshness: Arc<Freshness>,
}

/// Calls that wait to be recorded; more are refused.
const QUEUE_MAX: usize = 4_096;
/// Calls recorded in one transaction.
const BATCH_MAX: usize = 256;
/// Callers, calls and reasons whose refusals are counted in one interval; further ones are recorded one
/// by one. More than known callers have calls.
const REFUSALS_MAX: usize = 4_096;
/// The caller's name in events that the service writes of itself.
const OURSELVES: &str = "kms-server";

/// Why the log was not written or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// An event can't be written; the call that it is about is to be refused.
    #[error("the audit log can't be written: {0}")]
    NotWritable(String),
    /// The database is a standby. Nothing is wrong with the log: it waits for the primary's.
    #[error("the audit log is not written here: the database is a standby")]
    ReadOnly,
    /// Events can't be read.
    #[error("the audit log can't be read: {0}")]
    NotReadable(String),
    /// The token does not sign.
    #[error("the audit log's end can't be signed: {0}")]
    NotSigned(String),
    /// The witness outside the database does not answer.
    #[error("the audit log's witness: {0}")]
    Witness(String),
}

impl AuditError {
    /// Why an event was not written.
    fn of_write(error: &StoreError) -> Self {
        match error {
            StoreError::ReadOnly => Self::ReadOnly,
            error => Self::NotWritable(error.to_string()),
        }
    }
}

impl From<TokenError> for AuditError {
    fn from(error: TokenError) -> Self {
        Self::NotSigned(error.to_string())
    }
}

/// For `GetStatus`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditStatus {
    /// Whose chain this process writes.
    pub node: NodeId,
    /// Its last event.
    pub sequence: u64,
    /// Its last signed event.
    pub signed: u64,
    /// Why nothing more is written, or what else is wrong.
    pub fault: Option<String>,
}

/// What waits to be recorded, and who waits for it.
struct Asked {
    entry: AuditEntry,
    done: oneshot::Sender<Result<(), AuditError>>,
}

/// This node's audit log.
pub struct Audit {
    config: Config,
    chain: Arc<Chain>,
    heads: Heads,
    tables: Tables,
    blocks: BlockCount,
    freshness: Arc<Freshness>,
    /// The chain was opened while the database was not the newest: it is opened again once it is.
    is_late: AtomicBool,
    traffic: Traffic,
    /// Refusals of this interval, by caller, call and reason word, beyond the first.
    refusals: Mutex<HashMap<(AuditText, AuditText, AuditText), u64>>,
    /// When this process started, until that is in the log.
    start: Mutex<Option<AuditEntry>>,
    queue: mpsc::Sender<Asked>,
    store: Arc<dyn WriteStore>,
    clock: Arc<dyn Clock>,
}

impl Audit {
    /// Opens `node`'s chain and holds its end against the last signed heads. A chain that does not fit
    /// is no error: it is a fault that [`Audit::status`] tells, and nothing is written behind it.
    ///
    /// Call within a Tokio runtime.
    pub async fn open(
        config: Config,
        place: Place,
        store: Arc<dyn WriteStore>,
        hsm: Hsm,
        clock: Arc<dyn Clock>,
        witness: Arc<dyn HeadWitness>,
    ) -> Result<Arc<Self>, AuditError> {
        let Place { node, blocks, .. } = place;
        let (hsm_too, witness_too) = (hsm.clone(), Arc::clone(&witness));
        let heads =
            Heads::open(node, Arc::clone(&store), hsm, Arc::clone(&clock), Arc::clone(&witness));
        let heads = heads.await?;
        let key = *heads.public_key();
        let chain_witness = Arc::clone(&witness);
        let (store_too, clock_too) = (Arc::clone(&store), Arc::clone(&clock));
        let freshness = Arc::clone(&place.freshness);
        let tables = Tables::open(place, key, store_too, hsm_too, clock_too, witness_too).await?;
        // Behind the tables: what arrives meanwhile is in both.
        let End { tip, fault, is_behind } =
            find_end(&*store, &heads, &*chain_witness, node).await?;
        let chain = Arc::new(Chain::new(tip, Arc::clone(&store), chain_witness));
        if let Some(fault) = fault {
            chain.fail(fault);
        }
        if let Some(what) = tables.made_up_in(node) {
            chain.fail(what);
        }
        let late = freshness.refusal();
        let is_late = late.is_some() || is_behind;
        if let Some(reason) = &late {
            // What is written behind an older end would hide that it is one.
            chain.fail(reason.to_string());
        }
        let (queue, asked) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(write_queued(Arc::clone(&chain), asked));
        let traffic = Traffic::new(blocks);
        let refusals = Mutex::default();
        let call = AuditedCall::new(OURSELVES, "Server/Start");
        let start = call.entry(clock.unix_ms(), Subject::NONE, AuditOutcome::Done);
        let start = Mutex::new(Some(start));
        let this = Arc::new(Self {
            config,
            chain,
            heads,
            tables,
            blocks,
            freshness,
            is_late: AtomicBool::new(is_late),
            traffic,
            refusals,
            start,
            queue,
            store,
            clock,
        });
        this.say_that_we_started().await;
        Ok(this)
    }

    /// Signs and sums up for as long as the service runs.
    pub async fn take_care(self: Arc<Self>) {
        const TICK: Duration = Duration::from_secs(1);
        let mut ticks = interval(TICK.min(self.config.traffic_interval));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut summed, mut signed) = (Instant::now(), Instant::now());
        loop {
            ticks.tick().await;
            if summed.elapsed() >= self.config.traffic_interval {
                self.sum_up(summed.elapsed()).await;
                summed = Instant::now();
            }
            let unsigned = self.chain.tip().sequence.saturating_sub(self.heads.signed());
            if unsigned >= self.config.checkpoint_events
                || (unsigned > 0 && signed.elapsed() >= self.config.checkpoint_interval)
            {
                self.sign().await;
                signed = Instant::now();
            }
            self.sign_table(false).await;
        }
    }

    /// Writes what was counted, and signs the end. The last to be done before the store is closed.
    pub async fn close(&self) {
        self.sum_up(self.config.traffic_interval).await;
        let call = AuditedCall::new(OURSELVES, "Server/Stop");
        let stop = call.entry(self.clock.unix_ms(), Subject::NONE, AuditOutcome::Done);
        if let Err(error) = self.record(stop).await {
            tracing::error!(%error, "the stop is not in the audit log");
        }
        self.sign().await;
        self.sign_table(true).await;
    }

    /// Signs the head table, if something is new and it is time, or `now`.
    pub async fn sign_table(&self, now: bool) {
        let interval = self.config.checkpoint_interval.as_millis();
        let interval_ms = u64::try_from(interval).unwrap_or(u64::MAX);
        self.tables.care(&self.chain, interval_ms, now).await;
        if self.is_late.load(Ordering::Acquire) && self.freshness.refusal().is_none() {
            match self.open_again().await {
                Ok(()) => self.is_late.store(false, Ordering::Release),
                Err(error) => tracing::warn!(%error, "the audit chain can't be opened again yet"),
            }
        }
    }

    /// The database was behind what this server knows, and has caught up.
    async fn open_again(&self) -> Result<(), AuditError> {
        let node = self.chain.tip().node;
        let end = find_end(&*self.store, &self.heads, self.chain.witness(), node).await?;
        let End { tip, fault, is_behind } = end;
        if is_behind {
            return Err(AuditError::NotReadable(fault.unwrap_or_default()));
        }
        let fault = fault.or_else(|| self.tables.made_up_in(node));
        self.chain.begin_again(tip, fault).await;
        self.say_that_we_started().await;
        Ok(())
    }

    /// Writes what is said of a call that changed nothing; on disk when this returns. On an error the
    /// call is to be refused.
    pub async fn record(&self, entry: AuditEntry) -> Result<(), AuditError> {
        let (done, outcome) = oneshot::channel();
        let full = |_| AuditError::NotWritable(format!("{QUEUE_MAX} calls wait for it"));
        self.queue.try_send(Asked { entry, done }).map_err(full)?;
        let gone = || AuditError::NotWritable("its writer is gone".to_owned());
        outcome.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Records that a known caller asked for what it does not get at the gate: it is not granted, or not
    /// without a second person. The first one of an interval is written at once, further ones are
    /// counted: who asks often can't fill the log.
    pub async fn record_refusal(&self, call: AuditedCall, word: &str) {
        let key = (call.caller.clone(), call.verb.clone(), AuditText::new(word));
        {
            let mut refusals = lock(&self.refusals);
            let full = refusals.len() >= REFUSALS_MAX;
            match refusals.get_mut(&key) {
                Some(count) => return *count += 1,
                // Recorded one by one.
                None if full => {}
                None => _ = refusals.insert(key.clone(), 0),
            }
        }
        let entry = call.entry(self.clock.unix_ms(), Subject::NONE, AuditOutcome::refused(word));
        if let Err(error) = self.record(entry.with(Detail::Items, 1)).await {
            // Counted on: it is in the log once that can be written.
            if let Some(count) = lock(&self.refusals).get_mut(&key) {
                *count += 1;
            }
            if error != AuditError::ReadOnly {
                tracing::error!(%error, caller = %call.caller, verb = %call.verb, "a refusal is not in the audit log");
            }
        }
    }

    /// Counts what became of APDUs. Cheap: a lock for the batch, an addition an item.
    pub fn count(
        &self,
        caller: &str,
        verb: &'static str,
        outcomes: impl Iterator<Item = (Option<SystemTitle>, Verdict)>,
    ) {
        self.traffic.add(caller, verb, outcomes);
    }

    /// Milliseconds since 1970, for entries.
    pub fn now_ms(&self) -> u64 {
        self.clock.unix_ms()
    }

    /// The key that heads are signed with.
    pub fn public_key(&self) -> &PublicKey {
        self.heads.public_key()
    }

    /// The end of this node's chain, and each end that comes.
    pub fn follow(&self) -> watch::Receiver<ChainTip> {
        self.chain.follow()
    }

    /// How the log is.
    pub fn status(&self) -> AuditStatus {
        let tip = self.chain.tip();
        AuditStatus {
            node: tip.node,
            sequence: tip.sequence,
            signed: self.heads.signed(),
            fault: self
                .chain
                .fault()
                .or_else(|| self.heads.fault())
                .or_else(|| self.tables.fault())
                .or_else(|| self.chain.witness_fault()),
        }
    }

    /// Tried again with each summing up: a standby's log can be written once it is promoted.
    async fn say_that_we_started(&self) {
        let Some(start) = lock(&self.start).clone() else { return };
        match self.record(start).await {
            Ok(()) => *lock(&self.start) = None,
            Err(AuditError::ReadOnly) => {
                tracing::info!("the database is a standby: the audit log waits for its promotion");
            }
            Err(error) => {
                tracing::error!(%error, "the start is not in the audit log; privileged calls are refused");
            }
        }
    }

    /// Signs the end of the chain, unless it is signed or broken.
    async fn sign(&self) {
        if self.chain.fault().is_none() {
            self.heads.sign(self.chain.tip()).await;
        }
    }

    /// Writes what was counted since the last time; what can't be written is counted on. So each item is
    /// counted at least once: twice, where it did reach the disk and nobody heard of it.
    pub async fn sum_up(&self, interval: Duration) {
        self.say_that_we_started().await;
        let interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        let drained = self.traffic.drain();
        let now_ms = self.clock.unix_ms();
        let most = self.config.traffic_blocks_max;
        let mut entries: Vec<AuditEntry> =
            drained.iter().flat_map(|counted| counted.entries(now_ms, interval_ms, most)).collect();
        let refusals = std::mem::take(&mut *lock(&self.refusals));
        for ((caller, verb, word), count) in refusals.iter().filter(|(_, count)| **count > 0) {
            let (caller, verb) = (caller.clone(), verb.clone());
            let request_id = AuditText::default();
            let call = AuditedCall { caller, verb, request_id, approval: None };
            let outcome = AuditOutcome::Refused(word.clone());
            let entry = call.entry(now_ms, Subject::NONE, outcome).with(Detail::Items, *count);
            entries.push(entry.with(Detail::IntervalMs, interval_ms));
        }
        if entries.is_empty() {
            return;
        }
        if let Err(error) = self.chain.commit(Vec::new(), entries).await {
            self.traffic.put_back(drained);
            let mut waiting = lock(&self.refusals);
            for (key, count) in refusals.into_iter().filter(|(_, count)| *count > 0) {
                *waiting.entry(key).or_default() += count;
            }
            if !matches!(error, StoreError::ReadOnly) {
                tracing::error!(%error, "the record of crypto traffic waits for the audit log");
            }
        }
    }
}

#[async_trait]
impl AuditedStore for Audit {
    async fn commit(
        &self,
        changes: Vec<BlockChange>,
        mut entries: Vec<AuditEntry>,
    ) -> Result<(), StoreError> {
        say_where_blocks_stand(&changes, &mut entries, self.blocks);
        self.chain.commit(changes, entries).await
    }
}

/// Each changed block's mark goes to an entry about a meter in it, else to the first.
fn say_where_blocks_stand(changes: &[BlockChange], entries: &mut [AuditEntry], blocks: BlockCount) {
    let block_of = |entry: &AuditEntry| {
        let subject = &entry.subject;
        subject.block.or_else(|| subject.system_title.map(|title| blocks.block_of(&title)))
    };
    let mut places: HashMap<_, usize> = HashMap::new();
    for (at, entry) in entries.iter_mut().enumerate() {
        entry.heads.clear();
        if let Some(block) = block_of(entry) {
            places.entry(block).or_insert(at);
        }
    }
    for BlockChange { head, .. } in changes {
        let at = places.get(&head.block).copied().unwrap_or(0);
        if let Some(entry) = entries.get_mut(at) {
            let (block, position, digest) = (head.block, head.position, head.digest);
            entry.heads.push(BlockMark { block, position, digest });
        }
    }
}

impl Source for Audit {
    fn tell(&self, page: &mut MetricsPage) {
        let AuditStatus { node: _, sequence, signed, fault } = self.status();
        page.sample(&catalogue::AUDIT_EVENTS, &[], sequence);
        page.sample(&catalogue::AUDIT_UNSIGNED, &[], sequence.saturating_sub(signed));
        if let Some(age_ms) = self.heads.age_ms() {
            page.sample(
                &catalogue::AUDIT_HEAD_AGE,
                &[],
                Duration::from_millis(age_ms).as_secs_f64(),
            );
        }
        page.sample(&catalogue::AUDIT_FAULT, &[], fault.is_some());
    }
}

/// Where a node's chain ends.
struct End {
    tip: ChainTip,
    /// What does not fit between that and the last signed heads, or the end that was noted outside the
    /// database.
    fault: Option<String>,
    /// It was further: this is an older copy.
    is_behind: bool,
}

async fn find_end(
    store: &dyn WriteStore,
    heads: &Heads,
    witness: &dyn HeadWitness,
    node: NodeId,
) -> Result<End, AuditError> {
    let (chains, fault) = match store.audit_chains().await {
        Ok(chains) => (chains, None),
        Err(StoreError::Damaged(what)) => (Vec::new(), Some(what)),
        Err(error) => return Err(AuditError::NotReadable(error.to_string())),
    };
    let tip = chains.into_iter().find(|tip| tip.node == node).unwrap_or(ChainTip::empty(node));
    let known = witness.known().await.map_err(|error| AuditError::Witness(error.0))?;
    let mut behind = None;
    for noted in known.tips.into_iter().filter(|noted| noted.node == node && noted.sequence > 0) {
        if !stands_in(store, &noted, &tip).await? {
            let (last, noted) = (tip.sequence, noted.sequence);
            behind = Some(format!(
                "the audit chain ends at event {last}, and event {noted} of it, which this server knows, is \
                 not in it"
            ));
        }
    }
    let is_behind = behind.is_some();
    let fault = match fault {
        Some(fault) => Some(fault),
        None => heads.examine(&tip).await?.or(behind),
    };
    Ok(End { tip, fault, is_behind })
}

/// Whether an end that a chain had is its end at `tip`, or one of the events before.
async fn stands_in(
    store: &dyn WriteStore,
    noted: &ChainTip,
    tip: &ChainTip,
) -> Result<bool, AuditError> {
    if noted.sequence >= tip.sequence {
        return Ok(noted == tip);
    }
    let events = store.audit_events(&noted.node, noted.sequence - 1, 1).await;
    let events = events.map_err(|error| AuditError::NotReadable(error.to_string()))?;
    Ok(events
        .first()
        .is_some_and(|event| (event.sequence, event.hash) == (noted.sequence, noted.hash)))
}

/// Records what waits, as much as waits in one transaction.
async fn write_queued(chain: Arc<Chain>, mut queue: mpsc::Receiver<Asked>) {
    let mut asked = Vec::new();
    while queue.recv_many(&mut asked, BATCH_MAX).await > 0 {
        let (entries, waiting): (Vec<_>, Vec<_>) =
            asked.drain(..).map(|Asked { entry, done }| (entry, done)).unzip();
        let outcome = chain.commit(Vec::new(), entries).await;
        let outcome = outcome.map_err(|error| AuditError::of_write(&error));
        for done in waiting {
            // Who gave up waiting does not need to know.
            let _ = done.send(outcome.clone());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

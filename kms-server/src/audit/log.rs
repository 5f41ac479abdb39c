//! One node's audit log, open: what is recorded, counted, signed and told.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    chain::Chain,
    config::Config,
    end::End,
    error::AuditError,
    heads::Heads,
    lock::lock,
    marks::{mark_of, say_where_blocks_stand},
    queue::Queue,
    refusals::{Refusal, Refusals},
    scope::{Parts, Scope},
    tables::Tables,
    traffic::Traffic,
    written::Written,
};
use crate::{
    hsm::Hsm,
    store::{
        AuditedStore, BlockChange, StoreError, WriteStore,
        keks::KekStep,
        sites::{BlockAdoption, Divergent, PeerStep, RoleStep},
    },
    telemetry::{
        catalogue,
        metrics::{Page as MetricsPage, Source},
    },
};
use kms_core::{
    BlockCount, DomainId, SystemTitle, Verdict,
    audit::{
        AuditEntry, AuditOutcome, AuditText, AuditedCall, ChainTip, Detail, NodeId, SiteKeys,
        Subject,
    },
    block::BlockMark,
    freshness::Freshness,
    ports::Clock,
};

/// The caller's name in events that the service writes of itself.
const OURSELVES: &str = "kms-server";

/// For `GetStatus`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditStatus {
    /// The node whose chain this process writes.
    pub node: NodeId,
    /// Its last event.
    pub sequence: u64,
    /// Its last signed event.
    pub signed: u64,
    /// Why nothing more is written, or what else is wrong.
    pub fault: Option<String>,
}

/// This node's audit log.
pub struct Audit {
    config: Config,
    pub(super) chain: Arc<Chain>,
    heads: Heads,
    pub(super) tables: Tables,
    blocks: BlockCount,
    freshness: Arc<Freshness>,
    /// The chain was opened while the database was not the newest: it is opened again once it is.
    is_late: AtomicBool,
    traffic: Traffic,
    refusals: Refusals,
    /// When this process started, until that is in the log.
    start: Mutex<Option<AuditEntry>>,
    queue: Queue,
    pub(super) store: Arc<dyn WriteStore>,
    pub(super) hsm: Hsm,
    pub(super) domain: DomainId,
    clock: Arc<dyn Clock>,
}

impl Audit {
    /// Opens `node`'s chain and holds its end against the last signed heads. A chain that does not fit
    /// is no error: it is a fault that [`Audit::status`] tells, and nothing is written behind it.
    ///
    /// Call within a Tokio runtime.
    pub async fn open(config: Config, scope: Scope, parts: Parts) -> Result<Arc<Self>, AuditError> {
        let Scope { node, blocks, domain, .. } = scope;
        let freshness = Arc::clone(&scope.freshness);
        let heads = Heads::open(node, parts.clone()).await?;
        let tables = Tables::open(scope, *heads.public_key(), parts.clone()).await?;
        let Parts { store, hsm, clock, witness } = parts;
        // Behind the tables: what arrives meanwhile is in both.
        let end = End::find(node, &*store, &heads, &*witness).await?;
        let chain = Arc::new(Chain::new(end.tip, Arc::clone(&store), witness));
        for what in end.fault.into_iter().chain(tables.made_up_in(node)) {
            chain.fail(what);
        }
        let late = freshness.refusal();
        if let Some(reason) = &late {
            // An event behind an older end would hide that it is an older one.
            chain.fail(reason.to_string());
        }
        let call = AuditedCall::new(OURSELVES, "Server/Start");
        let start = call.entry(clock.unix_ms(), Subject::NONE, AuditOutcome::Done);
        let this = Arc::new(Self {
            config,
            queue: Queue::into(Arc::clone(&chain)),
            chain,
            heads,
            tables,
            blocks,
            freshness,
            is_late: AtomicBool::new(late.is_some() || end.is_behind),
            traffic: Traffic::new(blocks),
            refusals: Refusals::default(),
            start: Mutex::new(Some(start)),
            store,
            hsm,
            domain,
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
        let end = End::find(node, &*self.store, &self.heads, self.chain.witness()).await?;
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
        self.queue.record(entry).await
    }

    /// Records that a known caller asked for what it does not get at the gate: it is not granted, or not
    /// without a second person. The first one of an interval is written at once, further ones are
    /// counted: who asks often can't fill the log.
    pub async fn record_refusal(&self, call: AuditedCall, word: &str) {
        let (caller, verb) = (call.caller.clone(), call.verb.clone());
        let refusal = Refusal { caller, verb, word: AuditText::new(word) };
        if self.refusals.count(&refusal) {
            return;
        }
        let entry = call.entry(self.clock.unix_ms(), Subject::NONE, AuditOutcome::refused(word));
        if let Err(error) = self.record(entry.with(Detail::Items, 1)).await {
            self.refusals.count_on(&refusal);
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

    /// Whose heads count, the key first that they are signed with now.
    pub fn keys(&self) -> SiteKeys {
        self.heads.keys()
    }

    /// The end of this node's chain, and each end that comes.
    pub fn follow(&self) -> watch::Receiver<ChainTip> {
        self.chain.follow()
    }

    /// The state of the log.
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

    async fn write(&self, what: Written, mut entries: Vec<AuditEntry>) -> Result<(), StoreError> {
        say_where_blocks_stand(&what.heads(), &mut entries, self.blocks);
        self.chain.commit(what, entries).await
    }

    /// Signs the end of the chain, unless it is signed or broken.
    pub(super) async fn sign(&self) {
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
        let refusals = self.refusals.drain();
        let refused =
            |(refusal, count): &(Refusal, u64)| refusal.entry(*count, now_ms, interval_ms);
        entries.extend(refusals.iter().map(refused));
        if entries.is_empty() {
            return;
        }
        if let Err(error) = self.chain.commit(Written::NOTHING, entries).await {
            self.traffic.put_back(drained);
            self.refusals.put_back(refusals);
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
        entries: Vec<AuditEntry>,
    ) -> Result<(), StoreError> {
        self.write(Written::Changes(changes), entries).await
    }

    async fn adopt(
        &self,
        adoptions: Vec<BlockAdoption>,
        entries: Vec<AuditEntry>,
    ) -> Result<(), StoreError> {
        let marks: Vec<BlockMark> =
            adoptions.iter().map(|adoption| mark_of(&adoption.head)).collect();
        self.write(Written::Adoptions(adoptions), entries).await?;
        // Who adopts has verified them; unless they are known, the head table waits for somebody who has.
        marks.iter().for_each(|mark| self.freshness.know(mark));
        Ok(())
    }

    async fn change_role(
        &self,
        mut step: RoleStep,
        entries: Vec<AuditEntry>,
    ) -> Result<(), StoreError> {
        if step.now.writes && step.table.is_none() && !step.is_past() {
            let heads = step.blocks.iter().map(|change| &change.head);
            let signed = self
                .tables
                .with(heads)
                .await
                .map_err(|error| StoreError::AuditNotWritten { reason: error.to_string() })?;
            step.table = Some(signed);
        }
        let table = step.table.as_ref().map(|(_, table)| table.clone());
        self.write(Written::Role(Box::new(step)), entries).await?;
        if let Some(table) = table {
            self.tables.take(&table).await;
        }
        Ok(())
    }

    async fn put_peer(&self, step: PeerStep, entries: Vec<AuditEntry>) -> Result<(), StoreError> {
        self.write(Written::Peer(Box::new(step)), entries).await
    }

    async fn put_divergence(
        &self,
        divergent: Vec<Divergent>,
        entries: Vec<AuditEntry>,
    ) -> Result<(), StoreError> {
        self.write(Written::Divergence(divergent), entries).await
    }

    async fn put_site_keks(
        &self,
        step: KekStep,
        entries: Vec<AuditEntry>,
    ) -> Result<(), StoreError> {
        self.write(Written::Keks(Box::new(step)), entries).await
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

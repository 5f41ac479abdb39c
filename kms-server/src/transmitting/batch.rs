//! A batch of APDUs on its way out: find the keys, get a counter for each, protect.

use std::{collections::BTreeMap, sync::Arc};

use dlms::FreshCounter;
use futures_util::{StreamExt as _, stream};

use super::{
    counters::{Counters, Parts},
    figures::Figures,
    forwarding::{Forwarded, NoOtherNodes, Origin, OtherNodes, Way, forward},
    holders::Holders,
    item::{Outcome, Plain, ProtectedBatch, Whose},
    keys::{self, Given, Prepared},
    refused::NotSent,
};
use crate::{
    keyring::{Found, Identities, Keyring, Reader, Records, Writer, scrub_stack},
    store::{ReadStore, counters::CounterStore},
    telemetry::metrics::{Page, Source},
};
use kms_core::{
    BlockNo, Epoch, MeterId, SystemTitle, Verdict,
    audit::NodeId,
    counters::allocator::{NotAllocated, NotReserved},
    ports::{Clock, CounterMemory, CounterWitness, NoOtherSite, NoWitness, ReplicationGate},
};

/// Blocks whose counters one batch asks for at the same time: a first one takes a commit each.
const AT_ONCE: usize = 16;

/// Ways to the other site: whether it has what is here, and what it remembers of our marks.
pub type OtherSite = (Arc<dyn ReplicationGate>, Arc<dyn CounterWitness>);

/// The ground that this part stands on, beside the keyring.
pub struct Grounds {
    /// Marks.
    pub store: Arc<dyn CounterStore>,
    /// What was set aside here.
    pub aside: Arc<dyn ReadStore>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// This node.
    pub node: NodeId,
    /// This site is the only one, by configuration.
    pub single_site: bool,
    /// The other site; `None`: there is none.
    pub peer: Option<OtherSite>,
    /// There are other servers of this site.
    pub has_others: bool,
    /// What this server remembers of marks outside the database.
    pub memory: Arc<dyn CounterMemory>,
}

/// Protects APDUs with the keyring's keys.
pub struct Transmitting {
    pub(super) reader: Reader,
    pub(super) records: Arc<Records>,
    pub(super) writer: Arc<Writer>,
    pub(super) identities: Arc<Identities>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) gate: Arc<dyn ReplicationGate>,
    pub(super) counters: Arc<Counters>,
    pub(super) nodes: Arc<dyn OtherNodes>,
    holders: Arc<Holders>,
    figures: Figures,
}

impl Transmitting {
    /// Puts the verbs on top of their parts.
    pub fn new(keyring: &Keyring, grounds: Grounds) -> Self {
        let Grounds { store, aside, clock, node, single_site, peer, has_others, memory } = grounds;
        let has_peer = peer.is_some();
        let (gate, witness): (Arc<dyn ReplicationGate>, Arc<dyn CounterWitness>) =
            peer.unwrap_or_else(|| (Arc::new(NoOtherSite), Arc::new(NoWitness)));
        let parts = Parts {
            counting: Arc::clone(&keyring.counting),
            reader: keyring.reader.clone(),
            writer: Arc::clone(&keyring.writer),
            roles: Arc::clone(&keyring.roles),
            store,
            aside,
            gate: Arc::clone(&gate),
            witness,
            clock: Arc::clone(&clock),
            node,
            single_site,
            has_peer,
            has_others,
        };
        Self {
            reader: keyring.reader.clone(),
            records: Arc::clone(&keyring.records),
            writer: Arc::clone(&keyring.writer),
            identities: Arc::clone(&keyring.identities),
            clock,
            gate,
            counters: Arc::new(Counters::new(parts, memory)),
            nodes: Arc::new(NoOtherNodes),
            holders: Arc::default(),
            figures: Figures::default(),
        }
    }

    /// The same, and what another node holds is forwarded to it.
    #[must_use]
    pub fn with_nodes(mut self, nodes: Arc<dyn OtherNodes>) -> Self {
        self.nodes = nodes;
        self
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.counters.parts.node
    }

    /// Whether this site transmits at all: the one that writes does.
    pub fn writes(&self) -> Result<(), String> {
        self.counters.epoch().map(drop).map_err(|why| self.counters.where_else(&why))
    }

    /// Runs until the process ends: what the other site remembers of our counters, and what this server does.
    pub async fn keep_witness(&self) {
        tokio::join!(self.counters.keep_witness(), self.counters.keep_looking());
    }

    /// What is wrong with the marks of counters.
    pub fn faults(&self) -> Vec<String> {
        self.counters.remembered.faults()
    }

    /// Gives back what this node has reserved: for one that stops in order.
    pub async fn close(&self) {
        self.counters.give_back().await;
    }

    /// Protects a batch under counters of this node alone. One bad item never fails its batch (invariant 9).
    pub async fn protect_batch(&self, items: &[Plain<'_>]) -> ProtectedBatch {
        self.protect(items, None).await
    }

    /// The same for a caller who came here: what another node holds is forwarded to it, once.
    pub async fn protect_for(&self, origin: &Origin<'_>, items: &[Plain<'_>]) -> ProtectedBatch {
        self.protect(items, Some(origin)).await
    }

    async fn protect(&self, items: &[Plain<'_>], origin: Option<&Origin<'_>>) -> ProtectedBatch {
        let mut prepared = Vec::with_capacity(items.len());
        for item in items {
            prepared.push(self.prepare(item).await);
        }
        scrub_stack();
        let mut given = self.counters_for(items, &prepared).await;
        let mut forwarded = match origin {
            Some(origin) => {
                let Self { nodes, counters, holders, .. } = self;
                let way = Way { nodes, counters, holders, origin };
                forward(&way, items, &prepared, &mut given).await
            }
            None => Forwarded::default(),
        };
        let mut batch = ProtectedBatch::default();
        let found = prepared.into_iter().zip(given);
        for (at, (item, found)) in items.iter().zip(found).enumerate() {
            let before = batch.apdus.len();
            let outcome = match forwarded.remove(&at) {
                Some((outcome, apdu)) => {
                    batch.apdus.extend_from_slice(&apdu);
                    outcome
                }
                None => self.protect_one(item, found, &mut batch.apdus),
            };
            batch.lengths.push((batch.apdus.len() - before) as u32);
            batch.outcomes.push(outcome);
        }
        scrub_stack();
        batch
    }

    fn protect_one(
        &self,
        item: &Plain<'_>,
        (prepared, given): (Result<Prepared, Outcome>, Option<Given>),
        out: &mut Vec<u8>,
    ) -> Outcome {
        let outcome = match (prepared, given) {
            (Err(outcome), _) => outcome,
            (Ok(prepared), Some(Ok(given))) => self.seal(&prepared, item, given, out),
            (Ok(prepared), Some(Err(why))) => Outcome::refused(&why).about(prepared.title),
            (Ok(prepared), None) => Outcome::refused(&NotSent::Busy).about(prepared.title),
        };
        self.figures.count(outcome.verdict);
        outcome
    }

    pub(super) async fn prepare(&self, item: &Plain<'_>) -> Result<Prepared, Outcome> {
        let title = self.title_of(item.whose).await?;
        let table = self.reader.open(self.reader.block_of(&title)).await;
        let unavailable = |why: String| Outcome::of(Verdict::Unavailable).because(why).about(title);
        let table = table.map_err(|error| unavailable(error.to_string()))?;
        if let Whose::Id(id) = item.whose
            && !table.find(&title).is_some_and(|meter| self.reader.has_id(&meter, id))
        {
            return Err(
                Outcome::of(Verdict::UnknownMeter).because(format!("there is no meter {id}"))
            );
        }
        keys::prepare(table, title, &self.identities, item)
    }

    /// Memory first, then the index, which is held against the record.
    pub(super) async fn title_of(&self, whose: Whose<'_>) -> Result<SystemTitle, Outcome> {
        let id = match whose {
            Whose::Title(title) => return Ok(title),
            Whose::Id(id) => id,
        };
        if let Some(title) = self.records.resident_title(id) {
            return Ok(title);
        }
        let unknown = |why: String| Outcome::of(Verdict::UnknownMeter).because(why);
        let unavailable = |why: String| Outcome::of(Verdict::Unavailable).because(why);
        let meter_id = MeterId::new(id).map_err(|_| unknown("that is no meter id".to_owned()))?;
        match self.records.find(&meter_id).await {
            Ok(Found::At(title)) => Ok(title),
            Ok(Found::Nowhere { but: None }) => Err(unknown(format!("there is no meter {id}"))),
            Ok(Found::Nowhere { but: Some(doubt) }) => {
                Err(unavailable(format!("no meter {id} is known, {doubt}")))
            }
            Ok(Found::Unsure(why)) => Err(unavailable(why)),
            Err(error) => Err(unavailable(error.to_string())),
        }
    }

    /// A counter for each item that was prepared: block by block, a few at a time.
    async fn counters_for(
        &self,
        items: &[Plain<'_>],
        prepared: &[Result<Prepared, Outcome>],
    ) -> Vec<Option<Given>> {
        let mut by_block: BTreeMap<BlockNo, Vec<usize>> = BTreeMap::new();
        for (index, prepared) in prepared.iter().enumerate() {
            if let Ok(prepared) = prepared {
                let block = self.counters.parts.counting.block_of(&prepared.line);
                by_block.entry(block).or_default().push(index);
            }
        }
        let ask = |indexes| self.counters_of(indexes, items, prepared);
        let mut all: Vec<Option<Given>> = Vec::new();
        all.resize_with(items.len(), || None);
        let mut asked = stream::iter(by_block.into_values()).map(ask).buffer_unordered(AT_ONCE);
        while let Some(some) = asked.next().await {
            for (index, given) in some {
                if let Some(place) = all.get_mut(index) {
                    *place = Some(given);
                }
            }
        }
        all
    }

    /// The same for items of one block, in their order.
    async fn counters_of(
        &self,
        indexes: Vec<usize>,
        items: &[Plain<'_>],
        prepared: &[Result<Prepared, Outcome>],
    ) -> Vec<(usize, Given)> {
        // Whoever holds the block holds it for all of them.
        let (mut given, mut held) = (Vec::with_capacity(indexes.len()), None);
        for index in indexes {
            let (Some(Ok(prepared)), Some(item)) = (prepared.get(index), items.get(index)) else {
                continue;
            };
            let one = match held {
                Some(why) => Err(NotSent::NotReserved(why)),
                None => self.counter_for(item, prepared).await,
            };
            if let Err(NotSent::NotReserved(why @ NotReserved::Held { .. })) = &one {
                held = Some(*why);
            }
            given.push((index, one));
        }
        given
    }

    async fn counter_for(&self, item: &Plain<'_>, prepared: &Prepared) -> Given {
        let (counter, epoch) = self.counters.allocate(&prepared.line, item.purpose).await?;
        // It is of a range that was reserved durably, on a line that the other site knows: see `counters`.
        Ok((FreshCounter::promise_never_used_under_this_key_and_title(counter), epoch))
    }

    /// Protects one, if what it was prepared with still holds.
    fn seal(
        &self,
        prepared: &Prepared,
        item: &Plain<'_>,
        (counter, epoch): (FreshCounter, Epoch),
        out: &mut Vec<u8>,
    ) -> Outcome {
        if !matches!(self.counters.epoch(), Ok(now) if now == epoch) {
            let why = NotSent::NotAllocated(NotAllocated::DoesNotWrite);
            return Outcome::refused(&why).about(prepared.title);
        }
        let block = self.reader.block_of(&prepared.title);
        let snapshot = self.reader.snapshot();
        let same = snapshot.table(block).is_none_or(|now| std::ptr::eq(now, &*prepared.table));
        if !same && !self.is_still_so(snapshot.table(block), item, prepared) {
            let why = "the meter or its keys were changed meanwhile: try again";
            return Outcome::of(Verdict::Unavailable).because(why).about(prepared.title);
        }
        keys::seal(prepared, item, counter, out)
    }

    /// Whether a meter's newer record names the same key.
    fn is_still_so(
        &self,
        table: Option<&crate::keyring::BlockTable>,
        item: &Plain<'_>,
        prepared: &Prepared,
    ) -> bool {
        let meter = table.and_then(|table| keys::find(table, prepared.title).ok());
        let wanted = (item.key_set, item.encryption_choice(), item.client);
        let line = meter.and_then(|meter| keys::line_of(&meter, &self.identities, wanted).ok());
        line == Some(prepared.line)
    }
}

impl Source for Transmitting {
    fn tell(&self, page: &mut Page) {
        self.figures.tell(page, self.counters.left());
    }
}

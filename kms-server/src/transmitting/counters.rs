//! Counters, given out: under the lock of a block's counters the line is looked up, a range reserved, the counter taken. The
//! peer is asked without it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{
    blocks::{BlockCounters, Blocks},
    past::{Past, Witness},
    refused::NotSent,
    remembered::Remembered,
    witnessing::Witnessing,
};
use crate::{
    keyring::{Counting, Reader, Roles, Writer},
    store::{
        ReadStore,
        counters::CounterStore,
        sites::{DivergenceAsked, Divergent},
    },
};
use kms_core::{
    BlockNo, Epoch, Position, Record, StoredRecord,
    audit::{AuditOutcome, AuditedCall, NodeId, Subject},
    block::BlockMark,
    counters::{
        Line, LineName,
        allocator::{Mark, NotAllocated, Purpose, Wish, Witnessed},
        mark::StoredMark,
    },
    moment::Moment,
    ports::{Clock, CounterMemory, CounterWitness, Replicated, ReplicationGate},
};

/// Rows of what was set aside that are looked at at once.
const PAGE: u32 = 500;
/// The most turns that a counter takes: reserved by another node, changed by another writer, asked of the peer.
const TURNS_MAX: usize = 8;
/// After a peer did not confirm a block, so long nobody asks it again of that one; of any, if it took as long.
const PEER_PAUSE: Duration = Duration::from_secs(1);

/// The parts that counters stand on.
pub(super) struct Parts {
    pub(super) counting: Arc<Counting>,
    pub(super) reader: Reader,
    pub(super) writer: Arc<Writer>,
    pub(super) roles: Arc<Roles>,
    pub(super) store: Arc<dyn CounterStore>,
    /// What was set aside here.
    pub(super) aside: Arc<dyn ReadStore>,
    pub(super) gate: Arc<dyn ReplicationGate>,
    pub(super) witness: Arc<dyn CounterWitness>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) node: NodeId,
    /// By configuration.
    pub(super) single_site: bool,
    pub(super) has_peer: bool,
    /// There are other servers of this site.
    pub(super) has_others: bool,
}

/// Gives counters out.
pub(super) struct Counters {
    pub(super) parts: Parts,
    pub(super) witnessing: Witnessing,
    pub(super) remembered: Remembered,
    blocks: Blocks,
    past: Past,
    /// The peer is not asked of any block before.
    not_before: Mutex<Moment>,
}

/// The peer's answer, as to the lines of a block.
#[derive(Default)]
struct Told {
    /// What it set aside is in our lines of this epoch.
    merged: bool,
    /// The epoch since which it has lost nothing of them.
    remembers: Option<Epoch>,
}

/// The next step towards a counter.
enum Step {
    /// It is there.
    Given(u32),
    /// Something changed: look again.
    Again,
    /// The peer is to say that it has this state of the block, and what it set aside, if this site may have forgotten
    /// lines.
    AskPeer { mark: BlockMark, forgotten: Option<Epoch> },
    /// Somebody outside the database is to say that no more was reserved than this mark says.
    Confirm(Mark),
    /// The other site is to know of this mark before it is used.
    Tell(Witnessed),
}

impl Counters {
    pub(super) fn new(parts: Parts, memory: Arc<dyn CounterMemory>) -> Self {
        let witnessing = Witnessing::new(parts.single_site);
        let blocks = Blocks::new(parts.node);
        let past = Past::new(Arc::clone(&parts.roles));
        let (remembered, not_before) = (Remembered::new(memory), Mutex::default());
        Self { parts, witnessing, remembered, blocks, past, not_before }
    }

    /// The epoch in which this site writes.
    pub(super) fn epoch(&self) -> Result<Epoch, NotSent> {
        // Also of a database that is behind the peer: that site writes nothing, and sends nothing.
        let standing = self.parts.roles.standing();
        let writes = standing.writes().then_some(standing.epoch);
        writes.ok_or(NotSent::NotAllocated(NotAllocated::DoesNotWrite))
    }

    /// The same for people, with what to do: a site that was put back is another case than one that follows.
    pub(super) fn where_else(&self, why: &NotSent) -> String {
        match self.parts.roles.put_back_sentence() {
            Some(sentence) => sentence.to_string(),
            None => format!("{why}: changes go to the primary site"),
        }
    }

    /// A counter of this line, which nobody was given before and nobody will be, and the epoch that it is of.
    pub(super) async fn allocate(
        &self,
        name: &LineName,
        purpose: Purpose,
    ) -> Result<(u32, Epoch), NotSent> {
        let block = self.parts.counting.block_of(name);
        let shared = self.blocks.of(block);
        for _ in 0..TURNS_MAX {
            let epoch = self.epoch()?;
            let step = {
                let mut counters = shared.lock().await;
                self.step(&mut counters, (name, purpose), epoch).await?
            };
            match step {
                Step::Given(counter) => return Ok((counter, epoch)),
                Step::Again => {}
                Step::Confirm(mark) => self.confirm(&shared, mark, epoch).await?,
                Step::Tell(mark) => self.tell(&shared, block, mark).await,
                Step::AskPeer { mark, forgotten } => {
                    let began = self.parts.clock.now();
                    let asked = self.ask_peer(mark, forgotten).await;
                    let mut counters = shared.lock().await;
                    match asked {
                        Ok(told) => {
                            counters.peers = counters.peers.max(Some(mark.position));
                            counters.merged = told.merged.then_some(epoch).or(counters.merged);
                            counters.remembers = counters.remembers.max(told.remembers);
                        }
                        Err(why) => {
                            let now = self.parts.clock.now();
                            counters.not_before = now + PEER_PAUSE;
                            if now >= began + PEER_PAUSE {
                                *self.not_before() = now + PEER_PAUSE;
                            }
                            return Err(why);
                        }
                    }
                }
            }
        }
        Err(NotSent::Busy)
    }

    /// Held for a comparison, never across an `.await`.
    fn not_before(&self) -> MutexGuard<'_, Moment> {
        self.not_before.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn step(
        &self,
        counters: &mut BlockCounters,
        (name, purpose): (&LineName, Purpose),
        epoch: Epoch,
    ) -> Result<Step, NotSent> {
        counters.allocator.stand(Some(epoch));
        let block = self.parts.counting.block_of(name);
        if counters.own_merged != Some(epoch) {
            self.merge_own(block, epoch).await?;
            counters.own_merged = Some(epoch);
        }
        let (line, position, mark) = self.line(counters, block, name).await?;
        if !self.is_known(counters, (position, mark), epoch).await? {
            let now = self.parts.clock.now();
            if now < counters.not_before || now < *self.not_before() {
                return Err(NotSent::NotReplicated);
            }
            let past = self.past.known(epoch).await?;
            let asks = counters.merged != Some(epoch)
                && past.is_to_be_asked(
                    self.parts.counting.domain(),
                    (block, counters.remembers),
                    position,
                );
            return Ok(Step::AskPeer { mark, forgotten: asks.then_some(epoch) });
        }
        counters.allocator.remember(self.remembered.of(block));
        if let Some(mark) = counters.untold {
            return Ok(Step::Tell(mark));
        }
        let wish = Wish { line: &line, proved: true, purpose };
        let now = self.parts.clock.now();
        match counters.allocator.allocate(now, &wish) {
            Ok(counter) => Ok(Step::Given(counter)),
            Err(NotAllocated::Reserve) => self.reserve(counters, block, now).await,
            Err(why) => Err(why.into()),
        }
    }

    /// The line as it is stored, where it was written, and the state of its block.
    async fn line(
        &self,
        counters: &mut BlockCounters,
        block: BlockNo,
        name: &LineName,
    ) -> Result<(Line, Position, BlockMark), NotSent> {
        let table = self.parts.reader.open(block).await;
        let table = table.map_err(|error| NotSent::Unavailable(error.to_string().into()))?;
        let is_new = counters.read.is_none_or(|read| read.position != table.position());
        if is_new {
            counters.take(self.parts.counting.lines(block).await?);
        }
        match (counters.lines.get(name), counters.read) {
            (Some((line, position)), Some(mark)) => Ok((*line, *position, mark)),
            _ if counters.damaged > 0 => Err(NotSent::may_be_damaged(block, counters.damaged)),
            _ => Err(NotAllocated::Undeclared.into()),
        }
    }

    /// Whether the peer knows the line as it is, so that it would go on above what is used of it.
    async fn is_known(
        &self,
        counters: &BlockCounters,
        (position, mark): (Position, BlockMark),
        epoch: Epoch,
    ) -> Result<bool, NotSent> {
        let Parts { single_site, has_peer, ref counting, .. } = self.parts;
        if !single_site && !has_peer {
            return Err(NotSent::NoPeer);
        }
        let (past, domain) = (self.past.known(epoch).await?, counting.domain());
        // What nobody else remembers is declared anew.
        let witness = match single_site {
            true => Witness::Nobody,
            false => Witness::Peer(counters.remembers),
        };
        let since = past.since(domain, mark.block, witness);
        if since.is_some_and(|since| position.epoch < since) {
            return Err(NotSent::Forgotten);
        }
        if single_site {
            return Ok(true);
        }
        let asked = (mark.block, counters.remembers);
        if counters.merged != Some(epoch) && past.is_to_be_asked(domain, asked, position) {
            return Ok(false);
        }
        Ok(counters.is_peers(position, epoch) || past.peer_had(domain, &mark, position))
    }

    /// Whether nobody who is there now knows which counters of the block's lines were used: this site was restored, and is a
    /// single one, or its peer was enrolled since, by its own word, too.
    pub(super) async fn is_forgotten(&self, block: BlockNo, epoch: Epoch) -> Result<bool, NotSent> {
        let Parts { single_site, ref counting, .. } = self.parts;
        self.past.look_again();
        let (past, domain) = (self.past.known(epoch).await?, counting.domain());
        if single_site {
            return Ok(past.since(domain, block, Witness::Nobody).is_some());
        }
        let told = self.blocks.of(block).lock().await.remembers;
        let is_forgotten =
            |remembers| past.since(domain, block, Witness::Peer(remembers)).is_some();
        if told.is_some() || is_forgotten(None) || past.forgotten(domain, block).is_none() {
            return Ok(is_forgotten(told));
        }
        let said = self.parts.witness.ask(Vec::new(), Some(block)).await;
        let remembers = said.and_then(|said| said.remembers_since);
        // Who does not answer remembers nothing.
        Ok(remembers.is_none() || is_forgotten(remembers))
    }

    /// A range behind what is stored, or an expired one anew.
    async fn reserve(
        &self,
        counters: &mut BlockCounters,
        block: BlockNo,
        now: Moment,
    ) -> Result<Step, NotSent> {
        let Parts { store, counting, .. } = &self.parts;
        self.witnessing.tell(counters, block, counting.began_here(self.epoch()?));
        // A range that could not be remembered is burnt, and no other one before it can.
        if let Some(mark) = counters.unkept {
            self.remembered.keep(vec![(block, mark)]).await?;
            counters.unkept = None;
        }
        let stored = store.counter_mark(block).await?;
        if let Some(stored) = &stored {
            counting.check(stored).await?;
        }
        let found = stored.map(|stored| stored.mark);
        let goes_on = found.is_some_and(|mark| counters.allocator.goes_on(now, &mark));
        let mark = counters.allocator.reserve(now, found.as_ref())?;
        let confirmed = counters.confirmed.take();
        let is_doubtful = |found: &Mark| {
            !goes_on && confirmed != Some(*found) && self.is_doubtful(counters, found)
        };
        if let Some(found) = found.filter(is_doubtful) {
            counters.allocator.withdraw();
            return Ok(Step::Confirm(found));
        }
        let sealed = counting.seal(mark).await?;
        match self.store_mark(counters, stored.as_ref(), &sealed).await {
            Ok(true) => {
                counters.allocator.reserved(&mark);
                self.witnessing.note(block, Witnessed::from(&mark));
                let rises = found.map(|found| found.end) < Some(mark.end);
                let is_told = self.parts.has_others && self.parts.has_peer && rises;
                counters.untold = is_told.then_some(Witnessed::from(&mark));
            }
            Ok(false) => counters.allocator.let_go(),
            // It may be there all the same: what was asked for is burnt.
            Err(error) => {
                counters.allocator.let_go();
                return Err(error);
            }
        }
        Ok(Step::Again)
    }

    /// Stores a mark, and has this server remember it outside the database. False: another one is there.
    async fn store_mark(
        &self,
        counters: &mut BlockCounters,
        expected: Option<&StoredMark>,
        sealed: &StoredMark,
    ) -> Result<bool, NotSent> {
        if !self.parts.store.put_counter_mark(expected, sealed).await? {
            return Ok(false);
        }
        let mark = Witnessed::from(&sealed.mark);
        counters.unkept = Some(mark);
        self.remembered.keep(vec![(sealed.mark.block, mark)]).await?;
        counters.unkept = None;
        Ok(true)
    }

    /// Has the peer say that it has this state of a block, and what it set aside of it, if this site was restored.
    async fn ask_peer(&self, mark: BlockMark, forgotten: Option<Epoch>) -> Result<Told, NotSent> {
        match self.parts.gate.replicated(&[mark]).await {
            Replicated::Yes => {}
            Replicated::No => return Err(NotSent::NotReplicated),
            Replicated::NotApplicable => return Err(NotSent::NoPeer),
        }
        let Some(epoch) = forgotten else { return Ok(Told::default()) };
        let said = self.parts.witness.ask(Vec::new(), Some(mark.block)).await;
        let said = said.ok_or(NotSent::NotReplicated)?;
        // A release that does not say since when it remembers is no witness.
        let remembers = Some(said.remembers_since.ok_or(NotSent::NotReplicated)?);
        // One that was enrolled meanwhile is nobody to ask.
        self.past.look_again();
        let (past, domain) = (self.past.known(epoch).await?, self.parts.counting.domain());
        if past.witnessed(domain, mark.block, remembers).is_none() {
            return Ok(Told { merged: false, remembers });
        }
        let since = past.since(domain, mark.block, Witness::Peer(remembers)).unwrap_or_default();
        let all = [said.set_aside, self.set_aside_here(mark.block).await?].concat();
        let lines = written_since(all, since);
        let lines = self.parts.counting.authentic(mark.block, &lines).await?;
        self.merge(mark.block, &lines, Some(since)).await?;
        Ok(Told { merged: true, remembers })
    }

    /// Brings lines that were set aside here, when this site followed, into ours: the site that was to raise them may be
    /// lost. Those from before an epoch that began without lines wait for what the peer says of that time.
    async fn merge_own(&self, block: BlockNo, epoch: Epoch) -> Result<(), NotSent> {
        let past = self.past.known(epoch).await?;
        let forgotten = past.forgotten(self.parts.counting.domain(), block).unwrap_or_default();
        let records = written_since(self.set_aside_here(block).await?, forgotten);
        if records.is_empty() {
            return Ok(());
        }
        let lines = self.parts.counting.authentic(block, &records).await?;
        self.merge(block, &lines, None).await
    }

    /// Lines of a block that were set aside here.
    async fn set_aside_here(&self, block: BlockNo) -> Result<Vec<StoredRecord>, NotSent> {
        let (mut after, mut records) = (None, Vec::new());
        loop {
            let asked =
                DivergenceAsked { after, block: Some(block), undecided: false, limit: PAGE };
            let page = self.parts.aside.divergence(asked).await?;
            after = page.last().map(Divergent::name);
            let is_last = page.len() < PAGE as usize;
            records.extend(page.into_iter().map(|one| one.record).filter(|it| !it.key.is_meter()));
            if is_last {
                return Ok(records);
            }
        }
    }

    /// Brings lines that were set aside into ours, by maximum. `anew`: and writes all others as they are, so that they
    /// count in this epoch whoever the peer is later; but for those that were written before this epoch, of which nobody
    /// knows whether they were raised.
    async fn merge(
        &self,
        block: BlockNo,
        set_aside: &[Line],
        anew: Option<Epoch>,
    ) -> Result<(), NotSent> {
        let mut changes = self.parts.writer.change(&[block]).await?;
        let Some(change) = changes.first_mut() else { return Ok(()) };
        if let Some(since) = anew {
            let mut lines = change.lines();
            lines.retain(|(_, at)| at.epoch >= since);
            lines.into_iter().for_each(|(line, _)| change.put(Record::Line(line)));
        }
        for line in set_aside {
            let ours = change.line(&line.name)?;
            let merged = ours.map_or(*line, |ours| ours.merged(line));
            if ours != Some(merged) {
                change.put(Record::Line(merged));
            }
        }
        if change.is_empty() {
            return Ok(());
        }
        let call = AuditedCall::new("kms-server", "Counters/Merge");
        let subject = Subject { block: Some(block), ..Subject::NONE };
        let entry = call.entry(self.parts.clock.unix_ms(), subject, AuditOutcome::Done);
        self.parts.writer.commit(changes, vec![entry]).await?;
        Ok(())
    }

    /// The holder of a line's block was asked for counters, or has served.
    pub(super) async fn heard(&self, name: &LineName, holder: NodeId, serves: bool) {
        let shared = self.blocks.of(self.parts.counting.block_of(name));
        let now = self.parts.clock.now();
        shared.lock().await.allocator.heard(now, holder, serves);
    }

    /// The holder of a line's block is asked for counters.
    pub(super) async fn asks(&self, name: &LineName, holder: NodeId) {
        let shared = self.blocks.of(self.parts.counting.block_of(name));
        shared.lock().await.allocator.asks(holder);
    }

    /// Gives back what this node holds, for one that stops in order: another one need not wait.
    pub(super) async fn give_back(&self) {
        for (block, shared) in self.blocks.all() {
            let mut counters = shared.lock().await;
            if !counters.allocator.holds(self.parts.clock.now()) {
                continue;
            }
            if let Err(error) = self.give_one_back(&mut counters, block).await {
                tracing::debug!(%error, block = block.0, "a range of counters was not given back");
                return;
            }
        }
    }

    async fn give_one_back(
        &self,
        counters: &mut BlockCounters,
        block: BlockNo,
    ) -> Result<(), NotSent> {
        let Parts { store, counting, .. } = &self.parts;
        let Some(stored) = store.counter_mark(block).await? else { return Ok(()) };
        counting.check(&stored).await?;
        let Some(mark) = counters.allocator.give_back(&stored.mark) else { return Ok(()) };
        let sealed = counting.seal(mark).await?;
        let _ = store.put_counter_mark(Some(&stored), &sealed).await?;
        Ok(())
    }

    /// The fewest counters that are left to a line of the blocks that this node transmits for; `None`: there is none.
    pub(super) fn left(&self) -> Option<u32> {
        let all = self.blocks.all();
        let left = all.iter().filter_map(|(_, shared)| {
            // One that is busy is looked at the next time.
            let counters = shared.try_lock().ok()?;
            counters.lines.keys().map(|name| counters.allocator.left(name)).min()
        });
        left.min()
    }
}

/// Of records that were set aside, those that were written in this epoch or later: what is older may have been raised
/// since, and would count as known if it were written anew.
fn written_since(mut records: Vec<StoredRecord>, since: Epoch) -> Vec<StoredRecord> {
    records.retain(|record| record.position.epoch >= since);
    records
}

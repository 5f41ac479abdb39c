//! What meters show, taken into their records: heard while a batch is opened, where nothing may wait, and written a moment
//! later by a task of its own.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::sleep};

use crate::lifecycle::{
    error::LifecycleError,
    verbs::{Lifecycle, TRIES},
};
use kms_core::{
    BlockNo, Record, RecordKey, SystemTitle,
    audit::{AuditEntry, AuditOutcome, AuditedCall, Detail, Subject},
    life::evidence::{Proved, Shown, show},
    ports::{EvidenceCourier, EvidenceSink, MetersMessage},
};

/// What waits to be written: a meter whose evidence finds no room shows it again with its next message.
const WAITING_MAX: usize = 65_536;
/// Bytes of the messages among it, which another site may be handed.
const WAITING_BYTES_MAX: usize = 16 << 20;
/// The pause after a round that wrote nothing: the database or the token may be away, or this site does not write.
const PAUSE: Duration = Duration::from_secs(1);
/// What comes together is written together.
const GATHER: Duration = Duration::from_millis(20);
/// Meters of one commit.
const AT_ONCE: usize = 256;

/// Evidence that waits to be written.
#[derive(Debug, Default)]
pub struct Evidence {
    /// A std lock: held for an insertion.
    waiting: Mutex<Waiting>,
    came: Notify,
}

/// What a meter has shown.
type One = (SystemTitle, Shown);

#[derive(Debug, Default)]
struct Waiting {
    /// Each with the message that shows it; empty: none that may be handed on.
    all: BTreeMap<One, Box<[u8]>>,
    /// Of the messages.
    bytes: usize,
    /// The last one that was taken: all others have their turn before it comes again.
    last: Option<One>,
}

impl Waiting {
    /// Whether it is news, and there was room.
    fn put(&mut self, one: One, apdu: &[u8]) -> bool {
        let fits = apdu.len() <= MetersMessage::LEN_MAX
            && self.bytes.saturating_add(apdu.len()) <= WAITING_BYTES_MAX;
        let apdu = if fits { apdu } else { &[] };
        match self.all.get(&one) {
            // A later message may be handed on where the first one could not.
            Some(known) if known.is_empty() && !apdu.is_empty() => {}
            None if self.all.len() < WAITING_MAX => {}
            _ => return false,
        }
        self.bytes += apdu.len();
        self.all.insert(one, apdu.into());
        true
    }

    fn take(&mut self, most: usize) -> Vec<(One, Box<[u8]>)> {
        let behind = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let all = self.all.range((behind, Bound::Unbounded)).chain(self.all.iter());
        let some: Vec<One> = all.map(|(one, _)| *one).take(most).collect();
        self.last = some.last().copied();
        let taken = some.into_iter().filter_map(|one| Some((one, self.all.remove(&one)?)));
        let taken: Vec<_> = taken.collect();
        self.bytes -= taken.iter().map(|(_, apdu)| apdu.len()).sum::<usize>();
        taken
    }
}

impl EvidenceSink for Evidence {
    fn shown(&self, title: &SystemTitle, shown: &Shown, apdu: &[u8]) {
        if self.waiting().put((*title, *shown), apdu) {
            self.came.notify_one();
        }
    }
}

impl Evidence {
    /// Takes some of what waits: whoever has it writes it, or it is gone until the meter's next message.
    pub fn take(&self, most: usize) -> Vec<(SystemTitle, Shown)> {
        self.waiting().take(most).into_iter().map(|(one, _)| one).collect()
    }

    fn put_back(&self, some: Vec<(One, Box<[u8]>)>) {
        let mut waiting = self.waiting();
        for (one, apdu) in some {
            waiting.put(one, &apdu);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lifecycle {
    /// Runs until the process ends: writes what meters have shown. Where this site does not write, `courier` brings it to
    /// the one that does.
    pub async fn take_evidence(
        self: Arc<Self>,
        evidence: Arc<Evidence>,
        courier: Arc<dyn EvidenceCourier>,
    ) {
        loop {
            let some = evidence.waiting().take(AT_ONCE);
            if some.is_empty() {
                evidence.came.notified().await;
                sleep(GATHER).await;
                continue;
            }
            let left = match self.writer.check_writes() {
                Ok(()) => self.write_shown(some).await,
                Err(_) => hand_over(&*courier, some).await,
            };
            if !left.is_empty() {
                evidence.put_back(left);
                sleep(PAUSE).await;
            }
        }
    }

    /// Writes these, by block, so that one that can't be read keeps none of the others waiting. What is left was not.
    async fn write_shown(&self, some: Vec<(One, Box<[u8]>)>) -> Vec<(One, Box<[u8]>)> {
        let mut all: BTreeMap<One, Box<[u8]>> = some.into_iter().collect();
        let shown: Vec<One> = all.keys().copied().collect();
        for (_, some) in self.by_block(&shown) {
            match self.take_shown(&some).await {
                Ok(_) => all.retain(|one, _| !some.contains(one)),
                Err(error) => tracing::debug!(%error, "what meters have shown is not written yet"),
            }
        }
        all.into_iter().collect()
    }

    fn by_block(
        &self,
        shown: &[(SystemTitle, Shown)],
    ) -> BTreeMap<BlockNo, Vec<(SystemTitle, Shown)>> {
        let mut by_block: BTreeMap<BlockNo, Vec<(SystemTitle, Shown)>> = BTreeMap::new();
        for (title, shown) in shown {
            by_block.entry(self.records.block_of(title)).or_default().push((*title, *shown));
        }
        by_block
    }

    /// Takes what these meters have shown into their records: what it proved.
    pub async fn take_shown(
        &self,
        shown: &[(SystemTitle, Shown)],
    ) -> Result<Vec<(SystemTitle, Proved)>, LifecycleError> {
        for attempt in 0..TRIES {
            match self.take_shown_once(shown).await {
                Err(LifecycleError::Busy) => self.step_back(attempt).await,
                done => return done,
            }
        }
        Err(LifecycleError::Busy)
    }

    async fn take_shown_once(
        &self,
        shown: &[(SystemTitle, Shown)],
    ) -> Result<Vec<(SystemTitle, Proved)>, LifecycleError> {
        self.writer.check_writes()?;
        let mut by_block = self.by_block(shown);
        let keys =
            shown.iter().map(|(title, _)| (self.records.block_of(title), RecordKey::meter(title)));
        let mut changes = self.writer.change_records(keys).await?;
        let (mut entries, mut proved) = (Vec::new(), Vec::new());
        let now_ms = self.clock.unix_ms();
        for change in &mut changes {
            let block = change.block();
            for (title, shown) in by_block.remove(&block).unwrap_or_default() {
                // One that can't be read shows nothing, and keeps none of the others waiting.
                let Ok(Some(Record::Meter(mut meter))) = change.record(&title) else { continue };
                let news = show(&mut meter, &shown, &self.config.times, now_ms);
                if news.is_empty() {
                    continue;
                }
                let subject = Subject {
                    system_title: Some(title),
                    block: Some(block),
                    ..Subject::meter(&meter.meter_id)
                };
                entries.extend(news.iter().map(|it| entry(now_ms, subject.clone(), it)));
                proved.extend(news.into_iter().map(|it| (title, it)));
                meter.changed_by = meter.changed_by.next(now_ms);
                change.put(Record::Meter(meter));
            }
        }
        self.writer.commit(changes, entries).await?;
        Ok(proved)
    }
}

/// Hands over the messages of these. What is left waits: it has none, or it was not taken.
async fn hand_over(
    courier: &dyn EvidenceCourier,
    some: Vec<(One, Box<[u8]>)>,
) -> Vec<(One, Box<[u8]>)> {
    let (messages, mut left): (Vec<_>, Vec<_>) =
        some.into_iter().partition(|(_, apdu)| !apdu.is_empty());
    let mut is_there = true;
    for some in messages.chunks(MetersMessage::AT_ONCE) {
        let message = |((title, _), apdu): &(One, Box<[u8]>)| MetersMessage {
            title: *title,
            apdu: apdu.clone(),
        };
        // One that is away is not asked for each of them.
        is_there = is_there && courier.hand(some.iter().map(message).collect()).await;
        if !is_there {
            left.extend_from_slice(some);
        }
    }
    left
}

/// The service's own word for it: nobody called.
fn entry(now_ms: u64, subject: Subject, proved: &Proved) -> AuditEntry {
    let call = AuditedCall::new("kms-server", "Rotation/Proved");
    call.entry(now_ms, subject, AuditOutcome::Done)
        .with(Detail::KeyKind, proved.place.kind as u64)
        .with(Detail::SecuritySetup, proved.place.setup.0.into())
        .with(Detail::KeyVersion, proved.version.into())
        .with(Detail::StateReason, proved.reason as u64)
}

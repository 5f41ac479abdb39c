//! What meters show, taken into their records: heard while a batch is opened, where nothing may wait, and written a moment
//! later by a task of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::{Arc, Mutex, PoisonError},
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
    ports::EvidenceSink,
};

/// What waits to be written: a meter whose evidence finds no room shows it again with its next message.
const WAITING_MAX: usize = 65_536;
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

#[derive(Debug, Default)]
struct Waiting {
    all: BTreeSet<(SystemTitle, Shown)>,
    /// The last one that was taken: all others have their turn before it comes again.
    last: Option<(SystemTitle, Shown)>,
}

impl EvidenceSink for Evidence {
    fn shown(&self, title: &SystemTitle, shown: &Shown, _apdu: &[u8]) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.all.len() < WAITING_MAX && waiting.all.insert((*title, *shown)) {
            self.came.notify_one();
        }
    }
}

impl Evidence {
    /// Takes some of what waits: whoever has it writes it, or it is gone until the meter's next message.
    pub fn take(&self, most: usize) -> Vec<(SystemTitle, Shown)> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let Waiting { all, last } = &mut *waiting;
        let behind = last.map_or(Bound::Unbounded, Bound::Excluded);
        let some: Vec<_> =
            all.range((behind, Bound::Unbounded)).chain(all.iter()).take(most).copied().collect();
        *last = some.last().copied();
        let some: Vec<_> = some.into_iter().filter(|one| all.remove(one)).collect();
        some
    }

    fn put_back(&self, some: Vec<(SystemTitle, Shown)>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let room = WAITING_MAX.saturating_sub(waiting.all.len());
        waiting.all.extend(some.into_iter().take(room));
    }
}

impl Lifecycle {
    /// Runs until the process ends: writes what meters have shown.
    pub async fn take_evidence(self: Arc<Self>, evidence: Arc<Evidence>) {
        loop {
            let some = evidence.take(AT_ONCE);
            if some.is_empty() {
                evidence.came.notified().await;
                sleep(GATHER).await;
                continue;
            }
            // By block, so that one that can't be read keeps none of the others waiting.
            let mut failed = Vec::new();
            for (_, some) in self.by_block(&some) {
                if let Err(error) = self.take_shown(&some).await {
                    tracing::debug!(%error, "what meters have shown is not written yet");
                    failed.extend(some);
                }
            }
            if !failed.is_empty() {
                evidence.put_back(failed);
                sleep(PAUSE).await;
            }
        }
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

/// The service's own word for it: nobody called.
fn entry(now_ms: u64, subject: Subject, proved: &Proved) -> AuditEntry {
    let call = AuditedCall::new("kms-server", "Rotation/Proved");
    call.entry(now_ms, subject, AuditOutcome::Done)
        .with(Detail::KeyKind, proved.place.kind as u64)
        .with(Detail::SecuritySetup, proved.place.setup.0.into())
        .with(Detail::KeyVersion, proved.version.into())
        .with(Detail::StateReason, proved.reason as u64)
}

//! What one site wrote alone, when the other was promoted: shown beside what stands, taken in from the site that has it,
//! and decided about. What is written for a decision is an ordinary change of the site that writes; the record that was
//! set aside stays where it is, with who decided and when.

use super::{
    error::LifecycleError,
    refusal::{Refusal, refusal},
    verbs::{Lifecycle, TRIES},
};
use crate::{
    keyring::{Change, KeyringError},
    store::{
        StoreError,
        sites::{Decided, DivergenceAsked, Divergent, DivergentName, Resolution},
    },
};
use kms_core::{
    BlockNo, MeterId, Record, RecordMac, RefusalCode, StoredRecord,
    audit::{AuditEntry, AuditOutcome, AuditedCall, Detail, Subject},
    block::{
        BlockMark,
        reconciling::{
            Decision, Differences, NotReconciled, Parting, at_contact, differences, reconcile,
        },
    },
    fact::FILES_A_BLOCK,
};

/// Rows that are read at once.
const PAGE: u32 = 256;
/// Records that one call decides about by a rule.
pub const DECIDED_MAX: usize = 1_000;
/// Records that are taken in from the other site and wait for a decision.
const REPORTED_MAX: u64 = 1_000_000;
/// The same from one read-only replica. Each site has room of its own: none can take another one's.
const OF_A_REPLICA_MAX: u64 = 10_000;

/// A record that was set aside, beside what stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aside {
    /// The row.
    pub divergent: Divergent,
    /// What it says; `None`: it can't be read, or is not authentic.
    pub record: Option<Record>,
    /// What differs from the record that stands.
    pub differences: Differences,
}

/// The name of a record that was set aside, for people: its block and its MAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsideId {
    /// Its block.
    pub block: BlockNo,
    /// Its MAC.
    pub mac: RecordMac,
}

/// A page of what was set aside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AsidePage {
    /// In order of their names.
    pub rows: Vec<Aside>,
    /// Where the next one starts; `None`: this was the last.
    pub next: Option<DivergentName>,
    /// How many wait for a decision, on all pages.
    pub undecided: u64,
}

/// The records that are decided about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// One.
    One(AsideId),
    /// All that are this, beside what stands; `None`: all.
    Rule(Option<Parting>),
}

/// The outcome of decisions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Records that were decided about.
    pub decided: u32,
    /// Of meters or lines, records that changed by it.
    pub changed: u32,
    /// Those that were not decided about.
    pub left: Vec<(AsideId, Refusal)>,
    /// There may be more of them.
    pub more: bool,
    /// The states of the blocks that changed.
    pub states: Vec<BlockMark>,
}

impl Divergent {
    /// Its name for people.
    pub fn id(&self) -> AsideId {
        AsideId { block: self.block, mac: self.record.mac }
    }
}

impl Lifecycle {
    /// Records that were set aside, each beside what stands.
    pub async fn divergence(&self, asked: DivergenceAsked) -> Result<AsidePage, LifecycleError> {
        let more = DivergenceAsked { limit: asked.limit.saturating_add(1), ..asked };
        let mut rows = self.store.divergence(more).await?;
        let is_more = rows.len() > asked.limit as usize;
        rows.truncate(asked.limit as usize);
        let next = rows.last().filter(|_| is_more).map(Divergent::name);
        let undecided = self.store.count_undecided().await?;
        Ok(AsidePage { rows: self.beside(rows).await?, next, undecided })
    }

    /// The record of this id; none if there is no such one.
    pub async fn set_aside(&self, id: AsideId) -> Result<Vec<Aside>, LifecycleError> {
        let rows = self.rows_of(id).await?;
        self.beside(rows).await
    }

    async fn rows_of(&self, id: AsideId) -> Result<Vec<Divergent>, LifecycleError> {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let asked =
                DivergenceAsked { block: Some(id.block), after, ..DivergenceAsked::first(PAGE) };
            let page = self.store.divergence(asked).await?;
            after = page.last().map(Divergent::name);
            let is_last = page.len() < PAGE as usize;
            found.extend(page.into_iter().filter(|row| row.id() == id));
            if is_last {
                return Ok(found);
            }
        }
    }

    /// Each row beside what stands. A block that can't be read takes nothing else with it.
    async fn beside(&self, rows: Vec<Divergent>) -> Result<Vec<Aside>, LifecycleError> {
        let mut all = Vec::with_capacity(rows.len());
        for of_block in rows.chunk_by(|a, b| a.block == b.block) {
            let Some(block) = of_block.first().map(|row| row.block) else { continue };
            let records: Vec<StoredRecord> =
                of_block.iter().map(|row| row.record.clone()).collect();
            let both = match self.records.has_block(block) {
                true => self.records.beside(block, &records).await,
                false => Ok(vec![(None, None); records.len()]),
            };
            let both = match both {
                Ok(both) => both,
                Err(error) if error.is_transient() => return Err(error.into()),
                Err(_) => vec![(None, None); records.len()],
            };
            for (row, (record, stands)) in of_block.iter().zip(both) {
                let differences = differences(record.as_ref(), stands.as_ref());
                all.push(Aside { divergent: row.clone(), record, differences });
            }
        }
        Ok(all)
    }

    /// Decides about records that were set aside; those that were decided about already stay as they are. What was done
    /// is in the audit log as `call`, record by record.
    pub async fn reconcile(
        &self,
        call: &AuditedCall,
        which: Which,
        decision: Decision,
    ) -> Result<Reconciled, LifecycleError> {
        let mut done = Reconciled::default();
        let mut after = None;
        loop {
            let rows = match which {
                Which::One(id) => self.rows_of(id).await?,
                Which::Rule(_) => self.store.divergence(DivergenceAsked::open(after, PAGE)).await?,
            };
            after = rows.last().map(Divergent::name);
            let is_last = matches!(which, Which::One(_)) || rows.len() < PAGE as usize;
            if rows.is_empty() && matches!(which, Which::One(_)) {
                let reason =
                    "no record of this id was set aside: see `ami-tool site divergence list`";
                return Err(LifecycleError::Refused(refusal(RefusalCode::NotSetAside, reason)));
            }
            for aside in self.beside(rows).await? {
                let is_meant = match which {
                    Which::One(_) | Which::Rule(None) => true,
                    Which::Rule(Some(parting)) => parting == aside.differences.parting,
                };
                if !is_meant || aside.divergent.decided.is_some() {
                    continue;
                }
                if done.decided as usize + done.left.len() >= DECIDED_MAX {
                    done.more = true;
                    return Ok(done);
                }
                self.decide(call, aside, decision, &mut done).await?;
            }
            if is_last {
                return Ok(done);
            }
        }
    }

    async fn decide(
        &self,
        call: &AuditedCall,
        aside: Aside,
        decision: Decision,
        done: &mut Reconciled,
    ) -> Result<(), LifecycleError> {
        let id = aside.divergent.id();
        for attempt in 0..TRIES {
            match self.decide_once(call, &aside, decision).await {
                Ok(Ok(states)) => {
                    done.decided += 1;
                    done.changed += u32::from(!states.is_empty());
                    done.states.extend(states);
                    return Ok(());
                }
                Ok(Err(refusal)) => {
                    done.left.push((id, refusal));
                    return Ok(());
                }
                Err(LifecycleError::Busy) => self.step_back(attempt).await,
                // A block that can't be read keeps nobody from deciding about others.
                Err(LifecycleError::Damaged { reason }) => {
                    done.left.push((id, refusal(RefusalCode::MeterDamaged, reason)));
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Err(LifecycleError::Busy)
    }

    async fn decide_once(
        &self,
        call: &AuditedCall,
        aside: &Aside,
        decision: Decision,
    ) -> Result<Result<Vec<BlockMark>, Refusal>, LifecycleError> {
        let now_ms = self.clock.unix_ms();
        let Aside { divergent, record, .. } = aside;
        let subject = subject_of(divergent, record.as_ref());
        let entry = || call.entry(now_ms, subject.clone(), AuditOutcome::Done);
        let states = match (record, decision) {
            // Nothing of it can be used, at whichever site: that it is known of stays.
            (None, Decision::Discard) => Vec::new(),
            (None, Decision::Accept) => return Ok(Err(unreadable())),
            (Some(record), _) => {
                self.writer.check_writes()?;
                match self
                    .write(divergent, entry(), |stands| reconcile(record, stands, decision, now_ms))
                    .await?
                {
                    Ok(states) => states,
                    Err(refusal) => return Ok(Err(refusal)),
                }
            }
        };
        let resolution = match decision {
            Decision::Accept => Resolution::Merged,
            Decision::Discard => Resolution::Discarded,
        };
        let by = call.caller.as_str().to_owned();
        let decided = Some(Decided { resolution, at_ms: now_ms, by });
        let row = Divergent { decided, ..divergent.clone() };
        let entry = entry().with(Detail::Resolution, resolution as u64);
        self.writer.keep_divergence(vec![row], entry).await?;
        Ok(Ok(states))
    }

    /// Writes what is made of the record that stands, if anything is.
    async fn write(
        &self,
        divergent: &Divergent,
        entry: AuditEntry,
        make: impl FnOnce(Option<&Record>) -> Result<Option<Record>, NotReconciled>,
    ) -> Result<Result<Vec<BlockMark>, Refusal>, LifecycleError> {
        let mut changes = self.writer.change(&[divergent.block]).await?;
        let missing = || LifecycleError::OurFault { reason: "a block has no change".to_owned() };
        let change: &mut Change = changes.first_mut().ok_or_else(missing)?;
        if !change.is_authentic(&divergent.record) {
            return Ok(Err(unreadable()));
        }
        let stands = change.stands(&divergent.record.key)?;
        let made = match make(stands.as_ref()) {
            Ok(Some(made)) => made,
            Ok(None) => return Ok(Ok(Vec::new())),
            Err(why) => return Ok(Err(of_core(why))),
        };
        let id = match &made {
            Record::Meter(meter) => Some(meter.meter_id.clone()),
            Record::Tombstone(_) | Record::Line(_) | Record::Fact(_) => None,
        };
        change.put(made);
        match self.writer.commit(changes, vec![entry.with(Detail::Updated, 1)]).await {
            Ok(states) => Ok(Ok(states)),
            Err(KeyringError::Store(StoreError::Taken { .. })) => Ok(Err(taken(id))),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes in what the other site wrote alone. Keys of it that are compromised or destroyed are withdrawn, counter lines
    /// rise, and the rest waits for people. What is known of each: a decision, nothing yet, or the reason why it is not
    /// taken.
    pub async fn take_report(
        &self,
        call: &AuditedCall,
        reported: Vec<Divergent>,
        is_replica: bool,
    ) -> Result<Vec<Result<Option<Decided>, String>>, LifecycleError> {
        let most = if is_replica { OF_A_REPLICA_MAX } else { REPORTED_MAX };
        self.writer.check_writes()?;
        let mut answers = Vec::with_capacity(reported.len());
        for divergent in reported {
            answers.push(match self.take_reported(call, divergent, most).await {
                // A block that can't be read keeps no other record from being told.
                Err(LifecycleError::Damaged { reason }) => Err(reason),
                answer => answer?,
            });
        }
        Ok(answers)
    }

    async fn take_reported(
        &self,
        call: &AuditedCall,
        divergent: Divergent,
        most: u64,
    ) -> Result<Result<Option<Decided>, String>, LifecycleError> {
        if !self.records.has_block(divergent.block) {
            return Ok(Err("there is no such block".to_owned()));
        }
        let rows = self.rows_of(divergent.id()).await?;
        if let Some(known) = rows.into_iter().find(|row| row.record == divergent.record) {
            return Ok(Ok(known.decided));
        }
        let changes = self.writer.change(&[divergent.block]).await?;
        let Some(change) = changes.first() else { return Ok(Err("no such block".to_owned())) };
        if !change.is_authentic(&divergent.record) {
            return Ok(Err("it is not what a site of this domain wrote".to_owned()));
        }
        if change.is_stored(&divergent.record) {
            return Ok(Err("it stands here as it is".to_owned()));
        }
        let record = Record::decode(&divergent.record.body).ok();
        // Facts merge without a decision, so nothing else bounds what a site can have this one remember.
        if let Some(Record::Fact(fact)) = &record
            && change.fact(&fact.name()).is_none()
            && change.facts(fact.name().kind) >= FILES_A_BLOCK
        {
            let full = format!(
                "its block remembers {FILES_A_BLOCK} facts of its kind, and that is the most"
            );
            return Ok(Err(full));
        }
        drop(changes);
        let site = &divergent.site;
        if self.store.count_undecided_of(site).await? >= most {
            let many = format!("{most} records of site {site} wait for a decision already");
            return Ok(Err(many));
        }
        let now_ms = self.clock.unix_ms();
        let subject = subject_of(&divergent, record.as_ref());
        let entry = || call.entry(now_ms, subject.clone(), AuditOutcome::Done);
        if let Some(record) = &record {
            for attempt in 0..TRIES {
                let made = self
                    .write(&divergent, entry(), |stands| Ok(at_contact(record, stands, now_ms)));
                match made.await {
                    Ok(Ok(_)) => break,
                    Ok(Err(refusal)) => return Ok(Err(refusal.reason)),
                    Err(LifecycleError::Busy) if attempt + 1 < TRIES => {
                        self.step_back(attempt).await;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        if matches!(record, Some(Record::Fact(_))) {
            // It has merged by rule, and nobody has to decide. It leaves no row: decided ones are not counted, and a site
            // could tell any number of states of one fact. Told again, it merges into itself.
            let by = call.caller.as_str().to_owned();
            return Ok(Ok(Some(Decided { resolution: Resolution::Merged, at_ms: now_ms, by })));
        }
        let row = Divergent { decided: None, ..divergent };
        self.writer.keep_divergence(vec![row], entry().with(Detail::SetAside, 1)).await?;
        Ok(Ok(None))
    }
}

fn subject_of(divergent: &Divergent, record: Option<&Record>) -> Subject {
    let meter_id = match record {
        Some(Record::Meter(meter)) => Some(meter.meter_id.clone()),
        Some(Record::Tombstone(tombstone)) => tombstone.meter_id.clone(),
        Some(Record::Line(_) | Record::Fact(_)) | None => None,
    };
    let key = divergent.record.key;
    let system_title = key.system_title().filter(|_| key.is_meter());
    Subject { meter_id, system_title, block: Some(divergent.block) }
}

fn unreadable() -> Refusal {
    refusal(
        RefusalCode::NotReadable,
        "the record can't be read: it was changed outside this service, or a later release wrote it. Discard it, or \
         keep it until that release is here",
    )
}

fn taken(id: Option<MeterId>) -> Refusal {
    let id = id.map_or_else(String::new, |id| format!(" {id}"));
    refusal(
        RefusalCode::MeterIdTaken,
        format!(
            "meter id{id} belongs to another title here: delete that one, or leave this undecided"
        ),
    )
}

fn of_core(why: NotReconciled) -> Refusal {
    let code = match why {
        NotReconciled::TooManyVersions(..) => RefusalCode::TooManyVersions,
        NotReconciled::OtherMeter => RefusalCode::SystemTitleTaken,
        NotReconciled::OtherKind => RefusalCode::MeterDamaged,
    };
    refusal(code, why.to_string())
}

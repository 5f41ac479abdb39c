//! Importing: many lines, one commit.

use std::collections::{BTreeMap, HashMap};

use super::{
    ImportResult, ImportRules, Imported, KeyValue, Lifecycle, LifecycleError, NewKey, NewMeter,
    Refusal, SealedFile, TRIES,
    checks::{self, Form, protection_of, refusal},
    merging::{self, Arrival},
    values::Values,
};
use crate::{
    keyring::{Change, Found, KeyringError},
    store::StoreError,
};
use kms_core::{
    BlockNo, ChangeMark, Fingerprint, KeyId, KeyKind, MeterId, MeterRecord, Record, SystemTitle,
    audit::{AuditEntry, AuditOutcome, AuditedCall, Detail, Subject},
};

/// A line that is under way.
pub(super) struct Line {
    pub(super) meter: Option<NewMeter>,
    pub(super) result: Option<ImportResult>,
    pub(super) subject: Subject,
    keys_added: usize,
    /// GUEK and KEK values that it added, for the search for other meters that have them.
    pub(super) added: Vec<(KeyKind, Fingerprint)>,
}

/// What staging a line came to.
struct Staged {
    result: ImportResult,
    keys_added: usize,
    added: Vec<(KeyKind, Fingerprint)>,
}

impl Lifecycle {
    /// Whether lines with keys in clear are taken at all.
    pub fn takes_clear_keys(&self) -> Result<(), Refusal> {
        checks::takes_clear_keys(self.config)
    }

    /// Imports lines: one result each, in order. A line's refusal leaves the others alone; what is
    /// accepted is committed at once for all blocks, on disk when this returns.
    ///
    /// In the same transaction go its audit events: one for each meter that changed, and one that sums
    /// up; a call about one line has one event.
    pub async fn import(
        &self,
        call: &AuditedCall,
        meters: Vec<NewMeter>,
        rules: ImportRules,
    ) -> Result<Vec<ImportResult>, LifecycleError> {
        self.import_of(call, None, meters, rules).await
    }

    /// Imports lines of a chunk of a sealed file, as [`Lifecycle::import`] does those in clear. No key of
    /// theirs is seen: the token takes them over. The audit events name the file.
    pub async fn import_sealed(
        &self,
        call: &AuditedCall,
        (file, chunk): (&SealedFile, u32),
        meters: Vec<NewMeter>,
        rules: ImportRules,
    ) -> Result<Vec<ImportResult>, LifecycleError> {
        self.import_of(call, Some((file, chunk)), meters, rules).await
    }

    async fn import_of(
        &self,
        call: &AuditedCall,
        source: Option<(&SealedFile, u32)>,
        meters: Vec<NewMeter>,
        rules: ImportRules,
    ) -> Result<Vec<ImportResult>, LifecycleError> {
        for attempt in 0..TRIES {
            // Decided on copies: if another writer was first, everything is decided anew.
            let copies: Vec<NewMeter> = meters.iter().map(lend).collect();
            match self.import_once(call, source, copies, (rules, attempt)).await {
                Err(LifecycleError::Busy) => self.step_back(attempt).await,
                done => return done,
            }
        }
        Err(LifecycleError::Busy)
    }

    async fn import_once(
        &self,
        call: &AuditedCall,
        source: Option<(&SealedFile, u32)>,
        meters: Vec<NewMeter>,
        (rules, attempt): (ImportRules, u32),
    ) -> Result<Vec<ImportResult>, LifecycleError> {
        let form = if source.is_some() { Form::Sealed } else { Form::Clear };
        let mut lines = Vec::with_capacity(meters.len());
        for meter in meters {
            lines.push(self.checked(meter, form, (rules, attempt)).await?);
        }
        let titles = lines.iter().filter_map(|line| Some(line.meter.as_ref()?.system_title));
        let blocks: Vec<BlockNo> = titles.map(|title| self.keyring.block_of(&title)).collect();
        let changes = self.keyring.change(&blocks).await?;
        let mut changes: BTreeMap<BlockNo, Change> =
            changes.into_iter().map(|change| (change.block(), change)).collect();
        if let Some((file, _)) = source {
            self.take_keys(file, &mut lines, &changes, rules).await?;
        }
        let mut values = self.values_of(&lines, &changes).await?;
        let mut ids = HashMap::new();
        for (nth, line) in lines.iter_mut().enumerate() {
            let Some(meter) = line.meter.take() else { continue };
            let block = self.keyring.block_of(&meter.system_title);
            let Some(change) = changes.get_mut(&block) else { continue };
            line.subject.block = Some(block);
            let arrival = match source {
                Some((file, chunk)) => Arrival::Sealed(file.mark(chunk, nth)),
                None => Arrival::Clear { allowed: self.config.allow_clear },
            };
            let seen = (&mut ids, &mut values);
            let staged = match self.stage(change, meter, (rules, arrival), seen).await? {
                Ok(staged) => staged,
                Err(refusal) => {
                    Staged { result: refused(refusal), keys_added: 0, added: Vec::new() }
                }
            };
            (line.result, line.keys_added, line.added) =
                (Some(staged.result), staged.keys_added, staged.added);
        }
        values.warn_of_duplicates(&mut lines);
        let mut entries = entries(call, rules, &lines, self.clock.unix_ms());
        if let Some((file, chunk)) = source {
            file.tell(chunk, &mut entries);
        }
        let staged = if rules.dry_run { Vec::new() } else { changes.into_values().collect() };
        match self.keyring.commit(staged, entries).await {
            Err(KeyringError::Store(StoreError::Taken { .. })) => return Err(LifecycleError::Busy),
            done => done?,
        }
        Ok(lines.into_iter().filter_map(|line| line.result).collect())
    }

    /// A line by itself, and whether its id belongs to another title.
    async fn checked(
        &self,
        meter: NewMeter,
        form: Form,
        (rules, attempt): (ImportRules, u32),
    ) -> Result<Line, LifecycleError> {
        let title = Some(meter.system_title);
        let subject = Subject { system_title: title, ..Subject::meter(&meter.meter_id) };
        let outcome = match checks::check(self.config, rules, form, &meter) {
            Err(refusal) => Err(refusal),
            Ok(()) => self.check_id(&meter.meter_id, &meter.system_title, attempt).await?,
        };
        Ok(match outcome {
            Ok(()) => {
                Line { meter: Some(meter), result: None, subject, keys_added: 0, added: Vec::new() }
            }
            Err(refusal) => Line {
                meter: None,
                result: Some(refused(refusal)),
                subject,
                keys_added: 0,
                added: Vec::new(),
            },
        })
    }

    /// Whether the id is this title's or nobody's. What memory or the index say otherwise is held against
    /// the record.
    async fn check_id(
        &self,
        id: &MeterId,
        title: &SystemTitle,
        attempt: u32,
    ) -> Result<Result<(), Refusal>, LifecycleError> {
        // Another writer was first, or an index that lies stood in the way: then it is so each time.
        if attempt > 0
            && let Some(reason) = self.index_lie(id, title).await?
        {
            return Ok(Err(refusal("METER_DAMAGED", reason)));
        }
        let resident = self.keyring.title_of(&self.keyring.snapshot(), id.as_str());
        let known = match resident {
            Some(title) => Some(title),
            None => self.keyring.look_up(id).await?,
        };
        let Some(other) = known.filter(|known| known != title) else { return Ok(Ok(())) };
        Ok(match self.keyring.confirm(id, other).await? {
            Found::At(other) if other != *title => Err(id_taken(id, &other)),
            Found::At(_) | Found::Nowhere { .. } => Ok(()),
            Found::Unsure(reason) => Err(refusal("METER_DAMAGED", reason)),
        })
    }

    async fn stage(
        &self,
        change: &mut Change,
        mut meter: NewMeter,
        (rules, arrival): (ImportRules, Arrival),
        (ids, values): (&mut HashMap<MeterId, SystemTitle>, &mut Values),
    ) -> Result<Result<Staged, Refusal>, LifecycleError> {
        let title = meter.system_title;
        match ids.get(&meter.meter_id) {
            Some(other) if *other != title => return Ok(Err(id_taken(&meter.meter_id, other))),
            _ => ids.insert(meter.meter_id.clone(), title),
        };
        let known = match change.record(&title) {
            Ok(known) => known,
            // Only this line: the others of the block and of the message go on.
            Err(
                error @ (KeyringError::RecordDamaged { .. } | KeyringError::RecordMissing { .. }),
            ) => return Ok(Err(refusal("METER_DAMAGED", error.to_string()))),
            Err(error) => return Err(error.into()),
        };
        let new = || self.new_record(&meter);
        let (mut record, is_new) = match known {
            Some(Record::Meter(record)) if record.meter_id != meter.meter_id => {
                return Ok(Err(title_taken(&title, &record.meter_id)));
            }
            Some(Record::Meter(record)) => (record, false),
            Some(Record::Tombstone(tombstone)) => {
                match merging::readmit(&tombstone, new(), arrival) {
                    Ok(record) => (record, true),
                    Err(refusal) => return Ok(Err(refusal)),
                }
            }
            None => (new(), true),
        };
        let mut of_line = Vec::with_capacity(meter.keys.len());
        for key in &meter.keys {
            match self.identify(change, &title, key) {
                // Keys that everybody knows have no use that could be kept apart.
                Ok(fingerprint) if self.keyring.is_test_key(&fingerprint) => {}
                Ok(fingerprint) => of_line.push((key.kind, fingerprint)),
                Err(refusal) => return Ok(Err(refusal)),
            }
        }
        if let Err(refusal) = values.check_kinds(&of_line, &record) {
            return Ok(Err(refusal));
        }
        let identify = |key: &NewKey| self.identify(change, &title, key);
        let news = match merging::news(&record, &mut meter, rules, identify, || self.new_id()) {
            Ok(news) => news,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if !is_new && news.is_empty() {
            let result = accepted(Imported::Unchanged, news.warnings);
            return Ok(Ok(Staged { result, keys_added: 0, added: Vec::new() }));
        }
        if let Err(refusal) = merging::check_order(&record, arrival) {
            return Ok(Err(refusal));
        }
        values.add(&of_line);
        let unique =
            |news: &&merging::NewsKey| matches!(news.key.kind, KeyKind::Guek | KeyKind::Kek);
        let added = news.keys.iter().filter(unique).map(|news| (news.key.kind, news.fingerprint));
        let added: Vec<_> = added.collect();
        let outcome = if is_new { Imported::Created } else { Imported::Updated };
        let mut wrapped = Vec::with_capacity(news.keys.len());
        for mut news in news.keys {
            let what = (news.key.kind, protection_of(&news.key));
            let value = match std::mem::take(&mut news.key.value) {
                KeyValue::Clear(clear) => {
                    self.keyring.wrap(change, &title, &news.id, what, clear).await?
                }
                KeyValue::Taken(taken) => taken.into_wrapped(),
                KeyValue::Sealed(_) => return Ok(Err(not_taken())),
            };
            wrapped.push((news, value));
        }
        let keys_added = wrapped.len();
        merging::apply(&mut record, meter, wrapped, arrival, self.clock.unix_ms());
        let mut warnings = news.warnings;
        warnings.extend(checks::warnings(&record));
        change.put(Record::Meter(record));
        Ok(Ok(Staged { result: accepted(outcome, warnings), keys_added, added }))
    }

    fn new_record(&self, meter: &NewMeter) -> MeterRecord {
        MeterRecord {
            meter_id: meter.meter_id.clone(),
            system_title: meter.system_title,
            logical_device_name: meter.logical_device_name.clone(),
            policy: meter.policy.clone().unwrap_or_default(),
            keys: Vec::new(),
            created_ms: self.clock.unix_ms(),
            former: Vec::new(),
            changed_by: ChangeMark::default(),
        }
    }

    pub(super) fn identify(
        &self,
        change: &Change,
        title: &SystemTitle,
        key: &NewKey,
    ) -> Result<Fingerprint, Refusal> {
        let clear = match &key.value {
            KeyValue::Clear(clear) => clear,
            KeyValue::Taken(taken) => return Ok(taken.fingerprint()),
            KeyValue::Sealed(_) => return Err(not_taken()),
        };
        if !key.kind.is_cipher_key() {
            return Ok(change.secret_fingerprint(title, clear));
        }
        let (fingerprint, _) = self
            .keyring
            .identify(clear)
            .ok_or_else(|| refusal("KEY_LENGTH", "an AES key has 16 or 32 bytes"))?;
        Ok(fingerprint)
    }

    fn new_id(&self) -> Result<KeyId, Refusal> {
        let mut id = [0; 16];
        self.randomness
            .fill(&mut id)
            .map_err(|error| refusal("NO_RANDOMNESS", error.to_string()))?;
        Ok(KeyId(id))
    }
}

/// A copy to decide on, which takes the keys' bytes along.
fn lend(meter: &NewMeter) -> NewMeter {
    let copy = |key: &NewKey| NewKey {
        kind: key.kind,
        setup: key.setup,
        protection: key.protection,
        value: key.value.lend(),
    };
    NewMeter {
        meter_id: meter.meter_id.clone(),
        system_title: meter.system_title,
        logical_device_name: meter.logical_device_name.clone(),
        keys: meter.keys.iter().map(copy).collect(),
        policy: meter.policy.clone(),
    }
}

/// What the audit log says of an import: one event for each meter that changed, and the sum. Of a
/// single line one event says it all.
fn entries(call: &AuditedCall, rules: ImportRules, lines: &[Line], now_ms: u64) -> Vec<AuditEntry> {
    let mut entries = Vec::new();
    let mut sums = [Detail::Created, Detail::Updated, Detail::Unchanged, Detail::RefusedLines]
        .map(|detail| (detail, 0u64));
    let single = lines.len() == 1;
    for line in lines {
        let Some(ImportResult { outcome, .. }) = &line.result else { continue };
        let (detail, said) = match outcome {
            Ok(Imported::Created) => (Detail::Created, AuditOutcome::Done),
            Ok(Imported::Updated) => (Detail::Updated, AuditOutcome::Done),
            Ok(Imported::Unchanged) => (Detail::Unchanged, AuditOutcome::Done),
            Err(refusal) => (Detail::RefusedLines, AuditOutcome::refused(refusal.code)),
        };
        for (_, sum) in sums.iter_mut().filter(|(of, _)| *of == detail) {
            *sum += 1;
        }
        let changed = matches!(outcome, Ok(Imported::Created | Imported::Updated));
        if single || (changed && !rules.dry_run) {
            let mut entry = call.entry(now_ms, line.subject.clone(), said).with(detail, 1);
            if line.keys_added > 0 {
                entry = entry.with(Detail::KeysAdded, line.keys_added as u64);
            }
            entries.push(entry);
        }
    }
    if !single {
        let mut sum = call.entry(now_ms, Subject::NONE, AuditOutcome::Done);
        sum.details = sums.to_vec();
        entries.push(sum);
    }
    if rules.dry_run {
        for entry in &mut entries {
            entry.details.push((Detail::DryRun, 1));
        }
    }
    entries
}

fn accepted(outcome: Imported, warnings: Vec<String>) -> ImportResult {
    ImportResult { outcome: Ok(outcome), warnings }
}

pub(super) fn refused(refusal: Refusal) -> ImportResult {
    ImportResult { outcome: Err(refusal), warnings: Vec::new() }
}

/// A fault of ours, told as a refusal so that nothing is stored.
fn not_taken() -> Refusal {
    refusal("NOT_TAKEN", "the token has not taken this key: try again")
}

fn id_taken(id: &MeterId, title: &SystemTitle) -> Refusal {
    refusal(
        "METER_ID_TAKEN",
        format!("meter {id} has system title {title}: delete it first, or use another id"),
    )
}

fn title_taken(title: &SystemTitle, id: &MeterId) -> Refusal {
    refusal("SYSTEM_TITLE_TAKEN", format!("system title {title} belongs to meter {id}"))
}

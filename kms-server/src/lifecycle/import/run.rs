//! Importing: many lines, one commit.

use std::collections::BTreeMap;

use super::{
    accepted,
    checks::{self, Transport},
    line::Line,
    merging::Arrival,
    meter::{ImportResult, ImportRules, Imported, NewMeter},
    sealed_file::SealedFile,
    staging::{How, NotStaged, Seen, Staged, id_taken},
};
use crate::{
    keyring::{Change, Found, KeyringError},
    lifecycle::{
        error::LifecycleError,
        refusal::{Refusal, refusal},
        verbs::{Lifecycle, TRIES},
    },
    store::StoreError,
};
use kms_core::{
    BlockNo, MeterId, RecordKey, RefusalCode, SystemTitle,
    audit::{AuditEntry, AuditOutcome, AuditedCall, Detail, Subject},
    block::BlockMark,
};

/// A chunk of a sealed file.
#[derive(Clone, Copy, Debug)]
pub struct ChunkOf<'a> {
    /// The file, verified.
    pub file: &'a SealedFile,
    /// The chunk's number in it.
    pub number: u32,
}

/// The outcome of a call that imports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imports {
    /// One result a line, in order.
    pub results: Vec<ImportResult>,
    /// The states that the changed blocks have now.
    pub states: Vec<BlockMark>,
}

/// One call that imports.
#[derive(Clone, Copy)]
struct Import<'a> {
    call: &'a AuditedCall,
    /// `None`: its lines came in clear.
    chunk: Option<ChunkOf<'a>>,
    rules: ImportRules,
}

impl Import<'_> {
    fn transport(&self) -> Transport {
        if self.chunk.is_some() { Transport::Sealed } else { Transport::Clear }
    }
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
    ) -> Result<Imports, LifecycleError> {
        self.import_by(Import { call, chunk: None, rules }, meters).await
    }

    /// Imports lines of a chunk of a sealed file, as [`Lifecycle::import`] does those in clear. No key of
    /// theirs is seen: the token takes them over. The audit events name the file.
    pub async fn import_sealed(
        &self,
        call: &AuditedCall,
        chunk: ChunkOf<'_>,
        meters: Vec<NewMeter>,
        rules: ImportRules,
    ) -> Result<Imports, LifecycleError> {
        self.import_by(Import { call, chunk: Some(chunk), rules }, meters).await
    }

    async fn import_by(
        &self,
        import: Import<'_>,
        meters: Vec<NewMeter>,
    ) -> Result<Imports, LifecycleError> {
        for attempt in 0..TRIES {
            // If another writer was first, everything is decided anew. No clear key is copied for that.
            match self.import_once(import, meters.clone(), attempt).await {
                Err(LifecycleError::Busy) => self.step_back(attempt).await,
                done => return done,
            }
        }
        Err(LifecycleError::Busy)
    }

    async fn import_once(
        &self,
        import: Import<'_>,
        meters: Vec<NewMeter>,
        attempt: u32,
    ) -> Result<Imports, LifecycleError> {
        let Import { call, chunk, rules } = import;
        let unknown = meters.iter().map(|meter| &meter.meter_id);
        let unknown = unknown.filter(|id| self.records.resident_title(id.as_str()).is_none());
        let unknown: Vec<MeterId> = unknown.cloned().collect();
        let indexed = self.records.look_up_all(&unknown).await?;
        let mut lines = Vec::with_capacity(meters.len());
        for meter in meters {
            let hint = indexed.get(&meter.meter_id).copied();
            lines.push(self.checked(import, meter, hint, attempt).await?);
        }
        let titles = lines.iter().filter_map(|line| Some(line.meter.as_ref()?.system_title));
        let of_title = |title| (self.records.block_of(&title), RecordKey::meter(&title));
        let mut records: Vec<(BlockNo, RecordKey)> = titles.map(of_title).collect();
        let file = chunk.map(|ChunkOf { file, .. }| file.accepted(self.clock.unix_ms()));
        let name = file.map(|file| accepted::name(&file));
        let block_of_file = name.as_ref().map(|name| self.records.block_of_fact(name));
        records.extend(block_of_file.zip(name.as_ref().map(RecordKey::fact)));
        let changes = self.writer.change_records(records).await?;
        let mut changes: BTreeMap<BlockNo, Change> =
            changes.into_iter().map(|change| (change.block(), change)).collect();
        if let Some(ChunkOf { file, .. }) = chunk {
            self.take_keys(file, &mut lines, &changes, rules).await?;
        }
        // After its keys: a file that the token refuses is not taken.
        let of_file = block_of_file.and_then(|block| changes.get_mut(&block));
        file.zip(of_file).map_or(Ok(()), |(file, change)| accepted::remember(change, file))?;
        let mut seen = Seen::new(self.values_of(&lines, &changes).await?);
        for (nth, line) in lines.iter_mut().enumerate() {
            self.stage_line(import, &mut changes, line, nth, &mut seen).await?;
        }
        seen.values.warn_of_duplicates(&mut lines);
        let mut entries = entries(call, rules, &lines, self.clock.unix_ms());
        if let Some(ChunkOf { file, number }) = chunk {
            file.tell(number, &mut entries);
        }
        let staged = if rules.dry_run { Vec::new() } else { changes.into_values().collect() };
        let states = match self.writer.commit(staged, entries).await {
            Err(KeyringError::Store(StoreError::Taken { .. })) => return Err(LifecycleError::Busy),
            done => done?,
        };
        Ok(Imports { results: lines.into_iter().filter_map(|line| line.result).collect(), states })
    }

    /// Stages a line, if it has no result yet.
    async fn stage_line(
        &self,
        import: Import<'_>,
        changes: &mut BTreeMap<BlockNo, Change>,
        line: &mut Line,
        nth: usize,
        seen: &mut Seen,
    ) -> Result<(), LifecycleError> {
        let Some(meter) = line.meter.take() else { return Ok(()) };
        let block = self.records.block_of(&meter.system_title);
        let Some(change) = changes.get_mut(&block) else { return Ok(()) };
        line.subject.block = Some(block);
        let arrival = match import.chunk {
            Some(ChunkOf { file, number }) => Arrival::Sealed(file.mark(number, nth)),
            None => Arrival::Clear { allowed: self.config.allow_clear },
        };
        let file = import.chunk.map(|ChunkOf { file, .. }| file);
        let how = How { rules: import.rules, arrival, file };
        let Staged { result, keys_added, added } = match self.stage(change, meter, how, seen).await
        {
            Ok(staged) => staged,
            Err(NotStaged::Refused(refusal)) => Staged::nothing(ImportResult::refused(refusal)),
            Err(NotStaged::Failed(error)) => return Err(error),
        };
        (line.result, line.keys_added, line.added) = (Some(result), keys_added, added);
        Ok(())
    }

    /// A line by itself, and whether its id belongs to another title. `hint`: where the index has it.
    async fn checked(
        &self,
        import: Import<'_>,
        meter: NewMeter,
        hint: Option<SystemTitle>,
        attempt: u32,
    ) -> Result<Line, LifecycleError> {
        let title = Some(meter.system_title);
        let subject = Subject { system_title: title, ..Subject::meter(&meter.meter_id) };
        let alone = checks::check(self.config, import.rules, import.transport(), &meter);
        let in_range = |()| match import.chunk {
            Some(ChunkOf { file, .. }) => self.check_range(file, &meter),
            None => Ok(()),
        };
        let alone = alone.and_then(in_range);
        let outcome = match alone {
            Ok(()) => self.check_id(&meter.meter_id, &meter.system_title, hint, attempt).await,
            Err(refusal) => Err(refusal.into()),
        };
        match outcome {
            Ok(()) => Ok(Line::of(meter, subject)),
            Err(NotStaged::Refused(refusal)) => {
                Ok(Line::done(ImportResult::refused(refusal), subject))
            }
            Err(NotStaged::Failed(error)) => Err(error),
        }
    }

    /// Whether the id is this title's or nobody's. What memory or the index say otherwise is held against
    /// the record.
    async fn check_id(
        &self,
        id: &MeterId,
        title: &SystemTitle,
        hint: Option<SystemTitle>,
        attempt: u32,
    ) -> Result<(), NotStaged> {
        // Another writer was first, or an index that lies stood in the way: then it is so each time.
        if attempt > 0
            && let Some(reason) = self.index_lie(id, title).await?
        {
            return Err(refusal(RefusalCode::MeterDamaged, reason).into());
        }
        let known = self.records.resident_title(id.as_str()).or(hint);
        let Some(other) = known.filter(|known| known != title) else { return Ok(()) };
        match self.records.confirm(id, other).await? {
            Found::At(other) if other != *title => Err(id_taken(id, &other).into()),
            Found::At(_) | Found::Nowhere { .. } => Ok(()),
            Found::Unsure(reason) => Err(refusal(RefusalCode::MeterDamaged, reason).into()),
        }
    }
}

/// The audit log's entries of an import: one event for each meter that changed, and the sum. Of a
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
            Err(refusal) => (Detail::RefusedLines, AuditOutcome::refused(refusal.code.word())),
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

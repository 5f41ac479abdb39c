//! Importing: many lines, one commit.

use std::collections::{BTreeMap, HashMap};

use super::{
    ImportResult, ImportRules, Imported, KeyValue, Lifecycle, LifecycleError, NewKey, NewMeter,
    Refusal, SealedFile, TRIES,
    checks::{self, Form, protection_of, refusal},
    merging,
};
use crate::{
    domain::{BlockNo, Fingerprint, KeyId, KeyKind, MeterId, MeterRecord, Record, SystemTitle},
    keyring::{Change, KeyringError},
    store::StoreError,
};

/// Meters named in a warning about a key value that several have.
const NAMED_IN_WARNING: u32 = 3;

/// A line that is under way.
pub(super) struct Line {
    pub(super) meter: Option<NewMeter>,
    pub(super) result: Option<ImportResult>,
}

/// GUEK and KEK values that this call added: who brought each first.
type Seen = HashMap<Fingerprint, MeterId>;

impl Lifecycle {
    /// Imports lines: one result each, in order. A line's refusal leaves the others alone; what is
    /// accepted is committed at once for all blocks, on disk when this returns.
    pub async fn import(
        &self,
        meters: Vec<NewMeter>,
        rules: ImportRules,
    ) -> Result<Vec<ImportResult>, LifecycleError> {
        self.import_of(None, meters, rules).await
    }

    /// Imports lines of a sealed file, as [`Lifecycle::import`] does those in clear. No key of theirs is
    /// seen: the token takes them over.
    pub async fn import_sealed(
        &self,
        file: &SealedFile,
        meters: Vec<NewMeter>,
        rules: ImportRules,
    ) -> Result<Vec<ImportResult>, LifecycleError> {
        self.import_of(Some(file), meters, rules).await
    }

    async fn import_of(
        &self,
        file: Option<&SealedFile>,
        meters: Vec<NewMeter>,
        rules: ImportRules,
    ) -> Result<Vec<ImportResult>, LifecycleError> {
        for _ in 0..TRIES {
            // Decided on copies: if another writer was first, everything is decided anew.
            let attempt: Vec<NewMeter> = meters.iter().map(lend).collect();
            match self.import_once(file, attempt, rules).await {
                Err(LifecycleError::Busy) => {}
                done => return done,
            }
        }
        Err(LifecycleError::Busy)
    }

    async fn import_once(
        &self,
        file: Option<&SealedFile>,
        meters: Vec<NewMeter>,
        rules: ImportRules,
    ) -> Result<Vec<ImportResult>, LifecycleError> {
        let form = if file.is_some() { Form::Sealed } else { Form::Clear };
        let mut lines = Vec::with_capacity(meters.len());
        for meter in meters {
            lines.push(self.checked(meter, form, rules).await?);
        }
        let titles = lines.iter().filter_map(|line| Some(line.meter.as_ref()?.system_title));
        let blocks: Vec<BlockNo> = titles.map(|title| self.keyring.block_of(&title)).collect();
        let changes = self.keyring.change(&blocks).await?;
        let mut changes: BTreeMap<BlockNo, Change> =
            changes.into_iter().map(|change| (change.block(), change)).collect();
        if let Some(file) = file {
            self.take_keys(file, &mut lines, &changes, rules).await?;
        }
        let (mut ids, mut seen) = (HashMap::new(), Seen::new());
        for line in &mut lines {
            let Some(meter) = line.meter.take() else { continue };
            let block = self.keyring.block_of(&meter.system_title);
            let Some(change) = changes.get_mut(&block) else { continue };
            line.result = Some(self.stage(change, meter, rules, &mut ids, &mut seen).await?);
        }
        if !rules.dry_run {
            match self.keyring.commit(changes.into_values().collect()).await {
                Err(KeyringError::Store(StoreError::Taken { .. })) => {
                    return Err(LifecycleError::Busy);
                }
                done => done?,
            }
        }
        Ok(lines.into_iter().filter_map(|line| line.result).collect())
    }

    /// A line by itself, and whether its id belongs to another title.
    async fn checked(
        &self,
        meter: NewMeter,
        form: Form,
        rules: ImportRules,
    ) -> Result<Line, LifecycleError> {
        let outcome = match checks::check(self.config, rules, form, &meter) {
            Err(refusal) => Err(refusal),
            Ok(()) => match self.store.find_meter(&meter.meter_id).await? {
                Some(place) if place.system_title != meter.system_title => {
                    Err(id_taken(&meter.meter_id, &place.system_title))
                }
                _ => Ok(()),
            },
        };
        Ok(match outcome {
            Ok(()) => Line { meter: Some(meter), result: None },
            Err(refusal) => Line { meter: None, result: Some(refused(refusal)) },
        })
    }

    async fn stage(
        &self,
        change: &mut Change,
        meter: NewMeter,
        rules: ImportRules,
        ids: &mut HashMap<MeterId, SystemTitle>,
        seen: &mut Seen,
    ) -> Result<ImportResult, LifecycleError> {
        match self.try_stage(change, meter, rules, ids, seen).await? {
            Ok(result) => Ok(result),
            Err(refusal) => Ok(refused(refusal)),
        }
    }

    async fn try_stage(
        &self,
        change: &mut Change,
        mut meter: NewMeter,
        rules: ImportRules,
        ids: &mut HashMap<MeterId, SystemTitle>,
        seen: &mut Seen,
    ) -> Result<Result<ImportResult, Refusal>, LifecycleError> {
        let title = meter.system_title;
        match ids.get(&meter.meter_id) {
            Some(other) if *other != title => return Ok(Err(id_taken(&meter.meter_id, other))),
            _ => ids.insert(meter.meter_id.clone(), title),
        };
        let (mut record, is_new) = match change.record(&title)? {
            Some(Record::Meter(record)) if record.meter_id != meter.meter_id => {
                return Ok(Err(title_taken(&title, &record.meter_id)));
            }
            Some(Record::Meter(record)) => (record, false),
            Some(Record::Tombstone(_)) | None => (self.new_record(&meter), true),
        };
        let identify = |key: &NewKey| self.identify(change, &title, key);
        let news = match merging::news(&record, &mut meter, rules, identify, || self.new_id()) {
            Ok(news) => news,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if !is_new && news.is_empty() {
            return Ok(Ok(accepted(Imported::Unchanged, Vec::new())));
        }
        let warnings = self.duplicates(&news.keys, &meter.meter_id, seen).await?;
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
        merging::apply(&mut record, meter, wrapped, self.clock.unix_ms());
        change.put(Record::Meter(record));
        Ok(Ok(accepted(outcome, warnings)))
    }

    fn new_record(&self, meter: &NewMeter) -> MeterRecord {
        MeterRecord {
            meter_id: meter.meter_id.clone(),
            system_title: meter.system_title,
            logical_device_name: meter.logical_device_name.clone(),
            policy: meter.policy.clone().unwrap_or_default(),
            keys: Vec::new(),
            created_ms: self.clock.unix_ms(),
        }
    }

    fn identify(
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

    /// Which of the new GUEK and KEK values other meters have. Not refused, since a fleet delivered
    /// with one key is a fact; but a fact that somebody must hear of.
    async fn duplicates(
        &self,
        news: &[merging::NewsKey],
        id: &MeterId,
        seen: &mut Seen,
    ) -> Result<Vec<String>, LifecycleError> {
        let unique = |kind| matches!(kind, KeyKind::Guek | KeyKind::Kek);
        let values: Vec<_> = news.iter().filter(|news| unique(news.key.kind)).collect();
        if values.is_empty() {
            return Ok(Vec::new());
        }
        let fingerprints: Vec<Fingerprint> = values.iter().map(|news| news.fingerprint).collect();
        let mut holders = self.store.holders_of(&fingerprints, NAMED_IN_WARNING).await?;
        for news in &values {
            match seen.get(&news.fingerprint) {
                Some(first) if first != id => holders.push((news.fingerprint, first.clone())),
                Some(_) => {}
                None => _ = seen.insert(news.fingerprint, id.clone()),
            }
        }
        Ok(values
            .iter()
            .filter_map(|news| {
                let mut names: Vec<&str> = holders
                    .iter()
                    .filter(|(value, holder)| *value == news.fingerprint && holder != id)
                    .map(|(_, holder)| holder.as_str())
                    .collect();
                names.sort_unstable();
                names.dedup();
                names.truncate(NAMED_IN_WARNING as usize);
                (!names.is_empty())
                    .then(|| format!("the {} is also that of {}", news.key.kind, names.join(", ")))
            })
            .collect())
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

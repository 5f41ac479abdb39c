//! Staging a line: what its meter's record becomes.

use std::collections::HashMap;

use super::{
    checks,
    merging::{self, Arrival, NewsKey},
    meter::{ImportResult, ImportRules, Imported, NewKey, NewMeter},
    owners::Origins,
    sealed_file::SealedFile,
    value::KeyValue,
    values::Values,
};
use crate::{
    keyring::{Change, KeyToWrap, KeyringError, WrappedValue},
    lifecycle::{
        error::LifecycleError,
        refusal::{Refusal, refusal},
        verbs::Lifecycle,
    },
};
use kms_core::{
    ChangeMark, Fingerprint, KeyId, KeyKind, MeterId, MeterRecord, Record, RefusalCode, SystemTitle,
};

/// The rules and the arrival of a line.
#[derive(Clone, Copy)]
pub(super) struct How<'a> {
    pub(super) rules: ImportRules,
    pub(super) arrival: Arrival,
    /// The sealed file that it is in.
    pub(super) file: Option<&'a SealedFile>,
}

/// The ids and values that the lines of one call have brought so far.
pub(super) struct Seen {
    ids: HashMap<MeterId, SystemTitle>,
    pub(super) values: Values,
    origins: Origins,
}

/// The outcome of staging a line.
pub(super) struct Staged {
    pub(super) result: ImportResult,
    pub(super) keys_added: usize,
    pub(super) added: Vec<(KeyKind, Fingerprint)>,
}

impl Staged {
    /// Nothing is staged: the line has its result.
    pub(super) fn nothing(result: ImportResult) -> Self {
        Self { result, keys_added: 0, added: Vec::new() }
    }
}

/// Why a line was not staged.
pub(super) enum NotStaged {
    /// Only this line: the others of its message go on.
    Refused(Refusal),
    /// Nothing of the call goes on.
    Failed(LifecycleError),
}

impl From<Refusal> for NotStaged {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<LifecycleError> for NotStaged {
    fn from(error: LifecycleError) -> Self {
        Self::Failed(error)
    }
}

impl From<KeyringError> for NotStaged {
    fn from(error: KeyringError) -> Self {
        match error {
            KeyringError::RecordDamaged { .. } | KeyringError::RecordMissing { .. } => {
                Self::Refused(refusal(RefusalCode::MeterDamaged, error.to_string()))
            }
            error => Self::Failed(error.into()),
        }
    }
}

impl Seen {
    /// Nothing yet; `values` is known of what they bring.
    pub(super) fn new(values: Values) -> Self {
        Self { ids: HashMap::new(), values, origins: Origins::default() }
    }

    /// One id is one title's, among the lines of one call too.
    fn claim(&mut self, meter: &NewMeter) -> Result<(), Refusal> {
        match self.ids.get(&meter.meter_id) {
            Some(other) if *other != meter.system_title => Err(id_taken(&meter.meter_id, other)),
            _ => {
                self.ids.insert(meter.meter_id.clone(), meter.system_title);
                Ok(())
            }
        }
    }
}

impl Lifecycle {
    /// Stages a line in its block's change.
    pub(super) async fn stage(
        &self,
        change: &mut Change,
        mut meter: NewMeter,
        how: How<'_>,
        seen: &mut Seen,
    ) -> Result<Staged, NotStaged> {
        seen.claim(&meter)?;
        let title = meter.system_title;
        let (mut record, is_new) = self.record_before(change, &meter, how.arrival)?;
        let of_line = self.values_in(change, &meter)?;
        seen.values.check_kinds(&of_line, &record)?;
        let identify = |key: &NewKey| self.identify(change, &title, key);
        let news = merging::news(&record, &mut meter, how.rules, identify, || self.new_id())?;
        if !is_new && news.is_empty() {
            return Ok(Staged::nothing(ImportResult::accepted(Imported::Unchanged, news.warnings)));
        }
        merging::check_order(&record, how.arrival)?;
        if let Some(file) = how.file
            && let Some(refusal) = self.check_owner(file, &record, &mut seen.origins).await?
        {
            return Err(refusal.into());
        }
        let known = (!is_new).then_some(&record);
        checks::profile(&self.profiles, meter.policy.as_ref(), known)?;
        seen.values.add(&of_line);
        let added = news.values_of_one_meter();
        let wrapped = self.wrap_all(change, &title, news.keys).await?;
        let keys_added = wrapped.len();
        merging::apply(&mut record, meter, wrapped, how.arrival, self.clock.unix_ms());
        let mut warnings = news.warnings;
        warnings.extend(checks::warnings(&record));
        change.put(Record::Meter(record));
        let outcome = if is_new { Imported::Created } else { Imported::Updated };
        Ok(Staged { result: ImportResult::accepted(outcome, warnings), keys_added, added })
    }

    /// The record that a line changes, and whether it is a new one.
    fn record_before(
        &self,
        change: &Change,
        meter: &NewMeter,
        arrival: Arrival,
    ) -> Result<(MeterRecord, bool), NotStaged> {
        let title = meter.system_title;
        match change.record(&title)? {
            Some(Record::Meter(record)) if record.meter_id != meter.meter_id => {
                Err(title_taken(&title, &record.meter_id).into())
            }
            Some(Record::Meter(record)) => Ok((record, false)),
            Some(Record::Tombstone(tombstone)) => {
                Ok((merging::readmit(&tombstone, self.new_record(meter), arrival)?, true))
            }
            // Neither line nor fact stands under a meter's key: it could not be read.
            Some(Record::Line(_) | Record::Fact(_)) | None => Ok((self.new_record(meter), true)),
        }
    }

    /// A line's values, without keys that everybody knows: those have no use that could be kept apart.
    fn values_in(
        &self,
        change: &Change,
        meter: &NewMeter,
    ) -> Result<Vec<(KeyKind, Fingerprint)>, Refusal> {
        let mut values = Vec::with_capacity(meter.keys.len());
        for key in &meter.keys {
            let fingerprint = self.identify(change, &meter.system_title, key)?;
            if !self.identities.is_test_key(&fingerprint) {
                values.push((key.kind, fingerprint));
            }
        }
        Ok(values)
    }

    async fn wrap_all(
        &self,
        change: &Change,
        title: &SystemTitle,
        keys: Vec<NewsKey>,
    ) -> Result<Vec<(NewsKey, WrappedValue)>, NotStaged> {
        let mut wrapped = Vec::with_capacity(keys.len());
        for mut news in keys {
            let key = KeyToWrap {
                system_title: title,
                id: &news.id,
                kind: news.key.kind,
                protection: news.key.wanted_protection(),
            };
            let value = match std::mem::take(&mut news.key.value) {
                KeyValue::Clear(clear) => self.writer.wrap(change, key, &clear).await?,
                KeyValue::Taken(taken) => taken.into_wrapped(),
                KeyValue::Sealed(_) => return Err(not_taken().into()),
            };
            wrapped.push((news, value));
        }
        Ok(wrapped)
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
            legal_hold_ms: None,
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
            .identities
            .identify(clear)
            .ok_or_else(|| refusal(RefusalCode::KeyLength, "an AES key has 16 or 32 bytes"))?;
        Ok(fingerprint)
    }

    fn new_id(&self) -> Result<KeyId, Refusal> {
        let mut id = [0; 16];
        self.randomness
            .fill(&mut id)
            .map_err(|error| refusal(RefusalCode::NoRandomness, error.to_string()))?;
        Ok(KeyId(id))
    }
}

/// A fault of ours, told as a refusal so that nothing is stored.
fn not_taken() -> Refusal {
    refusal(RefusalCode::NotTaken, "the token has not taken this key: try again")
}

pub(super) fn id_taken(id: &MeterId, title: &SystemTitle) -> Refusal {
    refusal(
        RefusalCode::MeterIdTaken,
        format!(
            "meter {id} has system title {title}: find out which of the two titles is right and mend the other \
             line; only where the meter itself was replaced is it to be deleted, and then two people are \
             needed to bring its title back"
        ),
    )
}

fn title_taken(title: &SystemTitle, id: &MeterId) -> Refusal {
    let reason = format!(
        "system title {title} belongs to meter {id}: mend the title, or import under that id"
    );
    refusal(RefusalCode::SystemTitleTaken, reason)
}

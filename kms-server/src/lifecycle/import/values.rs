//! Key values beside those that the domain knows: which kind they are of, and who else has them.
//!
//! One value is of one kind, everywhere and for ever: a KEK that came again as a GUEK would be used, in
//! server memory, for what only its meter may open with it. Several meters with one value of one kind are a
//! fact that is told. Published test keys are left out: everybody has them. The index says where to look;
//! the records say what is so.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::line::Line;
use crate::{
    keyring::Change,
    lifecycle::{
        error::LifecycleError,
        refusal::{Refusal, refusal},
        verbs::Lifecycle,
    },
};
use kms_core::{
    BlockNo, Fingerprint, KeyKind, MeterId, MeterRecord, Record, RecordKey, RefusalCode,
    SystemTitle,
};

/// Holders of one value that are looked at, and at most named in a warning.
const HOLDERS: u32 = 3;

/// The holders and the kinds of the values of one call.
pub(super) struct Values {
    /// Living meters that have a value, by the index.
    holders: HashMap<Fingerprint, Vec<MeterId>>,
    /// By the records, and by the lines of this call that were accepted.
    kinds: HashMap<Fingerprint, KeyKind>,
}

impl Lifecycle {
    /// Looks for those values of `lines` that are news to their meters. Asked once for all lines: each
    /// question is a way to the database and back.
    pub(super) async fn values_of(
        &self,
        lines: &[Line],
        changes: &BTreeMap<BlockNo, Change>,
    ) -> Result<Values, LifecycleError> {
        let mut wanted: Vec<Fingerprint> = Vec::new();
        for meter in lines.iter().filter_map(|line| line.meter.as_ref()) {
            let title = meter.system_title;
            let Some(change) = changes.get(&self.records.block_of(&title)) else { continue };
            // A damaged one is told when its line comes.
            let Ok(record) = change.record(&title) else { continue };
            for key in meter.keys.iter().filter(|key| key.kind.is_cipher_key()) {
                // Refused by itself when its line comes.
                let Ok(fingerprint) = self.identify(change, &title, key) else { continue };
                let has = |record: &MeterRecord| {
                    let same = |k: &kms_core::KeyRecord| {
                        (k.kind, k.fingerprint) == (key.kind, fingerprint)
                    };
                    record.keys.iter().any(same)
                };
                if !matches!(&record, Some(Record::Meter(record)) if has(record)) {
                    wanted.push(fingerprint);
                }
            }
        }
        wanted.sort_unstable();
        wanted.dedup();
        let mut values = Values { holders: HashMap::new(), kinds: HashMap::new() };
        if wanted.is_empty() {
            return Ok(values);
        }
        for (fingerprint, title, living) in self.store.holders_of(&wanted, HOLDERS).await? {
            values.holders.entry(fingerprint).or_default().extend(living);
            if self.identities.is_test_key(&fingerprint) {
                continue;
            }
            if let Some(kind) = self.kind_at(changes, fingerprint, &title).await? {
                values.kinds.insert(fingerprint, kind);
            }
        }
        Ok(values)
    }

    /// The kind under which the record of `title` has this value; `None`: it has not, or is damaged and
    /// says nothing.
    async fn kind_at(
        &self,
        changes: &BTreeMap<BlockNo, Change>,
        fingerprint: Fingerprint,
        title: &SystemTitle,
    ) -> Result<Option<KeyKind>, LifecycleError> {
        if let Some(known) = self.known_kinds.get(&fingerprint) {
            return Ok(Some(known));
        }
        let record = match changes.get(&self.records.block_of(title)) {
            Some(change) if change.was_read(&RecordKey::meter(title)) => {
                change.record(title).map_err(LifecycleError::from)
            }
            _ => self.records.read(title).await.map_err(LifecycleError::from),
        };
        let kind = match record {
            Ok(record) => record.and_then(|record| kind_in(&record, fingerprint)),
            Err(LifecycleError::Damaged { reason } | LifecycleError::NotSealedForUs { reason }) => {
                tracing::warn!(reason, "a record that may have a value of this import is damaged");
                None
            }
            Err(error) => return Err(error),
        };
        if let Some(kind) = kind {
            self.known_kinds.put(fingerprint, kind);
        }
        Ok(kind)
    }
}

fn kind_in(record: &Record, fingerprint: Fingerprint) -> Option<KeyKind> {
    let former = match record {
        Record::Meter(meter) => {
            let mut keys = meter.keys.iter().filter(|key| key.kind.is_cipher_key());
            if let Some(key) = keys.find(|key| key.fingerprint == fingerprint) {
                return Some(key.kind);
            }
            &meter.former
        }
        Record::Tombstone(tombstone) => &tombstone.keys,
        Record::Line(_) | Record::Fact(_) => return None,
    };
    let mut kinds = former.iter().filter(|key| key.fingerprint == fingerprint);
    kinds.find_map(|key| key.was.map(|was| was.kind))
}

impl Values {
    /// Whether each value of a line is of one kind: in the line, in its meter, and elsewhere.
    pub(super) fn check_kinds(
        &self,
        line: &[(KeyKind, Fingerprint)],
        record: &MeterRecord,
    ) -> Result<(), Refusal> {
        let line = line.iter().filter(|(kind, _)| kind.is_cipher_key());
        for (nth, (kind, fingerprint)) in line.clone().enumerate() {
            let before = line.clone().take(nth).filter(|(_, other)| other == fingerprint);
            let own = record.keys.iter().filter(|k| k.kind.is_cipher_key());
            let own = own.filter(|k| k.fingerprint == *fingerprint).map(|k| &k.kind);
            let former = record.former.iter().filter(|k| k.fingerprint == *fingerprint);
            let former = former.filter_map(|k| k.was.as_ref().map(|was| &was.kind));
            let elsewhere = self.kinds.get(fingerprint);
            let known = before.map(|(kind, _)| kind).chain(own).chain(former).chain(elsewhere);
            if let Some(other) = known.into_iter().find(|known| *known != kind) {
                return Err(refusal(
                    RefusalCode::KeyOfAnotherKind,
                    format!(
                        "the value of the {kind} is known as a {other}: one value has one use; find out \
                         which of the two it is, and give the other its own key"
                    ),
                ));
            }
        }
        Ok(())
    }

    /// A line with these values was accepted.
    pub(super) fn add(&mut self, line: &[(KeyKind, Fingerprint)]) {
        let keys = line.iter().filter(|(kind, _)| kind.is_cipher_key());
        self.kinds.extend(keys.map(|(kind, fingerprint)| (*fingerprint, *kind)));
    }

    /// Tells which of the new GUEK and KEK values other meters have, stored or in earlier lines. Not
    /// refused, since a fleet delivered with one key is a fact; but a fact that somebody must hear of.
    pub(super) fn warn_of_duplicates(&self, lines: &mut [Line]) {
        // The meter that brought each value first in this call.
        let mut seen: HashMap<Fingerprint, MeterId> = HashMap::new();
        for line in lines {
            let (Some(result), Some(id)) = (&mut line.result, &line.subject.meter_id) else {
                continue;
            };
            for (kind, fingerprint) in &line.added {
                let first = seen.entry(*fingerprint).or_insert_with(|| id.clone());
                let stored = self.holders.get(fingerprint).into_iter().flatten();
                let others = stored.chain([&*first]).filter(|holder| *holder != id);
                let names: HashSet<&str> = others.map(MeterId::as_str).collect();
                let mut names: Vec<&str> = names.into_iter().collect();
                names.sort_unstable();
                names.truncate(HOLDERS as usize);
                if !names.is_empty() {
                    let names = names.join(", ");
                    result.warnings.push(format!("the {kind} is also that of {names}"));
                }
            }
        }
    }
}

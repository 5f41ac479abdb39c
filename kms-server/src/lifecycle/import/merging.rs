//! A line beside what is known of its meter: which of its values are news, and what they become.
//!
//! A value that the meter ever had is never news, whatever its state: so an old file imported again
//! can't bring an old key back over a newer one. Nor does an older file change anything: each record
//! remembers what changed it last ([`ChangeMark`]), and what a meter had before it was deleted.

use super::meter::{ImportRules, NewKey, NewMeter};
use crate::{
    keyring::WrappedValue,
    lifecycle::refusal::{Refusal, refusal},
};
use kms_core::{
    ChangeMark, Fingerprint, KeyId, KeyKind, KeyLife, KeyRecord, KeyState, MeterRecord, Protection,
    RefusalCode, SecuritySetup, StateReason,
    life::{LIVE_MAX, NotDone},
    record::Tombstone,
};

/// Versions that one key (a kind in a security setup) may have.
pub(super) const VERSIONS_A_KEY: usize = MeterRecord::VERSIONS_A_KEY;

/// Key versions that a meter may have.
pub(super) const VERSIONS_A_METER: usize = MeterRecord::VERSIONS_A_METER;

/// A key value that is news: still to be wrapped.
pub(super) struct NewsKey {
    pub(super) id: KeyId,
    pub(super) key: NewKey,
    pub(super) fingerprint: Fingerprint,
    /// Kept when `key.value` has gone into its wrapping.
    pub(super) value_len: usize,
    version: u16,
}

/// The news of a line: what it brings that is not known yet.
pub(super) struct News {
    pub(super) keys: Vec<NewsKey>,
    /// Name or policy differ.
    pub(super) details: bool,
    /// Worth a look.
    pub(super) warnings: Vec<String>,
}

/// The arrival of a line.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arrival {
    /// In clear, and whether this site takes that.
    Clear { allowed: bool },
    /// In a sealed file, at this place.
    Sealed(ChangeMark),
}

impl News {
    /// The values that only one meter should have: others that have them are told.
    pub(super) fn values_of_one_meter(&self) -> Vec<(KeyKind, Fingerprint)> {
        let unique = |news: &&NewsKey| matches!(news.key.kind, KeyKind::Guek | KeyKind::Kek);
        let keys = self.keys.iter().filter(unique);
        keys.map(|news| (news.key.kind, news.fingerprint)).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty() && !self.details
    }
}

/// Compares a line's values with the keys that the meter has or had. `identify` gives a value's
/// fingerprint, `new_id` a fresh key id.
pub(super) fn news(
    known: &MeterRecord,
    meter: &mut NewMeter,
    rules: ImportRules,
    identify: impl Fn(&NewKey) -> Result<Fingerprint, Refusal>,
    mut new_id: impl FnMut() -> Result<KeyId, Refusal>,
) -> Result<News, Refusal> {
    let other_policy = meter.policy.as_ref().is_some_and(|policy| *policy != known.policy);
    if other_policy && !rules.change_policy {
        return Err(refusal(
            RefusalCode::PolicyDiffers,
            "the meter has another policy: leave it out of the line, pass --change-policy, or change it \
             with `ami-tool meter set-policy`",
        ));
    }
    let details = other_policy
        || (!meter.logical_device_name.is_empty()
            && meter.logical_device_name != known.logical_device_name);
    let mut found: Vec<NewsKey> = Vec::new();
    let mut warnings = Vec::new();
    for key in std::mem::take(&mut meter.keys) {
        let fingerprint = identify(&key)?;
        let same = |setup: SecuritySetup, kind: KeyKind| setup == key.setup && kind == key.kind;
        let has = known.keys.iter().filter(|k| same(k.setup, k.kind));
        let comes = found.iter().filter(|k| same(k.key.setup, k.key.kind));
        if let Some(old) = has.clone().find(|k| k.fingerprint == fingerprint) {
            warnings.extend(stays(&key, old));
            continue;
        }
        if comes.clone().any(|k| k.fingerprint == fingerprint) {
            continue;
        }
        let first = has.clone().next().is_none() && comes.clone().next().is_none();
        if is_superseded(known, key.kind, fingerprint, first) {
            return Err(superseded(&key));
        }
        if !first && !rules.add_versions {
            return Err(differs(&key, comes.clone().next().is_some()));
        }
        // Only as many are tried on what a meter sends.
        let live = has.clone().filter(|k| k.is_live()).count() + comes.clone().count();
        let versions = has.map(|k| k.version).chain(comes.map(|k| k.version));
        let (count, latest) =
            versions.fold((0, 0), |(count, latest), version| (count + 1, version.max(latest)));
        if count >= VERSIONS_A_KEY || known.keys.len() + found.len() >= VERSIONS_A_METER {
            return Err(too_many(key.kind, key.setup));
        }
        let Some(version) = latest.checked_add(1) else {
            return Err(too_many(key.kind, key.setup));
        };
        if live >= LIVE_MAX {
            let (kind, setup) = (key.kind, key.setup);
            let why = NotDone::TooManyLive { kind, setup };
            return Err(refusal(why.code(), why.to_string()));
        }
        let value_len = key.value.len();
        found.push(NewsKey { id: new_id()?, key, fingerprint, value_len, version });
    }
    Ok(News { keys: found, details, warnings })
}

/// Whether a line that brings news may change this record. A new meter's record has no mark yet.
pub(super) fn check_order(known: &MeterRecord, arrival: Arrival) -> Result<(), Refusal> {
    match arrival {
        Arrival::Clear { allowed: true } => Ok(()),
        Arrival::Clear { allowed: false } => Err(refusal(
            RefusalCode::ClearImportOff,
            "this site takes no lines in clear that change anything: change a policy with `ami-tool meter \
             set-policy`, and bring the rest in a sealed file",
        )),
        Arrival::Sealed(mark) if mark > known.changed_by => Ok(()),
        Arrival::Sealed(_) => Err(refusal(
            RefusalCode::FileOlder,
            "the meter was changed by what is newer than this file's line: nothing old comes back over it; \
             if the line is what should be, seal it again",
        )),
    }
}

/// The record that a meter begins with again, from its tombstone.
pub(super) fn readmit(
    tombstone: &Tombstone,
    record: MeterRecord,
    arrival: Arrival,
) -> Result<MeterRecord, Refusal> {
    if tombstone.readmitted_ms.is_none() {
        return Err(deleted(tombstone, &record));
    }
    if let Arrival::Sealed(mark) = arrival
        && (mark.at_ms <= tombstone.deleted_ms || mark <= tombstone.changed_by)
    {
        return Err(refusal(
            RefusalCode::FileOlder,
            "the meter was deleted after this file was sealed: it was readmitted, and comes back by what is \
             sealed after its deletion; seal it again",
        ));
    }
    Ok(MeterRecord { former: tombstone.keys.clone(), changed_by: tombstone.changed_by, ..record })
}

/// Names the id that the meter had where the line has another: only by that one it is readmitted.
fn deleted(tombstone: &Tombstone, line: &MeterRecord) -> Refusal {
    let other = tombstone.meter_id.as_ref().filter(|known| **known != line.meter_id);
    let (was, by) = match other {
        Some(known) => (format!(" as {known}"), " by that id"),
        None => (String::new(), ""),
    };
    refusal(
        RefusalCode::MeterDeleted,
        format!(
            "the meter was deleted{was}, and no import brings it back: if it is to come back, have two \
             people readmit it{by} (ami-tool meter readmit), then import what is sealed after its deletion"
        ),
    )
}

/// Whether a value was given up: before the meter was deleted, or in another of its security setups. One
/// that was active at the deletion may come back, as the first of its place.
fn is_superseded(
    known: &MeterRecord,
    kind: KeyKind,
    fingerprint: Fingerprint,
    first: bool,
) -> bool {
    let mut former = known.former.iter().filter(|key| key.fingerprint == fingerprint);
    let mut now = known.keys.iter().filter(|k| k.kind == kind && k.fingerprint == fingerprint);
    former.any(|key| !first || !key.may_come_back()) || now.any(|k| k.state > KeyState::Active)
}

fn superseded(key: &NewKey) -> Refusal {
    refusal(
        RefusalCode::KeySuperseded,
        format!(
            "the meter had this {} before, and it was given up: a key that was replaced does not come \
             back; give the meter's present one",
            key.kind
        ),
    )
}

fn differs(key: &NewKey, in_line: bool) -> Refusal {
    let NewKey { kind, setup, .. } = key;
    let reason = if in_line {
        format!(
            "the line has two values for the {kind} in security setup {}: leave one of them, or pass \
             --add-versions to keep both, the last one active",
            setup.0
        )
    } else {
        format!(
            "the meter already has another {kind} in security setup {}: find out which the \
             meter has; where both may be in use, pass --add-versions to keep both",
            setup.0
        )
    };
    refusal(RefusalCode::KeyDiffers, reason)
}

/// The warning about a known key for which the line asks another protection.
fn stays(key: &NewKey, old: &KeyRecord) -> Option<String> {
    let said = key.protection?;
    let word = |protection| match protection {
        Protection::Hsm => "HSM",
        Protection::Memory => "MEMORY",
    };
    (said != old.protection).then(|| {
        format!(
            "the {} is known and stays of protection {}: an import does not make it {}",
            key.kind,
            word(old.protection),
            word(said)
        )
    })
}

fn too_many(kind: KeyKind, setup: SecuritySetup) -> Refusal {
    refusal(
        RefusalCode::TooManyVersions,
        format!(
            "another {kind} in security setup {} would be too much: a key has {VERSIONS_A_KEY} versions at \
             most, a meter {VERSIONS_A_METER}; delete the meter and import it with the keys that it uses",
            setup.0
        ),
    )
}

/// Lays the news over the record. The last version of each key becomes the active one; the one
/// before stays to open what was protected before.
pub(super) fn apply(
    record: &mut MeterRecord,
    meter: NewMeter,
    wrapped: Vec<(NewsKey, WrappedValue)>,
    arrival: Arrival,
    now_ms: u64,
) {
    record.changed_by = match arrival {
        Arrival::Sealed(mark) => mark,
        Arrival::Clear { .. } => record.changed_by.next(now_ms),
    };
    if let Some(policy) = meter.policy {
        record.policy = policy;
    }
    if !meter.logical_device_name.is_empty() {
        record.logical_device_name = meter.logical_device_name;
    }
    for (news, value) in wrapped {
        retire_active(record, news.key.setup, news.key.kind, now_ms);
        record.keys.push(key_record(&news, value, now_ms));
    }
    record.keys.sort_by_key(|key| (key.setup, key.kind, key.version));
}

fn retire_active(record: &mut MeterRecord, setup: SecuritySetup, kind: KeyKind, now_ms: u64) {
    let active = record
        .keys
        .iter_mut()
        .filter(|key| key.setup == setup && key.kind == kind && key.state == KeyState::Active);
    for key in active {
        if key.life == KeyLife::default() {
            // As releases wrote it that knew nothing of lives: their servers read it.
            (key.state, key.changed_ms) = (KeyState::Deactivated, now_ms);
        } else {
            key.go_on(KeyState::Deactivated, StateReason::Superseded, now_ms);
        }
    }
}

fn key_record(news: &NewsKey, value: WrappedValue, now_ms: u64) -> KeyRecord {
    let WrappedValue { wrapped, kcv, fingerprint } = value;
    let protection: Protection = news.key.wanted_protection();
    KeyRecord {
        id: news.id,
        setup: news.key.setup,
        kind: news.key.kind,
        version: news.version,
        state: KeyState::Active,
        protection,
        wrapped,
        // Checked: at most 64.
        value_len: u8::try_from(news.value_len).unwrap_or(u8::MAX),
        created_ms: now_ms,
        changed_ms: now_ms,
        kcv,
        fingerprint,
        life: KeyLife::default(),
    }
}

//! A line beside what is known of its meter: which of its values are news, and what they become.
//!
//! A value that the meter ever had is never news, whatever its state: so an old file imported again
//! can't bring an old key back over a newer one.

use super::{
    ImportRules, NewKey, NewMeter, Refusal,
    checks::{protection_of, refusal},
};
use crate::{
    domain::{
        Fingerprint, KeyEvent, KeyId, KeyKind, KeyRecord, KeyState, MeterRecord, Protection,
        SecuritySetup,
    },
    keyring::WrappedValue,
};

/// Versions that one key (a kind in a security setup) may have: four live ones, as many as are tried on
/// an APDU, and twelve that were before them. Each is a part of its meter's record, which every change
/// of its block reads.
pub(super) const VERSIONS_A_KEY: usize = 16;

/// Key versions that a meter may have: four setups with four keys of four versions. So a record has
/// less than 8 KiB, and a line's comparison with it less than 4,096 steps.
pub(super) const VERSIONS_A_METER: usize = 64;

/// A key value that is news: still to be wrapped.
pub(super) struct NewsKey {
    pub(super) id: KeyId,
    pub(super) key: NewKey,
    pub(super) fingerprint: Fingerprint,
    /// Kept when `key.value` has gone into its wrapping.
    pub(super) value_len: usize,
    version: u16,
}

/// What a line brings that is not known yet.
pub(super) struct News {
    pub(super) keys: Vec<NewsKey>,
    /// Name or policy differ.
    pub(super) details: bool,
}

impl News {
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
    let details = meter.policy.as_ref().is_some_and(|policy| *policy != known.policy)
        || (!meter.logical_device_name.is_empty()
            && meter.logical_device_name != known.logical_device_name);
    let mut found: Vec<NewsKey> = Vec::new();
    for key in std::mem::take(&mut meter.keys) {
        let fingerprint = identify(&key)?;
        let same = |setup: SecuritySetup, kind: KeyKind| setup == key.setup && kind == key.kind;
        let mut versions = known
            .keys
            .iter()
            .filter(|k| same(k.setup, k.kind))
            .map(|k| (k.fingerprint, k.version))
            .chain(
                found
                    .iter()
                    .filter(|k| same(k.key.setup, k.key.kind))
                    .map(|k| (k.fingerprint, k.version)),
            );
        if versions.clone().any(|(known, _)| known == fingerprint) {
            continue;
        }
        let had_one = known.keys.iter().any(|k| same(k.setup, k.kind));
        if had_one && !rules.add_versions {
            return Err(refusal(
                "KEY_DIFFERS",
                format!(
                    "the meter already has another {} in security setup {}: rotate the key, or pass \
                     --add-versions to keep both",
                    key.kind, key.setup.0
                ),
            ));
        }
        let (count, latest) = versions
            .by_ref()
            .fold((0, 0), |(count, latest), (_, version)| (count + 1, version.max(latest)));
        if count >= VERSIONS_A_KEY || known.keys.len() + found.len() >= VERSIONS_A_METER {
            return Err(too_many(key.kind, key.setup));
        }
        let Some(version) = latest.checked_add(1) else {
            return Err(too_many(key.kind, key.setup));
        };
        let value_len = key.value.len();
        found.push(NewsKey { id: new_id()?, key, fingerprint, value_len, version });
    }
    Ok(News { keys: found, details })
}

fn too_many(kind: KeyKind, setup: SecuritySetup) -> Refusal {
    refusal(
        "TOO_MANY_VERSIONS",
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
    now_ms: u64,
) {
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
        if let Ok(state) = key.state.after(KeyEvent::Deactivate) {
            key.state = state;
            key.changed_ms = now_ms;
        }
    }
}

fn key_record(news: &NewsKey, value: WrappedValue, now_ms: u64) -> KeyRecord {
    let WrappedValue { wrapped, kcv, fingerprint } = value;
    let protection: Protection = protection_of(&news.key);
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
    }
}

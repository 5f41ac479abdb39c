//! Checks of an import line without looking at anything else.

use super::{
    meter::{ImportRules, NewKey, NewMeter},
    value::KeyValue,
};
use crate::lifecycle::{
    config::Config,
    refusal::{Refusal, refusal},
};
use kms_core::{
    KeyKind, KeyState, MeterPolicy, MeterRecord, ProfileName, RefusalCode, SecuritySetup,
    profile::Profiles, test_keys,
};

/// Longest secret of free length, in bytes: HLS secrets go up to 64 (Green Book, mechanism 2).
const SECRET_LEN_MAX: usize = 64;

/// Longest logical device name, in bytes: 16 in the Blue Book, with room for the operator's own.
pub const LOGICAL_DEVICE_NAME_MAX: usize = 64;

/// Keys in one line: four setups with four keys each, and versions of them.
pub const KEYS_MAX: usize = 64;

/// The transport of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    /// Its keys are in clear.
    Clear,
    /// It is of a sealed file.
    Sealed,
}

/// Checks a line by itself.
pub(super) fn check(
    config: Config,
    rules: ImportRules,
    transport: Transport,
    meter: &NewMeter,
) -> Result<(), Refusal> {
    if meter.logical_device_name.len() > LOGICAL_DEVICE_NAME_MAX {
        return Err(refusal(
            RefusalCode::NameTooLong,
            "a logical device name has at most 64 bytes",
        ));
    }
    if meter.keys.len() > KEYS_MAX {
        return Err(refusal(
            RefusalCode::TooManyKeys,
            format!("a line brings at most {KEYS_MAX} keys"),
        ));
    }
    if transport == Transport::Clear && !meter.keys.is_empty() {
        takes_clear_keys(config)?;
    }
    meter.keys.iter().try_for_each(|key| check_key(rules, transport, key))?;
    check_suites(&meter.keys)
}

/// A security suite has keys of one length: 16 bytes in suites 0 and 1, 32 in suite 2.
fn check_suites(keys: &[NewKey]) -> Result<(), Refusal> {
    let of_suite = |key: &&NewKey| matches!(key.kind, KeyKind::Guek | KeyKind::Gbek | KeyKind::Gak);
    for (nth, key) in keys.iter().enumerate().filter(|(_, key)| of_suite(key)) {
        let before = keys.iter().take(nth).filter(of_suite);
        let mut same_setup = before.filter(|other| other.setup == key.setup);
        if let Some(other) = same_setup.find(|other| other.value.len() != key.value.len()) {
            return Err(refusal(
                RefusalCode::SuitesMixed,
                format!(
                    "the {} of security setup {} has {} bytes and the {} has {}: a security suite has keys \
                     of one length; look which of the two is not this meter's",
                    key.kind,
                    key.setup.0,
                    key.value.len(),
                    other.kind,
                    other.value.len()
                ),
            ));
        }
    }
    Ok(())
}

/// Whether the profile that a line brings is one that this site has. One that a meter has already stays. `known`: the
/// meter, if it is not new.
pub(super) fn profile(
    profiles: &Profiles,
    policy: Option<&MeterPolicy>,
    known: Option<&MeterRecord>,
) -> Result<(), Refusal> {
    let before = known.and_then(|known| known.policy.profile.as_ref());
    let profile = policy.and_then(|policy| policy.profile.as_ref());
    match profile {
        Some(name) if before != Some(name) => known_profile(profiles, name),
        _ => Ok(()),
    }
}

/// Whether this site has the profile.
pub(in crate::lifecycle) fn known_profile(
    profiles: &Profiles,
    name: &ProfileName,
) -> Result<(), Refusal> {
    if profiles.get(name).is_some() {
        return Ok(());
    }
    let names: Vec<&str> = profiles.iter().map(|profile| profile.name.as_str()).collect();
    let has = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    Err(refusal(
        RefusalCode::UnknownProfile,
        format!(
            "this site has no device profile {name} (it has {has}): name one of those, or have its operator put \
             {name}.toml into profiles.dir and start the service again"
        ),
    ))
}

/// The warnings about the keys that a meter has now.
pub(super) fn warnings(record: &MeterRecord) -> Vec<String> {
    let active = |setup, kind| {
        let mut keys = record.keys.iter();
        keys.find(|k| k.setup == setup && k.kind == kind && k.state == KeyState::Active)
    };
    let mut setups: Vec<SecuritySetup> = record.keys.iter().map(|key| key.setup).collect();
    setups.dedup();
    let mut warnings = Vec::new();
    for setup in setups {
        let (guek, gak) = (active(setup, KeyKind::Guek), active(setup, KeyKind::Gak));
        match (guek, gak) {
            (None, Some(_)) => warnings.push(format!(
                "security setup {} has a GAK and no GUEK: nothing that it encrypts can be opened",
                setup.0
            )),
            (Some(guek), Some(gak)) if guek.value_len != gak.value_len => warnings.push(format!(
                "in security setup {} the GUEK has {} bytes and the GAK {}: a security suite has keys of \
                 one length",
                setup.0, guek.value_len, gak.value_len
            )),
            _ => {}
        }
    }
    warnings
}

/// Whether keys in clear are taken at all.
pub(super) fn takes_clear_keys(config: Config) -> Result<(), Refusal> {
    if config.allow_clear {
        return Ok(());
    }
    Err(refusal(
        RefusalCode::ClearImportOff,
        "this site takes no keys in clear: bring them in a sealed file (`ami-tool meter seal`); \
         import.allow_clear is for trials, never for a site in production",
    ))
}

fn check_key(rules: ImportRules, transport: Transport, key: &NewKey) -> Result<(), Refusal> {
    let NewKey { kind, setup: _, protection: _, value } = key;
    check_transport(transport, *kind, value)?;
    check_length(*kind, value)?;
    let protection = key.wanted_protection();
    if !kind.allows(protection) {
        return Err(refusal(
            RefusalCode::Protection,
            match kind {
                KeyKind::Kek => "a KEK is only ever of protection HSM",
                _ => "only GUEK, GBEK and KEK can be of protection HSM",
            },
        ));
    }
    // A sealed value shows its fingerprint later, in the token.
    let known = match value {
        KeyValue::Clear(clear) => test_keys::is_test_key(clear.expose_clear_key_bytes()),
        KeyValue::Sealed(_) | KeyValue::Taken(_) => false,
    };
    if kind.is_cipher_key() && known && !rules.allow_test_keys {
        return Err(test_key(*kind));
    }
    Ok(())
}

/// A key that everybody knows.
pub(super) fn test_key(kind: KeyKind) -> Refusal {
    refusal(
        RefusalCode::TestKey,
        format!(
            "the {kind} is all one byte or a published test key: give the meter's real key, or pass \
             --allow-test-keys on a site that is not in production"
        ),
    )
}

fn check_transport(transport: Transport, kind: KeyKind, value: &KeyValue) -> Result<(), Refusal> {
    match (transport, value) {
        (Transport::Clear, KeyValue::Clear(_)) => Ok(()),
        (Transport::Sealed, KeyValue::Sealed(_)) if kind.is_cipher_key() => Ok(()),
        (Transport::Sealed, KeyValue::Sealed(_)) => Err(refusal(
            RefusalCode::SecretNotSealable,
            format!(
                "a {kind} is of free length, and AES key wrap carries keys of 16 or 32 bytes: leave it \
                 out of the sealed file"
            ),
        )),
        _ => Err(refusal(
            RefusalCode::WrongForm,
            "wrapped keys come in sealed files, clear ones do not",
        )),
    }
}

fn check_length(kind: KeyKind, value: &KeyValue) -> Result<(), Refusal> {
    let len = value.len();
    if kind.is_cipher_key() && !matches!(len, 16 | 32) {
        return Err(refusal(
            RefusalCode::KeyLength,
            format!("a {kind} has 16 bytes (suites 0 and 1) or 32 (suite 2), not {len}"),
        ));
    }
    if !kind.is_cipher_key() && !(1..=SECRET_LEN_MAX).contains(&len) {
        let reason = format!("a {kind} has 1 to {SECRET_LEN_MAX} bytes, not {len}");
        return Err(refusal(RefusalCode::KeyLength, reason));
    }
    Ok(())
}

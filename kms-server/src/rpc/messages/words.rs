//! Between the wire's words for meters and ours.

use bytes::Bytes;
use kms_proto::v1;

use super::status::Refused;
use crate::lifecycle::{
    DamagedMeter, ImportResult, ImportRules, Imported, KEYS_MAX, KeyValue, LOGICAL_DEVICE_NAME_MAX,
    MeterView, NewKey, NewMeter, Page, Refusal,
};
use kms_core::{
    Carrier, ClearKey, ClientTitle, ClientTitles, KeyRecord, MeterId, MeterPolicy, MeterRecord,
    MinimumProtection, Numbered, PastState, ProfileName, SecuritySetup, SystemTitle, Transfer,
    life::choosing::Place, ports::Replicated,
};

/// Keys that are read of a meter: so many more than it may come with that `lifecycle` names the limit to who
/// is a little over it.
const KEYS_READ_MAX: usize = 2 * KEYS_MAX;
const TOO_MANY_KEYS: &str = "a meter comes with 64 keys at most";
const NAME_TOO_LONG: &str = "it has 64 bytes at most";
const TOO_MANY_TITLES: &str = "a meter has 16 client titles at most";
const BAD_PROFILE: &str = "a profile's name is 1 to 32 small letters, digits, dashes and dots, the first one a letter or a digit";
const _: () =
    assert!(ClientTitles::MAX == 16 && ProfileName::LEN_MAX == 32, "as the sentences say");
const _: () = assert!(KEYS_MAX == 64 && LOGICAL_DEVICE_NAME_MAX == 64, "as the sentences say");

const fn field(field: &'static str, problem: &'static str) -> Refused {
    Refused::Field { field, problem }
}

/// A title that has to be there.
pub(crate) fn title(name: &'static str, bytes: &[u8]) -> Result<SystemTitle, Refused> {
    bytes.try_into().map(SystemTitle::new).map_err(|_| field(name, "a system title has 8 bytes"))
}

/// A title that may be left empty.
pub(crate) fn optional_title(
    name: &'static str,
    bytes: &[u8],
) -> Result<Option<SystemTitle>, Refused> {
    if bytes.is_empty() { Ok(None) } else { title(name, bytes).map(Some) }
}

/// A meter's id.
pub(crate) fn meter_id(name: &'static str, id: &str) -> Result<MeterId, Refused> {
    MeterId::new(id)
        .map_err(|_| field(name, "a meter id is 1 to 64 visible ASCII characters without spaces"))
}

/// An item of the wire's.
fn numbered<T: Numbered>(number: i32) -> Option<T> {
    T::from_number(u8::try_from(number).ok()?)
}

/// An item of the wire's, where none may be said; `None`: neither one nor none.
fn optional<T: Numbered>(number: i32) -> Option<Option<T>> {
    if number == 0 { Some(None) } else { numbered(number).map(Some) }
}

/// The form in which a meter's keys come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Clear,
    Sealed,
}

/// A meter as it comes in.
pub(crate) fn new_meter(meter: Option<v1::NewMeter>) -> Result<NewMeter, Refused> {
    meter_of(meter, Form::Clear)
}

/// A meter of either form.
pub(crate) fn meter_of(meter: Option<v1::NewMeter>, form: Form) -> Result<NewMeter, Refused> {
    let v1::NewMeter { meter_id: id, system_title, logical_device_name, keys, policy } =
        meter.ok_or(field("meter", "it is missing"))?;
    if keys.len() > KEYS_READ_MAX {
        return Err(field("meter.keys", TOO_MANY_KEYS));
    }
    if logical_device_name.len() > LOGICAL_DEVICE_NAME_MAX {
        return Err(field("meter.logical_device_name", NAME_TOO_LONG));
    }
    Ok(NewMeter {
        meter_id: meter_id("meter.meter_id", &id)?,
        system_title: title("meter.system_title", &system_title)?,
        logical_device_name,
        keys: keys.into_iter().map(|key| new_key(key, form)).collect::<Result<_, _>>()?,
        policy: policy.map(new_policy).transpose()?,
    })
}

fn new_key(key: v1::NewKey, form: Form) -> Result<NewKey, Refused> {
    let v1::NewKey { kind, security_setup, protection, clear_value, wrapped_value } = key;
    let kind = numbered(kind).ok_or(field("meter.keys.kind", "it is none of KeyKind's"))?;
    let setup = u8::try_from(security_setup)
        .map(SecuritySetup)
        .map_err(|_| field("meter.keys.security_setup", "it is 0 to 255"))?;
    let protection = optional(protection)
        .ok_or(field("meter.keys.protection", "it is none of ProtectionLevel's"))?;
    let value = match form {
        Form::Clear if wrapped_value.is_empty() => ClearKey::new(clear_value.to_vec()).into(),
        Form::Clear => {
            return Err(field("meter.keys.wrapped_value", "it comes only in a sealed file"));
        }
        Form::Sealed if clear_value.is_empty() => KeyValue::Sealed(wrapped_value[..].into()),
        Form::Sealed => {
            return Err(field("meter.keys.clear_value", "a sealed file has no keys in clear"));
        }
    };
    Ok(NewKey { kind, setup, protection, value })
}

/// A policy.
pub(crate) fn new_policy(policy: v1::MeterPolicy) -> Result<MeterPolicy, Refused> {
    let v1::MeterPolicy {
        minimum_protection,
        allow_encryption_only,
        allow_withheld_authentication_key,
        default_system_title,
        client_title,
        general_ciphering_omit_header,
        profile,
        client_titles,
        allow_compromised,
    } = policy;
    let problem = "it is none of MinimumProtection's";
    let minimum_protection = optional::<MinimumProtection>(minimum_protection)
        .ok_or(field("meter.policy.minimum_protection", problem))?
        .unwrap_or_default();
    Ok(MeterPolicy {
        minimum_protection,
        allow_encryption_only,
        allow_withheld_authentication_key,
        default_system_title: optional_title(
            "meter.policy.default_system_title",
            &default_system_title,
        )?,
        client_title: optional_title("meter.policy.client_title", &client_title)?,
        general_ciphering_omit_header,
        profile: (!profile.is_empty()).then(|| profile_name(&profile)).transpose()?,
        client_titles: new_client_titles(&client_titles)?,
        allow_compromised,
    })
}

fn profile_name(name: &str) -> Result<ProfileName, Refused> {
    ProfileName::new(name).map_err(|_| field("meter.policy.profile", BAD_PROFILE))
}

fn new_client_titles(titles: &[v1::ClientTitle]) -> Result<ClientTitles, Refused> {
    const NAME: &str = "meter.policy.client_titles";
    // More than that are counted, and not read.
    if titles.len() > ClientTitles::MAX {
        return Err(field(NAME, TOO_MANY_TITLES));
    }
    let titles = titles.iter().map(|wire| {
        let v1::ClientTitle { security_setup, client, system_title } = wire;
        let setup = u8::try_from(*security_setup)
            .map(SecuritySetup)
            .map_err(|_| field("meter.policy.client_titles.security_setup", "it is 0 to 255"))?;
        let client = u16::try_from(*client)
            .map_err(|_| field("meter.policy.client_titles.client", "it is 0 to 65535"))?;
        let title = title("meter.policy.client_titles.system_title", system_title)?;
        Ok(ClientTitle { setup, client, title })
    });
    let twice = "a client of a security setup has two titles: leave one of them";
    ClientTitles::new(titles.collect::<Result<_, Refused>>()?).map_err(|_| field(NAME, twice))
}

/// The rules of an import.
pub(crate) fn rules(rules: Option<v1::ImportRules>) -> ImportRules {
    let v1::ImportRules { allow_test_keys, add_versions, dry_run, change_policy } =
        rules.unwrap_or_default();
    ImportRules { allow_test_keys, add_versions, dry_run, change_policy }
}

/// A meter as it stands.
pub(crate) fn meter(view: MeterView) -> v1::Meter {
    let MeterView { record, block } = view;
    v1::Meter {
        meter_id: record.meter_id.as_str().to_owned(),
        system_title: title_bytes(&record.system_title),
        logical_device_name: record.logical_device_name.clone(),
        policy: Some(policy(&record.policy)),
        keys: record.keys.iter().map(|it| key_of(&record, it)).collect(),
        block: block.0,
        created_ms: record.created_ms,
        legal_hold_ms: record.legal_hold_ms,
    }
}

/// A page of a list.
pub(crate) fn page(page: Page) -> v1::ListMetersResponse {
    let Page { meters, damaged, next } = page;
    v1::ListMetersResponse {
        meters: meters.into_iter().map(meter).collect(),
        next: next.map_or_else(String::new, |id| id.as_str().to_owned()),
        damaged: damaged.into_iter().map(damaged_meter).collect(),
    }
}

fn damaged_meter(meter: DamagedMeter) -> v1::DamagedMeter {
    let DamagedMeter { meter_id, system_title, block, reason } = meter;
    v1::DamagedMeter {
        meter_id: meter_id.as_str().to_owned(),
        system_title: title_bytes(&system_title),
        block: block.0,
        reason,
    }
}

/// Everything about a key but the key: not its wrapped bytes either, nor its fingerprint.
pub(crate) fn key_of(meter: &MeterRecord, record: &KeyRecord) -> v1::Key {
    let preferred = Place::of(record).preferred(meter).is_some_and(|it| it.id == record.id);
    let life = &record.life;
    v1::Key {
        reason: life.reason as i32,
        changed_ms: record.changed_ms,
        past: life.past.iter().map(past_state).collect(),
        preferred,
        usable_until_ms: life.usable_until_ms,
        destroy_at_ms: life.destroy_at_ms,
        transfer: life.transfer.as_ref().map(transfer),
        key_id: Bytes::copy_from_slice(&record.id.0),
        kind: record.kind as i32,
        security_setup: record.setup.0.into(),
        version: record.version.into(),
        state: record.state as i32,
        protection: record.protection as i32,
        kcv: record.kcv.map_or_else(Bytes::new, |kcv| Bytes::copy_from_slice(&kcv)),
        created_ms: record.created_ms,
    }
}

/// A state that a key was in before.
fn past_state(it: &PastState) -> v1::PastKeyState {
    v1::PastKeyState { state: it.state as i32, since_ms: it.since_ms, reason: it.reason as i32 }
}

/// The association that carries a key to its meter.
pub(super) fn key_carrier(carrier: &Carrier) -> v1::KeyCarrier {
    v1::KeyCarrier {
        security_setup: carrier.setup.0.into(),
        client: carrier.client.into(),
        form: carrier.form as i32,
    }
}

/// Nothing of the wrapped key: it leaves within its ciphered APDU alone.
fn transfer(transfer: &Transfer) -> v1::KeyTransfer {
    let Transfer {
        request,
        kek,
        class_version,
        carrier,
        wrapped: _,
        unreplicated,
        sent_ms,
        result,
    } = transfer;
    v1::KeyTransfer {
        request_id: request.clone(),
        kek_id: Bytes::copy_from_slice(&kek.0),
        class_version: (*class_version).into(),
        carrier: Some(key_carrier(carrier)),
        unreplicated: *unreplicated,
        sent_ms: *sent_ms,
        result: result.map_or(0, |(result, _)| result as i32),
        result_ms: result.map_or(0, |(_, at_ms)| at_ms),
    }
}

fn policy(policy: &MeterPolicy) -> v1::MeterPolicy {
    let optional =
        |title: &Option<SystemTitle>| title.as_ref().map_or_else(Bytes::new, title_bytes);
    v1::MeterPolicy {
        minimum_protection: policy.minimum_protection as i32,
        allow_encryption_only: policy.allow_encryption_only,
        allow_withheld_authentication_key: policy.allow_withheld_authentication_key,
        default_system_title: optional(&policy.default_system_title),
        client_title: optional(&policy.client_title),
        general_ciphering_omit_header: policy.general_ciphering_omit_header,
        profile: policy.profile.as_ref().map_or_else(String::new, ProfileName::to_string),
        client_titles: policy.client_titles.as_slice().iter().map(client_title).collect(),
        allow_compromised: policy.allow_compromised,
    }
}

fn client_title(entry: &ClientTitle) -> v1::ClientTitle {
    let ClientTitle { setup, client, title } = entry;
    v1::ClientTitle {
        security_setup: setup.0.into(),
        client: (*client).into(),
        system_title: title_bytes(title),
    }
}

fn title_bytes(title: &SystemTitle) -> Bytes {
    Bytes::copy_from_slice(title.as_bytes())
}

/// One line's result.
pub(crate) fn import_result(line: u64, meter_id: String, result: ImportResult) -> v1::ImportResult {
    use v1::import_result::Outcome;
    let ImportResult { outcome, warnings } = result;
    let (outcome, code, reason) = match outcome {
        Ok(Imported::Created) => (Outcome::Created, "", String::new()),
        Ok(Imported::Updated) => (Outcome::Updated, "", String::new()),
        Ok(Imported::Unchanged) => (Outcome::Unchanged, "", String::new()),
        Err(Refusal { code, reason }) => (Outcome::Refused, code.word(), reason),
    };
    v1::ImportResult {
        line,
        outcome: outcome as i32,
        meter_id,
        code: code.to_owned(),
        reason,
        warnings,
    }
}

/// Whether the other site has a change.
pub(crate) fn replicated(replicated: Replicated) -> v1::Replicated {
    match replicated {
        Replicated::NotApplicable => v1::Replicated::Unspecified,
        Replicated::Yes => v1::Replicated::Replicated,
        Replicated::No => v1::Replicated::Unreplicated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kms_core::{
        BlockNo, Carrier, ChangeMark, Fingerprint, KeyId, KeyKind, KeyLife, KeyState, Protection,
    };

    fn wire_meter() -> v1::NewMeter {
        v1::NewMeter {
            meter_id: "KFM-1".into(),
            system_title: Bytes::from_static(b"KFM\0\0\0\0\x01"),
            logical_device_name: String::new(),
            keys: vec![v1::NewKey {
                kind: v1::KeyKind::Guek as i32,
                security_setup: 0,
                protection: 0,
                clear_value: Bytes::from_static(&[0xAB; 16]),
                wrapped_value: Bytes::new(),
            }],
            policy: None,
        }
    }

    #[test]
    fn a_meter_comes_in() {
        let meter = new_meter(Some(wire_meter())).unwrap();
        assert_eq!(meter.meter_id.as_str(), "KFM-1");
        assert_eq!(meter.keys[0].kind, KeyKind::Guek);
        assert_eq!(meter.keys[0].protection, None);
        let KeyValue::Clear(value) = &meter.keys[0].value else { panic!("{meter:?}") };
        assert_eq!(value.expose_clear_key_bytes(), [0xAB; 16]);
        assert_eq!(meter.policy, None);
    }

    #[test]
    fn a_field_that_makes_no_sense_is_named() {
        let fault = |change: fn(&mut v1::NewMeter)| {
            let mut meter = wire_meter();
            change(&mut meter);
            match new_meter(Some(meter)) {
                Err(Refused::Field { field, .. }) => field,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(fault(|m| m.meter_id.clear()), "meter.meter_id");
        assert_eq!(fault(|m| m.system_title = Bytes::new()), "meter.system_title");
        assert_eq!(fault(|m| m.keys[0].kind = 0), "meter.keys.kind");
        assert_eq!(fault(|m| m.keys[0].kind = 8), "meter.keys.kind");
        assert_eq!(fault(|m| m.keys[0].kind = 257), "meter.keys.kind");
        assert_eq!(fault(|m| m.keys[0].protection = 3), "meter.keys.protection");
        assert_eq!(fault(|m| m.keys[0].security_setup = 256), "meter.keys.security_setup");
        assert_eq!(fault(|m| m.keys = vec![m.keys[0].clone(); 129]), "meter.keys");
        let policy = |minimum_protection, title: &'static [u8]| {
            Some(v1::MeterPolicy {
                minimum_protection,
                client_title: Bytes::from_static(title),
                ..v1::MeterPolicy::default()
            })
        };
        let mut meter = wire_meter();
        meter.policy = policy(3, b"");
        assert!(new_meter(Some(meter.clone())).is_err());
        meter.policy = policy(0, b"x");
        assert!(new_meter(Some(meter)).is_err());
        assert!(matches!(new_meter(None), Err(Refused::Field { field: "meter", .. })));
    }

    #[test]
    fn a_profile_and_client_titles_come_in_and_go_out_and_what_makes_no_sense_is_named() {
        let entry = |setup: u32, client: u32, title: &'static [u8]| v1::ClientTitle {
            security_setup: setup,
            client,
            system_title: Bytes::from_static(title),
        };
        let wire = v1::MeterPolicy {
            minimum_protection: v1::MinimumProtection::Authenticated as i32,
            profile: "gbcs".into(),
            client_titles: vec![entry(0, 16, b"KFM\0\0\0\0\x09"), entry(1, 1, b"KFM\0\0\0\0\x08")],
            ..v1::MeterPolicy::default()
        };
        let ours = new_policy(wire.clone()).unwrap();
        assert_eq!(ours.profile.as_ref().map(ProfileName::as_str), Some("gbcs"));
        assert_eq!(policy(&ours), wire);
        let fault = |change: fn(&mut v1::MeterPolicy)| {
            let mut policy = wire.clone();
            change(&mut policy);
            match new_policy(policy) {
                Err(Refused::Field { field, .. }) => field.rsplit('.').next().unwrap(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(fault(|p| p.profile = "GBCS".into()), "profile");
        assert_eq!(fault(|p| p.client_titles[0].security_setup = 256), "security_setup");
        assert_eq!(fault(|p| p.client_titles[0].client = 65_536), "client");
        assert_eq!(fault(|p| p.client_titles[0].system_title = Bytes::new()), "system_title");
        assert_eq!(fault(|p| p.client_titles[1] = p.client_titles[0].clone()), "client_titles");
        assert_eq!(
            fault(|p| p.client_titles = vec![p.client_titles[0].clone(); 17]),
            "client_titles"
        );
    }

    #[test]
    fn a_key_in_the_wrong_form_is_refused_in_both_directions() {
        let named = |wire: v1::NewMeter, form| match meter_of(Some(wire), form) {
            Err(Refused::Field { field, .. }) => Some(field),
            _ => None,
        };
        assert_eq!(named(wire_meter(), Form::Sealed), Some("meter.keys.clear_value"));
        let mut sealed = wire_meter();
        sealed.keys[0].wrapped_value = Bytes::from_static(&[1; 24]);
        assert_eq!(named(sealed.clone(), Form::Clear), Some("meter.keys.wrapped_value"));
        sealed.keys[0].clear_value = Bytes::new();
        assert_eq!(named(sealed.clone(), Form::Clear), Some("meter.keys.wrapped_value"));
        let meter = meter_of(Some(sealed), Form::Sealed).unwrap();
        assert_eq!(meter.keys[0].value.len(), 16);
    }

    #[test]
    fn a_meters_view_shows_neither_wrapped_bytes_nor_fingerprints() {
        let record = MeterRecord {
            meter_id: MeterId::new("KFM-1").unwrap(),
            system_title: SystemTitle::new(*b"KFM\0\0\0\0\x01"),
            logical_device_name: "LDN".into(),
            policy: MeterPolicy::default(),
            keys: vec![KeyRecord {
                id: KeyId([1; 16]),
                setup: SecuritySetup(2),
                kind: KeyKind::Gak,
                version: 3,
                state: KeyState::Active,
                protection: Protection::Memory,
                wrapped: vec![0xCD; 24],
                value_len: 16,
                created_ms: 4,
                changed_ms: 5,
                kcv: Some([6; 5]),
                fingerprint: Fingerprint([0xEF; 16]),
                life: KeyLife {
                    transfer: Some(Transfer {
                        request: "r".into(),
                        kek: KeyId([3; 16]),
                        class_version: 1,
                        carrier: Carrier::default(),
                        wrapped: vec![0xAB; 24],
                        unreplicated: false,
                        sent_ms: None,
                        result: None,
                    }),
                    ..KeyLife::default()
                },
            }],
            created_ms: 7,
            former: Vec::new(),
            changed_by: ChangeMark::default(),
            legal_hold_ms: None,
        };
        let meter = meter(MeterView { record, block: BlockNo(8) });
        let encoded = prost::Message::encode_to_vec(&meter);
        assert!(
            !encoded
                .windows(4)
                .any(|bytes| [[0xCD; 4], [0xEF; 4], [0xAB; 4]].iter().any(|it| bytes == it))
        );
        let key = &meter.keys[0];
        assert_eq!((key.version, key.security_setup, key.kind), (3, 2, v1::KeyKind::Gak as i32));
        assert_eq!((meter.block, meter.created_ms), (8, 7));
    }
}

//! Records come back as they were, and nothing else decodes.

use proptest::prelude::*;

use super::*;
use crate::fact::{AcceptedFile, FactName, NewestList};
use crate::{
    AssociationForm, Carrier, KeyKind, KeyState, MinimumProtection, PastState, Protection,
    StateReason, Transfer, TransferResult,
};

fn title() -> impl Strategy<Value = SystemTitle> {
    any::<[u8; 8]>().prop_map(SystemTitle::new)
}

fn key() -> impl Strategy<Value = KeyRecord> {
    (
        any::<([u8; 16], u8, u16, u8, u64, u64, [u8; 16], Option<[u8; 5]>)>(),
        prop::sample::select(KeyKind::ALL),
        prop::sample::select(KeyState::ALL),
        prop::sample::select(&[Protection::Hsm, Protection::Memory][..]),
        prop::collection::vec(any::<u8>(), 0..80),
        key_life(),
    )
        .prop_map(|(plain, kind, state, protection, wrapped, life)| KeyRecord {
            life,
            id: KeyId(plain.0),
            setup: SecuritySetup(plain.1),
            version: plain.2,
            value_len: plain.3,
            created_ms: plain.4,
            changed_ms: plain.5,
            fingerprint: Fingerprint(plain.6),
            kcv: plain.7,
            kind,
            state,
            protection,
            wrapped,
        })
}

/// Most keys have none.
fn key_life() -> impl Strategy<Value = KeyLife> {
    let reason = || prop::sample::select(StateReason::ALL);
    let past = (prop::sample::select(KeyState::ALL), any::<u64>(), reason())
        .prop_map(|(state, since_ms, reason)| PastState { state, since_ms, reason });
    let form = prop::sample::select(AssociationForm::ALL);
    let result = prop::option::of((prop::sample::select(TransferResult::ALL), any::<u64>()));
    let transfer = (
        ("[ -~]{0,80}", any::<([u8; 16], u8, u8, u16, bool, Option<u64>)>()),
        form,
        prop::collection::vec(any::<u8>(), 0..41),
        result,
    )
        .prop_map(|((request, plain), form, wrapped, result)| Transfer {
            request,
            kek: KeyId(plain.0),
            class_version: plain.1,
            carrier: Carrier { setup: SecuritySetup(plain.2), client: plain.3, form },
            wrapped,
            unreplicated: plain.4,
            sent_ms: plain.5,
            result,
        });
    let times = any::<(u64, Option<u64>, Option<u64>)>();
    let some = (reason(), prop::collection::vec(past, 0..5), times, prop::option::of(transfer))
        .prop_map(|(reason, past, times, transfer)| KeyLife {
            reason,
            past,
            preferred_ms: times.0,
            usable_until_ms: times.1,
            destroy_at_ms: times.2,
            transfer,
        });
    prop_oneof![3 => Just(KeyLife::default()), 1 => some]
}

fn meter() -> impl Strategy<Value = Record> {
    (
        "[!-~]{1,64}",
        title(),
        ".{0,20}",
        prop::option::of(title()),
        prop::option::of(title()),
        any::<(bool, bool, bool, bool, u64, (bool, bool, u64))>(),
        prop::collection::vec(key(), 0..5),
        (prop::collection::vec(former(), 0..4), mark()),
        details(),
    )
        .prop_map(
            |(id, title, ldn, own, client, flags, keys, (former, changed_by), details)| {
                Record::Meter(MeterRecord {
                    meter_id: MeterId::new(&id).unwrap(),
                    system_title: title,
                    logical_device_name: ldn,
                    policy: MeterPolicy {
                        minimum_protection: if flags.0 {
                            MinimumProtection::Authenticated
                        } else {
                            MinimumProtection::AuthenticatedEncrypted
                        },
                        allow_encryption_only: flags.1,
                        allow_withheld_authentication_key: flags.2,
                        general_ciphering_omit_header: flags.3,
                        default_system_title: own,
                        client_title: client,
                        profile: details.0,
                        client_titles: details.1,
                        allow_compromised: flags.5.0,
                    },
                    keys,
                    created_ms: flags.4,
                    former,
                    changed_by,
                    legal_hold_ms: flags.5.1.then_some(flags.5.2),
                })
            },
        )
}

/// Half of all meters have none.
fn details() -> impl Strategy<Value = (Option<ProfileName>, ClientTitles)> {
    let name = "[a-z0-9][a-z0-9.-]{0,31}".prop_map(|name| ProfileName::new(&name).unwrap());
    let titles =
        prop::collection::btree_map(any::<(u8, u16)>(), title(), 0..5).prop_map(|titles| {
            let titles = titles.into_iter().map(|((setup, client), title)| ClientTitle {
                setup: SecuritySetup(setup),
                client,
                title,
            });
            ClientTitles::new(titles.collect()).unwrap()
        });
    let some = (prop::option::of(name), titles);
    prop_oneof![Just((None, ClientTitles::NONE)), some]
}

fn former() -> impl Strategy<Value = FormerKey> {
    let was =
        (any::<u8>(), prop::sample::select(KeyKind::ALL), prop::sample::select(KeyState::ALL));
    (any::<[u8; 16]>(), prop::option::of(was)).prop_map(|(fingerprint, was)| FormerKey {
        fingerprint: Fingerprint(fingerprint),
        was: was.map(|(setup, kind, state)| FormerUse { setup: SecuritySetup(setup), kind, state }),
    })
}

fn mark() -> impl Strategy<Value = ChangeMark> {
    any::<(u64, Option<([u8; 16], u64)>)>().prop_map(|(at_ms, file)| ChangeMark {
        at_ms,
        file: file.map(|(file, line)| FilePlace { file, line }),
    })
}

fn tombstone() -> impl Strategy<Value = Record> {
    (
        prop::option::of("[!-~]{1,64}"),
        title(),
        prop::collection::vec(former(), 0..5),
        any::<(u64, Option<u64>)>(),
        mark(),
    )
        .prop_map(|(id, system_title, keys, (deleted_ms, readmitted_ms), changed_by)| {
            Record::Tombstone(Tombstone {
                meter_id: id.map(|id| MeterId::new(&id).unwrap()),
                system_title,
                keys,
                deleted_ms,
                changed_by,
                readmitted_ms,
            })
        })
}

fn line() -> impl Strategy<Value = Record> {
    (any::<[u8; 16]>(), title(), any::<Option<i64>>()).prop_map(|(value, originator, offset)| {
        let name = LineName { fingerprint: Fingerprint(value), originator };
        Record::Line(Line { name, offset: offset.map(|n| Offset::new(n & !1).unwrap()) })
    })
}

fn any_record() -> impl Strategy<Value = Record> {
    prop_oneof![4 => meter(), 4 => tombstone(), 1 => line(), 1 => file(), 1 => list()]
}

fn file() -> impl Strategy<Value = Record> {
    any::<([u8; 32], [u8; 16], [u8; 32], u64, u64)>().prop_map(
        |(signer, file_id, header, sealed_ms, taken_ms)| {
            Record::Fact(Fact::File(AcceptedFile { signer, file_id, header, sealed_ms, taken_ms }))
        },
    )
}

fn list() -> impl Strategy<Value = Record> {
    let number = prop::collection::vec(1u8.., 1..=NUMBER_MAX);
    (any::<[u8; 32]>(), prop::option::of(number), any::<u64>()).prop_map(
        |(authority, number, this_update_ms)| {
            Record::Fact(Fact::List(NewestList { authority, number, this_update_ms, resets: 0 }))
        },
    )
}

fn is_of_first(record: &Record) -> bool {
    match record {
        Record::Meter(meter) => !has_details(&meter.policy) && !life::has_life(meter),
        Record::Tombstone(gone) => gone.meter_id.is_some(),
        Record::Line(_) | Record::Fact(_) => false,
    }
}

#[test]
fn a_record_that_would_not_decode_is_not_encoded() {
    let key = KeyRecord {
        id: KeyId([1; 16]),
        setup: SecuritySetup(0),
        kind: KeyKind::Guek,
        version: 1,
        state: KeyState::Active,
        protection: Protection::Memory,
        wrapped: vec![2; 24],
        value_len: 16,
        created_ms: 3,
        changed_ms: 3,
        kcv: None,
        fingerprint: Fingerprint([4; 16]),
        life: KeyLife::default(),
    };
    let with = |keys, name: usize| {
        Record::Meter(MeterRecord {
            meter_id: MeterId::new("m").unwrap(),
            system_title: SystemTitle::new([7; 8]),
            logical_device_name: "n".repeat(name),
            policy: MeterPolicy::default(),
            keys: vec![key.clone(); keys],
            created_ms: 0,
            former: Vec::new(),
            changed_by: ChangeMark::default(),
            legal_hold_ms: None,
        })
    };
    let what = |record: &Record| record.encode().unwrap_err().what;
    assert_eq!(what(&with(65_536, 0)), "key versions");
    assert_eq!(what(&with(0, 65_536)), "logical device name's bytes");
    let most = with(65_535, 65_535);
    assert_eq!(Record::decode(&most.encode().unwrap()), Ok(most));
    let buried = Record::Tombstone(Tombstone {
        meter_id: None,
        system_title: SystemTitle::new([7; 8]),
        keys: vec![FormerKey { fingerprint: Fingerprint([4; 16]), was: None }; 65_536],
        deleted_ms: 0,
        changed_by: ChangeMark::default(),
        readmitted_ms: None,
    });
    assert_eq!(what(&buried), "former keys");
}

/// As the first schema wrote it: what it does not hold is left out.
fn encode_first(record: &Record) -> Vec<u8> {
    let mut out = vec![FIRST_SCHEMA];
    match record {
        Record::Meter(meter) => {
            out.push(LABEL_METER);
            put_meter(&mut out, meter).unwrap();
            let mut tail = Vec::new();
            put_former(&mut tail, &meter.former).unwrap();
            put_mark(&mut tail, &meter.changed_by);
            out.truncate(out.len() - tail.len());
        }
        Record::Tombstone(tombstone) => {
            out.push(LABEL_TOMBSTONE);
            let id = tombstone.meter_id.as_ref().map_or("", MeterId::as_str);
            put_bytes(&mut out, "meter id", id.as_bytes()).unwrap();
            out.extend_from_slice(tombstone.system_title.as_bytes());
            out.extend_from_slice(&tombstone.deleted_ms.to_be_bytes());
            out.extend_from_slice(&(tombstone.keys.len() as u16).to_be_bytes());
            for key in &tombstone.keys {
                out.extend_from_slice(&key.fingerprint.0);
            }
        }
        Record::Line(_) | Record::Fact(_) => unreachable!("it had none"),
    }
    out
}

/// The record, with only the fields that the first schema keeps.
fn as_first(mut record: Record) -> Record {
    match &mut record {
        Record::Meter(meter) => {
            (meter.former, meter.changed_by) = (Vec::new(), ChangeMark::default());
        }
        Record::Tombstone(tombstone) => {
            (tombstone.changed_by, tombstone.readmitted_ms) = (ChangeMark::default(), None);
            for key in &mut tombstone.keys {
                key.was = None;
            }
        }
        Record::Line(_) | Record::Fact(_) => {}
    }
    record
}

proptest! {
    #[test]
    fn a_record_comes_back_as_it_was(record in any_record()) {
        prop_assert_eq!(Record::decode(&record.encode().unwrap()), Ok(record));
    }

    #[test]
    fn a_record_of_the_first_schema_is_read_and_nothing_else_under_its_number(
        record in any_record().prop_filter("it had neither lines nor facts nor nameless tombstones nor profiles", is_of_first),
        at in any::<prop::sample::Index>(),
        bit in 0u32..8,
    ) {
        let mut body = encode_first(&record);
        prop_assert_eq!(Record::decode(&body), Ok(as_first(record)));
        prop_assert_eq!(Record::decode(&[&body[..], &[0]].concat()), Err(BadRecord));
        let at = at.index(body.len());
        prop_assert_eq!(Record::decode(&body[..at]), Err(BadRecord));
        body[at.max(1)] ^= 1 << bit;
        if let Ok(other) = Record::decode(&body) {
            prop_assert_eq!(encode_first(&other), body);
        }
    }

    #[test]
    fn a_record_begins_as_one_of_those_that_are_read(record in any_record()) {
        let body = record.encode().unwrap();
        prop_assert!(BEGINNINGS.contains(&[body[0], body[1]]));
        // Each other schema, and each other label, is read by nobody here.
        for schema in 0..=u8::MAX {
            for label in [1, 2, 3, 4, 5, 6, 200] {
                let other = [&[schema, label][..], &body[2..]].concat();
                prop_assert!(BEGINNINGS.contains(&[schema, label]) || Record::decode(&other).is_err());
            }
        }
    }

    #[test]
    fn a_cut_or_longer_record_is_refused(record in any_record(), cut in any::<prop::sample::Index>()) {
        let body = record.encode().unwrap();
        prop_assert_eq!(Record::decode(&body[..cut.index(body.len())]), Err(BadRecord));
        prop_assert_eq!(Record::decode(&[&body[..], &[0]].concat()), Err(BadRecord));
    }

    #[test]
    fn what_decodes_encodes_to_the_same_bytes(record in any_record(), at in any::<prop::sample::Index>(), bit in 0u32..8) {
        let mut body = record.encode().unwrap();
        let at = at.index(body.len());
        body[at] ^= 1 << bit;
        // Under the first schema's number it is that one's.
        if let Ok(other) = Record::decode(&body).and_then(|other| if body[0] != FIRST_SCHEMA { Ok(other) } else { Err(BadRecord) }) {
            prop_assert_eq!(other.encode().unwrap(), body);
        }
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Record::decode(&bytes);
    }
}

#[test]
fn keys_stand_in_the_order_of_their_bytes_and_none_begins_another() {
    let key = |bytes: &[u8]| RecordKey::from_bytes(bytes).unwrap();
    let ordered = [&[1u8][..], &[1, 0], &[1, 0, 0], &[1, 0, 1], &[2, 2], &[2, 3, 0]];
    for pair in ordered.windows(2) {
        assert!(key(pair[0]) < key(pair[1]), "{pair:?}");
        assert_eq!(key(pair[0]).as_bytes(), pair[0]);
    }
    let meter = RecordKey::meter(&SystemTitle::new(*b"LGZ\x00\x01\x02\x03\x04"));
    assert!(meter.is_well_formed() && meter.is_meter());
    assert_eq!(key(meter.as_bytes()), meter);
    assert!(!key(&[meter.as_bytes(), &[0]].concat()).is_well_formed());
    assert!(!key(&meter.as_bytes()[..8]).is_well_formed());
    assert!(key(&[9, 4, 0, 7]).is_well_formed() && !key(&[9, 4, 0]).is_well_formed());
    assert_eq!((RecordKey::from_bytes(&[]), RecordKey::from_bytes(&[3; 33])), (None, None));
}

#[test]
fn a_lines_key_is_its_name_and_its_body_is_strict() {
    let name = LineName { fingerprint: Fingerprint([7; 16]), originator: SystemTitle::new([9; 8]) };
    let line = Record::Line(Line { name, offset: Offset::new(-2) });
    let key = RecordKey::line(&name);
    assert_eq!((line.key(), key.as_bytes().len()), (key, 26));
    assert!(key.is_well_formed() && !key.is_meter() && key.system_title().is_none());
    let mut body = line.encode().unwrap();
    assert_eq!(Record::decode(&body), Ok(line));
    *body.last_mut().unwrap() ^= 1;
    assert_eq!(Record::decode(&body), Err(BadRecord), "an odd offset");
    body[0] = FIRST_SCHEMA;
    assert_eq!(Record::decode(&body), Err(BadRecord));
}

fn plain_meter(policy: MeterPolicy) -> Record {
    Record::Meter(MeterRecord {
        meter_id: MeterId::new("m1").unwrap(),
        system_title: SystemTitle::new(*b"KFM\0\0\0\0\x01"),
        logical_device_name: "n".into(),
        policy,
        keys: Vec::new(),
        created_ms: 7,
        former: Vec::new(),
        changed_by: ChangeMark { at_ms: 9, file: None },
        legal_hold_ms: None,
    })
}

#[test]
fn a_meters_bytes_are_these_and_its_schema_is_the_oldest_that_holds_it() {
    let title = "4b464d0000000001";
    let begins = |schema: &str| format!("{schema}01 0002 6d31 {title} 0001 6e");
    let policy = "02 00 00 00 00 00";
    let ends = "0000000000000007 0000 0000 0000000000000009 00";
    let bytes = |text: &str| hex::decode(text.replace(' ', "")).unwrap();
    let plain = plain_meter(MeterPolicy::default());
    let second = bytes(&format!("{} {policy} {ends}", begins("02")));
    assert_eq!(plain.encode().unwrap(), second);
    let client = |client| ClientTitle {
        setup: SecuritySetup(1),
        client,
        title: SystemTitle::new(*b"KFM\0\0\0\0\x01"),
    };
    let detailed = plain_meter(MeterPolicy {
        profile: Some(ProfileName::new("gbcs").unwrap()),
        client_titles: ClientTitles::new(vec![client(0x0102), client(3)]).unwrap(),
        ..MeterPolicy::default()
    });
    let details = format!("0004 67626373 0002 01 0003 {title} 01 0102 {title}");
    let third = bytes(&format!("{} {policy} {ends} {details}", begins("03")));
    assert_eq!(detailed.encode().unwrap(), third);
    assert_eq!(Record::decode(&third), Ok(detailed));

    // What would have been written in another way is no record: nothing to say, and titles out of order, or twice.
    for details in [
        "0000 0000".to_owned(),
        format!("0000 0002 01 0102 {title} 01 0003 {title}"),
        format!("0000 0002 01 0003 {title} 01 0003 {title}"),
        "0001 41 0000".to_owned(),
    ] {
        let body = bytes(&format!("{} {policy} {ends} {details}", begins("03")));
        assert_eq!(Record::decode(&body), Err(BadRecord), "{details}");
    }
    let mut under_another_number = third;
    under_another_number[0] = SECOND_SCHEMA;
    assert_eq!(Record::decode(&under_another_number), Err(BadRecord));
    let line = Record::Line(Line {
        name: LineName { fingerprint: Fingerprint([7; 16]), originator: SystemTitle::new([9; 8]) },
        offset: None,
    });
    let mut body = line.encode().unwrap();
    assert_eq!(body[0], SECOND_SCHEMA);
    body[0] = SCHEMA;
    assert_eq!(Record::decode(&body), Err(BadRecord));
}

#[test]
fn names_tell_signers_files_and_authorities_apart() {
    let names = [
        FactName::of_file(&[1; 32], &[1; 16]),
        FactName::of_file(&[2; 32], &[1; 16]),
        FactName::of_file(&[1; 32], &[2; 16]),
        FactName::of_list(&[1; 32]),
        FactName::of_list(&[2; 32]),
    ];
    let all: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!(all.len(), names.len());
    for name in names {
        let key = RecordKey::fact(&name);
        assert!(key.is_well_formed() && !key.is_meter() && key.as_bytes().len() == 32);
        assert_eq!(key.system_title(), None);
    }
}

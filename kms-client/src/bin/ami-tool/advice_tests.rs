//! What the service advises about a stuck meter is typed as it says: each command is one of this tool.

use std::collections::BTreeSet;

use clap::Parser as _;
use kms_core::campaign::advice::advice;
use kms_core::key::{Carrier, KeyId, KeyLife, Transfer};
use kms_core::meter::{ChangeMark, MeterPolicy};
use kms_core::{
    Fingerprint, KeyKind, KeyRecord, KeyState, MeterId, MeterRecord, Protection, SecuritySetup,
    SystemTitle,
};

use crate::args::Arguments;

fn key(kind: KeyKind, setup: u8, version: u16, state: KeyState) -> KeyRecord {
    KeyRecord {
        id: KeyId([version as u8; 16]),
        setup: SecuritySetup(setup),
        kind,
        version,
        state,
        protection: Protection::Memory,
        wrapped: Vec::new(),
        value_len: 16,
        created_ms: 0,
        changed_ms: 0,
        kcv: None,
        fingerprint: Fingerprint([0; 16]),
        life: KeyLife::default(),
    }
}

fn staged(key: KeyRecord, sent_ms: Option<u64>) -> KeyRecord {
    let transfer = Transfer {
        request: "campaign spring".into(),
        kek: KeyId([9; 16]),
        class_version: 0,
        carrier: Carrier { setup: key.setup, ..Carrier::default() },
        wrapped: Vec::new(),
        unreplicated: false,
        sent_ms,
        result: None,
    };
    KeyRecord { life: KeyLife { transfer: Some(transfer), ..KeyLife::default() }, ..key }
}

fn meter(id: &str, keys: Vec<KeyRecord>) -> MeterRecord {
    MeterRecord {
        meter_id: MeterId::new(id).unwrap(),
        system_title: SystemTitle::new([0x4D; 8]),
        logical_device_name: String::new(),
        policy: MeterPolicy::default(),
        keys,
        created_ms: 0,
        former: Vec::new(),
        changed_by: ChangeMark::default(),
        legal_hold_ms: None,
    }
}

/// The words of a command, as a shell cuts it.
fn words(command: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    let mut letters = command.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\'' => quoted = !quoted,
            '\\' if !quoted => word.extend(letters.next()),
            ' ' if !quoted => words.push(std::mem::take(&mut word)),
            letter => word.push(letter),
        }
    }
    words.push(word);
    words
}

/// What is typed for a meter. Each command is parsed once.
fn commands(meter: &MeterRecord, parsed: &mut BTreeSet<String>) -> Vec<String> {
    let all = advice(meter);
    for one in &all {
        assert!(!one.reason.is_empty(), "{}", one.command);
        if parsed.insert(one.command.clone()) {
            let words = words(&one.command);
            let id = meter.meter_id.as_str();
            assert!(words.iter().any(|word| word.ends_with(id)), "{}", one.command);
            let errand = Arguments::try_parse_from(words).map(Arguments::errand);
            assert!(matches!(errand, Ok(Ok(_))), "{}", one.command);
        }
    }
    all.into_iter().map(|one| one.command).collect()
}

fn of(meter: &MeterRecord) -> Vec<String> {
    commands(meter, &mut BTreeSet::new())
}

/// Every pair of states that two versions of a key can have.
fn states() -> impl Iterator<Item = (KeyState, KeyState)> {
    let all = KeyState::ALL.iter();
    all.flat_map(|first| KeyState::ALL.iter().map(move |second| (*first, *second)))
}

#[test]
fn every_command_that_is_advised_is_one_of_this_tool() {
    let mut parsed = BTreeSet::new();
    for kind in [KeyKind::Guek, KeyKind::Gak, KeyKind::Gbek, KeyKind::Kek] {
        for (setup, id) in [(0, "MTR-000017"), (7, "MTR-000017"), (7, "-x"), (0, "a'b$(c)")] {
            for (first, second) in states() {
                for at in [None, Some(1)] {
                    let mut keys = [
                        key(kind, setup, 1, first),
                        key(kind, setup, 2, second),
                        staged(key(kind, setup, 3, KeyState::PreActive), at),
                    ];
                    keys[0].life.destroy_at_ms = at;
                    commands(&meter(id, keys.to_vec()), &mut parsed);
                    commands(&meter(id, keys[..2].to_vec()), &mut parsed);
                }
            }
        }
    }
    assert!(parsed.len() > 100, "{}", parsed.len());
}

#[test]
fn a_meter_that_may_hold_what_was_sent_is_looked_at_first() {
    let old = key(KeyKind::Guek, 3, 1, KeyState::Active);
    let gak = key(KeyKind::Gak, 3, 1, KeyState::Active);
    let sent = staged(key(KeyKind::Guek, 3, 2, KeyState::PreActive), Some(1));
    let stuck = meter("m-1", vec![old.clone(), sent, gak.clone()]);
    assert_eq!(
        of(&stuck),
        [
            "ami-tool hls challenge --meter=m-1 --security-setup 3 --encryption-version 2 --authentication-version 1",
            "ami-tool key next-transfer m-1 GUEK --security-setup 3",
            "ami-tool key destroy --last-way m-1 GUEK 2 --security-setup 3",
        ]
    );
    assert!(advice(&stuck)[0].reason.contains("2/1, 1/1"), "{:?}", advice(&stuck)[0]);
    let unsent = staged(key(KeyKind::Guek, 3, 2, KeyState::PreActive), None);
    assert_eq!(
        of(&meter("m-1", vec![old, unsent, gak])),
        [
            "ami-tool key next-transfer m-1 GUEK --security-setup 3",
            "ami-tool key destroy m-1 GUEK 2 --security-setup 3",
        ]
    );
}

#[test]
fn what_may_be_gone_back_to_is_said_and_what_can_not_is_not() {
    let mut newer = key(KeyKind::Gak, 0, 3, KeyState::Active);
    newer.life.preferred_ms = 5;
    let keys = vec![
        key(KeyKind::Gak, 0, 1, KeyState::Deactivated),
        key(KeyKind::Gak, 0, 2, KeyState::Active),
        newer,
        key(KeyKind::Gak, 0, 4, KeyState::Destroyed),
    ];
    let due = ["ami-tool key revive m-1 GAK 1", "ami-tool key rollback m-1 GAK 2"];
    assert_eq!(of(&meter("m-1", keys)), due);
    let known = vec![key(KeyKind::Guek, 0, 1, KeyState::Compromised)];
    assert_eq!(of(&meter("m-1", known)), ["ami-tool key stage m-1 GUEK"]);
    let mut condemned = key(KeyKind::Guek, 0, 1, KeyState::Deactivated);
    condemned.life.destroy_at_ms = Some(1);
    let restored = ["ami-tool key restore m-1 GUEK 1"];
    assert_eq!(of(&meter("m-1", vec![condemned])), restored);
}

//! What people decide about a record that was set aside, and what is never lost by it.

use super::*;
use crate::KeyLife;
use crate::{
    Fingerprint, KeyId, KeyKind, MeterId, Protection, SecuritySetup, SystemTitle,
    counters::{Line, LineName, Offset},
};
use KeyState::{Active, Compromised, Deactivated, Destroyed, PreActive};

const NOW: u64 = 99;

fn key(id: u8, state: KeyState) -> KeyRecord {
    KeyRecord {
        id: KeyId([id; 16]),
        setup: SecuritySetup(0),
        kind: KeyKind::Guek,
        version: u16::from(id),
        state,
        protection: Protection::Memory,
        wrapped: vec![2; 24],
        value_len: 16,
        created_ms: 3,
        changed_ms: 3,
        kcv: None,
        fingerprint: Fingerprint([id; 16]),
        life: KeyLife::default(),
    }
}

fn a_meter(keys: &[(u8, KeyState)]) -> MeterRecord {
    MeterRecord {
        meter_id: MeterId::new("M1").unwrap(),
        system_title: SystemTitle::new([1; 8]),
        logical_device_name: String::new(),
        policy: Default::default(),
        keys: keys.iter().map(|(id, state)| key(*id, *state)).collect(),
        created_ms: 3,
        former: Vec::new(),
        changed_by: Default::default(),
        legal_hold_ms: None,
    }
}

fn meter(keys: &[(u8, KeyState)]) -> Record {
    Record::Meter(a_meter(keys))
}

fn buried(keys: &[(u8, KeyState)]) -> Record {
    let meter = a_meter(keys);
    Record::Tombstone(Tombstone {
        keys: FormerKey::of(&meter),
        meter_id: Some(meter.meter_id),
        system_title: meter.system_title,
        deleted_ms: 5,
        changed_by: meter.changed_by,
        readmitted_ms: None,
    })
}

/// The keys of the record that is written, by id.
fn written(aside: &Record, stands: Option<&Record>, decision: Decision) -> Vec<(u8, KeyState)> {
    match reconcile(aside, stands, decision, NOW).unwrap() {
        Some(Record::Meter(meter)) => {
            let mut keys: Vec<_> = meter.keys.iter().map(|key| (key.id.0[0], key.state)).collect();
            keys.sort_by_key(|(id, _)| *id);
            keys
        }
        None => Vec::new(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_record_that_is_accepted_brings_its_keys_and_the_states_that_are_further_on() {
    let stands = meter(&[(1, Active)]);
    let aside = meter(&[(1, Deactivated), (2, Active)]);
    let accepted = written(&aside, Some(&stands), Decision::Accept);
    assert_eq!(accepted, [(1, Deactivated), (2, Active)]);
    // Both sites replaced the key: the one that is accepted is the newest, and the other one opens on.
    let both = meter(&[(1, Deactivated), (3, Active)]);
    let accepted = written(&aside, Some(&both), Decision::Accept);
    assert_eq!(accepted, [(1, Deactivated), (2, Active), (3, Deactivated)]);
    // No state goes back.
    let old = meter(&[(1, PreActive)]);
    assert_eq!(written(&old, Some(&stands), Decision::Accept), []);
    let new = meter(&[(9, Active)]);
    assert_eq!(written(&new, None, Decision::Accept), [(9, Active)]);
}

#[test]
fn key_bytes_that_may_be_in_a_meter_stay_as_deactivated_versions_when_a_record_is_discarded() {
    let stands = meter(&[(1, Active)]);
    let aside = meter(&[(1, Deactivated), (2, Active), (3, PreActive), (4, Compromised)]);
    let discarded = written(&aside, Some(&stands), Decision::Discard);
    assert_eq!(discarded, [(1, Active), (2, Deactivated), (3, Deactivated), (4, Compromised)]);
    let Some(Record::Meter(kept)) =
        reconcile(&aside, Some(&stands), Decision::Discard, NOW).unwrap()
    else {
        panic!()
    };
    assert!(kept.keys.iter().all(|key| key.wrapped == [2; 24]), "with their bytes");
    assert_eq!(written(&meter(&[(9, Active)]), None, Decision::Discard), [(9, Deactivated)]);
    // Compromised counts, whatever is decided.
    let aside = meter(&[(1, Compromised)]);
    assert_eq!(written(&aside, Some(&stands), Decision::Discard), [(1, Compromised)]);
}

#[test]
fn a_decision_that_is_written_twice_changes_nothing_the_second_time() {
    let stands = [None, Some(meter(&[(1, Active)])), Some(buried(&[(1, Active)]))];
    let asides = [meter(&[(1, Destroyed), (2, Active), (3, PreActive)]), buried(&[(2, Active)])];
    for (stands, aside) in
        stands.iter().flat_map(|stands| asides.iter().map(move |it| (stands, it)))
    {
        for decision in [Decision::Accept, Decision::Discard] {
            let Some(first) = reconcile(aside, stands.as_ref(), decision, NOW).unwrap() else {
                continue;
            };
            let again = reconcile(aside, Some(&first), decision, NOW + 1).unwrap();
            assert_eq!(again, None, "{aside:?} on {stands:?}, {decision}");
            if decision == Decision::Accept {
                let left = differences(Some(aside), Some(&first)).parting;
                let settled = [Parting::NothingNew, Parting::DeletedThere];
                assert!(settled.contains(&left), "{left} is left");
            }
        }
    }
}

#[test]
fn one_value_that_two_sites_brought_in_is_one_key() {
    let stands = a_meter(&[(1, Active)]);
    let mut aside = a_meter(&[(1, Active)]);
    aside.keys[0].id = KeyId([7; 16]);
    let (stands, aside) = (Record::Meter(stands), Record::Meter(aside));
    assert_eq!(differences(Some(&aside), Some(&stands)).parting, Parting::NothingNew);
    assert_eq!(written(&aside, Some(&stands), Decision::Accept), []);
}

#[test]
fn a_deletion_is_accepted_or_not_and_no_value_is_forgotten_by_either() {
    let (stands, aside) =
        (meter(&[(1, Active), (2, Active)]), buried(&[(1, Compromised), (3, Active)]));
    let accepted = reconcile(&aside, Some(&stands), Decision::Accept, NOW).unwrap();
    let Some(Record::Tombstone(tombstone)) = accepted else { panic!("{accepted:?}") };
    let known: Vec<u8> = tombstone.keys.iter().map(|key| key.fingerprint.0[0]).collect();
    assert!([1, 2, 3].iter().all(|value| known.contains(value)), "{known:?}");
    let discarded = written(&aside, Some(&stands), Decision::Discard);
    assert_eq!(discarded, [(1, Compromised), (2, Active)]);
    // Deleted there: it stays deleted, and what it had here stays known.
    for decision in [Decision::Accept, Decision::Discard] {
        let stays = reconcile(&meter(&[(9, Active)]), Some(&buried(&[(1, Active)])), decision, NOW);
        let Ok(Some(Record::Tombstone(tombstone))) = stays else { panic!("{stays:?}") };
        assert_eq!(tombstone.keys.len(), 2);
    }
}

#[test]
fn what_does_not_fit_is_refused_and_not_cut() {
    let many: Vec<(u8, KeyState)> = (1..=16).map(|id| (id, Deactivated)).collect();
    let refused = reconcile(&meter(&[(77, Active)]), Some(&meter(&many)), Decision::Discard, NOW);
    assert_eq!(refused, Err(NotReconciled::TooManyVersions(16, 64)));
    let mut other = a_meter(&[(1, Active)]);
    other.meter_id = MeterId::new("M2").unwrap();
    let refused =
        reconcile(&meter(&[(1, Active)]), Some(&Record::Meter(other)), Decision::Accept, NOW);
    assert_eq!(refused, Err(NotReconciled::OtherMeter));
}

#[test]
fn invariant_3_a_counter_line_rises_whatever_is_decided() {
    let name = LineName { fingerprint: Fingerprint([7; 16]), originator: SystemTitle::new([9; 8]) };
    let line = |offset| Record::Line(Line { name, offset: Offset::new(offset) });
    for decision in [Decision::Accept, Decision::Discard] {
        assert_eq!(reconcile(&line(4), Some(&line(2)), decision, NOW), Ok(Some(line(4))));
        assert_eq!(reconcile(&line(2), Some(&line(4)), decision, NOW), Ok(None));
        assert_eq!(reconcile(&line(2), None, decision, NOW), Ok(Some(line(2))));
    }
    assert_eq!(at_contact(&line(4), Some(&line(2)), NOW), Some(line(4)));
}

#[test]
fn at_contact_a_compromised_key_is_withdrawn_and_nothing_else_changes() {
    let (stands, aside) =
        (meter(&[(1, Active), (2, Active)]), meter(&[(1, Destroyed), (3, Active)]));
    let Some(Record::Meter(now)) = at_contact(&aside, Some(&stands), NOW) else { panic!() };
    let states: Vec<_> = now.keys.iter().map(|key| (key.id.0[0], key.state)).collect();
    assert_eq!(states, [(1, Destroyed), (2, Active)]);
    assert!(now.keys[0].wrapped.is_empty(), "nothing is left to open with");
    assert_eq!(at_contact(&aside, Some(&Record::Meter(now)), NOW), None);
    assert_eq!(at_contact(&aside, None, NOW), None);
}

#[test]
fn at_contact_a_value_that_goes_on_as_another_version_is_not_given_up() {
    // A key that was taken back: a new row of the same value stands beside the one that was destroyed.
    let revived = KeyRecord { fingerprint: Fingerprint([1; 16]), ..key(4, Active) };
    let ours = |old| {
        let mut meter = a_meter(&[(1, old)]);
        meter.keys.push(revived.clone());
        meter
    };
    let aside = Record::Meter(ours(Destroyed));
    let stands = meter(&[(1, Active), (2, Active)]);
    assert_eq!(at_contact(&aside, Some(&stands), NOW), None);
    // The same of a compromised one is no way back.
    let mut compromised = ours(Destroyed);
    compromised.keys[1].state = Compromised;
    let now = at_contact(&Record::Meter(compromised), Some(&stands), NOW);
    let Some(Record::Meter(now)) = now else { panic!("{now:?}") };
    assert_eq!(now.keys[0].state, Compromised);
}

#[test]
fn each_record_that_was_set_aside_is_of_one_kind_for_a_rule() {
    let stands = meter(&[(1, Active)]);
    let parting =
        |aside: &Record, stands: Option<&Record>| differences(Some(aside), stands).parting;
    assert_eq!(parting(&stands, Some(&stands)), Parting::NothingNew);
    assert_eq!(parting(&stands, None), Parting::NewMeter);
    assert_eq!(parting(&meter(&[(2, Active)]), Some(&stands)), Parting::Keys);
    assert_eq!(parting(&buried(&[(1, Active)]), Some(&stands)), Parting::Deleted);
    assert_eq!(parting(&stands, Some(&buried(&[]))), Parting::DeletedThere);
    assert_eq!(differences(None, Some(&stands)).parting, Parting::Unreadable);
    let mut other = a_meter(&[(1, Active)]);
    other.policy.allow_encryption_only = true;
    let told = differences(Some(&Record::Meter(other)), Some(&stands));
    assert_eq!((told.parting, told.policy, told.names), (Parting::Details, true, false));
}

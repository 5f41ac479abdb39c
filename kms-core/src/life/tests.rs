//! Stories of one meter's keys.

mod story_tests;

use super::{
    choosing::{Pair, Place, pair},
    due,
    evidence::{Shown, answered, show},
    staging::{Made, Plan, Staging, Wish, plan, stage},
    standing::{Destruction, compromise, destroy, prefer, restore, revive},
    *,
};
use crate::{
    AssociationForm, Carrier, ChangeMark, Fingerprint, FormerKey, KeyId, KeyKind, KeyLife,
    KeyRecord, KeyState, MeterId, MeterPolicy, MeterRecord, Protection, RefusalCode, SecuritySetup,
    StateReason, SystemTitle, TransferResult,
};

const TIMES: Times = Times { grace_ms: 100, retention_ms: 50, destroy_delay_ms: 20 };

fn place(kind: KeyKind) -> Place {
    Place { setup: SecuritySetup(0), kind }
}

fn key(kind: KeyKind, version: u16, state: KeyState) -> KeyRecord {
    let id = [kind as u8, version as u8].repeat(8);
    KeyRecord {
        id: KeyId(id.clone().try_into().unwrap()),
        setup: SecuritySetup(0),
        kind,
        version,
        state,
        protection: kind.default_protection(),
        wrapped: vec![7; 24],
        value_len: 16,
        created_ms: 1,
        changed_ms: 1,
        kcv: None,
        fingerprint: Fingerprint(id.try_into().unwrap()),
        life: KeyLife::default(),
    }
}

/// One of each kind, as it came from its factory.
fn meter() -> MeterRecord {
    let kinds = [KeyKind::Guek, KeyKind::Gbek, KeyKind::Gak, KeyKind::Kek];
    MeterRecord {
        meter_id: MeterId::new("m").unwrap(),
        system_title: SystemTitle::new([1; 8]),
        logical_device_name: String::new(),
        policy: MeterPolicy::default(),
        keys: kinds.map(|kind| key(kind, 1, KeyState::Active)).into(),
        created_ms: 1,
        former: Vec::new(),
        changed_by: ChangeMark::default(),
        legal_hold_ms: None,
    }
}

fn wish(kind: KeyKind) -> Wish {
    Wish {
        place: place(kind),
        class_version: 1,
        carrier: Carrier { setup: SecuritySetup(0), client: 1, form: AssociationForm::GeneralGlo },
        kek: None,
        protection: None,
        request: "r".into(),
        allow_unreplicated: false,
        under_compromised_kek: false,
    }
}

fn made(kind: KeyKind, version: u16) -> Made {
    let KeyRecord { id, wrapped, fingerprint, .. } = key(kind, version, KeyState::PreActive);
    Made { id, for_meter: vec![9; 24], wrapped, fingerprint, kcv: [5; 5] }
}

fn to_make(meter: &MeterRecord, wish: &Wish, now_ms: u64) -> Plan {
    match plan(meter, wish, &TIMES, now_ms).unwrap() {
        Staging::Make(plan) => plan,
        Staging::Already(id) => panic!("{id:?} is staged"),
    }
}

fn staged(meter: &mut MeterRecord, kind: KeyKind, now_ms: u64) -> u16 {
    let plan = to_make(meter, &wish(kind), now_ms);
    let version = plan.version;
    stage(meter, &wish(kind), &plan, made(kind, version), now_ms);
    version
}

/// What is staged was handed out.
fn sent(meter: &mut MeterRecord, now_ms: u64) {
    let transfers = meter.keys.iter_mut().filter_map(|key| key.life.transfer.as_mut());
    transfers.for_each(|it| _ = it.sent_ms.get_or_insert(now_ms));
}

/// What these versions show, as [`key`] names them.
fn shown(encryption: u16, authentication: u16) -> Shown {
    let id = |kind, version| Some(key(kind, version, KeyState::Active).id);
    let (encryption, authentication) =
        (id(KeyKind::Guek, encryption), id(KeyKind::Gak, authentication));
    Shown { setup: SecuritySetup(0), encryption, authentication }
}

/// The same, of whatever keys have these versions.
fn shown_by(meter: &MeterRecord, version: u16) -> Shown {
    let id = |kind| place(kind).version(meter, version).map(|key| key.id).ok();
    let (encryption, authentication) = (id(KeyKind::Guek), id(KeyKind::Gak));
    Shown { setup: SecuritySetup(0), encryption, authentication }
}

fn state(meter: &MeterRecord, kind: KeyKind, version: u16) -> KeyState {
    place(kind).version(meter, version).unwrap().state
}

fn destruction(last_way: bool, now_ms: u64) -> Destruction {
    Destruction { last_way, delay_ms: TIMES.destroy_delay_ms, now_ms }
}

fn preferred(meter: &MeterRecord, kind: KeyKind) -> u16 {
    place(kind).preferred(meter).map(|key| key.version).unwrap_or_default()
}

#[test]
fn a_staged_key_is_the_same_whoever_asks_again_and_protects_nothing() {
    let mut meter = meter();
    let version = staged(&mut meter, KeyKind::Guek, 10);
    let other = Wish { request: "another".into(), ..wish(KeyKind::Guek) };
    let id = made(KeyKind::Guek, version).id;
    assert_eq!(plan(&meter, &other, &TIMES, 11), Ok(Staging::Already(id)));
    assert_eq!((version, preferred(&meter, KeyKind::Guek)), (2, 1));
    assert_eq!(state(&meter, KeyKind::Guek, 2), KeyState::PreActive);
    assert_eq!(place(KeyKind::Guek).staged(&meter).unwrap().life.reason, StateReason::Staged);
}

#[test]
fn a_meters_own_tag_under_the_new_key_proves_it_and_the_old_one_has_its_grace() {
    let mut meter = meter();
    staged(&mut meter, KeyKind::Guek, 10);
    // Old traffic says nothing.
    assert_eq!(show(&mut meter, &shown(1, 1), &TIMES, 11), []);
    let proved = show(&mut meter, &shown(2, 1), &TIMES, 12);
    assert_eq!((proved.len(), proved[0].version, proved[0].reason), (1, 2, StateReason::Evidence));
    assert_eq!(
        (preferred(&meter, KeyKind::Guek), state(&meter, KeyKind::Guek, 1)),
        (2, KeyState::Active)
    );
    // Nor does it take anything back, and what is proved is proved once.
    assert_eq!(show(&mut meter, &shown(1, 1), &TIMES, 13), []);
    assert_eq!(show(&mut meter, &shown(2, 1), &TIMES, 13), []);
    assert_eq!(preferred(&meter, KeyKind::Guek), 2);
    assert_eq!(due::next(&meter), Some(112));
    assert!(!due::pass(&mut meter, 111));
    assert!(due::pass(&mut meter, 112));
    let old = place(KeyKind::Guek).version(&meter, 1).unwrap();
    assert_eq!((old.state, old.life.reason), (KeyState::Deactivated, StateReason::Superseded));
    assert_eq!(old.life.past[0].state, KeyState::Active);
    assert_eq!((due::next(&meter), due::pass(&mut meter, 1_000)), (None, false));
}

#[test]
fn one_apdu_proves_both_of_its_keys() {
    let mut meter = meter();
    staged(&mut meter, KeyKind::Guek, 10);
    staged(&mut meter, KeyKind::Gak, 10);
    assert_eq!(show(&mut meter, &shown(2, 2), &TIMES, 12).len(), 2);
    assert_eq!((preferred(&meter, KeyKind::Guek), preferred(&meter, KeyKind::Gak)), (2, 2));
}

#[test]
fn an_answer_proves_nothing_but_of_keys_that_nothing_else_shows() {
    let mut meter = meter();
    for kind in [KeyKind::Guek, KeyKind::Gak, KeyKind::Kek] {
        staged(&mut meter, kind, 10);
        sent(&mut meter, 10);
        let at = (&TIMES, 11);
        assert_eq!(answered(&mut meter, place(kind), TransferResult::Success, at), Ok(None));
        assert_eq!((preferred(&meter, kind), state(&meter, kind, 2)), (1, KeyState::PreActive));
        // One that says no may have changed all the same: it stays staged.
        answered(&mut meter, place(kind), TransferResult::Refused, at).unwrap();
        assert_eq!(state(&meter, kind, 2), KeyState::PreActive);
    }
    staged(&mut meter, KeyKind::Gbek, 10);
    sent(&mut meter, 10);
    let at = (&TIMES, 12);
    let proved = answered(&mut meter, place(KeyKind::Gbek), TransferResult::Success, at).unwrap();
    assert_eq!(proved.unwrap().reason, StateReason::ConfirmedByResult);
    // Both are kept, without an end.
    assert_eq!(
        (preferred(&meter, KeyKind::Gbek), state(&meter, KeyKind::Gbek, 1)),
        (2, KeyState::Active)
    );
    assert!(!due::pass(&mut meter, u64::MAX - 1));
    let nothing = answered(&mut meter, place(KeyKind::Dedicated), TransferResult::Success, at);
    assert!(matches!(nothing, Err(NotDone::NothingStaged { .. })));
}

#[test]
fn a_gak_of_a_meter_without_tags_and_a_key_of_another_port_are_weak() {
    let mut silent = meter();
    silent.policy.allow_encryption_only = true;
    staged(&mut silent, KeyKind::Gak, 10);
    sent(&mut silent, 10);
    let at = (&TIMES, 12);
    assert!(
        answered(&mut silent, place(KeyKind::Gak), TransferResult::Success, at).unwrap().is_some()
    );
    // A whole tag makes it sure all the same.
    assert_eq!(show(&mut silent, &shown(1, 2), &TIMES, 13).len(), 1);
    assert_eq!(due::next(&silent), Some(113));

    let mut foreign = meter();
    let setup = SecuritySetup(1);
    let port = Place { setup, kind: KeyKind::Guek };
    foreign.keys.push(KeyRecord {
        setup,
        id: KeyId([8; 16]),
        ..key(KeyKind::Guek, 1, KeyState::Active)
    });
    foreign.keys.push(KeyRecord {
        setup,
        id: KeyId([9; 16]),
        ..key(KeyKind::Kek, 1, KeyState::Active)
    });
    let wish = Wish { place: port, ..wish(KeyKind::Guek) };
    let plan = to_make(&foreign, &wish, 10);
    stage(&mut foreign, &wish, &plan, made(KeyKind::Dedicated, 3), 10);
    let staged = port.staged(&foreign).unwrap();
    // It travels over the management association.
    assert_eq!(pair(&foreign, staged, None), Ok(Pair { encryption: 1, authentication: Some(1) }));
    sent(&mut foreign, 11);
    assert!(answered(&mut foreign, port, TransferResult::Success, at).unwrap().is_some());
}

#[test]
fn a_kek_is_proved_by_a_key_that_travelled_under_it() {
    let mut meter = meter();
    staged(&mut meter, KeyKind::Kek, 10);
    let under_new = Wish { kek: Some(2), ..wish(KeyKind::Guek) };
    let plan = to_make(&meter, &under_new, 11);
    stage(&mut meter, &under_new, &plan, made(KeyKind::Guek, 2), 11);
    let proved = show(&mut meter, &shown(2, 1), &TIMES, 12);
    let reasons: Vec<_> = proved.iter().map(|it| (it.place.kind, it.reason)).collect();
    assert_eq!(
        reasons,
        [(KeyKind::Guek, StateReason::Evidence), (KeyKind::Kek, StateReason::TransferProved)]
    );
    assert_eq!(preferred(&meter, KeyKind::Kek), 2);
}

#[test]
fn a_transfer_does_not_travel_under_its_own_key_or_one_that_is_given_up() {
    let mut meter = meter();
    staged(&mut meter, KeyKind::Guek, 10);
    let new = place(KeyKind::Guek).staged(&meter).unwrap().clone();
    let named = |encryption| Some(Pair { encryption, authentication: Some(1) });
    assert_eq!(pair(&meter, &new, None), Ok(Pair { encryption: 1, authentication: Some(1) }));
    assert_eq!(pair(&meter, &new, named(2)), Err(NotDone::UnderItself(KeyKind::Guek)));
    assert!(matches!(pair(&meter, &new, named(9)), Err(NotDone::NoSuchVersion { .. })));
    meter.keys[0].go_on(KeyState::Deactivated, StateReason::Withdrawn, 11);
    assert!(matches!(pair(&meter, &new, named(1)), Err(NotDone::State { .. })));
    assert!(matches!(pair(&meter, &new, None), Err(NotDone::NoCarrier { .. })));
}

#[test]
fn what_is_compromised_carries_its_successor_and_is_wiped_when_that_is_proved() {
    let mut meter = meter();
    assert_eq!(compromise(&mut meter, place(KeyKind::Guek), 1, 5), Ok(KeyState::Compromised));
    assert_eq!(preferred(&meter, KeyKind::Guek), 0);
    staged(&mut meter, KeyKind::Guek, 10);
    let new = place(KeyKind::Guek).staged(&meter).unwrap().clone();
    assert_eq!(pair(&meter, &new, None), Ok(Pair { encryption: 1, authentication: Some(1) }));
    show(&mut meter, &shown(2, 1), &TIMES, 12);
    let old = place(KeyKind::Guek).version(&meter, 1).unwrap();
    assert_eq!(
        (old.state, old.life.reason),
        (KeyState::Destroyed, StateReason::WipedAfterSuccessor)
    );
    assert!(old.wrapped.is_empty());
    // One whose successor is proved already is wiped at once.
    staged(&mut meter, KeyKind::Guek, 20);
    show(&mut meter, &shown(3, 1), &TIMES, 21);
    assert_eq!(compromise(&mut meter, place(KeyKind::Guek), 2, 22), Ok(KeyState::Destroyed));
}

#[test]
fn a_compromised_kek_is_not_cured_by_a_transfer_under_itself() {
    let mut meter = meter();
    compromise(&mut meter, place(KeyKind::Kek), 1, 5).unwrap();
    let refused = plan(&meter, &wish(KeyKind::Guek), &TIMES, 10).unwrap_err();
    assert_eq!(refused.code(), RefusalCode::KekCompromised);
    let known = Wish { under_compromised_kek: true, ..wish(KeyKind::Guek) };
    assert!(matches!(plan(&meter, &known, &TIMES, 10), Ok(Staging::Make(_))));
}

#[test]
fn what_can_not_be_transferred_is_refused_by_name() {
    let of = |kind, class_version| {
        plan(&meter(), &Wish { class_version, ..wish(kind) }, &TIMES, 10).map_err(|why| why.code())
    };
    assert_eq!(of(KeyKind::Kek, 0), Err(RefusalCode::NoKekChange));
    assert_eq!(of(KeyKind::Guek, 2), Err(RefusalCode::BadField));
    for kind in [KeyKind::Dedicated, KeyKind::HlsSecret, KeyKind::LlsPassword] {
        assert_eq!(of(kind, 1), Err(RefusalCode::NotTransferable));
    }
    assert!(of(KeyKind::Guek, 0).is_ok());
    let mut bare = meter();
    bare.keys.retain(|key| key.kind != KeyKind::Kek);
    assert_eq!(plan(&bare, &wish(KeyKind::Guek), &TIMES, 1), Err(NotDone::NoKek(SecuritySetup(0))));
    let mut mixed = meter();
    mixed.keys.iter_mut().for_each(|key| key.value_len += 16 * u8::from(key.kind == KeyKind::Kek));
    let refused = plan(&mixed, &wish(KeyKind::Guek), &TIMES, 1).unwrap_err();
    assert_eq!(refused, NotDone::SuitesMixed { kek: 32, key: 16 });
}

#[test]
fn the_preference_moves_back_and_forth_and_the_grace_of_what_is_preferred_does_not_end() {
    let mut meter = meter();
    staged(&mut meter, KeyKind::Guek, 10);
    let guek = place(KeyKind::Guek);
    assert!(matches!(prefer(&mut meter, guek, 2, 11), Err(NotDone::State { .. })));
    show(&mut meter, &shown(2, 1), &TIMES, 12);
    assert_eq!(prefer(&mut meter, guek, 1, 13), Ok(true));
    assert_eq!(prefer(&mut meter, guek, 1, 14), Ok(false));
    assert_eq!(preferred(&meter, KeyKind::Guek), 1);
    due::pass(&mut meter, 1_000);
    assert_eq!(
        (preferred(&meter, KeyKind::Guek), state(&meter, KeyKind::Guek, 2)),
        (1, KeyState::Active)
    );
    assert_eq!(prefer(&mut meter, guek, 2, 1), Ok(true), "a clock that goes back");
    assert_eq!(preferred(&meter, KeyKind::Guek), 2);
}

#[test]
fn a_key_that_is_given_up_goes_on_as_a_new_version_of_its_value() {
    let mut meter = meter();
    let guek = place(KeyKind::Guek);
    assert!(matches!(revive(&mut meter, guek, 1, KeyId([3; 16]), 5), Err(NotDone::State { .. })));
    staged(&mut meter, KeyKind::Guek, 10);
    show(&mut meter, &shown(2, 1), &TIMES, 12);
    due::pass(&mut meter, 112);
    let value = guek.version(&meter, 1).unwrap().fingerprint;
    assert_eq!(revive(&mut meter, guek, 1, KeyId([3; 16]), 120), Ok(3));
    let revived = guek.preferred(&meter).unwrap();
    assert_eq!((revived.version, revived.fingerprint), (3, value));
    assert_eq!((revived.wrapped.len(), revived.life.reason), (24, StateReason::Revived));
    assert_eq!(state(&meter, KeyKind::Guek, 1), KeyState::Destroyed);
    assert_eq!(state(&meter, KeyKind::Guek, 2), KeyState::Active);
}

#[test]
fn a_destruction_waits_asks_twice_for_the_last_way_and_respects_a_hold() {
    let mut meter = meter();
    let guek = place(KeyKind::Guek);
    let at = 10;
    let last = NotDone::LastWay { kind: KeyKind::Guek, version: 1 };
    assert_eq!(destroy(&mut meter, guek, 1, destruction(false, at)), Err(last));
    meter.legal_hold_ms = Some(1);
    assert_eq!(destroy(&mut meter, guek, 1, destruction(true, at)), Err(NotDone::LegalHold));
    meter.legal_hold_ms = None;
    assert_eq!(destroy(&mut meter, guek, 1, destruction(true, at)), Ok(30));
    // Until then it is as it was, and may be taken back.
    assert!(!due::pass(&mut meter, 29));
    assert_eq!(preferred(&meter, KeyKind::Guek), 1);
    assert_eq!(restore(&mut meter, guek, 1), Ok(true));
    assert!(!due::pass(&mut meter, 1_000));
    destroy(&mut meter, guek, 1, destruction(true, at)).unwrap();
    // A hold that comes later holds it, too.
    meter.legal_hold_ms = Some(12);
    assert_eq!((due::next(&meter), due::pass(&mut meter, 1_000)), (None, false));
    meter.legal_hold_ms = None;
    assert!(due::pass(&mut meter, 30));
    let gone = guek.version(&meter, 1).unwrap();
    assert_eq!((gone.state, gone.wrapped.len()), (KeyState::Destroyed, 0));
    assert!(matches!(restore(&mut meter, guek, 1), Err(NotDone::State { .. })));
    assert!(matches!(
        destroy(&mut meter, guek, 1, destruction(true, at)),
        Err(NotDone::State { .. })
    ));
}

#[test]
fn late_traffic_takes_no_newer_key_back_and_wipes_none() {
    let setup = SecuritySetup(1);
    let port = Place { setup, kind: KeyKind::Guek };
    let mut meter = meter();
    meter.keys.push(KeyRecord {
        setup,
        id: KeyId([8; 16]),
        ..key(KeyKind::Guek, 1, KeyState::Active)
    });
    meter.keys.push(KeyRecord {
        setup,
        id: KeyId([9; 16]),
        ..key(KeyKind::Kek, 1, KeyState::Active)
    });
    let wish = Wish { place: port, ..wish(KeyKind::Guek) };
    let next = |meter: &mut MeterRecord, id, now_ms| {
        let plan = to_make(meter, &wish, now_ms);
        let made = Made {
            id: KeyId([id; 16]),
            fingerprint: Fingerprint([id; 16]),
            ..made(KeyKind::Guek, 2)
        };
        stage(meter, &wish, &plan, made, now_ms);
        sent(meter, now_ms);
    };
    let of = |id| Shown { setup, encryption: Some(KeyId([id; 16])), authentication: None };
    next(&mut meter, 0xA2, 10);
    answered(&mut meter, port, TransferResult::Success, (&TIMES, 11)).unwrap().unwrap();
    next(&mut meter, 0xA3, 20);
    compromise(&mut meter, port, 3, 21).unwrap();
    // A late message under the second one: the third one, which the meter may hold, is not wiped.
    show(&mut meter, &of(0xA2), &TIMES, 22);
    due::pass(&mut meter, 23);
    assert_eq!(port.version(&meter, 3).unwrap().state, KeyState::Compromised);
    assert_eq!(port.preferred(&meter).unwrap().version, 2);
    // Nor is one taken back that the meter showed later.
    next(&mut meter, 0xA4, 30);
    show(&mut meter, &of(0xA4), &TIMES, 31);
    assert_eq!(show(&mut meter, &of(0xA2), &TIMES, 32), []);
    assert_eq!(port.preferred(&meter).unwrap().version, 4);
    due::pass(&mut meter, 10_000);
    assert_eq!(port.preferred(&meter).unwrap().version, 4);
    assert_eq!(port.version(&meter, 4).unwrap().state, KeyState::Active);
}

#[test]
fn what_is_preferred_is_the_last_way_and_a_hold_keeps_what_is_compromised() {
    let mut meter = meter();
    staged(&mut meter, KeyKind::Guek, 10);
    show(&mut meter, &shown(2, 1), &TIMES, 12);
    let guek = place(KeyKind::Guek);
    prefer(&mut meter, guek, 1, 13).unwrap();
    let refused = destroy(&mut meter, guek, 1, destruction(false, 14));
    assert!(matches!(refused, Err(NotDone::LastWay { .. })));
    prefer(&mut meter, guek, 2, 15).unwrap();
    meter.legal_hold_ms = Some(16);
    assert_eq!(compromise(&mut meter, guek, 1, 17), Ok(KeyState::Compromised));
    assert!(!due::pass(&mut meter, 18));
    meter.legal_hold_ms = None;
    assert_eq!(due::next(&meter), Some(0));
    assert!(due::pass(&mut meter, 19));
    assert_eq!(state(&meter, KeyKind::Guek, 1), KeyState::Destroyed);
}

#[test]
fn a_predecessor_in_its_grace_is_no_other_way() {
    let mut meter = meter();
    staged(&mut meter, KeyKind::Guek, 10);
    show(&mut meter, &shown(2, 1), &TIMES, 12);
    let (guek, at) = (place(KeyKind::Guek), 100);
    assert!(matches!(
        destroy(&mut meter, guek, 2, destruction(false, at)),
        Err(NotDone::LastWay { .. })
    ));
    assert!(destroy(&mut meter, guek, 1, destruction(false, at)).is_ok());
}

#[test]
fn a_staged_key_that_was_sent_is_asked_for_twice() {
    let mut meter = meter();
    staged(&mut meter, KeyKind::Guek, 10);
    let (guek, at) = (place(KeyKind::Guek), 11);
    let transfer = |meter: &mut MeterRecord, sent_ms| {
        let key = meter.keys.iter_mut().find(|key| key.version == 2).unwrap();
        key.life.transfer.as_mut().unwrap().sent_ms = sent_ms;
    };
    transfer(&mut meter, Some(11));
    assert!(matches!(
        destroy(&mut meter, guek, 2, destruction(false, at)),
        Err(NotDone::LastWay { .. })
    ));
    transfer(&mut meter, None);
    assert!(destroy(&mut meter, guek, 2, destruction(false, at)).is_ok());
    // Nobody has it: another one may be staged at once.
    assert_eq!(state(&meter, KeyKind::Guek, 2), KeyState::Deactivated);
    assert_eq!(staged(&mut meter, KeyKind::Guek, 12), 3);
}

#[test]
fn what_is_to_be_destroyed_is_not_sent_and_what_the_meter_shows_is_not_destroyed() {
    let mut meter = meter();
    staged(&mut meter, KeyKind::Guek, 10);
    sent(&mut meter, 10);
    let guek = place(KeyKind::Guek);
    destroy(&mut meter, guek, 2, destruction(true, 11)).unwrap();
    let condemned = guek.staged(&meter).unwrap().clone();
    assert!(matches!(pair(&meter, &condemned, None), Err(NotDone::State { .. })));
    // The meter had it already.
    show(&mut meter, &shown(2, 1), &TIMES, 12);
    due::pass(&mut meter, 1_000);
    assert_eq!(
        (preferred(&meter, KeyKind::Guek), state(&meter, KeyKind::Guek, 2)),
        (2, KeyState::Active)
    );
    // So does a meter that fell back to a predecessor that was to go.
    staged(&mut meter, KeyKind::Guek, 1_010);
    show(&mut meter, &shown(3, 1), &TIMES, 1_011);
    destroy(&mut meter, guek, 2, destruction(false, 1_012)).unwrap();
    prefer(&mut meter, guek, 2, 1_013).unwrap();
    due::pass(&mut meter, 9_000);
    assert_eq!(preferred(&meter, KeyKind::Guek), 2);
}

#[test]
fn an_answer_that_is_told_again_says_nothing_of_what_was_never_sent() {
    let mut meter = meter();
    staged(&mut meter, KeyKind::Gbek, 10);
    let answer = answered(&mut meter, place(KeyKind::Gbek), TransferResult::Success, (&TIMES, 11));
    assert!(matches!(answer, Err(NotDone::NothingStaged { .. })));
    assert_eq!(state(&meter, KeyKind::Gbek, 2), KeyState::PreActive);
}

#[test]
fn a_fifth_live_version_comes_only_in_the_place_of_one_that_is_deactivated_for_long() {
    let mut meter = meter();
    for (now_ms, version) in [(10, 2), (20, 3), (30, 4)] {
        assert_eq!(staged(&mut meter, KeyKind::Guek, now_ms), version);
        show(&mut meter, &shown(version, 1), &TIMES, now_ms + 1);
    }
    let refused = plan(&meter, &wish(KeyKind::Guek), &TIMES, 40).unwrap_err();
    assert_eq!(refused.code(), RefusalCode::TooManyLiveVersions);
    due::pass(&mut meter, 111);
    assert_eq!(state(&meter, KeyKind::Guek, 1), KeyState::Deactivated);
    assert!(plan(&meter, &wish(KeyKind::Guek), &TIMES, 160).is_err());
    meter.legal_hold_ms = Some(1);
    assert_eq!(plan(&meter, &wish(KeyKind::Guek), &TIMES, 161), Err(NotDone::LegalHold));
    meter.legal_hold_ms = None;
    assert_eq!(staged(&mut meter, KeyKind::Guek, 161), 5);
    let gone = place(KeyKind::Guek).version(&meter, 1).unwrap();
    assert_eq!((gone.state, gone.life.reason), (KeyState::Destroyed, StateReason::MadeRoom));
}

#[test]
fn a_record_that_is_full_of_destroyed_versions_keeps_their_values_and_goes_on() {
    let mut meter = meter();
    let mut now_ms = 10;
    for version in 2..=40 {
        assert_eq!(staged(&mut meter, KeyKind::Guek, now_ms), version);
        show(&mut meter, &shown(version, 1), &TIMES, now_ms + 1);
        now_ms += 200;
        due::pass(&mut meter, now_ms);
    }
    let rows = place(KeyKind::Guek).versions(&meter).count();
    assert!(rows <= MeterRecord::VERSIONS_A_KEY, "{rows}");
    let known = FormerKey::of(&meter);
    for version in 1..=40 {
        let value = key(KeyKind::Guek, version, KeyState::Active).fingerprint;
        assert!(known.iter().any(|key| key.fingerprint == value), "{version}");
    }
    assert!(meter.former.iter().all(|key| !key.may_come_back()));
}

#[test]
fn protection_is_as_the_predecessors_unless_somebody_says_otherwise() {
    let mut meter = meter();
    meter.keys[0].protection = Protection::Hsm;
    assert_eq!(to_make(&meter, &wish(KeyKind::Guek), 1).protection, Protection::Hsm);
    let said = Wish { protection: Some(Protection::Memory), ..wish(KeyKind::Guek) };
    assert_eq!(to_make(&meter, &said, 1).protection, Protection::Memory);
}

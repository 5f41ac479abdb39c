use super::*;
use crate::{
    AssociationForm, Carrier, ChangeMark, KeyId, KeyLife, MeterId, MeterPolicy, SecuritySetup,
    SystemTitle, Transfer,
    fact::{GroupName, GroupValue, ValueStage},
    life::{Times, evidence::answered, standing::prefer},
};

const PLACE: Place = Place { setup: SecuritySetup(0), kind: KeyKind::Gbek };
const CLIENT: SystemTitle = SystemTitle::new([9; 8]);
const NEW: Fingerprint = Fingerprint([2; 16]);

fn key(kind: KeyKind, version: u16, state: KeyState) -> KeyRecord {
    KeyRecord {
        id: KeyId([kind as u8 * 16 + version as u8; 16]),
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
        fingerprint: Fingerprint([version as u8; 16]),
        life: KeyLife::default(),
    }
}

/// With the former GBEK, and the new one staged.
fn meter() -> MeterRecord {
    let mut staged = key(KeyKind::Gbek, 2, KeyState::PreActive);
    staged.life.reason = StateReason::Staged;
    staged.life.transfer = Some(Transfer {
        request: "r".into(),
        kek: KeyId([4; 16]),
        class_version: 1,
        carrier: Carrier { setup: SecuritySetup(0), client: 1, form: AssociationForm::GeneralGlo },
        wrapped: vec![8; 24],
        unreplicated: false,
        sent_ms: None,
        result: None,
    });
    let policy = MeterPolicy { client_title: Some(CLIENT), ..MeterPolicy::default() };
    MeterRecord {
        meter_id: MeterId::new("m").unwrap(),
        system_title: SystemTitle::new([1; 8]),
        logical_device_name: String::new(),
        policy,
        keys: vec![
            key(KeyKind::Gbek, 1, KeyState::Active),
            staged,
            key(KeyKind::Gak, 1, KeyState::Active),
        ],
        created_ms: 1,
        former: Vec::new(),
        changed_by: ChangeMark::default(),
        legal_hold_ms: None,
    }
}

fn group() -> Group {
    Group {
        name: GroupName::new("g").unwrap(),
        created_ms: 1,
        setup: SecuritySetup(0),
        client: 1,
        originator: CLIENT,
        authenticated: true,
        class_version: 1,
        carrier: Carrier::default(),
        deleted_ms: None,
        wants_ms: None,
        values: Vec::new(),
        members: Vec::new(),
    }
}

#[test]
fn a_members_state_is_what_its_key_says() {
    let mut meter = meter();
    let state = |meter: &MeterRecord| state_of(meter, PLACE, NEW);
    assert_eq!(state(&meter), MemberState::Staged);
    assert_eq!(state_of(&meter, PLACE, Fingerprint([9; 16])), MemberState::NotStaged);
    let transfer = meter.keys[1].life.transfer.as_mut().unwrap();
    transfer.sent_ms = Some(5);
    assert_eq!(state(&meter), MemberState::Sent);
    assert!(state(&meter).may_hold() && !state(&meter).is_confirmed());
    for (answer, then) in [
        (TransferResult::NoAnswer, MemberState::Unknown),
        (TransferResult::Refused, MemberState::Failed),
        (TransferResult::Success, MemberState::ConfirmedByResult),
    ] {
        answered(&mut meter, PLACE, answer, (&Times::default(), 6)).unwrap();
        assert_eq!(state(&meter), then);
    }
    // The former one is live, and it is not what the group counts on at this member.
    assert_eq!(state_of(&meter, PLACE, Fingerprint([1; 16])), MemberState::FellBack);
    prefer(&mut meter, PLACE, 1, 7).unwrap();
    assert_eq!(state(&meter), MemberState::FellBack);
    assert_eq!(state_of(&meter, PLACE, Fingerprint([1; 16])), MemberState::Confirmed);
}

#[test]
fn who_may_not_know_the_tag_or_the_nonce_of_a_broadcast_is_no_member() {
    let mut one = meter();
    assert_eq!(fits(&group(), &one, None), Err(Unfit::OwnKeyStaged(KeyKind::Gbek)));
    one.keys.remove(1);
    assert_eq!(fits(&group(), &one, Some(&one)), Ok(()));
    let mut other = meter();
    other.policy.client_title = Some(SystemTitle::new([8; 8]));
    assert_eq!(fits(&group(), &other, None), Err(Unfit::OtherClientTitle));
    let mut known = group();
    known.put_value(GroupValue {
        kind: KeyKind::Gak,
        since_ms: 1,
        fingerprint: Fingerprint([1; 16]),
        kcv: [0; 5],
        stage: ValueStage::Settled,
        made_here: false,
    });
    assert_eq!(fits(&known, &one, None), Ok(()));
    let mut other = one.clone();
    other.keys[1].fingerprint = Fingerprint([7; 16]);
    assert_eq!(fits(&known, &other, None), Err(Unfit::OtherGak));
    let bare = Group { authenticated: false, ..group() };
    assert_eq!(fits(&bare, &one, None), Err(Unfit::NeedsTag));
    let mut long = one.clone();
    long.keys[0].value_len = 32;
    assert_eq!(fits(&group(), &long, Some(&one)), Err(Unfit::OtherSuite));
    long.keys.remove(0);
    assert_eq!(fits(&group(), &long, None), Err(Unfit::NoKeys));
}

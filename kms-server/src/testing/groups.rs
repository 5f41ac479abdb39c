//! Broadcast groups, on what their members would hear: one value for all of them, and while it is rotated each broadcast is
//! heard by those that have changed and by those that have not.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]

use std::collections::{BTreeMap, BTreeSet};

use dlms::{CipheredApdu, GeneralCipheringAad, KeySet, Keys, SystemTitle, key_wrap};
use kms_core::{
    AssociationForm, Carrier, Fingerprint, KeyKind, KeyState, MeterId, MeterPolicy, RefusalCode,
    SecuritySetup, StateReason, TransferResult, Verdict,
    counters::allocator::Purpose,
    fact::{Group, GroupName, ValueStage},
    life::{choosing::Place, grouping::MemberState, staging::Wish},
};

use super::{
    home::at_home,
    site_common::{GAK, GUEK, Site, call, id, key, meter, title, value},
    transmitting::send,
};
use crate::{
    lifecycle::{Joined, Lifecycle, LifecycleError, NewMeter, Rotated, Sending},
    transmitting::{
        Broadcast, BroadcastMessage, Declaration, Envelope, Origin, Plain, Transmitting, Whose,
    },
};

pub(super) const CLIENT: SystemTitle = SystemTitle::new(*b"AMIHES\x00\x01");
const CLOCK: &[u8] = b"\xC1\x01\xC1\x00\x08\x00\x00\x01\x00\x00\xFF\x02\x00\x00";
pub(super) const KEK: u8 = 9;
/// Values that all members come with.
pub(super) const SHARED: u64 = 99;
pub(super) const GBEK: u8 = 3;

pub(super) fn place(kind: KeyKind) -> Place {
    Place { setup: SecuritySetup(0), kind }
}

/// Meter `n` as it comes from its factory: a GUEK and a KEK of its own, a GBEK and a GAK that others have, too.
pub(super) fn member(n: u64) -> NewMeter {
    let policy = MeterPolicy { client_title: Some(CLIENT), ..MeterPolicy::default() };
    let keys = vec![
        key(KeyKind::Guek, value(n, GUEK)),
        key(KeyKind::Gbek, value(SHARED, GBEK)),
        key(KeyKind::Gak, value(SHARED, GAK)),
        key(KeyKind::Kek, value(n, KEK)),
    ];
    NewMeter { policy: Some(policy), keys, ..meter(n) }
}

pub(super) fn name() -> GroupName {
    GroupName::new("north").unwrap()
}

pub(super) fn group() -> Group {
    Group {
        name: name(),
        created_ms: 0,
        setup: SecuritySetup(0),
        client: 0,
        originator: CLIENT,
        authenticated: true,
        class_version: 1,
        carrier: Carrier { setup: SecuritySetup(0), client: 0, form: AssociationForm::GeneralGlo },
        deleted_ms: None,
        wants_ms: None,
        values: Vec::new(),
        members: Vec::new(),
    }
}

pub(super) fn ids(numbers: &[u64]) -> Vec<MeterId> {
    numbers.iter().map(|n| MeterId::new(&id(*n)).unwrap()).collect()
}

pub(super) async fn join(on: &Lifecycle, numbers: &[u64]) -> Joined {
    let call = call("Groups/AddMembers");
    on.add_members(&call, (&name(), &ids(numbers)), false).await.unwrap()
}

pub(super) async fn rotate(on: &Lifecycle, kind: KeyKind) -> Result<Rotated, LifecycleError> {
    on.rotate_group_key(&call("Groups/RotateGroupKey"), (&name(), kind), false).await
}

pub(super) async fn finish(
    on: &Lifecycle,
    kind: KeyKind,
    left_out: &[u64],
) -> Result<Group, LifecycleError> {
    let left_out: BTreeSet<MeterId> = ids(left_out).into_iter().collect();
    let call = call("Groups/FinishGroupRotation");
    on.finish_group_rotation(&call, (&name(), kind), &left_out).await.map(|(group, _)| group)
}

pub(super) fn code(error: &LifecycleError) -> RefusalCode {
    match error {
        LifecycleError::Refused(refusal) => refusal.code,
        other => panic!("{other}"),
    }
}

/// The counter of the members' shared GBEK may begin.
pub(super) async fn declare(sending: &Transmitting, n: u64, key_set: KeySet) {
    let (setup, whose) = (SecuritySetup(0), Whose::Title(title(n)));
    let declaration =
        Declaration { whose, setup, client: 0, key_set, last: None, two_people: false };
    sending.declare(&call("Meters/DeclareCounter"), declaration).await.unwrap();
}

pub(super) async fn broadcast(on: &Lifecycle, sending: &Transmitting) -> Broadcast {
    let group = on.group(&name()).await.unwrap();
    let origin = Origin {
        caller: "hes",
        roles: Vec::new(),
        call: "Groups/EncryptBroadcast",
        request_id: "",
        until: None,
    };
    sending.broadcast(&origin, &group, (CLOCK, Envelope::GeneralGlo)).await
}

/// The keys that a meter has, which only it changes.
#[derive(Clone)]
pub(super) struct Has {
    pub(super) gbek: Vec<u8>,
    pub(super) gak: Vec<u8>,
    /// Counters that it has heard under each key.
    pub(super) heard: BTreeMap<Vec<u8>, u32>,
}

impl Has {
    pub(super) fn of_factory() -> Self {
        let (gbek, gak) = (value(SHARED, GBEK), value(SHARED, GAK));
        Self { gbek, gak, heard: BTreeMap::new() }
    }

    /// Whether it hears one of these, as a meter does: with its keys, and a counter that rises.
    pub(super) fn hears(&mut self, messages: &[BroadcastMessage]) -> bool {
        let mut heard = false;
        for message in messages {
            let apdu = CipheredApdu::parse(&message.apdu).unwrap();
            let keys = Keys { encryption: &self.gbek, authentication: &self.gak };
            let mut plain = Vec::new();
            if apdu.open(&keys, &CLIENT, GeneralCipheringAad::Spec, &mut plain).is_ok() {
                assert_eq!(plain, CLOCK);
                let last = self.heard.entry(self.gbek.clone()).or_default();
                assert!(apdu.invocation_counter() > *last, "a counter came again");
                *last = apdu.invocation_counter();
                heard = true;
            }
        }
        heard
    }
}

/// The transfer of what is staged at meter `n`: the key that the meter finds in it.
pub(super) async fn transfer(
    (on, sending): (&Lifecycle, &Transmitting),
    (n, kind): (u64, KeyKind),
    gak: &[u8],
) -> Vec<u8> {
    let wanted = Sending {
        place: place(kind),
        pair: None,
        invoke_id_and_priority: 0xC1,
        form: None,
        lease: 0,
    };
    let meter = MeterId::new(&id(n)).unwrap();
    let outgoing = on.next_transfer(&call("Rotation/NextTransfer"), &meter, &wanted).await.unwrap();
    let plain = Plain {
        apdu: &outgoing.apdu,
        whose: Whose::Title(outgoing.title),
        setup: outgoing.carrier.setup,
        client: outgoing.carrier.client,
        key_set: KeySet::Unicast,
        envelope: Envelope::GeneralGlo,
        protection: (true, true),
        suite: None,
        purpose: Purpose::KeyTransfer,
        versions: (outgoing.pair.encryption, outgoing.pair.authentication.unwrap_or_default()),
    };
    let (outcome, apdu) = send(sending, plain).await;
    assert_eq!(outcome.verdict, Verdict::Ok, "{outcome:?}");
    let apdu = CipheredApdu::parse(&apdu).unwrap();
    let (guek, mut plain) = (value(n, GUEK), Vec::new());
    let keys = Keys { encryption: &guek, authentication: gak };
    apdu.open(&keys, &CLIENT, GeneralCipheringAad::Spec, &mut plain).unwrap();
    let mut key = vec![0; 16];
    key_wrap::unwrap(&value(n, KEK), &plain[plain.len() - 24..], &mut key).unwrap();
    key
}

pub(super) async fn confirm(on: &Lifecycle, (n, kind): (u64, KeyKind), result: TransferResult) {
    let meter = MeterId::new(&id(n)).unwrap();
    on.confirm_key(&call("Rotation/ConfirmKey"), &meter, place(kind), result).await.unwrap();
}

pub(super) async fn states(on: &Lifecycle) -> Vec<MemberState> {
    on.show_group(&name()).await.unwrap().members.iter().map(|member| member.gbek).collect()
}

/// What the members' records say that they hold of one kind: each value once.
pub(super) async fn newest(site: &Site, numbers: &[u64], kind: KeyKind) -> BTreeSet<[u8; 16]> {
    let mut all = BTreeSet::new();
    for n in numbers {
        let record = site.lifecycle.get_by_title(&title(*n)).await.unwrap().record;
        let Fingerprint(value) = place(kind).versions(&record).last().unwrap().fingerprint;
        all.insert(value);
    }
    all
}

/// A site with members 1 to `count` in a group, of which counters may begin.
async fn ready(home: &super::home::Home, count: u64) -> (Site, Transmitting) {
    let site = Site::new(home).await;
    let sending = site.transmitting(true, None);
    let numbers: Vec<u64> = (1..=count).collect();
    for n in &numbers {
        site.add(member(*n)).await;
        declare(&sending, *n, KeySet::Unicast).await;
    }
    let create = call("Groups/CreateGroup");
    site.lifecycle.create_group(&create, &group()).await.unwrap();
    let joined = join(&site.lifecycle, &numbers).await;
    assert_eq!((joined.added, joined.staged), (numbers.len(), 0), "{joined:?}");
    declare(&sending, 1, KeySet::Broadcast).await;
    (site, sending)
}

fn reach(sent: &Broadcast) -> Vec<(ValueStage, usize, usize)> {
    assert!(sent.messages.iter().all(|it| it.outcome.verdict == Verdict::Ok), "{sent:?}");
    sent.messages.iter().map(|it| (it.gbek.stage, it.reaches, it.may_reach)).collect()
}

#[test]
fn each_member_hears_each_broadcast_before_during_and_after_a_rotation() {
    at_home(async |home| {
        let (site, sending) = ready(home, 3).await;
        let on = &site.lifecycle;
        let mut field = [Has::of_factory(), Has::of_factory(), Has::of_factory()];
        let old = field[0].gbek.clone();
        let all_hear = async |field: &mut [Has; 3]| {
            let sent = broadcast(on, &sending).await;
            assert_eq!(sent.not_reached, []);
            assert!(field.iter_mut().all(|meter| meter.hears(&sent.messages)));
            reach(&sent).into_iter().map(|(_, sure, may)| (sure, may)).collect::<Vec<_>>()
        };
        assert_eq!(states(on).await, [MemberState::Confirmed; 3], "they came with it");
        assert_eq!(all_hear(&mut field).await, [(3, 0)]);
        let rotated = rotate(on, KeyKind::Gbek).await.unwrap();
        assert_eq!((rotated.brought.staged.len(), rotated.already), (3, false));
        assert_eq!(states(on).await, [MemberState::Staged; 3]);
        assert_eq!(newest(&site, &[1, 2, 3], KeyKind::Gbek).await.len(), 1, "one value");
        // Nobody has it: nothing is sent under it.
        assert_eq!(all_hear(&mut field).await, [(3, 0)]);
        let gak = field[0].gak.clone();
        let mut brought = BTreeSet::new();
        for (at, n) in [(0, 1), (1, 2), (2, 3)] {
            let new = transfer((on, &sending), (n, KeyKind::Gbek), &gak).await;
            assert_ne!(new, old);
            brought.insert(new.clone());
            // It may have it, or not: either is heard.
            let before = all_hear(&mut field).await;
            field[at].gbek = new;
            assert_eq!(all_hear(&mut field).await, before);
            confirm(on, (n, KeyKind::Gbek), TransferResult::Refused).await;
            assert_eq!(states(on).await[at], MemberState::Failed);
            assert_eq!(all_hear(&mut field).await, before, "an answer may be wrong");
            confirm(on, (n, KeyKind::Gbek), TransferResult::Success).await;
            assert_eq!(states(on).await[at], MemberState::ConfirmedByResult);
            let mut now = all_hear(&mut field).await;
            now.sort_unstable();
            let expected = [vec![(1, 0), (2, 0)], vec![(1, 0), (2, 0)], vec![(3, 0)]];
            assert_eq!(now, expected[at]);
        }
        assert_eq!(brought.len(), 1, "each was brought the same key");
        let ended = finish(on, KeyKind::Gbek, &[]).await.unwrap();
        let settled = ended.settled(KeyKind::Gbek).unwrap();
        assert_eq!(settled.fingerprint, rotated.value.fingerprint);
        assert_eq!(ended.in_flight(KeyKind::Gbek).count(), 1);
        assert_eq!(all_hear(&mut field).await, [(3, 0)]);
    });
}

#[test]
fn what_one_member_alone_would_break_is_refused_and_the_members_are_named() {
    at_home(async |home| {
        let (site, _sending) = ready(home, 3).await;
        let on = &site.lifecycle;
        let stage = async |kind, n| {
            let wish = Wish {
                place: place(kind),
                class_version: 1,
                carrier: Carrier::default(),
                kek: None,
                protection: None,
                request: "r".into(),
                allow_unreplicated: false,
                under_compromised_kek: false,
            };
            on.stage_key(&call("Rotation/StageKey"), &ids(&[n])[0], &wish).await
        };
        let refused = stage(KeyKind::Gak, 2).await.unwrap_err();
        assert_eq!(code(&refused), RefusalCode::BreaksBroadcast);
        let said = refused.to_string();
        assert!(said.contains("group north"), "{said}");
        for n in [1, 2, 3] {
            assert!(said.contains(&id(n)), "{said}");
        }
        assert_eq!(code(&stage(KeyKind::Gbek, 2).await.unwrap_err()), RefusalCode::GroupKey);
        assert!(stage(KeyKind::Guek, 2).await.is_ok(), "its own key is its own");
        let delete = call("Meters/DeleteMeter");
        let refused = on.delete(&delete, &ids(&[2])[0]).await.unwrap_err();
        assert_eq!(code(&refused), RefusalCode::GroupMember);
        // Outside the group it may have what it likes.
        let remove = call("Groups/RemoveMembers");
        let left = on.remove_members(&remove, &name(), (&ids(&[2]), &[])).await.unwrap();
        assert_eq!((left.removed, left.wants_gbek), (1, true));
        assert!(stage(KeyKind::Gak, 2).await.is_ok());
        on.delete(&delete, &ids(&[2])[0]).await.unwrap();
        // A group that has members is not given up, and one without is.
        let give_up = call("Groups/DeleteGroup");
        let refused = on.delete_group(&give_up, &name()).await.unwrap_err();
        assert_eq!(code(&refused), RefusalCode::GroupState);
        on.remove_members(&remove, &name(), (&ids(&[1, 3]), &[])).await.unwrap();
        on.delete_group(&give_up, &name()).await.unwrap();
        assert_eq!(code(&on.group(&name()).await.unwrap_err()), RefusalCode::NoSuchGroup);
        on.create_group(&call("Groups/CreateGroup"), &group()).await.unwrap();
        assert!(on.group(&name()).await.unwrap().values.is_empty());
    });
}

#[test]
fn a_rotation_that_was_cut_off_anywhere_goes_on_with_the_same_value() {
    const MEMBERS: u64 = 40;
    at_home(async |home| {
        let (site, _sending) = ready(home, MEMBERS).await;
        let on = &site.lifecycle;
        let numbers: Vec<u64> = (1..=MEMBERS).collect();
        let mut value = None;
        let mut cuts = 0;
        for wait_us in (0..).map(|n| n * 300) {
            let patience = std::time::Duration::from_micros(wait_us);
            let rotated = tokio::time::timeout(patience, rotate(on, KeyKind::Gbek)).await;
            let group = on.group(&name()).await.unwrap();
            assert!(group.in_flight(KeyKind::Gbek).count() <= 2, "one value was made");
            let now = group.rotating(KeyKind::Gbek).map(|value| value.fingerprint);
            assert!(value.is_none() || value == now);
            value = now;
            match rotated {
                Ok(Ok(rotated)) if rotated.brought.left == 0 => break,
                Ok(other) => assert!(other.is_ok(), "{other:?}"),
                Err(_) => cuts += 1,
            }
        }
        println!("cut off {cuts} times");
        assert!(cuts > 0);
        assert_eq!(states(on).await, vec![MemberState::Staged; MEMBERS as usize]);
        let Fingerprint(value) = value.unwrap();
        assert_eq!(newest(&site, &numbers, KeyKind::Gbek).await, BTreeSet::from([value]));
    });
}

#[test]
fn who_comes_gets_the_groups_key_and_who_goes_leaves_a_wish_for_another_one() {
    at_home(async |home| {
        let (site, sending) = ready(home, 2).await;
        let on = &site.lifecycle;
        // A meter with a GBEK of its own comes.
        let mut other = member(7);
        other.keys[1] = key(KeyKind::Gbek, value(7, GBEK));
        site.add(other).await;
        declare(&sending, 7, KeySet::Unicast).await;
        let joined = join(on, &[7]).await;
        assert_eq!((joined.added, joined.staged, joined.refused.len()), (1, 1, 0));
        let (gbek, gak) = (value(SHARED, GBEK), value(SHARED, GAK));
        let sent = broadcast(on, &sending).await;
        assert_eq!((reach(&sent), sent.not_reached.len()), (vec![(ValueStage::Settled, 2, 0)], 1));
        let brought = transfer((on, &sending), (7, KeyKind::Gbek), &gak).await;
        assert_eq!(brought, gbek, "the key of all");
        confirm(on, (7, KeyKind::Gbek), TransferResult::Success).await;
        let sent = broadcast(on, &sending).await;
        assert_eq!((reach(&sent), sent.not_reached.len()), (vec![(ValueStage::Settled, 3, 0)], 0));
        // One that can't be a member, and one that is one.
        let mut stranger = member(8);
        stranger.keys[2] = key(KeyKind::Gak, value(8, GAK));
        site.add(stranger).await;
        let joined = join(on, &[8, 1]).await;
        assert_eq!((joined.added, joined.refused.len()), (0, 1), "{joined:?}");
        assert!(joined.refused.iter().all(|(_, why)| why.code == RefusalCode::UnfitForGroup));
        // One that leaves knows the key; what was staged there and never sent is withdrawn.
        rotate(on, KeyKind::Gbek).await.unwrap();
        let remove = call("Groups/RemoveMembers");
        let left = on.remove_members(&remove, &name(), (&ids(&[7]), &[])).await.unwrap();
        assert!(left.wants_gbek);
        let record = on.get_by_title(&title(7)).await.unwrap().record;
        let last = place(KeyKind::Gbek).versions(&record).last().unwrap();
        assert_eq!((last.state, last.life.reason), (KeyState::Deactivated, StateReason::Withdrawn));
        // The rotation that is under way began before, and what it brings the leaver does not know; yet it might have.
        let refused = finish(on, KeyKind::Gbek, &[]).await.unwrap_err();
        assert_eq!(code(&refused), RefusalCode::MembersNotNamed);
        assert!(refused.to_string().contains(&id(1)) && refused.to_string().contains(&id(2)));
        let ended = finish(on, KeyKind::Gbek, &[1, 2]).await.unwrap();
        assert!(ended.wants_ms.is_some());
        let sent = broadcast(on, &sending).await;
        assert_eq!((sent.messages.len(), sent.not_reached.len()), (0, 2), "both were left out");
        // What is staged there can still be brought.
        transfer((on, &sending), (1, KeyKind::Gbek), &gak).await;
        confirm(on, (1, KeyKind::Gbek), TransferResult::Success).await;
        let sent = broadcast(on, &sending).await;
        assert_eq!(reach(&sent), [(ValueStage::Settled, 1, 0)]);
        // The other one was never sent it: the next value takes its place there.
        let next = rotate(on, KeyKind::Gbek).await.unwrap();
        assert_eq!((next.brought.staged.len(), next.brought.refused.len()), (2, 0), "{next:?}");
    });
}

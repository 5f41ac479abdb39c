//! The life of a meter's keys, at one site and at two: what the meter is sent opens with its own keys and its KEK, and what
//! it sends decides.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]

use std::{collections::BTreeSet, sync::Arc};

use dlms::{CipheredApdu, GeneralCipheringAad, KeySet, Keys, SystemTitle, key_wrap};
use kms_core::{
    AssociationForm, Carrier, KeyKind, KeyState, MeterId, MeterPolicy, Protection, Record,
    RefusalCode, SecuritySetup, StateReason, TransferResult, Verdict,
    counters::{allocator::Purpose, refusal::Refusal as NotSent},
    life::{
        choosing::{Pair, Place},
        staging::Wish,
    },
    ports::Proved,
};

use super::{
    home::{at_home, at_two_homes},
    pair::{Network, Running, entry, eventually, in_step, promote, sites},
    site_common::{GAK, GUEK, Site, call, id, key, meter, push, push_with, title, value},
    transmitting::{declare, send},
};
use crate::{
    ciphering::Named,
    lifecycle::{ImportRules, Lifecycle, LifecycleError, NewMeter, Sending, StagedKey},
    transmitting::{Envelope, Outcome, Plain, Transmitting, Whose},
};

const CLIENT: SystemTitle = SystemTitle::new(*b"AMIHES\x00\x01");
const PLAIN: &[u8] = b"\x0f\x00";
const KEK: u8 = 9;

pub(super) fn place(kind: KeyKind) -> Place {
    Place { setup: SecuritySetup(0), kind }
}

/// Meter `n` with a KEK, which is sent to.
pub(super) fn rotating(n: u64) -> NewMeter {
    let policy = MeterPolicy { client_title: Some(CLIENT), ..MeterPolicy::default() };
    let mut meter = NewMeter { policy: Some(policy), ..meter(n) };
    meter.keys.push(key(KeyKind::Kek, value(n, KEK)));
    meter
}

pub(super) fn wish(kind: KeyKind) -> Wish {
    Wish {
        place: place(kind),
        class_version: 1,
        carrier: Carrier { setup: SecuritySetup(0), client: 1, form: AssociationForm::GeneralGlo },
        kek: None,
        protection: None,
        request: "r-1".into(),
        allow_unreplicated: false,
        under_compromised_kek: false,
    }
}

pub(super) async fn stage(on: &Lifecycle, n: u64, kind: KeyKind) -> StagedKey {
    stage_as(on, n, &wish(kind)).await.unwrap()
}

pub(super) async fn stage_as(
    on: &Lifecycle,
    n: u64,
    wish: &Wish,
) -> Result<StagedKey, LifecycleError> {
    on.stage_key(&call("Rotation/StageKey"), &MeterId::new(&id(n)).unwrap(), wish).await
}

/// The transfer of what is staged, as it goes to meter `n`.
pub(super) async fn transfer(
    (on, sending): (&Lifecycle, &Transmitting),
    n: u64,
    kind: KeyKind,
    pair: Option<Pair>,
) -> Result<(Outcome, Vec<u8>), LifecycleError> {
    let wanted =
        Sending { place: place(kind), pair, invoke_id_and_priority: 0xC1, form: None, lease: 0 };
    let meter = MeterId::new(&id(n)).unwrap();
    let outgoing = on.next_transfer(&call("Rotation/NextTransfer"), &meter, &wanted).await?;
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
    Ok(send(sending, plain).await)
}

/// The meter's side: opens a transfer with these keys, and unwraps what it brings; with it the wrapped bytes.
pub(super) fn received(n: u64, apdu: &[u8], (guek, gak): (&[u8], &[u8])) -> (Vec<u8>, Vec<u8>) {
    let apdu = CipheredApdu::parse(apdu).unwrap();
    let mut plain = Vec::new();
    let keys = Keys { encryption: guek, authentication: gak };
    apdu.open(&keys, &CLIENT, GeneralCipheringAad::Spec, &mut plain).unwrap();
    // action-request-normal, class 64, method 2, one structure: key_id and octet string.
    assert_eq!(plain[..5], [0xC3, 0x01, 0xC1, 0x00, 0x40]);
    let wrapped = plain[plain.len() - 24..].to_vec();
    let mut key = vec![0; 16];
    key_wrap::unwrap(&value(n, KEK), &wrapped, &mut key).unwrap();
    (key, wrapped)
}

/// An HLS answer under what is staged, which tells whether the meter holds it.
fn probe(n: u64) -> Plain<'static> {
    let apdu = b"\xC3\x01\xC1\x00\x0F\x00\x00\x28\x00\x00\xFF\x01\x01\x09\x08f(StoC)!";
    Plain { apdu, purpose: Purpose::Hls, versions: (2, 1), ..super::transmitting::plain(n) }
}

/// What the meter has shown since is in its record when this returns.
pub(super) async fn evidence(site: &Site) -> usize {
    let shown = site.evidence.take(1000);
    site.lifecycle.take_shown(&shown).await.unwrap().len()
}

pub(super) async fn state(
    site: &Site,
    n: u64,
    kind: KeyKind,
    version: u16,
) -> (KeyState, StateReason, bool) {
    let record = site.lifecycle.get_by_title(&title(n)).await.unwrap().record;
    let key = place(kind).version(&record, version).unwrap();
    let preferred = place(kind).preferred(&record).is_some_and(|it| it.id == key.id);
    (key.state, key.life.reason, preferred)
}

/// A single site with meter 1, whose counters may begin.
async fn ready(home: &super::home::Home) -> (Site, Transmitting) {
    let site = Site::new(home).await;
    site.add(rotating(1)).await;
    let sending = site.transmitting(true, None);
    declare(&sending, 1, None).await.unwrap();
    (site, sending)
}

pub(super) fn code(error: LifecycleError) -> RefusalCode {
    match error {
        LifecycleError::Refused(refusal) => refusal.code,
        other => panic!("{other}"),
    }
}

#[test]
fn a_key_is_staged_sent_under_the_old_one_and_preferred_when_the_meter_shows_it() {
    at_home(async |home| {
        let (site, sending) = ready(home).await;
        let staged = stage(&site.lifecycle, 1, KeyKind::Guek).await;
        assert_eq!(
            (staged.key.version, staged.already, staged.proved),
            (2, false, Proved::NotApplicable)
        );
        assert_eq!(staged.key.state, KeyState::PreActive);
        // Whoever asks again gets the same one.
        let again = stage(&site.lifecycle, 1, KeyKind::Guek).await;
        assert_eq!((again.key.id, again.already), (staged.key.id, true));

        let (old, gak) = (value(1, GUEK), value(1, GAK));
        let on = (&site.lifecycle, &sending);
        let (first, apdu) = transfer(on, 1, KeyKind::Guek, None).await.unwrap();
        let (new, wrapped) = received(1, &apdu, (&old, &gak));
        // A retry has the same wrapped bytes, and a counter of its own.
        let (second, apdu) = transfer(on, 1, KeyKind::Guek, None).await.unwrap();
        assert_eq!(received(1, &apdu, (&old, &gak)), (new.clone(), wrapped));
        assert!(second.invocation_counter > first.invocation_counter);
        assert_eq!((first.encryption_key_version, first.authentication_key_version), (1, 1));
        assert_ne!(new, old);

        // The answer comes under the old key, and proves nothing.
        assert_eq!(
            site.verdict(&push_with(1, 0x30, &old, &gak, b"\xC7\x01\xC1\x00\x00")).await,
            Verdict::Ok
        );
        let confirm = call("Rotation/ConfirmKey");
        let meter = MeterId::new(&id(1)).unwrap();
        let result = TransferResult::Success;
        site.lifecycle.confirm_key(&confirm, &meter, place(KeyKind::Guek), result).await.unwrap();
        assert_eq!(evidence(&site).await, 0);
        assert_eq!(
            state(&site, 1, KeyKind::Guek, 2).await,
            (KeyState::PreActive, StateReason::Staged, false)
        );

        // Its next push under the new one does.
        let (outcome, _) = site.open(&push_with(1, 0x30, &new, &gak, PLAIN), Named::InApdu).await;
        assert_eq!((outcome.verdict, outcome.encryption_key_version), (Verdict::Ok, 2));
        assert_eq!(evidence(&site).await, 1);
        assert_eq!(
            state(&site, 1, KeyKind::Guek, 2).await,
            (KeyState::Active, StateReason::Evidence, true)
        );
        assert_eq!(
            state(&site, 1, KeyKind::Guek, 1).await,
            (KeyState::Active, StateReason::Imported, false)
        );
        // What is sent goes out under the new one; late pushes under the old one open, and take nothing back.
        let sent = send(&sending, super::transmitting::plain(1)).await.0;
        assert_eq!((sent.verdict, sent.encryption_key_version), (Verdict::Ok, 2));
        assert_eq!(site.verdict(&push(1, PLAIN)).await, Verdict::Ok);
        assert_eq!(evidence(&site).await, 0);
        // A meter that fell back is sent to under the old one again, when somebody says so.
        let back = (place(KeyKind::Guek), 1);
        let rolled =
            site.lifecycle.roll_back_key(&call("Rotation/RollBackKey"), &meter, back).await;
        assert!(rolled.unwrap().said);
        let sent = send(&sending, super::transmitting::plain(1)).await.0;
        assert_eq!((sent.verdict, sent.encryption_key_version), (Verdict::Ok, 1));
    });
}

#[test]
fn what_is_not_evidence_proves_nothing() {
    at_home(async |home| {
        let (site, sending) = ready(home).await;
        stage(&site.lifecycle, 1, KeyKind::Guek).await;
        let on = (&site.lifecycle, &sending);
        let (_, apdu) = transfer(on, 1, KeyKind::Guek, None).await.unwrap();
        let (new, _) = received(1, &apdu, (&value(1, GUEK), &value(1, GAK)));
        let named = probe(1);
        // Our own message under the new key, thrown back.
        let (probe, apdu) = send(&sending, named).await;
        assert_eq!((probe.verdict, probe.encryption_key_version), (Verdict::Ok, 2));
        assert_eq!(site.open(&apdu, Named::Title(title(1))).await.0.verdict, Verdict::Ok);
        // Encrypted only: nobody vouches for it.
        let bare = push_with(1, 0x20, &new, &value(1, GAK), PLAIN);
        assert_ne!(site.verdict(&bare).await, Verdict::Ok);
        // Forged.
        let mut forged = push_with(1, 0x30, &new, &value(1, GAK), PLAIN);
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(site.verdict(&forged).await, Verdict::MicFailure);
        assert_eq!(evidence(&site).await, 0);
        // What is staged protects no traffic.
        let traffic = Plain { purpose: Purpose::Traffic, ..named };
        assert_eq!(send(&sending, traffic).await.0.verdict, Verdict::NoUsableKey);
    });
}

#[test]
fn any_pair_that_the_meter_may_hold_is_tried_and_may_carry() {
    at_home(async |home| {
        let (site, sending) = ready(home).await;
        let on = (&site.lifecycle, &sending);
        let (old, gak) = (value(1, GUEK), value(1, GAK));
        stage(&site.lifecycle, 1, KeyKind::Gak).await;
        let (_, apdu) = transfer(on, 1, KeyKind::Gak, None).await.unwrap();
        let (new_gak, _) = received(1, &apdu, (&old, &gak));
        stage(&site.lifecycle, 1, KeyKind::Guek).await;
        // The answer to the first was lost, and the meter has the new GAK already.
        let held = Pair { encryption: 1, authentication: Some(2) };
        let (sent, apdu) = transfer(on, 1, KeyKind::Guek, Some(held)).await.unwrap();
        assert_eq!(sent.verdict, Verdict::Ok);
        let (new, _) = received(1, &apdu, (&old, &new_gak));
        // A key does not travel under itself.
        let itself = Pair { encryption: 2, authentication: Some(1) };
        let refused = transfer(on, 1, KeyKind::Guek, Some(itself)).await.unwrap_err();
        assert_eq!(code(refused), RefusalCode::UnderItself);
        for (guek, gak, versions) in [
            (&old, &gak, (1, 1)),
            (&old, &new_gak, (1, 2)),
            (&new, &gak, (2, 1)),
            (&new, &new_gak, (2, 2)),
        ] {
            let (outcome, _) =
                site.open(&push_with(1, 0x30, guek, gak, PLAIN), Named::InApdu).await;
            let found = (outcome.encryption_key_version, outcome.authentication_key_version);
            assert_eq!((outcome.verdict, found), (Verdict::Ok, versions));
        }
        assert_eq!(evidence(&site).await, 2);
    });
}

#[test]
fn a_compromised_key_carries_its_successor_and_pushes_under_it_say_so() {
    at_home(async |home| {
        let (site, sending) = ready(home).await;
        let meter = MeterId::new(&id(1)).unwrap();
        let (old, gak) = (value(1, GUEK), value(1, GAK));
        let first = (place(KeyKind::Guek), 1);
        let said =
            site.lifecycle.compromise_key(&call("Rotation/CompromiseKey"), &meter, first).await;
        assert_eq!(said.unwrap().said, KeyState::Compromised);
        let (outcome, plain) = site.open(&push(1, PLAIN), Named::InApdu).await;
        assert_eq!((outcome.verdict, plain.len()), (Verdict::CompromisedKey, 0));
        // The answer to a transfer comes back all the same.
        let answer = b"\xC7\x01\xC1\x00\x00";
        let (outcome, plain) = site.open(&push(1, answer), Named::InApdu).await;
        assert_eq!((outcome.verdict, &plain[..]), (Verdict::CompromisedKey, &answer[..]));
        // Nothing else is sent under it.
        assert_eq!(
            send(&sending, super::transmitting::plain(1)).await.0.verdict,
            Verdict::NoUsableKey
        );
        stage(&site.lifecycle, 1, KeyKind::Guek).await;
        let on = (&site.lifecycle, &sending);
        let (sent, apdu) = transfer(on, 1, KeyKind::Guek, None).await.unwrap();
        assert_eq!((sent.verdict, sent.encryption_key_version), (Verdict::Ok, 1));
        let (new, _) = received(1, &apdu, (&old, &gak));
        assert_eq!(site.verdict(&push_with(1, 0x30, &new, &gak, PLAIN)).await, Verdict::Ok);
        assert_eq!(evidence(&site).await, 1);
        let gone = state(&site, 1, KeyKind::Guek, 1).await;
        assert_eq!(gone, (KeyState::Destroyed, StateReason::WipedAfterSuccessor, false));
        assert_eq!(site.verdict(&push(1, PLAIN)).await, Verdict::MicFailure);
        // A policy may give the plaintext.
        let first = (place(KeyKind::Gak), 1);
        site.lifecycle
            .compromise_key(&call("Rotation/CompromiseKey"), &meter, first)
            .await
            .unwrap();
        let policy = MeterPolicy {
            client_title: Some(CLIENT),
            allow_compromised: true,
            ..MeterPolicy::default()
        };
        site.lifecycle.set_policy(&call("Meters/SetPolicy"), &meter, &policy).await.unwrap();
        let (outcome, plain) =
            site.open(&push_with(1, 0x30, &new, &gak, PLAIN), Named::InApdu).await;
        assert_eq!((outcome.verdict, &plain[..]), (Verdict::CompromisedKey, PLAIN));
    });
}

#[test]
fn the_line_of_a_new_key_begins_where_the_meters_profile_lets_it() {
    at_home(async |home| {
        let options = super::site_common::Options {
            profiles: super::home::profiles(),
            ..super::site_common::Options::default()
        };
        let site = Site::with(home, options).await;
        let resets = super::home::profiles().iter().next().unwrap().name.clone();
        let sending = site.transmitting(true, None);
        for n in [1, 2, 3] {
            let mut meter = rotating(n);
            if n == 1 {
                meter.policy.as_mut().unwrap().profile = Some(resets.clone());
            }
            site.add(meter).await;
        }
        for n in [1, 2] {
            declare(&sending, n, Some(0x0300_0005)).await.unwrap();
        }
        for n in [1, 2, 3] {
            stage(&site.lifecycle, n, KeyKind::Guek).await;
        }
        let epoch = |counter: u32| counter >> 24;
        let anew = send(&sending, probe(1)).await.0.invocation_counter;
        assert_eq!(epoch(anew), 0, "it resets: as low as the parity allows");
        let kept = send(&sending, probe(2)).await.0.invocation_counter;
        assert_eq!(epoch(kept), 6, "nobody knows: above the former line, which is in 4");
        // Of whose former key nobody knows where its counters are.
        assert_eq!(send(&sending, probe(3)).await.0.refusal, Some(NotSent::CounterUndeclared));
    });
}

#[test]
fn keys_of_all_kinds_and_protections_are_made_and_no_two_are_alike() {
    at_home(async |home| {
        let (site, sending) = ready(home).await;
        let in_token = Wish { protection: Some(Protection::Hsm), ..wish(KeyKind::Guek) };
        stage_as(&site.lifecycle, 1, &in_token).await.unwrap();
        stage(&site.lifecycle, 1, KeyKind::Gak).await;
        stage(&site.lifecycle, 1, KeyKind::Kek).await;
        let on = (&site.lifecycle, &sending);
        let mut seen = BTreeSet::new();
        for kind in [KeyKind::Guek, KeyKind::Gak, KeyKind::Kek] {
            let (_, apdu) = transfer(on, 1, kind, None).await.unwrap();
            let (new, _) = received(1, &apdu, (&value(1, GUEK), &value(1, GAK)));
            assert!(seen.insert(new.clone()));
            if kind == KeyKind::Guek {
                // It opens in the token.
                let push = push_with(1, 0x30, &new, &value(1, GAK), PLAIN);
                assert_eq!(site.verdict(&push).await, Verdict::Ok);
            }
        }
        assert_eq!(evidence(&site).await, 1);
        let refused = stage_as(&site.lifecycle, 1, &wish(KeyKind::HlsSecret)).await.unwrap_err();
        assert_eq!(code(refused), RefusalCode::NotTransferable);
        let no_first = stage_as(&site.lifecycle, 1, &wish(KeyKind::Gbek)).await.unwrap();
        assert_eq!(no_first.key.version, 1, "the first of its kind");
    });
}

#[test]
fn what_was_wrapped_before_its_kek_was_known_to_be_compromised_is_not_sent() {
    at_home(async |home| {
        let (site, sending) = ready(home).await;
        let (on, meter) = ((&site.lifecycle, &sending), MeterId::new(&id(1)).unwrap());
        stage(&site.lifecycle, 1, KeyKind::Guek).await;
        transfer(on, 1, KeyKind::Guek, None).await.unwrap();
        let call = call("Rotation/CompromiseKey");
        site.lifecycle.compromise_key(&call, &meter, (place(KeyKind::Kek), 1)).await.unwrap();
        let refused = transfer(on, 1, KeyKind::Guek, None).await.unwrap_err();
        assert_eq!(code(refused), RefusalCode::KekCompromised);
    });
}

#[test]
fn nothing_is_sent_with_the_meters_own_title_or_none() {
    at_home(async |home| {
        let (site, sending) = ready(home).await;
        let meter = MeterId::new(&id(1)).unwrap();
        stage(&site.lifecycle, 1, KeyKind::Guek).await;
        for client_title in [None, Some(title(1))] {
            let policy = MeterPolicy { client_title, ..MeterPolicy::default() };
            site.lifecycle.set_policy(&call("Meters/SetPolicy"), &meter, &policy).await.unwrap();
            let on = (&site.lifecycle, &sending);
            let refused = transfer(on, 1, KeyKind::Guek, None).await.unwrap_err();
            assert_eq!(code(refused), RefusalCode::NoCarrierTitle);
        }
        // It was never handed out.
        let record = site.lifecycle.get_by_title(&title(1)).await.unwrap().record;
        let staged = place(KeyKind::Guek).staged(&record).unwrap();
        assert_eq!(staged.life.transfer.as_ref().unwrap().sent_ms, None);
    });
}

#[test]
fn a_hold_keeps_a_meter_and_no_import_makes_more_versions_live_than_are_tried() {
    at_home(async |home| {
        let (site, _sending) = ready(home).await;
        let one = MeterId::new(&id(1)).unwrap();
        let hold = call("Rotation/SetLegalHold");
        assert!(site.lifecycle.set_legal_hold(&hold, &one, true).await.unwrap().said);
        assert!(!site.lifecycle.set_legal_hold(&hold, &one, true).await.unwrap().said);
        let delete = call("Meters/DeleteMeter");
        assert_eq!(
            code(site.lifecycle.delete(&delete, &one).await.unwrap_err()),
            RefusalCode::LegalHold
        );
        assert!(site.lifecycle.set_legal_hold(&hold, &one, false).await.unwrap().said);
        let with =
            |salt| NewMeter { keys: vec![key(KeyKind::Guek, value(1, salt))], ..rotating(1) };
        for salt in [20, 21, 22] {
            site.add_versions(with(salt)).await;
        }
        let rules = ImportRules { add_versions: true, ..ImportRules::default() };
        let fifth = site.import(vec![with(23)], rules).await.remove(0).outcome.unwrap_err();
        assert_eq!(fifth.code, RefusalCode::TooManyLiveVersions);
        // A key that is staged is one of them, and the import of another one leaves it staged.
        assert_eq!(
            state(&site, 1, KeyKind::Guek, 4).await,
            (KeyState::Active, StateReason::Imported, true)
        );
        site.lifecycle.delete(&delete, &one).await.unwrap();
    });
}

#[test]
fn a_revived_key_goes_on_with_the_counters_of_its_value() {
    at_home(async |home| {
        let (site, sending) = ready(home).await;
        let meter = MeterId::new(&id(1)).unwrap();
        let before = send(&sending, super::transmitting::plain(1)).await.0.invocation_counter;
        let block = site.keyring.records.block_of(&title(1));
        let mut changes = site.keyring.writer.change(&[block]).await.unwrap();
        let Some(Record::Meter(mut record)) = changes[0].record(&title(1)).unwrap() else {
            panic!()
        };
        record.keys[0].go_on(KeyState::Deactivated, StateReason::Superseded, 1);
        changes[0].put(Record::Meter(record));
        site.keyring.writer.commit(changes, vec![entry("Test")]).await.unwrap();
        let revived = site
            .lifecycle
            .revive_key(&call("Rotation/ReviveKey"), &meter, (place(KeyKind::Guek), 1))
            .await;
        assert_eq!(revived.unwrap().said, 2);
        let after = send(&sending, super::transmitting::plain(1)).await.0;
        assert_eq!((after.verdict, after.encryption_key_version), (Verdict::Ok, 2));
        assert!(after.invocation_counter > before);
        assert_eq!(site.verdict(&push(1, PLAIN)).await, Verdict::Ok);
    });
}

#[test]
fn a_staged_key_is_handed_out_when_the_other_site_has_proved_it_and_not_before() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        a.add(rotating(1)).await;
        let north = Running::start(a, &network).await;
        let south = Running::start(b, &network).await;
        in_step(&north.site, &south.site).await;
        declare(&north.transmitting, 1, None).await.unwrap();
        let staged = stage(&north.lifecycle, 1, KeyKind::Guek).await;
        assert_eq!(staged.proved, Proved::Yes);
        eventually("counters are given out", async || {
            let plain = super::transmitting::plain(1);
            send(&north.transmitting, plain).await.0.verdict == Verdict::Ok
        })
        .await;
        let on = (&*north.lifecycle, &*north.transmitting);
        let (sent, apdu) = transfer(on, 1, KeyKind::Guek, None).await.unwrap();
        assert_eq!(sent.verdict, Verdict::Ok, "{sent:?}");
        let (new, _) = received(1, &apdu, (&value(1, GUEK), &value(1, GAK)));
        // The other site opens the first push under it, and takes the evidence once it writes.
        in_step(&north.site, &south.site).await;
        let first = push_with(1, 0x30, &new, &value(1, GAK), PLAIN);
        assert_eq!(south.site.verdict(&first).await, Verdict::Ok);
        let shown = south.site.evidence.take(10);
        assert!(south.site.lifecycle.take_shown(&shown).await.is_err(), "it does not write");
        let site = Arc::clone(&south.site);
        south.cut().await;
        // Cut off, nothing new is handed out, and what was made stays.
        let alone = stage(&north.lifecycle, 1, KeyKind::Gak).await;
        assert!(matches!(alone.proved, Proved::No(_)), "{:?}", alone.proved);
        assert_eq!(code(alone.check().unwrap_err()), RefusalCode::NotProved);
        let refused = transfer(on, 1, KeyKind::Gak, None).await.unwrap_err();
        assert_eq!(code(refused), RefusalCode::NotProved);
        let allowed = Wish { allow_unreplicated: true, ..wish(KeyKind::Gak) };
        let allowed = stage_as(&north.lifecycle, 1, &allowed).await.unwrap();
        assert_eq!((allowed.key.id, allowed.check().is_ok()), (alone.key.id, true));
        let (sent, _) = transfer(on, 1, KeyKind::Gak, None).await.unwrap();
        assert_eq!(sent.verdict, Verdict::Ok, "{sent:?}");
        north.cut().await;
        // The survivor is promoted, and what it heard meanwhile takes.
        promote(&site).await;
        assert_eq!(site.lifecycle.take_shown(&shown).await.unwrap().len(), 1);
        assert_eq!(
            state(&site, 1, KeyKind::Guek, 2).await,
            (KeyState::Active, StateReason::Evidence, true)
        );
    });
}

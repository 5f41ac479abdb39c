//! Counters, given out: what goes to meters, and what is refused.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::{collections::BTreeSet, sync::Arc};

use dlms::{CipheredApdu, GeneralCipheringAad, KeySet, Keys, SystemTitle};
use kms_core::{
    BlockNo, Epoch, KeyKind, MeterPolicy, SecuritySetup, Verdict,
    audit::{AuditOutcome, Subject},
    block::BlockMark,
    counters::{
        allocator::{Mark, Purpose, RANGE, Witnessed},
        mark::StoredMark,
        refusal::Refusal,
    },
    ports::{CounterWitness, Replicated, ReplicationGate, WitnessSaid},
};

use super::{
    home::{at_home, at_two_homes},
    pair::{BLOCKS, Network, Running, entry, eventually, in_step, promote, sites, whole},
    site_common::{GAK, GUEK, Site, call, in_hsm, key, meter, meter_with, title, value},
    two_sites::fence,
};
use crate::{
    keyring::Wish,
    lifecycle::NewMeter,
    transmitting::{
        Declaration, Declared, Envelope, NotDeclared, OtherSite, Outcome, Plain, Transmitting,
        Whose,
    },
};

const GET: &[u8] = b"\xC0\x01\xC1\x00\x08\x00\x00\x01\x00\x00\xFF\x02\x00";
const CLIENT: SystemTitle = SystemTitle::new(*b"AMIHES\x00\x01");

/// Meter `n`, which is sent to as this client.
pub(super) fn talking(n: u64) -> NewMeter {
    let policy = MeterPolicy { client_title: Some(CLIENT), ..MeterPolicy::default() };
    NewMeter { policy: Some(policy), ..meter(n) }
}

pub(super) fn plain(n: u64) -> Plain<'static> {
    Plain {
        apdu: GET,
        whose: Whose::Title(title(n)),
        setup: SecuritySetup(0),
        client: 0,
        key_set: KeySet::Unicast,
        envelope: Envelope::GeneralGlo,
        protection: (true, true),
        suite: None,
        purpose: Purpose::Traffic,
        versions: (0, 0),
    }
}

fn declaration(n: u64, last: Option<u32>) -> Declaration<'static> {
    let (setup, key_set) = (SecuritySetup(0), KeySet::Unicast);
    let whose = Whose::Title(title(n));
    Declaration { whose, setup, client: 0, key_set, last, two_people: false }
}

pub(super) async fn declare(
    sending: &Transmitting,
    n: u64,
    last: Option<u32>,
) -> Result<Declared, NotDeclared> {
    sending.declare(&call("Meters/DeclareCounter"), declaration(n, last)).await
}

pub(super) async fn send(sending: &Transmitting, item: Plain<'_>) -> (Outcome, Vec<u8>) {
    let mut batch = sending.protect_batch(&[item]).await;
    assert_eq!(batch.lengths, [batch.apdus.len() as u32]);
    (batch.outcomes.remove(0), batch.apdus)
}

/// The counter of an APDU that went out to meter `n`, which the meter's own keys open.
pub(super) async fn counter(sending: &Transmitting, n: u64) -> u32 {
    let (outcome, apdu) = send(sending, plain(n)).await;
    assert_eq!(outcome.verdict, Verdict::Ok, "{outcome:?}");
    let apdu = CipheredApdu::parse(&apdu).unwrap();
    assert_eq!(apdu.invocation_counter(), outcome.invocation_counter);
    let (guek, gak) = (value(n, GUEK), value(n, GAK));
    let keys = Keys { encryption: &guek, authentication: &gak };
    let mut out = Vec::new();
    apdu.open(&keys, &CLIENT, GeneralCipheringAad::Spec, &mut out).unwrap();
    assert_eq!(out, GET);
    outcome.invocation_counter
}

pub(super) async fn refusal(sending: &Transmitting, n: u64) -> Option<Refusal> {
    let (outcome, apdu) = send(sending, plain(n)).await;
    assert!(apdu.is_empty() && outcome.verdict != Verdict::Ok, "{outcome:?}");
    outcome.refusal
}

#[test]
fn an_imported_key_sends_nothing_before_its_last_counter_is_declared_and_then_only_above_it() {
    at_home(async |home| {
        let site = Site::new(home).await;
        site.add(talking(1)).await;
        let sending = site.transmitting(true, None);
        assert_eq!(refusal(&sending, 1).await, Some(Refusal::CounterUndeclared));
        let declared = declare(&sending, 1, Some(0x0300_0005)).await.unwrap();
        assert_eq!((declared.at_least, declared.client_title), (0x0400_0000, CLIENT));
        assert!(declared.changed);
        for n in 1..4 {
            assert_eq!(counter(&sending, 1).await, 0x0400_0000 + n);
        }
        // The same again, and less, changes nothing; more raises.
        for last in [Some(0x0300_0005), Some(0), None] {
            let again = declare(&sending, 1, last).await.unwrap();
            assert!(!again.changed && again.at_least == 0x0400_0000, "{again:?}");
        }
        assert_eq!(declare(&sending, 1, Some(0x0400_0003)).await.unwrap().at_least, 0x0600_0000);
        assert_eq!(counter(&sending, 1).await, 0x0600_0001, "a counter epoch of its own");
        // A long step takes two people.
        let refused = declare(&sending, 1, Some(0x2000_0000)).await;
        assert!(matches!(refused, Err(NotDeclared::StepTooLong { .. })), "{refused:?}");
        let two = Declaration { two_people: true, ..declaration(1, Some(0x2000_0000)) };
        let declared = sending.declare(&call("Meters/DeclareCounter"), two).await.unwrap();
        assert_eq!(declared.at_least, 0x2200_0000);
        let refused = declare(&sending, 1, Some(0xFF00_0000)).await;
        assert!(matches!(refused, Err(NotDeclared::RekeyFirst(_))), "{refused:?}");
    });
}

#[test]
fn invariant_3_a_single_site_that_was_restored_sends_nothing_on_a_line_that_was_not_declared_since()
{
    at_home(async |home| {
        let site = Site::new(home).await;
        site.add(talking(1)).await;
        let sending = site.transmitting(true, None);
        declare(&sending, 1, Some(0x0300_0005)).await.unwrap();
        let before = counter(&sending, 1).await;
        let expected = site.keyring.roles.standing().epoch;
        // The line may have been raised, by two, behind the backup: the same counters would go out again.
        let wish = Wish { expected, is_lost: true, above: Some(expected) };
        let entry = call("Site/Promote").entry(0, Subject::NONE, AuditOutcome::Done);
        site.keyring.roles.promote(wish, entry, 0).await.unwrap();
        assert_eq!(refusal(&sending, 1).await, Some(Refusal::CounterUndeclared));
        let refused = declare(&sending, 1, None).await;
        assert!(matches!(refused, Err(NotDeclared::Restored)), "{refused:?}");
        declare(&sending, 1, Some(before + 1)).await.unwrap();
        let after = counter(&sending, 1).await;
        assert!(after > before + 1, "{after:08X} after {before:08X}");
    });
}

#[test]
fn invariant_3_a_line_that_a_site_set_aside_itself_counts_when_it_is_promoted() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        a.add(talking(1)).await;
        let of_meter = a.keyring.records.block_of(&title(1));
        let adopter = |site: &Arc<Site>| Arc::clone(&site.keyring.adopter);
        let sent = vec![whole(&a, of_meter).await];
        adopter(&b).adopt(sent, &[], entry("Replication/Adopt")).await.unwrap();
        // Used by the first site alone; the other one, promoted, knows nothing of it.
        let (sending, there) = (a.transmitting(true, None), b.transmitting(true, None));
        let of_line = declare(&sending, 1, Some(0x0300_0005)).await.unwrap().states[0].block;
        let used = counter(&sending, 1).await;
        let record = promote(&b).await;
        declare(&there, 1, Some(0)).await.unwrap();
        fence(&a, record.clone()).await;
        let mut sent = vec![whole(&b, of_line).await];
        if of_meter != of_line {
            sent.push(whole(&b, of_meter).await);
        }
        adopter(&a).adopt(sent, &[record], entry("Replication/Adopt")).await.unwrap();
        // The one that was to raise the line is lost before it did.
        promote(&a).await;
        let again = counter(&sending, 1).await;
        assert!(again >> 24 > used >> 24, "{again:08X} after {used:08X}");
    });
}

#[test]
fn each_item_that_can_not_be_sent_says_why_and_costs_no_counter() {
    at_home(async |home| {
        let site = Site::new(home).await;
        site.add(talking(1)).await;
        site.add(meter(2)).await;
        let guek = in_hsm(key(KeyKind::Guek, value(3, GUEK)));
        let keys = vec![guek, key(KeyKind::Gak, value(3, GAK))];
        let policy = MeterPolicy { client_title: Some(CLIENT), ..MeterPolicy::default() };
        site.add(meter_with(3, keys, policy)).await;
        let sending = site.transmitting(true, None);
        declare(&sending, 1, None).await.unwrap();
        let good = plain(1);
        let items = [
            good,
            plain(2),
            plain(3),
            plain(9),
            Plain { whose: Whose::Id("nobody"), ..good },
            Plain { apdu: &[], ..good },
            Plain { protection: (false, true), ..good },
            Plain { key_set: KeySet::Broadcast, ..good },
            Plain { setup: SecuritySetup(1), ..good },
            Plain { envelope: Envelope::Service, apdu: b"\xC4\x01", ..good },
            Plain { suite: Some(dlms::Suite::Suite2), ..good },
            Plain { whose: Whose::Id("meter-1"), envelope: Envelope::Service, ..good },
            Plain { envelope: Envelope::GeneralCiphering, protection: (true, false), ..good },
        ];
        let batch = sending.protect_batch(&items).await;
        let verdicts: Vec<Verdict> = batch.outcomes.iter().map(|outcome| outcome.verdict).collect();
        use Verdict::{Malformed, NoUsableKey, Ok, PolicyRefused, UnknownMeter, Unsupported};
        let wanted = [
            Ok,
            NoUsableKey,
            Unsupported,
            UnknownMeter,
            UnknownMeter,
            Malformed,
            PolicyRefused,
            NoUsableKey,
            NoUsableKey,
            Unsupported,
            NoUsableKey,
            Ok,
            Ok,
        ];
        // Not all blocks are open, so an unknown id is not sure.
        let mut seen = verdicts;
        if seen[4] == Verdict::Unavailable {
            seen[4] = UnknownMeter;
        }
        assert_eq!(seen, wanted, "{:?}", batch.outcomes);
        assert_eq!(batch.outcomes[1].refusal, Some(Refusal::NoClientTitle));
        let counters = [0, 11, 12].map(|index| batch.outcomes[index].invocation_counter);
        assert_eq!(counters, [1, 2, 3], "as low as its parity allows, without a gap");
        let at: usize = batch.lengths[..11].iter().map(|len| *len as usize).sum();
        assert_eq!(batch.apdus[at], 0xC8, "glo-get-request");
    });
}

#[test]
fn invariant_3_a_server_that_starts_again_goes_on_behind_what_it_reserved() {
    at_home(async |home| {
        let site = Site::new(home).await;
        for n in 1..=20 {
            site.add(talking(n)).await;
        }
        let sending = site.transmitting(true, None);
        for n in 1..=20 {
            declare(&sending, n, None).await.unwrap();
        }
        let mut seen = BTreeSet::new();
        for round in 0..10 {
            // As after a kill: nothing but the database is left.
            let sending = site.transmitting(true, None);
            let items: Vec<_> = (0..RANGE + 200).map(|at| plain(u64::from(at % 20) + 1)).collect();
            let batch = sending.protect_batch(&items).await;
            for (item, outcome) in items.iter().zip(&batch.outcomes) {
                let Whose::Title(title) = item.whose else { continue };
                assert_eq!(outcome.verdict, Verdict::Ok, "{outcome:?}");
                assert!(seen.insert((title, outcome.invocation_counter)), "{round}: {outcome:?}");
            }
        }
        assert_eq!(seen.len(), 10 * (RANGE as usize + 200));
    });
}

#[test]
fn one_node_transmits_for_a_block_and_another_one_names_it() {
    at_home(async |home| {
        let site = Site::new(home).await;
        site.add(talking(1)).await;
        let other = Site::new(home).await;
        let (one, two) = (site.transmitting(true, None), other.transmitting(true, None));
        declare(&one, 1, None).await.unwrap();
        assert_eq!(counter(&one, 1).await, 1, "a meter's floor of 0 lets it through");
        let (outcome, _) = send(&two, plain(1)).await;
        assert_eq!(outcome.refusal, Some(Refusal::HeldByAnotherNode));
        assert!(outcome.reason.unwrap().contains(&site.node.to_string()));
        // One that stops in order is not waited for.
        one.close().await;
        assert_eq!(counter(&two, 1).await, RANGE);
        assert_eq!(refusal(&one, 1).await, Some(Refusal::HeldByAnotherNode));
    });
}

#[test]
fn a_mark_that_was_changed_outside_the_service_is_refused_by_name() {
    at_home(async |home| {
        let site = Site::new(home).await;
        site.add(talking(1)).await;
        let sending = site.transmitting(true, None);
        declare(&sending, 1, None).await.unwrap();
        assert_eq!(counter(&sending, 1).await, 1);
        let marks = site.store.counter_marks().await.unwrap();
        let stored = marks.into_iter().find(|stored| stored.mark.holder.is_some()).unwrap();
        let mark = Mark { end: 2 * RANGE, term: 2, ..stored.mark };
        let forged = StoredMark { mark, ..stored };
        assert!(site.store.put_counter_mark(Some(&stored), &forged).await.unwrap());
        let again = site.transmitting(true, None);
        assert_eq!(refusal(&again, 1).await, Some(Refusal::CountersDamaged));
    });
}

/// A site that remembers so much of our counters, and has all that we have.
struct Remembers(Option<Witnessed>);

#[async_trait::async_trait]
impl CounterWitness for Remembers {
    async fn ask(&self, _: Vec<(BlockNo, Witnessed)>, _: Option<BlockNo>) -> Option<WitnessSaid> {
        let mark = self.0?;
        let marks = (0..BLOCKS).map(|block| (BlockNo(block), mark)).collect();
        let remembers_since = Some(kms_core::Epoch(2));
        Some(WitnessSaid { marks, set_aside: Vec::new(), remembers_since })
    }
}

#[async_trait::async_trait]
impl ReplicationGate for Remembers {
    async fn replicated(&self, _: &[BlockMark]) -> Replicated {
        Replicated::Yes
    }
}

pub(super) fn remembers(epoch: u64, end: u32) -> OtherSite {
    let known = Some(Witnessed { epoch: Epoch(epoch), end });
    (Arc::new(Remembers(known)), Arc::new(Remembers(known)))
}

/// After so long, whatever was refused is the answer.
pub(super) async fn settled(sending: &Arc<Transmitting>, n: u64) -> Option<Refusal> {
    let asking = Arc::clone(sending);
    let asking = tokio::spawn(async move { asking.keep_witness().await });
    eventually("the witness was asked", async || {
        refusal_or(sending, n).await != Some(Refusal::CountersNotWitnessed)
    })
    .await;
    asking.abort();
    refusal_or(sending, n).await
}

#[test]
fn invariant_3_a_database_that_knows_less_than_the_witness_sends_nothing() {
    at_home(async |home| {
        let site = Site::new(home).await;
        site.add(talking(1)).await;
        let sending = Arc::new(site.transmitting(false, Some(remembers(2, 5_000))));
        declare(&sending, 1, None).await.unwrap();
        assert_eq!(refusal(&sending, 1).await, Some(Refusal::CountersNotWitnessed));
        assert_eq!(settled(&sending, 1).await, Some(Refusal::CountersRolledBack));
        // What it remembers of an epoch before is of no account.
        let sending = Arc::new(site.transmitting(false, Some(remembers(1, 5_000))));
        assert_eq!(settled(&sending, 1).await, None);
        assert_eq!(counter(&sending, 1).await, 3);
        // One that does not answer is none.
        let nobody: OtherSite = (Arc::new(Remembers(None)), Arc::new(Remembers(None)));
        let sending = site.transmitting(false, Some(nobody));
        assert_eq!(refusal(&sending, 1).await, Some(Refusal::CountersNotWitnessed));
    });
}

#[test]
fn a_site_without_a_peer_that_does_not_say_that_it_is_a_single_one_sends_nothing() {
    at_home(async |home| {
        let site = Site::new(home).await;
        site.add(talking(1)).await;
        let sending = site.transmitting(false, None);
        declare(&sending, 1, None).await.unwrap();
        assert_eq!(refusal(&sending, 1).await, Some(Refusal::LineNotReplicated));
    });
}

#[test]
fn invariant_3_two_sites_never_use_a_counter_twice_through_promotions_with_both_alive() {
    at_two_homes(async |north, south| {
        let (north, south) = sites(north, south).await;
        let network = Network::new();
        let north = Running::start(north, &network).await;
        let south = Running::start(south, &network).await;
        for n in 1..=4 {
            north.site.add(talking(n)).await;
        }
        in_step(&north.site, &south.site).await;
        assert_eq!(refusal(&south.transmitting, 1).await, Some(Refusal::NotPrimary));
        for n in 1..=4 {
            declare(&north.transmitting, n, Some(0x00FF_0000)).await.unwrap();
        }
        let mut seen = BTreeSet::new();
        let mut note =
            |n: u64, counter: u32| assert!(seen.insert((n, counter)), "{n} {counter:08X}");
        // The witness is asked in the background.
        eventually("the peer is a witness", async || {
            refusal_or(&north.transmitting, 1).await.is_none()
        })
        .await;
        for n in 1..=4 {
            note(n, counter(&north.transmitting, n).await);
        }
        eventually("marks are witnessed", async || {
            !south.site.store.witnessed_marks("north").await.unwrap().is_empty()
        })
        .await;
        // The second site is promoted while the first one lives and has not heard of it.
        in_step(&north.site, &south.site).await;
        promote(&south.site).await;
        for n in 1..=4 {
            note(n, counter(&south.transmitting, n).await);
        }
        eventually("the first site is fenced", async || {
            refusal_or(&north.transmitting, 1).await == Some(Refusal::NotPrimary)
        })
        .await;
        // And back.
        in_step(&north.site, &south.site).await;
        promote(&north.site).await;
        for n in 1..=4 {
            note(n, counter(&north.transmitting, n).await);
        }
        for running in [north, south] {
            running.cut().await;
        }
    });
}

/// As [`refusal`], of one that may be sent.
pub(super) async fn refusal_or(sending: &Transmitting, n: u64) -> Option<Refusal> {
    send(sending, plain(n)).await.0.refusal
}

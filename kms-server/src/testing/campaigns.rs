//! Campaigns at one site and at two: work is given out once, judged by what the meter sends, and goes on at the other site.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]

use std::{collections::BTreeMap, sync::Arc};

use dlms::{CipheredApdu, GeneralCipheringAad, KeySet, Keys, SystemTitle, key_wrap};
use kms_core::{
    AssociationForm, Carrier, KeyKind, MeterId, MeterPolicy, RefusalCode, SecuritySetup, Verdict,
    campaign::{
        Status,
        policy::Policy,
        row::{Action, Outcome, Phase},
    },
    counters::allocator::Purpose,
    life::choosing::{Pair, Place},
};

use super::{
    home::{at_home, at_two_homes},
    pair::{Network, Running, eventually, in_step, promote, sites},
    site_common::{GAK, GUEK, Site, call, id, key, meter, push_with, title, value},
    transmitting::{declare, send},
};
use crate::{
    ciphering::Named,
    lifecycle::{
        Lifecycle, LifecycleError, NewMeter, OpenedFrame, Reported, Selection, Sending, Started,
        Starting, Taken, Wanted, Work,
    },
    transmitting::{Envelope, Plain, Transmitting, Whose},
};

const CLIENT: SystemTitle = SystemTitle::new(*b"AMIHES\x00\x01");
const PLAIN: &[u8] = b"\x0f\x00";
const KEK: u8 = 9;

fn rotating(n: u64) -> NewMeter {
    let policy = MeterPolicy { client_title: Some(CLIENT), ..MeterPolicy::default() };
    let mut meter = NewMeter { policy: Some(policy), ..meter(n) };
    meter.keys.push(key(KeyKind::Kek, value(n, KEK)));
    meter
}

fn policy() -> Policy {
    Policy {
        kinds: vec![KeyKind::Guek, KeyKind::Gak],
        carrier: Carrier { setup: SecuritySetup(0), client: 1, form: AssociationForm::GeneralGlo },
        canaries: 0,
        exposure_cap: 3,
        lease_ms: 60_000,
        retry_ms: 0,
        hls_lock_ms: 0,
        ..Policy::default()
    }
}

fn starting(name: &str, policy: Policy) -> Starting {
    let selection = Selection::default();
    Starting { name: name.into(), policy, selection, dry_run: false, more: false }
}

async fn start(on: &Lifecycle, wanted: &Starting) -> Result<Started, LifecycleError> {
    on.start_campaign(&call("Rotation/StartCampaign"), wanted).await
}

async fn take(on: &Lifecycle, most: usize) -> Taken {
    on.take_work(&call("Rotation/TakeWork"), (None, "w"), most).await.unwrap()
}

fn code(error: LifecycleError) -> RefusalCode {
    match error {
        LifecycleError::Refused(refusal) => refusal.code,
        other => panic!("{other}"),
    }
}

/// A meter's side: what it holds.
#[derive(Clone)]
struct Held {
    guek: Vec<u8>,
    gak: Vec<u8>,
}

impl Held {
    fn new(n: u64) -> Self {
        Self { guek: value(n, GUEK).to_vec(), gak: value(n, GAK).to_vec() }
    }

    /// Takes a transfer, if it opens under what it holds.
    fn take(&mut self, n: u64, apdu: &[u8]) -> bool {
        let apdu = CipheredApdu::parse(apdu).unwrap();
        let keys = Keys { encryption: &self.guek, authentication: &self.gak };
        let mut plain = Vec::new();
        if apdu.open(&keys, &CLIENT, GeneralCipheringAad::Spec, &mut plain).is_err() {
            return false;
        }
        let mut key = vec![0; 16];
        key_wrap::unwrap(&value(n, KEK), &plain[plain.len() - 24..], &mut key).unwrap();
        // key_id: 0 is the GUEK, 2 the GAK.
        match plain[plain.len() - 27] {
            0 => self.guek = key,
            2 => self.gak = key,
            other => panic!("key_id {other}"),
        }
        true
    }

    fn push(&self, n: u64) -> Vec<u8> {
        push_with(n, 0x30, &self.guek, &self.gak, PLAIN)
    }
}

/// A site, its fleet, and who drives it.
struct Driving<'s> {
    site: &'s Site,
    on: &'s Lifecycle,
    sending: &'s Transmitting,
    fleet: BTreeMap<u64, Held>,
}

fn number(work: &Work) -> u64 {
    (1..100).find(|n| title(*n) == work.title).unwrap()
}

impl Driving<'_> {
    async fn transfer(&self, work: &Work) -> Result<Vec<u8>, LifecycleError> {
        let (kind, _) = work.bringing.unwrap();
        let sending = Sending {
            place: Place { setup: SecuritySetup(0), kind },
            pair: work.pairs.first().copied(),
            invoke_id_and_priority: 0xC1,
            form: None,
            lease: work.row.lease,
        };
        let on = self.on;
        let verb = call("Rotation/NextTransfer");
        let outgoing = on.next_transfer(&verb, &work.meter_id, &sending).await?;
        let plain = Plain {
            apdu: &outgoing.apdu,
            whose: Whose::Title(outgoing.title),
            setup: SecuritySetup(0),
            client: 1,
            key_set: KeySet::Unicast,
            envelope: Envelope::GeneralGlo,
            protection: (true, true),
            suite: None,
            purpose: Purpose::KeyTransfer,
            versions: (outgoing.pair.encryption, outgoing.pair.authentication.unwrap_or_default()),
        };
        let (outcome, apdu) = send(self.sending, plain).await;
        assert_eq!(outcome.verdict, Verdict::Ok, "{outcome:?}");
        Ok(apdu)
    }

    async fn opened(&self, apdu: &[u8], n: u64) -> OpenedFrame {
        let (outcome, plaintext) = self.site.open(apdu, Named::Title(title(n))).await;
        assert_eq!(outcome.verdict, Verdict::Ok);
        let (encryption, authentication) =
            (outcome.encryption_key_version, outcome.authentication_key_version);
        OpenedFrame {
            title: title(n),
            setup: outcome.setup,
            pair: Some(Pair { encryption, authentication: Some(authentication) }),
            shown: outcome.shown,
            plaintext,
        }
    }

    async fn report(&self, work: &Work, outcome: Outcome, push: Option<&[u8]>) -> Work {
        self.try_report(work, outcome, push).await.unwrap()
    }

    async fn try_report(
        &self,
        work: &Work,
        outcome: Outcome,
        push: Option<&[u8]>,
    ) -> Result<Work, LifecycleError> {
        let mut opened = Vec::new();
        if let Some(push) = push {
            opened.push(self.opened(push, number(work)).await);
        }
        let reported = Reported {
            meter_id: work.meter_id.clone(),
            lease: work.row.lease,
            outcome,
            opened,
            in_vain: Vec::new(),
            frame: Vec::new(),
            end: false,
        };
        let verb = call("Rotation/ReportWork");
        let mut verdicts = self.on.report_work(&verb, vec![reported]).await.unwrap();
        verdicts.remove(0).outcome
    }

    /// Does one piece of work to its end.
    async fn drive(&mut self, mut work: Work) -> Phase {
        while work.action != Action::Nothing {
            let n = number(&work);
            if work.action == Action::Transfer {
                let apdu = self.transfer(&work).await.unwrap();
                assert!(self.fleet.get_mut(&n).unwrap().take(n, &apdu), "under {:?}", work.pairs);
            }
            let outcome = match work.action {
                Action::Restart => Outcome::Restarted,
                _ => Outcome::Answered,
            };
            let push = self.fleet[&n].push(n);
            work = self.report(&work, outcome, Some(&push)).await;
        }
        work.row.phase
    }

    /// What every meter holds is preferred, and opens.
    async fn check_all(&self, gak: u16) {
        for (n, held) in &self.fleet {
            let frame = self.opened(&held.push(*n), *n).await;
            assert_eq!(frame.pair, Some(Pair { encryption: 2, authentication: Some(gak) }));
        }
    }
}

async fn fleet(site: &Site, sending: &Transmitting, count: u64) -> BTreeMap<u64, Held> {
    for n in 1..=count {
        site.add(rotating(n)).await;
        declare(sending, n, None).await.unwrap();
    }
    (1..=count).map(|n| (n, Held::new(n))).collect()
}

#[test]
fn a_campaign_rotates_both_keys_of_every_meter_and_ends() {
    at_home(async |home| {
        let site = Site::new(home).await;
        let sending = site.transmitting(true, None);
        let fleet = fleet(&site, &sending, 7).await;
        let mut driving = Driving { site: &site, on: &site.lifecycle, sending: &sending, fleet };
        let policy = Policy { canaries: 1, ..policy() };
        let dry = Starting { dry_run: true, ..starting("spring", policy.clone()) };
        let would = start(&site.lifecycle, &dry).await.unwrap();
        assert_eq!((would.added, would.view.progress.members), (7, 7));
        assert_eq!(
            code(site.lifecycle.get_campaign("spring").await.unwrap_err()),
            RefusalCode::NoSuchCampaign
        );

        let wanted = starting("spring", policy);
        let started = start(&site.lifecycle, &wanted).await.unwrap();
        assert_eq!((started.added, started.view.campaign.status), (7, Status::Running));
        assert_eq!(
            code(start(&site.lifecycle, &wanted).await.unwrap_err()),
            RefusalCode::CampaignState
        );
        // Another one gets none of its members.
        let other = start(
            &site.lifecycle,
            &Starting { dry_run: true, ..starting("other", policy_of_two()) },
        )
        .await;
        let other = other.unwrap();
        assert_eq!((other.added, other.left_out_total), (0, 7));
        assert_eq!(other.left_out[0].code, RefusalCode::InAnotherCampaign);

        // One goes first.
        let first = take(&site.lifecycle, 10).await.work;
        assert_eq!(first.len(), 1);
        assert!(first[0].row.canary && take(&site.lifecycle, 10).await.work.is_empty());
        assert_eq!(driving.drive(first[0].clone()).await, Phase::Done);
        // Then as many as the cap allows.
        for due in [3, 3] {
            let some = take(&site.lifecycle, 10).await.work;
            assert_eq!(some.len(), due);
            for work in some {
                assert_eq!(driving.drive(work).await, Phase::Done);
            }
        }
        let view = site.lifecycle.get_campaign("spring").await.unwrap();
        assert_eq!((view.campaign.status, view.progress.of(Phase::Done)), (Status::Finished, 7));
        assert_eq!((view.progress.exposed, view.done_last_hour), (0, 7));
        driving.check_all(2).await;
    });
}

fn policy_of_two() -> Policy {
    Policy { exposure_cap: 2, ..policy() }
}

#[test]
fn an_answer_that_was_lost_begins_with_a_probe_and_a_lease_is_one_ones() {
    at_home(async |home| {
        let site = Site::new(home).await;
        let sending = site.transmitting(true, None);
        let fleet = fleet(&site, &sending, 1).await;
        let mut driving = Driving { site: &site, on: &site.lifecycle, sending: &sending, fleet };
        let short = Policy { lease_ms: 1_000, ..policy() };
        start(&site.lifecycle, &starting("s", short)).await.unwrap();
        let work = take(&site.lifecycle, 10).await.work.remove(0);
        assert_eq!(work.action, Action::Transfer);
        assert_eq!(work.bringing, Some((KeyKind::Guek, 2)));
        // Nobody else has it meanwhile.
        assert!(take(&site.lifecycle, 10).await.work.is_empty());
        let apdu = driving.transfer(&work).await.unwrap();
        driving.fleet.get_mut(&1).unwrap().take(1, &apdu);
        // The worker is killed, and comes back with what it had.
        tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
        let late = driving.try_report(&work, Outcome::NoAnswer, None).await;
        assert_eq!(code(late.unwrap_err()), RefusalCode::LeaseOver);
        assert_eq!(code(driving.transfer(&work).await.unwrap_err()), RefusalCode::LeaseOver);
        let again = take(&site.lifecycle, 10).await.work.remove(0);
        assert_eq!((again.action, again.row.phase), (Action::Probe, Phase::Sent));
        // What it may hold comes first.
        assert_eq!(again.pairs[0], Pair { encryption: 2, authentication: Some(1) });
        let push = driving.fleet[&1].push(1);
        let next = driving.report(&again, Outcome::Answered, Some(&push)).await;
        assert_eq!((next.action, next.bringing), (Action::Transfer, Some((KeyKind::Gak, 2))));
        assert_eq!(driving.drive(next).await, Phase::Done);
        driving.check_all(2).await;
    });
}

#[test]
fn what_can_not_be_rotated_is_left_out_by_name_and_pauses_and_ends_are_kept_to() {
    at_home(async |home| {
        let site = Site::new(home).await;
        let sending = site.transmitting(true, None);
        let fleet = fleet(&site, &sending, 4).await;
        site.add(meter(5)).await;
        let mut driving = Driving { site: &site, on: &site.lifecycle, sending: &sending, fleet };
        let on = &site.lifecycle;
        let started = start(on, &starting("s", policy())).await.unwrap();
        assert_eq!((started.added, started.left_out_total), (4, 1));
        assert_eq!(started.left_out[0].meter_id, MeterId::new(&id(5)).unwrap());
        let work = take(on, 1).await.work.remove(0);
        let verb = call("Rotation/PauseCampaign");
        on.pause_campaign(&verb, "s", "a storm").await.unwrap();
        let none = take(on, 10).await;
        assert!(none.work.is_empty() && none.reason.contains("a storm"), "{}", none.reason);
        // What is under way comes to its end.
        assert_eq!(driving.drive(work).await, Phase::Done);
        on.resume_campaign(&verb, "s", false).await.unwrap();
        let work = take(on, 1).await.work.remove(0);
        let apdu = driving.transfer(&work).await.unwrap();
        let n = number(&work);
        driving.fleet.get_mut(&n).unwrap().take(n, &apdu);
        on.cancel_campaign(&verb, "s", "enough").await.unwrap();
        let view = on.get_campaign("s").await.unwrap();
        assert_eq!((view.progress.orphans, view.progress.of(Phase::Left)), (1, 2));
        let stuck = on.meter_rotation(&work.meter_id).await.unwrap();
        assert_eq!(stuck.pairs[0], Pair { encryption: 2, authentication: Some(1) });
        assert!(stuck.member.is_some() && !stuck.advice.is_empty());
        // Its push ends that.
        let push = driving.fleet[&n].push(n);
        assert!(driving.opened(&push, n).await.shown.is_some());
    });
}

#[test]
fn the_other_site_goes_on_with_a_campaign_and_with_its_leases() {
    at_two_homes(async |north_home, south_home| {
        let (a, b) = sites(north_home, south_home).await;
        let network = Network::new();
        let north = Running::start(a, &network).await;
        let south = Running::start(b, &network).await;
        in_step(&north.site, &south.site).await;
        let (on, sending) = (&*north.lifecycle, &*north.transmitting);
        let fleet = fleet(&north.site, sending, 3).await;
        eventually("counters are given out", async || {
            send(sending, super::transmitting::plain(1)).await.0.verdict == Verdict::Ok
        })
        .await;
        let mut driving = Driving { site: &north.site, on, sending, fleet };
        let one_kind = Policy { kinds: vec![KeyKind::Guek], ..policy() };
        start(on, &starting("s", one_kind)).await.unwrap();
        // Their keys are made where they were imported: the tokens of this test don't share the KEKs that wrap them.
        let mut some = take(on, 3).await.work;
        assert_eq!(driving.drive(some.remove(0)).await, Phase::Done);
        let lost = some.remove(0);
        let n = number(&lost);
        let apdu = driving.transfer(&lost).await.unwrap();
        driving.fleet.get_mut(&n).unwrap().take(n, &apdu);
        in_step(&north.site, &south.site).await;
        let fleet = driving.fleet.clone();
        let site = Arc::clone(&south.site);
        south.cut().await;
        north.cut().await;
        promote(&site).await;
        let (on, sending) = (&site.lifecycle, site.transmitting(true, None));
        let mut driving = Driving { site: &site, on, sending: &sending, fleet };
        let view = on.get_campaign("s").await.unwrap();
        assert_eq!((view.campaign.status, view.progress.of(Phase::Done)), (Status::Running, 1));
        // The lease of then is still good: whoever had it may say what came of it.
        let push = driving.fleet[&n].push(n);
        let next = driving.report(&lost, Outcome::Answered, Some(&push)).await;
        assert_eq!((next.action, next.row.phase), (Action::Nothing, Phase::Done), "{next:?}");
        assert_eq!(driving.drive(some.remove(0)).await, Phase::Done);
        let view = on.get_campaign("s").await.unwrap();
        assert_eq!(view.campaign.status, Status::Finished);
        driving.check_all(1).await;
    });
}

#[test]
fn of_two_campaigns_that_begin_at_one_time_no_meter_is_a_member_of_both() {
    at_home(async |home| {
        let site = Site::new(home).await;
        let sending = site.transmitting(true, None);
        fleet(&site, &sending, 12).await;
        let on = &site.lifecycle;
        let (one, other) = (starting("one", policy()), starting("other", policy()));
        let (a, b) = tokio::join!(start(on, &one), start(on, &other));
        assert!(a.is_ok() || b.is_ok(), "{a:?} {b:?}");
        let mut seen = std::collections::BTreeSet::new();
        for name in ["one", "other"] {
            let wanted = Wanted { limit: 100, ..Wanted::default() };
            match on.list_campaign_members(name, wanted).await {
                Ok(page) => {
                    for member in page.members {
                        assert!(seen.insert(member.row.title), "{name}: {}", member.meter_id);
                    }
                }
                // Refused as a whole.
                Err(error) => assert_eq!(code(error), RefusalCode::NoSuchCampaign),
            }
        }
        assert!(!seen.is_empty());
    });
}

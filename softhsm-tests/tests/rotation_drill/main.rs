//! The drill of rotation: campaigns over simulated meters of all dialects, by two sites of the real programs. Every single
//! cut of every step: a message lost either way, the head-end or the server killed, one failover, the meter's power lost, the
//! meter restarted. Then a fleet over lines that lose, with kills and a failover by chance. In the end every meter is
//! reachable, by keys that the service holds, and no (key, nonce) was on the wire twice, in either direction.
//!
//! `make rotation-drill` makes it long: `METERS`, `DIALECTS` (one, two, all) and `SEED`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

#[path = "../common/mod.rs"]
mod common;
mod controls;
mod fates;
mod field;
mod head_end;
mod judge;
mod probing;
mod sites;

use std::{collections::BTreeMap, time::Instant};

use fates::Fates;
use field::Field;
use head_end::{Drill, Seen, within};
use judge::Judged;
use kms_proto::v1::{self, KeyKind};
use simulated_meter::{Chance, CounterOnNewKey, Dialect, Losses, cuts::Cut};
use sites::Sites;

/// Steps in which the lines of a fleet lose one message of twenty, and double and delay others.
const LOSSES: Losses = Losses { lost: 50, doubled: 20, late: 20 };
/// Steps that a meter of a fleet takes, about.
const STEPS: u64 = 5;
/// Of so many meters of a fleet one may bound its steps.
const BOUNDED_EVERY: u64 = 10;
/// Ids of one call that starts a campaign.
const IDS: usize = 5_000;
const LEASE_S: u32 = 20;

#[expect(clippy::disallowed_methods, reason = "how long a drill is to be, and which")]
fn word(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn number(name: &str, otherwise: u64) -> u64 {
    word(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

fn dialects() -> Vec<Dialect> {
    match word("DIALECTS").as_deref() {
        None | Some("one") => Dialect::one_at_a_time(),
        Some("two") => Dialect::two_at_a_time(),
        Some("all") => Dialect::all().collect(),
        Some(other) => panic!("DIALECTS={other}: it is one, two or all"),
    }
}

fn policy(canaries: u32, lease_s: u32) -> v1::CampaignPolicy {
    v1::CampaignPolicy {
        kinds: vec![KeyKind::Guek as i32, KeyKind::Gak as i32],
        class_version: 1,
        exposure_cap: 1_000_000,
        canaries: Some(canaries),
        // What can't be changed fails, and is no reason to stop a drill.
        error_budget_permille: Some(1_000),
        tries_max: 3,
        retry_s: 1,
        lease_s,
        hls_failures_max: 3,
        hls_lock_s: 1,
        ..v1::CampaignPolicy::default()
    }
}

impl Drill {
    /// Two sites, and these meters, which are brought in and declared.
    async fn of(field: Field, fates: Fates) -> Self {
        let sites = Sites::start(field.devices.len()).await;
        let mut drill = Self {
            sites,
            field: Field::new([], Losses::default()),
            fates,
            seen: Seen::default(),
            campaign: String::new(),
        };
        drill.add(field).await;
        drill
    }

    /// More meters.
    async fn add(&mut self, field: Field) {
        let lines: Vec<(u64, String)> =
            field.devices.keys().map(|n| (*n, field.line(*n))).collect();
        self.sites.bring_in(&lines).await;
        self.field.join(field);
    }

    /// Begins a campaign over these meters.
    async fn start(&mut self, name: &str, meters: &[u64], policy: v1::CampaignPolicy) {
        self.campaign = name.to_owned();
        let lots: Vec<&[u64]> = meters.chunks(IDS).collect();
        let mut added = 0;
        for (at, lot) in lots.iter().enumerate() {
            let request = v1::StartCampaignRequest {
                name: name.to_owned(),
                policy: Some(policy.clone()),
                selection: Some(v1::MeterSelection {
                    meter_ids: lot.iter().map(|n| common::fleet::id(*n)).collect(),
                    ..v1::MeterSelection::default()
                }),
                dry_run: false,
                more: at + 1 < lots.len(),
            };
            let started = within(self.sites.people().start_campaign(request)).await.unwrap();
            assert_eq!(started.left_out_total, 0, "{:?}", started.left_out.first());
            added += started.added;
        }
        assert_eq!(added, meters.len() as u64);
    }

    /// What became of the members, in the service's own words.
    async fn counts(&self) -> v1::CampaignProgress {
        let request = v1::GetCampaignRequest { name: self.campaign.clone() };
        let campaign = within(self.sites.people().get_campaign(request)).await.unwrap();
        campaign.progress.unwrap()
    }

    /// Heals everything, tries once more what failed, and looks at each meter: as it is, and after a restart.
    async fn end(&mut self) -> Judged {
        self.heal().await;
        let request = v1::ResumeCampaignRequest { name: self.campaign.clone(), retry_failed: true };
        within(self.sites.people().resume_campaign(request)).await.unwrap();
        self.work_off().await;
        let first = self.judge().await;
        self.reboot_all();
        let mut judged = self.judge().await;
        judged.rolled_back += first.rolled_back;
        judged.declared += first.declared;
        judged.wrong.extend(first.wrong);
        judged
    }

    /// Whatever step was to be cut was cut, if it came: a meter may be through before.
    fn assert_cut(&self, cases: &[u64]) {
        let not_cut = cases.iter().filter(|n| !self.fates.struck.contains(n));
        let (came, through): (Vec<&u64>, Vec<&u64>) =
            not_cut.partition(|n| self.fates.of(**n).is_some_and(|it| self.fates.steps[n] > it.0));
        println!("  {} of {} were through before their step", through.len(), cases.len());
        assert!(came.is_empty(), "{came:?} went on without their cut");
        assert!(through.len() * 5 < cases.len());
    }

    /// Members that failed, by what the meter was and what befell it.
    async fn print_failed(&self) {
        let mut kinds: BTreeMap<String, u64> = BTreeMap::new();
        let mut after = bytes::Bytes::new();
        loop {
            let request = v1::ListCampaignMembersRequest {
                name: self.campaign.clone(),
                state: v1::MemberState::Failed as i32,
                exposed: false,
                after,
                limit: 1_000,
            };
            let page = within(self.sites.people().list_campaign_members(request)).await.unwrap();
            for member in page.members {
                let n: u64 = member.meter_id["meter-".len()..].parse().unwrap();
                let ways = judge::ways(&self.field.devices[&n].dialect);
                let cut = self.fates.of(n).map(|(_, cut)| cut);
                *kinds.entry(format!("{ways} {cut:?} {:?}", member.last_outcome())).or_default() +=
                    1;
            }
            after = page.next;
            if after.is_empty() {
                break;
            }
        }
        println!("  failed: {kinds:#?}");
    }

    fn told(&self, judged: &Judged, began: Instant) {
        println!("  cuts {:?}: {:?}", Cut::ALL, self.fates.befell);
        println!("  {:?}", self.seen);
        println!(
            "  {} meters: {} reached ({} rolled back, {} declared), {} take no step so far; {} pairs of key and nonce, {} twice, {} unread",
            self.field.devices.len(),
            judged.reached,
            judged.rolled_back,
            judged.declared,
            judged.bounded,
            self.field.ledger.pairs(),
            self.field.ledger.reused(),
            self.field.ledger.unread()
        );
        println!("  {} s", began.elapsed().as_secs());
    }
}

/// What has to be so of every drill. What is sent to a meter that bounds its steps lies too far behind the counters of the
/// other site; and of a former key, where the meter keeps one counter for all.
fn assert_well(drill: &Drill, judged: &Judged, had_failover: bool) {
    assert!(judged.wrong.is_empty(), "{} wrong: {:#?}", judged.wrong.len(), judged.wrong);
    let is_bounded = |dialect: &Dialect| {
        dialect.largest_step.is_some() && (had_failover || dialect.counter == CounterOnNewKey::Keep)
    };
    let bounded = drill.field.devices.values().filter(|it| is_bounded(&it.dialect)).count() as u64;
    assert!(judged.bounded <= bounded, "{} take no step so far", judged.bounded);
    assert_eq!(judged.reached + judged.bounded, drill.field.devices.len() as u64);
}

/// Every dialect with each of these cuts at each of its steps: a meter for each. Those that are cut in one way at one step
/// stand together, so that a kill is one for all of them.
fn cases(
    dialects: &[(Dialect, u32)],
    cuts: &[Cut],
    first: u64,
) -> (BTreeMap<u64, Dialect>, BTreeMap<u64, (u32, Cut)>) {
    let (mut field, mut cases) = (BTreeMap::new(), BTreeMap::new());
    let most = dialects.iter().map(|(_, steps)| *steps).max().unwrap_or_default();
    for cut in cuts {
        for step in 0..most {
            for (dialect, _) in dialects.iter().filter(|(_, steps)| step < *steps) {
                let n = first + cases.len() as u64;
                cases.insert(n, (step, *cut));
                field.insert(n, *dialect);
            }
        }
    }
    (field, cases)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_dialect_and_every_single_cut_leave_each_meter_reachable() {
    let (began, dialects) = (Instant::now(), dialects());
    // Whole first: how many steps has each dialect?
    let whole: Vec<u64> = (1..=dialects.len() as u64).collect();
    let numbered = whole.iter().copied().zip(dialects.iter().copied());
    let mut drill = Drill::of(Field::new(numbered, Losses::default()), Fates::default()).await;
    drill.start("whole", &whole, policy(0, LEASE_S)).await;
    drill.work_off().await;
    println!("{} dialects: {:?}", dialects.len(), drill.counts().await);
    let steps = whole.iter().map(|n| drill.fates.steps[n]);
    let dialects: Vec<(Dialect, u32)> = dialects.into_iter().zip(steps).collect();

    // Failovers last: they are everybody's.
    let (failover, others) =
        ([Cut::Failover], Cut::ALL.into_iter().filter(|it| *it != Cut::Failover));
    let others: Vec<Cut> = others.collect();
    for (name, cuts) in [("cut", &others[..]), ("failover", &failover)] {
        let first = 1 + drill.field.devices.len() as u64;
        let (field, cases) = cases(&dialects, cuts, first);
        let (all, wanted): (Vec<u64>, u64) = (cases.keys().copied().collect(), cases.len() as u64);
        drill.add(Field::new(field, Losses::default())).await;
        drill.fates.add(cases);
        println!("{name}: {wanted} cases, brought in after {} s", began.elapsed().as_secs());
        drill.start(name, &all, policy(1, LEASE_S)).await;
        drill.work_off().await;
        println!("worked off after {} s: {:?}", began.elapsed().as_secs(), drill.counts().await);
        drill.print_failed().await;
        drill.assert_cut(&all);
        let judged = drill.end().await;
        drill.told(&judged, began);
        assert_well(&drill, &judged, name == "failover");
    }
    assert!(drill.fates.befell.iter().all(|it| *it > 0), "{:?}", drill.fates.befell);
    assert!(drill.seen.cut_off > 0 && drill.seen.associations > 0, "{:?}", drill.seen);
    drill.sites.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_over_lines_that_lose_with_kills_and_a_failover_stays_reachable() {
    let (began, meters, seed) = (Instant::now(), number("METERS", 1_000), number("SEED", 1));
    let mut chance = Chance::new(seed);
    let all: Vec<Dialect> = Dialect::all().collect();
    // The first of each label are by the book: the canaries.
    let of = |n: u64, chance: &mut Chance| {
        let drawn = all[chance.below(all.len() as u64) as usize];
        let counter = drawn.counter;
        // Those that bound their steps can't be sent to behind a failover: a few, for the counters that they refuse.
        let largest_step = drawn.largest_step.filter(|_| n.is_multiple_of(BOUNDED_EVERY));
        match n {
            ..=8 => Dialect { counter, ..Dialect::BY_THE_BOOK },
            _ => Dialect { largest_step, ..drawn },
        }
    };
    let numbered: Vec<(u64, Dialect)> = (1..=meters).map(|n| (n, of(n, &mut chance))).collect();
    let kills = number("KILLS", 4);
    let fates = Fates::storm(seed, kills, meters * STEPS);
    let mut drill = Drill::of(Field::new(numbered, LOSSES), fates).await;
    println!("{meters} meters, seed {seed}, brought in after {} s", began.elapsed().as_secs());
    let all: Vec<u64> = drill.field.devices.keys().copied().collect();
    drill.start("fleet", &all, policy(1, LEASE_S)).await;
    drill.work_off().await;
    println!("worked off after {} s: {:?}", began.elapsed().as_secs(), drill.counts().await);
    let judged = drill.end().await;
    println!("{meters} meters, seed {seed}:");
    drill.told(&judged, began);
    assert_well(&drill, &judged, true);
    for cut in [Cut::HeadEndKilled, Cut::ServerKilled, Cut::Failover, Cut::PowerLost, Cut::Rebooted]
    {
        let at = Cut::ALL.iter().position(|it| *it == cut).unwrap();
        assert!(drill.fates.befell[at] > 0, "{cut:?}: {:?}", drill.fates.befell);
    }
    assert!(drill.seen.silent > 0 && drill.counts().await.done > 0);
    drill.sites.stop();
}

//! Campaigns over meters of all manners, by many seeds.

use super::{
    world_kit_tests::{Manner, World},
    *,
};
use crate::{
    SecuritySetup,
    campaign::stepping::{Heard, report},
    life::choosing::{Pair, Place},
};

fn policy() -> Policy {
    Policy {
        kinds: vec![KeyKind::Guek, KeyKind::Gak],
        exposure_cap: 6,
        canaries: 2,
        lease_ms: 5_000,
        retry_ms: 1_000,
        hls_lock_ms: 1_000,
        tries_max: 60,
        ..Policy::default()
    }
}

/// As many as the cap allows, and nobody else before the canaries are through.
fn check(world: &World) {
    let policy = &world.driven.campaign.policy;
    for label in 0..2 {
        let of_label = || world.driven.rows().filter(|row| row.label == label);
        let exposed = of_label().filter(|row| row.is_exposed()).count();
        assert!(exposed <= policy.exposure_cap as usize, "{exposed} are exposed");
        let through = of_label().filter(|row| row.canary && row.phase == Phase::Done).count();
        let others = of_label().filter(|row| !row.canary && (row.sent || row.is_sending())).count();
        let gated = through < policy.canaries as usize;
        assert!(!gated || others == 0, "{others} were begun before the canaries were through");
    }
    // What a meter holds is live in its record, whatever happened to it.
    for meter in world.meters.values() {
        let of = |kind, version| {
            let place = Place { setup: SecuritySetup(0), kind };
            place.version(&meter.record, version).unwrap().state
        };
        assert!(of(KeyKind::Guek, meter.holds.encryption).may_carry());
        assert!(of(KeyKind::Gak, meter.holds.authentication.unwrap()).may_carry());
    }
}

fn run(seed: u64, manner: impl Fn(u64) -> Manner, policy: Policy) -> World {
    let mut world = World::new(seed, policy, manner, 10);
    for _ in 0..4_000 {
        world.turn();
        check(&world);
        world.now_ms += world.chance.below(2_000);
        if world.chance.below(10) == 0 {
            world.sleep();
        }
        if world.driven.campaign.status == Status::Paused {
            for row in world.driven.resume(true) {
                world.driven.put(row);
            }
        }
        if world.driven.campaign.status == Status::Finished {
            break;
        }
    }
    world
}

#[test]
fn with_losses_kills_and_sleepers_every_honest_meter_is_done_and_holds_what_is_preferred() {
    for seed in 0..60 {
        let liars = |n| if n % 7 == 3 { Manner::OnlyDoes } else { Manner::Honest };
        let world = run(seed, liars, policy());
        let status = world.driven.campaign.status;
        assert_eq!(status, Status::Finished, "seed {seed}");
        for row in world.driven.rows() {
            assert_eq!(row.phase, Phase::Done, "seed {seed}: {row:?}");
            let meter = &world.meters[&row.title];
            let preferred = |kind| {
                let place = Place { setup: SecuritySetup(0), kind };
                place.preferred(&meter.record).unwrap().version
            };
            let holds = meter.holds;
            assert_eq!(preferred(KeyKind::Guek), holds.encryption);
            assert_eq!(Some(preferred(KeyKind::Gak)), holds.authentication);
            assert_eq!((holds.encryption, holds.authentication), (2, Some(2)));
        }
    }
}

#[test]
fn a_meter_that_only_says_so_fails_and_is_no_orphan_of_a_key_that_it_holds() {
    for seed in 0..20 {
        let policy = Policy { tries_max: 4, error_budget_permille: 1_000, canaries: 0, ..policy() };
        let manner = |n| if n % 10 == 9 { Manner::OnlySays } else { Manner::Honest };
        let mut world = World::new(seed, policy, manner, 5);
        for _ in 0..4_000 {
            world.turn();
            check(&world);
            world.now_ms += world.chance.below(2_000);
            if world.driven.campaign.status != Status::Running {
                break;
            }
        }
        assert_eq!(world.driven.campaign.status, Status::Finished, "seed {seed}");
        for row in world.driven.rows() {
            let meter = &world.meters[&row.title];
            match meter.manner {
                Manner::OnlySays => {
                    assert_eq!((row.phase, row.sent), (Phase::Failed, true), "{row:?}");
                    assert_eq!(meter.holds.encryption, 1);
                }
                _ => assert!(matches!(row.phase, Phase::Done | Phase::Failed), "{row:?}"),
            }
        }
    }
}

#[test]
fn a_canary_that_falls_back_at_its_restart_stops_the_campaign_before_others_follow() {
    for seed in 0..20 {
        let mut world = World::new(seed, policy(), |_| Manner::FallsBack, 0);
        for _ in 0..500 {
            world.turn();
            check(&world);
            world.now_ms += 1_000;
        }
        assert_eq!(world.driven.campaign.status, Status::Paused);
        assert!(world.driven.campaign.reason.contains("canary"));
        let begun = world.driven.rows().filter(|row| row.sent || row.phase != Phase::Waiting);
        assert!(begun.count() <= 4, "two canaries of each label");
    }
}

#[test]
fn a_push_that_comes_a_day_later_ends_what_nobody_answered() {
    let mut world = World::new(5, Policy { canaries: 0, ..policy() }, |_| Manner::Honest, 60);
    for _ in 0..30 {
        world.turn();
        world.now_ms += 500;
    }
    let open: Vec<Row> = world.driven.rows().filter(|row| row.is_exposed()).cloned().collect();
    assert!(!open.is_empty());
    world.pushes();
    for mut row in open {
        let holds = world.meters[&row.title].holds;
        let was_sent = row.sent;
        world.stand(&mut row);
        if was_sent && (holds.encryption, holds.authentication) == (2, Some(2)) {
            assert_eq!(row.phase, Phase::Done);
            assert!(!row.is_exposed());
        }
    }
}

/// Its transfer can't be handed out for a while (the other site is away), and it is asked again each time it is taken.
#[test]
fn a_meter_that_is_at_its_former_keys_has_failed_only_if_something_was_sent_since() {
    let policy = Policy { tries_max: 2, ..policy() };
    let (meter, mut row) = World::new(1, policy.clone(), |_| Manner::Honest, 0).handed_out();
    let old = Pair { encryption: 1, authentication: Some(1) };
    let heard = |outcome, opened: &[Pair]| Heard {
        again: opened.last().copied(),
        outcome,
        opened: opened.to_vec(),
        in_vain: Vec::new(),
        frame: Vec::new(),
        end: false,
    };
    let probed = |row: &mut Row| {
        (row.lease, row.doing) = (1, Action::Probe);
        report(&meter, &policy, row, &heard(Outcome::Answered, &[old]), 1).0
    };
    for _ in 0..5 {
        assert_eq!(probed(&mut row), Action::Transfer);
        report(&meter, &policy, &mut row, &heard(Outcome::GivenBack, &[]), 1);
    }
    assert_eq!((row.failures, row.phase), (0, Phase::Sent));
    for (failures, phase) in [(1, Phase::Sent), (2, Phase::Failed)] {
        (row.lease, row.doing) = (1, Action::Transfer);
        let (next, _) = report(&meter, &policy, &mut row, &heard(Outcome::Answered, &[old]), 1);
        assert_eq!(next, Action::Probe);
        probed(&mut row);
        assert_eq!((row.failures, row.phase), (failures, phase));
    }
}

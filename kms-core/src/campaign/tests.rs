//! What a campaign keeps to, on meters that behave and on those that don't.

mod encoding_tests;
mod world_kit_tests;
mod world_tests;

use super::{
    Campaign, CampaignId, Status,
    driving::{Driven, NoWork},
    policy::{Policy, Window},
    row::{Action, Outcome, Phase, Row},
};
use crate::{KeyKind, SystemTitle};
use std::collections::BTreeMap;

const HOUR: u64 = 3_600_000;

fn campaign(policy: Policy) -> Campaign {
    Campaign {
        slot: 3,
        id: CampaignId([7; 16]),
        name: "spring".into(),
        asked_by: "operator".into(),
        policy,
        status: Status::Running,
        reason: String::new(),
        started_ms: 1,
        ended_ms: None,
        labels: vec!["a".into(), "b".into()],
        forgiven: 0,
        paced_ms: 0,
        driver: String::new(),
        driver_epoch: 0,
        driver_until_ms: 0,
        changes: 1,
    }
}

fn title(n: u64) -> SystemTitle {
    SystemTitle::new(n.to_be_bytes())
}

fn driven(policy: Policy, a: u64, b: u64) -> Driven {
    let rows = (0..a + b).map(|n| Row::new(title(n), u8::from(n >= a)));
    Driven::new(campaign(policy), rows)
}

fn take(driven: &mut Driven, most: usize, now_ms: u64) -> (Vec<Row>, Option<NoWork>) {
    let mut lease = 0;
    driven.take((most, &BTreeMap::new()), now_ms, || {
        lease += 1;
        lease
    })
}

/// Gives out and stores what is taken, each to be sent.
fn send(driven: &mut Driven, most: usize, now_ms: u64) -> Vec<Row> {
    let (rows, _) = take(driven, most, now_ms);
    for row in &rows {
        driven.put(Row { doing: Action::Transfer, phase: Phase::Staged, ..row.clone() });
    }
    rows
}

fn end(driven: &mut Driven, row: &Row, phase: Phase, sent: bool) {
    driven.put(Row { phase, sent, lease: 0, doing: Action::Nothing, ..row.clone() });
}

#[test]
fn the_first_ones_of_each_label_go_alone_and_then_no_more_than_the_cap() {
    let policy = Policy { exposure_cap: 3, canaries: 1, ..Policy::default() };
    let mut driven = driven(policy, 10, 2);
    let first = send(&mut driven, 100, 5);
    assert_eq!(
        first.iter().map(|row| (row.label, row.canary)).collect::<Vec<_>>(),
        [(0, true), (1, true)]
    );
    assert_eq!(take(&mut driven, 100, 5).1, Some(NoWork::Capped));
    // One label's canary is through: the others of that label follow, as far as the cap goes.
    end(&mut driven, &first[0], Phase::Done, false);
    let next = send(&mut driven, 100, 6);
    assert!(next.iter().all(|row| row.label == 0 && !row.canary));
    assert_eq!(next.len(), 3);
    assert_eq!(take(&mut driven, 100, 6).1, Some(NoWork::Capped));
    // One that failed after it was sent still counts.
    end(&mut driven, &next[0], Phase::Failed, true);
    assert_eq!(take(&mut driven, 100, 6).0, []);
    end(&mut driven, &next[1], Phase::Done, false);
    assert_eq!(take(&mut driven, 100, 6).0.len(), 1);
}

#[test]
fn a_lease_is_one_ones_until_it_is_over_and_then_goes_to_another_one_first() {
    let policy = Policy { canaries: 0, lease_ms: 100, ..Policy::default() };
    let mut driven = driven(policy, 2, 0);
    let mine = send(&mut driven, 1, 10);
    let (lease, title) = (mine[0].lease, mine[0].title);
    assert!(driven.holds(&title, lease, 109));
    assert!(!driven.holds(&title, lease, 110));
    assert!(!driven.holds(&title, 0, 20));
    // Another one's number is none.
    assert!(!driven.holds(&title, lease + 1, 20));
    let (other, _) = take(&mut driven, 1, 20);
    assert_ne!(other[0].title, title);
    assert_eq!(take(&mut driven, 1, 111).0[0].title, title);
}

#[test]
fn pace_and_windows_hold_what_is_new_back_and_nothing_that_is_under_way() {
    let window = Window { from_minute: 22 * 60, to_minute: 2 * 60, weekdays: 0 };
    let policy = Policy {
        canaries: 0,
        rate_per_hour: 60,
        windows: vec![window],
        lease_ms: 1_000,
        ..Policy::default()
    };
    let mut driven = driven(policy, 100, 0);
    let night = 23 * HOUR;
    // A minute may be made up for.
    assert_eq!(send(&mut driven, 100, night).len(), 2);
    assert!(matches!(take(&mut driven, 100, night + 1).1, Some(NoWork::Paced { .. })));
    assert_eq!(send(&mut driven, 100, night + 60_000).len(), 3, "two leases are over, one is new");
    let day = 36 * HOUR;
    let (again, _) = take(&mut driven, 100, day);
    assert_eq!(again.len(), 3);
    for row in &again {
        end(&mut driven, row, Phase::Done, false);
    }
    assert_eq!(take(&mut driven, 100, day).1, Some(NoWork::Closed));
    assert_eq!(take(&mut driven, 1, 25 * HOUR + 24 * HOUR).0.len(), 1);
}

#[test]
fn a_window_of_some_days_begins_on_these_and_goes_over_midnight() {
    let monday = Window { from_minute: 22 * 60, to_minute: 5 * 60, weekdays: 1 };
    let policy = Policy { windows: vec![monday], ..Policy::default() };
    // 1970-01-05 was a Monday.
    let at = |day: u64, hour: u64| (4 + day) * 24 * HOUR + hour * HOUR;
    let open = [(0, 21), (0, 22), (1, 4), (1, 5), (1, 22), (0, 4)]
        .map(|(day, hour)| policy.is_open(at(day, hour)));
    assert_eq!(open, [false, true, true, false, false, false]);
}

#[test]
fn it_stops_by_itself_at_a_failed_canary_and_at_its_error_budget() {
    let mut first = driven(Policy::default(), 10, 0);
    let rows = send(&mut first, 1, 5);
    end(&mut first, &rows[0], Phase::Failed, true);
    assert!(first.judge(6));
    assert_eq!(first.campaign.status, Status::Paused);
    assert!(first.campaign.reason.contains("canary"), "{}", first.campaign.reason);
    // Somebody has seen it: another one goes first.
    for row in first.resume(false) {
        first.put(row);
    }
    assert!(!first.judge(7));
    assert!(take(&mut first, 100, 7).0.iter().all(|row| row.canary));
    assert_eq!(take(&mut first, 100, 7).0.len(), 1);

    let policy = Policy { canaries: 0, error_budget_permille: 20, ..Policy::default() };
    let mut many = driven(policy, 100, 0);
    let rows = send(&mut many, 100, 5);
    end(&mut many, &rows[0], Phase::Failed, false);
    assert!(!many.judge(6), "one of fifty is the budget");
    end(&mut many, &rows[1], Phase::Failed, false);
    assert!(many.judge(6));
    assert!(many.campaign.reason.contains("2 meters have failed"), "{}", many.campaign.reason);
    // Paused, it gives out nothing new; what is under way goes on.
    let (again, _) = take(&mut many, 200, 5 + HOUR);
    assert_eq!(again.len(), 98);
}

#[test]
fn a_sleeper_is_no_failure_and_keeps_no_place_of_a_canary() {
    let mut driven = driven(Policy::default(), 2, 0);
    let rows = send(&mut driven, 1, 5);
    let asleep = Row {
        canary: false,
        unreachable: true,
        last: Some(Outcome::Unreachable),
        lease: 0,
        doing: Action::Nothing,
        phase: Phase::Staged,
        until_ms: 1_000,
        ..rows[0].clone()
    };
    driven.put(asleep.clone());
    assert!(!driven.judge(6));
    let next = take(&mut driven, 10, 6).0;
    assert_eq!(
        next.iter().map(|row| (row.title, row.canary)).collect::<Vec<_>>(),
        [(title(1), true)]
    );
    assert!(!asleep.is_exposed());
}

#[test]
fn a_canary_that_was_given_back_unsent_is_begun_again() {
    let mut driven = driven(Policy::default(), 3, 0);
    let rows = send(&mut driven, 1, 5);
    assert!(rows[0].canary);
    // Its key could not be proved now, or whoever had it gave it back.
    end(&mut driven, &rows[0], Phase::Staged, false);
    let again = take(&mut driven, 10, 6).0;
    assert_eq!(again.iter().map(|row| row.canary).collect::<Vec<_>>(), [true]);
}

#[test]
fn cancelled_it_leaves_those_that_hold_nothing_and_names_the_others() {
    let policy = Policy { canaries: 0, ..Policy::default() };
    let mut driven = driven(policy, 4, 0);
    let rows = send(&mut driven, 3, 5);
    end(&mut driven, &rows[0], Phase::Sent, true);
    end(&mut driven, &rows[1], Phase::Done, false);
    for row in driven.cancel("enough", 9) {
        driven.put(row);
    }
    let (progress, _) = super::progress::progress(&driven, 9);
    // One was sent, another one is under a lease to be sent.
    assert_eq!((progress.orphans, progress.of(Phase::Left), progress.of(Phase::Done)), (2, 1, 1));
    assert!(matches!(take(&mut driven, 9, HOUR).1, Some(NoWork::NotRunning(Status::Cancelled, _))));
}

#[test]
fn a_policy_that_can_not_be_gone_by_is_refused_by_its_field() {
    let default = Policy::default;
    for (policy, field) in [
        (Policy { kinds: vec![], ..default() }, "kinds"),
        (Policy { kinds: vec![KeyKind::Guek, KeyKind::Guek], ..default() }, "kinds"),
        (Policy { kinds: vec![KeyKind::Kek], ..default() }, "kinds"),
        (Policy { kinds: vec![KeyKind::Gbek], ..default() }, "kinds"),
        (Policy { class_version: 2, ..default() }, "class_version"),
        (Policy { exposure_cap: 0, ..default() }, "exposure_cap"),
        (Policy { error_budget_permille: 1_001, ..default() }, "error_budget_permille"),
        (Policy { lease_ms: 10, ..default() }, "lease_s"),
        (
            Policy {
                windows: vec![Window { from_minute: 1, to_minute: 1, weekdays: 0 }],
                ..default()
            },
            "windows",
        ),
    ] {
        assert_eq!(policy.check().unwrap_err().field, field);
    }
    assert_eq!(default().check(), Ok(()));
}

#[test]
fn two_sites_states_of_a_member_come_to_the_same_and_forget_nothing_that_was_sent() {
    let base = Row::new(title(1), 0);
    let sending = Row { lease: 9, doing: Action::Transfer, phase: Phase::Staged, ..base.clone() };
    let failed = Row { phase: Phase::Failed, failures: 5, ..base.clone() };
    let done = Row { phase: Phase::Done, ..base.clone() };
    for (a, b, phase, sent) in [
        (&base, &sending, Phase::Staged, true),
        (&failed, &sending, Phase::Failed, true),
        (&done, &failed, Phase::Done, false),
        (&done, &base, Phase::Done, false),
    ] {
        let both = a.merged(b);
        assert_eq!(both, b.merged(a));
        assert_eq!((both.phase, both.sent), (phase, sent));
    }
}

//! The enumerator on a head-end that is right and on three that are not.

use crate::careful::{Careful, Mistake};
use simulated_meter::{
    Dialect, ResultWord,
    cuts::{Case, Cut, Outcome, exhaust, run, storm},
};

const STEPS_MAX: u32 = 60;

fn outcome(mistake: Mistake, dialects: Vec<Dialect>) -> Outcome {
    match exhaust(&mut Careful::new(mistake), dialects, STEPS_MAX) {
        Ok(outcome) => outcome,
    }
}

#[test]
fn every_two_ways_of_a_meter_and_every_single_cut_leave_it_reachable() {
    let dialects = Dialect::two_at_a_time();
    let count = dialects.len() as u64;
    let outcome = outcome(Mistake::None, dialects);
    assert_eq!(outcome.complaints, []);
    assert_eq!(outcome.wrong, 0);
    // Each step of each case, in each of seven ways.
    let steps = outcome.cuts[0];
    assert!(steps >= 5 * count, "{steps}");
    assert_eq!(outcome.cuts, [steps; Cut::ALL.len()]);
    assert_eq!(outcome.cases, count + 7 * steps);
    println!("{count} dialects, {} cases, {} steps", outcome.cases, outcome.steps);
}

#[test]
fn every_combination_of_ways_ends_well_where_nothing_is_cut() {
    let (mut drive, mut outcome) = (Careful::new(Mistake::None), Outcome::default());
    for dialect in Dialect::all() {
        let Ok(_) = run(&mut drive, Case { dialect, cut: None }, STEPS_MAX, &mut outcome);
    }
    assert_eq!(outcome.complaints, []);
    assert_eq!(outcome.cases, u64::from(Dialect::COUNT));
}

/// Of any ways and with any number of cuts, a fifth of all steps.
#[test]
fn a_fleet_of_all_dialects_in_a_storm_stays_reachable() {
    let fleet = || Dialect::all().step_by(61);
    let mut drive = Careful::new(Mistake::None);
    let Ok(outcome) = storm(&mut drive, fleet(), (1, 200), 10 * STEPS_MAX);
    assert_eq!(outcome.complaints, []);
    assert!(outcome.cuts.iter().all(|it| *it > 40), "{:?}", outcome.cuts);
    assert_eq!(outcome.cases, fleet().count() as u64);
    // The same seed brings the same storm.
    let Ok(again) = storm(&mut drive, fleet(), (1, 200), 10 * STEPS_MAX);
    assert_eq!(outcome, again);
    let mut wrong = Careful::new(Mistake::MakesOthers);
    let Ok(outcome) = storm(&mut wrong, fleet().take(10), (1, 200), 10 * STEPS_MAX);
    assert!(outcome.wrong > 0 && outcome.complaints[0].1.contains("(seed "));
}

#[test]
fn a_counter_that_is_stored_late_is_found_at_each_kill_and_at_the_failover() {
    let outcome = outcome(Mistake::CounterStoredLate, vec![Dialect::BY_THE_BOOK]);
    assert!(outcome.wrong > 0);
    for (case, complaint) in &outcome.complaints {
        assert!(complaint.ends_with("used twice"), "{complaint}");
        let cut = case.cut.map(|(_, cut)| cut);
        let kills = [Cut::HeadEndKilled, Cut::ServerKilled, Cut::Failover];
        assert!(kills.map(Some).contains(&cut), "{cut:?}");
    }
}

#[test]
fn keys_at_one_site_alone_strand_a_meter_at_the_failover_and_nowhere_else() {
    let outcome = outcome(Mistake::Unreplicated, vec![Dialect::BY_THE_BOOK]);
    assert!(outcome.complaints.iter().any(|(_, it)| it.contains("nobody holds")));
    assert!(outcome.complaints.iter().any(|(_, it)| it.contains("reaches the meter")));
    let at = |case: &Case| case.cut.map(|(_, cut)| cut);
    assert!(outcome.complaints.iter().all(|(case, _)| at(case) == Some(Cut::Failover)));
}

#[test]
fn who_makes_other_keys_after_a_kill_strands_a_meter() {
    let outcome = outcome(Mistake::MakesOthers, vec![Dialect::BY_THE_BOOK]);
    assert!(outcome.complaints.iter().any(|(_, it)| it.contains("nobody holds")));
}

/// Passes 1 to 4 in two steps, the transfer, the release, the passes under the new keys, the look at what is missing.
#[test]
fn by_the_book_a_key_change_takes_seven_steps_and_ends_with_the_new_keys() {
    let (mut drive, mut outcome) = (Careful::new(Mistake::None), Outcome::default());
    let case = Case { dialect: Dialect::BY_THE_BOOK, cut: None };
    let Ok(steps) = run(&mut drive, case, STEPS_MAX, &mut outcome);
    assert_eq!(steps, 7);
    assert!(drive.has_changed());
    // Each of them is cut in each way, the first and the last one, too.
    let cut = self::outcome(Mistake::None, vec![Dialect::BY_THE_BOOK]);
    assert_eq!((cut.cases, cut.cuts), (1 + 7 * 7, [7; Cut::ALL.len()]));
    let dialect = Dialect { result: ResultWord::OkNotApplied, ..Dialect::BY_THE_BOOK };
    let Ok(_) = run(&mut drive, Case { dialect, cut: None }, STEPS_MAX, &mut outcome);
    assert!(!drive.has_changed());
    assert_eq!(outcome.wrong, 0);
}

/// What never comes to its end is wrong, too.
#[test]
fn a_case_that_does_not_end_is_a_complaint() {
    let mut outcome = Outcome::default();
    let case = Case { dialect: Dialect::BY_THE_BOOK, cut: None };
    let Ok(steps) = run(&mut Careful::new(Mistake::None), case, 2, &mut outcome);
    assert_eq!((steps, outcome.wrong), (2, 1));
    assert!(outcome.complaints[0].1.contains("has not ended"));
}

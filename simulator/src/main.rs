//! `simulate HISTORIES SEED EVENTS`: runs histories, prints what hit what, and fails if an invariant was broken or a fault
//! never hit.

use std::{process::ExitCode, time::Instant};

use simulator::{Plan, Realm};

const USAGE: &str = "simulate HISTORIES SEED EVENTS: three numbers";

fn main() -> ExitCode {
    let numbers: Option<Vec<u64>> = std::env::args().skip(1).map(|it| it.parse().ok()).collect();
    let Some([histories, seed, events]) = numbers.as_deref() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let events = usize::try_from(*events).unwrap_or(usize::MAX);
    let plan = Plan { seed: *seed, histories: *histories, events, mutation: None };
    let realm = match Realm::new() {
        Ok(realm) => realm,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let begun = Instant::now();
    match plan.run(&realm) {
        Ok(report) => {
            println!("{}", report.hits);
            let seconds = begun.elapsed().as_secs_f64();
            println!(
                "{} histories of {events} events from seed {seed}, {} counters, {} of them on shared key values, {seconds:.1} s: no invariant was broken",
                report.histories, report.counters, report.shared
            );
            let missing = report.hits.missing();
            for (fault, hit) in &missing {
                eprintln!("{fault} never hit a site that is {hit}: run more histories");
            }
            if missing.is_empty() || *histories < 1_000 {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(failure) => {
            failure.story.iter().for_each(|line| eprintln!("{line}"));
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

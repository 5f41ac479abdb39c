//! `simulator HISTORIES SEED EVENTS [COUNTERS]`: runs histories, prints what hit what, and fails if an invariant was broken
//! or a fault never hit. With COUNTERS, histories follow until so many went out, and a tenth has to be on shared values.

use std::{process::ExitCode, time::Instant};

use simulator::{Plan, Realm};

const USAGE: &str = "simulator HISTORIES SEED EVENTS [COUNTERS]: numbers";

fn main() -> ExitCode {
    let numbers: Option<Vec<u64>> = std::env::args().skip(1).map(|it| it.parse().ok()).collect();
    let (histories, seed, events, counters) = match numbers.as_deref() {
        Some([histories, seed, events]) => (histories, seed, events, 0),
        Some([histories, seed, events, counters]) => (histories, seed, events, *counters),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    let events = usize::try_from(*events).unwrap_or(usize::MAX);
    let plan = Plan { seed: *seed, histories: *histories, events, mutation: None, counters };
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
                "{} histories of {events} events from seed {seed}, {} counters, {} of them on shared key values, {} times READY, {seconds:.1} s: no invariant was broken",
                report.histories, report.counters, report.shared, report.ready
            );
            let missing = report.hits.missing();
            for (fault, hit) in &missing {
                eprintln!("{fault} never hit a site that is {hit}: run more histories");
            }
            let few_shared = counters > 0 && report.shared * 10 < report.counters;
            if few_shared {
                eprintln!("less than a tenth of the counters went out on shared values");
            }
            if (missing.is_empty() || *histories < 1_000) && !few_shared {
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

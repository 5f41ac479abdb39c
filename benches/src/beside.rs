//! Two builds of the service under the same load, in turns: what a change costs.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use softhsm_tests::{Programs, Site, programs::ProgramPaths};

use crate::{
    Error,
    fleet::Telegrams,
    home,
    in_process::{self, BATCH},
    measure::Rounds,
    on_the_wire::{Way, Wire},
    process::{hardware, resident_bytes},
};

/// An example with the making of the two sites: an older build can't read a newer one's database.
const EXAMPLE: &str = "\
Each build imports into a site of its own first, with the `report` that stands beside it:

  OLD/report --dir site-old --meters 20000 --in-process-only --rounds 1
  NEW/report --dir site-new --meters 20000 --in-process-only --rounds 1
  NEW/beside --old OLD/kms-server site-old --new NEW/kms-server site-new --meters 20000";

/// Two builds of the service under the same load, in turns
#[derive(Clone, Debug, Parser)]
#[command(after_help = EXAMPLE)]
struct Options {
    /// The server of the old build, and its site
    #[arg(long, num_args = 2, value_names = ["FILE", "DIR"], required = true)]
    old: Vec<PathBuf>,
    /// The server of the new build, and its site
    #[arg(long, num_args = 2, value_names = ["FILE", "DIR"], required = true)]
    new: Vec<PathBuf>,
    /// Meters of each site
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1_024..))]
    meters: u32,
    /// Rounds; the median of their ratios counts
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Seconds of each turn
    #[arg(long, default_value_t = 1.0)]
    turn_seconds: f64,
}

/// The program.
pub fn main() -> ExitCode {
    home::told(|| {
        let options = Options::parse();
        in_process::all_threads()?.block_on(run(&options))
    })
}

fn site_of(of: &[PathBuf]) -> Result<Site, Error> {
    let [server, dir] = of else { return Err("a server and its site are needed".into()) };
    let paths = ProgramPaths { kms_server: Some(server.clone()), ..ProgramPaths::default() };
    Ok(Site::open(dir, Programs::find_with(paths)?)?)
}

async fn run(options: &Options) -> Result<(), Error> {
    let count = options.meters as usize / BATCH * BATCH;
    let telegrams = Telegrams::of_random_meters(options.meters, count)?;
    let (old, new) = (site_of(&options.old)?, site_of(&options.new)?);
    let (old, _) = Wire::up(&old, &telegrams).await?;
    let (new, _) = Wire::up(&new, &telegrams).await?;
    let lasting = Duration::from_secs_f64(options.turn_seconds);
    println!("what                       old              new              new to old");
    for (name, way) in [("stream", Way::Stream), ("unary", Way::Unary)] {
        let mut rounds = Rounds::default();
        let mut ratios = Vec::new();
        // The first one warms up.
        for round in 0..=options.rounds {
            let (before, after) = if round % 2 == 0 {
                let before = old.kms(way, lasting).await?;
                (before, new.kms(way, lasting).await?)
            } else {
                let after = new.kms(way, lasting).await?;
                (old.kms(way, lasting).await?, after)
            };
            if round > 0 {
                let figures = [1e9 / before.cpu_ns(), 1e9 / after.cpu_ns()];
                ratios.push(figures[1] / figures[0]);
                rounds.push(figures.to_vec());
            }
        }
        ratios.sort_unstable_by(f64::total_cmp);
        println!(
            "{name:8} items a core second {:11.0} {:16.0} {:9.3} ({:.2} to {:.2})",
            rounds.median(0),
            rounds.median(1),
            rounds.ratio(1, 0),
            ratios.first().copied().unwrap_or(0.0),
            ratios.last().copied().unwrap_or(0.0),
        );
    }
    let (before, after) = (resident_bytes(old.kms_pid())?, resident_bytes(new.kms_pid())?);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "memory   MiB in RAM          {:11.1} {:16.1} {:9.3}",
        mib(before),
        mib(after),
        after as f64 / before as f64
    );
    old.down()?;
    new.down()?;
    println!("\n{} meters, {} rounds in turns; {}", options.meters, options.rounds, hardware());
    Ok(())
}

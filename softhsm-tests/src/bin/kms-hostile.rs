//! `make hostile`.

use std::{error::Error, process::ExitCode, time::Duration};

use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use softhsm_tests::{
    Programs,
    hostile::{self, Attack, Times},
    programs::ProgramPaths,
};

/// Hostile load on a server beside an honest caller. Fails unless the caller hardly notices.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    programs: ProgramPaths,
    /// Only attacks whose name contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// How long each attack lasts.
    #[arg(long, value_name = "SECONDS", default_value_t = 8)]
    seconds: u64,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("  because: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<bool, Box<dyn Error>> {
    // Some thousand connections, here and in the server.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    let programs = Programs::find_with(arguments.programs)?;
    let only = arguments.only.unwrap_or_default();
    let attacks: Vec<Attack> =
        Attack::ALL.iter().copied().filter(|attack| attack.name().contains(&only)).collect();
    let attack = Duration::from_secs(arguments.seconds);
    hostile::run(&programs, &attacks, Times { attack, ..Times::default() })
}

//! `make demo` and `make dev`.

use std::{error::Error, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use softhsm_tests::{Programs, demo, dev, programs::ProgramPaths};

/// A whole site on SoftHSM: to look at, or to develop against.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    programs: ProgramPaths,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Send every published telegram through a site made for it; fails unless each one ends as it
    /// must.
    Demo,
    /// Run a server in a directory that is kept. Ctrl-C stops it.
    Dev {
        /// The directory; made if need be.
        dir: PathBuf,
        /// The port of a new site; a free one unless given.
        #[arg(long)]
        port: Option<u16>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            report(&*error);
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<bool, Box<dyn Error>> {
    let programs = Programs::find_with(arguments.programs)?;
    match arguments.verb {
        Verb::Demo => demo::run(programs),
        Verb::Dev { dir, port } => dev::run(&dir, port, programs).map(|()| true),
    }
}

/// The error, and below it what caused it.
fn report(error: &dyn Error) {
    eprintln!("error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  because: {error}");
        cause = error.source();
    }
}

//! `kms-server`: the command line.

use std::{
    error::Error,
    fmt,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, error::ErrorKind};
use kms_core::enrolment::Fingerprint;
use kms_server::{
    app::{self, BackupOptions, Fault, InitOptions, JoinOptions, RestoreOptions, TrustOptions},
    config::{Config, Finding},
    hsm::pkcs11::ProbeReport,
    telemetry::{self, Log},
};

/// The longest wait, at the end of the process, for the reader of its last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Without a thread for the log there would be none for anything else.
    let Ok(log) = Log::to_stderr() else { return ExitCode::from(RUN_TIME) };
    let _at_the_end = LastLines(&log);
    run(arguments, &log).unwrap_or_else(|fault| refuse_to_start(&fault, &log))
}

/// Dropped last of all, after a panic too.
struct LastLines<'a>(&'a Log);

impl Drop for LastLines<'_> {
    fn drop(&mut self) {
        self.0.drain(LAST_LINES);
    }
}

fn run(Arguments { config: path, verb }: Arguments, log: &Log) -> Result<ExitCode, Fault> {
    if let Verb::CheckConfig(output) = verb {
        return Ok(check_config(&path, &output));
    }
    let config = Config::load(&path)?;
    telemetry::start(&config.log, log).map_err(|error| Fault::Runtime(error.into()))?;
    match verb {
        Verb::Init(init) => init.run(config)?,
        Verb::TrustPeer { request, fingerprint, so_pin_file, withdraw, output, .. } => {
            let fingerprint = fingerprint_of(&fingerprint);
            let options = TrustOptions { request, fingerprint, so_pin_file, withdraw };
            output.say(&app::trust_peer(config, &options)?);
        }
        Verb::Backup { out, keep, drill, output } => {
            output.say(&app::backup(config, &BackupOptions { out, keep, drill })?);
        }
        Verb::Restore { from, verify_only, output } => {
            output.say(&app::restore(config, &RestoreOptions { from, verify_only })?);
        }
        Verb::Migrate(output) => output.say(&app::migrate(config)?),
        Verb::Serve => app::serve(config, log.clone())?,
        Verb::ProbeHsm { all, output } => {
            let report = app::probe_hsm(config)?;
            if all {
                output.say(&All(&report))
            } else {
                output.say(&report)
            }
            if report.verdict().is_err() {
                return Ok(ExitCode::from(TOKEN_REFUSED));
            }
        }
        Verb::CheckConfig(_) => {} // Done above: it tells of a file that can't be loaded, too.
    }
    Ok(ExitCode::SUCCESS)
}

fn check_config(path: &Path, output: &Output) -> ExitCode {
    let findings = match Config::load(path) {
        Ok(config) => app::check(config),
        Err(error) => vec![Finding::of("file", &error)],
    };
    let is_well = findings.is_empty();
    output.say(&Findings { findings });
    if is_well { ExitCode::SUCCESS } else { ExitCode::from(CONFIGURATION_REFUSED) }
}

/// Says why on stderr, in one sentence with its causes; the sentence says what to do, too.
fn refuse_to_start(fault: &Fault, log: &Log) -> ExitCode {
    let mut sentence = format!("kms-server: {fault}");
    let mut cause = fault.source();
    while let Some(error) = cause {
        sentence.push_str(&format!(": {error}"));
        cause = error.source();
    }
    sentence.push('\n');
    log.say(sentence.as_bytes());
    ExitCode::from(code_of(fault))
}

/// Exit codes, as `--help` tells them. Usage errors (2) are clap's.
const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  a fault at run time
  2  wrong usage
  3  the configuration is refused
  4  the token is refused, or refuses us
  5  the store is refused
  6  the database, the token or the address to listen on is away: start again later (the unit does)";

const RUN_TIME: u8 = 1;
const CONFIGURATION_REFUSED: u8 = 3;
const TOKEN_REFUSED: u8 = 4;

/// The one place where a fault becomes an exit code.
fn code_of(fault: &Fault) -> u8 {
    match fault {
        Fault::Runtime(_) => RUN_TIME,
        Fault::Configuration(_) | Fault::Setting(_) => CONFIGURATION_REFUSED,
        Fault::Token(_) => TOKEN_REFUSED,
        Fault::Store(_) => 5,
        Fault::Away(_) => 6,
    }
}

/// Key management for smart meters: keeps meter keys under an HSM, and opens what meters send.
#[derive(Parser)]
#[command(name = "kms-server", version, after_help = EXIT_CODES)]
struct Arguments {
    /// The configuration file.
    #[arg(long, global = true, value_name = "FILE", default_value = "/etc/ami/kms.toml")]
    config: PathBuf,

    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make the key domain: KEKs in the token, an empty database.
    Init(Init),
    /// As security officer, let the sealed KEKs of this site go to the token of one that asks to join.
    TrustPeer {
        /// The join request of that site.
        #[arg(
            long,
            value_name = "FILE",
            required_unless_present = "try_only",
            requires = "fingerprint"
        )]
        request: Option<PathBuf>,
        /// Its fingerprint, as somebody at that site read it out.
        #[arg(long, value_name = "HEX", requires = "request", num_args = 1..=GROUPS_MAX)]
        fingerprint: Vec<String>,
        /// The security officer's PIN, in a file of mode 600.
        #[arg(long, value_name = "FILE")]
        so_pin_file: PathBuf,
        /// Trust the key no longer: the ceremony is over.
        #[arg(long, requires = "request")]
        withdraw: bool,
        /// Only try whether this token can trust a key, and so can ever hand its sealed KEKs on.
        #[arg(long = "try", conflicts_with = "request")]
        try_only: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Write all of the database into a file that only this site's token opens; the server may run meanwhile.
    Backup {
        /// The file, of which there must be none; or a directory, in which it gets a name of its own.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Only with a directory: keep so many backups of this site, and remove older ones once this one is whole.
        #[arg(long, value_name = "N")]
        keep: Option<usize>,
        /// Restore it at once into a database that goes again, and open every block of it.
        #[arg(long)]
        drill: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Restore a backup into an empty database. The site changes nothing then until it is promoted above every epoch
    /// that is known.
    Restore {
        /// The backup.
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
        /// A drill: into a database that goes again, of which every block is opened. Nothing else is touched.
        #[arg(long)]
        verify_only: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Bring a key domain that an older version made to this one: once, while no server runs.
    Migrate(Output),
    /// Serve until SIGTERM or SIGINT.
    Serve,
    /// Say the first fault of the configuration, or, if it has none, all that is wrong around it.
    CheckConfig(Output),
    /// Ask the token what it can do, and try the attacks that it must withstand.
    ProbeHsm {
        /// Every row, not only what failed, what the token can do, and counts.
        #[arg(long, conflicts_with = "json")]
        all: bool,
        #[command(flatten)]
        output: Output,
    },
}

/// The groups in which a fingerprint is printed: the command line may have it so, without quotes.
const GROUPS_MAX: usize = 16;

/// A fingerprint out of its groups; `None`: there is none.
fn fingerprint_of(groups: &[String]) -> Option<Fingerprint> {
    if groups.is_empty() {
        return None;
    }
    let read = groups.concat().parse();
    let wrong_usage = |error| {
        clap::Error::raw(ErrorKind::ValueValidation, format!("--fingerprint: {error}\n")).exit()
    };
    Some(read.unwrap_or_else(wrong_usage))
}

/// Options of `init`.
#[derive(Args)]
struct Init {
    /// Make the token first.
    #[arg(long, requires = "so_pin_file")]
    create_token: bool,
    /// The security officer's PIN, in a file of mode 600.
    #[arg(long, value_name = "FILE", requires = "create_token")]
    so_pin_file: Option<PathBuf>,
    /// Join a key domain that another site has, with --request and then with --bundle.
    #[arg(long, requires = "step")]
    join: bool,
    /// Make this site's own keys, and write what it asks the other site for.
    #[arg(long, value_name = "FILE", requires = "join", group = "step")]
    request: Option<PathBuf>,
    /// With --request: for a second token of the site whose database is there, not for a further site.
    #[arg(long, requires = "request")]
    same_site: bool,
    /// Take the other site's answer, and make the database.
    #[arg(long, value_name = "FILE", requires_all = ["join", "fingerprint"], group = "step", conflicts_with = "create_token")]
    bundle: Option<PathBuf>,
    /// The bundle's fingerprint, as somebody at the other site read it out.
    #[arg(long, value_name = "HEX", requires = "bundle", num_args = 1..=GROUPS_MAX)]
    fingerprint: Vec<String>,
    #[command(flatten)]
    output: Output,
}

impl Init {
    fn run(self, config: Config) -> Result<(), Fault> {
        let create_token = self.so_pin_file;
        let fingerprint = fingerprint_of(&self.fingerprint);
        let report = match (self.request, self.bundle.zip(fingerprint)) {
            (Some(request), _) => {
                let options = JoinOptions { create_token, same_site: self.same_site };
                app::request_to_join(config, &options, &request)?
            }
            (None, Some((bundle, fingerprint))) => app::join(config, &bundle, fingerprint)?,
            (None, None) => app::init(config, &InitOptions { create_token })?,
        };
        self.output.say(&report);
        Ok(())
    }
}

/// How a verb says what it has to say.
#[derive(Args)]
struct Output {
    /// As one JSON value.
    #[arg(long)]
    json: bool,
}

impl Output {
    fn say<T: fmt::Display + serde::Serialize>(&self, what: &T) {
        let text = if self.json { serde_json::to_string(what).ok() } else { None };
        let text = text.unwrap_or_else(|| what.to_string());
        // A reader that went away (`| head`) is no fault of ours.
        let _ = writeln!(io::stdout(), "{}", text.trim_end());
    }
}

/// A report with every row.
#[derive(serde::Serialize)]
struct All<'a>(&'a ProbeReport);

impl fmt::Display for All<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

/// The findings of `check-config`.
#[derive(serde::Serialize)]
struct Findings {
    findings: Vec<Finding>,
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.findings.is_empty() {
            return f.write_str("nothing is wrong");
        }
        self.findings.iter().try_for_each(|finding| writeln!(f, "{finding}"))
    }
}

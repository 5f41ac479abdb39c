//! A sealed import of many meters, by the programs as they are released: time, calls of the token, and how
//! far it is from a token that only unwraps, identifies and wraps.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use kms_server::config::Config;
use softhsm_tests::{
    Role, Setting, Site,
    sealing::{Signing, made_up},
};

use crate::{
    Error, home,
    process::{cpu_time, hardware},
    token::BareToken,
};

/// GUEK and GAK.
const KEYS_A_METER: u64 = 2;
/// Of a domain, unless its settings say otherwise.
const BLOCKS: usize = 4_096;
/// Keys of one round of the bare token.
const BARE_KEYS: u32 = 10_000;

/// Measures a sealed import over mutual TLS.
#[derive(Clone, Debug, Parser)]
struct Options {
    /// Meters in the file, each with GUEK and GAK
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    meters: u32,
    /// Keep the site in this directory
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// The program.
pub fn main() -> ExitCode {
    let options = Options::parse();
    let (meters, keep) = (options.meters, options.dir);
    home::within_a_site_of(meters, keep.as_deref(), settings, |site| run(meters, &site))
}

/// The settings that other sites don't have: a signer, no keys in clear, and figures to be asked for.
fn settings(dir: &Path) -> Result<Vec<Setting>, Error> {
    let free = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
    let set = |section, key, value: String| Setting { section, key, value };
    Ok(vec![
        Signing::make(dir)?.setting(),
        set("import", "allow_clear", "false".to_owned()),
        set("metrics", "listen", format!("\"{free}\"")),
    ])
}

fn run(meters: u32, site: &Site) -> Result<(), Error> {
    let metrics = Config::load(&site.places().kms_toml)?.rpc.metrics.ok_or("no metrics")?.listen();
    let signing = Signing::open(&site.places().dir);
    let (dir, keys) = (tempfile::tempdir()?, u64::from(meters) * KEYS_A_METER);
    let (clear, sealed) = (dir.path().join("meters.jsonl"), dir.path().join("sealed.jsonl"));
    made_up(u64::from(meters), &clear)?;
    let bare = BareToken::of(site, BARE_KEYS)?;
    let running = site.start()?;
    let admin = site.ami_tool(Role::AmiAdmin);

    let started = Instant::now();
    signing.seal(&admin, &clear, &sealed)?;
    let mib = std::fs::metadata(&sealed)?.len() as f64 / f64::from(1 << 20);
    println!("sealed: {meters} meters in {:.1} s, {mib:.1} MiB", started.elapsed().as_secs_f64());
    for what in ["first import", "the same file again"] {
        let meters_a_block = (meters as usize).div_ceil(BLOCKS);
        // And the processor time of the last one: on a machine that others use, the clock on the wall says little.
        let all = || -> Result<[Duration; 4], Error> {
            let used = cpu_time(std::process::id())?;
            let alike = bare.take_all_as_an_import(meters_a_block)?;
            let used = cpu_time(std::process::id())? - used;
            Ok([bare.take_all()?, bare.take_all_of_meters()?, alike, used])
        };
        let before = all()?;
        let (calls, used) = (Calls::of(metrics)?, cpu_time(running.pid())?);
        let started = Instant::now();
        let said = admin.import(&sealed, false)?;
        let took = started.elapsed();
        let (calls, used) = (Calls::of(metrics)?.since(&calls), cpu_time(running.pid())? - used);
        let after = all()?;
        let a_bare_key = |n: usize| (before[n] + after[n]).as_secs_f64() / f64::from(2 * BARE_KEYS);
        let seconds = took.as_secs_f64();
        let a_key = seconds / keys as f64;
        println!("\n{what}: {}", said.trim().replace('\n', "; "));
        println!(
            "  {seconds:.1} s, {:.0} meters/s, {:.0} keys/s; {:.1} s of the server's processor time",
            f64::from(meters) / seconds,
            1.0 / a_key,
            used.as_secs_f64()
        );
        for (n, what) in [
            "unwrap, fingerprint, wrap",
            "and check value, block's key",
            "the same calls as the import, and the comparison",
        ]
        .iter()
        .enumerate()
        {
            println!(
                "  bare token, one session ({what}): {:.0} keys/s; the import has {:.0} % of it",
                1.0 / a_bare_key(n),
                100.0 * a_bare_key(n) / a_key
            );
        }
        let (a_key, bare) = (used.as_secs_f64() / keys as f64, a_bare_key(3));
        println!(
            "  the last one by processor time: {:.0} µs a key; the import, all threads of the server, {:.0} µs: {:.0} % of it",
            1e6 * bare,
            1e6 * a_key,
            100.0 * bare / a_key
        );
        calls.print(meters, took);
    }
    println!("\n{}", hardware());
    running.stop()?;
    Ok(())
}

/// Calls at the token's door by operation: how many, and seconds in the token.
struct Calls(BTreeMap<String, (u64, f64)>);

impl Calls {
    fn of(metrics: SocketAddr) -> Result<Self, Error> {
        let page = page(metrics)?;
        let mut calls = BTreeMap::new();
        for line in page.lines().filter(|line| line.starts_with("kms_hsm_execution_seconds_")) {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let operation =
                name.split("operation=\"").nth(1).and_then(|rest| rest.split('"').next());
            let operation = operation.ok_or("a call without its operation")?;
            let (count, sum): &mut (u64, f64) = calls.entry(operation.to_owned()).or_default();
            if name.starts_with("kms_hsm_execution_seconds_count") {
                *count = value.parse()?;
            } else if name.starts_with("kms_hsm_execution_seconds_sum") {
                *sum = value.parse()?;
            }
        }
        if calls.is_empty() { Err("the server tells of no calls".into()) } else { Ok(Self(calls)) }
    }

    fn since(&self, before: &Self) -> Self {
        let of = |operation: &String| before.0.get(operation).copied().unwrap_or_default();
        let grown = |(operation, (count, sum)): (&String, &(u64, f64))| {
            let (then, sum_then) = of(operation);
            (operation.clone(), (count - then, sum - sum_then))
        };
        Self(self.0.iter().map(grown).collect())
    }

    fn print(&self, meters: u32, took: Duration) {
        let all: u64 = self.0.values().map(|(count, _)| count).sum();
        let seconds: f64 = self.0.values().map(|(_, sum)| sum).sum();
        println!(
            "  calls of the token: {all}, {:.3} a meter; {seconds:.1} s in it, {:.0} % of the time",
            all as f64 / f64::from(meters),
            100.0 * seconds / took.as_secs_f64()
        );
        for (operation, (count, sum)) in self.0.iter().filter(|(_, (count, _))| *count > 0) {
            println!("    {operation}: {count} in {sum:.1} s");
        }
    }
}

fn page(metrics: SocketAddr) -> Result<String, Error> {
    let mut stream = TcpStream::connect(metrics)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}

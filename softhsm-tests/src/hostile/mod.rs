//! A running server, an honest caller at a steady rate, and hostile load beside it: `make hostile`.
//!
//! Each attack has a server of its own, a bounded number of connections and a bounded time, and goes to
//! the loopback address. What counts is what the honest caller notices, how much memory the server takes,
//! and how soon all is as before:
//!
//! | | bound |
//! |---|---|
//! | p99 of the honest caller under attack | [`Bounds::ratio`] times that of the quiet before it |
//! | his errors, on an open connection and on new ones | none |
//! | memory of the server | [`Bounds::rss_mib`] |
//! | until calls are as fast as before | [`Bounds::heal`] |

mod attacks;
mod honest;
mod load;
mod peers;

use std::{
    error::Error,
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

pub use attacks::Attack;
use honest::{Honest, Sample};
use load::Target;
use peers::Peer;

use crate::{
    Pair, Programs, Role, Running, Site, SiteOptions, Tokens, fleet,
    proxy::{Plan, Proxy},
    table::{self, Cell, Column, Tone},
    tool::json_lines,
    vectors,
};

/// The bounds that the server must keep.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The bound of the honest caller's p99 under attack, as a multiple of the one before.
    pub ratio: f64,
    /// The least that a p99 of the quiet counts as: below it, the scheduler of the machine is measured.
    pub floor: Duration,
    /// The bound of the server's memory, in MiB.
    pub rss_mib: u64,
    /// The bound of the time until the honest caller is served as before.
    pub heal: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            ratio: 3.0,
            floor: Duration::from_millis(5),
            rss_mib: 512,
            heal: Duration::from_secs(5),
        }
    }
}

/// The observations of one attack.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The attack.
    pub attack: Attack,
    /// The honest caller's p99 before it.
    pub quiet_p99: Duration,
    /// His p99 while it lasted.
    pub attacked_p99: Duration,
    /// His calls while it lasted.
    pub calls: usize,
    /// His calls that failed, and what the first one said.
    pub errors: (usize, Option<String>),
    /// The most memory that the server had, in MiB.
    pub rss_mib: u64,
    /// After the attack's end: when the last call failed or was slow.
    pub healed_after: Duration,
    /// The server ended.
    pub ended: bool,
}

impl Finding {
    /// The honest caller's p99 under attack, as a multiple of the one before.
    pub fn ratio(&self, floor: Duration) -> f64 {
        self.attacked_p99.as_secs_f64() / self.quiet_p99.max(floor).as_secs_f64()
    }

    /// Whether all of it is within the bounds.
    pub fn holds(&self, bounds: &Bounds) -> bool {
        !self.ended
            && self.errors.0 == 0
            && self.calls > 0
            && self.ratio(bounds.floor) < bounds.ratio
            && self.rss_mib < bounds.rss_mib
            && self.healed_after < bounds.heal
    }
}

/// The duration of each part.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Before the attack.
    pub quiet: Duration,
    /// The attack.
    pub attack: Duration,
    /// The time after it in which the honest caller is watched.
    pub after: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            quiet: Duration::from_secs(4),
            attack: Duration::from_secs(8),
            after: Duration::from_secs(7),
        }
    }
}

/// Runs these attacks, one after the other, and prints what was seen; whether all of it holds.
pub fn run(programs: &Programs, attacks: &[Attack], times: Times) -> Result<bool, Box<dyn Error>> {
    let bounds = Bounds::default();
    let mut findings = Vec::new();
    for attack in attacks {
        let dir = tempfile::Builder::new().prefix("kms-hostile-").tempdir()?;
        let options = SiteOptions { tokens: Tokens::SharedMemory, ..SiteOptions::default() };
        let finding = if attack.is_by_a_peer() {
            assail_pair(&Pair::make(dir.path(), programs, &options)?, *attack, times)?
        } else {
            let site = Site::make(dir.path(), programs.clone(), options)?;
            site.init()?;
            assail(&site, *attack, times)?
        };
        println!("{}", line(&finding, &bounds));
        findings.push(finding);
    }
    println!("\n{}", render(&findings, &bounds));
    Ok(findings.iter().all(|finding| finding.holds(&bounds)))
}

/// One attack on the server of `site`, which was initialised and is not running.
pub fn assail(site: &Site, attack: Attack, times: Times) -> Result<Finding, Box<dyn Error>> {
    let mut running = site.start()?;
    let telegram = import(site)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let target = Target::of(site, None, telegram.clone()).map_err(plain)?;
    let finding = runtime.block_on(watch(site, &running, attack, times, (target, telegram)));
    runtime.shutdown_background();
    let ended = running.ended()?.is_some();
    Ok(Finding { ended, ..finding? })
}

/// The same by the second of two sites that are laid out and were not started, or by what becomes of it.
pub fn assail_pair(pair: &Pair, attack: Attack, times: Times) -> Result<Finding, Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let of_a = ([127, 0, 0, 1], pair.a.port()).into();
    let between = Arc::new(runtime.block_on(Proxy::start(of_a, |_| Plan::PASS))?);
    let kms_toml = &pair.b.places().kms_toml;
    let text = fs::read_to_string(kms_toml)?;
    let through = |port: u16| format!("localhost:{port}\"");
    let proxied = text.replace(&through(pair.a.port()), &through(between.address().port()));
    fs::write(kms_toml, proxied)?;
    let (mut a, b) = pair.start()?;
    let telegram = import(&pair.a)?;
    pair.until_proved(&pair.a)?;
    let mut target = Target::of(&pair.a, Some(&pair.b), telegram.clone()).map_err(plain)?;
    let peer = runtime.block_on(Peer::of(&pair.a, b.pid(), between)).map_err(plain)?;
    runtime.block_on(peer.is_let_in(&target)).map_err(plain)?;
    target.peer = Some(peer);
    let finding = runtime.block_on(watch(&pair.a, &a, attack, times, (target, telegram)));
    runtime.shutdown_background();
    let ended = a.ended()?.is_some();
    Ok(Finding { ended, ..finding? })
}

fn plain(error: Box<dyn Error + Send + Sync>) -> Box<dyn Error> {
    error
}

async fn watch(
    site: &Site,
    running: &Running,
    attack: Attack,
    times: Times,
    (target, telegram): (Target, Vec<u8>),
) -> Result<Finding, Box<dyn Error>> {
    let honest = Honest::begin(&client_toml(site)?, telegram).await?;
    // The first calls open blocks and connections.
    tokio::time::sleep(Duration::from_millis(500)).await;
    honest.take();
    tokio::time::sleep(times.quiet).await;
    let quiet = honest.take();
    let memory = Memory::watch(running.pid());
    let until = Instant::now() + times.attack;
    // One that ends early is begun again: its connections may have been cut.
    while Instant::now() < until {
        let left = until.saturating_duration_since(Instant::now());
        let _ = tokio::time::timeout(left, attack.run(&target, until)).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let attacked = honest.take();
    let over = Instant::now();
    tokio::time::sleep(times.after).await;
    let after = honest.take();
    let quiet_p99 = p99(&quiet);
    let slow = quiet_p99.max(Bounds::default().floor) * 3;
    let last_bad = after.iter().filter(|sample| sample.failed.is_some() || sample.took > slow);
    let healed_after = last_bad
        .map(|sample| sample.ended.saturating_duration_since(over))
        .max()
        .unwrap_or(Duration::ZERO);
    let failed: Vec<&String> =
        attacked.iter().filter_map(|sample| sample.failed.as_ref()).collect();
    Ok(Finding {
        attack,
        quiet_p99,
        attacked_p99: p99(&attacked),
        calls: attacked.len(),
        errors: (failed.len(), failed.first().map(|first| (*first).clone())),
        rss_mib: memory.peak_mib()?,
        healed_after,
        ended: false,
    })
}

/// Of calls on the open connection.
fn p99(samples: &[Sample]) -> Duration {
    let mut took: Vec<Duration> =
        samples.iter().filter(|sample| !sample.fresh).map(|sample| sample.took).collect();
    took.sort_unstable();
    let at = (took.len() * 99).div_ceil(100).saturating_sub(1);
    took.get(at).copied().unwrap_or_default()
}

/// The honest caller's configuration: each failure shows.
fn client_toml(site: &Site) -> Result<std::path::PathBuf, Box<dyn Error>> {
    let text = fs::read_to_string(site.client_toml(Role::Hes))?;
    let path = site.places().dir.join("client-honest.toml");
    fs::write(&path, text.replace("retries = 2", "retries = 0"))?;
    Ok(path)
}

/// Imports the published meters; a telegram of one of them, the longest that opens.
fn import(site: &Site) -> Result<Vec<u8>, Box<dyn Error>> {
    let vectors = vectors::published()?;
    let file = site.places().dir.join("meters.jsonl");
    fs::write(&file, json_lines(&fleet::meters(&vectors)))?;
    site.ami_tool(Role::AmiAdmin).import(&file, true)?;
    let telegrams = fleet::telegrams(&vectors);
    let opens = telegrams.iter().filter(|telegram| {
        let request = &telegram.request;
        let named = request.meter.is_some() || request.system_title.is_some();
        telegram.verdict == "OK" && !named && request.security_setup.is_none()
    });
    let longest = opens.max_by_key(|telegram| telegram.request.apdu.len());
    Ok(hex::decode(&longest.ok_or("no telegram opens by itself")?.request.apdu)?)
}

/// The server's memory, by its high-water mark.
struct Memory(u32);

impl Memory {
    fn watch(pid: u32) -> Self {
        // Where the kernel does not allow that, the mark is that of the whole run.
        let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
        Self(pid)
    }

    fn peak_mib(&self) -> Result<u64, Box<dyn Error>> {
        let status =
            fs::read_to_string(Path::new("/proc").join(self.0.to_string()).join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()).ok_or("no VmHWM")?;
        Ok(kib.parse::<u64>()?.div_ceil(1 << 10))
    }
}

fn line(finding: &Finding, bounds: &Bounds) -> String {
    let said = finding.errors.1.as_deref().unwrap_or_default();
    let mark = if finding.holds(bounds) { "holds" } else { "DOES NOT HOLD" };
    format!("{}: {mark} {said}", finding.attack.name())
}

fn render(findings: &[Finding], bounds: &Bounds) -> String {
    const COLUMNS: [Column; 8] = [
        ("attack", 24),
        ("quiet p99", 12),
        ("p99", 12),
        ("ratio", 8),
        ("errors", 14),
        ("memory", 10),
        ("healed", 10),
        ("", 16),
    ];
    let rows: Vec<Vec<Cell>> = findings
        .iter()
        .map(|finding| {
            let holds = finding.holds(bounds);
            let verdict = match (finding.ended, holds) {
                (true, _) => "server ended",
                (false, true) => "holds",
                (false, false) => "does not hold",
            };
            let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
            vec![
                finding.attack.name().into(),
                ms(finding.quiet_p99).into(),
                ms(finding.attacked_p99).into(),
                format!("{:.2}", finding.ratio(bounds.floor)).into(),
                format!("{} of {}", finding.errors.0, finding.calls).into(),
                format!("{} MiB", finding.rss_mib).into(),
                format!("{:.1} s", finding.healed_after.as_secs_f64()).into(),
                Cell { text: verdict.into(), tone: if holds { Tone::Good } else { Tone::Bad } },
            ]
        })
        .collect();
    table::render(&COLUMNS, &rows, false)
}

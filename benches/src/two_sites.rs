//! What two sites cost: a full copy, the lag of changes, a small difference, a proof of all blocks, and what the primary
//! pays for its follower.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Parser;
use futures_util::{StreamExt as _, future::try_join_all, stream};
use kms_client::{
    ClientConfig, FollowingStatus, ImportRules, KeyBytes, KeyKind, KmsClient, MeterId, MeterRecord,
    NewKey, NewMeter, PackedBatch, Place, Replicated, SiteStatus,
};
use kms_core::ports::Clock as _;
use kms_server::app::SystemClock;
use softhsm_tests::{
    Pair, Programs, Role, Running, Setting, Site, SiteOptions,
    proxy::{Plan, Proxy},
};

use crate::{
    Error,
    copying::{Databases, Place as Stored},
    fleet::{self, Telegrams},
    home, in_process,
    load::{self, Clients},
    measure::quantile,
    process::{cpu_time, hardware},
};

/// The longest wait for the other site.
const PATIENCE: Duration = Duration::from_secs(1_200);
/// Between two looks at a status.
const LOOK: Duration = Duration::from_millis(20);
/// Between two messages of changes.
const TICK: Duration = Duration::from_millis(50);
/// Seconds between two rounds of proofs, as the service has them by itself.
const PROVES: &str = "60";
/// Fewer bytes in two seconds are heartbeats and looks.
const QUIET_BYTES: u64 = 200_000;
/// A meter has a GUEK and a GAK.
const KEYS_A_METER: u32 = 2;

/// Two sites on this machine: what replication costs
#[derive(Clone, Debug, Parser)]
struct Options {
    /// Meters that are copied
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1_024..))]
    meters: u32,
    /// Blocks of the key domain. A tenth of the default and of the meters is what a million have a block
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    blocks: Option<u32>,
    /// Key changes a second
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(40..))]
    rate: u32,
    /// Seconds of each load
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Both sites on this PostgreSQL: the directory of its socket. `benches/postgres.sh` makes one
    #[arg(long, value_name = "DIRECTORY")]
    postgres: Option<PathBuf>,
}

/// The program.
pub fn main() -> ExitCode {
    home::told(|| {
        let options = Options::parse();
        home::build_programs()?;
        in_process::all_threads()?.block_on(run(&options))
    })
}

async fn run(options: &Options) -> Result<(), Error> {
    let dir = tempfile::Builder::new().prefix("kms-sites-").tempdir_in(home::memory())?;
    // Those of the load are new ones, each time.
    let more = options.rate / KEYS_A_METER * u32::try_from(options.seconds)? * 3;
    let stored = Stored::of(options.postgres.as_deref());
    let of = |site| {
        let mut of_site = site_options(options.meters + more);
        of_site.block_count = options.blocks.unwrap_or(of_site.block_count);
        of_site.settings.extend(stored.settings(site));
        of_site
    };
    let pair =
        Pair::make_of(dir.path(), &Programs::find()?, [&of(Databases::A), &of(Databases::B)])?;
    let between = proxied(&pair).await?;
    let (a, b) = tokio::task::block_in_place(|| pair.start())?;
    let both = [connect(&pair.a).await?, connect(&pair.b).await?];
    println!("{} meters, SoftHSM and {stored} at both sites; {}\n", options.meters, hardware());

    b.stop()?;
    import(&both[0], 0..options.meters).await?;
    let mut bench = Bench { pair: &pair, stored, both, between, b: None, next: options.meters };
    bench.full_copy(dir.path(), options.meters).await?;
    bench.difference(options.meters).await?;
    let with = bench.lag(options, a.pid()).await?;
    bench.throughput(options, a.pid(), with).await?;
    a.stop()?;
    bench.proof().await
}

fn site_options(meters: u32) -> SiteOptions {
    let mut options = home::options(meters);
    let set = |section, key, value: &str| Setting { section, key, value: value.to_owned() };
    options.settings.push(set("import", "allow_clear", "true"));
    // As a site has it that says nothing of it; tests prove all of the time.
    options.settings.push(set("peer", "prove_interval_s", PROVES));
    options.settings.push(set("peer", "proof_age_max_s", "900"));
    options
}

/// Puts a proxy that counts bytes between the second site and the first one.
async fn proxied(pair: &Pair) -> Result<Proxy, Error> {
    let proxy = Proxy::start(([127, 0, 0, 1], pair.a.port()).into(), |_| Plan::PASS).await?;
    let kms_toml = &pair.b.places().kms_toml;
    let text = fs::read_to_string(kms_toml)?;
    let (of_a, of_proxy) =
        (format!(":{}\"", pair.a.port()), format!(":{}\"", proxy.address().port()));
    fs::write(kms_toml, text.replace(&of_a, &of_proxy))?;
    Ok(proxy)
}

async fn connect(site: &Site) -> Result<KmsClient, Error> {
    Ok(KmsClient::connect(ClientConfig::load(&site.client_toml(Role::Dev))?).await?)
}

/// A meter of the fleet, as a line of an import.
fn record(n: u32) -> Result<MeterRecord, Error> {
    let (guek, gak) = fleet::keys(n);
    let key = |kind, bytes: [u8; 16]| {
        let digits: String = bytes.iter().map(|byte| format!("{byte:02X}")).collect();
        let value = KeyBytes::from_hex(&digits)?;
        Ok::<_, Error>(NewKey { kind, value, security_setup: 0, protection: None })
    };
    let meter = NewMeter {
        meter_id: MeterId::new(&format!("meter-{n}"))?,
        system_title: fleet::title(n),
        logical_device_name: String::new(),
        keys: vec![key(KeyKind::Guek, guek)?, key(KeyKind::Gak, gak)?],
        policy: None,
    };
    Ok(MeterRecord { place: Place::Line(n.into()), meter })
}

/// Imports meters of the fleet; how many of them are not known to be replicated.
async fn import(client: &KmsClient, meters: std::ops::Range<u32>) -> Result<u64, Error> {
    let mut records = meters.map(record).collect::<Result<Vec<_>, _>>()?;
    records.sort_by_key(|record| record.meter.storage_order());
    let mut results = client.meters().import(stream::iter(records), ImportRules::default());
    let mut unreplicated = 0;
    while let Some(result) = results.next().await {
        let result = result?;
        if !result.code.is_empty() {
            return Err(format!("a meter was refused: {result:?}").into());
        }
        unreplicated += u64::from(result.replicated != Replicated::Replicated);
    }
    Ok(unreplicated)
}

/// Decryption, and what the primary had of the processor.
struct Load {
    items_a_core_second: f64,
    cores: f64,
}

struct Bench<'a> {
    pair: &'a Pair,
    stored: Stored,
    both: [KmsClient; 2],
    between: Proxy,
    b: Option<Running>,
    /// The next meter of the fleet that is new.
    next: u32,
}

impl Bench<'_> {
    /// The second site starts with nothing and takes all over.
    async fn full_copy(&mut self, dir: &Path, meters: u32) -> Result<(), Error> {
        let bytes = self.bytes();
        self.b = Some(self.pair.b.start()?);
        let begun = self.until(|following| following.records_adopted > 0).await?;
        let done = self.until(|following| following.records_adopted >= meters.into()).await?;
        let (copied, bytes) = (done - begun, self.bytes() - bytes);
        let (own, rows) = self.stored.own_copy(&self.pair.a, dir)?;
        if rows != u64::from(meters) {
            return Err(format!("{rows} records were copied, and {meters} are there").into());
        }
        println!(
            "full copy                    {:8.2} s, {:.0} meters/s, {} bytes a meter",
            copied.as_secs_f64(),
            f64::from(meters) / copied.as_secs_f64(),
            bytes / u64::from(meters)
        );
        println!(
            "  the database's own copy    {:8.2} s; ratio {:.2}",
            own.as_secs_f64(),
            copied.as_secs_f64() / own.as_secs_f64()
        );
        Ok(())
    }

    /// All blocks are proved anew, a second between two rounds: how old the oldest proof gets.
    async fn proof(&self) -> Result<(), Error> {
        let kms_toml = &self.pair.a.places().kms_toml;
        let text = fs::read_to_string(kms_toml)?;
        let of = |seconds: &str| format!("prove_interval_s = {seconds}\n");
        fs::write(kms_toml, text.replace(&of(PROVES), &of("1")))?;
        let (a, b) = (self.pair.a.start()?, self.pair.b.start()?);
        tokio::task::block_in_place(|| self.pair.until_proved(&self.pair.a))?;
        let (until, mut oldest) = (Instant::now() + Duration::from_secs(20), 0);
        while Instant::now() < until {
            let status = self.both[0].site_status().await?;
            let readiness = status.replication.and_then(|replication| replication.readiness);
            // The date of the oldest proof; 0: there is none yet.
            let proved_ms = readiness.map_or(0, |readiness| readiness.oldest_proof_ms);
            if proved_ms > 0 {
                oldest = oldest.max(SystemClock::new().unix_ms().saturating_sub(proved_ms));
            }
            tokio::time::sleep(LOOK).await;
        }
        println!(
            "oldest proof of all blocks   {:8.2} s, with one second between two rounds",
            Duration::from_millis(oldest).as_secs_f64()
        );
        a.stop()?;
        b.stop()?;
        Ok(())
    }

    /// One meter of a thousand is new: bytes on the wire, beside those of a connection on which nothing changes.
    async fn difference(&mut self, meters: u32) -> Result<(), Error> {
        let quiet = Duration::from_secs(5);
        self.until_quiet().await?;
        let idle = self.bytes();
        tokio::time::sleep(quiet).await;
        let idle = self.bytes() - idle;
        let (before, changed) = (self.bytes(), meters / 1_000);
        let began = Instant::now();
        self.import_new(changed).await?;
        self.until_in_step().await?;
        let took = began.elapsed();
        let of_idle = idle as f64 * took.as_secs_f64() / quiet.as_secs_f64();
        println!(
            "0.1 % changed ({changed:>6})       {:8} bytes in {:.2} s; without a change {of_idle:.0} in that time",
            self.bytes() - before,
            took.as_secs_f64()
        );
        Ok(())
    }

    /// Changes at a steady rate: from sending one to the answer that it is at the other site; and the share of the
    /// primary's processor that they take.
    async fn lag(&mut self, options: &Options, pid: u32) -> Result<f64, Error> {
        let before = cpu_time(pid)?;
        let (took, unreplicated) = self.changes(options).await?;
        let cores = (cpu_time(pid)? - before).as_secs_f64() / options.seconds as f64;
        let ms = |q| quantile(&took, q).as_secs_f64() * 1_000.0;
        println!(
            "change to `replicated`       {:8.1} ms p50, {:.1} ms p99, at {} key changes/s; {unreplicated} of {} meters not replicated in time",
            ms(0.50),
            ms(0.99),
            options.rate,
            u64::from(options.rate / KEYS_A_METER) * options.seconds
        );
        Ok(cores)
    }

    /// Decryption at the primary under the same changes, with its follower and without; then changes alone.
    async fn throughput(&mut self, options: &Options, pid: u32, with: f64) -> Result<(), Error> {
        let telegrams = Telegrams::of_random_meters(options.meters, 65_536)?;
        let batches = load::packed(&telegrams)?;
        let clients = Clients::connect(&self.pair.a.client_toml(Role::Dev)).await?;
        let followed = self.decrypts(options, &clients, &batches, pid).await?;
        if let Some(b) = self.b.take() {
            b.stop()?;
        }
        let alone = self.decrypts(options, &clients, &batches, pid).await?;
        println!(
            "decryption while it changes  {:8.0} items a core second with a follower, {:.0} alone; ratio {:.3}",
            followed.items_a_core_second,
            alone.items_a_core_second,
            followed.items_a_core_second / alone.items_a_core_second
        );
        println!(
            "  the primary's processor    {:8.2} cores and {:.2}; the client and the follower have the rest",
            followed.cores, alone.cores
        );
        let before = cpu_time(pid)?;
        self.changes(options).await?;
        let without = (cpu_time(pid)? - before).as_secs_f64() / options.seconds as f64;
        let cores = std::thread::available_parallelism()?.get() as f64;
        println!(
            "changes and nothing else     {:8.0} ms of a core a second with a follower, {:.0} alone; ratio of what is left of {cores} cores {:.3}",
            with * 1_000.0,
            without * 1_000.0,
            (cores - with) / (cores - without)
        );
        Ok(())
    }

    async fn decrypts(
        &mut self,
        options: &Options,
        clients: &Clients,
        batches: &Arc<Vec<PackedBatch>>,
        pid: u32,
    ) -> Result<Load, Error> {
        let lasting = Duration::from_secs(options.seconds);
        let (before, began) = (cpu_time(pid)?, Instant::now());
        let (items, changes) =
            tokio::join!(clients.stream(batches, lasting), self.changes(options));
        changes?;
        let cpu = (cpu_time(pid)? - before).as_secs_f64();
        let cores = cpu / began.elapsed().as_secs_f64();
        Ok(Load { items_a_core_second: items? as f64 / cpu, cores })
    }

    /// Changes at the rate of the options: how long each message took until it was answered.
    async fn changes(&mut self, options: &Options) -> Result<(Vec<Duration>, u64), Error> {
        let a_tick = options.rate / KEYS_A_METER / (1_000 / TICK.as_millis() as u32);
        let ticks = options.seconds * 1_000 / TICK.as_millis() as u64;
        let mut tick = tokio::time::interval(TICK);
        let mut running = Vec::new();
        for _ in 0..ticks {
            tick.tick().await;
            let (client, meters) = (self.both[0].clone(), self.next..self.next + a_tick);
            self.next += a_tick;
            running.push(tokio::spawn(async move {
                let began = Instant::now();
                import(&client, meters).await.map(|unreplicated| (began.elapsed(), unreplicated))
            }));
        }
        let mut took = Vec::new();
        let mut unreplicated = 0;
        for change in try_join_all(running).await? {
            let (time, not_there) = change?;
            took.push(time);
            unreplicated += not_there;
        }
        took.sort_unstable();
        Ok((took, unreplicated))
    }

    async fn import_new(&mut self, count: u32) -> Result<u64, Error> {
        let meters = self.next..self.next + count;
        self.next += count;
        import(&self.both[0], meters).await
    }

    /// Bytes that went through the proxy, both ways.
    fn bytes(&self) -> u64 {
        (0..self.between.connections())
            .map(|connection| self.between.passed(connection))
            .map(|(up, down)| up + down)
            .sum()
    }

    /// The moment at which this holds of the second site's following.
    async fn until(&self, holds: impl Fn(&FollowingStatus) -> bool) -> Result<Instant, Error> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if let Some(following) = following(self.both[1].site_status().await.ok())
                && holds(&following)
            {
                return Ok(Instant::now());
            }
            tokio::time::sleep(LOOK).await;
        }
        Err("the second site does not follow".into())
    }

    /// Nothing is caught up with any more: the second site has its copy of the audit log, too.
    async fn until_quiet(&self) -> Result<(), Error> {
        let until = Instant::now() + PATIENCE;
        let mut before = self.bytes();
        while Instant::now() < until {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let now = self.bytes();
            if now - before < QUIET_BYTES {
                return Ok(());
            }
            before = now;
        }
        Err("the sites never come to rest".into())
    }

    /// Both have as many meters.
    async fn until_in_step(&self) -> Result<(), Error> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            let [a, b] = [&self.both[0], &self.both[1]].map(|client| client.site_status());
            let (a, b) = (a.await?, b.await?);
            if a.store.meters == b.store.meters {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        Err("the second site does not come in step".into())
    }
}

fn following(status: Option<SiteStatus>) -> Option<FollowingStatus> {
    status?.replication?.following
}

//! Two sites, what is between them, and what befalls them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use kms_client::{ClientConfig, KmsClient, Replicated, Verdict};
use rustix::process::Signal;
use softhsm_tests::{
    Pair, Role, Running, Setting, Site, SiteOptions,
    proxy::{Manner, Plan, Proxy, Way},
};
use sqlx::{Connection as _, Row as _, SqliteConnection};
use tempfile::TempDir;
use tokio::{task::JoinHandle, time::sleep};

use super::{
    common::{
        Numbers,
        fleet::{apdu, push, title},
        programs,
    },
    ledger::Ledger,
};

/// Callers that write.
const WRITERS: usize = 3;
/// The longest time for two sites that reach each other to be in step.
const PATIENCE: Duration = Duration::from_secs(90);
/// Of 100 connections between the sites so many break by chance.
const BROKEN_PERCENT: u64 = 30;

/// What befalls the sites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disaster {
    /// A server is killed with -9, and started again.
    Kill,
    /// The sites don't reach each other for a while.
    Partition,
    /// A server's process stands still for a while.
    Freeze,
}

/// The two sites.
pub(crate) struct World {
    pair: Pair,
    running: [Option<Running>; 2],
    /// Proxies in front of each site, for the other one.
    between: [Proxy; 2],
    cut: Arc<AtomicBool>,
    /// The site that was promoted last.
    primary: usize,
    promoted: u64,
    /// Of them, with the old primary alive.
    beside: u64,
    refused: u64,
    _dir: TempDir,
}

/// What a look at everything found.
pub(crate) struct Found {
    acknowledged: usize,
    not_told: u64,
    replicated: usize,
    set_aside: usize,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} acknowledged ({} as replicated, {} not told): {} set aside, all others open at both sites",
            self.acknowledged, self.replicated, self.not_told, self.set_aside
        )
    }
}

impl World {
    /// Two sites that serve, each behind a proxy for the other one.
    pub(crate) async fn start(seed: u64) -> Self {
        let dir = tempfile::Builder::new().prefix("kms-disasters-").tempdir_in("/dev/shm").unwrap();
        let set = |key, value: &str| Setting { section: "peer", key, value: value.to_owned() };
        let settings = vec![
            set("heartbeat_ms", "200"),
            set("write_wait_ms", "400"),
            set("compare_interval_s", "5"),
        ];
        let options = SiteOptions { settings, ..SiteOptions::default() };
        let pair = Pair::make(dir.path(), &programs(), &options).unwrap();
        let cut = Arc::<AtomicBool>::default();
        let between = [
            Self::proxy(&pair.a, &pair.b, seed, &cut).await,
            Self::proxy(&pair.b, &pair.a, !seed, &cut).await,
        ];
        let (a, b) = tokio::task::block_in_place(|| pair.start()).unwrap();
        Self {
            pair,
            running: [Some(a), Some(b)],
            between,
            cut,
            primary: 0,
            promoted: 0,
            beside: 0,
            refused: 0,
            _dir: dir,
        }
    }

    /// A proxy in front of `of`, which `other` is told to go through.
    async fn proxy(of: &Site, other: &Site, seed: u64, cut: &Arc<AtomicBool>) -> Proxy {
        let cut = Arc::clone(cut);
        let drawn = AtomicU64::new(seed);
        let plan = move |_| {
            if cut.load(Ordering::SeqCst) {
                return Plan::fault(Way::Up, 0, Manner::Swallow);
            }
            let mut numbers = Numbers(drawn.fetch_add(1, Ordering::SeqCst));
            match numbers.below(100) < BROKEN_PERCENT {
                true => Plan::by_seed(numbers.next(), 400_000),
                false => Plan::PASS,
            }
        };
        let proxy = Proxy::start(([127, 0, 0, 1], of.port()).into(), plan).await.unwrap();
        let kms_toml = &other.places().kms_toml;
        let text = std::fs::read_to_string(kms_toml).unwrap();
        let through = format!("localhost:{}\"]", proxy.address().port());
        let text = text.replace(&format!("localhost:{}\"]", of.port()), &through);
        assert!(text.contains(&through), "the peer's endpoint is not where it was");
        std::fs::write(kms_toml, text).unwrap();
        proxy
    }

    fn site(&self, at: usize) -> &Site {
        if at == 0 { &self.pair.a } else { &self.pair.b }
    }

    /// Callers that know both sites.
    pub(crate) fn writers(&self, ledger: &Ledger) -> Vec<JoinHandle<()>> {
        let path = self.pair.client_toml(Role::Dev).unwrap();
        (0..WRITERS).map(|_| ledger.writer(ClientConfig::load(&path).unwrap())).collect()
    }

    /// One disaster, by chance with a promotion in its midst.
    pub(crate) async fn befall(&mut self, what: Disaster, numbers: &mut Numbers) {
        sleep(Duration::from_millis(numbers.below(400))).await;
        let site = numbers.below(2) as usize;
        let promotes = numbers.below(100) < 30;
        let lasting = Duration::from_millis(match what {
            Disaster::Kill => numbers.below(300),
            Disaster::Partition | Disaster::Freeze => 100 + numbers.below(2_000),
        });
        match what {
            Disaster::Kill => {
                self.running[site].take().unwrap().kill_9().unwrap();
                self.promote_beside(site, promotes, false);
                sleep(lasting).await;
                self.running[site] = Some(self.started(site));
            }
            Disaster::Freeze => {
                self.signal(site, Signal::STOP);
                self.promote_beside(site, promotes, true);
                sleep(lasting).await;
                self.signal(site, Signal::CONT);
            }
            Disaster::Partition => {
                self.cut.store(true, Ordering::SeqCst);
                self.between.iter().for_each(Proxy::swallow_all);
                self.promote_beside(self.primary, promotes, true);
                sleep(lasting).await;
                self.heal().await;
            }
        }
    }

    fn started(&self, site: usize) -> Running {
        tokio::task::block_in_place(|| self.site(site).start()).unwrap()
    }

    fn signal(&self, site: usize, signal: Signal) {
        self.running[site].as_ref().unwrap().signal(signal).unwrap();
    }

    /// The other site is promoted, if this one is the primary.
    fn promote_beside(&mut self, lost: usize, promotes: bool, alive: bool) {
        let other = 1 - lost;
        if !promotes || lost != self.primary {
            return;
        }
        let admin = self.site(other).ami_tool(Role::AmiAdmin);
        let words = ["site", "promote", "--primary-is-lost", "--yes"];
        let done = tokio::task::block_in_place(|| admin.run(&words, "")).unwrap();
        if done.status.success() {
            self.primary = other;
            self.promoted += 1;
            self.beside += u64::from(alive);
        } else {
            // It is a primary that nobody has told yet.
            self.refused += 1;
        }
    }

    /// The sites reach each other.
    pub(crate) async fn heal(&self) {
        self.cut.store(false, Ordering::SeqCst);
        self.between.iter().for_each(Proxy::reset_all);
    }

    /// Waits until one site writes, the other one follows, and both have the same blocks.
    pub(crate) async fn until_in_step(&self) {
        let began = Instant::now();
        loop {
            let [a, b] = [0, 1].map(|site| contents(self.site(site)));
            let (a, b) = (a.await, b.await);
            let writers = a.writes + b.writes;
            // Callers may be writing: what counts is that they are the same at one moment.
            if writers == 1 && a.rows == b.rows {
                return;
            }
            if began.elapsed() > PATIENCE {
                let logs =
                    self.running.iter().flatten().map(|it| it.log_tail()).collect::<Vec<_>>();
                panic!("the sites are not in step, {writers} write: {}", logs.join("\n----\n"));
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Each meter that was acknowledged opens at both sites, or was set aside.
    pub(crate) async fn look(&self, ledger: &Ledger) -> Found {
        let told = ledger.told();
        let mut aside = BTreeSet::new();
        for site in [0, 1] {
            aside.extend(contents(self.site(site)).await.aside);
        }
        let gone = self.gone(&told).await;
        let mut set_aside = 0;
        for number in &gone {
            let key = format!("01{}", hex::encode_upper(title(*number).as_bytes()));
            assert!(aside.contains(&key), "meter {number} was acknowledged and is nowhere");
            assert_ne!(
                told[number],
                Replicated::Replicated,
                "meter {number} was told to be replicated and was set aside"
            );
            set_aside += 1;
        }
        let replicated = told.values().filter(|it| **it == Replicated::Replicated).count();
        Found { acknowledged: told.len(), not_told: ledger.not_told(), replicated, set_aside }
    }

    /// The acknowledged meters whose next push does not open. The sites agree about each.
    async fn gone(&self, told: &BTreeMap<u64, Replicated>) -> BTreeSet<u64> {
        let mut seen = Vec::new();
        for site in [0, 1] {
            let config = ClientConfig::load(&self.site(site).client_toml(Role::Dev)).unwrap();
            let client = KmsClient::connect(config).await.unwrap();
            let pushes: Vec<_> = told.keys().map(|number| apdu(push(*number))).collect();
            let opened = client.decrypt_batch(pushes).await.unwrap();
            let mut gone = BTreeSet::new();
            for (number, opened) in told.keys().zip(opened) {
                match opened.verdict() {
                    Verdict::Ok => {}
                    Verdict::UnknownMeter => drop(gone.insert(*number)),
                    verdict => panic!("meter {number} at site {site}: {verdict:?}"),
                }
            }
            seen.push(gone);
        }
        assert_eq!(seen[0], seen[1], "the sites differ");
        seen.remove(0)
    }

    /// What was done to the sites' roles.
    pub(crate) fn told(&self) -> String {
        let Self { promoted, beside, refused, .. } = self;
        format!(
            "{promoted} promotions, {beside} of them with the old primary alive; {refused} refused"
        )
    }

    /// Ends both servers in order.
    pub(crate) fn stop(self) {
        for running in self.running.into_iter().flatten() {
            running.stop().unwrap();
        }
    }
}

/// A database as it is stored.
struct Contents {
    /// Heads and records, byte for byte.
    rows: Vec<String>,
    /// Keys of records that were set aside.
    aside: Vec<String>,
    /// 1: it writes.
    writes: i64,
}

async fn contents(site: &Site) -> Contents {
    let url = format!("sqlite://{}", site.places().data.join("kms.db").display());
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    let mut of = async |query: &'static str| -> Vec<String> {
        let rows = sqlx::query(query).fetch_all(&mut database).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    };
    let mut rows = of("SELECT block || '/' || secret_version || '/' || epoch || '/' || sequence || '/' || count || '/' || \
         hex(digest) || '/' || hex(mac) FROM blocks ORDER BY block")
    .await;
    rows.extend(
        of("SELECT block || '/' || hex(key) || '/' || epoch || '/' || sequence || '/' || hex(mac) || '/' || \
         hex(body) FROM records ORDER BY block, key")
        .await,
    );
    let aside = of("SELECT hex(key) FROM divergence ORDER BY key").await;
    let writes = of("SELECT CAST(writes AS TEXT) FROM role").await;
    database.close().await.unwrap();
    Contents { rows, aside, writes: i64::from(writes == ["1"]) }
}

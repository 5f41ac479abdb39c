//! What befalls two sites, and what has to hold all the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use kms_client::{ClientConfig, KmsClient, Replicated, Verdict};
use rustix::process::Signal;
use softhsm_tests::{Namespace, Role, Running, proxy::Proxy};
use tokio::{
    task::{JoinHandle, block_in_place},
    time::sleep,
};

use super::{
    common::{
        Numbers,
        fleet::{apdu, push, title},
    },
    ledger::Ledger,
    sites::{Kind, Sites},
    stored::Stored,
};

/// Callers that write.
const WRITERS: usize = 3;
/// The longest time for two sites that reach each other to be in step.
const PATIENCE: Duration = Duration::from_secs(120);

/// What befalls the sites.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Disaster {
    /// A server is killed with -9, and started again; or all of a site's.
    Kill,
    /// The sites don't reach each other for a while.
    Partition,
    /// A server's process stands still for a while; or all of a site's.
    Freeze,
    /// The first site's database is killed with -9, and its standby takes over.
    DatabaseFailover,
}

/// What was done so far.
#[derive(Default)]
pub(crate) struct Done {
    pub(crate) disasters: BTreeMap<Disaster, u64>,
    pub(crate) promoted: u64,
    /// Of them, with the old primary alive.
    pub(crate) beside: u64,
    pub(crate) refused: u64,
    /// Servers that ended by themselves after a failover, and were started again.
    pub(crate) ended: u64,
}

/// The sites, and what became of them.
pub(crate) struct World {
    sites: Sites,
    /// The site that was promoted last.
    primary: usize,
    pub(crate) done: Done,
}

/// What a look at everything found.
pub(crate) struct Found {
    pub(crate) acknowledged: usize,
    pub(crate) not_told: u64,
    pub(crate) replicated: usize,
    pub(crate) set_aside: usize,
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
    pub(crate) fn new(sites: Sites) -> Self {
        Self { sites, primary: 0, done: Done::default() }
    }

    /// Callers that know both sites.
    pub(crate) fn writers(&self, ledger: &Ledger) -> Vec<JoinHandle<()>> {
        let path = self.sites.client_toml();
        (0..WRITERS).map(|_| ledger.writer(ClientConfig::load(path).unwrap())).collect()
    }

    /// One disaster, by chance with a promotion in its midst.
    pub(crate) async fn befall(&mut self, what: Disaster, numbers: &mut Numbers) {
        sleep(Duration::from_millis(numbers.below(400))).await;
        self.tend();
        *self.done.disasters.entry(what).or_default() += 1;
        let promotes = numbers.below(100) < 30;
        let lasting = Duration::from_millis(match what {
            Disaster::Kill | Disaster::DatabaseFailover => numbers.below(300),
            Disaster::Partition | Disaster::Freeze => 100 + numbers.below(2_000),
        });
        match what {
            Disaster::Kill => {
                let (site, struck) = self.struck(numbers);
                for at in &struck {
                    self.sites.servers[*at].running.take().unwrap().kill_9().unwrap();
                }
                self.promote_beside(site, promotes, !self.is_all_of(site, &struck));
                sleep(lasting).await;
                for at in struck {
                    self.start(at);
                }
            }
            Disaster::Freeze => {
                let (site, struck) = self.struck(numbers);
                self.signal(&struck, Signal::STOP);
                self.promote_beside(site, promotes, true);
                sleep(lasting).await;
                self.signal(&struck, Signal::CONT);
            }
            Disaster::Partition => {
                self.part(numbers);
                self.promote_beside(self.primary, promotes, true);
                sleep(lasting).await;
                self.heal().await;
            }
            Disaster::DatabaseFailover => {
                let Stored::Postgres(databases) = &mut self.sites.stored[0] else {
                    panic!("no database of these sites fails over");
                };
                block_in_place(|| databases.fail_over());
                self.promote_beside(0, promotes, true);
                sleep(lasting).await;
            }
        }
    }

    /// A site, and those of its servers that are struck: one, or all.
    fn struck(&self, numbers: &mut Numbers) -> (usize, Vec<usize>) {
        let site = numbers.below(2) as usize;
        let servers = 0..self.sites.servers.len();
        let mut all: Vec<usize> = servers.filter(|at| self.sites.servers[*at].of == site).collect();
        if numbers.below(3) > 0 {
            let one = all[numbers.below(all.len() as u64) as usize];
            all = vec![one];
        }
        (site, all)
    }

    fn is_all_of(&self, site: usize, struck: &[usize]) -> bool {
        self.sites.servers.iter().filter(|server| server.of == site).count() == struck.len()
    }

    /// Either the way between the sites is gone, or all ways to one of them: its callers' as well.
    fn part(&self, numbers: &mut Numbers) {
        match self.sites.networks.as_slice() {
            [_, _] if numbers.below(2) == 0 => {
                self.sites.networks[numbers.below(2) as usize].cut(true).unwrap();
            }
            _ => {
                self.sites.cut.store(true, Ordering::SeqCst);
                self.sites.between.iter().for_each(Proxy::swallow_all);
            }
        }
    }

    /// The sites reach each other.
    pub(crate) async fn heal(&self) {
        for network in &self.sites.networks {
            Namespace::cut(network, false).unwrap();
        }
        self.sites.cut.store(false, Ordering::SeqCst);
        self.sites.between.iter().for_each(Proxy::reset_all);
    }

    fn start(&mut self, at: usize) {
        let running = block_in_place(|| self.sites.server(at).start()).unwrap();
        self.sites.servers[at].running = Some(running);
    }

    /// A server that ended by itself is started again, as the system does it. It may, where its database failed over.
    fn tend(&mut self) {
        for at in 0..self.sites.servers.len() {
            let running = self.sites.servers[at].running.as_mut().unwrap();
            let Some(status) = running.ended().unwrap() else { continue };
            let failed_over = self.done.disasters.contains_key(&Disaster::DatabaseFailover);
            assert!(failed_over, "a server ended by itself with {status}: {}", running.log_tail());
            self.done.ended += 1;
            self.start(at);
        }
    }

    fn signal(&self, struck: &[usize], signal: Signal) {
        for at in struck {
            self.sites.servers[*at].running.as_ref().unwrap().signal(signal).unwrap();
        }
    }

    /// The other site is promoted, if this one is the primary.
    fn promote_beside(&mut self, lost: usize, promotes: bool, alive: bool) {
        let other = 1 - lost;
        if !promotes || lost != self.primary {
            return;
        }
        let admin = self.sites.site(other).ami_tool(Role::AmiAdmin);
        let words = ["site", "promote", "--primary-is-lost", "--yes"];
        let done = block_in_place(|| admin.run(&words, "")).unwrap();
        if done.status.success() {
            self.primary = other;
            self.done.promoted += 1;
            self.done.beside += u64::from(alive);
        } else {
            // It is a primary that nobody has told yet, or nobody reaches it.
            self.done.refused += 1;
        }
    }

    /// Waits until one site writes and the other one has all that was there a moment ago. Callers go on.
    pub(crate) async fn until_followed(&mut self) {
        let began = Instant::now();
        loop {
            self.tend();
            let [a, b] = &self.sites.stored;
            let writer_and_other = match (a.writes().await, b.writes().await) {
                (true, false) => Some((a, b)),
                (false, true) => Some((b, a)),
                _ => None,
            };
            if let Some((writer, other)) = writer_and_other {
                let (due, there) = (writer.heads().await, other.heads().await);
                // Of one block each; epochs count first.
                if due.iter().zip(&there).all(|(due, there)| due <= there) {
                    return;
                }
            }
            self.give_up_after(began, "the sites do not follow each other");
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until one site writes and both have the same blocks, byte for byte. Nobody writes meanwhile.
    pub(crate) async fn until_in_step(&mut self) {
        let began = Instant::now();
        loop {
            self.tend();
            let [a, b] = &self.sites.stored;
            let (a, b) = (a.contents().await, b.contents().await);
            if a.writes + b.writes == 1 && a.rows == b.rows {
                return;
            }
            self.give_up_after(began, "the sites are not in step");
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn give_up_after(&self, began: Instant, what: &str) {
        if began.elapsed() > PATIENCE {
            let running = self.sites.servers.iter().filter_map(|it| it.running.as_ref());
            let logs = running.map(Running::log_tail).collect::<Vec<_>>();
            panic!("{what}: {}", logs.join("\n----\n"));
        }
    }

    /// Each meter that was acknowledged opens at both sites, or was set aside.
    pub(crate) async fn look(&self, ledger: &Ledger) -> Found {
        let told = ledger.told();
        let mut aside = BTreeSet::new();
        for stored in &self.sites.stored {
            aside.extend(stored.contents().await.aside);
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

    /// The acknowledged meters whose next push does not open. All servers agree about each.
    async fn gone(&self, told: &BTreeMap<u64, Replicated>) -> BTreeSet<u64> {
        let mut seen: Option<BTreeSet<u64>> = None;
        for server in 0..self.sites.servers.len() {
            let toml = self.sites.server(server).client_toml(Role::Dev);
            let client = KmsClient::connect(ClientConfig::load(&toml).unwrap()).await.unwrap();
            let pushes: Vec<_> = told.keys().map(|number| apdu(push(*number))).collect();
            let opened = client.decrypt_batch(pushes).await.unwrap();
            let mut gone = BTreeSet::new();
            for (number, opened) in told.keys().zip(opened) {
                match opened.verdict() {
                    Verdict::Ok => {}
                    Verdict::UnknownMeter => drop(gone.insert(*number)),
                    verdict => panic!("meter {number} at server {server}: {verdict:?}"),
                }
            }
            assert!(seen.as_ref().is_none_or(|seen| *seen == gone), "the servers differ");
            seen = Some(gone);
        }
        seen.unwrap()
    }

    pub(crate) fn kind(&self) -> Kind {
        self.sites.kind
    }

    /// Ends all servers in order.
    pub(crate) fn stop(self) {
        for running in self.sites.servers.into_iter().filter_map(|server| server.running) {
            running.stop().unwrap();
        }
    }
}

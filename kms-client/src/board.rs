//! The board: what all calls of a client know of the sites together, and the questions that nobody's call has
//! to ask, whether a silent site is there and whether a lost one is back.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::link::{Link, LinkError};
use crate::places::{Place, Servers};
use crate::sites::{Errand, Moment, Overdue, PING_BOUND, PROBE_BOUND, Sites};

/// The sites' servers, and what is known of each site.
pub(crate) struct Board {
    servers: Vec<Servers>,
    sites: Mutex<Sites>,
    begun: Instant,
    /// When each site last answered anything; microseconds.
    heard: Vec<AtomicU64>,
    /// Counts the times that a site went down or came back.
    changes: watch::Sender<u64>,
}

impl Board {
    pub(crate) fn new(servers: Vec<Servers>) -> Self {
        Self {
            sites: Mutex::new(Sites::new(servers.len())),
            heard: servers.iter().map(|_| AtomicU64::new(0)).collect(),
            servers,
            begun: Instant::now(),
            changes: watch::Sender::new(0),
        }
    }

    pub(crate) fn servers(&self) -> &[Servers] {
        &self.servers
    }

    fn sites(&self) -> MutexGuard<'_, Sites> {
        self.sites.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn now(&self) -> Moment {
        self.begun.elapsed()
    }

    /// An instant as a moment.
    pub(crate) fn moment(&self, instant: Instant) -> Moment {
        instant.saturating_duration_since(self.begun)
    }

    /// Told of each time that a site goes down or comes back.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(crate) fn is_up(&self, site: usize) -> bool {
        self.sites().is_up(site)
    }

    /// The site where an errand begins.
    pub(crate) fn first(&self, errand: Errand) -> usize {
        if self.servers.len() == 1 {
            return 0;
        }
        let mut sites = self.sites();
        if errand == Errand::Read {
            sites.begun();
        }
        sites.first(errand)
    }

    /// The site after those that were tried.
    pub(crate) fn next(&self, errand: Errand, tried: &[usize]) -> Option<usize> {
        self.sites().next(errand, tried)
    }

    /// A site has answered, whatever it said.
    pub(crate) fn heard(&self, site: usize) {
        let now = u64::try_from(self.now().as_micros()).unwrap_or(u64::MAX);
        self.heard[site].fetch_max(now, Ordering::Relaxed);
    }

    /// A write was taken by this site.
    pub(crate) fn wrote(&self, site: usize) {
        self.sites().wrote(site);
    }

    /// A change was refused by this site: another one is the primary.
    pub(crate) fn not_primary(&self, site: usize) {
        self.sites().not_primary(site);
    }

    /// A call that went to `site` at `sent` has no answer although it should: what is to be done about the
    /// call. The ping, if one is needed, is done here.
    pub(crate) fn overdue(
        self: &Arc<Self>,
        site: usize,
        sent: Moment,
        may_ask: bool,
    ) -> Option<usize> {
        let heard = Duration::from_micros(self.heard[site].load(Ordering::Relaxed)) > sent;
        let Overdue { ask, ping } = self.sites().overdue(site, heard, may_ask);
        if ping {
            let board = Arc::clone(self);
            tokio::spawn(async move { board.ping(site).await });
        }
        ask
    }

    async fn ping(self: Arc<Self>, site: usize) {
        let servers = &self.servers[site];
        let server = servers.current();
        let answer = timeout(PING_BOUND, health(servers.link(server))).await;
        let answered = matches!(answer, Ok(Answer::Serving | Answer::NotServing));
        if answered {
            self.heard(site);
        } else {
            servers.leave(server);
        }
        if self.sites().pinged(self.now(), site, answered) {
            self.lost(site);
        }
    }

    /// The site to ask instead of one that was found to be down meanwhile; `None`: it is up.
    pub(crate) fn instead_of(&self, site: usize) -> Option<usize> {
        let sites = self.sites();
        let other = || sites.next(Errand::OneRead, &[site]).filter(|other| sites.is_up(*other));
        if sites.is_up(site) { None } else { other() }
    }

    /// A server does nothing; the site's others may.
    pub(crate) fn server_failed(self: &Arc<Self>, place: Place) {
        self.servers[place.site].leave(place.server);
        if self.servers[place.site].count() == 1 {
            self.failed(place.site);
        }
    }

    /// No server of a site does anything.
    pub(crate) fn failed(self: &Arc<Self>, site: usize) {
        if self.servers.len() > 1 && self.sites().failed(self.now(), site) {
            self.lost(site);
        }
    }

    /// Calls that wait for the site move on; it is probed until it is back, or the client is dropped.
    fn lost(self: &Arc<Self>, site: usize) {
        self.changes.send_modify(|changes| *changes += 1);
        tokio::spawn(Self::probe_until_up(Arc::downgrade(self), site));
    }

    async fn probe_until_up(board: Weak<Self>, site: usize) {
        loop {
            let wait = match board.upgrade() {
                Some(board) => board.sites().probe_after(site, random()),
                None => return,
            };
            sleep(wait).await;
            let Some(board) = board.upgrade() else { return };
            if board.probe(site).await {
                board.changes.send_modify(|changes| *changes += 1);
                return;
            }
        }
    }

    /// Asks one server of a site after the other. Whether the site is back.
    async fn probe(&self, site: usize) -> bool {
        let servers = &self.servers[site];
        let mut is_good = false;
        for _ in 0..servers.count() {
            let server = servers.current();
            let answer = timeout(PROBE_BOUND, health(servers.link(server))).await;
            is_good = matches!(answer, Ok(Answer::Serving));
            if is_good {
                self.heard(site);
                break;
            }
            servers.leave(server);
        }
        self.sites().probed(self.now(), site, is_good)
    }
}

/// What a server says when it is asked how it is.
enum Answer {
    Serving,
    NotServing,
    Nothing,
}

async fn health(link: Link) -> Answer {
    let answer = HealthClient::new(link).check(HealthCheckRequest::default()).await;
    match answer.map(|answer| answer.into_inner().status) {
        Ok(status) if status == ServingStatus::Serving as i32 => Answer::Serving,
        Ok(_) => Answer::NotServing,
        Err(status) => of_refusal(&status),
    }
}

/// One that does not answer this question serves nevertheless: its callers then hear what it has to say.
fn of_refusal(status: &Status) -> Answer {
    match status.code() {
        _ if LinkError::below(status).is_some() => Answer::Nothing,
        Code::Unavailable => Answer::NotServing,
        _ => Answer::Serving,
    }
}

/// Enough randomness to spread clients in time: the standard library's hasher is seeded from the
/// operating system.
pub(crate) fn random() -> u64 {
    RandomState::new().hash_one(0_u8)
}

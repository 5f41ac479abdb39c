//! How far those who follow this server's changes are behind: kept by their sessions, shown in status and metrics.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use kms_core::{moment::Moment, ports::Clock};

/// One that follows this server's changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FollowerStatus {
    /// Its site.
    pub site: String,
    /// How far it is behind.
    pub behind: Behind,
    /// Milliseconds since it last had everything; `None`: it has.
    pub behind_ms: Option<u64>,
}

/// By how much a follower is behind, as far as it has said what it stores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Behind {
    /// Blocks.
    pub blocks: u32,
    /// Changes of these.
    pub changes: u64,
}

/// Those who follow, by their sites. One that comes anew takes the place of its old session.
pub(super) struct Followers {
    clock: Arc<dyn Clock>,
    next: AtomicU64,
    known: Mutex<BTreeMap<String, Follower>>,
}

struct Follower {
    session: u64,
    behind: Behind,
    since: Option<Moment>,
}

impl Followers {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, next: AtomicU64::new(0), known: Mutex::default() }
    }

    /// The place of a session that begins. As many as there are places for followers.
    pub(super) fn begin(self: &Arc<Self>, site: &str) -> Seat {
        let session = self.next.fetch_add(1, Ordering::Relaxed);
        let follower = Follower { session, behind: Behind::default(), since: None };
        self.known().insert(site.to_owned(), follower);
        Seat { followers: Arc::clone(self), site: site.to_owned(), session }
    }

    pub(super) fn all(&self) -> Vec<FollowerStatus> {
        let now = self.clock.now();
        let of = |(site, follower): (&String, &Follower)| FollowerStatus {
            site: site.clone(),
            behind: follower.behind,
            behind_ms: follower.since.map(|since| now.ms_since(since)),
        };
        self.known().iter().map(of).collect()
    }

    /// Whether somebody of this site follows.
    pub(super) fn has(&self, site: &str) -> bool {
        self.known().contains_key(site)
    }

    /// Held for a few assignments, never across an `.await`.
    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Follower>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session's place; it is gone with the session.
pub(super) struct Seat {
    followers: Arc<Followers>,
    site: String,
    session: u64,
}

impl Seat {
    /// The follower is so far behind now.
    pub(super) fn is(&self, behind: Behind) {
        let now = self.followers.clock.now();
        let mut known = self.followers.known();
        let own = known.get_mut(&self.site).filter(|it| it.session == self.session);
        let Some(follower) = own else { return };
        follower.behind = behind;
        follower.since = (behind.blocks > 0).then(|| follower.since.unwrap_or(now));
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut known = self.followers.known();
        if known.get(&self.site).is_some_and(|it| it.session == self.session) {
            known.remove(&self.site);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Time(AtomicU64);

    impl Clock for Time {
        fn unix_ms(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }

        fn now(&self) -> Moment {
            Moment::from_ms(self.unix_ms())
        }
    }

    #[test]
    fn a_follower_is_behind_since_it_last_had_everything_and_gone_with_its_newest_session() {
        let time = Arc::new(Time(AtomicU64::new(1_000)));
        let followers = Arc::new(Followers::new(time.clone()));
        let first = followers.begin("south");
        let told = || -> Vec<_> {
            followers.all().into_iter().map(|it| (it.behind, it.behind_ms)).collect()
        };
        let (none, some) = (Behind::default(), Behind { blocks: 2, changes: 9 });
        let after = |ms: u64, seat: &Seat, behind| {
            time.0.fetch_add(ms, Ordering::Relaxed);
            seat.is(behind);
            told()
        };
        assert_eq!(after(100, &first, some), [(some, Some(0))]);
        assert_eq!(after(100, &first, some), [(some, Some(100))]);
        assert_eq!(after(100, &first, none), [(none, None)]);
        // It came anew before its old connection ended: what that says counts no more.
        let second = followers.begin("south");
        assert_eq!(after(100, &second, some), [(some, Some(0))]);
        assert_eq!(after(100, &first, none), [(some, Some(100))]);
        drop(first);
        assert_eq!(followers.all().len(), 1);
        drop(second);
        assert!(followers.all().is_empty());
    }
}

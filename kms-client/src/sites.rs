//! Sites: where a call begins, when a second site is asked, when one counts as down and when as back. No clock
//! and no socket: a moment and what happened go in, what is to be done comes out.

use std::time::Duration;

/// What a ping may take before its site counts as down. Nothing but the connection and a word are in it.
pub(crate) const PING_BOUND: Duration = Duration::from_millis(300);
/// What a probe of a site that is down may take.
pub(crate) const PROBE_BOUND: Duration = Duration::from_secs(1);
/// The wait before the first probe, and the longest before any.
const PROBE_AFTER: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// Good probes in a row after which a site is back: one answer proves little.
const GOOD_PROBES: u32 = 2;
/// A site that has been up for so long is watched as one that was never down.
const STEADY: Duration = Duration::from_secs(30);
/// One call in so many may be asked of a second site.
const CALLS_A_HEDGE: u32 = 20;
/// Hedges that may be saved up: so many callers may find out together that a site is silent.
const HEDGES_SAVED: u32 = 10;

/// Since the client was made.
pub(crate) type Moment = Duration;

/// An errand: which sites may carry it out, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Errand {
    /// A read that any site answers; a second one is asked where the first is late.
    Read,
    /// A read that goes on at another site when one fails, and is never asked of two at a time.
    OneRead,
    /// What the primary alone knows, or may do any number of times. It stays at one site.
    AtPrimary,
    /// A write, at the primary, once.
    Write,
}

impl Errand {
    /// Any site will do.
    pub(crate) fn reads(self) -> bool {
        matches!(self, Self::Read | Self::OneRead)
    }
}

/// What is to be done about a call that has no answer yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Overdue {
    /// Ask this site, too.
    pub(crate) ask: Option<usize>,
    /// Find out whether the first one is there.
    pub(crate) ping: bool,
}

/// All that is known of the sites. They are numbered in order of preference.
pub(crate) struct Sites {
    sites: Vec<Site>,
    /// The site that writes, as far as is known.
    primary: usize,
    /// Hedges saved, each `CALLS_A_HEDGE` of it.
    saved: u32,
}

#[derive(Default)]
struct Site {
    /// Good probes since it counts as down; `None`: it is up.
    down: Option<u32>,
    /// Probes that failed in a row, and times that it came back only to go.
    level: u32,
    up_since: Moment,
    is_pinged: bool,
}

impl Sites {
    pub(crate) fn new(count: usize) -> Self {
        let sites = std::iter::repeat_with(Site::default).take(count.max(1)).collect();
        Self { sites, primary: 0, saved: HEDGES_SAVED * CALLS_A_HEDGE }
    }

    pub(crate) fn is_up(&self, site: usize) -> bool {
        self.sites[site].down.is_none()
    }

    /// The site where an errand begins.
    pub(crate) fn first(&self, errand: Errand) -> usize {
        let best = (0..self.sites.len()).find(|site| self.is_up(*site));
        if errand.reads() || !self.is_up(self.primary) {
            // Where none is up, the one that is meant is tried like any other.
            return best.unwrap_or(if errand.reads() { 0 } else { self.primary });
        }
        self.primary
    }

    /// The site after those that were tried: one that is up before one that is down.
    pub(crate) fn next(&self, errand: Errand, tried: &[usize]) -> Option<usize> {
        let left = || (0..self.sites.len()).filter(|site| !tried.contains(site));
        let primary = left().find(|site| !errand.reads() && *site == self.primary);
        primary.or_else(|| left().find(|site| self.is_up(*site))).or_else(|| left().next())
    }

    /// A read begins; so many of them earn a hedge.
    pub(crate) fn begun(&mut self) {
        self.saved = (self.saved + 1).min(HEDGES_SAVED * CALLS_A_HEDGE);
    }

    /// A call to `site` has no answer although it should. `heard`: others have had theirs meanwhile.
    pub(crate) fn overdue(&mut self, site: usize, heard: bool, may_ask: bool) -> Overdue {
        let ping = !heard && self.is_up(site) && !self.sites[site].is_pinged;
        self.sites[site].is_pinged |= ping;
        let other = (0..self.sites.len()).find(|other| *other != site && self.is_up(*other));
        let ask = other.filter(|_| may_ask && self.may_hedge(site));
        Overdue { ask, ping }
    }

    /// Whether one more call may be made twice: freely where its site is down, else out of what was saved.
    fn may_hedge(&mut self, site: usize) -> bool {
        if !self.is_up(site) {
            return true;
        }
        let left = self.saved.checked_sub(CALLS_A_HEDGE);
        self.saved = left.unwrap_or(self.saved);
        left.is_some()
    }

    /// The ping of a site has ended. Whether the site counts as down from now on.
    pub(crate) fn pinged(&mut self, at: Moment, site: usize, answered: bool) -> bool {
        self.sites[site].is_pinged = false;
        !answered && self.failed(at, site)
    }

    /// No server of a site does anything. Whether it was up until now: then it is probed from now on.
    pub(crate) fn failed(&mut self, at: Moment, site: usize) -> bool {
        let site = &mut self.sites[site];
        if let Some(good) = &mut site.down {
            *good = 0;
            return false;
        }
        site.level = if at.saturating_sub(site.up_since) < STEADY { site.level + 1 } else { 0 };
        site.down = Some(0);
        true
    }

    /// The wait before the next probe of a site that is down.
    pub(crate) fn probe_after(&self, site: usize, random: u64) -> Duration {
        let (first, longest) = PROBE_AFTER;
        let site = &self.sites[site];
        let level = if site.down == Some(0) { site.level } else { 0 };
        let span = first.saturating_mul(1 << level.min(16)).min(longest);
        // Many clients of one outage do not come back at once.
        let share = u32::try_from(random % 1_000).unwrap_or_default();
        span / 2 + span / 2 * share / 1_000
    }

    /// A probe of a site that is down has ended. Whether the site is up from now on.
    pub(crate) fn probed(&mut self, at: Moment, site: usize, is_good: bool) -> bool {
        let site = &mut self.sites[site];
        let Some(good) = &mut site.down else {
            return true;
        };
        if !is_good {
            (*good, site.level) = (0, site.level.saturating_add(1));
            return false;
        }
        *good += 1;
        if *good < GOOD_PROBES {
            return false;
        }
        (site.down, site.up_since) = (None, at);
        true
    }

    /// A write was taken by this site.
    pub(crate) fn wrote(&mut self, site: usize) {
        self.primary = site;
    }

    /// A change was refused by this site, since it is not the primary.
    pub(crate) fn not_primary(&mut self, site: usize) {
        if self.primary == site {
            self.primary = (0..self.sites.len()).find(|other| *other != site).unwrap_or(site);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NORTH: usize = 0;
    const SOUTH: usize = 1;

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    fn up_again(sites: &mut Sites, site: usize, from: u64) {
        assert!(!sites.probed(at(from), site, true));
        assert!(sites.probed(at(from + 200), site, true));
    }

    #[test]
    fn reads_begin_at_the_preferred_site_leave_it_when_it_is_down_and_come_back() {
        let mut sites = Sites::new(2);
        assert_eq!(sites.first(Errand::Read), NORTH);
        assert!(sites.failed(at(5), NORTH));
        assert!(!sites.failed(at(6), NORTH), "its probes began with the first failure");
        assert_eq!(sites.first(Errand::Read), SOUTH);
        up_again(&mut sites, NORTH, 500);
        assert_eq!(sites.first(Errand::Read), NORTH);
    }

    #[test]
    fn writes_go_to_the_site_that_took_the_last_one() {
        let mut sites = Sites::new(2);
        assert_eq!(sites.first(Errand::Write), NORTH);
        assert_eq!(sites.next(Errand::Write, &[NORTH]), Some(SOUTH));
        sites.wrote(SOUTH);
        assert_eq!(sites.first(Errand::Write), SOUTH);
        assert_eq!(sites.first(Errand::AtPrimary), SOUTH);
        assert_eq!(sites.first(Errand::Read), NORTH);
        assert_eq!(sites.next(Errand::Write, &[SOUTH, NORTH]), None);
        sites.not_primary(NORTH);
        assert_eq!(sites.first(Errand::Write), SOUTH);
        sites.not_primary(SOUTH);
        assert_eq!(sites.first(Errand::Write), NORTH);
    }

    #[test]
    fn a_write_whose_site_is_down_asks_the_other_one_first_and_then_that_one() {
        let mut sites = Sites::new(2);
        sites.failed(at(5), NORTH);
        assert_eq!(sites.first(Errand::Write), SOUTH);
        assert_eq!(sites.next(Errand::Write, &[SOUTH]), Some(NORTH));
    }

    #[test]
    fn a_late_call_is_asked_of_another_site_and_its_own_is_pinged_once() {
        let mut sites = Sites::new(2);
        let both = Overdue { ask: Some(SOUTH), ping: true };
        assert_eq!(sites.overdue(NORTH, false, true), both);
        assert_eq!(sites.overdue(NORTH, false, true), Overdue { ask: Some(SOUTH), ping: false });
        assert!(!sites.pinged(at(600), NORTH, true));
        assert!(sites.is_up(NORTH));
        assert!(sites.overdue(NORTH, false, false).ping);
        assert!(sites.pinged(at(900), NORTH, false));
        assert!(!sites.is_up(NORTH));
    }

    #[test]
    fn a_site_that_answers_others_is_slow_and_not_pinged() {
        let mut sites = Sites::new(2);
        assert!(!sites.overdue(NORTH, true, true).ping);
    }

    #[test]
    fn a_site_that_is_down_is_not_asked_for_help_and_a_lone_one_has_none() {
        let mut sites = Sites::new(2);
        sites.failed(at(1), SOUTH);
        assert_eq!(sites.overdue(NORTH, false, true).ask, None);
        assert_eq!(Sites::new(1).overdue(0, false, true).ask, None);
    }

    #[test]
    fn a_stream_is_never_asked_of_two_sites() {
        assert_eq!(Sites::new(2).overdue(NORTH, false, false).ask, None);
    }

    #[test]
    fn one_good_probe_is_not_enough_and_a_bad_one_begins_anew() {
        let mut sites = Sites::new(2);
        sites.failed(at(0), NORTH);
        assert!(!sites.probed(at(250), NORTH, true));
        assert!(!sites.probed(at(400), NORTH, false));
        assert!(!sites.probed(at(900), NORTH, true));
        assert!(sites.probed(at(1_100), NORTH, true));
    }

    #[test]
    fn a_site_that_comes_and_goes_is_probed_less_and_less_often_and_a_steady_one_soon() {
        let mut sites = Sites::new(2);
        let mut last = Duration::ZERO;
        for round in 0..4 {
            sites.failed(at(round * 1_000), NORTH);
            let wait = sites.probe_after(NORTH, 999);
            assert!(wait > last, "{round}: {wait:?}");
            last = wait;
            up_again(&mut sites, NORTH, round * 1_000 + 100);
        }
        sites.failed(at(60_000), NORTH);
        assert!(sites.probe_after(NORTH, 999) <= PROBE_AFTER.0);
    }

    proptest! {
        #[test]
        fn no_more_than_one_call_in_twenty_is_made_twice(calls in 0_u32..5_000) {
            let mut sites = Sites::new(2);
            let mut hedges = 0;
            for _ in 0..calls {
                sites.begun();
                hedges += u32::from(sites.overdue(NORTH, true, true).ask.is_some());
            }
            prop_assert!(hedges <= HEDGES_SAVED + calls / CALLS_A_HEDGE);
            prop_assert!(hedges >= (calls / CALLS_A_HEDGE).min(calls));
        }

        #[test]
        fn no_probe_waits_longer_than_its_bound(fails in 0_u32..200, random: u64) {
            let mut sites = Sites::new(2);
            sites.failed(at(0), NORTH);
            for n in 0..fails {
                sites.probed(at(u64::from(n)), NORTH, false);
            }
            let wait = sites.probe_after(NORTH, random);
            prop_assert!(wait >= PROBE_AFTER.0 / 2 && wait <= PROBE_AFTER.1);
        }

        #[test]
        fn whatever_happens_every_errand_has_a_site_and_none_is_tried_twice(
            events in proptest::collection::vec((0_u8..6, 0_usize..3, any::<bool>()), 0..60),
        ) {
            let mut sites = Sites::new(3);
            for (n, (event, site, good)) in events.into_iter().enumerate() {
                let now = at(n as u64 * 70);
                match event {
                    0 => drop(sites.failed(now, site)),
                    1 => drop(sites.probed(now, site, good)),
                    2 => drop(sites.overdue(site, good, true)),
                    3 => drop(sites.pinged(now, site, good)),
                    4 => sites.wrote(site),
                    _ => sites.begun(),
                }
                for errand in [Errand::Read, Errand::OneRead, Errand::AtPrimary, Errand::Write] {
                    let mut tried = vec![sites.first(errand)];
                    while let Some(next) = sites.next(errand, &tried) {
                        prop_assert!(!tried.contains(&next));
                        tried.push(next);
                    }
                    prop_assert_eq!(tried.len(), 3);
                }
            }
        }
    }
}

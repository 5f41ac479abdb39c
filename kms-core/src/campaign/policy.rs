//! How a campaign goes about it.

use crate::{Carrier, KeyKind, SecuritySetup, life::choosing::Place};

/// Windows of one policy.
pub const WINDOWS_MAX: usize = 8;
/// Kinds of one policy.
pub const KINDS_MAX: usize = 2;
const DAY_MINUTES: u64 = 24 * 60;
const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
/// 1970-01-01 was a Thursday; bit 0 is Monday.
const FIRST_WEEKDAY: u64 = 3;

/// The policy of a campaign, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What is rotated, in this order.
    pub kinds: Vec<KeyKind>,
    /// Of this security setup.
    pub setup: SecuritySetup,
    /// Of COSEM class 64 in the meters.
    pub class_version: u8,
    /// The association that carries it.
    pub carrier: Carrier,
    /// Meters begun in an hour; 0: as many as are asked for.
    pub rate_per_hour: u32,
    /// Times of the day at which meters are begun; none: always.
    pub windows: Vec<Window>,
    /// Meters of one label between sent and proved.
    pub exposure_cap: u32,
    /// The first ones of each label.
    pub canaries: u32,
    /// Failed ones among 1,000.
    pub error_budget_permille: u32,
    /// Failures of one meter.
    pub tries_max: u8,
    /// Before a meter is tried again.
    pub retry_ms: u64,
    /// How long a lease lasts.
    pub lease_ms: u64,
    /// Failed authentications at which a meter locks.
    pub hls_failures_max: u8,
    /// How long it stays locked.
    pub hls_lock_ms: u64,
}

/// A time of the day, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The first minute.
    pub from_minute: u16,
    /// The first minute after it; lower than the first one: over midnight.
    pub to_minute: u16,
    /// Bit 0: Monday; 0: every day. The day that it begins on.
    pub weekdays: u8,
}

/// A policy that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct BadPolicy {
    /// The field.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            kinds: vec![KeyKind::Guek],
            setup: SecuritySetup(0),
            class_version: 1,
            carrier: Carrier::default(),
            rate_per_hour: 0,
            windows: Vec::new(),
            exposure_cap: 100,
            canaries: 1,
            error_budget_permille: 20,
            tries_max: 5,
            retry_ms: 15 * MINUTE_MS,
            lease_ms: 10 * MINUTE_MS,
            hls_failures_max: 3,
            hls_lock_ms: 15 * MINUTE_MS,
        }
    }
}

impl Policy {
    /// Refused unless a campaign can go by it.
    pub fn check(&self) -> Result<(), BadPolicy> {
        let bad = |field, problem| Err(BadPolicy { field, problem });
        let known = |kind: &KeyKind| matches!(kind, KeyKind::Guek | KeyKind::Gak);
        let is_pair = matches!(&self.kinds[..], [a, b] if a == b);
        if self.kinds.is_empty() || self.kinds.len() > KINDS_MAX || is_pair {
            return bad("kinds", "name GUEK, GAK or both, each once");
        }
        if !self.kinds.iter().all(known) {
            let problem = "a campaign rotates GUEK and GAK: what a meter sends proves these; a KEK is rotated meter by meter \
                           (`ami-tool key stage`), a GBEK by its group";
            return bad("kinds", problem);
        }
        if self.class_version > 1 {
            return bad("class_version", "class 64 has versions 0 and 1");
        }
        let is_window = |it: &Window| {
            let minute = |minute: u16| u64::from(minute) <= DAY_MINUTES;
            minute(it.from_minute)
                && minute(it.to_minute)
                && it.from_minute != it.to_minute
                && it.weekdays < 128
        };
        if self.windows.len() > WINDOWS_MAX || !self.windows.iter().all(is_window) {
            return bad(
                "windows",
                "at most 8, each from a minute of the day (0 to 1440) to another one",
            );
        }
        if self.exposure_cap == 0 || self.tries_max == 0 || self.hls_failures_max == 0 {
            return bad("exposure_cap", "cap, tries and failures are at least 1");
        }
        if self.error_budget_permille > 1_000 {
            return bad("error_budget_permille", "it is a part of 1,000");
        }
        if !(1_000..=24 * HOUR_MS).contains(&self.lease_ms) {
            return bad("lease_s", "a lease lasts a second to a day");
        }
        Ok(())
    }

    /// The places that it rotates, in order.
    pub fn places(&self) -> impl Iterator<Item = Place> + '_ {
        self.kinds.iter().map(|kind| Place { setup: self.setup, kind: *kind })
    }

    /// Whether meters are begun at this time.
    pub fn is_open(&self, now_ms: u64) -> bool {
        self.windows.is_empty() || self.windows.iter().any(|window| window.has(now_ms))
    }

    /// The time that each meter uses up of the pace.
    pub fn pace_ms(&self) -> u64 {
        HOUR_MS.checked_div(self.rate_per_hour.into()).unwrap_or(0)
    }

    /// Pairs that one lease may try.
    pub fn probes(&self) -> usize {
        usize::from(self.hls_failures_max.saturating_sub(1).max(1))
    }
}

impl Window {
    fn has(self, now_ms: u64) -> bool {
        let minutes = now_ms / MINUTE_MS;
        let (day, minute) = (minutes / DAY_MINUTES, minutes % DAY_MINUTES);
        let on = |day: u64| {
            self.weekdays == 0 || self.weekdays & (1 << ((day + FIRST_WEEKDAY) % 7)) != 0
        };
        let (from, to) = (u64::from(self.from_minute), u64::from(self.to_minute));
        if from < to {
            return on(day) && (from..to).contains(&minute);
        }
        (on(day) && minute >= from) || (day > 0 && on(day - 1) && minute < to)
    }
}

//! A moment of the monotonic clock: for spans of time, and never to be shown or stored as a date.

use std::{ops::Add, time::Duration};

/// A moment of this process: milliseconds since some fixed one. Never goes back, and says nothing to
/// another process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// So many milliseconds after the fixed moment.
    pub const fn from_ms(ms: u64) -> Self {
        Self(ms)
    }

    /// Milliseconds after the fixed moment.
    pub const fn as_ms(self) -> u64 {
        self.0
    }

    /// Milliseconds from `earlier` to here; 0 if it is not earlier.
    pub const fn ms_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// A moment by both clocks of a machine. The wall clock may be put back; the monotonic one stands still while a virtual
/// machine is paused, and says nothing to another process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Milliseconds since 1970.
    pub unix_ms: u64,
    /// By the monotonic clock.
    pub moment: Moment,
}

impl Stamp {
    /// Milliseconds since then, as the clock tells it that says more: neither alone makes anything younger.
    pub fn age_ms(self, now: Self) -> u64 {
        let by_wall = now.unix_ms.saturating_sub(self.unix_ms);
        by_wall.max(now.moment.ms_since(self.moment))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_that_says_more_is_believed() {
        let at = |unix_ms, ms| Stamp { unix_ms, moment: Moment::from_ms(ms) };
        assert_eq!(at(1_000, 5).age_ms(at(1_900, 105)), 900, "a paused machine, its clock set");
        assert_eq!(at(1_000, 5).age_ms(at(10, 105)), 100, "the wall clock was put back");
        assert_eq!(at(1_000, 5).age_ms(at(1_000, 5)), 0);
    }

    #[test]
    fn a_span_is_never_negative_and_never_overflows() {
        let (early, late) = (Moment::from_ms(5), Moment::from_ms(12));
        assert_eq!(late.ms_since(early), 7);
        assert_eq!(early.ms_since(late), 0);
        assert_eq!(early + Duration::from_millis(7), late);
        assert_eq!((Moment::from_ms(u64::MAX) + Duration::from_secs(1)).as_ms(), u64::MAX);
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_never_negative_and_never_overflows() {
        let (early, late) = (Moment::from_ms(5), Moment::from_ms(12));
        assert_eq!(late.ms_since(early), 7);
        assert_eq!(early.ms_since(late), 0);
        assert_eq!(early + Duration::from_millis(7), late);
        assert_eq!((Moment::from_ms(u64::MAX) + Duration::from_secs(1)).as_ms(), u64::MAX);
    }
}

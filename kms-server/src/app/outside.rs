//! The real clock and the real randomness: the only ones that a production build can have.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use kms_core::{
    moment::Moment,
    ports::{Clock, Randomness, RandomnessFailed},
};

/// The machine's clocks.
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// Monotonic time starts here.
    #[expect(clippy::new_without_default, reason = "reading a clock is no default")]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }

    /// Whether the machine's time is one that [`Clock::unix_ms`] can't say.
    #[expect(clippy::disallowed_methods, reason = "`app` makes the real clock")]
    pub fn is_before_1970() -> bool {
        SystemTime::now() < UNIX_EPOCH
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "`app` makes the real clock")]
    fn unix_ms(&self) -> u64 {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
    }

    fn now(&self) -> Moment {
        Moment::default() + self.start.elapsed()
    }
}

/// The operating system's generator.
pub struct OperatingSystem;

impl Randomness for OperatingSystem {
    fn fill(&self, out: &mut [u8]) -> Result<(), RandomnessFailed> {
        getrandom::fill(out).map_err(|_| RandomnessFailed)
    }
}

//! Where the outside comes in: time and randomness. `app` makes the real ones; tests and the
//! simulator make their own.

/// The time, handed in.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since 1970-01-01T00:00:00Z.
    fn unix_ms(&self) -> u64;

    /// Milliseconds since some fixed moment; never goes back.
    fn monotonic_ms(&self) -> u64;
}

/// Random bytes for what is not a key: key ids, domain ids. Keys come from the token's generator.
pub trait Randomness: Send + Sync + 'static {
    /// Fills `out`.
    fn fill(&self, out: &mut [u8]) -> Result<(), RandomnessFailed>;
}

/// The operating system gave no random bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the operating system's random generator failed")]
pub struct RandomnessFailed;

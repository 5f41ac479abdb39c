//! The service's own keys, and how they are rotated.

mod rotation;
mod sweeping;

pub use rotation::{BlockSecretRotation, Config, NotRotated, Parts, Progress};
pub use sweeping::Sweeping;

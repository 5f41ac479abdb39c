//! The service's own keys, and how they are rotated.

mod kek_rotation;
mod rotation;
mod sweeping;

pub use kek_rotation::{KekError, KekPace, KekParts, KekProgress, SiteKekRotation};
pub use rotation::{BlockSecretRotation, Config, NotRotated, Parts, Progress};
pub use sweeping::Sweeping;

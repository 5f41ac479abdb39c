//! The way to the token: the library in this process, its sessions, everything that dies with one epoch,
//! and the way back after a fault.

pub(super) mod epoch;
pub(super) mod holder;
pub(super) mod library;
pub(super) mod lock;
pub(super) mod pool;
pub(super) mod token;

//! The token that is tried, and how much of it.

use cryptoki::slot::Slot;

use crate::hsm::{
    Config,
    pkcs11::{connection::library::Library, keys::canary::Canaries},
};

/// The extent of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeDepth {
    /// At each start: what needs no new RSA key, where `init` has made the site's. Well under two
    /// seconds with a token in software.
    Start,
    /// Also makes a ceremony key, attacks it, and destroys it.
    Full,
}

/// A token on trial.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) library: &'a Library,
    /// The token's slot.
    pub(crate) slot: Slot,
    pub(crate) config: &'a Config,
    /// `None`: the KEKs are those with our labels.
    pub(crate) canaries: Option<&'a Canaries>,
}

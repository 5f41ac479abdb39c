//! Keys as they are lent to a verb, and the counter that a message spends.

use core::fmt;

/// The unicast key that a form is protected with. The broadcast key is told by the key set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EncryptionKey {
    /// The global key: glo-*, general-glo-ciphering, general-ciphering with an identified key.
    Global,
    /// The dedicated key of one association: ded-*, general-ded-ciphering.
    Dedicated,
}

/// The role of a key that an error speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyRole {
    /// The key that enciphers.
    Encryption,
    /// The key that is additional data.
    Authentication,
}

impl fmt::Display for KeyRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Encryption => "encryption key",
            Self::Authentication => "authentication key",
        })
    }
}

/// The two keys of one APDU, named, since both are of one length and would swap without a word.
///
/// Borrowed: the caller keeps them, locked and wiped as it sees fit. 16 bytes each in suites 0 and 1,
/// 32 in suite 2.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    /// GUEK, GBEK or dedicated key: opens and protects.
    pub encryption: &'a [u8],
    /// GAK: never enciphers; it is part of the additional authenticated data. There is no dedicated
    /// one: the global one serves every form.
    pub authentication: &'a [u8],
}

impl fmt::Debug for Keys<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Taken apart by name: a new field will not compile until someone decides if it is secret.
        let Self { encryption: _, authentication: _ } = self;
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

impl Keys<'_> {
    /// The first key that has not the suite's length, and the length it has.
    pub fn unfit_for(&self, suite: crate::Suite) -> Option<(KeyRole, usize)> {
        let Self { encryption, authentication } = self;
        [(KeyRole::Encryption, encryption.len()), (KeyRole::Authentication, authentication.len())]
            .into_iter()
            .find(|(_, len)| *len != suite.key_len())
    }
}

/// An invocation counter that nothing was protected with yet, under this key by this originator.
///
/// Neither `Copy` nor `Clone`, and whatever protects takes it by value: to use one twice does not
/// compile. The counter of an APDU that came in is a plain `u32`, for it may be anything.
///
/// ```compile_fail,E0382
/// # use dlms::{FreshCounter, Protection, protect};
/// fn twice(protection: &Protection<'_>, counter: FreshCounter, out: &mut Vec<u8>) {
///     let _ = protect(protection, counter, b"first", out);
///     let _ = protect(protection, counter, b"second", out); // use of moved value
/// }
/// ```
#[derive(Debug)]
pub struct FreshCounter(u32);

impl FreshCounter {
    /// The only maker. The caller promises that (key value, originator's system title, `counter`) was
    /// never used and never will be again, crashes and restores included: two messages under one nonce
    /// give away the XOR of their plaintexts and the key of GHASH (SP 800-38D, 8).
    pub const fn promise_never_used_under_this_key_and_title(counter: u32) -> Self {
        Self(counter)
    }

    /// The counter, for the record. Reading it spends nothing.
    pub const fn value(&self) -> u32 {
        self.0
    }

    /// Spends it.
    pub(crate) const fn spend(self) -> u32 {
        self.0
    }
}

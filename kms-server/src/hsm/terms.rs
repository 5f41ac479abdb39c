//! The terms in which a token is asked and answers, apart from sealed imports.

use std::fmt;

use kms_core::KeyId;

/// One APDU to open with a key of protection `HSM`.
pub struct GcmOpen {
    /// System title and invocation counter.
    pub nonce: [u8; 12],
    /// SC ‖ AK ‖ … as the APDU's form demands; holds a GAK, hence wiped.
    pub additional_data: zeroize::Zeroizing<Vec<u8>>,
    /// The ciphertext, and its tag unless `tag` is `None`.
    pub ciphertext: Vec<u8>,
    /// The 12 bytes after the ciphertext. `None`: nothing is to be authenticated (policy allows it).
    pub tag: Option<[u8; 12]>,
}

impl fmt::Debug for GcmOpen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nonce: _, additional_data: _, ciphertext, tag: _ } = self;
        f.debug_struct("GcmOpen").field("ciphertext_len", &ciphertext.len()).finish_non_exhaustive()
    }
}

/// A key of protection `HSM` as its record has it.
#[derive(Clone)]
pub struct WrappedKey {
    /// Names the key in the token's cache of unwrapped keys.
    pub id: KeyId,
    /// The key under [`SealedKek::Use`](kms_core::SealedKek::Use), RFC 3394.
    pub wrapped: Vec<u8>,
}

/// The tag did not verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAuthentic;

/// The token's state, for `GetStatus` and the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenStatus {
    /// CKA label of the token.
    pub label: String,
    /// Maker's model name.
    pub model: String,
    /// 16 bytes that name the site KEK: part of a seal's place.
    pub site_kek_id: [u8; 16],
    /// Rises each time the connection is made anew. No handle outlives its epoch.
    pub connection_epoch: u64,
    /// Calls made since start.
    pub calls: u64,
    /// The last fault, until a check passes.
    pub fault: Option<String>,
}

//! A key that several meters share: the token opens what is stored of it for one block, and wraps the same key for other
//! meters and blocks. It leaves the token wrapped, and is never seen by this process.

use kms_core::Fingerprint;

use super::{
    lengths,
    making::{MADE_PER_CALL_MAX, MakeKeys, WantedKey},
    taking::LockedKey,
};

/// A key of protection `MEMORY` that other meters are to have, too.
pub struct ShareKey {
    /// The text whose CMAC is a key's fingerprint.
    pub fingerprint_label: Vec<u8>,
    /// AES-256, of the blocks that the key is in, or goes to.
    pub wrap_keys: Vec<LockedKey>,
    /// The meters' KEKs, each once, as their records have them: under
    /// [`SealedKek::MeterKek`](kms_core::SealedKek::MeterKek).
    pub keks: Vec<Vec<u8>>,
    /// The place in `wrap_keys` of the block's key that opens it, and what is stored of it there.
    pub stored: (usize, Vec<u8>),
    /// The identity of the key: what opens as another one is not shared.
    pub fingerprint: Fingerprint,
    /// Where it goes, at most [`MADE_PER_CALL_MAX`].
    pub to: Vec<WantedKey>,
}

impl ShareKey {
    /// Whether all bounds are kept, and the key has a block that it is in.
    pub(super) fn is_whole(&self) -> bool {
        let Self { fingerprint_label, wrap_keys, keks, stored, fingerprint: _, to } = self;
        let (at, blob) = stored;
        let as_made = MakeKeys {
            fingerprint_label: fingerprint_label.clone(),
            wrap_keys: wrap_keys.clone(),
            keks: keks.clone(),
            keys: to.clone(),
        };
        let len = |wanted: &WantedKey| wanted.len.wrapped() == blob.len();
        to.len() <= MADE_PER_CALL_MAX
            && *at < wrap_keys.len()
            && lengths::is_of_wrapped_key(blob.len())
            && to.iter().all(len)
            && as_made.is_whole()
    }
}

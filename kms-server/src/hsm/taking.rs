//! Keys that come in wrapped: what a token does with a sealed import file. No key of it is ever seen
//! by this process.

use std::sync::Arc;

use kms_core::{Fingerprint, Kcv, SealedKek};

use super::lengths::RSA_LEN;

/// Keys that one call takes at most, so that others come in between: on a busy machine a token in
/// software took a third of a second for as many, block keys included.
pub const KEYS_PER_CALL_MAX: usize = 256;

/// A block's `wrap` key where it lies: in the caller's locked memory.
pub type LockedKey = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// The key that a taken key is wrapped under for storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreUnder {
    /// Protection `HSM`.
    Kek(SealedKek),
    /// Protection `MEMORY`: the `wrap` key with this place in [`TakeKeys::wrap_keys`].
    Block(usize),
}

/// One key of a sealed file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedValue {
    /// Under the file's key, RFC 3394.
    pub wrapped: Vec<u8>,
    /// The place where it goes.
    pub under: StoreUnder,
}

/// Some keys of one file.
pub struct TakeKeys {
    /// The file's ephemeral key, by RSA-OAEP under `transport-import`.
    pub wrapped_file_key: Vec<u8>,
    /// The text whose CMAC is a key's fingerprint.
    pub fingerprint_label: Vec<u8>,
    /// AES-256, of the blocks that the keys go to.
    pub wrap_keys: Vec<LockedKey>,
    /// At most [`KEYS_PER_CALL_MAX`].
    pub keys: Vec<SealedValue>,
}

/// A block's `wrap` key is AES-256.
const WRAP_KEY_LEN: usize = 32;

/// Whether it has the length of a block's `wrap` key.
pub(super) fn is_of_wrap_key(key: &LockedKey) -> bool {
    (**key).as_ref().len() == WRAP_KEY_LEN
}

impl TakeKeys {
    /// Whether all bounds are kept, and each key goes to a block that is there.
    pub(super) fn is_whole(&self) -> bool {
        let Self { wrapped_file_key, fingerprint_label: _, wrap_keys, keys } = self;
        wrapped_file_key.len() == RSA_LEN
            && keys.len() <= KEYS_PER_CALL_MAX
            && wrap_keys.iter().all(is_of_wrap_key)
            && keys.iter().all(|key| match key.under {
                StoreUnder::Block(at) => at < wrap_keys.len(),
                StoreUnder::Kek(_) => true,
            })
    }
}

/// A key that was taken: still unseen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakenKey {
    /// CMAC under the key over the label.
    pub fingerprint: Fingerprint,
    /// CMAC under the key over sixteen zero bytes, the first five of it.
    pub kcv: Kcv,
    /// The key as it is stored, RFC 3394.
    pub wrapped: Vec<u8>,
}

/// A blob that the file's key does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAKey;

/// The outcome for each key, in order.
pub type Taken = Vec<Result<TakenKey, NotAKey>>;

//! Keys that the token makes for meters: they leave it wrapped, for the meter and for storage, and are never seen by
//! this process.

use dlms::key_wrap::OVERHEAD_LEN;
use kms_core::{Fingerprint, Kcv};

use super::taking::{LockedKey, StoreUnder, is_of_wrap_key};

/// Keys that one call makes at most, so that others come in between: each takes the token twice as long as a key that
/// is [taken](super::KEYS_PER_CALL_MAX).
pub const MADE_PER_CALL_MAX: usize = 128;

/// The two lengths of keys: AES-128 for the security suites 0 and 1, AES-256 for 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyLen {
    /// 16 bytes.
    Aes128 = 16,
    /// 32 bytes.
    Aes256 = 32,
}

impl KeyLen {
    /// Of the key.
    pub const fn bytes(self) -> usize {
        self as usize
    }

    /// Of the key when it is wrapped (RFC 3394).
    pub const fn wrapped(self) -> usize {
        self.bytes() + OVERHEAD_LEN
    }
}

/// A key that is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedKey {
    /// As the meter's security suite has it.
    pub len: KeyLen,
    /// The place where it goes.
    pub under: StoreUnder,
    /// The KEK that it travels under: the place in [`MakeKeys::keks`].
    pub kek: usize,
}

/// Keys to make in one call.
pub struct MakeKeys {
    /// The text whose CMAC is a key's fingerprint.
    pub fingerprint_label: Vec<u8>,
    /// AES-256, of the blocks that the keys go to.
    pub wrap_keys: Vec<LockedKey>,
    /// The meters' KEKs, each once, as their records have them: under
    /// [`SealedKek::MeterKek`](kms_core::SealedKek::MeterKek).
    pub keks: Vec<Vec<u8>>,
    /// At most [`MADE_PER_CALL_MAX`].
    pub keys: Vec<WantedKey>,
}

impl MakeKeys {
    /// Whether all bounds are kept, and each key has a KEK and goes to a block that is there.
    pub(super) fn is_whole(&self) -> bool {
        let Self { fingerprint_label: _, wrap_keys, keks, keys } = self;
        keys.len() <= MADE_PER_CALL_MAX
            && keks.len() <= MADE_PER_CALL_MAX
            && wrap_keys.len() <= MADE_PER_CALL_MAX
            && wrap_keys.iter().all(is_of_wrap_key)
            && keys.iter().all(|key| {
                key.kek < keks.len()
                    && match key.under {
                        StoreUnder::Block(at) => at < wrap_keys.len(),
                        StoreUnder::Kek(_) => true,
                    }
            })
    }
}

/// A key that was made: still unseen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewKey {
    /// Under the meter's KEK, RFC 3394: what the meter is sent.
    pub meter_blob: Vec<u8>,
    /// The key as it is stored, RFC 3394.
    pub storage_blob: Vec<u8>,
    /// CMAC under the key over the label.
    pub fingerprint: Fingerprint,
    /// CMAC under the key over sixteen zero bytes, the first five of it.
    pub kcv: Kcv,
}

/// Why one key was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotMade {
    /// Of another length, damaged, or wrapped under another key. The token is well.
    #[error("the meter's KEK does not open in the token: import the meter's KEK again")]
    KekRefused,
}

/// The outcome for each key, in order.
pub type Made = Vec<Result<NewKey, NotMade>>;

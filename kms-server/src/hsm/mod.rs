//! The token: what this service asks of an HSM, in the service's own words. No PKCS #11 name passes
//! here; `cryptoki` is said only in [`pkcs11`].

pub mod config;
pub mod door;
mod figures;
mod importing;
pub mod pkcs11;

use std::{error::Error as StdError, fmt};

use kms_core::{
    BlockSecret, ClearKey, KeyId, SealedKek,
    audit::{PublicKey, Signature},
};

pub use config::{BadConfig, Config, OaepHash, Pin};
pub use door::Hsm;
pub use importing::{
    ImportKey, ImportsKeys, KEYS_PER_CALL_MAX, LockedKey, NotAKey, SealedValue, StoreUnder,
    TakeKeys, Taken, TakenKey,
};

/// Boxed cause of an error.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// What can go wrong at the token, cut by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The input is at fault: a second try would fail the same way, and the token is well.
    #[error("the token refused to {operation}")]
    Refused {
        /// What it was asked to do.
        operation: &'static str,
        /// What the library said.
        #[source]
        source: BoxError,
    },
    /// The device, its connection or one of its keys is not there; it may come back.
    #[error("the token is not reachable: {reason}")]
    Unreachable {
        /// One sentence for people.
        reason: String,
    },
    /// It is there, and is not the one, or does not let us in: no second try changes that. Said when
    /// connecting for the first time only; later it is unreachable as others are.
    #[error("the token can't be used: {reason}")]
    Unfit {
        /// One sentence for people.
        reason: String,
    },
    /// No session came free in time; come back later.
    #[error("the token is busy")]
    Busy,
    /// The call was given up at its deadline; whether the device did it is unknown.
    #[error("the token did not answer within {deadline_ms} ms")]
    TimedOut {
        /// The deadline that passed.
        deadline_ms: u64,
    },
}

/// Seals and opens block secrets under the site KEK (AES-256-GCM inside the token).
///
/// Every method of these traits may block for as long as the device takes: call through [`Hsm`],
/// never from a task.
pub trait BlockSeals: Send + Sync + 'static {
    /// Seals `secret`; `place` (domain, block, version, KEK id) is bound as additional data.
    fn seal(&self, place: &[u8], secret: &BlockSecret) -> Result<Vec<u8>, TokenError>;

    /// Opens what [`BlockSeals::seal`] made for the same place. `Refused` if anything was changed;
    /// decided by a canary, since tokens report tampering and breakage with the same code.
    fn open(&self, place: &[u8], sealed: &[u8]) -> Result<BlockSecret, TokenError>;
}

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

/// A key of protection `HSM` as its record has it.
#[derive(Clone)]
pub struct WrappedKey {
    /// Names the key in the token's cache of unwrapped keys.
    pub id: KeyId,
    /// Under [`SealedKek::Use`].
    pub wrapped: Vec<u8>,
}

/// The tag did not verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAuthentic;

/// Keys that only the token uses.
pub trait SealedKeys: Send + Sync + 'static {
    /// Wraps a key that came in clear (an import where the configuration allows it): RFC 3394.
    fn wrap(&self, under: SealedKek, key: &ClearKey) -> Result<Vec<u8>, TokenError>;

    /// Opens many APDUs under one key: unwraps it at most once, keeps it for the next call. The outer
    /// error says that nothing could be tried; the inner one that this APDU is not authentic.
    fn open_apdus(
        &self,
        key: &WrappedKey,
        apdus: &[GcmOpen],
    ) -> Result<Vec<Result<Vec<u8>, NotAuthentic>>, TokenError>;
}

/// The token's own generator, and whether it is well.
pub trait TokenCare: Send + Sync + 'static {
    /// Fills `out` from the token's generator.
    fn random(&self, out: &mut [u8]) -> Result<(), TokenError>;

    /// Proves every KEK by its canary, reconnecting first if the connection is not sound.
    fn check(&self) -> Result<(), TokenError>;

    /// What is known without asking the device.
    fn status(&self) -> TokenStatus;

    /// Sessions that are open for calls, without asking the device; `None` where there are none to
    /// count.
    fn sessions_open(&self) -> Option<usize> {
        None
    }
}

/// Signs what leaves the site: audit heads, reports, bundles.
pub trait Signs: Send + Sync + 'static {
    /// ECDSA P-256 over the SHA-256 of `message`, made with the site's signing key.
    fn sign(&self, message: &[u8]) -> Result<Signature, TokenError>;

    /// The public half of the signing key.
    fn public_key(&self) -> Result<PublicKey, TokenError>;
}

/// All that a token is to this service.
pub trait Token: BlockSeals + SealedKeys + ImportsKeys + TokenCare + Signs {}
impl<T: BlockSeals + SealedKeys + ImportsKeys + TokenCare + Signs> Token for T {}

/// For `GetStatus` and the log.
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

impl fmt::Debug for GcmOpen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nonce: _, additional_data: _, ciphertext, tag: _ } = self;
        f.debug_struct("GcmOpen").field("ciphertext_len", &ciphertext.len()).finish_non_exhaustive()
    }
}

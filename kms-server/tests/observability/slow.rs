//! A token that takes its time, or changes what it says of the keys that it made.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use kms_core::{
    BlockSecret, ClearKey, SealedKek,
    audit::{PublicKey, Signature},
};
use kms_server::hsm::{
    BlockSeals, CeremonyKey, Device, Enrols, GcmOpen, HandedKeks, ImportKey, ImportsKeys, Made,
    MakeKeys, MakesKeys, NotAuthentic, NotTrusted, RsaKey, SealedKeys, ShareKey, Signs, SiteKeks,
    StoreUnder, TakeKeys, Taken, TokenError, TokenStatus, WrappedKey, pkcs11::Pkcs11Token,
};

/// How slow the slow token is.
pub(crate) const DELAY: Duration = Duration::from_millis(300);

/// A token behind something that is not as it should be.
pub(crate) struct Slow {
    token: Pkcs11Token,
    /// To open a block.
    delay: Duration,
    /// Answers about keys that it made that are still to be changed.
    lies: AtomicU64,
}

impl Slow {
    pub(crate) fn new(token: Pkcs11Token) -> Self {
        Self { token, delay: DELAY, lies: AtomicU64::new(0) }
    }

    /// Not slow, and wrong so often.
    pub(crate) fn lying(token: Pkcs11Token, lies: u64) -> Self {
        Self { token, delay: Duration::ZERO, lies: AtomicU64::new(lies) }
    }
}

impl BlockSeals for Slow {
    fn seal(&self, place: &[u8], secret: &BlockSecret) -> Result<Vec<u8>, TokenError> {
        self.token.seal(place, secret)
    }

    fn open(&self, place: &[u8], sealed: &[u8]) -> Result<BlockSecret, TokenError> {
        std::thread::sleep(self.delay);
        self.token.open(place, sealed)
    }
}

impl SiteKeks for Slow {}

impl SealedKeys for Slow {
    fn wrap(&self, under: SealedKek, key: &ClearKey) -> Result<Vec<u8>, TokenError> {
        self.token.wrap(under, key)
    }

    fn open_apdus(
        &self,
        key: &WrappedKey,
        apdus: &[GcmOpen],
    ) -> Result<Vec<Result<Vec<u8>, NotAuthentic>>, TokenError> {
        self.token.open_apdus(key, apdus)
    }
}

impl ImportsKeys for Slow {
    fn import_key(&self) -> Result<ImportKey, TokenError> {
        self.token.import_key()
    }

    fn take_keys(&self, job: &TakeKeys) -> Result<Taken, TokenError> {
        self.token.take_keys(job)
    }
}

impl MakesKeys for Slow {
    fn make_keys(&self, job: &MakeKeys) -> Result<Made, TokenError> {
        let mut made = self.token.make_keys(job)?;
        let lie = |left: u64| left.checked_sub(1);
        if self.lies.fetch_update(Ordering::SeqCst, Ordering::SeqCst, lie).is_ok() {
            // Of one that is stored under a block's key.
            let at = job.keys.iter().position(|key| matches!(key.under, StoreUnder::Block(_)));
            if let Some(Ok(made)) = at.and_then(|at| made.get_mut(at)) {
                made.storage_blob[9] ^= 1;
            }
        }
        Ok(made)
    }

    fn share_key(&self, job: &ShareKey) -> Result<Made, TokenError> {
        self.token.share_key(job)
    }
}

impl Enrols for Slow {
    fn transport_block_key(&self) -> Result<RsaKey, TokenError> {
        self.token.transport_block_key()
    }

    fn hand_over_keks(
        &self,
        to: &CeremonyKey,
    ) -> Result<Result<HandedKeks, NotTrusted>, TokenError> {
        self.token.hand_over_keks(to)
    }

    fn receive_secret(&self, wrapped: &[u8]) -> Result<BlockSecret, TokenError> {
        self.token.receive_secret(wrapped)
    }
}

impl Signs for Slow {
    fn sign(&self, message: &[u8]) -> Result<Signature, TokenError> {
        self.token.sign(message)
    }

    fn public_key(&self) -> Result<PublicKey, TokenError> {
        self.token.public_key()
    }
}

impl Device for Slow {
    fn random(&self, out: &mut [u8]) -> Result<(), TokenError> {
        self.token.random(out)
    }

    fn check(&self) -> Result<(), TokenError> {
        self.token.check()
    }

    fn status(&self) -> TokenStatus {
        self.token.status()
    }

    fn sessions_open(&self) -> Option<usize> {
        self.token.sessions_open()
    }
}

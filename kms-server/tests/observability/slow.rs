//! A token that takes its time.

use std::time::Duration;

use kms_core::{
    BlockSecret, ClearKey, SealedKek,
    audit::{PublicKey, Signature},
};
use kms_server::hsm::{
    BlockSeals, CeremonyKey, Device, Enrols, GcmOpen, HandedKeks, ImportKey, ImportsKeys, Made,
    MakeKeys, MakesKeys, NotAuthentic, NotTrusted, RsaKey, SealedKeys, Signs, TakeKeys, Taken,
    TokenError, TokenStatus, WrappedKey, pkcs11::Pkcs11Token,
};

/// How slow the slow token is.
pub(crate) const DELAY: Duration = Duration::from_millis(300);

/// A token that takes its time to open a block.
pub(crate) struct Slow(pub(crate) Pkcs11Token);

impl BlockSeals for Slow {
    fn seal(&self, place: &[u8], secret: &BlockSecret) -> Result<Vec<u8>, TokenError> {
        self.0.seal(place, secret)
    }

    fn open(&self, place: &[u8], sealed: &[u8]) -> Result<BlockSecret, TokenError> {
        std::thread::sleep(DELAY);
        self.0.open(place, sealed)
    }
}

impl SealedKeys for Slow {
    fn wrap(&self, under: SealedKek, key: &ClearKey) -> Result<Vec<u8>, TokenError> {
        self.0.wrap(under, key)
    }

    fn open_apdus(
        &self,
        key: &WrappedKey,
        apdus: &[GcmOpen],
    ) -> Result<Vec<Result<Vec<u8>, NotAuthentic>>, TokenError> {
        self.0.open_apdus(key, apdus)
    }
}

impl ImportsKeys for Slow {
    fn import_key(&self) -> Result<ImportKey, TokenError> {
        self.0.import_key()
    }

    fn take_keys(&self, job: &TakeKeys) -> Result<Taken, TokenError> {
        self.0.take_keys(job)
    }
}

impl MakesKeys for Slow {
    fn make_keys(&self, job: &MakeKeys) -> Result<Made, TokenError> {
        self.0.make_keys(job)
    }
}

impl Enrols for Slow {
    fn transport_block_key(&self) -> Result<RsaKey, TokenError> {
        self.0.transport_block_key()
    }

    fn hand_over_keks(
        &self,
        to: &CeremonyKey,
    ) -> Result<Result<HandedKeks, NotTrusted>, TokenError> {
        self.0.hand_over_keks(to)
    }

    fn receive_secret(&self, wrapped: &[u8]) -> Result<BlockSecret, TokenError> {
        self.0.receive_secret(wrapped)
    }
}

impl Signs for Slow {
    fn sign(&self, message: &[u8]) -> Result<Signature, TokenError> {
        self.0.sign(message)
    }

    fn public_key(&self) -> Result<PublicKey, TokenError> {
        self.0.public_key()
    }
}

impl Device for Slow {
    fn random(&self, out: &mut [u8]) -> Result<(), TokenError> {
        self.0.random(out)
    }

    fn check(&self) -> Result<(), TokenError> {
        self.0.check()
    }

    fn status(&self) -> TokenStatus {
        self.0.status()
    }

    fn sessions_open(&self) -> Option<usize> {
        self.0.sessions_open()
    }
}

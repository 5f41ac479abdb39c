//! Keys of a sealed import file.

use dlms::cmac;
use kms_core::Fingerprint;
use rsa::{Oaep, RsaPrivateKey, traits::PublicKeyParts as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{
    keys::Keys,
    token::{MemoryToken, refused},
    wrapped_keys::{unwrap, wrap},
};
use crate::hsm::{
    ImportKey, ImportsKeys, NotAKey, OaepHash, SealedValue, StoreUnder, TakeKeys, Taken, TakenKey,
    TokenError, lengths,
};

const OPERATION: &str = "take keys of a sealed file";
/// A key check value is the CMAC of as many zeros.
pub(super) const ZEROS: [u8; 16] = [0; 16];

impl ImportsKeys for MemoryToken {
    fn import_key(&self) -> Result<ImportKey, TokenError> {
        let key = &self.call()?.import;
        Ok(ImportKey {
            modulus: key.n_bytes().into(),
            exponent: key.e_bytes().into(),
            oaep_hash: self.oaep_hash,
        })
    }

    fn take_keys(&self, job: &TakeKeys) -> Result<Taken, TokenError> {
        let keys = self.call()?;
        if !job.is_whole() {
            return Err(refused(OPERATION, "the job is not whole"));
        }
        let file_key = open_file_key(&keys.import, self.oaep_hash, &job.wrapped_file_key)
            .filter(|key| lengths::is_of_key(key.len()))
            .ok_or_else(|| refused(OPERATION, "the file's key does not open"))?;
        Ok(job.keys.iter().map(|value| take(keys, job, &file_key, value).ok_or(NotAKey)).collect())
    }
}

pub(super) fn open_file_key(
    key: &RsaPrivateKey,
    hash: OaepHash,
    wrapped: &[u8],
) -> Option<Zeroizing<Vec<u8>>> {
    let opened = match hash {
        OaepHash::Sha1 => key.decrypt(Oaep::<sha1::Sha1>::new(), wrapped),
        OaepHash::Sha256 => key.decrypt(Oaep::<Sha256>::new(), wrapped),
    };
    opened.ok().map(Zeroizing::new)
}

/// One key in, identified, and wrapped for storage.
fn take(keys: &Keys, job: &TakeKeys, file_key: &[u8], value: &SealedValue) -> Option<TakenKey> {
    let key = unwrap(file_key, &value.wrapped).ok()?;
    let [a, b, c, d, e, ..] = cmac::compute(&key, &ZEROS).ok()?;
    let wrapped = match value.under {
        StoreUnder::Kek(kek) => wrap(&**keys.sealed(kek), &key),
        StoreUnder::Block(at) => wrap((**job.wrap_keys.get(at)?).as_ref(), &key),
    };
    Some(TakenKey {
        fingerprint: Fingerprint(cmac::compute(&key, &job.fingerprint_label).ok()?),
        kcv: [a, b, c, d, e],
        wrapped: wrapped.ok()?,
    })
}

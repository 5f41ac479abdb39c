//! Keys made for meters.

use dlms::cmac;
use kms_core::{Fingerprint, SealedKek};
use zeroize::Zeroizing;

use super::{
    keys::{Keys, fill},
    sealed_file::ZEROS,
    token::{MemoryToken, refused},
    wrapped_keys::{unwrap, wrap},
};
use crate::hsm::{
    LockedKey, Made, MakeKeys, MakesKeys, NewKey, NotMade, ShareKey, StoreUnder, TokenError,
    WantedKey, lengths,
};

const OPERATION: &str = "make keys";

type Kek = Zeroizing<Vec<u8>>;

impl MakesKeys for MemoryToken {
    fn make_keys(&self, job: &MakeKeys) -> Result<Made, TokenError> {
        let keys = self.call()?;
        if !job.is_whole() {
            return Err(refused(OPERATION, "the job is not whole"));
        }
        let open = |blob: &Vec<u8>| -> Option<Kek> {
            let kek = unwrap(&**keys.sealed(SealedKek::MeterKek), blob).ok()?;
            lengths::is_of_key(kek.len()).then_some(kek)
        };
        let keks: Vec<Option<Kek>> = job.keks.iter().map(open).collect();
        let make = |wanted: &WantedKey| match keks.get(wanted.kek) {
            Some(Some(kek)) => {
                let mut key = Zeroizing::new(vec![0; wanted.len.bytes()]);
                fill(&mut key)?;
                wrap_twice(keys, (&job.fingerprint_label, &job.wrap_keys), (wanted, kek), &key)
                    .map(Ok)
            }
            _ => Ok(Err(NotMade::KekRefused)),
        };
        job.keys.iter().map(make).collect()
    }

    fn share_key(&self, job: &ShareKey) -> Result<Made, TokenError> {
        let keys = self.call()?;
        if !job.is_whole() {
            return Err(refused(OPERATION, "the job is not whole"));
        }
        let (at, blob) = &job.stored;
        let missing = || refused(OPERATION, "a key is in a block that is not there");
        let block = job.wrap_keys.get(*at).ok_or_else(missing)?;
        let key = unwrap((**block).as_ref(), blob).map_err(|error| refused(OPERATION, error))?;
        let found = cmac::compute(&key, &job.fingerprint_label);
        if found != Ok(job.fingerprint.0) {
            return Err(refused(OPERATION, "what is stored of the key is another one"));
        }
        let share = |wanted: &WantedKey| {
            let kek = job.keks.get(wanted.kek);
            let kek = kek.and_then(|blob| unwrap(&**keys.sealed(SealedKek::MeterKek), blob).ok());
            match kek.filter(|kek| lengths::is_of_key(kek.len())) {
                Some(kek) => {
                    let common = (&job.fingerprint_label[..], &job.wrap_keys[..]);
                    wrap_twice(keys, common, (wanted, &kek), &key).map(Ok)
                }
                None => Ok(Err(NotMade::KekRefused)),
            }
        };
        job.to.iter().map(share).collect()
    }
}

/// One key: identified, and wrapped twice.
fn wrap_twice(
    keys: &Keys,
    common: (&[u8], &[LockedKey]),
    (wanted, kek): (&WantedKey, &[u8]),
    key: &[u8],
) -> Result<NewKey, TokenError> {
    let (label, wrap_keys) = common;
    let mac = |message: &[u8]| {
        cmac::compute(key, message).map_err(|error| refused(OPERATION, format!("{error:?}")))
    };
    let [a, b, c, d, e, ..] = mac(&ZEROS)?;
    let store: &[u8] = match wanted.under {
        StoreUnder::Kek(kek) => &**keys.sealed(kek),
        StoreUnder::Block(at) => {
            let missing = || refused(OPERATION, "a key is for a block that is not there");
            (**wrap_keys.get(at).ok_or_else(missing)?).as_ref()
        }
    };
    let wrapped = |under: &[u8]| wrap(under, key).map_err(|error| refused(OPERATION, error));
    Ok(NewKey {
        meter_blob: wrapped(kek)?,
        storage_blob: wrapped(store)?,
        fingerprint: Fingerprint(mac(label)?),
        kcv: [a, b, c, d, e],
    })
}

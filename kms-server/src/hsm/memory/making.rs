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
    Made, MakeKeys, MakesKeys, NewKey, NotMade, StoreUnder, TokenError, WantedKey, lengths,
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
            Some(Some(kek)) => make(keys, job, wanted, kek).map(Ok),
            _ => Ok(Err(NotMade::KekRefused)),
        };
        job.keys.iter().map(make).collect()
    }
}

/// One key: new, identified, and wrapped twice.
fn make(keys: &Keys, job: &MakeKeys, wanted: &WantedKey, kek: &[u8]) -> Result<NewKey, TokenError> {
    let mut key = Zeroizing::new(vec![0; wanted.len.bytes()]);
    fill(&mut key)?;
    let mac = |message: &[u8]| {
        cmac::compute(&key, message).map_err(|error| refused(OPERATION, format!("{error:?}")))
    };
    let [a, b, c, d, e, ..] = mac(&ZEROS)?;
    let store: &[u8] = match wanted.under {
        StoreUnder::Kek(kek) => &**keys.sealed(kek),
        StoreUnder::Block(at) => {
            let missing = || refused(OPERATION, "a key is for a block that is not there");
            (**job.wrap_keys.get(at).ok_or_else(missing)?).as_ref()
        }
    };
    let wrapped = |under: &[u8]| wrap(under, &key).map_err(|error| refused(OPERATION, error));
    Ok(NewKey {
        meter_blob: wrapped(kek)?,
        storage_blob: wrapped(store)?,
        fingerprint: Fingerprint(mac(&job.fingerprint_label)?),
        kcv: [a, b, c, d, e],
    })
}

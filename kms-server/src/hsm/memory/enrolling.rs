//! What crosses to and from the token of another site.

use kms_core::{BlockSecret, SealedKek};
use rsa::traits::PublicKeyParts as _;
use zeroize::Zeroizing;

use super::{
    sealed_file::open_file_key,
    token::{MemoryToken, refused},
};
use crate::hsm::{CeremonyKey, Enrols, HandedKek, HandedKeks, NotTrusted, RsaKey, TokenError};

/// The ids of the sealed KEKs, which have none here.
const METER_KEK: [u8; 16] = [1; 16];
const USE_KEK: [u8; 16] = [2; 16];

/// `transport-block` is the pair of imports here: neither guards anything.
impl Enrols for MemoryToken {
    fn transport_block_key(&self) -> Result<RsaKey, TokenError> {
        let key = &self.call()?.import;
        Ok(RsaKey { modulus: key.n_bytes().into(), exponent: key.e_bytes().into() })
    }

    fn hand_over_keks(
        &self,
        to: &CeremonyKey,
    ) -> Result<Result<HandedKeks, NotTrusted>, TokenError> {
        let keys = self.call()?;
        let trusted = self.trusted();
        match trusted.iter().find(|trusted| trusted.id == to.id) {
            None => return Ok(Err(NotTrusted::Missing)),
            Some(trusted) if trusted != to => return Ok(Err(NotTrusted::Another)),
            Some(_) => {}
        }
        let handed = |kek, id| {
            let wrapped = to.key.wrap(to.oaep, keys.sealed(kek));
            let wrapped = wrapped.map_err(|error| refused("hand its sealed KEKs over", error))?;
            Ok::<_, TokenError>(HandedKek { id, wrapped })
        };
        Ok(Ok(HandedKeks {
            meter_kek: handed(SealedKek::MeterKek, METER_KEK)?,
            use_kek: handed(SealedKek::Use, USE_KEK)?,
            canaries: Vec::new(),
        }))
    }

    fn receive_secret(&self, wrapped: &[u8]) -> Result<BlockSecret, TokenError> {
        let refused = || refused("open a block secret of another site", "it does not open");
        let plain: Option<Zeroizing<Vec<u8>>> =
            open_file_key(&self.call()?.import, self.oaep_hash, wrapped);
        let plain = plain.filter(|plain| plain.len() == BlockSecret::LEN).ok_or_else(refused)?;
        BlockSecret::fill_with(|bytes| {
            bytes.copy_from_slice(&plain);
            Ok(())
        })
    }
}

//! Block secrets under the site KEK: AES-256-GCM inside the token (NIST SP 800-38D).
//!
//! A seal is version (1) ‖ nonce (12) ‖ ciphertext (32) ‖ tag (16). The nonce is random, from the
//! token: good for 2^32 seals under one KEK (SP 800-38D, 8.3), and a site makes one for each block and
//! rotation. The place is bound as additional data, after a label of its own.

use cryptoki::error::Error;
use subtle::ConstantTimeEq as _;

use super::gcm::{Gcm, NONCE_LEN, Tag};
use crate::hsm::{
    BlockSeals, TokenError,
    pkcs11::{
        connection::{epoch::Proof, token::Pkcs11Token},
        failure::Failure,
        keys::canary::Canaries,
    },
};
use kms_core::BlockSecret;

const VERSION: u8 = 1;
const SEAL_LEN: usize = 1 + NONCE_LEN + BlockSecret::LEN + Tag::Full as usize;
const LABEL: &[u8] = b"ami.kms block secret v1";

impl BlockSeals for Pkcs11Token {
    fn seal(&self, place: &[u8], secret: &BlockSecret) -> Result<Vec<u8>, TokenError> {
        seal(self, &self.canaries(), place, secret)
    }

    fn open(&self, place: &[u8], sealed: &[u8]) -> Result<BlockSecret, TokenError> {
        open(self, &self.canaries(), place, sealed)
    }
}

/// Seals under the site KEK that these canaries prove.
pub(super) fn seal(
    token: &Pkcs11Token,
    canaries: &Canaries,
    place: &[u8],
    secret: &BlockSecret,
) -> Result<Vec<u8>, TokenError> {
    let additional = [LABEL, place].concat();
    token.call("seal a block secret", Proof::Site, |connection, session| {
        let mut nonce = [0; NONCE_LEN];
        token.module.random(session, &mut nonce)?;
        let plain = secret.expose_block_secret_bytes();
        let kek = token.site_handle(connection, session, canaries)?;
        let gcm = Gcm { nonce: &nonce, additional: &additional, tag: Tag::Full };
        let sealed = gcm.encrypt(session, kek, plain)?;
        // Keys are acknowledged that only this seal brings back: it is opened first.
        let opened = gcm
            .decrypt(session, kek, &sealed)
            .map_err(|failure| failure.of_own_work("a seal does not open"))?;
        if !bool::from(opened.as_slice().ct_eq(plain)) {
            return Err(Failure::garbled("a seal opens as another secret"));
        }
        Ok([&[VERSION][..], &nonce, &sealed].concat())
    })
}

/// Opens what was sealed under the site KEK that these canaries prove.
pub(super) fn open(
    token: &Pkcs11Token,
    canaries: &Canaries,
    place: &[u8],
    sealed: &[u8],
) -> Result<BlockSecret, TokenError> {
    let (nonce, body) = parse(sealed)?;
    let additional = [LABEL, place].concat();
    let gcm = Gcm { nonce, additional: &additional, tag: Tag::Full };
    token.call("open a block secret", Proof::Site, |connection, session| {
        let kek = token.site_handle(connection, session, canaries)?;
        let plain = gcm.decrypt(session, kek, body)?;
        BlockSecret::fill_with(|bytes| {
            let plain: &[u8; BlockSecret::LEN] =
                plain.as_slice().try_into().map_err(|_| Failure::from(Error::InvalidValue))?;
            bytes.copy_from_slice(plain);
            Ok(())
        })
    })
}

fn parse(sealed: &[u8]) -> Result<(&[u8; NONCE_LEN], &[u8]), TokenError> {
    let refused = |reason: String| TokenError::Refused {
        operation: "open a block secret",
        source: reason.into(),
    };
    if sealed.len() != SEAL_LEN {
        return Err(refused(format!("a seal has {SEAL_LEN} bytes, not {}", sealed.len())));
    }
    match sealed.split_first() {
        Some((&VERSION, rest)) => {
            rest.split_first_chunk().ok_or_else(|| refused("a seal without a nonce".to_owned()))
        }
        _ => Err(refused("a seal of an unknown version".to_owned())),
    }
}

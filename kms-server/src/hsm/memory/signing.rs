//! Signatures with the site's P-256 key.

use kms_core::audit::{PublicKey, Signature};
use p256::ecdsa::signature::Signer as _;

use super::token::{MemoryToken, refused};
use crate::hsm::{Signs, TokenError};

impl Signs for MemoryToken {
    fn sign(&self, message: &[u8]) -> Result<Signature, TokenError> {
        let signature: Result<p256::ecdsa::Signature, _> = self.call()?.signing.try_sign(message);
        let signature = signature.map_err(|error| refused("sign", error))?;
        Ok(signature.to_bytes().into())
    }

    fn public_key(&self) -> Result<PublicKey, TokenError> {
        let point = self.call()?.signing.verifying_key().to_sec1_point(false);
        point.as_bytes().try_into().map_err(|error| refused("show its public key", error))
    }
}

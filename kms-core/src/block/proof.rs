//! Proofs: a site shows its peer that its token opens a block and that all of it is there. Faults show;
//! malice does not: a site that lies can forget later what it had.

use cmac::{Cmac, Mac as _};
use subtle::ConstantTimeEq as _;

use crate::{BlockSecret, Epoch, Head};

use super::{keys::SecretBinding, verified::Verified};

/// The challenge of the asker. A proof answers this and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenge<'a> {
    /// The site that proves.
    pub prover: &'a str,
    /// The site that asks.
    pub verifier: &'a str,
    /// Random, of the asker; never used before.
    pub nonce: [u8; 32],
    /// Of the asker: proofs of another epoch don't count.
    pub epoch: Epoch,
}

/// AES-256-CMAC under the block's `proof` key.
pub type Proof = [u8; 16];

/// A block that can't be proved: so many of its records are damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} records of the block were changed outside this service: it can't be proved")]
pub struct NotWhole(pub usize);

/// The key of one block's proofs. Short-lived, wiped with its owner.
pub struct ProofKey {
    key: Cmac<aes::Aes256>,
    /// Of a secret that is staged, and has to open as well.
    staged: Option<Box<ProofKey>>,
}

impl ProofKey {
    /// Of a secret that the token has just opened.
    pub fn of(place: &SecretBinding<'_>, secret: &BlockSecret) -> Self {
        let key = place.derive_proof_key(secret);
        let key = <Cmac<aes::Aes256> as cmac::KeyInit>::new((&*key).into());
        Self { key, staged: None }
    }

    /// The same for a block for which a further secret is staged: a proof shows that this one opens, too.
    #[must_use]
    pub fn with_staged(self, staged: Self) -> Self {
        Self { staged: Some(Box::new(staged)), ..self }
    }

    /// Proves a block as it is stored here.
    pub fn prove(&self, challenge: &Challenge<'_>, block: &Verified) -> Result<Proof, NotWhole> {
        match block.damaged().len() {
            0 => Ok(self.mac(challenge, block.head())),
            damaged => Err(NotWhole(damaged)),
        }
    }

    /// Whether `proof` says that the prover has the block in the state of `head`, which is ours.
    pub fn confirms(&self, challenge: &Challenge<'_>, head: &Head, proof: &Proof) -> bool {
        self.mac(challenge, head).ct_eq(proof).into()
    }

    fn mac(&self, challenge: &Challenge<'_>, head: &Head) -> Proof {
        let Challenge { prover, verifier, nonce, epoch } = challenge;
        let Head { block, secret_version, position, count, digest, mac } = head;
        let message = [
            b"ami.kms/proof/1".as_slice(),
            &(prover.len() as u32).to_be_bytes(),
            prover.as_bytes(),
            &(verifier.len() as u32).to_be_bytes(),
            verifier.as_bytes(),
            nonce,
            &epoch.0.to_be_bytes(),
            &block.0.to_be_bytes(),
            &secret_version.to_be_bytes(),
            &position.epoch.0.to_be_bytes(),
            &position.sequence.0.to_be_bytes(),
            &count.to_be_bytes(),
            digest,
            mac,
        ]
        .concat();
        let mut cmac = self.key.clone();
        cmac.update(&message);
        if let Some(staged) = &self.staged {
            cmac.update(&staged.mac(challenge, head));
        }
        cmac.finalize().into_bytes().into()
    }
}

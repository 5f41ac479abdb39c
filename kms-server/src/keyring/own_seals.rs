//! Which seals of a block are for this server's token.

use super::{error::KeyringError, opening::Opener, site_keks::ours};
use crate::store::SealedSecret;
use kms_core::BlockNo;

impl Opener {
    /// Of these seals those that this server's token opens: of each version one, that under the KEK in use before others.
    pub(super) fn ours(&self, seals: &[SealedSecret]) -> Vec<SealedSecret> {
        ours(&self.hsm, seals)
    }

    /// The seals of a block for this token, by version. Where none is ours of a version that there is, another site KEK may
    /// be in use, of which this server has not heard.
    pub(super) async fn own_seals(
        &self,
        block: BlockNo,
    ) -> Result<Vec<SealedSecret>, KeyringError> {
        // Of its records none is asked for.
        let stored = self.store.block_in_part(block, &[]).await?;
        let seals = stored.ok_or_else(|| KeyringError::missing(block))?.seals;
        let found = self.ours(&seals);
        let has = |version| found.iter().any(|seal| seal.secret_version == version);
        if seals.iter().all(|seal| has(seal.secret_version)) {
            return Ok(found);
        }
        self.hear_of_keks().await;
        Ok(self.ours(&seals))
    }

    /// The seal of a version for this token.
    pub(super) async fn own_seal(
        &self,
        block: BlockNo,
        version: u32,
        seals: &[SealedSecret],
    ) -> Result<SealedSecret, KeyringError> {
        let of_version = |seals: Vec<SealedSecret>| {
            seals.into_iter().find(|seal| seal.secret_version == version)
        };
        if let Some(seal) = of_version(self.ours(seals)) {
            return Ok(seal);
        }
        self.hear_of_keks().await;
        of_version(self.ours(seals)).ok_or(KeyringError::NotSealedForUs(block))
    }

    async fn hear_of_keks(&self) {
        if let Err(error) = self.keks.learn().await {
            tracing::warn!(%error, "site KEKs in use can't be told: those that are known stay");
        }
    }
}

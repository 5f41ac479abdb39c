//! Versions of a block's secret beside the one that the block is under: the next one, which is staged, and the former
//! one until it goes. Each has a seal of its own for this site's token.

use sha2::{Digest as _, Sha256};

use super::{
    adopting::Arrived,
    error::KeyringError,
    opening::{Opener, Room, Unsealed},
};
use crate::{
    hsm::{OaepHash, TokenError},
    store::SealedSecret,
};
use kms_core::{
    BlockNo, BlockSecret, Record, RecordKey, StoredRecord,
    block::{
        keys::{SUBKEYS_LEN, SecretBinding},
        proof::ProofKey,
        rotating::{Under, link},
        verified::Verified,
    },
    fact::{BlockSecrets, Fact, FactName, SecretStage},
};

/// A secret that this site has from another one, and its seal for this token.
pub(super) struct Received {
    pub(super) unsealed: Unsealed,
    /// `None`: it is in the database already.
    pub(super) seal: Option<SealedSecret>,
}

/// The name of a form in which a secret is wrapped for one site: its `transport-block` key, in DER, and the hash of OAEP.
pub(super) fn recipient(key: &[u8], hash: OaepHash) -> [u8; 32] {
    let hash = match hash {
        OaepHash::Sha1 => 1,
        OaepHash::Sha256 => 2,
    };
    let named = Sha256::new().chain_update(b"ami.kms/block-secret-for/1").chain_update([hash]);
    named.chain_update(key).finalize().into()
}

impl Unsealed {
    /// As the rules of a rotation take it.
    pub(super) fn under(&self) -> Under<'_> {
        Under { keys: &self.keys, version: self.secret_version }
    }
}

impl Opener {
    /// The secret in a seal, and its subkeys in the arena.
    pub(super) async fn unseal_as(
        &self,
        block: BlockNo,
        seal: &SealedSecret,
    ) -> Result<(Unsealed, BlockSecret), KeyringError> {
        let binding = self.place(block, seal.secret_version);
        let (place, sealed) = (binding.seal_aad(&seal.kek_id), seal.sealed.clone());
        let secret = self.hsm.open_under(seal.kek_id, place, sealed).await;
        let secret = secret.map_err(|said| KeyringError::Token { block, said })?;
        Ok((self.expanded(block, seal.secret_version, &secret)?, secret))
    }

    /// The subkeys of a secret, in the arena.
    pub(super) fn expanded(
        &self,
        block: BlockNo,
        version: u32,
        secret: &BlockSecret,
    ) -> Result<Unsealed, KeyringError> {
        let mut subkeys = self.room(block, SUBKEYS_LEN, Room::MayCloseOthers)?;
        let binding = self.place(block, version);
        binding.derive_subkeys(secret, &mut subkeys.bytes_mut()[..SUBKEYS_LEN]);
        self.expand(block, subkeys, version)
    }

    pub(super) fn place(&self, block: BlockNo, secret_version: u32) -> SecretBinding<'_> {
        SecretBinding { domain: &self.domain.domain, block, secret_version }
    }

    /// The subkeys of all versions of a block's secret but this one.
    pub(super) async fn others(
        &self,
        block: BlockNo,
        but: u32,
    ) -> Result<Vec<Unsealed>, KeyringError> {
        let mut others = Vec::new();
        for seal in self.own_seals(block).await?.iter().filter(|seal| seal.secret_version != but) {
            others.push(self.unseal_as(block, seal).await?.0);
        }
        Ok(others)
    }

    /// The key of a block's record that says which secret it has.
    pub(super) fn secrets_key(&self, block: BlockNo) -> RecordKey {
        RecordKey::fact(&FactName::of_secrets(block, self.resident.blocks()))
    }

    /// What a block says of its secrets; `None`: they were never rotated.
    pub(super) fn secrets_in(&self, verified: &Verified) -> Option<BlockSecrets> {
        match verified.stands(&self.secrets_key(verified.block())) {
            Ok(Some(Record::Fact(Fact::Secrets(secrets)))) => Some(secrets),
            _ => None,
        }
    }

    /// The same of records that came from a peer.
    pub(super) fn secrets_among(
        &self,
        block: BlockNo,
        records: &[StoredRecord],
    ) -> Option<BlockSecrets> {
        let key = self.secrets_key(block);
        let record = records.iter().find(|record| record.key == key)?;
        match Record::decode(&record.body) {
            Ok(Record::Fact(Fact::Secrets(secrets))) if secrets.block == block => Some(secrets),
            _ => None,
        }
    }

    /// The key of a block's proofs: while a secret is staged it has to open here, too.
    pub(super) async fn with_staged(
        &self,
        key: ProofKey,
        verified: &Verified,
        seals: &[SealedSecret],
    ) -> Result<ProofKey, KeyringError> {
        let staged = self.secrets_in(verified).filter(|it| it.stage == SecretStage::Staged);
        let Some(BlockSecrets { block, version, .. }) = staged else { return Ok(key) };
        let seal = self.own_seal(block, version, seals).await?;
        let (_, secret) = self.unseal_as(block, &seal).await?;
        Ok(key.with_staged(ProofKey::of(&self.place(block, version), &secret)))
    }

    /// The secret of a peer's block that came under another one than ours; the inner error: it can't be had, and why.
    pub(super) async fn secret_for(
        &self,
        arrived: &Arrived,
        ours: &Unsealed,
    ) -> Result<Result<Received, String>, KeyringError> {
        let (block, version) = (arrived.head.block, arrived.head.secret_version);
        let seals = self.own_seals(block).await?;
        if let Some(seal) = seals.iter().find(|seal| seal.secret_version == version) {
            let (unsealed, _) = self.unseal_as(block, seal).await?;
            return Ok(Ok(Received { unsealed, seal: None }));
        }
        match self.secrets_among(block, &arrived.records) {
            Some(secrets) if secrets.version == version => self.receive(&secrets, ours).await,
            _ => Ok(Err(format!(
                "it is under version {version} of its secret, which this site does not have, and comes without it"
            ))),
        }
    }

    /// Takes a secret that is wrapped for this site, if it is the successor of the one that our block is under.
    pub(super) async fn receive(
        &self,
        secrets: &BlockSecrets,
        ours: &Unsealed,
    ) -> Result<Result<Received, String>, KeyringError> {
        let (block, version) = (secrets.block, secrets.version);
        if secrets.from != ours.secret_version {
            return Ok(Err(format!(
                "its secret was rotated from version {} to {version}, and this site has version {}: enrol this site \
                 anew (site enrol --replace)",
                secrets.from, ours.secret_version
            )));
        }
        let Some(secret) = self.open_wrapped(secrets).await? else {
            return Ok(Err(format!(
                "version {version} of its secret is not wrapped for this site's token: enrol this site anew"
            )));
        };
        let unsealed = self.expanded(block, version, &secret)?;
        if link(block, ours.under(), unsealed.under()) != secrets.link {
            return Ok(Err("its new secret is not one that a site of this domain made".to_owned()));
        }
        let kek_id = self.hsm.kek_in_use().id;
        let place = self.place(block, version).seal_aad(&kek_id);
        let sealed = self.hsm.seal_under(kek_id, place, secret).await;
        let (_, sealed) = sealed.map_err(|said| KeyringError::Token { block, said })?;
        let seal = Some(SealedSecret { secret_version: version, kek_id, sealed });
        Ok(Ok(Received { unsealed, seal }))
    }

    async fn open_wrapped(
        &self,
        secrets: &BlockSecrets,
    ) -> Result<Option<BlockSecret>, KeyringError> {
        let failed = |said| KeyringError::Token { block: secrets.block, said };
        let key = self.hsm.transport_block_key().await.map_err(failed)?.to_der();
        let ours = [OaepHash::Sha1, OaepHash::Sha256].map(|hash| recipient(&key, hash));
        for (_, wrapped) in secrets.wrapped.iter().filter(|(name, _)| ours.contains(name)) {
            match self.hsm.receive_secret(wrapped.clone()).await {
                Ok(secret) => return Ok(Some(secret)),
                // Of the two forms a token opens one.
                Err(TokenError::Refused { .. }) => {}
                Err(said) => return Err(failed(said)),
            }
        }
        Ok(None)
    }
}

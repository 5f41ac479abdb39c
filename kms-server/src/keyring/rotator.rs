//! The steps by which a block comes under its next secret. Each is one commit, and can be done again: what is done is
//! in the block.

use std::sync::Arc;

use super::{
    error::KeyringError,
    opening::{Opener, Unsealed},
    roles::Roles,
    secrets::recipient,
    writing::{Change, Writer},
};
use crate::{
    hsm::{OaepHash, RsaKey},
    store::{SealedSecret, seals::Retirement},
};
use kms_core::{
    BlockNo, BlockSecret, Record,
    audit::AuditEntry,
    block::{
        local::LocalKey,
        rotating::{link, next_version},
    },
    counters::mark::StoredMark,
    fact::{BlockSecrets, Fact, FactName, SecretStage, SecretsWish},
    floors::FloorRow,
    site::peer::Peer,
};

/// A secret for each other site: the name of its form, and what only that site's token opens.
type Wrapped = Vec<([u8; 32], Vec<u8>)>;

/// How a block stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretsOfBlock {
    /// The version of the secret that it is under.
    pub version: u32,
    /// What it says of its rotation; `None`: there was none.
    pub secrets: Option<BlockSecrets>,
}

/// Rotates blocks' secrets.
pub struct SecretRotator {
    opener: Arc<Opener>,
    writer: Arc<Writer>,
    roles: Arc<Roles>,
}

impl SecretRotator {
    /// Changes blocks through `writer`; the other sites are those that `roles` knows.
    pub(super) fn new(opener: Arc<Opener>, writer: Arc<Writer>, roles: Arc<Roles>) -> Self {
        Self { opener, writer, roles }
    }

    /// The number of blocks.
    pub fn blocks(&self) -> u32 {
        self.opener.resident.blocks().get()
    }

    /// Whether this site changes blocks now.
    pub fn check_writes(&self) -> Result<(), KeyringError> {
        self.writer.check_writes()
    }

    /// Whether secrets can be wrapped for all who need them; else the sentence that says who is left out.
    pub async fn not_possible(&self) -> Result<Option<String>, KeyringError> {
        if !self.opener.hsm.token_lists().is_empty() {
            return Ok(Some(
                "this site has two tokens, and a new secret would be sealed for one of them only: not there yet"
                    .to_owned(),
            ));
        }
        if self.opener.store.count_undecided().await? > 0 {
            return Ok(Some(
                "records that one site wrote alone wait for a decision, and under another secret they could not be read: \
                 decide first (`ami-tool site divergence`)"
                    .to_owned(),
            ));
        }
        let peers = self.peers().await?;
        let further = peers.iter().find(|peer| peer.tokens.is_some());
        Ok(further.map(|peer| {
            format!(
                "site {} has two tokens, and a new secret would reach one of them only: not there yet",
                peer.site
            )
        }))
    }

    async fn peers(&self) -> Result<Vec<Peer>, KeyringError> {
        let failed = |error: super::NotChanged| KeyringError::NotWrapped {
            block: BlockNo(0),
            what: format!("the other sites are not known: {error}"),
        };
        self.roles.peers().await.map_err(failed)
    }

    /// The rotation that was asked for last; `None`: none ever was.
    pub async fn wish(&self) -> Result<Option<SecretsWish>, KeyringError> {
        let name = FactName::of_wish();
        let (_, verified) = self.opener.verified(name.block(self.opener.resident.blocks())).await?;
        Ok(match verified.stands(&kms_core::RecordKey::fact(&name)) {
            Ok(Some(Record::Fact(Fact::Wish(wish)))) => Some(wish),
            _ => None,
        })
    }

    /// Notes that the secrets of all blocks are to be rotated once more, if `known` is what was noted last.
    pub async fn ask(
        &self,
        known: Option<SecretsWish>,
        asked_ms: u64,
        entry: AuditEntry,
    ) -> Result<Option<SecretsWish>, KeyringError> {
        let name = FactName::of_wish();
        let mut change = self.take(name.block(self.opener.resident.blocks())).await?;
        let there = match change.fact(&name) {
            Some(Fact::Wish(wish)) => Some(wish),
            _ => None,
        };
        if there != known {
            return Ok(there);
        }
        let generation = there.map_or(0, |wish| wish.generation).saturating_add(1);
        let wish = SecretsWish { generation, asked_ms };
        change.put(Record::Fact(Fact::Wish(wish)));
        self.writer.commit(vec![change], vec![entry]).await?;
        Ok(Some(wish))
    }

    /// How a block stands, verified.
    pub async fn look(&self, block: BlockNo) -> Result<SecretsOfBlock, KeyringError> {
        let (_, verified) = self.opener.verified(block).await?;
        let version = verified.head().secret_version;
        Ok(SecretsOfBlock { version, secrets: self.opener.secrets_in(&verified) })
    }

    /// How the former secrets of a block go, which says that they may; `None`: it does not. What is MACed under one of
    /// them, and is in no record, comes under the present one. A row that this site did not write stays as it is.
    pub async fn retirement(
        &self,
        block: BlockNo,
        mark: Option<StoredMark>,
        floors: Vec<FloorRow>,
    ) -> Result<Option<Retirement>, KeyringError> {
        let (unsealed, verified) = self.opener.verified(block).await?;
        let below = verified.head().secret_version;
        let secrets = self.opener.secrets_in(&verified);
        let may_go = |it: &BlockSecrets| it.stage == SecretStage::Retired && it.version == below;
        if !secrets.as_ref().is_some_and(may_go) {
            return Ok(None);
        }
        let site = &self.opener.domain.site;
        let key = LocalKey::of(&unsealed.keys, site);
        let others = self.opener.others(block, below).await?;
        let others: Vec<(u32, LocalKey)> = others
            .iter()
            .map(|other| (other.secret_version, LocalKey::of(&other.keys, site)))
            .collect();
        let is_former = |stored: &StoredMark| {
            let mut of_version = others.iter().filter(|(it, _)| *it == stored.secret_version);
            of_version.any(|(_, key)| stored.is_authentic(key))
        };
        let mark = mark.filter(is_former);
        let mark = mark.map(|old| (old, StoredMark::sealed(old.mark, below, &key)));
        let is_former = |row: &FloorRow| {
            row.verified(&key).is_none()
                && others.iter().any(|(_, key)| row.verified(key).is_some())
        };
        let floors = floors.into_iter().filter(is_former);
        let floors = floors.map(|row| (row.mac, row.signed(&key))).collect();
        Ok(Some(Retirement { block, below, mark, floors }))
    }

    async fn take(&self, block: BlockNo) -> Result<Change, KeyringError> {
        let change = self.writer.change(&[block]).await?.pop();
        change.ok_or_else(|| KeyringError::missing(block))
    }

    /// Makes the next secret of a block, seals it for this token, and notes it in the block, wrapped for each other
    /// site. Nothing is under it yet.
    pub async fn stage(
        &self,
        block: BlockNo,
        wish: SecretsWish,
        entry: AuditEntry,
    ) -> Result<(), KeyringError> {
        let peers = self.peers().await?;
        let mut change = self.take(block).await?;
        let there = self.opener.secrets_in(change.base());
        if there.as_ref().is_some_and(|there| there.generation >= wish.generation) {
            return Ok(());
        }
        let from = change.base().head().secret_version;
        let seals = self.opener.own_seals(block).await?;
        let known = seals.iter().map(|seal| seal.secret_version);
        let known = known.chain([from]).chain(there.map(|there| there.version));
        let even = self.roles.parity().unwrap_or_default();
        let version = next_version(known, even);
        let version =
            version.ok_or_else(|| unfit(block, "there is no further version of its secret"))?;
        let (unsealed, secret, seal) = self.make(block, version).await?;
        let link = link(block, change.unsealed().under(), unsealed.under());
        let secrets = BlockSecrets {
            block,
            blocks: self.opener.resident.blocks(),
            generation: wish.generation,
            from,
            version,
            stage: SecretStage::Staged,
            made_ms: wish.asked_ms,
            link,
            wrapped: wrapped_for(block, &peers, &secret)?,
        };
        change.put(Record::Fact(Fact::Secrets(secrets)));
        change.add_seal(seal);
        self.writer.commit(vec![change], vec![entry]).await?;
        Ok(())
    }

    /// A new secret of the token's generator, and its seal.
    async fn make(
        &self,
        block: BlockNo,
        version: u32,
    ) -> Result<(Unsealed, BlockSecret, SealedSecret), KeyringError> {
        let (opener, hsm) = (&self.opener, &self.opener.hsm);
        let failed = |said| KeyringError::Token { block, said };
        let random = hsm.random(BlockSecret::LEN).await.map_err(failed)?;
        let secret = BlockSecret::fill_with(|bytes| {
            let random: &[u8; BlockSecret::LEN] = random
                .as_slice()
                .try_into()
                .map_err(|_| unfit(block, "the token gave too few bytes"))?;
            bytes.copy_from_slice(random);
            Ok::<_, KeyringError>(())
        })?;
        let kek_id = hsm.kek_in_use().id;
        let place = opener.place(block, version).seal_aad(&kek_id);
        let (secret, sealed) = hsm.seal_under(kek_id, place, secret).await.map_err(failed)?;
        let unsealed = opener.expanded(block, version, &secret)?;
        Ok((unsealed, secret, SealedSecret { secret_version: version, kek_id, sealed }))
    }

    /// Brings all of a block under the secret that is staged. To be called once the other site has proved that this one
    /// opens there.
    pub async fn rewrite(&self, block: BlockNo, entry: AuditEntry) -> Result<(), KeyringError> {
        let mut change = self.take(block).await?;
        let staged = self.opener.secrets_in(change.base());
        let Some(staged) = staged.filter(|it| it.stage == SecretStage::Staged) else {
            return Ok(());
        };
        let seals = self.opener.own_seals(block).await?;
        let seal = seals.iter().find(|seal| seal.secret_version == staged.version);
        let seal = seal.ok_or(KeyringError::NotSealedForUs(block))?;
        let (unsealed, _) = self.opener.unseal_as(block, seal).await?;
        // A seal that somebody put in the place of another one would have opened nowhere; a token that errs might.
        if link(block, change.unsealed().under(), unsealed.under()) != staged.link {
            return Err(unfit(block, "the secret that is staged is not the one that was made"));
        }
        change.rewrite_under(unsealed, BlockSecrets { stage: SecretStage::Rewritten, ..staged });
        self.writer.commit(vec![change], vec![entry]).await?;
        Ok(())
    }

    /// Notes that the former secret of a block may go, at each site. To be called once the rewritten block was proved.
    pub async fn retire(&self, block: BlockNo, entry: AuditEntry) -> Result<(), KeyringError> {
        let mut change = self.take(block).await?;
        let there = self.opener.secrets_in(change.base());
        let Some(there) = there.filter(|it| it.stage == SecretStage::Rewritten) else {
            return Ok(());
        };
        let retired = BlockSecrets { stage: SecretStage::Retired, ..there };
        change.put(Record::Fact(Fact::Secrets(retired)));
        self.writer.commit(vec![change], vec![entry]).await?;
        Ok(())
    }
}

/// A secret for each other site, in the order of their names. Which hash its token can do, its row does not say.
fn wrapped_for(
    block: BlockNo,
    peers: &[Peer],
    secret: &BlockSecret,
) -> Result<Wrapped, KeyringError> {
    let mut wrapped = Vec::new();
    for peer in peers {
        let failed = || unfit(block, &format!("nothing can be wrapped for site {}", peer.site));
        let key = RsaKey::from_der(&peer.transport_block).map_err(|_| failed())?;
        for hash in [OaepHash::Sha1, OaepHash::Sha256] {
            let bytes = key.wrap_secret(hash, secret).map_err(|_| failed())?;
            wrapped.push((recipient(&peer.transport_block, hash), bytes));
        }
    }
    wrapped.sort();
    Ok(wrapped)
}

fn unfit(block: BlockNo, what: &str) -> KeyringError {
    KeyringError::NotWrapped { block, what: what.to_owned() }
}

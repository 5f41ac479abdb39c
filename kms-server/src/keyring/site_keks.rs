//! The site KEKs of this server's token: which of them is in use says a signed row of the database, and a server takes that
//! up when it looks, and when it finds a seal that it does not know.

use std::sync::Arc;

use tokio::sync::Mutex;

use super::{error::KeyringError, opening::Opener};
use crate::{
    hsm::{Hsm, TokenError},
    store::{ReadStore, SealedSecret, StoreError},
};
use kms_core::{BlockNo, DomainRecord, site::keks::SignedSiteKeks};

/// Why what the database says of site KEKs is not taken up.
#[derive(Debug, thiserror::Error)]
pub enum KeksError {
    /// It can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The token does not do it.
    #[error("the site KEK that the database names is not used")]
    Token(#[from] TokenError),
    /// Nobody who counts has said it.
    #[error(
        "the row of this token's site KEKs is not what the token signed: it was changed outside this service; restore \
         the table `site_keks` from a backup"
    )]
    Changed,
    /// Somebody has put an older one back.
    #[error(
        "the row of this token's site KEKs went back from {seen} to {found}: an older one was put back; restore the table \
         `site_keks` from a backup"
    )]
    WentBack {
        /// The highest number seen.
        seen: u64,
        /// The number that is there.
        found: u64,
    },
}

/// Takes up which site KEKs are in use.
pub struct SiteKekKeeper {
    hsm: Hsm,
    store: Arc<dyn ReadStore>,
    domain: DomainRecord,
    /// The newest row that was taken up.
    known: Mutex<Option<SignedSiteKeks>>,
}

impl SiteKekKeeper {
    pub(super) fn new(hsm: Hsm, store: Arc<dyn ReadStore>, domain: DomainRecord) -> Self {
        Self { hsm, store, domain, known: Mutex::default() }
    }

    /// What the database says of this token's site KEKs, taken up; `None`: the one that the domain was founded with is in
    /// use, and no other one ever was.
    pub async fn learn(&self) -> Result<Option<SignedSiteKeks>, KeksError> {
        // Held all along: of two that look at once the later one has no older row.
        let mut known = self.known.lock().await;
        let row = take_up(&self.hsm, self.store.as_ref(), &self.domain, known.as_ref()).await?;
        if row.is_some() {
            known.clone_from(&row);
        }
        Ok(row)
    }
}

/// The row of this token, if there is one: verified, not older than `known`, and taken up by `hsm`.
pub async fn take_up(
    hsm: &Hsm,
    store: &dyn ReadStore,
    domain: &DomainRecord,
    known: Option<&SignedSiteKeks>,
) -> Result<Option<SignedSiteKeks>, KeksError> {
    let rows = store.site_keks().await?;
    if rows.is_empty() && known.is_none() {
        return Ok(None);
    }
    let own = hsm.public_key().await?;
    let row = rows.into_iter().find(|row| row.keks.signing == own);
    let seen = known.map_or(0, |known| known.keks.sequence);
    let Some(row) = row else {
        return match known {
            None => Ok(None),
            Some(_) => Err(KeksError::WentBack { seen, found: 0 }),
        };
    };
    if known == Some(&row) {
        return Ok(Some(row));
    }
    if !row.is_of(&own, &domain.domain, &domain.site) {
        return Err(KeksError::Changed);
    }
    if row.keks.sequence < seen {
        return Err(KeksError::WentBack { seen, found: row.keks.sequence });
    }
    let (current, further) = row.keks.in_use();
    let was = hsm.kek_in_use().id;
    hsm.use_keks(current.clone(), further.into_iter().cloned().collect()).await?;
    if was != current.id {
        tracing::info!(kek = %hex::encode(current.id), "another site KEK is in use");
    }
    Ok(Some(row))
}

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

/// As [`Opener::ours`].
pub fn ours(hsm: &Hsm, seals: &[SealedSecret]) -> Vec<SealedSecret> {
    let keks = hsm.keks_that_open();
    let rank = |seal: &SealedSecret| keks.iter().position(|kek| *kek == seal.kek_id);
    let mut ours: Vec<(u32, usize, &SealedSecret)> = seals
        .iter()
        .filter_map(|seal| rank(seal).map(|rank| (seal.secret_version, rank, seal)))
        .collect();
    ours.sort_by_key(|(version, rank, _)| (*version, *rank));
    ours.dedup_by_key(|(version, ..)| *version);
    ours.into_iter().map(|(.., seal)| seal.clone()).collect()
}

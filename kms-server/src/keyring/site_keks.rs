//! The site KEKs of this server's token: which of them is in use says a signed row of the database, and a server takes that
//! up when it looks, and when it finds a seal that it does not know.

use std::sync::Arc;

use tokio::sync::Mutex;

use crate::{
    hsm::{Hsm, TokenError},
    store::{ReadStore, SealedSecret, StoreError},
};
use kms_core::{DomainRecord, site::keks::SignedSiteKeks};

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

/// Of these seals those that this server's token opens: of each version one, that under the KEK in use before others.
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

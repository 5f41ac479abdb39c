//! Each site keeps the newest head table that the other one has shown: its witness. A site that later shows an older
//! one is named; and a site is told by the other one what it had shown itself, before its database was put back.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use sha2::{Digest as _, Sha256};
use tokio::time::{MissedTickBehavior, interval};

use super::{
    card::SiteCard,
    grounds::Grounds,
    messages::{HeadTablesSaid, ShownTable},
    reporting::{Reporting, names},
};
use crate::{
    keyring::Prover,
    store::{
        AuditStore,
        papers::{Paper, PaperKind, PaperStore},
    },
};
use kms_core::{
    Epoch,
    audit::SiteKeys,
    freshness::{HeadTable, SignedHeadTable},
    site::{
        tokens::{SignedSiteTokens, TokenId},
        witness::{TablePlace, hold_against},
    },
};

/// The peer is told of a new token when it looks at this site, and this one looks at the peer meanwhile.
const LOOKS_UNKNOWN_MAX: u32 = 2;

/// Where head tables are: our own, and those that were witnessed.
pub trait Tables: AuditStore + PaperStore {}
impl<T: AuditStore + PaperStore + ?Sized> Tables for T {}

/// Witnesses the peer's head tables, and shows it ours.
pub struct Witnessing {
    grounds: Grounds,
    prover: Arc<Prover>,
    reporting: Arc<Reporting>,
    tables: Arc<dyn Tables>,
    /// Looks in a row in which the peer did not know this server's token.
    looks_unknown: AtomicU32,
}

impl Witnessing {
    /// Keeps what it sees in `tables`.
    pub fn new(
        grounds: Grounds,
        prover: Arc<Prover>,
        reporting: Arc<Reporting>,
        tables: Arc<dyn Tables>,
    ) -> Self {
        Self { grounds, prover, reporting, tables, looks_unknown: AtomicU32::new(0) }
    }

    /// Runs until the process ends.
    pub async fn run(&self) {
        let mut ticks = interval(self.grounds.config.prove_interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.look().await {
                tracing::debug!(error, "the peer's head table was not looked at");
            }
        }
    }

    /// Asks the peer for its head table and for ours as it has seen it, and says what is wrong with either.
    pub async fn look(&self) -> Result<(), String> {
        let Grounds { peer, cards, status, config, .. } = &self.grounds;
        let card = cards.now().await.map_err(|error| error.to_string())?;
        let said = peer.head_tables(card.clone()).await.map_err(|error| error.to_string())?;
        if !config.is_peer(&said.card.site) {
            return Err(format!("site {} answers", said.card.site));
        }
        status.heard(&said.card);
        let HeadTablesSaid { own, witnessed, card: by, tokens, known } = said;
        // First: a token that was enrolled there since may have signed all that follows.
        let mut strange = self.reporting.take_tokens(&by, &tokens).await?;
        strange.extend(self.not_known_there(&by, &known));
        strange.extend(self.reporting.not_enrolled().await?);
        status.strange_tokens(strange);
        let theirs = match own {
            Some(shown) => self.witness(&card, &by.site, &shown).await?,
            None => None,
        };
        let ours = match witnessed {
            Some(shown) => self.held_against_ours(&card, &by.site, &shown).await?,
            None => None,
        };
        status.went_back(theirs.into_iter().chain(ours).collect());
        Ok(())
    }

    /// For the peer: the lists of this site's tokens.
    pub fn token_lists(&self) -> Vec<SignedSiteTokens> {
        self.prover.token_lists()
    }

    /// For the peer: those of its tokens whose signatures count here.
    pub async fn known_tokens(&self, site: &str) -> Vec<TokenId> {
        let keys = self.reporting.keys_of(site).await.ok().flatten();
        keys.map_or_else(Vec::new, |keys| keys.iter().map(TokenId::of).collect())
    }

    /// Why what this server's token signs does not count at the peer, if it does not: one look after it was shown there it does.
    fn not_known_there(&self, peer: &SiteCard, known: &[TokenId]) -> Option<String> {
        let own = self.grounds.cards.makeup().token()?;
        if known.is_empty() || known.contains(&own) {
            self.looks_unknown.store(0, Ordering::Relaxed);
            return None;
        }
        if self.looks_unknown.fetch_add(1, Ordering::Relaxed) < LOOKS_UNKNOWN_MAX {
            return None;
        }
        Some(format!(
            "this server's token {own} is not known at site {}, and what it signs does not count there, a promotion neither ({} \
             of this site): if this site was built anew since, this is an old copy of it, to be stopped for good; else use one \
             of these tokens, or build this site anew and have it enrolled there with `--replace`",
            peer.site,
            names(known)
        ))
    }

    /// For the peer: our head table, and the newest of its that was witnessed here.
    pub async fn shown(&self) -> Result<(Option<ShownTable>, Option<ShownTable>), String> {
        let own = self.tables.head_table().await.map_err(|error| error.to_string())?;
        let own = own.map(|SignedHeadTable { body, signature, .. }| ShownTable { body, signature });
        let witnessed = self.paper(&self.grounds.config.peer).await?;
        let witnessed =
            witnessed.map(|Paper { body, signature, .. }| ShownTable { body, signature });
        Ok((own, witnessed))
    }

    /// The newest head table of the peer that was witnessed here, verified.
    pub(super) async fn witnessed(&self) -> Result<Option<HeadTable>, String> {
        self.witnessed_of(&self.grounds.config.peer).await
    }

    async fn witnessed_of(&self, site: &str) -> Result<Option<HeadTable>, String> {
        let Some(keys) = self.reporting.keys_of(site).await? else {
            return Ok(None);
        };
        let card = self.grounds.cards.now().await.map_err(|error| error.to_string())?;
        let kept = self.paper(site).await?;
        Ok(kept.and_then(|paper| {
            let shown = ShownTable { body: paper.body, signature: paper.signature };
            opened(&card, &shown, &keys)
        }))
    }

    async fn paper(&self, site: &str) -> Result<Option<Paper>, String> {
        let papers = self.tables.papers().await.map_err(|error| error.to_string())?;
        let is_theirs = |paper: &Paper| paper.kind == PaperKind::HeadTable && paper.site == site;
        Ok(papers.into_iter().find(is_theirs))
    }

    /// Keeps the peer's head table if it is a newer one; the sentence that says that it went back.
    async fn witness(
        &self,
        card: &SiteCard,
        peer: &str,
        shown: &ShownTable,
    ) -> Result<Option<String>, String> {
        let keys = self.reporting.keys_of(peer).await?.ok_or("the peer is not enrolled here")?;
        let table = opened(card, shown, &keys);
        let table =
            table.ok_or_else(|| format!("site {peer} shows a head table that it did not sign"))?;
        if let Some(kept) = self.witnessed_of(peer).await? {
            self.grounds.status.witnessed(kept.at_ms);
            match hold_against(&table, &kept) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(why) => {
                    return Ok(Some(format!(
                        "site {peer} is not what it was: {why}; its database was put back: stop it, and see the \
                         handbook"
                    )));
                }
            }
        }
        let place = TablePlace::of(&table);
        let paper = Paper {
            kind: PaperKind::HeadTable,
            site: peer.to_owned(),
            place: (place.epoch, place.number),
            body: shown.body.clone(),
            signature: shown.signature,
            signer: Sha256::digest(keys.first()).into(),
        };
        self.tables.put_paper(&paper).await.map_err(|error| error.to_string())?;
        self.grounds.status.witnessed(table.at_ms);
        Ok(None)
    }

    /// Holds our own head table against the one that the peer has seen of us.
    async fn held_against_ours(
        &self,
        card: &SiteCard,
        peer: &str,
        seen: &ShownTable,
    ) -> Result<Option<String>, String> {
        let keys = self.prover.site_keys().await.map_err(|error| error.to_string())?;
        // One of a token that we had before, or of nobody: it says nothing of us.
        let Some(seen) = opened(card, seen, &keys) else { return Ok(None) };
        let ours = self.tables.head_table().await.map_err(|error| error.to_string())?;
        let ours = ours.and_then(|ours| ours.open(&card.domain, &keys));
        // A site without a head table opens no block, and says why itself.
        let Some(ours) = ours else { return Ok(None) };
        Ok(hold_against(&ours, &seen).err().map(|why| {
            format!(
                "this database is not the newest of this site: by what site {peer} has seen of it, {why}; stop this \
                 site, put its newest copy back, or see the handbook, \"a restored site\""
            )
        }))
    }
}

fn opened(card: &SiteCard, shown: &ShownTable, keys: &SiteKeys) -> Option<HeadTable> {
    let signed = shown.clone().signed()?;
    signed.open(&card.domain, keys).filter(|table| TablePlace::of(table).epoch < Epoch(1 << 62))
}

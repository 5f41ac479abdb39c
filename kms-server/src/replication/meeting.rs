//! A site that writes meets its peer: before anything is written after a start, and again and again. The peer may have
//! been promoted; and it may have states of our own epoch that our database has no more, since it was put back.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::timeout;

use super::{
    card::SiteCard,
    fencing::{Fencing, NotFenced},
    grounds::Grounds,
    messages::{HeadsAsked, HeadsSaid, ShownTable},
};
use crate::{
    keyring::{KeyringError, Roles},
    store::StoreError,
};
use kms_core::{
    BlockNo, Epoch, Head,
    block::BlockMark,
    block::lineage::Lineage,
    replication::serving::{Due, due},
};

/// The longest time in which a peer is asked for its card, or for all of its heads.
const PATIENCE: Duration = Duration::from_secs(2);
/// Of so many looks at the peer's card, each a second, one is at all of its heads.
const ALL_HEADS_EVERY: u64 = 30;
/// Blocks that look as if we were rolled back and are verified, in one look. One that is authentic is enough.
const VERIFIED_MAX: usize = 16;

/// Behind the sentence of a roll back that only the peer speaks for.
const UNPROVED: &str = "Nothing that this site's token signed says so yet, only a head of the peer's: this server writes \
                        nothing until it is started anew, and nothing is stored";

/// The reason why nothing is known of the peer.
#[derive(Debug, thiserror::Error)]
pub enum NotMet {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A block.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// It names an epoch that it does not prove.
    #[error(transparent)]
    NotFenced(#[from] NotFenced),
    /// Another site answers.
    #[error("site {site:?} answers, which is not the peer {peer:?} of this key domain")]
    Another {
        /// The one that answers.
        site: String,
        /// The peer.
        peer: String,
    },
}

/// Meets the peer, for a site that writes.
pub(super) struct Meeting {
    grounds: Grounds,
    roles: Arc<Roles>,
    fencing: Arc<Fencing>,
    looks: AtomicU64,
}

impl Meeting {
    /// Learns by `roles` and `fencing` what the peer shows.
    pub(super) fn new(grounds: Grounds, roles: Arc<Roles>, fencing: Arc<Fencing>) -> Self {
        Self { grounds, roles, fencing, looks: AtomicU64::new(0) }
    }

    /// Whether this is a card of our peer.
    pub(super) fn check_name(&self, card: &SiteCard) -> Result<(), NotMet> {
        let Grounds { cards, config, .. } = &self.grounds;
        if cards.is_of_domain(card) && config.is_peer(&card.site) {
            return Ok(());
        }
        Err(NotMet::Another { site: card.site.clone(), peer: config.peer.clone() })
    }

    /// Asks the peer. One that does not answer is no fault of its own here: nothing is proved then, and that is told.
    pub(super) async fn look(&self) -> Result<(), NotMet> {
        let Grounds { cards, peer, status, .. } = &self.grounds;
        let due = self.looks.fetch_add(1, Ordering::Relaxed).is_multiple_of(ALL_HEADS_EVERY);
        let all = due || status.is_suspected();
        let blocks = if all { Vec::new() } else { vec![BlockNo(0)] };
        let asked = HeadsAsked { blocks, ..HeadsAsked::default() };
        let said = timeout(PATIENCE, peer.list_heads(cards.now().await?, asked)).await;
        let said = said.map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()));
        let HeadsSaid { card, heads, .. } =
            match said.map(|said| said.map_err(|why| why.to_string())) {
                Ok(Ok(said)) => said,
                Ok(Err(why)) | Err(why) => {
                    status.asked(Some(why));
                    if all {
                        // It is asked for all of them as soon as it is there.
                        self.looks.store(0, Ordering::Relaxed);
                    }
                    return Ok(());
                }
            };
        status.asked(None);
        self.check_name(&card)?;
        status.heard(&card);
        self.meet(&card, &heads).await
    }

    async fn meet(&self, card: &SiteCard, heads: &[Head]) -> Result<(), NotMet> {
        let row = self.fencing.meet(card).await?;
        if row.writes {
            self.hold_against(row.epoch, heads).await?;
        }
        if self.roles.rolled_back().is_some() && self.roles.known_mark().is_none() {
            self.have_it_stored().await;
        }
        let is_stored = self.roles.known_mark().is_some();
        let held = self.roles.rolled_back().map(|reason| match is_stored {
            true => reason.to_string(),
            false => format!("{reason}. {UNPROVED}"),
        });
        self.grounds.status.rolled_back(held);
        Ok(())
    }

    /// Has it stored that this site was put back, if our own token has signed what the database has no more: the peer keeps
    /// the newest head table of ours. A head alone proves nothing that outlives this process: the peer has the keys that
    /// make its MAC.
    async fn have_it_stored(&self) {
        if let Err(error) = self.store_what_is_proved().await {
            tracing::warn!(error, "that this site was put back is not stored yet");
        }
    }

    async fn store_what_is_proved(&self) -> Result<(), String> {
        let Grounds { cards, peer, .. } = &self.grounds;
        let card = cards.now().await.map_err(|error| error.to_string())?;
        let said = timeout(PATIENCE, peer.head_tables(card)).await;
        let said = said.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        let Some(signed) = said.witnessed.and_then(ShownTable::signed) else { return Ok(()) };
        self.roles.store_rolled_back(&signed).await.map_err(|error| error.to_string())
    }

    /// Holds the peer's heads against ours, which are read after they came: we only go on meanwhile.
    async fn hold_against(&self, epoch: Epoch, theirs: &[Head]) -> Result<(), NotMet> {
        if self.roles.rolled_back().is_some() || theirs.is_empty() {
            return Ok(());
        }
        let ours: BTreeMap<BlockNo, BlockMark> =
            self.grounds.store.heads().await?.iter().map(|head| (head.block, mark(head))).collect();
        let is_beyond = |head: &&Head| {
            head.position.epoch == epoch
                && ours.get(&head.block).is_some_and(|ours| is_beyond(ours, &mark(head)))
        };
        for head in theirs.iter().filter(is_beyond).take(VERIFIED_MAX) {
            if self.roles.hold_against(head).await?.is_some() {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Whether a follower that says to be at `cursor` has a state of our epoch that we don't have.
pub(super) fn is_beyond(ours: &BlockMark, cursor: &BlockMark) -> bool {
    let same_place = ours.position == cursor.position && ours.digest != cursor.digest;
    // What came before our epoch says nothing of it.
    let lineage = Lineage::of(ours.position.epoch, |_| None);
    same_place || matches!(due(ours, &lineage, cursor), Due::RolledBack(_))
}

fn mark(head: &Head) -> BlockMark {
    BlockMark { block: head.block, position: head.position, digest: head.digest }
}

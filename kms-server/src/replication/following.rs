//! Following the peer: what changes there is taken over here, many blocks in one transaction. One server of a site
//! follows, by a lock of the database; two that both believe to have it harm nothing, since each adoption names the
//! state that it builds on.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, sleep, timeout},
};

use super::{
    card::{Cards, SiteCard},
    config::Config,
    fencing::{Fencing, NotFenced, OURSELVES},
    messages::{BlockUpdate, Followed, HeadsAsked, PeerSaid},
    peer::{Peer, PeerError},
    status::Status,
};
use crate::{
    keyring::{Adopter, Arrived, KeyringError, Outcome, Taken},
    store::{ReadStore, StoreError},
};
use kms_core::{
    BlockNo, Head, StoredRecord,
    audit::{AuditEntry, AuditOutcome, AuditedCall, Subject},
    block::BlockMark,
    ports::Clock,
    site::role::SignedRoleRecord,
};

/// Blocks that are taken over in one transaction, and bytes of their records.
const BATCH: (usize, usize) = (128, 4 << 20);
/// Blocks that are fetched whole in one call.
const FETCHED_AT_ONCE: usize = 64;
/// The longest block that is put together from pieces, in bytes.
const BLOCK_BYTES_MAX: usize = 256 << 20;
/// The wait before a try after one that failed.
const AGAIN: Duration = Duration::from_secs(1);
/// Heartbeats that may be missing.
const BEATS_MISSING: u32 = 4;
/// The time in which a change that is on its way arrives: a block that differs for longer is fetched.
const ON_ITS_WAY: Duration = Duration::from_secs(2);

/// The reason why the following of a peer ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    NotFenced(#[from] NotFenced),
    #[error("site {site:?} answers, which is not the peer {peer:?} of this key domain")]
    Another { site: String, peer: String },
    #[error(
        "the peer is at epoch {theirs}, and this site knows of {ours}: it has to learn that first"
    )]
    Behind { theirs: u64, ours: u64 },
    #[error("the peer has said nothing for {0:?}")]
    Silent(Duration),
    #[error("this site writes by now")]
    Writes,
}

/// Follows the peer.
pub struct Following {
    config: Config,
    peer: Arc<dyn Peer>,
    store: Arc<dyn ReadStore>,
    adopter: Arc<Adopter>,
    fencing: Arc<Fencing>,
    cards: Cards,
    clock: Arc<dyn Clock>,
    status: Arc<Status>,
}

/// Blocks that were taken over whole, the records written for them, and the bytes of these blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Blocks.
    pub blocks: u32,
    /// Records.
    pub records: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A connection to the peer.
struct Session<'a> {
    of: &'a Following,
    roles: Vec<SignedRoleRecord>,
    tell: mpsc::Sender<Vec<BlockMark>>,
    pieces: Pieces,
    /// Blocks of which all records are wanted.
    wanted: Vec<BlockNo>,
    /// What was taken over.
    repaired: Repaired,
}

/// Blocks of which pieces came and not the last one.
#[derive(Default)]
struct Pieces {
    open: BTreeMap<BlockNo, (Head, Vec<StoredRecord>)>,
    bytes: usize,
}

impl Following {
    /// Takes over by `adopter`, and is fenced by `fencing`.
    pub fn new(
        config: Config,
        (peer, store): (Arc<dyn Peer>, Arc<dyn ReadStore>),
        (adopter, fencing): (Arc<Adopter>, Arc<Fencing>),
        (cards, clock): (Cards, Arc<dyn Clock>),
        status: Arc<Status>,
    ) -> Self {
        Self { config, peer, store, adopter, fencing, cards, clock, status }
    }

    /// Runs until the process ends. A site that writes follows nobody, until it writes no more.
    pub async fn run(&self) {
        loop {
            let fault = match self.try_to_follow().await {
                Ok(()) => None,
                Err(Ended::Writes) => {
                    self.status.not_following();
                    sleep(AGAIN).await;
                    continue;
                }
                Err(ended) => Some(format!("not following site {}: {ended}", self.config.peer)),
            };
            self.status.following(|following| {
                if following.fault != fault {
                    if let Some(fault) = &fault {
                        tracing::warn!("{fault}");
                    }
                    following.fault = fault;
                }
                following.connected = false;
            });
            sleep(AGAIN).await;
        }
    }

    /// Ends well where another server of this site follows, or the lock is lost to one.
    async fn try_to_follow(&self) -> Result<(), Ended> {
        if self.store.role().await?.writes {
            // Who was promoted elsewhere is met by being asked; who writes asks, too.
            return self.look_at_peer().await;
        }
        let Some(mut lock) = self.store.follower_lock().await? else { return Ok(()) };
        tokio::select! {
            lost = lock.until_lost() => {
                tracing::info!(%lost, "another server of this site may follow the peer now");
                Ok(())
            }
            ended = self.follow() => ended.map(|never| match never {}),
        }
    }

    /// A site that comes back, and believes that it writes, asks its peer before it goes on.
    async fn look_at_peer(&self) -> Result<(), Ended> {
        let card = self.cards.now().await?;
        let asked = HeadsAsked { blocks: vec![BlockNo(0)], ..HeadsAsked::default() };
        let bound = self.config.heartbeat * BEATS_MISSING;
        if let Ok(Ok(said)) = timeout(bound, self.peer.list_heads(card, asked)).await {
            self.check_name(&said.card)?;
            self.status.heard(&said.card);
            self.fencing.meet(&said.card).await?;
        }
        Err(Ended::Writes)
    }

    async fn follow(&self) -> Result<Infallible, Ended> {
        let cursors = marks(&self.store.heads().await?);
        let card = self.cards.now().await?;
        let Followed { mut said, tell } = self.peer.follow(card, cursors).await?;
        let roles = self.fencing.records().await?;
        let mut session = Session {
            of: self,
            roles,
            tell,
            pieces: Pieces::default(),
            wanted: Vec::new(),
            repaired: Repaired::default(),
        };
        let silence = self.config.heartbeat * BEATS_MISSING;
        let first = Instant::now() + self.config.compare_interval.min(ON_ITS_WAY);
        let mut comparisons = interval_at(first, self.config.compare_interval);
        comparisons.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let heard = tokio::select! {
                heard = timeout(silence, said.next()) => heard,
                _ = comparisons.tick() => {
                    session.compare().await?;
                    continue;
                }
            };
            let Ok(heard) = heard else { return Err(Ended::Silent(silence)) };
            let mut batch = Vec::new();
            let mut bytes = 0;
            let mut next = Some(heard);
            // What is there already comes into the same transaction.
            while let Some(heard) = next {
                let heard = heard.unwrap_or_else(|| Err(PeerError::Broken("it has ended".into())));
                if let Some(arrived) = session.take(heard?).await? {
                    bytes += arrived.records.iter().map(|record| record.body.len()).sum::<usize>();
                    let twice =
                        batch.iter().any(|it: &Arrived| it.head.block == arrived.head.block);
                    if twice {
                        session.adopt(std::mem::take(&mut batch)).await?;
                    }
                    batch.push(arrived);
                }
                let full = batch.len() >= BATCH.0 || bytes >= BATCH.1;
                next = if full { None } else { said.next().now_or_never() };
            }
            session.adopt(batch).await?;
            session.fetch_wanted().await?;
        }
    }

    /// Fetches these blocks whole and takes over what is not here already, beside whoever follows. What was
    /// written; else the sentence that says why not.
    pub(super) async fn repair(&self, blocks: &[BlockNo]) -> Result<Repaired, String> {
        // Nobody is to be told: the peer looks at our blocks itself.
        let (tell, mut told) = mpsc::channel(1);
        let nobody = tokio::spawn(async move { while told.recv().await.is_some() {} });
        let repaired = async {
            let roles = self.fencing.records().await?;
            let (pieces, wanted, repaired) = Default::default();
            let mut session = Session { of: self, roles, tell, pieces, wanted, repaired };
            for some in blocks.chunks(FETCHED_AT_ONCE) {
                session.fetch(some.to_vec()).await?;
            }
            Ok::<_, Ended>(session.repaired)
        };
        let repaired = repaired.await.map_err(|ended| ended.to_string());
        nobody.abort();
        repaired
    }

    fn check_name(&self, card: &SiteCard) -> Result<(), Ended> {
        if self.cards.is_of_domain(card) && card.site == self.config.peer {
            return Ok(());
        }
        Err(Ended::Another { site: card.site.clone(), peer: self.config.peer.clone() })
    }

    fn entry(&self) -> AuditEntry {
        let call = AuditedCall::new(OURSELVES, "Replication/Adopt");
        call.entry(self.clock.unix_ms(), Subject::NONE, AuditOutcome::Done)
    }
}

impl Session<'_> {
    /// Takes what the peer says; a block, once all of its pieces are there.
    async fn take(&mut self, said: PeerSaid) -> Result<Option<Arrived>, Ended> {
        match said {
            PeerSaid::Card(card) => self.meet(&card).await.map(|()| None),
            PeerSaid::Update(update) => self.pieces.take(update, false).map_err(Ended::Peer),
        }
    }

    async fn meet(&mut self, card: &SiteCard) -> Result<(), Ended> {
        let of = self.of;
        of.check_name(card)?;
        of.status.heard(card);
        of.status.following(|following| {
            if !following.connected {
                tracing::info!(site = card.site, epoch = card.epoch.0, "following the peer");
            }
            following.connected = true;
            following.fault = None;
        });
        let before = of.store.role().await?;
        let now = of.fencing.meet(card).await?;
        if now.writes {
            return Err(Ended::Writes);
        }
        if card.epoch < now.epoch {
            return Err(Ended::Behind { theirs: card.epoch.0, ours: now.epoch.0 });
        }
        if now != before || self.roles.is_empty() {
            self.roles = of.fencing.records().await?;
        }
        Ok(())
    }

    async fn adopt(&mut self, batch: Vec<Arrived>) -> Result<(), Ended> {
        if batch.is_empty() {
            return Ok(());
        }
        let of = self.of;
        let bytes = |it: &Arrived| it.records.iter().map(|record| record.body.len() as u64).sum();
        let bytes: BTreeMap<BlockNo, u64> =
            batch.iter().map(|it| (it.head.block, bytes(it))).collect();
        let outcomes = of.adopter.adopt(batch, &self.roles, of.entry()).await?;
        let mut stored = Vec::with_capacity(outcomes.len());
        for Outcome { block, stored: mark, taken } in outcomes {
            // Of one that can't be read here all is sent again, when it moves.
            let (position, digest) = Default::default();
            stored.push(mark.unwrap_or(BlockMark { block, position, digest }));
            match taken {
                Taken::Nothing => of.status.taken(block),
                Taken::Adopted { records, set_aside } => {
                    of.status.taken(block);
                    self.repaired.blocks += 1;
                    self.repaired.records += records as u64;
                    self.repaired.bytes += bytes.get(&block).copied().unwrap_or_default();
                    of.status.following(|following| {
                        following.blocks_adopted += 1;
                        following.records_adopted += records as u64;
                    });
                    if set_aside > 0 {
                        tracing::warn!(
                            block = block.0,
                            set_aside,
                            "records that the peer never had are set aside"
                        );
                    }
                }
                Taken::AskForAll(why) => {
                    of.status.refused(block, why.to_string());
                    self.wanted.push(block);
                }
                Taken::Refused(why) => of.status.refused(block, why),
            }
        }
        // A peer that does not read what we say is gone soon.
        let gone = |_| PeerError::Broken("it takes nothing".to_owned());
        Ok(self.tell.send(stored).await.map_err(gone)?)
    }

    /// Fetches whole what was refused in parts.
    async fn fetch_wanted(&mut self) -> Result<(), Ended> {
        let mut wanted = std::mem::take(&mut self.wanted);
        wanted.sort_unstable();
        wanted.dedup();
        for some in wanted.chunks(FETCHED_AT_ONCE) {
            self.fetch(some.to_vec()).await?;
        }
        // What is refused as a whole is told, and fetched again when all blocks are compared.
        self.wanted.clear();
        Ok(())
    }

    async fn fetch(&mut self, blocks: Vec<BlockNo>) -> Result<(), Ended> {
        let card = self.of.cards.now().await?;
        let mut updates = self.of.peer.fetch_blocks(card, blocks).await?;
        let mut pieces = Pieces::default();
        while let Some(update) = updates.next().await {
            if let Some(arrived) = pieces.take(update?, true)? {
                self.adopt(vec![arrived]).await?;
            }
        }
        Ok(())
    }

    /// Compares the heads of all blocks with the peer's, and fetches those that differ and are not on their way.
    async fn compare(&mut self) -> Result<(), Ended> {
        let card = self.of.cards.now().await?;
        let said = self.of.peer.list_heads(card, HeadsAsked::default()).await?;
        self.meet(&said.card).await?;
        sleep(ON_ITS_WAY).await;
        let ours = self.of.store.heads().await?;
        let ours: BTreeMap<BlockNo, &Head> = ours.iter().map(|head| (head.block, head)).collect();
        let differs = |theirs: &&Head| {
            ours.get(&theirs.block).is_none_or(|ours| {
                ours.position < theirs.position
                    || ours.position == theirs.position && ours.digest != theirs.digest
                    // Another epoch's: it parted, and positions say nothing.
                    || ours.position.epoch != theirs.position.epoch
            })
        };
        let differing: Vec<BlockNo> =
            said.heads.iter().filter(differs).map(|head| head.block).collect();
        self.of.status.compared(differing.len());
        for some in differing.chunks(FETCHED_AT_ONCE) {
            self.fetch(some.to_vec()).await?;
        }
        Ok(())
    }
}

impl Pieces {
    /// Puts a piece to those before it; the block, once it is the last one.
    fn take(&mut self, update: BlockUpdate, is_whole: bool) -> Result<Option<Arrived>, PeerError> {
        let BlockUpdate { head, records, more } = update;
        let (first, mut all) = match self.open.remove(&head.block) {
            Some((first, all)) => (first, all),
            None => (head.clone(), Vec::new()),
        };
        if first != head {
            return Err(PeerError::Unreadable("the pieces of a block are of two states of it"));
        }
        self.bytes += records.iter().map(|record| record.body.len()).sum::<usize>();
        if self.bytes > BLOCK_BYTES_MAX {
            return Err(PeerError::Unreadable("a block does not end"));
        }
        all.extend(records);
        if more {
            self.open.insert(head.block, (head, all));
            return Ok(None);
        }
        if self.open.is_empty() {
            self.bytes = 0;
        }
        Ok(Some(Arrived { head, records: all, is_whole }))
    }
}

fn marks(heads: &[Head]) -> Vec<BlockMark> {
    let mark =
        |head: &Head| BlockMark { block: head.block, position: head.position, digest: head.digest };
    heads.iter().map(mark).collect()
}

//! Answers to the peer. Nothing here can change a block; the one thing that a peer brings about is that this site
//! learns of its promotion.

use std::{sync::Arc, time::Duration};

use futures_util::stream::BoxStream;
use tokio::{
    sync::{Semaphore, mpsc},
    time::{Instant, timeout_at},
};

use super::{
    card::SiteCard,
    config::Config,
    fencing::{Fencing, NotFenced},
    grounds::Grounds,
    ledger::Ledger,
    meeting::is_beyond,
    messages::{BlockUpdate, HeadsAsked},
    not_served::{NotServed, place},
    session::{Said, Session, Source, pieces},
    status::Status,
};
use crate::store::sites::{BlockChanges, Divergent};
use kms_core::{
    BlockCount, BlockNo, Epoch, Head, Position,
    block::BlockMark,
    site::{admission::lineage, role::SignedRoleRecord},
};

/// Followers at one time, of this server. A site has one; it may come anew before the old connection has ended.
const FOLLOWERS_MAX: usize = 4;
/// Read-only replicas that follow at one time, of this server: they take no place of the other site's.
const REPLICAS_MAX: usize = 8;
/// Calls for whole blocks at one time, of this server: each holds a block, and pieces of it.
const FETCHES_MAX: usize = 16;
/// The same of all replicas together.
const REPLICAS_FETCHES_MAX: usize = 4;
/// Messages that wait for a follower, each at most as long as a piece.
const MESSAGES_AHEAD: usize = 4;
/// Heads that are asked for one by one; of more, all are read.
const HEADS_ONE_BY_ONE: usize = 64;
/// The longest wait for positions.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Answers the peer.
pub struct Serving {
    source: Source,
    blocks: BlockCount,
    fencing: Arc<Fencing>,
    status: Arc<Status>,
    config: Config,
    of_peer: Places,
    of_replicas: Places,
}

/// Places for those who are served at one time.
struct Places {
    followers: Arc<Semaphore>,
    fetches: Arc<Semaphore>,
}

impl Places {
    fn new(followers: usize, fetches: usize) -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        Self { followers: places(followers), fetches: places(fetches) }
    }
}

/// Why a site may not report a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MayNot {
    /// It stands in the lineage of its block.
    #[error("it is a part of the block's past: a replica does not report it")]
    OfThePast,
    /// It may have been made up; once the records have come, it is taken.
    #[error("epoch {} is proved by no signed record here: the role records come first", .0.0)]
    EpochNotProved(Epoch),
}

impl Serving {
    /// Over what is stored here, which moves as `ledger` says.
    pub fn new(grounds: &Grounds, ledger: Arc<Ledger>, fencing: Arc<Fencing>) -> Self {
        let Grounds { config, store, cards, blocks, status, .. } = grounds.clone();
        let of_peer = Places::new(FOLLOWERS_MAX, FETCHES_MAX);
        let of_replicas = Places::new(REPLICAS_MAX, REPLICAS_FETCHES_MAX);
        let source = Source { store, ledger, cards, heartbeat: config.heartbeat };
        Self { source, blocks, fencing, status, config, of_peer, of_replicas }
    }

    /// The sites that may write, other than this one.
    pub fn peers(&self) -> impl Iterator<Item = &str> {
        self.config.peers()
    }

    fn places(&self, site: &str) -> &Places {
        if self.config.is_peer(site) { &self.of_peer } else { &self.of_replicas }
    }

    /// Takes a peer's card and gives ours. This site is fenced first, if the peer was promoted.
    pub async fn greet(&self, theirs: &SiteCard) -> Result<SiteCard, NotServed> {
        self.know(theirs).await?;
        self.fencing.meet(theirs).await.map_err(|error| match error {
            NotFenced::Store(error) => NotServed::Store(error),
            error => NotServed::EpochNotProved(error),
        })?;
        Ok(self.source.cards.now().await?)
    }

    /// Takes a peer's card and gives ours, whatever epoch it names.
    pub async fn know(&self, theirs: &SiteCard) -> Result<SiteCard, NotServed> {
        if !self.source.cards.is_of_domain(theirs) {
            return Err(NotServed::AnotherDomain { site: theirs.site.clone() });
        }
        self.status.heard(theirs);
        self.card().await
    }

    /// Our card.
    pub async fn card(&self) -> Result<SiteCard, NotServed> {
        Ok(self.source.cards.now().await?)
    }

    /// Where blocks stand, once they have got as far as was asked, or the time is out.
    pub async fn heads(&self, asked: HeadsAsked) -> Result<(Vec<Head>, bool), NotServed> {
        let HeadsAsked { blocks, at_least, wait_ms } = asked;
        let named = blocks.iter().chain(at_least.iter().map(|(block, _)| block));
        self.check(named)?;
        // They are compared under the ledger's lock each time that a block moves.
        let most = self.blocks.get() as usize;
        if blocks.len().max(at_least.len()) > most {
            return Err(NotServed::Cursors);
        }
        let wait = Duration::from_millis(wait_ms.into()).min(WAIT_MAX);
        let reached = self.reached(&at_least, wait).await;
        Ok((self.heads_of(&blocks).await?, reached))
    }

    async fn reached(&self, at_least: &[(BlockNo, Position)], wait: Duration) -> bool {
        let until = Instant::now() + wait;
        let mut moves = self.source.ledger.watch();
        loop {
            moves.borrow_and_update();
            if self.source.ledger.has_reached(at_least) {
                return true;
            }
            if !matches!(timeout_at(until, moves.changed()).await, Ok(Ok(()))) {
                return self.source.ledger.has_reached(at_least);
            }
        }
    }

    async fn heads_of(&self, blocks: &[BlockNo]) -> Result<Vec<Head>, NotServed> {
        if blocks.is_empty() {
            return Ok(self.source.store.heads().await?);
        }
        if blocks.len() > HEADS_ONE_BY_ONE {
            let wanted: std::collections::BTreeSet<_> = blocks.iter().collect();
            let mut heads = self.source.store.heads().await?;
            heads.retain(|head| wanted.contains(&head.block));
            return Ok(heads);
        }
        let heads = self.source.store.heads_of(blocks).await?;
        let is_there = |block: &&BlockNo| heads.iter().any(|head| head.block == **block);
        match blocks.iter().find(|block| !is_there(block)) {
            Some(block) => Err(NotServed::NoBlock(*block)),
            None => Ok(heads),
        }
    }

    /// Whole blocks, piece by piece. What is sent is read as it is taken: one block at a time is in memory.
    pub fn fetch(
        self: &Arc<Self>,
        site: &str,
        blocks: Vec<BlockNo>,
    ) -> Result<mpsc::Receiver<Result<BlockUpdate, NotServed>>, NotServed> {
        self.check(blocks.iter())?;
        let place = place(&self.places(site).fetches)?;
        let (out, sent) = mpsc::channel(MESSAGES_AHEAD);
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let _place = place;
            for block in blocks {
                let whole = match this.source.store.block(block).await {
                    Ok(Some(whole)) => whole,
                    Ok(None) => return drop(out.send(Err(NotServed::NoBlock(block))).await),
                    Err(error) => return drop(out.send(Err(error.into())).await),
                };
                let changes = BlockChanges { head: whole.head, records: whole.records };
                for piece in pieces(changes) {
                    if out.send(Ok(piece)).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(sent)
    }

    /// What changes after the follower's states. It is told no more than it may be behind by, and what it says is
    /// stored there is taken from `said`.
    pub async fn follow(
        self: &Arc<Self>,
        site: &str,
        cursors: Vec<BlockMark>,
        said: BoxStream<'static, Vec<BlockMark>>,
    ) -> Result<mpsc::Receiver<Result<Said, NotServed>>, NotServed> {
        self.check(cursors.iter().map(|cursor| &cursor.block))?;
        let each_once = cursors.len() == self.blocks.get() as usize
            && cursors.is_sorted_by(|a, b| a.block < b.block);
        if !each_once {
            return Err(NotServed::Cursors);
        }
        if self.config.is_peer(site) {
            self.suspect(&cursors).await?;
        }
        let place = place(&self.places(site).followers)?;
        let (out, sent) = mpsc::channel(MESSAGES_AHEAD);
        let session = Session::new(self.source.clone(), self.status.followers.begin(site), cursors);
        if self.config.is_peer(site) {
            self.status.followed_here();
        }
        let (status, site) = (Arc::clone(&self.status), site.to_owned());
        let is_peer = self.config.is_peer(&site);
        tokio::spawn(async move {
            let _place = place;
            if let Err(error) = session.run(said, &out).await {
                tracing::warn!(%error, "a peer that followed is told to come again");
                if is_peer {
                    status.turned_away(&site, error.to_string());
                }
                // Nobody waits for a follower that takes nothing.
                let _ = out.try_send(Err(error));
            }
        });
        Ok(sent)
    }

    /// One who asked to follow was refused, for this reason.
    pub fn turned_away(&self, who: &str, why: String) {
        self.status.turned_away(who, why);
    }

    /// A follower that says to have states of our epoch which we don't have makes us ask it for its heads, which are
    /// MACed.
    async fn suspect(&self, cursors: &[BlockMark]) -> Result<(), NotServed> {
        let heads = self.source.store.heads().await?;
        let mut both = heads.iter().filter_map(|head| {
            let ours =
                BlockMark { block: head.block, position: head.position, digest: head.digest };
            Some((ours, cursors.get(head.block.0 as usize)?))
        });
        if both.any(|(ours, cursor)| is_beyond(&ours, cursor)) {
            self.status.suspect();
        }
        Ok(())
    }

    /// The role records from this epoch on. Whoever gets them verifies them.
    pub async fn role_records(&self, from: Epoch) -> Result<Vec<SignedRoleRecord>, NotServed> {
        let mut records = self.source.store.role_records().await?;
        records.retain(|signed| signed.record.epoch >= from);
        Ok(records)
    }

    /// Which of these rows that site may report: such as were written in an epoch that signed records prove. Nobody wrote
    /// in another one, and what a record does at contact must not be had by making up an epoch. Of these the other site
    /// may all: a database that was put back has rows of its own at places that look like the past. A replica may what
    /// parted from the block at a place that its lineage has not.
    pub async fn may_report(
        &self,
        site: &str,
        rows: &[Divergent],
    ) -> Result<Vec<Result<(), MayNot>>, NotServed> {
        let epoch = self.card().await?.epoch;
        let known = self.fencing.records().await.map_err(NotServed::EpochNotProved)?;
        let promotions = || known.iter().map(|signed| &signed.record);
        let is_proved = |at: Epoch| {
            at == epoch
                || promotions().any(|promotion| promotion.epoch == at || promotion.after == at)
        };
        let may = |row: &Divergent| {
            let position = row.record.position;
            if !is_proved(position.epoch) {
                return Err(MayNot::EpochNotProved(position.epoch));
            }
            let is_there = || self.check([row.block].iter()).is_ok();
            let parted = || is_there() && !lineage(&known, row.block, epoch).has(position);
            if self.config.is_peer(site) || parted() { Ok(()) } else { Err(MayNot::OfThePast) }
        };
        Ok(rows.iter().map(may).collect())
    }

    fn check<'a>(&self, mut blocks: impl Iterator<Item = &'a BlockNo>) -> Result<(), NotServed> {
        match blocks.find(|block| block.0 >= self.blocks.get()) {
            Some(block) => Err(NotServed::NoBlock(*block)),
            None => Ok(()),
        }
    }
}

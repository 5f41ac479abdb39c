//! Bringing the two sites in step when somebody asks for it, and proving that they are. The primary waits for the
//! other site, which follows it, and has it prove its blocks; the other site fetches what differs itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{Semaphore, mpsc},
    time::{Instant, sleep},
};

use super::{
    card::Cards,
    config::Config,
    failure::PeerError,
    following::{Following, Repaired},
    grounds::Grounds,
    messages::HeadsAsked,
    peer::Peer,
    proving::{Proven, Proving},
};
use crate::store::{ReadStore, StoreError};
use kms_core::{BlockCount, BlockNo, Position, SystemTitle, block::BlockMark};

/// The wait before the peer is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// The longest time without a block more in step: then the rest is told as not in step.
const STANDSTILL: Duration = Duration::from_secs(30);
/// Blocks that are repaired or proved between two messages.
const AT_ONCE: usize = 64;
/// Tries to prove a block that moves on meanwhile.
const PROOFS_MAX: usize = 5;
/// Failures, and meters of a block, that are named.
const NAMED_MAX: usize = 100;
/// Messages that wait for whoever asked.
const MESSAGES_AHEAD: usize = 4;

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct SyncAsked {
    /// The site that is to be in step; empty: the one of the two that does not write.
    pub target: String,
    /// Compare all records, whatever state both sites say that they are in.
    pub force: bool,
    /// Change nothing.
    pub dry_run: bool,
    /// None: all of them.
    pub blocks: Vec<BlockNo>,
}

/// A block that differs.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The block.
    pub block: BlockNo,
    /// The difference, as a sentence.
    pub reason: String,
    /// Records that the target has not, as far as this site knows.
    pub records: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Meters of these.
    pub titles: Vec<SystemTitle>,
}

/// How far it is.
#[derive(Clone, Debug, Default)]
pub struct SyncProgress {
    /// The primary.
    pub source: String,
    /// The other site.
    pub target: String,
    /// Blocks that are looked at.
    pub blocks: u32,
    /// Of them, in step.
    pub in_step: u32,
    /// Of them, opened by the target's token.
    pub proved: u32,
    /// Blocks, records and bytes that the target wrote.
    pub written: Repaired,
    /// Differences that were found since the message before.
    pub differences: Vec<Difference>,
    /// In the last message: what is not in step, or not proved.
    pub failures: Vec<(BlockNo, String)>,
    /// Nothing follows.
    pub done: bool,
}

/// The reason why nothing is brought in step.
#[derive(Debug, thiserror::Error)]
pub enum NotSynced {
    /// No such site.
    #[error("no site {asked:?} is known here, only {ours:?} and {peer:?}")]
    UnknownSite {
        /// The name that was asked for.
        asked: String,
        /// This site.
        ours: String,
        /// The other one.
        peer: String,
    },
    /// It is what the other one is to be in step with.
    #[error("site {0:?} is the primary: the other one is brought in step with it")]
    IsPrimary(String),
    /// Neither site writes.
    #[error("no site writes now: there is nothing to be in step with")]
    NobodyWrites,
    /// Somebody else has asked.
    #[error("the sites are being brought in step already")]
    UnderWay,
    /// There is no such block.
    #[error("there is no block {0}")]
    NoBlock(BlockNo),
    /// The other site.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// Our database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Our side of it.
    #[error("{0}")]
    Failed(String),
}

type Out = mpsc::Sender<Result<SyncProgress, NotSynced>>;

/// Brings the sites in step.
pub struct Syncing {
    peer: (Arc<dyn Peer>, String),
    config: Config,
    store: Arc<dyn ReadStore>,
    cards: Cards,
    blocks: BlockCount,
    proving: Arc<Proving>,
    following: Arc<Following>,
    /// One at a time: it takes the token's time and the wire.
    one: Arc<Semaphore>,
}

/// One call.
struct Run<'a> {
    of: &'a Syncing,
    out: &'a Out,
    asked: SyncAsked,
    wanted: BTreeSet<BlockNo>,
    now: SyncProgress,
    /// Blocks that were found to differ.
    told: BTreeMap<BlockNo, (u64, u64)>,
}

/// Where the primary's blocks stood when it began: a target that has got so far is in step.
type Goal = BTreeMap<BlockNo, BlockMark>;

impl Syncing {
    /// Proves by `proving`, and takes over by `following`.
    pub fn new(grounds: &Grounds, proving: Arc<Proving>, following: Arc<Following>) -> Self {
        let Grounds { config, peer, store, cards, blocks, .. } = grounds.clone();
        let (peer, one) = ((peer, config.peer.clone()), Arc::new(Semaphore::new(1)));
        Self { peer, config, store, cards, blocks, proving, following, one }
    }

    /// Begins; what it says goes on for as long as somebody listens.
    pub async fn begin(
        self: &Arc<Self>,
        asked: SyncAsked,
    ) -> Result<mpsc::Receiver<Result<SyncProgress, NotSynced>>, NotSynced> {
        let ours = self.cards.now().await?;
        let (source, target) = match ours.writes {
            true => (ours.site.clone(), self.peer.1.clone()),
            false => (self.peer.1.clone(), ours.site.clone()),
        };
        if asked.target == source {
            return Err(NotSynced::IsPrimary(source));
        }
        if !asked.target.is_empty() && asked.target != target {
            let (ours, peer) = (ours.site, self.peer.1.clone());
            return Err(NotSynced::UnknownSite { asked: asked.target, ours, peer });
        }
        if let Some(none) = asked.blocks.iter().find(|block| block.0 >= self.blocks.get()) {
            return Err(NotSynced::NoBlock(*none));
        }
        let turn = Arc::clone(&self.one).try_acquire_owned();
        let turn = turn.map_err(|_| NotSynced::UnderWay)?;
        let (out, said) = mpsc::channel(MESSAGES_AHEAD);
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let _turn = turn;
            let wanted: BTreeSet<_> = match asked.blocks.is_empty() {
                true => (0..this.blocks.get()).map(BlockNo).collect(),
                false => asked.blocks.iter().copied().collect(),
            };
            let blocks = u32::try_from(wanted.len()).unwrap_or(u32::MAX);
            let now = SyncProgress { source, target, blocks, ..SyncProgress::default() };
            let told = BTreeMap::new();
            let mut run = Run { of: &this, out: &out, asked, wanted, now, told };
            let outcome = match ours.writes {
                true => run.as_writer().await,
                false => run.as_follower().await,
            };
            if let Err(error) = outcome {
                // Nobody listens: nobody to tell.
                let _ = out.send(Err(error)).await;
            }
        });
        Ok(said)
    }

    /// Where blocks stand there; with the card that must be the peer's, and write or not.
    async fn theirs(&self, writes: bool) -> Result<Goal, NotSynced> {
        let said = self.peer.0.list_heads(self.cards.now().await?, HeadsAsked::default()).await?;
        if !self.cards.is_of_domain(&said.card) || !self.config.is_peer(&said.card.site) {
            return Err(PeerError::Unreadable("another site answers than the peer").into());
        }
        if said.card.writes != writes {
            return Err(NotSynced::NobodyWrites);
        }
        Ok(marks(&said.heads))
    }

    async fn ours(&self) -> Result<Goal, NotSynced> {
        Ok(marks(&self.store.heads().await?))
    }
}

impl Run<'_> {
    /// At the primary: the other site follows; it is waited for, and proves its blocks.
    async fn as_writer(&mut self) -> Result<(), NotSynced> {
        let goal = self.of.ours().await?;
        let mut behind = self.compare(&goal, &self.of.theirs(false).await?).await?;
        if self.asked.dry_run {
            return self.end(behind, BTreeMap::new()).await;
        }
        let mut progress = Instant::now();
        while !behind.is_empty() && progress.elapsed() < STANDSTILL {
            if !self.say().await {
                return Ok(());
            }
            sleep(LOOK_AGAIN).await;
            let still = self.compare(&goal, &self.of.theirs(false).await?).await?;
            for block in behind.keys().filter(|block| !still.contains_key(block)) {
                let (records, bytes) = self.told.get(block).copied().unwrap_or_default();
                self.now.written.blocks += 1;
                self.now.written.records += records;
                self.now.written.bytes += bytes;
                progress = Instant::now();
            }
            behind = still;
        }
        let unproved = self.have_proved(&behind).await?;
        self.end(behind, unproved).await
    }

    /// Has the target prove what is in step; the blocks that it does not, and why.
    async fn have_proved(
        &mut self,
        behind: &BTreeMap<BlockNo, String>,
    ) -> Result<BTreeMap<BlockNo, String>, NotSynced> {
        let of = self.of;
        let due: Vec<_> =
            self.wanted.iter().copied().filter(|it| !behind.contains_key(it)).collect();
        let mut unproved = BTreeMap::new();
        for some in due.chunks(AT_ONCE) {
            let mut left = some.to_vec();
            for _ in 0..PROOFS_MAX {
                let outcomes = of.proving.prove_now(&left).await.map_err(NotSynced::Failed)?;
                left.clear();
                for (block, outcome) in outcomes {
                    match outcome {
                        Proven::Yes => self.now.proved += 1,
                        Proven::No(why) => drop(unproved.insert(block, why)),
                        Proven::Moved => left.push(block),
                    }
                }
                if left.is_empty() {
                    break;
                }
                sleep(LOOK_AGAIN).await;
            }
            let moves = |block| (block, "it changes faster than it is proved".to_owned());
            unproved.extend(left.into_iter().map(moves));
            if !self.say().await {
                break;
            }
        }
        Ok(unproved)
    }

    /// At the other site: fetches what differs, and opens every block as it is stored.
    async fn as_follower(&mut self) -> Result<(), NotSynced> {
        let goal = self.of.theirs(true).await?;
        let mut behind = self.compare(&goal, &self.of.ours().await?).await?;
        if self.asked.dry_run {
            return self.end(behind, BTreeMap::new()).await;
        }
        let due: Vec<_> = match self.asked.force {
            true => self.wanted.iter().copied().collect(),
            false => behind.keys().copied().collect(),
        };
        for some in due.chunks(AT_ONCE) {
            let repaired = self.of.following.repair(some).await.map_err(NotSynced::Failed)?;
            self.now.written.blocks += repaired.blocks;
            self.now.written.records += repaired.records;
            self.now.written.bytes += repaired.bytes;
            if !self.say().await {
                return Ok(());
            }
        }
        behind = self.compare(&goal, &self.of.ours().await?).await?;
        let mut unproved = BTreeMap::new();
        let due: Vec<_> =
            self.wanted.iter().copied().filter(|it| !behind.contains_key(it)).collect();
        for some in due.chunks(AT_ONCE) {
            for block in some {
                match self.of.proving.opens_here(*block, &self.now.target).await {
                    Ok(()) => self.now.proved += 1,
                    Err(why) => drop(unproved.insert(*block, why)),
                }
            }
            if !self.say().await {
                return Ok(());
            }
        }
        self.end(behind, unproved).await
    }

    /// The blocks of `theirs` that are not where the goal says, with the reason. New ones are told.
    async fn compare(
        &mut self,
        goal: &Goal,
        theirs: &Goal,
    ) -> Result<BTreeMap<BlockNo, String>, NotSynced> {
        let mut behind = BTreeMap::new();
        for block in &self.wanted {
            if let Some(reason) = differs(goal.get(block), theirs.get(block)) {
                behind.insert(*block, reason);
            }
        }
        self.now.in_step = self.now.blocks.saturating_sub(u32::try_from(behind.len()).unwrap_or(0));
        for (block, reason) in &behind {
            if !self.told.contains_key(block) {
                let at = theirs.get(block).map(|mark| mark.position).unwrap_or_default();
                let difference = self.difference(*block, reason, at).await?;
                self.told.insert(*block, (difference.records, difference.bytes));
                self.now.differences.push(difference);
            }
        }
        Ok(behind)
    }

    /// What this site has of a block and the target has not, where this site is the primary.
    async fn difference(
        &self,
        block: BlockNo,
        reason: &str,
        at: Position,
    ) -> Result<Difference, NotSynced> {
        let mut difference = Difference {
            block,
            reason: reason.to_owned(),
            records: 0,
            bytes: 0,
            titles: Vec::new(),
        };
        let is_primary = self.now.source != self.of.peer.1;
        let changes = match is_primary {
            true => self.of.store.changes_after(block, at).await?,
            false => None,
        };
        for record in changes.into_iter().flat_map(|changes| changes.records) {
            difference.records += 1;
            difference.bytes += record.body.len() as u64;
            if difference.titles.len() < NAMED_MAX {
                difference.titles.extend(record.key.system_title());
            }
        }
        Ok(difference)
    }

    /// Says how far it is; false: nobody listens.
    async fn say(&mut self) -> bool {
        let now = self.now.clone();
        self.now.differences.clear();
        self.out.send(Ok(now)).await.is_ok()
    }

    async fn end(
        &mut self,
        behind: BTreeMap<BlockNo, String>,
        unproved: BTreeMap<BlockNo, String>,
    ) -> Result<(), NotSynced> {
        if !self.asked.dry_run {
            self.now.failures = behind.into_iter().chain(unproved).take(NAMED_MAX).collect();
        }
        self.now.done = true;
        self.say().await;
        Ok(())
    }
}

fn marks(heads: &[kms_core::Head]) -> Goal {
    let mark = |head: &kms_core::Head| {
        let kms_core::Head { block, position, digest, .. } = head;
        (*block, BlockMark { block: *block, position: *position, digest: *digest })
    };
    heads.iter().map(mark).collect()
}

/// Why a block is not where it should be; `None`: it is, or beyond that in the same epoch.
fn differs(goal: Option<&BlockMark>, theirs: Option<&BlockMark>) -> Option<String> {
    let (Some(goal), Some(theirs)) = (goal, theirs) else {
        return Some("one of the two sites does not have it".to_owned());
    };
    let (want, found) = (goal.position, theirs.position);
    if want == found {
        let differ = || "both sites stand at one position, with other records".to_owned();
        return (goal.digest != theirs.digest).then(differ);
    }
    if want.epoch != found.epoch {
        return Some(format!(
            "it is of epoch {}, and should be of {}",
            found.epoch.0, want.epoch.0
        ));
    }
    let behind = want.sequence.0.checked_sub(found.sequence.0)?;
    (behind > 0).then(|| format!("it is {behind} changes behind"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kms_core::{Epoch, Sequence};

    fn mark(epoch: u64, sequence: u64, digest: u8) -> BlockMark {
        let position = Position { epoch: Epoch(epoch), sequence: Sequence(sequence) };
        BlockMark { block: BlockNo(1), position, digest: [digest; 32] }
    }

    #[test]
    fn a_block_is_in_step_at_its_goal_or_beyond_it_and_nowhere_else() {
        let goal = mark(4, 7, 1);
        let of = |theirs: BlockMark| differs(Some(&goal), Some(&theirs));
        assert_eq!(of(goal), None);
        assert_eq!(of(mark(4, 9, 2)), None);
        assert!(of(mark(4, 5, 1)).unwrap().contains("2 changes behind"));
        assert!(of(mark(4, 7, 2)).unwrap().contains("other records"));
        for epoch in [3, 5] {
            assert!(of(mark(epoch, 9, 1)).unwrap().contains("epoch"), "{epoch}");
        }
        assert!(differs(Some(&goal), None).is_some());
    }
}

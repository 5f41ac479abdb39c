//! Following the peer: what changes there is taken over here. One server of a site follows, by a lock of the database;
//! two that both believe to have it harm nothing, since each adoption names the state that it builds on.
//!
//! What is done next is [`Follower`]'s to say; here are the connection, the database and the waiting.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, interval_at, sleep},
};

use super::{
    card::{Cards, SiteCard},
    config::Config,
    failure::PeerError,
    fencing::{Fencing, NotFenced, OURSELVES},
    grounds::Grounds,
    letting_go::LettingGo,
    meeting::{Meeting, NotMet},
    messages::{BlockUpdate, Followed, HeadsAsked, HeadsSaid, PeerSaid},
    peer::Peer,
    pieces::whole_of,
    status::Status,
    turning::{Looks, Turning},
};
use crate::{
    keyring::{Adopter, Arrived, KeyringError, Outcome, Roles, Taken},
    store::{ReadStore, StoreError},
};
use kms_core::{
    BlockCount, BlockNo, Head, StoredRecord,
    audit::{AuditEntry, AuditOutcome, AuditedCall, Subject},
    block::BlockMark,
    ports::Clock,
    replication::following::{Follower, Input, Output, Remedy, Update},
};

/// The interval at which time goes by for the follower.
const TICK: Duration = Duration::from_millis(100);
/// The wait before another look at lock and role.
const AGAIN: Duration = Duration::from_secs(1);
/// Transactions that take blocks over at one time: the blocks of one are read and verified while another is written.
const TRANSACTIONS: usize = 2;
/// The time in which a change that is on its way arrives: a block that differs for longer is fetched.
const ON_ITS_WAY: Duration = Duration::from_secs(2);

/// The reason why nothing is known of the peer.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    #[error(transparent)]
    NotFenced(#[from] NotFenced),
    #[error(transparent)]
    NotMet(#[from] NotMet),
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

/// Follows the peer.
pub struct Following(Arc<Inner>);

struct Inner {
    config: Config,
    peer: Arc<dyn Peer>,
    store: Arc<dyn ReadStore>,
    adopter: Arc<Adopter>,
    roles: Arc<Roles>,
    fencing: Arc<Fencing>,
    meeting: Meeting,
    turning: Turning,
    cards: Cards,
    blocks: BlockCount,
    clock: Arc<dyn Clock>,
    status: Arc<Status>,
}

/// What is under way; each answers with what the follower is to hear.
type UnderWay = FuturesUnordered<BoxFuture<'static, Vec<Input>>>;

/// An attempt to connect.
type Connecting = BoxFuture<'static, Result<Followed, Ended>>;

/// One server's turn to follow: while it has the lock.
struct Turn {
    of: Arc<Inner>,
    follower: Follower,
    connecting: Option<Connecting>,
    connection: Option<Followed>,
    under_way: UnderWay,
    /// Transactions that take blocks over, [`TRANSACTIONS`] at most.
    taking_over: UnderWay,
    /// To be taken over in the next one.
    adopting: Vec<Update>,
    /// What the peer is to be told of what is stored here, in one message.
    telling: Vec<BlockMark>,
    /// Blocks that it is told of because they were refused.
    letting_go: LettingGo,
}

impl Following {
    /// Takes over by `adopter`, and is fenced by `fencing`.
    pub fn new(
        grounds: Grounds,
        adopter: Arc<Adopter>,
        roles: Arc<Roles>,
        fencing: Arc<Fencing>,
    ) -> Self {
        let meeting = Meeting::new(grounds.clone(), Arc::clone(&roles), Arc::clone(&fencing));
        let turning = Turning::new(&grounds, &fencing);
        let Grounds { config, peer, store, cards, blocks, clock, status, .. } = grounds;
        Self(Arc::new(Inner {
            config,
            peer,
            store,
            adopter,
            roles,
            fencing,
            meeting,
            turning,
            cards,
            blocks,
            clock,
            status,
        }))
    }

    /// Meets the peer before anything is written here, if it answers in time.
    pub async fn meet_first(&self) {
        let met = match self.0.store.role().await {
            Ok(role) if role.writes => self.0.meeting.look().await.map_err(Ended::from),
            Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = met {
            tracing::warn!(%error, "the peer was not met");
        }
    }

    /// Fetches these blocks whole and takes over what is not here already, beside whoever follows. What was
    /// written; else the sentence that says why not.
    pub(super) async fn repair(&self, blocks: &[BlockNo]) -> Result<Repaired, String> {
        let mut repaired = Repaired::default();
        for block in blocks {
            self.0.repair_one(*block, &mut repaired).await.map_err(|error| error.to_string())?;
        }
        Ok(repaired)
    }

    /// Runs until the process ends. A site that writes follows nobody, until it writes no more.
    pub async fn run(&self) {
        let of = &self.0;
        loop {
            let fault = match of.try_to_follow().await {
                Ok(()) => None,
                Err(ended) => Some(format!("not following site {}: {ended}", of.config.peer)),
            };
            if fault.is_some() {
                of.lost(fault);
            }
            sleep(AGAIN).await;
        }
    }
}

impl Inner {
    /// Ends well where there is nobody to follow, another server of this site follows, or the lock is lost to one.
    async fn try_to_follow(self: &Arc<Self>) -> Result<(), Ended> {
        if self.store.role().await?.writes {
            self.status.not_following();
            return Ok(self.meeting.look().await?);
        }
        self.status.rolled_back(None);
        let Some(mut lock) = self.store.follower_lock().await? else {
            self.lost(None);
            return Ok(());
        };
        self.turning.turn().await;
        let turn = Turn::of(Arc::clone(self));
        tokio::select! {
            lost = lock.until_lost() => {
                tracing::info!(%lost, "another server of this site may follow the peer now");
            }
            () = turn.follow() => {}
        }
        self.lost(None);
        Ok(())
    }

    fn heard(&self, card: &SiteCard) {
        self.status.heard(card);
        self.status.following(|following| {
            if !following.connected {
                tracing::info!(site = card.site, epoch = card.epoch.0, "following the peer");
            }
            following.connected = true;
            following.fault = None;
        });
    }

    fn lost(&self, fault: Option<String>) {
        self.status.following(|following| {
            if let Some(fault) = fault.as_ref().filter(|_| following.fault != fault) {
                tracing::warn!("{fault}");
            }
            following.connected = false;
            following.fault = fault;
        });
    }

    async fn connect(&self) -> Result<Followed, Ended> {
        let cursors = self.store.heads().await?.iter().map(mark).collect();
        Ok(self.peer.follow(self.cards.now().await?, cursors).await?)
    }

    /// Asks for the peer's card anew and meets it: its role records are stored when this returns.
    async fn ask_role_records(&self) -> Input {
        let asked = async {
            let asked = HeadsAsked { blocks: vec![BlockNo(0)], ..HeadsAsked::default() };
            let said = self.peer.list_heads(self.cards.now().await?, asked).await?;
            self.meeting.check_name(&said.card)?;
            self.fencing.meet(&said.card).await?;
            Ok::<_, Ended>(())
        };
        match asked.await {
            Ok(()) => Input::RoleRecords(self.roles.standing()),
            Err(error) => Input::NoRoleRecords(error.to_string()),
        }
    }

    /// Takes over what came, in one transaction.
    async fn adopt(&self, updates: Vec<Update>) -> Vec<Input> {
        let blocks: Vec<BlockNo> = updates.iter().map(|update| update.head.block).collect();
        let arrived = |Update { head, records, whole }| Arrived { head, records, is_whole: whole };
        let arrived = updates.into_iter().map(arrived).collect();
        let roles = match self.fencing.records().await {
            Ok(roles) => roles,
            Err(error) => return all_refused(&blocks, &error.to_string()),
        };
        match self.adopter.adopt(arrived, &roles, self.entry()).await {
            Ok(outcomes) => outcomes.into_iter().map(|outcome| self.told(outcome)).collect(),
            Err(KeyringError::Store(StoreError::Conflict(_))) => {
                blocks.into_iter().map(Input::Conflict).collect()
            }
            Err(error) => {
                tracing::warn!(%error, "blocks of the peer are not taken over yet");
                all_refused(&blocks, &error.to_string())
            }
        }
    }

    /// What the follower is to hear of a block.
    fn told(&self, Outcome { block, stored, taken }: Outcome) -> Input {
        let (remedy, reason) = match (taken, stored) {
            (Taken::Conflict, _) => return Input::Conflict(block),
            (Taken::NotYet(reason), _) => {
                tracing::warn!(
                    block = block.0,
                    reason,
                    "a block of the peer is not taken over yet"
                );
                let remedy = Remedy::Whole;
                return Input::Refused { block, remedy, reason };
            }
            (Taken::NotAccepted(why), _) => (Remedy::of(&why), why.to_string()),
            (Taken::Refused(reason), _) => (Remedy::Whole, reason),
            (taken, Some(mark)) => {
                self.status.taken(block);
                if let Taken::Adopted { records, set_aside } = taken {
                    self.adopted(block, records, set_aside);
                }
                return Input::Stored(mark);
            }
            (_, None) => return Input::Conflict(block),
        };
        self.status.refused(block, reason.clone());
        Input::Refused { block, remedy, reason }
    }

    fn adopted(&self, block: BlockNo, records: usize, set_aside: usize) {
        self.status.following(|following| {
            following.blocks_adopted += 1;
            following.records_adopted += records as u64;
        });
        if set_aside > 0 {
            let block = block.0;
            tracing::warn!(block, set_aside, "records that the peer never had are set aside");
        }
    }

    async fn whole(&self, block: BlockNo) -> Input {
        match self.fetch(block).await {
            Ok((head, records)) => Input::Whole(head, records),
            Err(error) => Input::NoWhole(block, error.to_string()),
        }
    }

    async fn fetch(&self, block: BlockNo) -> Result<(Head, Vec<StoredRecord>), Ended> {
        let pieces = self.peer.fetch_blocks(self.cards.now().await?, vec![block]).await?;
        Ok(whole_of(block, pieces).await?)
    }

    async fn repair_one(&self, block: BlockNo, repaired: &mut Repaired) -> Result<(), Ended> {
        let (head, records) = self.fetch(block).await?;
        let bytes: u64 = records.iter().map(|record| record.body.len() as u64).sum();
        let roles = self.fencing.records().await?;
        let arrived = vec![Arrived { head, records, is_whole: true }];
        match self.adopter.adopt(arrived, &roles, self.entry()).await {
            Ok(outcomes) => {
                for outcome in outcomes {
                    if let Taken::Adopted { records, .. } = outcome.taken {
                        repaired.blocks += 1;
                        repaired.records += records as u64;
                        repaired.bytes += bytes;
                    }
                    self.told(outcome);
                }
                Ok(())
            }
            // Whoever follows was first.
            Err(KeyringError::Store(StoreError::Conflict(_))) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The blocks that differ from the peer's and are not on their way.
    async fn differing(&self) -> Result<Vec<BlockNo>, Ended> {
        let HeadsSaid { card, heads, .. } =
            self.peer.list_heads(self.cards.now().await?, HeadsAsked::default()).await?;
        self.meeting.check_name(&card)?;
        sleep(ON_ITS_WAY).await;
        let ours = self.store.heads().await?;
        let ours: BTreeMap<_, _> = ours.iter().map(|head| (head.block, head)).collect();
        let differs = |theirs: &&Head| {
            ours.get(&theirs.block).is_none_or(|ours| {
                ours.position < theirs.position
                    || ours.position == theirs.position && ours.digest != theirs.digest
                    // Of another epoch it parted, and positions say nothing.
                    || ours.position.epoch != theirs.position.epoch
            })
        };
        let known = heads.iter().filter(|head| head.block.0 < self.blocks.get());
        // What was refused of these was something old: nothing of them is missing.
        let same = known.clone().filter(|theirs| ours.get(&theirs.block) == Some(theirs));
        same.for_each(|head| self.status.taken(head.block));
        let differing: Vec<BlockNo> = known.filter(differs).map(|head| head.block).collect();
        self.status.compared(differing.len());
        Ok(differing)
    }

    /// Fetches and takes over what differs, one block after the other.
    async fn repair(self: Arc<Self>) {
        let differing = match self.differing().await {
            Ok(differing) => differing,
            Err(error) => return tracing::warn!(%error, "the blocks were not compared"),
        };
        for block in differing {
            match self.fetch(block).await {
                Ok((head, records)) => {
                    self.adopt(vec![Update { head, records, whole: true }]).await;
                }
                Err(error) => return tracing::warn!(%error, "the comparison did not go on"),
            }
        }
    }

    fn entry(&self) -> AuditEntry {
        let call = AuditedCall::new(OURSELVES, "Replication/Adopt");
        call.entry(self.clock.unix_ms(), Subject::NONE, AuditOutcome::Done)
    }
}

impl Turn {
    fn of(of: Arc<Inner>) -> Self {
        let letting_go = LettingGo::new(Arc::clone(&of.store));
        Self {
            of,
            follower: Follower::default(),
            connecting: None,
            connection: None,
            under_way: UnderWay::new(),
            taking_over: UnderWay::new(),
            adopting: Vec::new(),
            telling: Vec::new(),
            letting_go,
        }
    }

    /// Ends when this site writes, or is to follow another one.
    async fn follow(mut self) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let every = self.of.config.compare_interval;
        let mut comparisons = interval_at(Instant::now() + every, every);
        comparisons.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // One at a time, and none beyond this turn.
        let mut comparing = JoinSet::new();
        let mut looks = Looks::of(&self.of.turning);
        loop {
            let standing = self.of.roles.standing();
            self.step(Input::Role(standing));
            if standing.writes() {
                return;
            }
            let may_read = self.follower.may_read();
            tokio::select! {
                said = next_of(&mut self.connection), if may_read => self.hear(said),
                connected = next_try(&mut self.connecting) => self.connected(connected),
                Some(heard) = self.under_way.next() => self.answered(heard),
                Some(heard) = self.taking_over.next() => self.answered(heard),
                stand = self.letting_go.next() => self.telling.extend(stand),
                _ = ticks.tick() => self.step(Input::Tick),
                _ = comparisons.tick(), if self.connection.is_some() && comparing.is_empty() => {
                    comparing.spawn(Arc::clone(&self.of).repair());
                }
                Some(_) = comparing.join_next() => {}
                () = looks.turned() => return,
            }
            // What is there already comes into the same transaction.
            while self.follower.may_read()
                && let Some(said) = next_of(&mut self.connection).now_or_never()
            {
                self.hear(said);
            }
            self.adopt_all();
            self.tell();
        }
    }

    /// Tells the follower, and carries out what it says.
    fn step(&mut self, input: Input) {
        for output in self.follower.step(self.of.clock.now(), input) {
            self.carry_out(output);
        }
    }

    fn carry_out(&mut self, output: Output) {
        let of = Arc::clone(&self.of);
        match output {
            Output::Connect => self.connecting = Some(async move { of.connect().await }.boxed()),
            // Card and heads went out with the call itself.
            Output::Hello => {}
            Output::AskRoleRecords(_) => {
                self.under_way.push(async move { vec![of.ask_role_records().await] }.boxed());
            }
            Output::Adopt(update) => self.adopting.push(update),
            Output::AskWhole(block) => {
                self.under_way.push(async move { vec![of.whole(block).await] }.boxed());
            }
            Output::Acknowledge(mark) => self.telling.push(mark),
            Output::LetGo(block) => self.letting_go.add(block),
            Output::Disconnect => (self.connecting, self.connection) = (None, None),
            Output::Wait(_, reason) => {
                of.lost(Some(format!("not following site {}: {reason}", of.config.peer)));
            }
            Output::Report(block, reason) => of.status.refused(block, reason),
        }
    }

    /// Takes over what waits for it, in one transaction. While [`TRANSACTIONS`] run, what comes gathers for the next.
    fn adopt_all(&mut self) {
        if self.adopting.is_empty() || self.taking_over.len() >= TRANSACTIONS {
            return;
        }
        let (of, adopting) = (Arc::clone(&self.of), std::mem::take(&mut self.adopting));
        self.taking_over.push(async move { of.adopt(adopting).await }.boxed());
    }

    /// What was under way has ended.
    fn answered(&mut self, inputs: Vec<Input>) {
        inputs.into_iter().for_each(|input| self.step(input));
    }

    /// Tells the peer what is stored here. A peer that does not read hears it later, all at once.
    fn tell(&mut self) {
        let Some(connection) = self.connection.as_ref().filter(|_| !self.telling.is_empty()) else {
            return self.telling.clear();
        };
        if let Ok(place) = connection.tell.try_reserve() {
            place.send(std::mem::take(&mut self.telling));
        }
    }

    fn connected(&mut self, connected: Result<Followed, Ended>) {
        self.connecting = None;
        match connected {
            Ok(connection) => {
                self.connection = Some(connection);
                self.step(Input::Connected);
            }
            Err(ended) => self.step(Input::Disconnected(ended.to_string())),
        }
    }

    /// What was read off the connection.
    fn hear(&mut self, said: Result<PeerSaid, PeerError>) {
        let card = match said {
            // Kept by no block's name: what is refused would grow with whatever numbers a peer makes up.
            Ok(PeerSaid::Update(update)) if update.head.block.0 >= self.of.blocks.get() => {
                Err(PeerError::Unreadable("a block that the domain does not have").into())
            }
            Ok(PeerSaid::Update(BlockUpdate { head, records, more })) => {
                return self.step(Input::Piece { head, records, more });
            }
            Ok(PeerSaid::Card(card)) => match self.of.meeting.check_name(&card) {
                Ok(()) => Ok(card),
                Err(another) => Err(Ended::from(another)),
            },
            Err(error) => Err(error.into()),
        };
        match card {
            Ok(card) => {
                self.of.heard(&card);
                self.step(Input::Card(card.of_who_writes()));
            }
            Err(ended) => {
                self.connection = None;
                self.step(Input::Disconnected(ended.to_string()));
            }
        }
    }
}

/// The next message of a peer; never ends where there is no connection.
async fn next_of(connection: &mut Option<Followed>) -> Result<PeerSaid, PeerError> {
    match connection {
        Some(connection) => match connection.said.next().await {
            Some(said) => said,
            None => Err(PeerError::Broken("the peer has ended it".to_owned())),
        },
        None => std::future::pending().await,
    }
}

/// The end of an attempt to connect; never ends where there is none.
async fn next_try(connecting: &mut Option<Connecting>) -> Result<Followed, Ended> {
    match connecting {
        Some(connecting) => connecting.await,
        None => std::future::pending().await,
    }
}

fn mark(head: &Head) -> BlockMark {
    BlockMark { block: head.block, position: head.position, digest: head.digest }
}

/// Nothing of these was taken over, for a reason that is nobody's of them.
fn all_refused(blocks: &[BlockNo], reason: &str) -> Vec<Input> {
    let refused = |block: &BlockNo| Input::Refused {
        block: *block,
        remedy: Remedy::Whole,
        reason: reason.to_owned(),
    };
    blocks.iter().map(refused).collect()
}

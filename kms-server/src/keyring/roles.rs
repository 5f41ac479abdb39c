//! Changes of who writes: promotion and demotion of this site, and learning that the other one was promoted.
//!
//! The role that is stored and the one that this process goes by change together: first the database, in a
//! transaction that excludes commits, then the process. A process that was stopped in between finds the new
//! role in its next commit, which is refused.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use super::{
    error::KeyringError, opening::Opener, seen_epochs::EpochMemory, seen_peers::SeenPeers,
    turns::Turn, unknown,
};
use crate::{
    hsm::TokenError,
    store::{
        AuditedStore, StoreError,
        sites::{Released, RoleRow, RoleStep},
        whole::WholeStore,
    },
};
use kms_core::{
    BlockNo, Epoch, Head, Position, Sequence,
    audit::{AuditEntry, Detail},
    block::BlockMark,
    site::{
        admission::{self, Admitted, NotAdmitted, View, Writers},
        changing,
        peer::Peer,
        restored::{RestoreMark, SignedRestoreMark},
        role::{Role, RoleRecord, SignedRoleRecord, Standing},
    },
};

/// The interval at which a server looks whether another one of its site changed the role.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Beyond any position.
const END: Position =
    Position { epoch: Epoch(i64::MAX as u64), sequence: Sequence(i64::MAX as u64) };

/// The most times that a change is tried anew because somebody else was first.
pub(super) const TRIES_MAX: usize = 8;

/// The outcome of a promotion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promotion {
    /// The role afterwards.
    pub standing: Standing,
    /// Blocks that stayed in their old epoch, since nothing is known of them; each with its reason. They
    /// take no change until they are mended.
    pub left: Vec<(BlockNo, String)>,
}

/// The reason why a role was not changed. Nothing was written, unless the database was lost meanwhile.
#[derive(Debug, thiserror::Error)]
pub enum NotChanged {
    /// Somebody else knows better.
    #[error("the epoch is {} by now, not {}: look at the site's status, and decide anew", .found.0, .expected.0)]
    Epoch {
        /// The epoch that was thought to be the highest.
        expected: Epoch,
        /// The one that is.
        found: Epoch,
    },
    /// The role that the site has makes no sense of it.
    #[error(transparent)]
    Standing(#[from] changing::NotChanged),
    /// The site that writes was not demoted, and nobody says that it is lost.
    #[error("the primary writes in epoch {}: demote it first, or say that it is lost", .0.0)]
    PrimaryWrites(Epoch),
    /// The copy of the role that the database keeps is another one than the signed records say.
    #[error("the database says epoch {} ({}), and the signed records another: put its newest copy back", .0.epoch.0, if .0.writes { "it writes" } else { "it does not write" })]
    Row(RoleRow),
    /// The other site ended its epoch with states that are not all here.
    #[error("{differing} blocks are not as the other site left them: let this site catch up first")]
    NotInStep {
        /// So many blocks.
        differing: usize,
    },
    /// Records of a newer release, which this one keeps and can't read.
    #[error(
        "{} records can't be read by this release, the first of them in block {}: upgrade this site before it is \
         promoted",
        count, first.0
    )]
    UnknownRecords {
        /// So many of them were looked at.
        count: usize,
        /// The block of the first of them.
        first: BlockNo,
    },
    /// It is not proved that this site can open what it stores.
    #[error("this site is not proved to be ready: {0}; `site plan` says more")]
    NotReady(String),
    /// The database was rolled back, and nobody named the highest epoch that is known.
    #[error(
        "this site's database was rolled back ({from}), and knows of epoch {} itself: name the highest epoch that the \
         other site, a coordinator or two people know of (--above-epoch)", epoch.0
    )]
    RolledBack {
        /// What it was restored from, or what rolled it back.
        from: String,
        /// The highest epoch that it knows of.
        epoch: Epoch,
    },
    /// The domain's record is not what the token signed, with the mark that stands beside it or without one.
    #[error(
        "the `domain` row of the database is not what this site's token signed: it was changed outside this service"
    )]
    Domain,
    /// A peer is stored as it was before it was enrolled anew.
    #[error(
        "the database has site {0} as it was enrolled before, and this server has seen a later enrolment of it: put the \
         newest copy of the database back, or restore a backup"
    )]
    OldPeer(String),
    /// Blocks of which nothing is known.
    #[error("block {block}: {why}")]
    Block {
        /// The first of them.
        block: BlockNo,
        /// The reason.
        why: String,
    },
    /// This site's database was put back: what its states say is not what it wrote.
    #[error("{0}")]
    BehindPeer(Arc<str>),
    /// The record is not one that this site accepts.
    #[error(transparent)]
    NotAdmitted(#[from] NotAdmitted),
    /// The token did not sign.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A block.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
}

/// Changes this site's role. It changes no record.
pub struct Roles {
    pub(super) opener: Arc<Opener>,
    pub(super) commits: Arc<dyn AuditedStore>,
    /// The mark of the database, as it was verified last.
    pub(super) mark: Mutex<Option<RestoreMark>>,
    /// Where a mark is stored.
    pub(super) marks: OnceLock<Arc<dyn WholeStore>>,
    pub(super) seen_peers: SeenPeers,
    pub(super) epochs: OnceLock<Arc<dyn EpochMemory>>,
    /// Promotions of this site above an epoch, by signed records, as they were verified last.
    pub(super) above: AtomicU32,
}

/// The promotion that a caller wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The highest epoch that he knows of.
    pub expected: Epoch,
    /// The primary is lost: what is not here is given up, or comes back as divergence.
    pub is_lost: bool,
    /// This site was restored: the highest epoch that its peer, a coordinator or two people name.
    pub above: Option<Epoch>,
}

/// What a promotion starts from.
struct Grounds {
    row: RoleRow,
    records: Vec<SignedRoleRecord>,
    standing: Standing,
    mark: Option<SignedRestoreMark>,
}

/// Blocks as they are stored, in order.
struct Stored {
    heads: Vec<Head>,
    marks: Vec<BlockMark>,
    /// Those whose head can't be believed, each with its reason: the mark is another one then.
    left: Vec<(BlockNo, String)>,
}

impl Roles {
    /// Over the same blocks as `opener`.
    pub(super) fn new(opener: Arc<Opener>, commits: Arc<dyn AuditedStore>) -> Self {
        let (mark, marks, seen_peers, epochs, above) = Default::default();
        Self { opener, commits, mark, marks, seen_peers, epochs, above }
    }

    /// The role now, as this process knows it. One that was rolled back writes nothing.
    pub fn standing(&self) -> Standing {
        let now = self.opener.role.now();
        match self.opener.role.rolled_back() {
            Some(_) => Standing { open: false, ..now },
            None => now,
        }
    }

    /// This site begins to write, in the next epoch of its parity. In order: the other site has ended its epoch,
    /// and all that it wrote is here; otherwise only if the caller says that it is lost, and takes the loss on
    /// himself.
    pub async fn promote(
        &self,
        wish: Wish,
        entry: AuditEntry,
        now_ms: u64,
    ) -> Result<Promotion, NotChanged> {
        self.check_known().await?;
        let mut tried = 0;
        loop {
            tried += 1;
            match self.promote_once(wish, entry.clone(), now_ms).await {
                // Another server took a block over, or signed the head table, between the look and the step.
                Err(NotChanged::Store(StoreError::Conflict(_))) if tried < TRIES_MAX => {}
                outcome => return outcome,
            }
        }
    }

    /// Whether a promotion would be refused, as the site is now. Nothing is held meanwhile: the promotion itself looks
    /// once more.
    pub async fn check_promotion(&self, wish: Wish) -> Result<(), NotChanged> {
        self.check_known().await?;
        let grounds = self.grounds(wish).await?;
        if !wish.is_lost {
            self.promotion_over(&grounds, wish, &self.marks().await?.marks, 0)?;
        }
        Ok(())
    }

    /// Refuses to promote a site with records that it can't read.
    async fn check_known(&self) -> Result<(), NotChanged> {
        let unknown = unknown::unknown_records(&self.opener).await?;
        match unknown.first() {
            Some((first, _)) => {
                Err(NotChanged::UnknownRecords { count: unknown.len(), first: *first })
            }
            None => Ok(()),
        }
    }

    /// The role as it is stored, for a wish that makes sense of it.
    async fn grounds(&self, wish: Wish) -> Result<Grounds, NotChanged> {
        let row = self.opener.store.role().await?;
        let records = self.records().await?;
        let standing = self.standing_of(&records, row)?;
        let Wish { expected, is_lost, above } = wish;
        if standing.epoch != expected {
            return Err(NotChanged::Epoch { expected, found: standing.epoch });
        }
        if standing.role == Role::Secondary && standing.open && !is_lost {
            return Err(NotChanged::PrimaryWrites(standing.epoch));
        }
        let mark = self.signed_mark().await?;
        // In order, too: it may have taken an epoch that the other site never heard of, whenever that ended its own.
        if let Some(mark) = mark.as_ref().filter(|_| above.is_none()) {
            let RestoreMark { from, epoch, .. } = mark.mark.clone();
            return Err(NotChanged::RolledBack { from, epoch });
        }
        Ok(Grounds { row, records, standing, mark })
    }

    /// The record of a promotion over these states, to be signed.
    fn promotion_over(
        &self,
        grounds: &Grounds,
        wish: Wish,
        heads: &[BlockMark],
        at_ms: u64,
    ) -> Result<RoleRecord, NotChanged> {
        let Grounds { records, standing, mark, .. } = grounds;
        let (domain, standing) = (&self.opener.domain, *standing);
        let record = changing::Site { domain, standing, heads, at_ms }.promotion(wish.above)?;
        // A site that wrote last, and was put back, can't be in step with itself.
        if !standing.open && !wish.is_lost && (mark.is_none() || standing.role != Role::Primary) {
            match changing::behind(records, heads).len() {
                0 => {}
                differing => return Err(NotChanged::NotInStep { differing }),
            }
        }
        Ok(record)
    }

    async fn promote_once(
        &self,
        wish: Wish,
        entry: AuditEntry,
        now_ms: u64,
    ) -> Result<Promotion, NotChanged> {
        let _all = self.take_all().await;
        let grounds = self.grounds(wish).await?;
        let is_lost = wish.is_lost;
        let found = match is_lost {
            true => self.believed(&grounds.records).await?,
            false => self.marks().await?,
        };
        let record = self.promotion_over(&grounds, wish, &found.marks, now_ms)?;
        let Grounds { row, mark, .. } = grounds;
        let epoch = record.epoch;
        let mut entered = self.enter_all(found.heads, epoch, is_lost).await?;
        entered.left.extend(found.left);
        let record = self.sign(record).await?;
        let released = match mark {
            Some(SignedRestoreMark { signature: mark, .. }) => {
                let domain = self.signature(self.opener.domain.message()).await?;
                Some(Released { mark, domain })
            }
            None => None,
        };
        let heads: Vec<Head> = entered.changes.iter().map(|change| change.head.clone()).collect();
        let step = RoleStep {
            expected: row,
            now: RoleRow { epoch, writes: true },
            record,
            blocks: entered.changes,
            marks: entered.marks,
            left: entered.left.iter().map(|(block, _)| *block).collect(),
            // The audit log has it signed, over these heads.
            table: None,
            released,
            ends: false,
        };
        let entry = entry.with(Detail::Epoch, epoch.0);
        self.commits.change_role(step, vec![entry]).await?;
        heads.iter().for_each(|head| self.opener.entered(head));
        let standing = Standing { role: Role::Primary, epoch, open: true };
        self.goes_by(standing).await;
        self.keep_mark(None);
        tracing::warn!(epoch = epoch.0, "this site was promoted: it writes");
        Ok(Promotion { standing, left: entered.left })
    }

    /// This site ends its epoch: whatever it wrote is committed to, and nothing more is written.
    pub async fn demote(
        &self,
        expected: Epoch,
        entry: AuditEntry,
        now_ms: u64,
    ) -> Result<Standing, NotChanged> {
        let mut tried = 0;
        loop {
            tried += 1;
            match self.demote_once(expected, entry.clone(), now_ms).await {
                // Another server of this site committed between the look and the step.
                Err(NotChanged::Store(StoreError::Conflict(_))) if tried < TRIES_MAX => {}
                outcome => return outcome,
            }
        }
    }

    async fn demote_once(
        &self,
        expected: Epoch,
        entry: AuditEntry,
        now_ms: u64,
    ) -> Result<Standing, NotChanged> {
        let all = self.take_all().await;
        let row = self.opener.store.role().await?;
        let standing = self.standing_of(&self.records().await?, row)?;
        if standing.epoch != expected {
            return Err(NotChanged::Epoch { expected, found: standing.epoch });
        }
        if let Some(reason) = self.opener.role.rolled_back() {
            return Err(NotChanged::BehindPeer(reason));
        }
        let Stored { marks, .. } = self.marks().await?;
        let domain = &self.opener.domain;
        let record =
            changing::Site { domain, standing, heads: &marks, at_ms: now_ms }.demotion()?;
        let record = self.sign(record).await?;
        let now = RoleRow { epoch: standing.epoch, writes: false };
        let step = RoleStep::ending(row, now, record);
        let entry = entry.with(Detail::Epoch, standing.epoch.0);
        self.commits.change_role(step, vec![entry]).await?;
        let standing = Standing { open: false, ..standing };
        self.opener.role.becomes(standing);
        tracing::warn!(epoch = standing.epoch.0, "this site was demoted: it writes no more");
        drop(all);
        Ok(standing)
    }

    /// Takes in what another site says of roles: of each record that is new and holds, this site is told
    /// before anything else goes on. The role afterwards.
    pub async fn learn(
        &self,
        told: Vec<SignedRoleRecord>,
        entry: AuditEntry,
    ) -> Result<Standing, NotChanged> {
        for signed in told {
            self.learn_one(signed, entry.clone(), false).await?;
        }
        // Another server of this site may have stored what is known already.
        self.look().await
    }

    /// Takes in one role record. `two_people`: two people have said that more than one step is right.
    pub async fn learn_one(
        &self,
        signed: SignedRoleRecord,
        entry: AuditEntry,
        two_people: bool,
    ) -> Result<(), NotChanged> {
        let (writers, peers) = self.signers().await?;
        let row = self.opener.store.role().await?;
        let known = self.records().await?;
        let domain = &self.opener.domain;
        let view = View { domain, known: &known, writers: &writers, peers: &peers };
        let now = match admission::admit(&view, &signed, two_people)? {
            Admitted::Known => return Ok(()),
            Admitted::Past => row,
            // One of our own that was forgotten takes the right to write, too: the database was rolled back.
            Admitted::News(standing) | Admitted::Forgotten(standing) => {
                RoleRow { epoch: standing.epoch, writes: false }
            }
        };
        let epoch = signed.record.epoch;
        let step = RoleStep::without_blocks(row, now, signed);
        let entry = entry.with(Detail::Epoch, epoch.0);
        self.commits.change_role(step, vec![entry]).await?;
        let standing = self.look().await?;
        tracing::warn!(
            epoch = epoch.0,
            role = %standing.role,
            "a change of role at another site was taken in"
        );
        Ok(())
    }

    /// The signed records of all changes of role, each verified, in their places.
    pub async fn records(&self) -> Result<Vec<SignedRoleRecord>, NotChanged> {
        let stored = self.opener.store.role_records().await?;
        let (writers, peers) = self.signers().await?;
        admission::verify(&self.opener.domain, (&writers, &peers), &stored)?;
        Ok(stored)
    }

    /// Whose signatures count, and the other sites, as our token has signed for them.
    async fn signers(&self) -> Result<(Writers, Vec<Peer>), NotChanged> {
        let ours = self.opener.hsm.site_keys().await?;
        let peers = self.peers().await?;
        Ok((Writers::of_peers(&peers).with_own(&self.opener.domain, ours), peers))
    }

    /// Reads the role as it is stored, and goes by it. Until that was possible once, and when what is stored does
    /// not hold, this process changes nothing. It goes back to no lower epoch: role and records that were taken
    /// back together, with their database, don't open what a promotion closed.
    pub async fn look(&self) -> Result<Standing, NotChanged> {
        let before = self.opener.role.now();
        let found = self.stored_standing(before.epoch).await;
        match &found {
            Ok(standing) => self.goes_by(*standing).await,
            // Nothing was heard: what is known stays, and each commit asks the database itself.
            Err(NotChanged::Store(_) | NotChanged::Token(_)) => {}
            Err(_) => self.opener.role.becomes(Standing { open: false, ..before }),
        }
        found
    }

    async fn stored_standing(&self, least: Epoch) -> Result<Standing, NotChanged> {
        let row = self.opener.store.role().await?;
        let standing = self.standing_of(&self.records().await?, row)?;
        if standing.epoch < least {
            return Err(NotChanged::Row(row));
        }
        match self.restore_mark().await? {
            Some(_) if standing.role == Role::Primary => Ok(Standing { open: false, ..standing }),
            _ => Ok(standing),
        }
    }

    /// Runs until the process ends: hears of it when another server of this site changes the role.
    pub async fn keep_looking(&self) {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let Ok(row) = self.opener.store.role().await else { continue };
            let now = self.opener.role.now();
            if (row.epoch, row.writes) == (now.epoch, now.writes()) {
                continue;
            }
            if let Err(error) = self.look().await {
                tracing::error!(%error, "this site's role can't be told: it changes nothing");
            }
        }
    }

    /// The role that follows from verified records. What the database says besides can take the right to write
    /// away, and never give it.
    fn standing_of(
        &self,
        records: &[SignedRoleRecord],
        row: RoleRow,
    ) -> Result<Standing, NotChanged> {
        let standing = Standing::of(&self.opener.domain, records);
        if row.epoch != standing.epoch || row.writes && !standing.writes() {
            return Err(NotChanged::Row(row));
        }
        let open = standing.open && (row.writes || standing.role != Role::Primary);
        self.opener.role.was_verified(standing.epoch);
        let above = changing::above(&self.opener.domain, records);
        self.above.store(above, Ordering::Relaxed);
        Ok(Standing { open, ..standing })
    }

    /// No other task of this process changes or opens a block until the turns are dropped.
    async fn take_all(&self) -> Vec<Turn> {
        let blocks = self.opener.domain.blocks.get();
        let mut turns = Vec::with_capacity(blocks as usize);
        for block in (0..blocks).map(BlockNo) {
            turns.push(self.opener.turns.take(block).await);
        }
        turns
    }

    /// All blocks as they are stored. Not verified: who builds on a head verifies it.
    async fn marks(&self) -> Result<Stored, NotChanged> {
        let heads = self.opener.store.heads().await?;
        let mark = |head: &Head| {
            let (block, position, digest) = (head.block, head.position, head.digest);
            BlockMark { block, position, digest }
        };
        Ok(Stored { marks: heads.iter().map(mark).collect(), heads, left: Vec::new() })
    }

    /// All blocks, for a site that takes over from one that is lost: a head that can't be read, or is not authentic, stops
    /// nothing but its own block, and nothing of it is signed.
    async fn believed(&self, records: &[SignedRoleRecord]) -> Result<Stored, NotChanged> {
        let opener = &self.opener;
        let mut there: BTreeMap<BlockNo, Head> = match opener.store.heads().await {
            Ok(heads) => heads.into_iter().map(|head| (head.block, head)).collect(),
            Err(StoreError::Damaged(_)) => self.readable().await?,
            Err(error) => return Err(error.into()),
        };
        let mut found = Stored { heads: Vec::new(), marks: Vec::new(), left: Vec::new() };
        for block in (0..opener.domain.blocks.get()).map(BlockNo) {
            let head = there.remove(&block).ok_or_else(|| "its head can't be read".to_owned());
            let head = match head {
                Ok(head) => self.check(&head).await.map(|_| head),
                Err(why) => Err(why),
            };
            match head {
                Ok(head) => {
                    let (position, digest) = (head.position, head.digest);
                    found.marks.push(BlockMark { block, position, digest });
                    found.heads.push(head);
                }
                Err(why) => {
                    let known = opener.freshness.newest_authentic(block);
                    let domain = &opener.domain;
                    found.marks.push(changing::last_known(domain, records, block, known));
                    found.left.push((block, why));
                }
            }
        }
        Ok(found)
    }

    /// The heads that can be read, one by one.
    async fn readable(&self) -> Result<BTreeMap<BlockNo, Head>, NotChanged> {
        let mut heads = BTreeMap::new();
        for block in (0..self.opener.domain.blocks.get()).map(BlockNo) {
            match self.opener.store.changes_after(block, END).await {
                Ok(Some(changes)) => drop(heads.insert(block, changes.head)),
                Ok(None) | Err(StoreError::Damaged(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(heads)
    }
}

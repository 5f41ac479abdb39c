//! Changes of who writes: promotion and demotion of this site, and learning that the other one was promoted.
//!
//! The role that is stored and the one that this process goes by change together: first the database, in a
//! transaction that excludes commits, then the process. A process that was stopped in between finds the new
//! role in its next commit, which is refused.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    error::KeyringError,
    opening::{Opener, Room},
    turns::Turn,
};
use crate::{
    hsm::TokenError,
    store::{
        AuditedStore, BlockChange, StoreError,
        sites::{RoleRow, RoleStep},
    },
};
use kms_core::{
    BlockNo, Epoch, Head, Position,
    audit::{AuditEntry, PublicKey, is_signed},
    block::{BlockMark, Digest, entering::enter, keys::BlockKeys},
    site::{
        admission::{NotAdmitted, Signers, admit},
        role::{Role, RoleChange, RoleRecord, SignedRoleRecord, Standing},
    },
};

/// The interval at which a server looks whether another one of its site changed the role.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// The most times that a change of role is tried anew because a block was changed meanwhile.
const TRIES_MAX: usize = 8;

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
    #[error("this site is {} in epoch {}: {why}", .standing.role, .standing.epoch.0)]
    Standing {
        /// The role.
        standing: Standing,
        /// What was asked that does not fit.
        why: &'static str,
    },
    /// The other site ended its epoch with states that are not all here.
    #[error("{differing} blocks are not as the other site left them: let this site catch up first")]
    NotInStep {
        /// So many blocks.
        differing: usize,
    },
    /// Blocks of which nothing is known.
    #[error("block {block}: {why}")]
    Block {
        /// The first of them.
        block: BlockNo,
        /// The reason.
        why: String,
    },
    /// The record is not one that this site accepts.
    #[error(transparent)]
    NotAdmitted(#[from] NotAdmitted),
    /// The token did not sign.
    #[error("the token: {0}")]
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
    opener: Arc<Opener>,
    commits: Arc<dyn AuditedStore>,
}

/// What a promotion found, and made of it.
struct Entered {
    found: Vec<(Position, Digest)>,
    changes: Vec<BlockChange>,
    left: Vec<(BlockNo, String)>,
}

impl Roles {
    /// Over the same blocks as `opener`.
    pub(super) fn new(opener: Arc<Opener>, commits: Arc<dyn AuditedStore>) -> Self {
        Self { opener, commits }
    }

    /// The role now, as this process knows it.
    pub fn standing(&self) -> Standing {
        self.opener.role.now()
    }

    /// This site begins to write, in the next epoch of its parity. `expected`: the highest epoch that the
    /// caller knows of. In order: the other site has ended its epoch, and all that it wrote is here; otherwise
    /// only if the caller says that it is lost, and takes the loss on himself.
    pub async fn promote(
        &self,
        expected: Epoch,
        is_lost: bool,
        entry: AuditEntry,
        now_ms: u64,
    ) -> Result<Promotion, NotChanged> {
        let all = self.take_all().await;
        let row = self.opener.store.role().await?;
        let records = self.records().await?;
        let standing = self.standing_of(&records, row)?;
        if standing.epoch != expected {
            return Err(NotChanged::Epoch { expected, found: standing.epoch });
        }
        let refused = |why| Err(NotChanged::Standing { standing, why });
        if standing.writes() {
            return refused("it writes already");
        }
        if standing.role == Role::Replica {
            return refused("a read-only replica is never promoted");
        }
        if standing.open && !is_lost {
            return refused("demote the primary first, or say that it is lost");
        }
        let epoch = standing.epoch.next_of(self.opener.domain.even);
        let entered = self.enter_all(epoch, is_lost).await?;
        if !standing.open && !is_lost {
            let ended = records.last().map(|signed| &signed.record);
            in_step(ended, &entered.found)?;
        }
        let record =
            self.sign(RoleChange::Promotion, epoch, &standing, entered.found, now_ms).await?;
        let heads: Vec<Head> = entered.changes.iter().map(|change| change.head.clone()).collect();
        let step = RoleStep {
            expected: row,
            now: RoleRow { epoch, writes: true },
            record,
            blocks: entered.changes,
            table: None,
        };
        self.commits.change_role(step, vec![entry]).await?;
        heads.iter().for_each(|head| self.opener.entered(head));
        let standing = Standing { role: Role::Primary, epoch, open: true };
        self.opener.role.becomes(standing);
        tracing::warn!(epoch = epoch.0, "this site was promoted: it writes");
        drop(all);
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
        if !standing.writes() {
            return Err(NotChanged::Standing { standing, why: "it does not write" });
        }
        let heads = self.opener.store.heads().await?;
        let found = heads.iter().map(|head| (head.position, head.digest)).collect();
        let record =
            self.sign(RoleChange::Demotion, standing.epoch, &standing, found, now_ms).await?;
        // Unchanged, so that the store finds each where the record says.
        let blocks = heads.into_iter().map(unchanged).collect();
        let now = RoleRow { epoch: standing.epoch, writes: false };
        let step = RoleStep { expected: row, now, record, blocks, table: None };
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
        let signers = self.signers().await?;
        for signed in told {
            let row = self.opener.store.role().await?;
            let known = self.records().await?;
            if known.contains(&signed) {
                continue;
            }
            let before: Vec<RoleRecord> = known.iter().map(|known| known.record.clone()).collect();
            admit(&self.opener.domain, &signers, &before, &signed)?;
            let epoch = signed.record.epoch;
            let after: Vec<RoleRecord> =
                before.into_iter().chain([signed.record.clone()]).collect();
            let step = RoleStep {
                expected: row,
                now: RoleRow { epoch, writes: false },
                record: signed,
                blocks: Vec::new(),
                table: None,
            };
            self.commits.change_role(step, vec![entry.clone()]).await?;
            let standing = Standing::of(&self.opener.domain, &after);
            self.opener.role.becomes(standing);
            tracing::warn!(
                epoch = epoch.0,
                "another site changed its role: this one does not write"
            );
        }
        Ok(self.standing())
    }

    /// The signed records of all changes of role, each verified.
    pub async fn records(&self) -> Result<Vec<SignedRoleRecord>, NotChanged> {
        let signers = self.signers().await?;
        let stored = self.opener.store.role_records().await?;
        let mut before = Vec::with_capacity(stored.len());
        for signed in &stored {
            admit(&self.opener.domain, &signers, &before, signed)?;
            before.push(signed.record.clone());
        }
        Ok(stored)
    }

    /// Reads the role as it is stored, and goes by it. Until that was possible once, this process changes
    /// nothing.
    pub async fn look(&self) -> Result<Standing, NotChanged> {
        let row = self.opener.store.role().await?;
        let standing = self.standing_of(&self.records().await?, row)?;
        self.opener.role.becomes(standing);
        Ok(standing)
    }

    /// Runs until the process ends: hears of it when another server of this site changes the role.
    pub async fn keep_looking(&self) {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let Ok(row) = self.opener.store.role().await else { continue };
            let now = self.standing();
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
        let records: Vec<RoleRecord> = records.iter().map(|signed| signed.record.clone()).collect();
        let standing = Standing::of(&self.opener.domain, &records);
        if row.epoch != standing.epoch || row.writes && !standing.writes() {
            return Err(NotChanged::Standing {
                standing,
                why: "the database says otherwise than the signed records do: put its newest copy back",
            });
        }
        Ok(Standing {
            open: standing.open && (row.writes || standing.role != Role::Primary),
            ..standing
        })
    }

    async fn signers(&self) -> Result<Signers, NotChanged> {
        let ours = self.opener.hsm.public_key().await?;
        let peers = self.opener.store.peers().await?;
        // What our token did not sign is nobody.
        let peers = peers.into_iter().filter(|signed| signed.is_signed_by(&ours));
        Ok(Signers { ours, peers: peers.map(|signed| signed.peer).collect() })
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

    /// All blocks in `epoch`. One of which nothing is known stays, if `may_leave`.
    async fn enter_all(&self, epoch: Epoch, may_leave: bool) -> Result<Entered, NotChanged> {
        let heads = self.opener.store.heads().await?;
        let mut entered = Entered { found: Vec::new(), changes: Vec::new(), left: Vec::new() };
        let by_block: BTreeMap<BlockNo, Head> =
            heads.into_iter().map(|head| (head.block, head)).collect();
        for block in (0..self.opener.domain.blocks.get()).map(BlockNo) {
            let Some(head) = by_block.get(&block) else {
                return Err(KeyringError::missing(block).into());
            };
            entered.found.push((head.position, head.digest));
            match self.enter_one(head, epoch).await {
                Ok(change) => entered.changes.push(change),
                Err(why) if may_leave => entered.left.push((block, why)),
                Err(why) => return Err(NotChanged::Block { block, why }),
            }
        }
        Ok(entered)
    }

    async fn enter_one(&self, head: &Head, epoch: Epoch) -> Result<BlockChange, String> {
        let said = |error: &dyn std::fmt::Display| error.to_string();
        let opener = &self.opener;
        let table = match opener.resident.table(head.block) {
            Some(table) => table,
            None => {
                let opened = opener.open_now(head.block, Room::MayCloseOthers).await;
                Arc::new(opened.map_err(|error| said(&error))?)
            }
        };
        let keys = table.subkeys().and_then(|bytes| BlockKeys::new(opener.domain.domain, bytes));
        let keys = keys.ok_or_else(|| "its subkeys are incomplete".to_owned())?;
        let (block, position, digest) = (head.block, head.position, head.digest);
        let new = enter(&keys, head, epoch).map_err(|error| said(&error))?;
        opener
            .freshness
            .admit(&BlockMark { block, position, digest })
            .map_err(|_| "it is older than a state that is known".to_owned())?;
        Ok(BlockChange {
            expected: Some(position),
            head: new,
            seals: Vec::new(),
            records: Vec::new(),
        })
    }

    async fn sign(
        &self,
        change: RoleChange,
        epoch: Epoch,
        before: &Standing,
        heads: Vec<(Position, Digest)>,
        at_ms: u64,
    ) -> Result<SignedRoleRecord, NotChanged> {
        let (domain, site) = (self.opener.domain.domain, self.opener.domain.site.clone());
        let record = RoleRecord { domain, site, change, epoch, after: before.epoch, at_ms, heads };
        let message = record.message();
        let key: PublicKey = self.opener.hsm.public_key().await?;
        let signature = self.opener.hsm.sign(message.clone()).await?;
        if !is_signed(&key, &message, &signature) {
            let source = "the token signs with another key than the one it shows".into();
            return Err(TokenError::Refused { operation: "sign a role record", source }.into());
        }
        Ok(SignedRoleRecord { record, signature })
    }
}

/// Whether all blocks are as the demotion of the other site says.
fn in_step(ended: Option<&RoleRecord>, found: &[(Position, Digest)]) -> Result<(), NotChanged> {
    let theirs = ended.map(|record| record.heads.as_slice()).unwrap_or_default();
    let differing =
        (0..found.len().max(theirs.len())).filter(|at| found.get(*at) != theirs.get(*at));
    match differing.count() {
        0 => Ok(()),
        differing => Err(NotChanged::NotInStep { differing }),
    }
}

fn unchanged(head: Head) -> BlockChange {
    BlockChange { expected: Some(head.position), head, seals: Vec::new(), records: Vec::new() }
}

//! Open blocks and resident keys: the way from a system title to the keys that open its APDUs.
//!
//! A hit takes no lock and allocates nothing: a [`Snapshot`] of the directory, one cache line of the
//! block's table. A miss opens the block once, however many ask ([`opening`]). Changes go through
//! [`changing`], which verifies what it builds on. [`warm_up`] opens all blocks in the background;
//! [`following`] opens anew what other servers changed.

pub mod arena;
mod changing;
mod damage;
mod figures;
mod finding;
mod following;
pub mod founding;
mod ids;
mod opening;
mod patrol;
mod scrub;
mod sealed;
mod table;
pub mod warm_up;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use arc_swap::ArcSwap;
use tokio::sync::OnceCell;

use crate::{
    hsm::{Hsm, TokenError},
    store::{AuditedStore, ReadStore, StoreError},
};
use kms_core::{
    BlockNo, ClearKey, DomainRecord, Fingerprint, Kcv, Position, SystemTitle,
    block::{
        extending::TooLong,
        keys,
        verified::{Refused, Unreadable},
    },
    freshness::Freshness,
    ports::Clock,
};

use arena::{Arena, ArenaError};
pub use changing::{Change, WrappedValue};
pub use damage::{DamageStatus, DamagedRecord, IndexLie};
pub use finding::{Doubt, Found};
pub use following::NotFollowing;
use ids::IdIndex;
pub use scrub::scrub_stack;
pub use sealed::{SealedKey, TakeError};
pub use table::{BlockTable, Candidate, Directory, KeyMaterial, PolicyBits, ResidentMeter};

/// What the keyring needs, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Size of the arena. A meter with GUEK and GAK takes 80 bytes.
    pub arena_bytes: usize,
    /// Go on if the arena can't be locked: development only.
    pub allow_unlocked: bool,
    /// Blocks opened at the same time by the warm-up; 1 to 64.
    pub warm_up_parallelism: usize,
}

/// Why a block can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyringError {
    /// The token can't open the block.
    #[error("block {block} can't be opened: {source}")]
    Token {
        /// Which block.
        block: BlockNo,
        /// What the token said.
        source: TokenError,
    },
    /// The database can't be read or written.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// No room for the block's keys.
    #[error("the arena is full: raise keyring.arena_mib (block {block} needs {needed} bytes)")]
    ArenaFull {
        /// Which block.
        block: BlockNo,
        /// Its size in the arena.
        needed: usize,
    },
    /// No seal of the block's secret is for this token.
    #[error(
        "block {0} is damaged: the seal of its secret for this site's token is missing; restore it \
         from a backup"
    )]
    NotSealedForUs(BlockNo),
    /// Stored data is not what was written.
    #[error("block {block} is damaged: {what}")]
    Damaged {
        /// Which block.
        block: BlockNo,
        /// What does not hold.
        what: String,
    },
    /// It is not known which states of blocks are the newest.
    #[error("{0}")]
    RolledBack(Arc<str>),
    /// One record is not what was written. The rest of its block is.
    #[error(
        "the record of meter {system_title} in block {block} was changed outside this service: restore \
         the database, or bury the meter"
    )]
    RecordDamaged {
        /// Which block.
        block: BlockNo,
        /// Whose record.
        system_title: SystemTitle,
    },
    /// There is no record of a meter in a block that has damaged ones: whose those are is not sure.
    #[error(
        "block {block} has no record of meter {system_title}, and {damaged} of its records were changed \
         outside this service: it may be one of them; restore the database, or bury what is damaged"
    )]
    RecordMissing {
        /// Which block.
        block: BlockNo,
        /// Which meter.
        system_title: SystemTitle,
        /// Damaged records of the block.
        damaged: usize,
    },
    /// A meter's record has no encoding. Nothing was written.
    #[error("{0}; nothing was changed")]
    TooLong(#[from] TooLong),
    /// The stored block is older than one that this process has seen.
    #[error("block {block} went back from {seen} to {found}: a rolled-back database")]
    Stale {
        /// Which block.
        block: BlockNo,
        /// The highest position seen.
        seen: Position,
        /// What is stored now.
        found: Position,
    },
}

impl KeyringError {
    /// Nothing of a block is believed.
    fn refused(block: BlockNo, refused: Refused) -> Self {
        match refused {
            Refused::Older { newest, found } => Self::Stale { block, seen: newest, found },
            Refused::Head
            | Refused::Count
            | Refused::Order
            | Refused::Digest
            | Refused::Forked(_) => Self::Damaged { block, what: refused.to_string() },
        }
    }

    /// A block does not say what it has of a meter.
    fn unreadable(block: BlockNo, system_title: SystemTitle, why: Unreadable) -> Self {
        match why {
            Unreadable::Damaged => Self::RecordDamaged { block, system_title },
            Unreadable::OneOfDamaged(damaged) => {
                Self::RecordMissing { block, system_title, damaged }
            }
        }
    }

    /// All blocks are made by `init`, and none is ever removed.
    fn missing(block: BlockNo) -> Self {
        let what = "it is missing: deleted outside this service; restore it from a backup";
        Self::Damaged { block, what: what.to_owned() }
    }

    /// Whether it may go away by itself.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Token { source, .. } => !matches!(source, TokenError::Refused { .. }),
            Self::Store(store) => match store {
                StoreError::Unreachable { .. }
                | StoreError::Conflict(_)
                | StoreError::ReadOnly
                | StoreError::ReadOnlyPrimary
                | StoreError::AuditNotWritten { .. } => true,
                StoreError::Taken { .. }
                | StoreError::Rule { .. }
                | StoreError::AuditMoved(_)
                | StoreError::Damaged(_) => false,
            },
            Self::ArenaFull { .. } => true,
            Self::RolledBack(_) => true,
            Self::NotSealedForUs(_)
            | Self::Damaged { .. }
            | Self::RecordDamaged { .. }
            | Self::RecordMissing { .. }
            | Self::TooLong(_)
            | Self::Stale { .. } => false,
        }
    }
}

/// A failure shared by all who waited for the same opening.
pub type SharedError = Arc<KeyringError>;

/// The directory as it was at one moment: hold it for a batch, not longer.
pub type Snapshot = Arc<Directory>;

/// All open blocks.
pub struct Keyring {
    config: Config,
    domain: DomainRecord,
    arena: Arc<Arena>,
    directory: ArcSwap<Directory>,
    ids: IdIndex,
    /// Serialises changes of the directory; held for pointer copies, never across an `.await`.
    publishing: Mutex<()>,
    /// Openings under way: many ask, one opens.
    opening: Mutex<HashMap<BlockNo, Opening>>,
    /// One writer a block in this process; between processes the store's conflict decides.
    writers: Mutex<HashMap<BlockNo, Arc<tokio::sync::Mutex<()>>>>,
    /// The newest known state of each block.
    freshness: Arc<Freshness>,
    memory: Mutex<Memory>,
    damage: damage::Damage,
    progress: warm_up::Progress,
    /// Whether other processes write to the store.
    shared: bool,
    following: following::Following,
    /// Made when the first sealed key comes in.
    test_keys: OnceLock<sealed::TestKeys>,
    hsm: Hsm,
    store: Arc<dyn ReadStore>,
    commits: Arc<dyn AuditedStore>,
    clock: Arc<dyn Clock>,
}

type Opening = Arc<OnceCell<Result<Arc<BlockTable>, SharedError>>>;

/// What the keyring remembers of blocks besides their keys. Bounded by the number of blocks.
#[derive(Default)]
struct Memory {
    /// The seal that each block's resident subkeys came from: its SHA-256.
    seals: HashMap<BlockNo, [u8; 32]>,
    /// What the last look at all positions found: by block, then what has none.
    rows: BTreeMap<Option<BlockNo>, String>,
    /// Blocks that it found behind, and where: a look that began before a commit finds its block so.
    behind: HashMap<BlockNo, Position>,
    /// Why a block could not be read or changed, until it can.
    lasting: BTreeMap<BlockNo, String>,
    /// Where the next look at blocks at fault begins.
    look_from: BlockNo,
    /// When an opening last failed, and why: no second try within [`RETRY_AFTER_MS`].
    failed: HashMap<BlockNo, (u64, SharedError)>,
    /// Blocks whose last commit ended unknown: to be read again.
    suspect: HashSet<BlockNo>,
    /// There was no room for the whole fleet.
    too_small: Option<SharedError>,
    /// Where the search for a block to close goes on.
    hand: usize,
}

/// How long a failed opening is not tried again, so that a flood of APDUs for a block that can't be
/// opened does not become a flood of HSM calls and queries.
const RETRY_AFTER_MS: u64 = 100;

impl Keyring {
    /// An empty keyring: no block is open yet. Blocks are read from `store`; they change only through
    /// `commits`, together with what the audit log says of it. What is older than `freshness` knows is not
    /// used.
    pub fn new(
        config: Config,
        domain: DomainRecord,
        hsm: Hsm,
        store: Arc<dyn ReadStore>,
        commits: Arc<dyn AuditedStore>,
        clock: Arc<dyn Clock>,
        freshness: Arc<Freshness>,
    ) -> Result<Arc<Self>, ArenaError> {
        let arena = Arena::new(config.arena_bytes, config.allow_unlocked)?;
        let blocks = vec![None; domain.blocks.get() as usize].into_boxed_slice();
        Ok(Arc::new(Self {
            config,
            domain,
            arena,
            directory: ArcSwap::from_pointee(Directory { blocks, open: 0 }),
            ids: IdIndex::new(),
            publishing: Mutex::default(),
            opening: Mutex::default(),
            writers: Mutex::default(),
            freshness,
            memory: Mutex::default(),
            damage: damage::Damage::default(),
            progress: warm_up::Progress::default(),
            shared: store.follow().is_some(),
            following: following::Following::default(),
            test_keys: OnceLock::new(),
            hsm,
            store,
            commits,
            clock,
        }))
    }

    /// The directory now. One atomic increment; hold it for a batch.
    pub fn snapshot(&self) -> Snapshot {
        self.directory.load_full()
    }

    /// The block that a title belongs to.
    #[inline]
    pub fn block_of(&self, title: &SystemTitle) -> BlockNo {
        self.domain.blocks.block_of(title)
    }

    /// Whether the domain has a block of this number.
    pub fn has_block(&self, block: BlockNo) -> bool {
        block.0 < self.domain.blocks.get()
    }

    /// Identity and check value of an AES key in this domain; `None`: not 16 or 32 bytes.
    pub fn identify(&self, key: &ClearKey) -> Option<(Fingerprint, Kcv)> {
        keys::identify(&self.domain.domain, key)
    }

    /// Figures for people.
    pub fn status(&self) -> KeyringStatus {
        let snapshot = self.snapshot();
        let open = snapshot.blocks.iter().flatten();
        let (blocks_open, resident_meters) = open.fold((0, 0), |(blocks, meters), table| {
            (blocks + 1, meters + u64::from(table.meters()))
        });
        let memory = self.memory();
        let refusal = self.freshness.refusal();
        let mut faults = memory.faults();
        faults.splice(0..0, refusal.iter().map(ToString::to_string));
        let progress = self.progress.read(self.clock.monotonic_ms());
        KeyringStatus {
            blocks_total: self.domain.blocks.get(),
            blocks_open,
            blocks_failed: match refusal {
                Some(_) => self.domain.blocks.get(),
                None => memory.blocks_at_fault(),
            },
            warm_up_done: progress.done,
            warm_up_elapsed_ms: progress.elapsed_ms,
            resident_meters,
            arena_bytes_used: self.arena.used() as u64,
            arena_bytes_total: self.arena.mapped() as u64,
            memory_locked: self.arena.is_locked(),
            not_following: self.not_following(),
            faults,
            damage: self.damage.status(),
        }
    }

    /// Puts tables into the directory and keeps the id index in step. `None` closes a block.
    fn publish(&self, tables: Vec<(BlockNo, Option<Arc<BlockTable>>)>) {
        let _one_at_a_time = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.directory.load_full();
        let mut blocks = old.blocks.clone();
        for (block, table) in &tables {
            if let Some(place) = blocks.get_mut(block.0 as usize) {
                place.clone_from(table);
            }
        }
        let open = blocks.iter().flatten().count();
        let new = Arc::new(Directory { blocks, open });
        // Ids come before their block and go after it: who misses an id in a directory of which every block
        // is open may say that there is none.
        for new in tables.iter().filter_map(|(_, table)| table.as_deref()) {
            for meter in new.iter().filter(|meter| !meter.is_damaged()) {
                self.ids.put(meter.id().hash, meter.title());
            }
        }
        self.directory.store(new);
        for (block, table) in &tables {
            self.forget_ids(old.table(*block), table.as_deref());
        }
    }

    fn forget_ids(&self, old: Option<&BlockTable>, new: Option<&BlockTable>) {
        let kept = |meter: &ResidentMeter<'_>| {
            new.and_then(|table| table.find(&meter.title()))
                .is_some_and(|now| !now.is_damaged() && now.id() == meter.id())
        };
        for gone in old.into_iter().flat_map(BlockTable::iter).filter(|meter| !kept(meter)) {
            self.ids.forget(gone.id().hash, gone.title());
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For `GetStatus`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyringStatus {
    /// Blocks of the key domain.
    pub blocks_total: u32,
    /// Blocks that are open.
    pub blocks_open: u32,
    /// Blocks that can't be opened, or are not stored as they should be.
    pub blocks_failed: u32,
    /// Whether the warm-up has been through all blocks once.
    pub warm_up_done: bool,
    /// Since the warm-up began, or how long it took.
    pub warm_up_elapsed_ms: u64,
    /// Meters whose keys are resident.
    pub resident_meters: u64,
    /// Bytes in use.
    pub arena_bytes_used: u64,
    /// Bytes mapped.
    pub arena_bytes_total: u64,
    /// Whether the arena's pages are locked.
    pub memory_locked: bool,
    /// What keeps this server from following the others of its database, while it lasts.
    pub not_following: Option<NotFollowing>,
    /// What is wrong, while it lasts; of many blocks, the first.
    pub faults: Vec<String>,
    /// Damaged records, and ids that the index has wrong.
    pub damage: DamageStatus,
}

//! Nouns of a store: its errors, what it keeps, and what becomes of it.

use kms_core::{
    BlockNo, DomainRecord, Epoch, Fingerprint, Head, MeterId, Position, StoredRecord, SystemTitle,
    audit::{ChainTip, NodeId, Signature, StoredEvent},
    counters::mark::StoredMark,
    freshness::SignedHeadTable,
    site::{
        peer::SignedPeer,
        restored::{RestoreMark, SignedRestoreMark},
        role::SignedRoleRecord,
    },
};

/// The errors of a store, cut by what the caller can do about them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Somebody else extended this block first: read it again and decide anew.
    #[error("block {0} was changed by another writer")]
    Conflict(BlockNo),
    /// Another meter has this id or this title; or what was to be replaced is another by now.
    #[error("{what} {value} is taken by another one")]
    Taken {
        /// "meter id" or "system title".
        what: &'static str,
        /// The value that clashed.
        value: String,
    },
    /// The change contradicts the rules of this trait: a fault in our code. Nothing was written.
    #[error("a change of block {block} breaks a rule: {rule}")]
    Rule {
        /// The block.
        block: BlockNo,
        /// The rule.
        rule: &'static str,
    },
    /// This site does not write, or not in the epoch of the change: its role changed meanwhile. Nothing was
    /// written.
    #[error("this site's role changed: it stands in epoch {}, and {}", .0.epoch.0, if .0.writes { "writes" } else { "does not write" })]
    NotWriter(RoleRow),
    /// The audit chain does not end where its next events were to be put. Nothing was written.
    #[error("the audit chain of node {0} does not end where this process left it")]
    AuditMoved(NodeId),
    /// The audit log can't be written, so nothing else was either.
    #[error("the audit log can't be written: {reason}")]
    AuditNotWritten {
        /// One sentence for people.
        reason: String,
    },
    /// The database holds what no version of this program wrote.
    #[error("the database is damaged: {0}")]
    Damaged(String),
    /// The database is a standby: it follows another one and takes no changes. Nothing was written.
    #[error(
        "the database is a standby and takes no changes: write through a server at its primary"
    )]
    ReadOnly,
    /// The database is a primary and takes no changes all the same. Nothing was written.
    #[error(
        "the database is a primary that takes no changes: set `default_transaction_read_only = off` \
         for the server, the database and the role"
    )]
    ReadOnlyPrimary,
    /// The database does not take a backup. Nothing of the last step was written.
    #[error("the database does not take the backup: {0}")]
    NotLoaded(String),
    /// The change was handed over whole, and the database did not say in time whether it is there: a commit that waits
    /// for a synchronous standby may become true later. The audit chain tells, and the next change waits for that.
    #[error("whether the change is in the database is not known: {reason}")]
    Unknown {
        /// One sentence for people.
        reason: String,
    },
    /// The database can't be reached or has failed; the change may or may not be there.
    #[error("the database is not reachable: {reason}")]
    Unreachable {
        /// One sentence for people.
        reason: String,
    },
}

impl StoreError {
    /// A backup goes into a new database.
    pub(super) fn not_empty(table: &str) -> Self {
        Self::NotLoaded(format!(
            "it is not empty (table {table} has rows); a backup is restored into a new database, so move this one away"
        ))
    }
}

/// A block secret, sealed for one token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedSecret {
    /// The version of the block's secret.
    pub secret_version: u32,
    /// The site KEK that it is sealed under.
    pub kek_id: [u8; 16],
    /// Opaque.
    pub sealed: Vec<u8>,
}

/// All of a block. Records are in key order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBlock {
    /// Its head.
    pub head: Head,
    /// One seal a token that may open it.
    pub seals: Vec<SealedSecret>,
    /// Its records.
    pub records: Vec<StoredRecord>,
}

/// The entry of the indexes for a record. Not MACed: a hint where to look, verified against the
/// record by the reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IndexEntry {
    /// A meter that is alive: its id and title find it, its keys' fingerprints find duplicates.
    Meter {
        /// Unique among the living.
        meter_id: MeterId,
        /// Of all key versions that have one.
        fingerprints: Vec<Fingerprint>,
        /// Of keys that it had before it was deleted and readmitted.
        former: Vec<Fingerprint>,
    },
    /// A tombstone: its id finds it no more. Its fingerprints stay.
    Tombstone {
        /// Of the keys that it had.
        former: Vec<Fingerprint>,
    },
    /// No meter: nothing to find.
    Nothing,
}

/// One record's change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordChange {
    /// Replaces the record of the same key, or is new.
    pub record: StoredRecord,
    /// Replaces its index entry.
    pub index: IndexEntry,
}

/// The change of one block: extends `expected` to `head` by exactly the records that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockChange {
    /// The position it builds on; `None`: the block does not exist yet.
    pub expected: Option<Position>,
    /// The new head. Its sequence is the old one plus the number of records; epochs never fall.
    pub head: Head,
    /// New seals, for a new block or a new secret version.
    pub seals: Vec<SealedSecret>,
    /// In sequence order: numbers run from the old sequence + 1 to the head's.
    pub records: Vec<RecordChange>,
}

/// The beginning of a key domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Founding {
    /// Its record.
    pub domain: DomainRecord,
    /// All of its blocks, each without a record: none comes to be later.
    pub blocks: Vec<BlockChange>,
    /// The mark of each block's counters, of a site that writes from the beginning on.
    pub marks: Vec<StoredMark>,
    /// The signed table of their heads.
    pub table: SignedHeadTable,
    /// Role records of the domain that a site joins; none of one that is new.
    pub role_records: Vec<SignedRoleRecord>,
    /// The other sites that a site knows from the beginning: those that it joins.
    pub peers: Vec<SignedPeer>,
    /// The site was there before, and lost its database: the mark of that, and the signature of the domain's record over it.
    pub rebuilt: Option<(SignedRestoreMark, Signature)>,
}

impl Founding {
    /// A domain that begins here, without another site.
    pub fn new(domain: DomainRecord, blocks: Vec<BlockChange>, table: SignedHeadTable) -> Self {
        let (marks, role_records, peers) = (Vec::new(), Vec::new(), Vec::new());
        Self { domain, blocks, marks, table, role_records, peers, rebuilt: None }
    }

    /// The role that the site begins with. One that joins others does not write, whatever its parity: what
    /// it founds is the beginning, and the others are beyond that.
    pub fn role(&self) -> RoleRow {
        let begins = RoleRow::founding(&self.domain);
        let newest = self.role_records.iter().map(|record| record.record.epoch).max();
        let joins = newest.is_some() || !self.peers.is_empty();
        let epoch = newest.map_or(begins.epoch, |newest| newest.max(begins.epoch));
        RoleRow { epoch, writes: begins.writes && !joins }
    }
}

/// Where a meter is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexedMeter {
    /// The operator's name.
    pub meter_id: MeterId,
    /// Its title, hence its block.
    pub system_title: SystemTitle,
}

/// A holder of a key: the key's fingerprint, his title, and his id while he lives.
pub type Holder = (Fingerprint, SystemTitle, Option<MeterId>);

/// Whether a database was rolled back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestoreState {
    /// Not that anybody says.
    Nothing,
    /// A restore began and did not end: what is there is a part of a backup.
    Loading {
        /// What is restored, in words.
        from: String,
    },
    /// It bears this mark; not verified.
    Marked(SignedRestoreMark),
}

impl RestoreState {
    /// As a row of the database says it.
    pub(super) fn of_row(
        state: i64,
        body: &[u8],
        signature: Option<Signature>,
    ) -> Result<Self, StoreError> {
        let damaged = |what: &str| StoreError::Damaged(format!("the mark of a restore {what}"));
        match (state, signature) {
            (1, _) => Ok(Self::Loading { from: String::from_utf8_lossy(body).into_owned() }),
            (2, Some(signature)) => {
                let mark = RestoreMark::decode(body).map_err(|_| damaged("can't be read"))?;
                Ok(Self::Marked(SignedRestoreMark { mark, signature }))
            }
            _ => Err(damaged("is none")),
        }
    }

    /// The mark, if there is one.
    pub fn mark(self) -> Option<SignedRestoreMark> {
        match self {
            Self::Marked(mark) => Some(mark),
            Self::Nothing | Self::Loading { .. } => None,
        }
    }
}

/// The history that a database is on: another one begins with each promotion of a standby.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeline {
    /// The database system's own name.
    pub system: String,
    /// The number of the timeline.
    pub number: u32,
}

/// The lag of a standby behind its primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StandbyLag {
    /// WAL that the primary is known to have and that is not replayed here. While the standby
    /// receives nothing, the primary's end is not known: then this counts what was received.
    pub bytes: u64,
    /// 0 while everything received is replayed and more is being received; else the age of the last
    /// replayed commit. `None`: nothing was replayed since the standby started.
    pub ms: Option<u64>,
    /// Whether it receives from its primary now.
    pub receiving: bool,
}

/// Where blocks stand, as the database says: nothing of it is authentic. A row that can't be read takes
/// no other one with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Positions {
    /// Not in order.
    pub at: Vec<(BlockNo, Position)>,
    /// Rows that no version of this program wrote.
    pub damaged: Vec<DamagedRow>,
    /// Whether these are all the rows there are; else some that just changed.
    pub complete: bool,
}

/// A row of a block that can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedRow {
    /// The block; `None`: its number can't be read.
    pub block: Option<BlockNo>,
    /// The fault of the row.
    pub what: String,
}

impl Positions {
    /// All rows, each read or found damaged.
    pub(super) fn of_rows(
        rows: impl Iterator<Item = (Result<BlockNo, StoreError>, Result<Position, StoreError>)>,
    ) -> Self {
        let mut all = Self { complete: true, ..Self::default() };
        for row in rows {
            match row {
                (Ok(block), Ok(position)) => all.at.push((block, position)),
                (block, position) => {
                    let what = block.as_ref().err().or(position.as_ref().err());
                    let what = what.map(ToString::to_string).unwrap_or_default();
                    all.damaged.push(DamagedRow { block: block.ok(), what });
                }
            }
        }
        all
    }
}

/// The role as the database has it. Not authentic: signed role records are the truth, and this is their copy,
/// at which each commit looks in its own transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleRow {
    /// The highest epoch that this site knows of.
    pub epoch: Epoch,
    /// Whether this site changes blocks: then in this epoch, and in no other.
    pub writes: bool,
}

impl RoleRow {
    /// The role that a site begins with: the site that founds its domain writes, one that joins does not.
    pub fn founding(domain: &DomainRecord) -> Self {
        Self { epoch: domain.epoch, writes: domain.kind.owns(domain.epoch) }
    }
}

/// Events that continue one chain: at least one.
#[derive(Clone, Copy, Debug)]
pub struct ChainLink<'a> {
    /// The end of the chain as it stands.
    pub behind: ChainTip,
    /// The events that come behind it, in order.
    pub events: &'a [StoredEvent],
}

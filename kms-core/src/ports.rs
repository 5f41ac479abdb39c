//! Ports to the outside: time, randomness, and the witness of signed heads. `kms-server` makes the
//! real ones; tests make their own.

use async_trait::async_trait;

use super::{
    BlockNo, Epoch, StoredRecord, SystemTitle,
    audit::{ChainTip, Checkpoint},
    block::BlockMark,
    counters::allocator::Witnessed,
    floors::FloorRow,
    life::evidence::Shown,
    moment::{Moment, Stamp},
};

/// The time, handed in.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since 1970-01-01T00:00:00Z.
    fn unix_ms(&self) -> u64;

    /// Now, for spans of time. Never goes back.
    fn now(&self) -> Moment;

    /// Now, by both.
    fn stamp(&self) -> Stamp {
        Stamp { unix_ms: self.unix_ms(), moment: self.now() }
    }
}

/// A place outside the database that remembers the last signed head of a node's audit chain: who can
/// only write to the database can't take events back together with their heads.
#[async_trait]
pub trait HeadWitness: Send + Sync + 'static {
    /// The last head that was kept.
    async fn last(&self) -> Result<Option<Checkpoint>, WitnessFailed>;

    /// Keeps `head`; on disk when this returns.
    async fn keep(&self, head: &Checkpoint) -> Result<(), WitnessFailed>;

    /// Keeps the end of the node's own chain, after each commit: as soon as this returns a kill can't
    /// take it back any more, a power cut can. Must be cheap.
    fn note(&self, _tip: &ChainTip) -> Result<(), WitnessFailed> {
        Ok(())
    }

    /// The ends of all chains that were kept, the noted end of the node's own chain included.
    async fn known(&self) -> Result<KnownTips, WitnessFailed> {
        Ok(KnownTips::default())
    }

    /// Keeps the ends of all chains and the number of the head table that they were signed with; on
    /// disk when this returns.
    async fn keep_known(&self, _known: &KnownTips) -> Result<(), WitnessFailed> {
        Ok(())
    }
}

/// Ends of chains that were in the database once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownTips {
    /// A chain may have several.
    pub tips: Vec<ChainTip>,
    /// Number of the newest head table; 0: none.
    pub table: u64,
}

/// A witness that can't be read or written: one sentence for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct WitnessFailed(pub String);

/// Random bytes for what is not a key: key ids, domain ids. Keys come from the token's generator.
pub trait Randomness: Send + Sync + 'static {
    /// Fills `out`.
    fn fill(&self, out: &mut [u8]) -> Result<(), RandomnessFailed>;
}

/// The operating system gave no random bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the operating system's random generator failed")]
pub struct RandomnessFailed;

/// Whether the other site has a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replicated {
    /// There is no other site, or nothing was changed.
    NotApplicable,
    /// It has it on disk, and saw this site as the primary after it was committed.
    Yes,
    /// It did not say so in time.
    No,
}

/// Tells whether the other site has what was committed here. No lock is held while it is asked.
#[async_trait]
pub trait ReplicationGate: Send + Sync + 'static {
    /// Asks once, with a bound of its own, after the commit that led to these states.
    async fn replicated(&self, marks: &[BlockMark]) -> Replicated;
}

/// Has the other site show that its token opens blocks as they are stored here.
#[async_trait]
pub trait PeersProofs: Send + Sync + 'static {
    /// Each of these blocks: proved, or why not. An error says why nothing was asked.
    async fn prove(&self, blocks: &[BlockNo])
    -> Result<Vec<(BlockNo, Result<(), String>)>, String>;
}

/// Hears what meters show of their keys.
pub trait EvidenceSink: Send + Sync + 'static {
    /// A whole tag of this meter's own vouches for keys that wait for that. Never waits; what is lost comes again with the
    /// meter's next message.
    fn shown(&self, title: &SystemTitle, shown: &Shown, apdu: &[u8]);
}

/// A message of a meter that shows which keys it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetersMessage {
    /// The meter.
    pub title: SystemTitle,
    /// The ciphered APDU.
    pub apdu: Box<[u8]>,
}

impl MetersMessage {
    /// The most that are handed over at once.
    pub const AT_ONCE: usize = 64;
    /// The longest one that is. A meter that has only longer ones is heard by the site that writes.
    pub const LEN_MAX: usize = 2_048;
}

/// Brings what meters have shown here to the site that writes.
#[async_trait]
pub trait EvidenceCourier: Send + Sync + 'static {
    /// Whether that site has taken these: it opens them itself.
    async fn hand(&self, messages: Vec<MetersMessage>) -> bool;
}

/// There is no other site.
#[derive(Clone, Copy, Debug)]
pub struct NoCourier;

#[async_trait]
impl EvidenceCourier for NoCourier {
    async fn hand(&self, _: Vec<MetersMessage>) -> bool {
        false
    }
}

/// Nobody hears it.
#[derive(Clone, Copy, Debug)]
pub struct NoEvidence;

impl EvidenceSink for NoEvidence {
    fn shown(&self, _: &SystemTitle, _: &Shown, _: &[u8]) {}
}

/// Whether the other site has proved what is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proved {
    /// There is no other site.
    NotApplicable,
    /// Its token opened these blocks as they are stored there, and they are as they are here.
    Yes,
    /// It has not, for this reason.
    No(String),
}

/// Has the other site prove that it has what was committed here. No lock is held meanwhile.
#[async_trait]
pub trait ProofGate: Send + Sync + 'static {
    /// Asks for proofs of these blocks as they are now, with a bound of its own: an answer for each.
    async fn prove_each(&self, blocks: &[BlockNo]) -> Vec<Proved>;

    /// The same of all of them together.
    async fn prove(&self, blocks: &[BlockNo]) -> Proved {
        let each = self.prove_each(blocks).await;
        let missing = each.iter().position(|it| *it != Proved::Yes);
        missing.map_or(Proved::Yes, |at| each.into_iter().nth(at).unwrap_or(Proved::Yes))
    }
}

#[async_trait]
impl ProofGate for NoOtherSite {
    async fn prove_each(&self, blocks: &[BlockNo]) -> Vec<Proved> {
        vec![Proved::NotApplicable; blocks.len()]
    }
}

/// Takes in the receive floors of the other site.
#[async_trait]
pub trait FloorSink: Send + Sync + 'static {
    /// Takes in what the site of this name has stored. What it did not write is not used; a floor here is never
    /// lowered. An error says why some could not be taken in.
    async fn take_peers(&self, site: &str, rows: Vec<FloorRow>) -> Result<(), String>;
}

/// A site without another one.
#[derive(Clone, Copy, Debug)]
pub struct NoOtherSite;

#[async_trait]
impl ReplicationGate for NoOtherSite {
    async fn replicated(&self, _: &[BlockMark]) -> Replicated {
        Replicated::NotApplicable
    }
}

/// The other site's memory of our counters' marks, and of lines that it set aside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WitnessSaid {
    /// Our marks, as it was told of them: the highest of each block that was told now, or of all if none was.
    pub marks: Vec<(BlockNo, Witnessed)>,
    /// Records of counter lines of the block that was asked for, which it set aside when it took our block over. Not
    /// verified.
    pub set_aside: Vec<StoredRecord>,
    /// The epoch since which it has lost nothing of that block; `None`: no block was asked for, or its release does not
    /// say.
    pub remembers_since: Option<Epoch>,
}

/// A witness of our counters outside this site's database.
#[async_trait]
pub trait CounterWitness: Send + Sync + 'static {
    /// Tells it our marks, and asks what it knows of ours; of this block also which lines it set aside. `None`: it did not
    /// answer.
    async fn ask(
        &self,
        ours: Vec<(BlockNo, Witnessed)>,
        lines_of: Option<BlockNo>,
    ) -> Option<WitnessSaid>;
}

/// A memory of this server's outside the database: the highest marks of this site's counters that it reserved or saw.
#[async_trait]
pub trait CounterMemory: Send + Sync + 'static {
    /// All that it knows.
    fn known(&self) -> Vec<(BlockNo, Witnessed)>;

    /// Keeps each that is higher than what it knows; on disk when this returns.
    async fn keep(&self, marks: Vec<(BlockNo, Witnessed)>) -> Result<(), WitnessFailed>;
}

/// No witness: a single site has none, and a site without a peer is told so.
#[derive(Clone, Copy, Debug)]
pub struct NoWitness;

#[async_trait]
impl CounterWitness for NoWitness {
    async fn ask(&self, _: Vec<(BlockNo, Witnessed)>, _: Option<BlockNo>) -> Option<WitnessSaid> {
        None
    }
}

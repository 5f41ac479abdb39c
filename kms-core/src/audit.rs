//! The audit log's nouns: what is said of a call, its one canonical encoding, and the chain that
//! binds each event to all before it.
//!
//! The encoding is injective: every field has a fixed length or its length before it, lists have
//! their count, and the decoder accepts nothing that the encoder would not write. An event's hash is
//! SHA-256(label ‖ hash before it ‖ encoding). No field can hold a key, a plaintext or an APDU: there
//! are names, words and numbers.

pub mod copying;
mod encoding;
pub mod room;
mod signers;
mod walk;
pub mod writer;

use std::fmt;

use sha2::{Digest as _, Sha256};

use super::{BlockNo, MeterId, SystemTitle, block::BlockMark};

pub use encoding::BadEvent;
pub use signers::{PublicKey, Signature, SiteKeys, Verifies, is_signed};
pub use walk::{Broken, Verifier, What};

/// Names one server process's place in the site, for as long as its data directory lives: one chain a
/// node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; 16]);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({self})")
    }
}

/// SHA-256 over an event and all before it.
pub type ChainHash = [u8; 32];

/// A name or a word of the log: at most 255 visible ASCII characters.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AuditText(Box<str>);

impl AuditText {
    /// In bytes.
    pub const MAX_LEN: usize = 255;

    /// `text`, with `?` for whatever can't stand in a line of a log, cut at 255 characters.
    pub fn new(text: &str) -> Self {
        let visible = |c: char| if c.is_ascii_graphic() { c } else { '?' };
        Self(text.chars().take(Self::MAX_LEN).map(visible).collect())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for AuditText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AuditText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// A call, and who made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditedCall {
    /// The name in the caller's certificate.
    pub caller: AuditText,
    /// As a policy writes it: `Meters/DeleteMeter`.
    pub verb: AuditText,
    /// The caller's own name for the call; empty if it gave none.
    pub request_id: AuditText,
    /// The number under which a second person approved it; stands among the details of its entries.
    pub approval: Option<u64>,
}

impl AuditedCall {
    /// A call without a request id.
    pub fn new(caller: &str, verb: &str) -> Self {
        Self {
            caller: AuditText::new(caller),
            verb: AuditText::new(verb),
            request_id: AuditText::default(),
            approval: None,
        }
    }

    /// An entry about this call.
    pub fn entry(&self, at_ms: u64, subject: Subject, outcome: AuditOutcome) -> AuditEntry {
        AuditEntry {
            at_ms,
            call: Self { approval: None, ..self.clone() },
            subject,
            outcome,
            details: self.approval.map(|number| (Detail::Approval, number)).into_iter().collect(),
            blocks: Vec::new(),
            heads: Vec::new(),
        }
    }
}

/// The subject of a call: a meter, a block, or nothing in particular.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// The operator's name of a meter.
    pub meter_id: Option<MeterId>,
    /// The meter's name on the wire.
    pub system_title: Option<SystemTitle>,
    /// The block that holds it.
    pub block: Option<BlockNo>,
}

impl Subject {
    /// Nothing in particular.
    pub const NONE: Self = Self { meter_id: None, system_title: None, block: None };

    /// A meter, by the operator's name.
    pub fn meter(id: &MeterId) -> Self {
        Self { meter_id: Some(id.clone()), ..Self::NONE }
    }

    /// A meter, by its name on the wire.
    pub fn title(title: SystemTitle) -> Self {
        Self { system_title: Some(title), ..Self::NONE }
    }
}

/// The outcome of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditOutcome {
    /// As asked.
    Done,
    /// Not done, for what was asked or who asked; the word says why.
    Refused(AuditText),
    /// Not done, for a fault of ours; the word says which.
    Failed(AuditText),
}

impl AuditOutcome {
    /// Refused, with its reason word.
    pub fn refused(word: &str) -> Self {
        Self::Refused(AuditText::new(word))
    }

    /// Failed, with its reason word.
    pub fn failed(word: &str) -> Self {
        Self::Failed(AuditText::new(word))
    }
}

crate::numbered! {
    /// The name of a number in an event. The names' own numbers are those of the wire.
    pub enum Detail "detail" {
        /// Meters that an import made.
        Created = 1 "created",
        /// Meters that an import changed.
        Updated = 2 "updated",
        /// Lines of an import that brought nothing new.
        Unchanged = 3 "unchanged",
        /// Lines of an import that were refused.
        RefusedLines = 4 "refused",
        /// Key versions that a meter gained.
        KeysAdded = 5 "keys_added",
        /// Things that were shown or, in a record of traffic, APDUs.
        Items = 6 "items",
        /// The sequence number of the event after which a list began.
        After = 7 "after",
        /// Length of the interval that a record of traffic sums up.
        IntervalMs = 8 "interval_ms",
        /// 1: everything was checked and nothing changed.
        DryRun = 9 "dry_run",
        /// Of `items`, those in blocks that have no row of their own.
        ItemsInOtherBlocks = 10 "items_in_other_blocks",
        /// Of `items`, those that named no system title.
        ItemsWithoutBlock = 11 "items_without_block",
        /// The number of the verdict on the items of a record of traffic.
        Verdict = 12 "verdict",
        /// The number under which a call waited for its second person.
        Approval = 13 "approval",
        /// The sealed file that a meter came from: the beginning of its header's SHA-256.
        SealedFile = 14 "sealed_file",
        /// The signer of the sealed file: the beginning of SHA-256 over his public key in DER.
        SealedSigner = 15 "sealed_signer",
        /// The chunk of the sealed file, from 0.
        SealedChunk = 16 "sealed_chunk",
        /// The invocation counter below which a line gives out none, as declared.
        CounterAtLeast = 17 "counter_at_least",
        /// Records that were set aside: what one site wrote and the other never had.
        SetAside = 18 "set_aside",
        /// What was decided about a record that was set aside: 1 merged, 2 discarded.
        Resolution = 19 "resolution",
        /// Of records that were set aside in one block: the beginning of SHA-256 over their MACs.
        AsideDigest = 20 "aside_digest",
        /// The epoch to which the site was promoted, in which it was demoted, or of which it learned.
        Epoch = 21 "epoch",
        /// The site that was enrolled: the beginning of SHA-256 over its signing key.
        PeerKey = 22 "peer_key",
        /// The kind of a meter's key, by its number.
        KeyKind = 23 "key_kind",
        /// e in `0.0.43.0.e.255` of a meter's key.
        SecuritySetup = 24 "security_setup",
        /// The version of a meter's key.
        KeyVersion = 25 "key_version",
        /// Why a key came into its state, by its number.
        StateReason = 26 "state_reason",
        /// A key may be handed out that the other site has not proved.
        WithoutProof = 27 "without_proof",
        /// The broadcast group: the beginning of the hash over its name.
        Group = 28 "group",
    }
}

/// An entry about one call, before it has its place in a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// The call, and who made it.
    pub call: AuditedCall,
    /// The subject of the call.
    pub subject: Subject,
    /// The outcome of the call.
    pub outcome: AuditOutcome,
    /// Numbers, at most [`AuditEntry::DETAILS_MAX`].
    pub details: Vec<(Detail, u64)>,
    /// In a record of traffic: items a block, at most [`AuditEntry::BLOCKS_MAX`].
    pub blocks: Vec<(BlockNo, u64)>,
    /// The state of each block after the change that this is about. Never cut.
    pub heads: Vec<BlockMark>,
}

impl AuditEntry {
    /// Numbers in one event; further ones are left out.
    pub const DETAILS_MAX: usize = 16;
    /// Blocks in one event; further ones are left out.
    pub const BLOCKS_MAX: usize = 256;

    /// With a number.
    #[must_use]
    pub fn with(mut self, detail: Detail, number: u64) -> Self {
        self.details.push((detail, number));
        self
    }
}

/// An entry in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEvent {
    /// The node whose chain it is.
    pub node: NodeId,
    /// From 1, without a gap.
    pub sequence: u64,
    /// The entry.
    pub entry: AuditEntry,
}

/// An event as the store keeps it: `body` is opaque there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEvent {
    /// The node whose chain it is.
    pub node: NodeId,
    /// From 1, without a gap.
    pub sequence: u64,
    /// Of this event and all before it.
    pub hash: ChainHash,
    /// [`AuditEvent::encode`].
    pub body: Vec<u8>,
}

/// The end of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainTip {
    /// The node whose chain it is.
    pub node: NodeId,
    /// Of its last event; 0: there is none.
    pub sequence: u64,
    /// Of its last event.
    pub hash: ChainHash,
}

impl ChainTip {
    /// The end of a chain that has no event yet.
    pub fn empty(node: NodeId) -> Self {
        let hash = Sha256::new().chain_update(b"ami.kms/audit-chain/1").chain_update(node.0);
        Self { node, sequence: 0, hash: hash.finalize().into() }
    }

    /// Puts `entry` behind this end, and gives the new end and the event.
    pub fn append(&self, entry: AuditEntry) -> (Self, StoredEvent) {
        let (node, sequence) = (self.node, self.sequence + 1);
        let body = AuditEvent { node, sequence, entry }.encode();
        let hash = chain_hash(&self.hash, &body);
        (Self { node, sequence, hash }, StoredEvent { node, sequence, hash, body })
    }
}

/// The hash of an event that stands behind `previous`.
pub fn chain_hash(previous: &ChainHash, body: &[u8]) -> ChainHash {
    let hash = Sha256::new().chain_update(b"ami.kms/audit-event/1").chain_update(previous);
    hash.chain_update(body).finalize().into()
}

/// A chain's end at one moment, signed in the token: what lies before it can't be changed any more
/// without being found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The end.
    pub tip: ChainTip,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// Over [`Checkpoint::message`].
    pub signature: Signature,
}

impl Checkpoint {
    /// The message that is signed.
    pub fn message(tip: &ChainTip, at_ms: u64) -> Vec<u8> {
        [
            b"ami.kms/audit-checkpoint/1".as_slice(),
            &tip.node.0,
            &tip.sequence.to_be_bytes(),
            &tip.hash,
            &at_ms.to_be_bytes(),
        ]
        .concat()
    }

    /// Whether the holder of `key` signed it.
    pub fn is_signed_by(&self, key: &impl Verifies) -> bool {
        is_signed(key, &Self::message(&self.tip, self.at_ms), &self.signature)
    }
}

//! The messages between two sites, as nouns.

use futures_util::stream::BoxStream;
use tokio::sync::mpsc;

use super::{card::SiteCard, failure::PeerError};
use crate::store::sites::Decided;
use kms_core::{
    BlockNo, Epoch, Head, Position, StoredRecord,
    audit::{ChainTip, NodeId, Signature, copying::Piece},
    block::{BlockMark, proof::Proof},
    counters::allocator::Witnessed,
    freshness::{HeadTable, SignedHeadTable},
    site::tokens::{SignedSiteTokens, TokenId},
};

/// A block of a peer, or a piece of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockUpdate {
    /// Its head.
    pub head: Head,
    /// Records that changed after the state that the follower named, or all of them.
    pub records: Vec<StoredRecord>,
    /// Further records of this head follow.
    pub more: bool,
}

/// A question where blocks stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeadsAsked {
    /// None: all of them.
    pub blocks: Vec<BlockNo>,
    /// The answer waits until all of these are reached.
    pub at_least: Vec<(BlockNo, Position)>,
    /// For at most so long.
    pub wait_ms: u32,
}

/// Its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadsSaid {
    /// The site that answers.
    pub card: SiteCard,
    /// Not verified.
    pub heads: Vec<Head>,
    /// All positions that were waited for are reached.
    pub reached: bool,
}

/// Our marks for the peer to remember, and a question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MarksAsked {
    /// Those that rose.
    pub marks: Vec<(BlockNo, Witnessed)>,
    /// Of which block the lines that were set aside are asked for.
    pub lines_of: Option<BlockNo>,
}

/// Its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarksSaid {
    /// The site that answers.
    pub card: SiteCard,
    /// The asker's, as it told them.
    pub marks: Vec<(BlockNo, Witnessed)>,
    /// Not verified.
    pub set_aside: Vec<StoredRecord>,
    /// The epoch since which it has lost nothing of the block that was asked for.
    pub remembers_since: Option<Epoch>,
}

/// What a site knows of another one's counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// Marks.
    pub marks: Vec<(BlockNo, Witnessed)>,
    /// Lines of the block that was asked for, as they were written.
    pub set_aside: Vec<StoredRecord>,
    /// The epoch since which this site's database has lost nothing of that block.
    pub since: Option<Epoch>,
}

/// What a peer that is followed says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerSaid {
    /// It is there, and this is its role.
    Card(SiteCard),
    /// A block has changed.
    Update(BlockUpdate),
}

/// A peer that is followed.
pub struct Followed {
    /// What it says. The first one is its card.
    pub said: BoxStream<'static, Result<PeerSaid, PeerError>>,
    /// Tells it what is stored here.
    pub tell: mpsc::Sender<Vec<BlockMark>>,
}

/// What the site that writes knows of a record that was reported to it: what was decided, nothing yet, or the reason why
/// it does not take it.
pub type Known = Result<Option<Decided>, String>;

/// The answer to a challenge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockProof {
    /// The block.
    pub block: BlockNo,
    /// Its head there, and the proof; or the reason why it can't be proved.
    pub outcome: Result<(Head, Proof), String>,
}

/// A head table as it was signed, of whose number nothing is known yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownTable {
    /// Its body.
    pub body: Vec<u8>,
    /// Whose, is for who verifies it.
    pub signature: Signature,
}

impl ShownTable {
    /// As it was signed, with the number that it says; not verified. `None`: it is no table.
    pub fn signed(self) -> Option<SignedHeadTable> {
        let number = HeadTable::decode(&self.body)?.number;
        Some(SignedHeadTable { number, body: self.body, signature: self.signature })
    }
}

/// A question about a site's audit chains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuditAsked {
    /// The chain that a piece is asked of; `None`: only which chains there are.
    pub node: Option<NodeId>,
    /// Events behind this number.
    pub after: u64,
    /// Signed heads behind this number.
    pub heads_after: u64,
}

/// Its answer. Not verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditSaid {
    /// The site that answers.
    pub card: SiteCard,
    /// All of its chains, and where each ended before the piece was read.
    pub chains: Vec<ChainTip>,
    /// Of the chain that was asked for.
    pub piece: Piece,
}

/// What a site shows of head tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadTablesSaid {
    /// The site that answers.
    pub card: SiteCard,
    /// Its own; `None`: it has none.
    pub own: Option<ShownTable>,
    /// The newest of the asker's that it has seen.
    pub witnessed: Option<ShownTable>,
    /// The lists of its tokens; none: it has one.
    pub tokens: Vec<SignedSiteTokens>,
    /// The asker's tokens whose signatures count there; none: its release does not say.
    pub known: Vec<TokenId>,
}

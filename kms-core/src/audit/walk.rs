//! Checking a chain, event by event, against the heads that were signed.

use std::{collections::VecDeque, fmt};

use super::{AuditEvent, ChainTip, Checkpoint, NodeId, SiteKeys, StoredEvent, chain_hash};

/// A fault of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Its number is not the next one.
    OutOfOrder,
    /// It is not an event, or one of another place.
    NotAnEvent,
    /// Its hash is not that of its bytes behind the event before it.
    Changed,
    /// A signed head says something else of this place.
    OtherThanSigned,
    /// A head was not signed by the token's key.
    BadSignature,
    /// Events that were there are gone from the end.
    TailCut,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfOrder => "an event is missing or out of order",
            Self::NotAnEvent => "this is not the event of this place",
            Self::Changed => "the event, or one before it, was changed",
            Self::OtherThanSigned => {
                "a signed head says otherwise: events since the signed head before it were changed"
            }
            Self::BadSignature => "a head was not signed by the token's key",
            Self::TailCut => "events were cut off the end",
        })
    }
}

/// The place where a chain is first found broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the audit chain of node {node} is broken at event {sequence}: {what}")]
pub struct Broken {
    /// The node whose chain it is.
    pub node: NodeId,
    /// The first bad event.
    pub sequence: u64,
    /// The fault that was found there.
    pub what: What,
}

/// Walks a chain. Events and signed heads are handed in as they come, each kind in order; a head has
/// to be handed in before the event that it signs.
#[derive(Clone)]
pub struct Verifier {
    tip: ChainTip,
    keys: SiteKeys,
    heads: VecDeque<Checkpoint>,
    heads_seen: u64,
}

impl Verifier {
    /// From a place that is known to be good: [`ChainTip::empty`], or a head that was checked.
    pub fn new(from: ChainTip, keys: impl Into<SiteKeys>) -> Self {
        Self { tip: from, keys: keys.into(), heads: VecDeque::new(), heads_seen: 0 }
    }

    /// The last good place.
    pub fn tip(&self) -> ChainTip {
        self.tip
    }

    /// Signed heads that fitted.
    pub fn heads_seen(&self) -> u64 {
        self.heads_seen
    }

    fn broken(&self, sequence: u64, what: What) -> Broken {
        Broken { node: self.tip.node, sequence, what }
    }

    /// The next signed head; those that are behind us already count as seen before.
    pub fn head(&mut self, head: Checkpoint) -> Result<(), Broken> {
        if !head.is_signed_by(&self.keys) || head.tip.node != self.tip.node {
            return Err(self.broken(head.tip.sequence, What::BadSignature));
        }
        if head.tip.sequence > self.tip.sequence {
            self.heads.push_back(head);
            return Ok(());
        }
        self.compare(&head)
    }

    /// The next event.
    pub fn event(&mut self, stored: &StoredEvent) -> Result<AuditEvent, Broken> {
        let due = self.tip.sequence + 1;
        if stored.sequence != due {
            return Err(self.broken(due, What::OutOfOrder));
        }
        let event = AuditEvent::decode(&stored.body);
        let event = event.map_err(|_| self.broken(due, What::NotAnEvent))?;
        let in_place = event.sequence == due && [event.node, stored.node] == [self.tip.node; 2];
        if !in_place {
            return Err(self.broken(due, What::NotAnEvent));
        }
        if chain_hash(&self.tip.hash, &stored.body) != stored.hash {
            return Err(self.broken(due, What::Changed));
        }
        self.tip = ChainTip { node: self.tip.node, sequence: due, hash: stored.hash };
        while let Some(head) = self.heads.pop_front_if(|head| head.tip.sequence <= due) {
            self.compare(&head)?;
        }
        Ok(event)
    }

    fn compare(&mut self, head: &Checkpoint) -> Result<(), Broken> {
        if head.tip.sequence == self.tip.sequence && head.tip != self.tip {
            return Err(self.broken(head.tip.sequence, What::OtherThanSigned));
        }
        self.heads_seen += 1;
        Ok(())
    }

    /// All events were handed in. `known` is an end of the chain that is known otherwise.
    pub fn finish(&self, known: Option<ChainTip>) -> Result<(), Broken> {
        let signed = self.heads.back().map(|head| head.tip);
        for tip in signed.into_iter().chain(known) {
            if tip.sequence > self.tip.sequence {
                return Err(self.broken(self.tip.sequence + 1, What::TailCut));
            }
            if tip.sequence == self.tip.sequence && tip != self.tip {
                return Err(self.broken(tip.sequence, What::OtherThanSigned));
            }
        }
        Ok(())
    }
}

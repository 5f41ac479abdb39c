//! A copy of another site's chain, which goes on piece by piece: each is verified as a whole chain is, before it is kept.

use super::{
    ChainTip, Checkpoint, NodeId, SiteKeys, StoredEvent,
    walk::{Broken, Verifier, What},
};
use crate::Epoch;

/// A copy, and how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// The last event that was copied.
    pub tip: ChainTip,
    /// The last signed head that was copied; 0: none.
    pub signed: u64,
    /// The epoch in which the chain was found cut or changed behind the copy; `None`: it never was.
    pub broken_in: Option<Epoch>,
}

/// A piece of a chain, as the other site gives it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// In order, behind the copy's end.
    pub events: Vec<StoredEvent>,
    /// In order, behind the copy's last head; each is of an event that was copied, or of this piece.
    pub heads: Vec<Checkpoint>,
}

impl Copied {
    /// Nothing is copied yet.
    pub fn nothing_of(node: NodeId) -> Self {
        Self { tip: ChainTip::empty(node), signed: 0, broken_in: None }
    }

    /// Holds the end that the other site tells of the chain against the copy. True: there is more to copy.
    pub fn held_against(&self, told: Option<&ChainTip>) -> Result<bool, Broken> {
        let broken = |sequence, what| Err(Broken { node: self.tip.node, sequence, what });
        match told {
            None if self.tip.sequence == 0 => Ok(false),
            None => broken(1, What::TailCut),
            Some(told) if told.sequence < self.tip.sequence => {
                broken(told.sequence + 1, What::TailCut)
            }
            Some(told) if told.sequence == self.tip.sequence && *told != self.tip => {
                broken(told.sequence, What::OtherThanSigned)
            }
            Some(told) => Ok(told.sequence > self.tip.sequence),
        }
    }

    /// The copy with this piece behind it. `copied` are the events that are there already and that heads of the piece
    /// sign. Nothing of a piece with a fault is to be kept.
    pub fn with(
        &self,
        piece: &Piece,
        copied: &[StoredEvent],
        keys: &(impl Into<SiteKeys> + Clone),
    ) -> Result<Self, Broken> {
        let mut verifier = Verifier::new(self.tip, keys.clone());
        let mut signed = self.signed;
        for head in &piece.heads {
            let broken = |what| Broken { node: self.tip.node, sequence: head.tip.sequence, what };
            // Out of order, or of an event that nobody shows: it could not be looked up later.
            if head.tip.sequence <= signed {
                return Err(broken(What::OutOfOrder));
            }
            signed = head.tip.sequence;
            verifier.head(head.clone())?;
            if head.tip.sequence >= self.tip.sequence {
                continue;
            }
            let event = copied.iter().find(|event| event.sequence == head.tip.sequence);
            match event {
                Some(event) if event.hash == head.tip.hash => {}
                Some(_) => return Err(broken(What::OtherThanSigned)),
                None => return Err(broken(What::OutOfOrder)),
            }
        }
        for event in &piece.events {
            verifier.event(event)?;
        }
        verifier.finish(None)?;
        Ok(Self { tip: verifier.tip(), signed, broken_in: self.broken_in })
    }
}

#[cfg(test)]
mod tests;

//! A copy of another site's chain, which goes on piece by piece: each is verified as a whole chain is, before it is kept.

use std::collections::BTreeMap;

use super::{
    ChainTip, Checkpoint, NodeId, PublicKey, SiteKeys, StoredEvent,
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

/// A chain whose end the other site has signed, and does not give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the audit chain of node {} is withheld: its token has signed event {}, and only those up to {copied} were given",
    signed.node, signed.sequence
)]
pub struct Withheld {
    /// The end that was signed.
    pub signed: ChainTip,
    /// The last event that was copied.
    pub copied: u64,
}

/// A copy of which the newest events are signed by nobody, for long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the audit chain of node {} is copied up to event {}, and for two hours its token has signed nothing behind event {signed}",
    copied.node, copied.sequence
)]
pub struct Unproved {
    /// The last event that was copied.
    pub copied: ChainTip,
    /// The last one that was signed, by a head or a table.
    pub signed: u64,
}

/// Looks at one chain that is not yet whole.
#[derive(Clone, Copy, Debug)]
struct Behind {
    /// Looks at which nothing more was given although there was more.
    looks: u32,
    /// The end that it did not reach since.
    end: u64,
    /// Looks since.
    since: u32,
}

/// Holds copies against the ends of the chains in a table that the other site has signed: whoever leaves events out has
/// said that there are some.
#[derive(Debug, Default)]
pub struct Ends {
    behind: BTreeMap<NodeId, Behind>,
    /// By node, the last event that was signed, and the looks since at which there was more.
    unsigned: BTreeMap<NodeId, (u64, u32)>,
    /// The number of the table at the last of them.
    table: u64,
}

/// What came of one look at the other site's chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// All that it gives was copied.
    Whole,
    /// It gives more than was taken in one look.
    More,
    /// It did not answer.
    Unanswered,
}

impl Ends {
    /// Looks at which nothing more is given before that is told: a database that is read may be a standby's.
    pub const GRACE: u32 = 30;
    /// Looks in which an end that was signed has to be reached, however much there is: half an hour, in which an honest
    /// site gives fourteen million events. Who lets them drip withholds them.
    pub const REACHED: u32 = 900;
    /// Looks in which a token has to sign something of a chain that goes on: two hours. It signs every hour at the latest.
    pub const SIGNED: u32 = 3_600;
    /// A site that answers other questions and not this one counts for so many, with each table that it shows.
    const UNANSWERED: u32 = 10;

    /// After a look: what is withheld. `signed` are the ends of the newest table, of this number, that was shown before it.
    pub fn looked(
        &mut self,
        copies: &[Copied],
        (number, signed): (u64, &[ChainTip]),
        look: Look,
    ) -> Vec<Withheld> {
        let counts = match look {
            Look::Whole => 1,
            Look::More => 0,
            Look::Unanswered if number == self.table => 0,
            Look::Unanswered => Self::UNANSWERED,
        };
        self.table = number;
        let copied = |node| {
            let copy = copies.iter().find(|copy| copy.tip.node == node);
            copy.map_or(0, |copy| copy.tip.sequence)
        };
        let behind = signed.iter().map(|end| Withheld { signed: *end, copied: copied(end.node) });
        let behind: Vec<Withheld> = behind.filter(|it| it.copied < it.signed.sequence).collect();
        let before = std::mem::take(&mut self.behind);
        for Withheld { signed: end, copied } in &behind {
            let begun = Behind { looks: 0, end: end.sequence, since: 0 };
            let mut it = before.get(&end.node).copied().unwrap_or(begun);
            it.looks = it.looks.saturating_add(counts);
            let passed = if look == Look::More { 1 } else { counts };
            it.since = it.since.saturating_add(passed);
            if *copied >= it.end {
                (it.end, it.since) = (end.sequence, 0);
            }
            self.behind.insert(end.node, it);
        }
        let is_told = |it: &Withheld| {
            let behind = self.behind.get(&it.signed.node);
            behind.is_some_and(|it| it.looks >= Self::GRACE || it.since >= Self::REACHED)
        };
        behind.into_iter().filter(is_told).collect()
    }

    /// After a look: copies of which the newest events are signed neither by a head nor with one of these ends.
    pub fn unproved(&mut self, copies: &[Copied], ends: &[ChainTip], look: Look) -> Vec<Unproved> {
        let passed = u32::from(look != Look::Unanswered);
        let before = std::mem::take(&mut self.unsigned);
        let mut told = Vec::new();
        for Copied { tip, signed, .. } in copies {
            let end = ends.iter().find(|end| end.node == tip.node);
            let signed = end.map_or(0, |end| end.sequence).max(*signed);
            if signed >= tip.sequence {
                continue;
            }
            let known = before.get(&tip.node).filter(|(known, _)| *known == signed);
            let looks = known.map_or(0, |(_, looks)| looks.saturating_add(passed));
            self.unsigned.insert(tip.node, (signed, looks));
            if looks >= Self::SIGNED {
                told.push(Unproved { copied: *tip, signed });
            }
        }
        told
    }
}

/// Of these keys, the newest first, the one that signed this head of a chain: a site that was enrolled anew signs with
/// another one than before.
pub fn signer_of(head: &Checkpoint, keys: &[PublicKey]) -> Option<PublicKey> {
    keys.iter().copied().find(|key| head.is_signed_by(key))
}

#[cfg(test)]
mod tests;

//! Proofs on their way, and what really opened when: the truth that `READY` is held against.

use std::collections::BTreeMap;

use kms_core::{Epoch, replication::following::PeerCard};

use crate::{
    chance::Chance,
    proofs::{Answer, Nonces, Paper, Token},
    realm::BLOCKS,
    site::{Database, NODES, Place, SITES},
};

/// Messages that may come once more.
const REMEMBERED: usize = 24;

/// What a message says.
#[derive(Clone, Debug)]
pub(crate) enum Say {
    /// The question of this number.
    Ask(u64, Nonces),
    /// Its answer.
    Answer(Box<Answer>),
    /// What came of it.
    Report(Paper),
}

/// A message.
#[derive(Clone, Debug)]
pub(crate) struct ProofMessage {
    /// Who sent it.
    pub(crate) from: Place,
    /// Who is to get it.
    pub(crate) to: Place,
    /// What the sender says of itself.
    pub(crate) card: PeerCard,
    /// What it says.
    pub(crate) say: Say,
}

impl ProofMessage {
    /// Turns a bit of what is authenticated, or makes a report better than it is; `false`: there is nothing to turn.
    pub(crate) fn tamper(&mut self, bit: usize) -> bool {
        match &mut self.say {
            Say::Ask(_, nonces) => nonces[bit % nonces.len()][bit / 8 % 32] ^= 1 << (bit % 8),
            Say::Answer(answer) => {
                let len = answer.outcomes.len();
                let Some(Ok((head, proof))) = answer.outcomes.get_mut(bit % len.max(1)) else {
                    return false;
                };
                match bit / 2 % 3 {
                    0 => proof[bit / 8 % 16] ^= 1 << (bit % 8),
                    1 => head.digest[bit / 8 % 32] ^= 1 << (bit % 8),
                    _ => head.block.0 ^= 1,
                }
            }
            Say::Report(paper) => {
                let mut signed = (*paper.signed).clone();
                let report = &mut signed.report;
                match bit % 3 {
                    0 => (report.keks, report.failed, report.proved) = (true, 0, report.blocks),
                    1 => (report.at_ms, report.oldest_ms) = (report.at_ms + 1, report.at_ms + 1),
                    _ => report.epoch.0 += 2,
                }
                if signed == *paper.signed {
                    return false;
                }
                paper.signed = std::rc::Rc::new(signed);
            }
        }
        true
    }
}

/// When each site could last open each of its stored blocks, by the epoch that the block was of, and both KEKs.
#[derive(Debug, Default)]
pub(crate) struct Openings {
    blocks: [[BTreeMap<Epoch, u64>; BLOCKS as usize]; SITES],
    keks: [u64; SITES],
}

impl Openings {
    /// What a site can open now.
    pub(crate) fn see(&mut self, site: usize, db: &Database, token: &Token, ms: u64) {
        if token.passes() {
            self.keks[site] = ms;
        }
        for (block, opened) in self.blocks[site].iter_mut().enumerate() {
            if token.blocks[block] {
                opened.insert(db.blocks[block].head.position.epoch, ms);
            }
        }
    }

    /// The last time at which a site could open all: blocks of this epoch, or of any.
    pub(crate) fn last(&self, site: usize, epoch: Option<Epoch>) -> u64 {
        let opened = |block: &BTreeMap<Epoch, u64>| match epoch {
            Some(epoch) => block.get(&epoch).copied(),
            None => block.values().max().copied(),
        };
        let blocks = self.blocks[site].iter().map(|block| opened(block).unwrap_or(0)).min();
        blocks.unwrap_or(0).min(self.keks[site])
    }
}

/// The part of the world that proofs go on in. It has chance and messages of its own, so that what befalls the rest of a
/// history does not depend on them.
#[derive(Debug)]
pub(crate) struct Proving {
    pub(crate) chance: Chance,
    pub(crate) tokens: [Token; SITES],
    pub(crate) net: Vec<ProofMessage>,
    pub(crate) remembered: Vec<ProofMessage>,
    /// Milliseconds by which each node's wall clock is ahead.
    pub(crate) skew: [[i64; NODES]; SITES],
    /// How far behind each node's clock was when its machine was paused last.
    pub(crate) paused_at: [[u64; NODES]; SITES],
    pub(crate) numbers: u64,
    pub(crate) openings: Openings,
    /// Times that a node said `READY`.
    pub(crate) said: u64,
}

impl Proving {
    /// At the beginning of a history.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            chance: Chance::new(seed ^ 0x11_0000_5EA1),
            tokens: [Token::WELL; SITES],
            net: Vec::new(),
            remembered: Vec::new(),
            skew: [[0; NODES]; SITES],
            paused_at: [[0; NODES]; SITES],
            numbers: 0,
            openings: Openings::default(),
            said: 0,
        }
    }

    /// Sends a message.
    pub(crate) fn post(&mut self, message: ProofMessage) {
        if self.remembered.len() == REMEMBERED {
            self.remembered.remove(0);
        }
        self.remembered.push(message.clone());
        self.net.push(message);
    }
}

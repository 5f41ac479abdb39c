//! What proofs are made of: tokens that break, what a node holds of questions and reports, and, hidden from all machines,
//! what is true of them.

use std::{rc::Rc, time::Duration};

use kms_core::{
    Epoch, Head,
    block::proof::Proof,
    moment::Stamp,
    replication::following::PeerCard,
    site::{
        proving::{KnownReports, Proofs, Question},
        readiness::SignedReadiness,
    },
};

use crate::realm::{BLOCKS, block_count};

/// The stated age: a proof that is older is none.
pub(crate) const AGE_MAX: Duration = Duration::from_millis(2_000);

/// One for each block.
pub(crate) type Nonces = [[u8; 32]; BLOCKS as usize];

/// A site's token, as far as it may fail.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token {
    /// Both sealed KEKs are there.
    pub(crate) keks: [bool; 2],
    /// Each block's secret opens.
    pub(crate) blocks: [bool; BLOCKS as usize],
}

impl Token {
    /// One that does all.
    pub(crate) const WELL: Self = Self { keks: [true; 2], blocks: [true; BLOCKS as usize] };

    /// Whether it passes the check of its KEKs.
    pub(crate) fn passes(&self) -> bool {
        self.keks == [true; 2]
    }
}

/// A question that waits for its answer.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Its number.
    pub(crate) number: u64,
    /// As the asker remembers it.
    pub(crate) question: Question,
    /// What the asker said of itself.
    pub(crate) card: PeerCard,
    /// The challenges.
    pub(crate) nonces: Nonces,
    /// By how much the asker's clock was behind.
    pub(crate) behind: u64,
}

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// To the question of this number.
    pub(crate) number: u64,
    /// Of this site, in this epoch, with these challenges.
    pub(crate) to: (usize, Epoch, Nonces),
    /// What the prover says of itself.
    pub(crate) card: PeerCard,
    /// For each block.
    pub(crate) outcomes: Vec<Result<(Head, Proof), String>>,
}

/// What is true of a report, and stands nowhere in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    /// When it was made.
    pub(crate) reported: u64,
    /// How long the asker's machine was paused between the oldest question and then.
    pub(crate) paused: u64,
    /// By how much the asker's wall clock was ahead.
    pub(crate) skew: i64,
}

/// A signed report.
#[derive(Clone, Debug)]
pub(crate) struct Paper {
    /// As it is sent and kept.
    pub(crate) signed: Rc<SignedReadiness>,
    /// The truth of it.
    pub(crate) told: Told,
}

/// What is true of the newest report that a node knows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Learned {
    /// Of the report.
    pub(crate) told: Told,
    /// When it was learned of.
    pub(crate) ms: u64,
    /// By how much the node's clock was behind.
    pub(crate) behind: u64,
}

/// Something that a node has begun.
#[derive(Debug)]
pub(crate) enum Job {
    /// Look at an answer.
    Judge(Box<Answer>),
    /// Report, with what went wrong.
    Report(Option<String>),
}

/// All that a node holds in memory.
#[derive(Debug)]
pub(crate) struct NodeProofs {
    /// The answers to its questions.
    pub(crate) proofs: Proofs,
    /// The question that waits.
    pub(crate) open: Option<Asked>,
    /// By how much the clock was behind when each block was asked for that is proved.
    pub(crate) behind: [u64; BLOCKS as usize],
    /// What it has begun.
    pub(crate) jobs: Vec<Job>,
    /// What it knows of each site.
    pub(crate) known: [KnownReports; 3],
    /// What is true of that.
    pub(crate) learned: [Option<Learned>; 3],
}

impl NodeProofs {
    /// Of a process that has just started.
    pub(crate) fn new() -> Self {
        Self {
            proofs: Proofs::new(block_count(), AGE_MAX),
            open: None,
            behind: [0; BLOCKS as usize],
            jobs: Vec::new(),
            known: Default::default(),
            learned: [None; 3],
        }
    }

    /// Takes a report in: at this moment, which is in truth that one, in this epoch.
    pub(crate) fn learn(
        &mut self,
        about: usize,
        paper: &Paper,
        epoch: Epoch,
        now: (Stamp, Learned),
    ) {
        let is_newest = |known: &KnownReports| known.newest() == Some(&*paper.signed);
        let known = &mut self.known[about];
        let before = is_newest(known);
        known.learn(&paper.signed, (epoch, None), now.0);
        if !before && is_newest(known) {
            self.learned[about] = Some(now.1);
        }
    }
}

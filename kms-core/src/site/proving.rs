//! Which proofs count, and whether a site is ready by them (invariant 11): decided, without IO. [`Proofs`] are the asker's;
//! [`KnownReports`] are what any site knows of one that follows.
//!
//! A proof is as old as its question, whenever the answer came and was looked at. Its age is told by both clocks of the
//! machine, and the one that says more is believed. Nothing that was proved in another epoch counts, and nothing that another
//! token of the site opened: what two of them open together neither of them opens.

use std::{collections::BTreeMap, time::Duration};

use super::{
    DomainId,
    makeup::Difference,
    readiness::{ReadinessReport, SignedReadiness, heads_digest},
    tokens::TokenId,
};
use crate::{
    BlockCount, BlockNo, Epoch, block::BlockMark, moment::Stamp, replication::following::PeerCard,
};

/// A site that asks for proofs, and is not the one that writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("proofs are for the site that writes, in epoch {}", .0.0)]
pub struct NotTheWriter(pub Epoch);

/// Whether a site that shows this card is answered by one of ours.
pub fn may_ask(ours: PeerCard, asker: PeerCard) -> Result<(), NotTheWriter> {
    let may = asker.writes && asker.epoch == ours.epoch;
    may.then_some(()).ok_or(NotTheWriter(ours.epoch))
}

/// Whether a site that shows this card in its answer is the one that follows ours.
pub fn follows(ours: PeerCard, prover: PeerCard) -> bool {
    !prover.writes && prover.epoch == ours.epoch
}

/// A question, as the asker remembers it: of one epoch, sent at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    epoch: Epoch,
    round: u64,
    asked: Stamp,
}

/// What became of one challenge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The block is proved in this state.
    Proved(BlockMark),
    /// It is not, for this reason.
    Failed(String),
    /// It has moved meanwhile, or our own copy of it is at fault: nothing is shown.
    Nothing,
}

#[derive(Clone, Debug)]
enum Known {
    Proved { question: Question, mark: BlockMark },
    Failed(String),
}

/// The proofs of all blocks, as the site that asks for them holds them.
#[derive(Debug)]
pub struct Proofs {
    blocks: u32,
    age_max_ms: u64,
    epoch: Epoch,
    token: Option<TokenId>,
    round: u64,
    known: BTreeMap<BlockNo, Known>,
}

impl Proofs {
    /// None yet. One that is older than `age_max` is none.
    pub fn new(blocks: BlockCount, age_max: Duration) -> Self {
        let age_max_ms = millis(age_max);
        let (epoch, token, known) = (Epoch::default(), None, BTreeMap::new());
        Self { blocks: blocks.get(), age_max_ms, epoch, token, round: 0, known }
    }

    /// The asker writes in this epoch: what was proved in another one is forgotten.
    pub fn stand(&mut self, epoch: Epoch) {
        if self.epoch != epoch {
            self.epoch = epoch;
            self.known.clear();
        }
    }

    /// This token of the other site answers from now on: what another one proved is forgotten.
    pub fn answered_by(&mut self, token: Option<TokenId>) {
        if self.token != token {
            self.token = token;
            self.known.clear();
        }
    }

    /// The asker does not write: nothing counts.
    pub fn forget(&mut self) {
        self.known.clear();
    }

    /// A round through all blocks begins. That the other site's KEKs pass is to be shown in each.
    pub fn begin_round(&mut self) {
        self.round += 1;
    }

    /// A question that is sent now.
    pub const fn question(&self, now: Stamp) -> Question {
        Question { epoch: self.epoch, round: self.round, asked: now }
    }

    /// The answer for a block. One to a question of another epoch says nothing.
    pub fn take(&mut self, question: &Question, block: BlockNo, outcome: Outcome) {
        if question.epoch != self.epoch || block.0 >= self.blocks {
            return;
        }
        let known = match outcome {
            Outcome::Proved(mark) if mark.block != block => {
                Known::Failed(format!("block {block}: another one was proved"))
            }
            Outcome::Proved(mark) => Known::Proved { question: *question, mark },
            Outcome::Failed(why) => Known::Failed(format!("block {block}: {why}")),
            Outcome::Nothing => return,
        };
        self.known.insert(block, known);
    }

    /// What is known of a block, however old it is.
    pub fn of(&self, block: BlockNo) -> Outcome {
        match self.known.get(&block) {
            Some(Known::Proved { mark, .. }) => Outcome::Proved(*mark),
            Some(Known::Failed(why)) => Outcome::Failed(why.clone()),
            None => Outcome::Nothing,
        }
    }

    /// All of it, as of now. `fault`: why the round did not come to its end.
    pub fn sum(&self, now: Stamp, fault: Option<String>) -> Readiness {
        let (epoch, token, at_ms) = (self.epoch, self.token, now.unix_ms);
        let mut sum = Readiness { epoch, token, at_ms, ..Readiness::default() };
        sum.failures.extend(fault);
        let mut oldest = 0;
        for known in self.known.values() {
            match known {
                Known::Proved { question, mark } => {
                    let age_ms = question.asked.age_ms(now);
                    sum.marks.push(*mark);
                    sum.keks |= question.round == self.round;
                    if age_ms <= self.age_max_ms {
                        sum.proved += 1;
                        oldest = oldest.max(age_ms);
                    }
                }
                Known::Failed(why) => {
                    sum.failed += 1;
                    if sum.failures.len() < ReadinessReport::FAILURES_MAX {
                        sum.failures.push(why.clone());
                    }
                }
            }
        }
        sum.unproved = self.blocks.saturating_sub(sum.proved + sum.failed);
        sum.oldest_ms = (sum.proved == self.blocks).then(|| now.unix_ms.saturating_sub(oldest));
        sum
    }
}

/// What a site has proved of its stored blocks, as of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// The epoch that it was proved in.
    pub epoch: Epoch,
    /// The token that proved it; `None`: it did not say its name.
    pub token: Option<TokenId>,
    /// The moment; milliseconds since 1970.
    pub at_ms: u64,
    /// Blocks that were proved within the time.
    pub proved: u32,
    /// Blocks that were not, and did not fail either.
    pub unproved: u32,
    /// Blocks whose proof failed.
    pub failed: u32,
    /// The time of the oldest proof, milliseconds since 1970; `None`: not all blocks are proved.
    pub oldest_ms: Option<u64>,
    /// A block was proved in the last round, which takes a token that has passed the check of all of its KEKs.
    pub keks: bool,
    /// The states that were proved, in the order of the blocks.
    pub marks: Vec<BlockMark>,
    /// What failed, in sentences.
    pub failures: Vec<String>,
}

/// Whom a report is about, and by whom it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// The key domain.
    pub domain: DomainId,
    /// The site that proved.
    pub site: String,
    /// The site that asked.
    pub by: String,
    /// In what the two differ.
    pub differences: Vec<Difference>,
}

impl Readiness {
    /// The report of it, to be signed.
    pub fn report(&self, about: About) -> ReadinessReport {
        let About { domain, site, by, differences } = about;
        let heads = self.oldest_ms.map_or([0; 32], |_| heads_digest(&self.marks));
        ReadinessReport {
            domain,
            site,
            by,
            epoch: self.epoch,
            at_ms: self.at_ms,
            blocks: self.proved + self.unproved + self.failed,
            proved: self.proved,
            failed: self.failed,
            oldest_ms: self.oldest_ms.unwrap_or(0),
            keks: self.keks,
            heads,
            differences,
            failures: self.failures.clone(),
            token: self.token,
        }
    }
}

/// The reason why a site is not proved to be ready.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// No report of it is known.
    #[error(
        "nothing was proved yet: wait for one `peer.prove_interval_s` (60 s unless set), then ask again"
    )]
    Nothing,
    /// The newest one is of another epoch.
    #[error("what was proved last is of epoch {}, and nothing of epoch {} yet: wait for one `peer.prove_interval_s` (60 s unless set), then ask again", of.0, now.0)]
    OtherEpoch {
        /// Of the report.
        of: Epoch,
        /// As of now.
        now: Epoch,
    },
    /// The newest one is about another token of the site.
    #[error(
        "what was proved last is of this site's token {of}, and nothing of token {own}, which this server has"
    )]
    OtherToken {
        /// Of the report.
        of: TokenId,
        /// The one in use.
        own: TokenId,
    },
    /// Something is not proved.
    #[error("{proved} of {blocks} blocks are proved, {failed} failed{why}")]
    Incomplete {
        /// Blocks that are.
        proved: u32,
        /// All blocks.
        blocks: u32,
        /// Blocks that failed.
        failed: u32,
        /// The first failure, behind a colon.
        why: String,
    },
    /// The report is of the future, so nobody can tell its age.
    #[error("the report of site {by} is {} s ahead of this site's clock: set the clocks", ahead_ms / 1_000)]
    Ahead {
        /// The site that asked.
        by: String,
        /// Milliseconds.
        ahead_ms: u64,
    },
    /// The oldest proof is too old.
    #[error("the oldest proof is {} s old, by site {by}'s report", age_ms / 1_000)]
    Old {
        /// The site that asked.
        by: String,
        /// Milliseconds.
        age_ms: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Learned {
    signed: SignedReadiness,
    at: Stamp,
}

impl Learned {
    fn place(&self) -> (Epoch, u64) {
        (self.signed.report.epoch, self.signed.report.at_ms)
    }

    /// Whether it is about the token with this name, as far as anybody says.
    fn is_of(&self, own: Option<TokenId>) -> bool {
        let of = self.signed.report.token;
        own.is_none() || of.is_none() || of == own
    }

    fn ahead_ms(&self, now: Stamp) -> u64 {
        self.signed.report.at_ms.saturating_sub(now.unix_ms)
    }

    /// Of the oldest proof: by its date, or as old as it was in the report and what has passed here since.
    fn age_ms(&self, now: Stamp) -> u64 {
        let ReadinessReport { at_ms, oldest_ms, .. } = self.signed.report;
        let told = at_ms.saturating_sub(oldest_ms);
        let here = told.saturating_add(self.at.age_ms(now));
        now.unix_ms.saturating_sub(oldest_ms).max(here)
    }
}

/// Reports of the readiness of one site, as a process has learned of them. Whoever hands one in has verified it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownReports {
    newest: Option<Learned>,
    complete: Option<Learned>,
}

impl KnownReports {
    /// A report that lies further ahead of our clock is not believed.
    pub const AHEAD_MAX_MS: u64 = 5 * 60 * 1_000;

    /// A report; the site is in this epoch, and `own` is this server's token, if the report is of its site. One of that token
    /// goes before those of another one; then one of the epoch before those of others, which may be of an epoch that a
    /// database which was rolled back has forgotten. Else an older one than is known changes nothing, unless that is of the future.
    pub fn learn(
        &mut self,
        signed: &SignedReadiness,
        (epoch, own): (Epoch, Option<TokenId>),
        now: Stamp,
    ) {
        let learned = Learned { signed: signed.clone(), at: now };
        let is_newer = |before: &Option<Learned>| {
            let Some(before) = before else { return true };
            match [before, &learned].map(|it| it.is_of(own)) {
                [true, false] => return false,
                [false, true] => return true,
                _ => {}
            }
            match [before, &learned].map(|it| it.place().0 == epoch) {
                [true, false] => false,
                [false, true] => true,
                _ => {
                    let ahead = before.ahead_ms(now) > Self::AHEAD_MAX_MS;
                    before.place() < learned.place() || ahead
                }
            }
        };
        let (newest, complete) = (is_newer(&self.newest), is_newer(&self.complete));
        if complete && signed.report.is_complete() {
            self.complete = Some(learned.clone());
        }
        if newest {
            self.newest = Some(learned);
        }
    }

    /// The newest one.
    pub fn newest(&self) -> Option<&SignedReadiness> {
        self.newest.as_ref().map(|learned| &learned.signed)
    }

    /// The last one in which all was proved.
    pub fn complete(&self) -> Option<&SignedReadiness> {
        self.complete.as_ref().map(|learned| &learned.signed)
    }

    /// Whether the site is ready now, in this epoch: each block and each KEK is proved in it, within `age_max`; if it is this
    /// server's own site, of `own`, the token that it has.
    pub fn ready(
        &self,
        (epoch, own): (Epoch, Option<TokenId>),
        age_max: Duration,
        now: Stamp,
    ) -> Result<(), NotReady> {
        let newest = self.newest.as_ref().ok_or(NotReady::Nothing)?;
        let report = &newest.signed.report;
        if let (Some(of), Some(own)) = (report.token, own)
            && of != own
        {
            return Err(NotReady::OtherToken { of, own });
        }
        if report.epoch != epoch {
            return Err(NotReady::OtherEpoch { of: report.epoch, now: epoch });
        }
        if !report.is_complete() {
            let ReadinessReport { proved, blocks, failed, .. } = *report;
            let why = report.failures.first().map_or_else(String::new, |why| format!(": {why}"));
            return Err(NotReady::Incomplete { proved, blocks, failed, why });
        }
        let (by, ahead_ms) = (report.by.clone(), newest.ahead_ms(now));
        if ahead_ms > Self::AHEAD_MAX_MS {
            return Err(NotReady::Ahead { by, ahead_ms });
        }
        let age_ms = newest.age_ms(now);
        if age_ms > millis(age_max) { Err(NotReady::Old { by, age_ms }) } else { Ok(()) }
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;

//! One member: how far somebody has come with its meter.

use dlms::SystemTitle;

use crate::{RefusalCode, life::choosing::Pair};

use super::policy::KINDS_MAX;

/// Pairs that are remembered as tried.
pub const TRIED_MAX: usize = 8;
/// Bytes of an answer that are remembered.
pub const FRAME_MAX: usize = 32;

crate::numbered! {
    /// How far a member is.
    pub enum Phase "member state" {
        /// Not begun.
        Waiting = 1 "WAITING",
        /// Its key is staged and was not handed out.
        Staged = 2 "STAGED",
        /// A transfer was handed out: the meter may hold the key.
        Sent = 3 "SENT",
        /// A canary that has to show its keys once more, after a restart.
        Proved = 4 "PROVED",
        /// It has shown all of them.
        Done = 5 "DONE",
        /// Its tries are used up.
        Failed = 6 "FAILED",
        /// It can't be done, and nothing was sent.
        Skipped = 7 "SKIPPED",
        /// The campaign was cancelled before it was begun.
        Left = 8 "LEFT",
    }
}

crate::numbered! {
    /// How somebody fared with a meter.
    pub enum Outcome "transport outcome" {
        /// It answered.
        Answered = 1 "ANSWERED",
        /// Something was sent, and nothing came back.
        NoAnswer = 2 "NO_ANSWER",
        /// No connection: nothing was sent.
        Unreachable = 3 "UNREACHABLE",
        /// It did not authenticate.
        NotAuthenticated = 4 "NOT_AUTHENTICATED",
        /// It refused.
        Refused = 5 "REFUSED",
        /// Given back.
        GivenBack = 6 "GIVEN_BACK",
        /// A canary was restarted.
        Restarted = 7 "RESTARTED",
    }
}

crate::numbered! {
    /// What is to be done under a lease.
    pub enum Action "work action" {
        /// Nothing more.
        Nothing = 1 "NONE",
        /// Send the key.
        Transfer = 2 "TRANSFER",
        /// Find out which keys the meter holds.
        Probe = 3 "PROBE",
        /// Restart the meter.
        Restart = 4 "RESTART",
    }
}

impl Phase {
    /// Whether nothing is left to do.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Skipped | Self::Left)
    }

    /// Of two, the one that came further.
    const fn rank(self) -> u8 {
        match self {
            Self::Waiting => 0,
            Self::Left => 1,
            Self::Skipped => 2,
            Self::Staged => 3,
            Self::Failed => 4,
            Self::Sent => 5,
            Self::Proved => 6,
            Self::Done => 7,
        }
    }
}

/// A pair that was tried on a meter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// The pair.
    pub pair: Pair,
    /// How that went.
    pub outcome: Outcome,
    /// The beginning of what came back.
    pub frame: Vec<u8>,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its meter.
    pub title: SystemTitle,
    /// Its place among the campaign's labels.
    pub label: u8,
    /// How far it is.
    pub phase: Phase,
    /// One of the first of its label.
    pub canary: bool,
    /// Something was handed out for it in this campaign: it may hold what it has not shown.
    pub sent: bool,
    /// The last try did not reach it.
    pub unreachable: bool,
    /// A canary that was restarted.
    pub restarted: bool,
    /// A transfer was tried since its meter last answered a probe.
    pub tried_since: bool,
    /// Tries that failed.
    pub failures: u8,
    /// Pairs that were tried since it last answered.
    pub probed: u8,
    /// Who has it; 0: nobody.
    pub lease: u64,
    /// What is to be done under that.
    pub doing: Action,
    /// The end of the lease, or else the time at which it is tried again; milliseconds since 1970.
    pub until_ms: u64,
    /// The versions that it is to get, by the policy's kinds; 0: not made yet.
    pub targets: [u16; KINDS_MAX],
    /// How the last try went.
    pub last: Option<Outcome>,
    /// Why it was refused.
    pub refused: Option<RefusalCode>,
    /// The last pairs that were tried.
    pub tried: Vec<Tried>,
}

impl Row {
    /// A member that nobody has begun.
    pub const fn new(title: SystemTitle, label: u8) -> Self {
        Self {
            title,
            label,
            phase: Phase::Waiting,
            canary: false,
            sent: false,
            unreachable: false,
            restarted: false,
            tried_since: false,
            failures: 0,
            probed: 0,
            lease: 0,
            doing: Action::Nothing,
            until_ms: 0,
            targets: [0; KINDS_MAX],
            last: None,
            refused: None,
            tried: Vec::new(),
        }
    }

    /// Whether its meter may hold a key that it has not shown: also where somebody has been told to send one.
    pub fn is_exposed(&self) -> bool {
        !matches!(self.phase, Phase::Done | Phase::Proved) && (self.sent || self.is_sending())
    }

    /// Whether somebody may be sending now, or was when nothing more was heard.
    pub fn is_sending(&self) -> bool {
        self.lease != 0 && self.doing == Action::Transfer
    }

    /// Whether somebody has it.
    pub const fn is_leased(&self, now_ms: u64) -> bool {
        self.lease != 0 && now_ms < self.until_ms
    }

    /// Of both sites' rows the one that came further, with all that either knows to have been sent.
    #[must_use]
    pub fn merged(&self, other: &Self) -> Self {
        let order = |it: &Self| (it.phase.rank(), it.until_ms, it.failures, it.lease);
        let mut further = if order(other) > order(self) { other.clone() } else { self.clone() };
        let either = |it: &Self| it.sent || it.is_sending();
        further.sent = either(self) || either(other);
        further
    }

    /// Remembers pairs as tried.
    pub fn note_tried(&mut self, tried: impl IntoIterator<Item = Tried>) {
        self.tried.extend(tried);
        let more = self.tried.len().saturating_sub(TRIED_MAX);
        self.tried.drain(..more);
    }
}

//! Rules that the world's glue breaks on purpose: each is a mistake that a server could make around the machines, and that
//! the simulator has to find.

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// A line stores the epoch at its first use, and counts from there: the older form.
    BaseAtEpoch,
    /// Sequences are reserved in the meter's block and not in the line's.
    BlockLocalMark,
    /// A range is used before it is stored.
    UseBeforeReserve,
    /// A line is used before the peer proved it.
    UnprovedLine,
    /// A restored site transmits before its peer told what it knows of the lines.
    NoMergeAfterRestore,
    /// A restored site goes on in its epoch.
    RestoreKeepsEpoch,
    /// A restored site that follows is promoted to the next epoch that it knows of.
    RestoreForgottenOnFollowing,
    /// A site that learns of a promotion keeps on writing.
    NoFencingAtContact,
    /// A commit does not look at the role in its transaction.
    NoRoleCheckInCommit,
    /// Whoever writes is told before the commit.
    AckBeforeCommit,
    /// A peer's position alone says that a write is there, whomever the peer sees as the writer.
    IgnoreCardOfRound,
    /// A peer's block is stored without being verified.
    AdoptWithoutVerify,
    /// A peer's records are written as one's own.
    AdoptAsOwn,
    /// A block that has parted is taken for an ancestor.
    NoForkCheck,
    /// What was set aside is not kept.
    DropSetAside,
    /// A proof is held against the challenge that its answer names, whatever was asked: an old one, or another asker's.
    ProofOfAnyQuestion,
    /// Whoever proves does not check its KEKs first.
    KekUnchecked,
    /// A report of an epoch that is over says that a site is ready.
    ReportOfAnyEpoch,
    /// A proof is as young as the look at it.
    ProofAsOfItsAnswer,
    /// The wall clock alone tells the age of a proof.
    WallClockAlone,
}

impl Mutation {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::BaseAtEpoch,
        Self::BlockLocalMark,
        Self::UseBeforeReserve,
        Self::UnprovedLine,
        Self::NoMergeAfterRestore,
        Self::RestoreKeepsEpoch,
        Self::RestoreForgottenOnFollowing,
        Self::NoFencingAtContact,
        Self::NoRoleCheckInCommit,
        Self::AckBeforeCommit,
        Self::IgnoreCardOfRound,
        Self::AdoptWithoutVerify,
        Self::AdoptAsOwn,
        Self::NoForkCheck,
        Self::DropSetAside,
        Self::ProofOfAnyQuestion,
        Self::KekUnchecked,
        Self::ReportOfAnyEpoch,
        Self::ProofAsOfItsAnswer,
        Self::WallClockAlone,
    ];
}

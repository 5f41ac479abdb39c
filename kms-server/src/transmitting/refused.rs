//! Why no counter is given out.

use std::sync::Arc;

use crate::{
    keyring::{KeyringError, MarkError},
    store::StoreError,
};
use kms_core::{
    BlockNo, Verdict,
    audit::NodeId,
    counters::{
        allocator::{NotAllocated, NotReserved},
        line::NoCounterEpoch,
        refusal::Refusal,
    },
};

/// The reason why another node did not protect what came here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotForwarded {
    /// Nobody has said where it is.
    #[error("its address does not stand in [[nodes]]")]
    NoAddress,
    /// There is no connection to it: nothing went out.
    #[error("it can't be reached: {0}")]
    NotReached(String),
    /// The caller will be gone before there could be an answer.
    #[error("no time was left to ask it")]
    Late,
    /// It answered, and refused.
    #[error("it was asked and refuses: {0}")]
    Refused(String),
    /// It may have protected them.
    #[error(
        "it was asked and gave no answer: {0}; what it may have protected was not sent, and its counters are spent"
    )]
    NoAnswer(String),
}

/// The reason why no counter is given out.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NotSent {
    /// By the rules of the allocator.
    #[error(transparent)]
    NotAllocated(#[from] NotAllocated),
    /// By the rules of reservations.
    #[error(transparent)]
    NotReserved(#[from] NotReserved),
    /// Another node transmits for the block, and did not protect it for this one.
    #[error("node {holder} transmits for the block; {why}")]
    NotForwarded {
        /// The node.
        holder: NodeId,
        /// The reason.
        why: NotForwarded,
    },
    /// The other site does not say that it has the line.
    #[error(
        "the other site has not confirmed the key's counter line: it is not reachable, behind, or was promoted; try again \
         once the sites are in step"
    )]
    NotReplicated,
    /// This site was restored, and nobody else remembers.
    #[error(
        "this site was restored, and nobody who is there now knows what the key was used with since: declare the counter \
         that the meter is at"
    )]
    Forgotten,
    /// There is nobody to say so, and nothing says that there is to be nobody.
    #[error(
        "this site has no peer and is not said to be a single one: set `site.single_site`, or enrol the other site"
    )]
    NoPeer,
    /// What is stored was changed.
    #[error("{0}")]
    Damaged(Arc<str>),
    /// Another process was quicker too many times.
    #[error("the block's counters are busy; try again")]
    Busy,
    /// Database or token can't be reached.
    #[error("the counters can't be reached: {0}")]
    Unavailable(Arc<str>),
}

impl NotSent {
    /// The line is not found, and may be one of so many records that can't be read.
    pub(super) fn may_be_damaged(block: BlockNo, damaged: usize) -> Self {
        let what = format!(
            "block {block} has no counter line of this key, and {damaged} of its records were changed outside this \
             service: it may be one of them"
        );
        Self::Damaged(what.into())
    }

    /// The word for it.
    pub fn refusal(&self) -> Option<Refusal> {
        Some(match self {
            Self::NotAllocated(why) => return of_allocation(why),
            Self::NotReserved(why) => of_reservation(why),
            Self::NotForwarded { .. } => Refusal::HeldByAnotherNode,
            Self::Forgotten => Refusal::CounterUndeclared,
            Self::NotReplicated | Self::NoPeer => Refusal::LineNotReplicated,
            Self::Damaged(_) => Refusal::CountersDamaged,
            Self::Busy | Self::Unavailable(_) => return None,
        })
    }

    /// The verdict on an item: whether it may pass later as it is.
    pub fn verdict(&self) -> Verdict {
        match self.refusal() {
            None
            | Some(
                Refusal::NotPrimary
                | Refusal::LineNotReplicated
                | Refusal::HeldByAnotherNode
                | Refusal::CountersRolledBack
                | Refusal::CountersNotWitnessed
                | Refusal::CountersDamaged,
            ) => Verdict::Unavailable,
            Some(
                Refusal::CounterUndeclared
                | Refusal::CountersUsedUp
                | Refusal::RekeyFirst
                | Refusal::NoClientTitle,
            ) => Verdict::NoUsableKey,
            Some(Refusal::PurposeMismatch) => Verdict::PolicyRefused,
        }
    }
}

const fn of_allocation(why: &NotAllocated) -> Option<Refusal> {
    Some(match why {
        NotAllocated::DoesNotWrite => Refusal::NotPrimary,
        NotAllocated::Undeclared => Refusal::CounterUndeclared,
        NotAllocated::Unproved => Refusal::LineNotReplicated,
        NotAllocated::CounterEpoch(NoCounterEpoch::UsedUp { .. }) => Refusal::RekeyFirst,
        NotAllocated::CounterEpoch(NoCounterEpoch::Before { .. })
        | NotAllocated::ForTransfer
        | NotAllocated::NoneLeft => Refusal::CountersUsedUp,
        NotAllocated::Reserve => return None,
    })
}

const fn of_reservation(why: &NotReserved) -> Refusal {
    match why {
        NotReserved::DoesNotWrite | NotReserved::HigherEpoch(_) => Refusal::NotPrimary,
        NotReserved::NotWitnessed => Refusal::CountersNotWitnessed,
        NotReserved::RolledBack { .. } => Refusal::CountersRolledBack,
        NotReserved::MarkGone { .. } => Refusal::CountersDamaged,
        NotReserved::Held { .. } => Refusal::HeldByAnotherNode,
        NotReserved::NoneLeft => Refusal::CountersUsedUp,
    }
}

impl From<StoreError> for NotSent {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotWriter(_) => Self::NotAllocated(NotAllocated::DoesNotWrite),
            StoreError::Damaged(_) | StoreError::Rule { .. } => {
                Self::Damaged(error.to_string().into())
            }
            StoreError::Conflict(_) => Self::Busy,
            error => Self::Unavailable(error.to_string().into()),
        }
    }
}

impl From<KeyringError> for NotSent {
    fn from(error: KeyringError) -> Self {
        match error {
            KeyringError::Store(error) => error.into(),
            KeyringError::PutBack(_) => Self::NotAllocated(NotAllocated::DoesNotWrite),
            KeyringError::Damaged { .. } | KeyringError::Stale { .. } => {
                Self::Damaged(error.to_string().into())
            }
            error => Self::Unavailable(error.to_string().into()),
        }
    }
}

impl From<MarkError> for NotSent {
    fn from(error: MarkError) -> Self {
        match error {
            MarkError::Changed(_) => Self::Damaged(error.to_string().into()),
            MarkError::Block(_) => Self::Unavailable(error.to_string().into()),
        }
    }
}

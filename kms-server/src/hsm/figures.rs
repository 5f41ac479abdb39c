//! What the door counts: each call by operation and outcome, its wait and its time in the device.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::TokenError;
use crate::telemetry::{
    catalogue::{HSM_EXECUTION, HSM_OPERATIONS, HSM_WAIT},
    metrics::{Counter, Histogram, Label, Page},
};

/// What is asked of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Seal,
    Open,
    Wrap,
    OpenApdus,
    ImportKey,
    TakeKeys,
    Random,
    Sign,
    PublicKey,
    Check,
}

impl Operation {
    /// All of them, in the order of their numbers, with their words.
    const ALL: [(Self, &'static str); 10] = [
        (Self::Seal, "seal"),
        (Self::Open, "open"),
        (Self::Wrap, "wrap"),
        (Self::OpenApdus, "open_apdus"),
        (Self::ImportKey, "import_key"),
        (Self::TakeKeys, "take_keys"),
        (Self::Random, "random"),
        (Self::Sign, "sign"),
        (Self::PublicKey, "public_key"),
        (Self::Check, "check"),
    ];
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Ok,
    Refused,
    Unreachable,
    Busy,
    TimedOut,
    /// Nobody waited for it any more.
    Abandoned,
}

impl Outcome {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Ok, "ok"),
        (Self::Refused, "refused"),
        (Self::Unreachable, "unreachable"),
        (Self::Busy, "busy"),
        (Self::TimedOut, "timed_out"),
        (Self::Abandoned, "abandoned"),
    ];

    fn of<T>(answer: &Result<T, TokenError>) -> Self {
        match answer {
            Ok(_) => Self::Ok,
            Err(TokenError::Refused { .. }) => Self::Refused,
            Err(TokenError::Unreachable { .. } | TokenError::Unfit { .. }) => Self::Unreachable,
            Err(TokenError::Busy) => Self::Busy,
            Err(TokenError::TimedOut { .. }) => Self::TimedOut,
        }
    }
}

/// All of the door's figures.
#[derive(Default)]
pub(super) struct Figures([OfOne; Operation::ALL.len()]);

/// Of one operation.
#[derive(Default)]
struct OfOne {
    outcomes: [Counter; Outcome::ALL.len()],
    waiting: Histogram,
    execution: Histogram,
}

impl Figures {
    /// A call that will be counted, whatever becomes of it.
    pub(super) fn begin(self: &Arc<Self>, operation: Operation) -> Counted {
        Counted { figures: Arc::clone(self), operation, outcome: Outcome::Abandoned }
    }

    /// What a call has waited for its place.
    pub(super) fn waited(&self, operation: Operation, waited: Duration) {
        self.waiting(operation).observe(waited);
    }

    /// Measures until it is dropped.
    pub(super) fn execute(&self, operation: Operation) -> Timed<'_> {
        Timed { to: self.execution(operation), begun: Instant::now() }
    }

    pub(super) fn waiting(&self, operation: Operation) -> &Histogram {
        &self.0[operation as usize].waiting
    }

    pub(super) fn execution(&self, operation: Operation) -> &Histogram {
        &self.0[operation as usize].execution
    }

    pub(super) fn tell(&self, token: &str, page: &mut Page) {
        let token = Label::Configured(token);
        for ((_, operation), of) in Operation::ALL.into_iter().zip(&self.0) {
            for ((_, outcome), count) in Outcome::ALL.into_iter().zip(&of.outcomes) {
                let labels = [token, operation.into(), outcome.into()];
                page.counter(&HSM_OPERATIONS, &labels, count);
            }
            page.histogram(&HSM_WAIT, &[token, operation.into()], &of.waiting);
            page.histogram(&HSM_EXECUTION, &[token, operation.into()], &of.execution);
        }
    }
}

/// One call; counted when it is dropped.
pub(super) struct Counted {
    figures: Arc<Figures>,
    operation: Operation,
    outcome: Outcome,
}

impl Counted {
    /// Ends the call with this answer.
    pub(super) fn end<T>(mut self, answer: Result<T, TokenError>) -> Result<T, TokenError> {
        self.outcome = Outcome::of(&answer);
        answer
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.figures.0[self.operation as usize].outcomes[self.outcome as usize].add(1);
    }
}

/// A measurement under way; done when it is dropped.
pub(super) struct Timed<'a> {
    to: &'a Histogram,
    begun: Instant,
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        self.to.observe(self.begun.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_at_the_numbers_of_what_they_name() {
        assert!(Operation::ALL.iter().enumerate().all(|(at, (it, _))| *it as usize == at));
        assert!(Outcome::ALL.iter().enumerate().all(|(at, (it, _))| *it as usize == at));
    }
}

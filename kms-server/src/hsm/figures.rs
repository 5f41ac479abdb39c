//! The door's figures: each call by operation and outcome, its wait and its time in the device.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kms_core::Numbered as _;

use super::TokenError;
use crate::telemetry::{
    catalogue::{HSM_EXECUTION, HSM_OPERATIONS, HSM_WAIT},
    metrics::{Counter, Histogram, Label, Page},
};

kms_core::numbered! {
    /// The operations of a token.
    pub(super) enum Operation "operation" {
        Seal = 1 "seal",
        Open = 2 "open",
        Wrap = 3 "wrap",
        OpenApdus = 4 "open_apdus",
        ImportKey = 5 "import_key",
        TakeKeys = 6 "take_keys",
        Random = 7 "random",
        Sign = 8 "sign",
        PublicKey = 9 "public_key",
        Check = 10 "check",
        TransportKey = 11 "transport_key",
        HandOver = 12 "hand_over",
        Receive = 13 "receive",
        MakeKeys = 14 "make_keys",
        MakeKek = 15 "make_kek",
        UseKeks = 16 "use_keks",
        DestroyKek = 17 "destroy_kek",
    }
}

kms_core::numbered! {
    /// The end of a call.
    enum Outcome "outcome" {
        Ok = 1 "ok",
        Refused = 2 "refused",
        Unreachable = 3 "unreachable",
        Busy = 4 "busy",
        TimedOut = 5 "timed_out",
        /// Nobody waited for it any more.
        Abandoned = 6 "abandoned",
    }
}

impl Outcome {
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
pub(super) struct Figures([OfOne; Operation::COUNT]);

/// The figures of one operation.
#[derive(Default)]
struct OfOne {
    outcomes: [Counter; Outcome::COUNT],
    waiting: Histogram,
    execution: Histogram,
}

impl Figures {
    /// A call that will be counted, whatever becomes of it.
    pub(super) fn begin(self: &Arc<Self>, operation: Operation) -> Counted {
        Counted { figures: Arc::clone(self), operation, outcome: Outcome::Abandoned }
    }

    /// Notes how long a call has waited for its place.
    pub(super) fn waited(&self, operation: Operation, waited: Duration) {
        self.waiting(operation).observe(waited);
    }

    /// Measures until it is dropped.
    pub(super) fn execute(&self, operation: Operation) -> Timed<'_> {
        Timed { to: self.execution(operation), begun: Instant::now() }
    }

    pub(super) fn waiting(&self, operation: Operation) -> &Histogram {
        &self.0[operation.index()].waiting
    }

    pub(super) fn execution(&self, operation: Operation) -> &Histogram {
        &self.0[operation.index()].execution
    }

    pub(super) fn tell(&self, token: &str, page: &mut Page) {
        let token = Label::Configured(token);
        for (operation, of) in Operation::ALL.iter().map(|it| it.word()).zip(&self.0) {
            for (outcome, count) in Outcome::ALL.iter().map(|it| it.word()).zip(&of.outcomes) {
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
        self.figures.0[self.operation.index()].outcomes[self.outcome.index()].add(1);
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

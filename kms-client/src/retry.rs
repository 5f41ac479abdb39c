//! Tries: which call is made again, where, and when. No clock and no socket: a status in, a step out.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::link::LinkError;
use crate::setup::SetupError;

/// The first wait; each further one may be twice as long.
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
/// No wait of our own choosing is longer.
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// No wait that the service asks for is longer than this; beyond it the caller is told instead.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// Whether to carry out a call twice does the same as once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Safety {
    /// A read, or an idempotent write.
    Repeatable,
    /// A write: tried again only if it cannot have arrived.
    Once,
}

/// The next step after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Tell the caller.
    GiveUp,
    /// The same endpoint serves at once, over a new connection.
    Anew,
    /// The same endpoint has room again after `at_least`.
    Here { at_least: Duration },
    /// The next endpoint may serve; this one may again after `at_least`.
    Elsewhere { at_least: Duration },
}

/// The one table of what is tried again. Who speaks counts, not the code: a transport that broke says
/// `UNKNOWN` or `CANCELLED`, and so may a service.
pub(crate) fn step(safety: Safety, status: &Status) -> Step {
    if let Some(broken) = LinkError::below(status) {
        let again = match broken {
            LinkError::Late => false,
            LinkError::Broken(_) | LinkError::Cut(_) => safety == Safety::Repeatable,
            LinkError::Setup(_) | LinkError::Unsent(_) | LinkError::NoTime => true,
        };
        return if again { Step::Elsewhere { at_least: Duration::ZERO } } else { Step::GiveUp };
    }
    let at_least = retry_after(status).unwrap_or_default();
    if at_least > RETRY_AFTER_MAX {
        return Step::GiveUp;
    }
    match (safety, status.code()) {
        (Safety::Repeatable, Code::ResourceExhausted) if may_pass(status) => {
            Step::Here { at_least }
        }
        (Safety::Repeatable, Code::Unavailable) if says(status, "CONNECTION_AGE") => Step::Anew,
        // Half of it has arrived: what had begun is sent again, whole.
        (Safety::Repeatable, Code::DeadlineExceeded) if says(status, "MESSAGE_TOO_SLOW") => {
            Step::Elsewhere { at_least }
        }
        (Safety::Repeatable, Code::Unavailable) => Step::Elsewhere { at_least },
        _ => Step::GiveUp,
    }
}

/// The time after which the service asks to come back, if it does.
pub(crate) fn retry_after(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

/// Whether the service gives this reason. `CONNECTION_AGE`: it ended a stream in order, and has told the
/// connection to end before, so that the next stream gets a new one.
fn says(status: &Status, word: &str) -> bool {
    status.get_details_error_info().is_some_and(|info| info.reason == word)
}

/// Whether the service refuses a change since another site is the primary.
pub(crate) fn is_not_primary(status: &Status) -> bool {
    LinkError::below(status).is_none() && says(status, "NOT_PRIMARY")
}

/// Whether the request has certainly not gone out.
pub(crate) fn is_unsent(status: &Status) -> bool {
    matches!(
        LinkError::below(status),
        Some(LinkError::Setup(_) | LinkError::Unsent(_) | LinkError::NoTime)
    )
}

/// Whether a server can't be reached or is going, as opposed to one that can't do this call now.
pub(crate) fn is_gone(status: &Status) -> bool {
    match LinkError::below(status) {
        Some(LinkError::Late) => false,
        Some(_) => true,
        None => {
            let nameless = status.get_details_error_info().is_none();
            status.code() == Code::Unavailable && (nameless || says(status, "SHUTTING_DOWN"))
        }
    }
}

/// Whether there may be room later. Our service says when; of another we can't know.
fn may_pass(status: &Status) -> bool {
    status.get_details_error_info().is_none() || status.get_details_retry_info().is_some()
}

/// Whether there is no connection because one side does not accept the other's certificate.
pub(crate) fn is_about_a_certificate(status: &Status) -> bool {
    let Some(LinkError::Setup(setup)) = LinkError::below(status) else {
        return false;
    };
    matches!(**setup, SetupError::OurCertificate { .. } | SetupError::TheirCertificate { .. })
}

/// The wait before try `attempt` (from 0): random in the upper half of a doubling, bounded span, so
/// that many clients of one outage do not come back at once; never less than the service asked for.
pub(crate) fn wait(attempt: u32, at_least: Duration, random: u64) -> Duration {
    let span = BACKOFF_FIRST.saturating_mul(1 << attempt.min(16)).min(BACKOFF_MAX);
    let half = span / 2;
    let share = u32::try_from(random % 1_000).unwrap_or_default();
    at_least + half + half * share / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::Phase;
    use proptest::prelude::*;
    use tonic_types::ErrorDetails;

    fn busy(delay: Duration) -> Status {
        let details = ErrorDetails::with_retry_info(Some(delay));
        Status::with_error_details(Code::ResourceExhausted, "full", details)
    }

    fn refused_connection() -> Status {
        let source = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let setup = SetupError::Failed { at: "kms:1".into(), phase: Phase::Tcp, source };
        LinkError::Setup(setup.into()).into_status()
    }

    #[test]
    fn a_read_is_tried_elsewhere_when_the_endpoint_is_unavailable() {
        let step = step(Safety::Repeatable, &Status::unavailable("going down"));
        assert_eq!(step, Step::Elsewhere { at_least: Duration::ZERO });
    }

    #[test]
    fn a_busy_service_is_given_the_time_it_asks_for() {
        let asked = Duration::from_millis(700);
        assert_eq!(step(Safety::Repeatable, &busy(asked)), Step::Here { at_least: asked });
        assert!(wait(0, asked, 0) >= asked);
    }

    #[test]
    fn a_service_that_asks_for_too_long_is_not_waited_for() {
        assert_eq!(step(Safety::Repeatable, &busy(Duration::from_secs(3_600))), Step::GiveUp);
    }

    #[test]
    fn a_write_that_may_have_arrived_is_not_sent_again() {
        assert_eq!(step(Safety::Once, &Status::unavailable("connection lost")), Step::GiveUp);
        assert_eq!(step(Safety::Once, &busy(Duration::ZERO)), Step::GiveUp);
    }

    #[test]
    fn a_write_that_was_never_sent_goes_to_the_next_endpoint() {
        let step = step(Safety::Once, &refused_connection());
        assert_eq!(step, Step::Elsewhere { at_least: Duration::ZERO });
    }

    #[test]
    fn a_broken_transport_is_told_from_an_answer_of_the_same_code() {
        // The status that tonic makes of a broken transport.
        let cut = LinkError::Cut(200).into_status();
        assert_eq!(cut.code(), Code::Unknown);
        assert_eq!(step(Safety::Repeatable, &cut), Step::Elsewhere { at_least: Duration::ZERO });
        assert_eq!(step(Safety::Once, &cut), Step::GiveUp);
        assert_eq!(step(Safety::Repeatable, &Status::unknown("said the service")), Step::GiveUp);
        assert_eq!(step(Safety::Repeatable, &LinkError::Late.into_status()), Step::GiveUp);
    }

    #[test]
    fn a_stream_whose_connection_is_of_age_goes_on_at_once() {
        let details = ErrorDetails::with_error_info("CONNECTION_AGE", "ami.kms.v1", []);
        let status = Status::with_error_details(Code::Unavailable, "a new connection", details);
        assert_eq!(step(Safety::Repeatable, &status), Step::Anew);
        assert_eq!(step(Safety::Once, &status), Step::GiveUp);
    }

    #[test]
    fn a_message_that_arrived_by_half_is_sent_again() {
        let details = ErrorDetails::with_error_info("MESSAGE_TOO_SLOW", "ami.kms.v1", []);
        let status = Status::with_error_details(Code::DeadlineExceeded, "by half", details);
        let elsewhere = Step::Elsewhere { at_least: Duration::ZERO };
        assert_eq!(step(Safety::Repeatable, &status), elsewhere);
        assert_eq!(step(Safety::Once, &status), Step::GiveUp);
    }

    #[test]
    fn what_no_time_mends_is_not_tried_again() {
        let details = ErrorDetails::with_error_info("BATCH_TOO_LARGE", "ami.kms.v1", []);
        let status = Status::with_error_details(Code::ResourceExhausted, "too many", details);
        assert_eq!(step(Safety::Repeatable, &status), Step::GiveUp);
    }

    #[test]
    fn no_other_code_is_tried_again() {
        for number in 0..=16 {
            let code = Code::from(number);
            let retried = matches!(code, Code::Unavailable | Code::ResourceExhausted);
            let step = step(Safety::Repeatable, &Status::new(code, ""));
            assert_eq!(step != Step::GiveUp, retried, "{code:?}");
        }
    }

    #[test]
    fn a_site_is_given_up_for_what_keeps_it_from_every_call_alone() {
        let said = |word: &str| {
            let details = ErrorDetails::with_error_info(word, "ami.kms.v1", []);
            Status::with_error_details(Code::Unavailable, "", details)
        };
        for gone in [refused_connection(), LinkError::Cut(200).into_status(), said("SHUTTING_DOWN")]
        {
            assert!(is_gone(&gone), "{gone:?}");
        }
        let balancer = Status::unavailable("no healthy upstream");
        assert!(is_gone(&balancer));
        for there in [said("AUDIT_NOT_WRITABLE"), said("BLOCK_BUSY"), Status::not_found("")] {
            assert!(!is_gone(&there), "{there:?}");
        }
        assert!(!is_gone(&LinkError::Late.into_status()));
    }

    #[test]
    fn what_was_refused_as_not_primary_and_what_was_not_sent_is_told_from_all_else() {
        let details = ErrorDetails::with_error_info("NOT_PRIMARY", "ami.kms.v1", []);
        let status = Status::with_error_details(Code::FailedPrecondition, "", details);
        assert!(is_not_primary(&status) && !is_unsent(&status));
        assert!(!is_not_primary(&Status::failed_precondition("NOT_PRIMARY")));
        assert!(is_unsent(&refused_connection()));
        assert!(!is_unsent(&LinkError::Cut(200).into_status()));
    }

    proptest! {
        #[test]
        fn no_wait_is_longer_than_its_bound(attempt: u32, random: u64) {
            let wait = wait(attempt, Duration::ZERO, random);
            prop_assert!(wait >= BACKOFF_FIRST / 2 && wait <= BACKOFF_MAX);
        }
    }
}

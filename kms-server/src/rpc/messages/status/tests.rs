//! Each refusal, as a caller sees it.

use super::*;

#[test]
fn causes_stay_off_the_wire() {
    let fault = Status::from(Refused::Fault("SECRET-PATH"));
    assert!(!format!("{fault:?}").contains("SECRET-PATH"));
}

/// One of each refusal: code, word, and after how many milliseconds the same call may pass. A new
/// variant has no row here until somebody writes one: `number` does not compile without it.
#[test]
fn only_what_can_pass_later_says_so() {
    let name = || CallerName::new("x").unwrap();
    let soon = Duration::ZERO;
    let second = || Refused::SecondPersonNeeded {
        verb: Verb::Decrypt,
        number: 1,
        site: "y".to_owned(),
        expires_ms: 1,
        asked_before: false,
    };
    let rows = [
        (Refused::NoCertificate, "UNAUTHENTICATED NO_CERTIFICATE", None),
        (Refused::NoName, "UNAUTHENTICATED CERTIFICATE_WITHOUT_NAME", None),
        (Refused::Expired, "UNAUTHENTICATED CERTIFICATE_EXPIRED", None),
        (Refused::NotTrusted, "UNAUTHENTICATED CERTIFICATE_NOT_TRUSTED", None),
        (Refused::Revoked, "UNAUTHENTICATED CERTIFICATE_REVOKED", None),
        (Refused::ListExpired, "UNAVAILABLE REVOCATION_LIST_EXPIRED", Some(1_000)),
        (Refused::UnknownCaller(name()), "PERMISSION_DENIED UNKNOWN_CALLER", None),
        (
            Refused::NotGranted { caller: name(), verb: Verb::Decrypt },
            "PERMISSION_DENIED NOT_GRANTED",
            None,
        ),
        (second(), "FAILED_PRECONDITION SECOND_PERSON_NEEDED", None),
        (Refused::TooManyWaiting(1), "RESOURCE_EXHAUSTED TOO_MANY_WAITING", Some(60_000)),
        (Refused::OwnCall, "PERMISSION_DENIED OWN_CALL", None),
        (Refused::NothingWaits, "NOT_FOUND NOTHING_WAITS", None),
        (Refused::UnknownMethod, "UNIMPLEMENTED UNKNOWN_METHOD", None),
        (Refused::TooManyCalls(1), "RESOURCE_EXHAUSTED TOO_MANY_CALLS", Some(250)),
        (Refused::TooManyOfCaller(1), "RESOURCE_EXHAUSTED TOO_MANY_CALLS", Some(250)),
        (Refused::MessageTooLarge(1), "RESOURCE_EXHAUSTED MESSAGE_TOO_LARGE", None),
        (Refused::BatchTooLarge { items: 2, limit: 1 }, "RESOURCE_EXHAUSTED BATCH_TOO_LARGE", None),
        (Refused::TooMany { what: "items", limit: 1 }, "RESOURCE_EXHAUSTED BATCH_TOO_LARGE", None),
        (Refused::MessageTooSlow(soon), "DEADLINE_EXCEEDED MESSAGE_TOO_SLOW", None),
        (Refused::Busy(1), "RESOURCE_EXHAUSTED BUSY", Some(250)),
        (Refused::BytesBusy(1), "RESOURCE_EXHAUSTED BUSY", Some(250)),
        (Refused::TookTooLong(soon), "DEADLINE_EXCEEDED TOOK_TOO_LONG", None),
        (Refused::ShuttingDown, "UNAVAILABLE SHUTTING_DOWN", Some(1_000)),
        (Refused::ConnectionAge, "UNAVAILABLE CONNECTION_AGE", Some(0)),
        (Refused::Column(ColumnFault::TitleBytes(7)), "INVALID_ARGUMENT BAD_COLUMN", None),
        (Refused::AuditNotWritable, "UNAVAILABLE AUDIT_NOT_WRITABLE", Some(1_000)),
        (Refused::ReadOnly, "FAILED_PRECONDITION READ_ONLY", None),
        (Refused::ReadOnlyPrimary, "FAILED_PRECONDITION READ_ONLY_PRIMARY", None),
        (Refused::AuditNotReadable, "UNAVAILABLE AUDIT_NOT_READABLE", Some(1_000)),
        (Refused::NoAuditChain, "NOT_FOUND NO_AUDIT_CHAIN", None),
        (Refused::Field { field: "f", problem: "p" }, "INVALID_ARGUMENT BAD_FIELD", None),
        (Refused::Fault("f"), "INTERNAL FAULT", None),
        (Refused::ImportTooLong(1), "INVALID_ARGUMENT IMPORT_TOO_LONG", None),
        (Refused::SingleSite, "FAILED_PRECONDITION SINGLE_SITE", None),
        (Refused::AnotherDomain, "FAILED_PRECONDITION ANOTHER_DOMAIN", None),
        (Refused::EpochNotProved, "FAILED_PRECONDITION EPOCH_NOT_PROVED", None),
        (Refused::TooManyFollowers, "RESOURCE_EXHAUSTED TOO_MANY_FOLLOWERS", Some(1_000)),
        (Refused::FollowerStalled, "DEADLINE_EXCEEDED FOLLOWER_STALLED", Some(1_000)),
        (Refused::PeerStore, "UNAVAILABLE NOT_REACHABLE", Some(1_000)),
        (Refused::OutcomeUnknown, "UNAVAILABLE OUTCOME_UNKNOWN", Some(1_000)),
        (Refused::ReadOnlyReplica, "FAILED_PRECONDITION READ_ONLY_REPLICA", None),
        (
            Refused::AnotherSite { caller: name(), site: "y".to_owned() },
            "PERMISSION_DENIED ANOTHER_SITE",
            None,
        ),
        (Refused::Unfit(Unfit::Used), "FAILED_PRECONDITION APPROVAL_USED", None),
        (Refused::OtherCall, "FAILED_PRECONDITION OTHER_CALL", None),
        (
            Refused::TooManyAsked { limit: 1, after_ms: 7_001 },
            "RESOURCE_EXHAUSTED TOO_MANY_ASKED",
            Some(7_001),
        ),
        (
            Refused::MadeElsewhere { verb: Verb::DeleteMeter, site: "y".to_owned() },
            "FAILED_PRECONDITION NOT_PRIMARY",
            None,
        ),
        (
            Refused::TooManyTriages { limit: 1, after_ms: 7_001 },
            "RESOURCE_EXHAUSTED TOO_MANY_TRIAGES",
            Some(7_001),
        ),
        (Refused::SecondToken("s".into()), "FAILED_PRECONDITION SECOND_TOKEN", None),
        (Refused::SiteKek("s".into()), "FAILED_PRECONDITION SITE_KEK", None),
    ];
    for (at, (refused, said, after_ms)) in rows.into_iter().enumerate() {
        assert_eq!(number(&refused), at, "{refused:?}");
        let status = Status::from(refused);
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().domain, ERROR_DOMAIN);
        let delay = details.retry_info().and_then(|info| info.retry_delay);
        assert_eq!(delay, after_ms.map(Duration::from_millis), "{said}");
        let word = &details.error_info().unwrap().reason;
        let code = format!("{:?}", status.code()).to_uppercase();
        assert_eq!(format!("{code} {word}"), said.replacen('_', "", code_underscores(said)));
    }
}

/// The number of underscores in the code's own word.
fn code_underscores(said: &str) -> usize {
    said.split(' ').next().unwrap().matches('_').count()
}

/// The place of a refusal in the table above.
fn number(refused: &Refused) -> usize {
    match refused {
        Refused::NoCertificate => 0,
        Refused::NoName => 1,
        Refused::Expired => 2,
        Refused::NotTrusted => 3,
        Refused::Revoked => 4,
        Refused::ListExpired => 5,
        Refused::UnknownCaller(_) => 6,
        Refused::NotGranted { .. } => 7,
        Refused::SecondPersonNeeded { .. } => 8,
        Refused::TooManyWaiting(_) => 9,
        Refused::OwnCall => 10,
        Refused::NothingWaits => 11,
        Refused::UnknownMethod => 12,
        Refused::TooManyCalls(_) => 13,
        Refused::TooManyOfCaller(_) => 14,
        Refused::MessageTooLarge(_) => 15,
        Refused::BatchTooLarge { .. } => 16,
        Refused::TooMany { .. } => 17,
        Refused::MessageTooSlow(_) => 18,
        Refused::Busy(_) => 19,
        Refused::BytesBusy(_) => 20,
        Refused::TookTooLong(_) => 21,
        Refused::ShuttingDown => 22,
        Refused::ConnectionAge => 23,
        Refused::Column(_) => 24,
        Refused::AuditNotWritable => 25,
        Refused::ReadOnly => 26,
        Refused::ReadOnlyPrimary => 27,
        Refused::AuditNotReadable => 28,
        Refused::NoAuditChain => 29,
        Refused::Field { .. } => 30,
        Refused::Fault(_) => 31,
        Refused::ImportTooLong(_) => 32,
        Refused::SingleSite => 33,
        Refused::AnotherDomain => 34,
        Refused::EpochNotProved => 35,
        Refused::TooManyFollowers => 36,
        Refused::FollowerStalled => 37,
        Refused::PeerStore => 38,
        Refused::OutcomeUnknown => 39,
        Refused::ReadOnlyReplica => 40,
        Refused::AnotherSite { .. } => 41,
        Refused::Unfit(_) => 42,
        Refused::OtherCall => 43,
        Refused::TooManyAsked { .. } => 44,
        Refused::MadeElsewhere { .. } => 45,
        Refused::TooManyTriages { .. } => 46,
        Refused::SecondToken(_) => 47,
        Refused::SiteKek(_) => 48,
    }
}

#[test]
fn a_limit_is_named() {
    let status = Status::from(Refused::BatchTooLarge { items: 9, limit: 8 });
    let details = status.get_error_details();
    let metadata = &details.error_info().unwrap().metadata;
    assert_eq!(metadata["items"], "9");
    assert_eq!(metadata["limit"], "8");
}

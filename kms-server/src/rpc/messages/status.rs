//! The one place where what went wrong becomes a gRPC status. No `_` arm over our own errors: a new
//! variant must be given its code here before the crate compiles. The wire gets a code, a fixed
//! sentence and a reason word; causes go to the log.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{columns::ColumnFault, unfit::Unfit};
use crate::{
    replication::NotServed,
    rpc::access::{
        policy::{CallerName, Forbidden},
        verb::Verb,
    },
};

/// The domain of every `google.rpc.ErrorInfo`.
pub const ERROR_DOMAIN: &str = "ami.kms.v1";

/// Whether the same call may pass later, and so whether its refusal carries a `google.rpc.RetryInfo`. A
/// client that is told so tries again by itself: what is wrong with the call itself must not say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Again {
    /// Not as it is.
    Never,
    /// At once, on another connection.
    Now,
    /// The work in flight is done in a fraction of this.
    Soon,
    /// A token, a database or another server needs a while.
    Later,
    /// People have to do something first.
    Minute,
    /// There is room again after so many milliseconds.
    After(u64),
}

impl Again {
    fn delay(self) -> Option<Duration> {
        match self {
            Self::Never => None,
            Self::Now => Some(Duration::ZERO),
            Self::Soon => Some(Duration::from_millis(250)),
            Self::Later => Some(Duration::from_secs(1)),
            Self::Minute => Some(Duration::from_secs(60)),
            Self::After(ms) => Some(Duration::from_millis(ms)),
        }
    }
}

/// The parts of a status that a program goes by.
pub(super) struct Row {
    pub(super) code: Code,
    pub(super) word: &'static str,
    pub(super) again: Again,
}

/// The word for a change or a record of which the database does not say whether it is there.
pub(crate) const OUTCOME_UNKNOWN: &str = "OUTCOME_UNKNOWN";
/// The sentence of `AUDIT_NOT_WRITABLE`.
pub(super) const AUDIT_NOT_WRITABLE: &str = "the audit log can't be written, so nothing was done; the server's log and `site status` say why";

/// The refusals of `rpc` itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("a client certificate is needed")]
    NoCertificate,
    #[error("the client certificate has neither a URI, a DNS name nor one common name to go by")]
    NoName,
    #[error("the client certificate has expired; connect with a new one")]
    Expired,
    #[error("the client certificate's authority is no longer accepted; connect with a new one")]
    NotTrusted,
    #[error("the client certificate was revoked by its authority; connect with a new one")]
    Revoked,
    #[error(
        "this server's revocation list has expired, so it trusts no client; its operator must install \
         the authority's new one"
    )]
    ListExpired,
    #[error("the policy does not know {0}")]
    UnknownCaller(CallerName),
    #[error("no role of {caller} grants {verb}")]
    NotGranted { caller: CallerName, verb: Verb },
    #[error(
        "{verb} needs a second person: let one who may approve {number} at site {site} (ami-tool \
         approvals approve {number}), then make the same call again, all of it within 15 minutes"
    )]
    SecondPersonNeeded {
        verb: Verb,
        number: u64,
        site: String,
        expires_ms: u64,
        asked_before: bool,
    },
    #[error(
        "site {site} does not write now, and only the one that does can carry out {verb}: nothing waits here, and nothing \
         is approved here; let the call be made at the site that writes, and be approved there"
    )]
    MadeElsewhere { verb: Verb, site: String },
    #[error("{0} calls wait for a second person already; let some be approved, or wait 15 minutes")]
    TooManyWaiting(usize),
    #[error(
        "you asked for {limit} calls that need a second person within a minute: ask again in {} seconds",
        .after_ms.div_ceil(1_000)
    )]
    TooManyAsked { limit: usize, after_ms: u64 },
    #[error(
        "you asked for {limit} triages within a minute, which is your share of them: ask again in {} seconds",
        .after_ms.div_ceil(1_000)
    )]
    TooManyTriages { limit: usize, after_ms: u64 },
    #[error("this call is your own; another person has to approve it")]
    OwnCall,
    #[error(
        "nothing waits at this site under this id: it was approved and made, or is older than 15 minutes, or was asked \
         of another site; let the call be made again"
    )]
    NothingWaits,
    #[error(
        "what waits under this id is another call than the one that was shown: nothing was approved. Look at it again \
         (ami-tool approvals list), and ask whoever told you the id"
    )]
    OtherCall,
    #[error("{0}")]
    Unfit(Unfit),
    #[error("there is no such call")]
    UnknownMethod,
    #[error("more than {0} calls are open on this connection; end some first")]
    TooManyCalls(u32),
    #[error("this caller has {0} calls open over all of its connections; end some first")]
    TooManyOfCaller(usize),
    #[error("the message is longer than {0} bytes; send less at once")]
    MessageTooLarge(usize),
    #[error(
        "an import in clear that needs two people is read whole before the second is asked: send at most \
         {0} lines, and at once; or seal the file (ami-tool meter seal), which may have any length"
    )]
    ImportTooLong(usize),
    #[error("the batch has {items} items and the limit is {limit}; send smaller ones")]
    BatchTooLarge { items: usize, limit: usize },
    #[error("the message has more than {limit} {what}; send less at once")]
    TooMany { what: &'static str, limit: usize },
    #[error("a message that had begun did not go on for {0:?}; send it again, faster")]
    MessageTooSlow(Duration),
    #[error("the server is busy: {0} items are in flight; try again")]
    Busy(usize),
    #[error("the server is busy: {0} bytes of messages are in flight; try again")]
    BytesBusy(usize),
    #[error("the call took longer than {0:?}")]
    TookTooLong(Duration),
    #[error("the server is shutting down; go on at another one")]
    ShuttingDown,
    #[error(
        "the connection is old enough: all that was sent whole was answered; go on over a new one"
    )]
    ConnectionAge,
    #[error(transparent)]
    Column(#[from] ColumnFault),
    #[error("{AUDIT_NOT_WRITABLE}")]
    AuditNotWritable,
    #[error(
        "the record of this call was handed to the database, which does not say whether it is there: its standby does not \
         answer. Nothing else was done; do the same again"
    )]
    OutcomeUnknown,
    #[error(
        "this server's database is a standby: a call that has to be recorded can't be made here; \
         make it at a server of the primary"
    )]
    ReadOnly,
    #[error(
        "this server's database is a primary that takes no changes: its operator must set \
         `default_transaction_read_only = off` for the server, the database and the role"
    )]
    ReadOnlyPrimary,
    #[error("this site has no peer: its configuration says single_site")]
    SingleSite,
    #[error("{0}")]
    SecondToken(String),
    #[error("{0}")]
    SiteKek(String),
    #[error(
        "the card is of no other site of this site's key domain; compare [peer] and [site] of both"
    )]
    AnotherDomain,
    #[error(
        "the card names site {site:?}, which {caller} is not: its certificate, its role in [[rpc.callers]] and `site` there say who it is"
    )]
    AnotherSite { caller: CallerName, site: String },
    #[error(
        "the card names an epoch that no signed promotion leads to here; both sites' `site status` says more"
    )]
    EpochNotProved,
    #[error(
        "this site is a read-only replica: it is never promoted, and witnesses nothing; ask a site that may write"
    )]
    ReadOnlyReplica,
    #[error(
        "the peer has as many streams open here as it may; one that is gone leaves its place soon"
    )]
    TooManyFollowers,
    #[error("the follower stores nothing of what it was sent; come again with where it stands")]
    FollowerStalled,
    #[error("the site's database does not answer; its log says why")]
    PeerStore,
    #[error("the audit log can't be read; the server's log says why")]
    AuditNotReadable,
    #[error("there is no audit chain of this node here")]
    NoAuditChain,
    #[error("{field}: {problem}")]
    Field { field: &'static str, problem: &'static str },
    /// A fault of ours; what it is stands in the log.
    #[error("the server has made a mistake; its log says more")]
    Fault(&'static str),
}

impl From<NotServed> for Refused {
    fn from(error: NotServed) -> Self {
        match error {
            NotServed::AnotherDomain { site } => {
                tracing::warn!(site, "a caller with the role peer is no other site of this domain");
                Self::AnotherDomain
            }
            NotServed::EpochNotProved(error) => {
                tracing::error!(%error, "a peer is not answered");
                Self::EpochNotProved
            }
            NotServed::NoBlock(_) => {
                Self::Field { field: "blocks", problem: "there is no such block" }
            }
            NotServed::Mark(_) => Self::Field {
                field: "marks",
                problem: "a mark is of an epoch in which its site writes, by signed records that this one knows",
            },
            NotServed::Cursors => {
                Self::Field { field: "cursors", problem: "they name each block once, in order" }
            }
            NotServed::TooManyFollowers => Self::TooManyFollowers,
            NotServed::Stalled => Self::FollowerStalled,
            NotServed::PutBack => Self::PeerStore,
            NotServed::Past(why) => {
                tracing::warn!(why, "a peer is not told since when this site remembers counters");
                Self::PeerStore
            }
            NotServed::TooMuchAside { .. } => {
                tracing::warn!(%error, "a peer is not told what was set aside");
                Self::PeerStore
            }
            NotServed::ReadOnlyReplica => Self::ReadOnlyReplica,
            NotServed::Store(error) => {
                tracing::warn!(%error, "a peer is not answered");
                Self::PeerStore
            }
        }
    }
}

impl Refused {
    /// The one table.
    fn row(&self) -> Row {
        let (code, word) = self.code();
        Row { code, word, again: self.again() }
    }

    /// Whether the same call may pass later. No `_` arm: whoever adds a refusal decides.
    pub(crate) fn again(&self) -> Again {
        match self {
            Self::NoCertificate
            | Self::NoName
            | Self::Expired
            | Self::NotTrusted
            | Self::Revoked
            | Self::UnknownCaller(_)
            | Self::NotGranted { .. }
            | Self::SecondPersonNeeded { .. }
            | Self::MadeElsewhere { .. }
            | Self::OwnCall
            | Self::NothingWaits
            | Self::OtherCall
            | Self::Unfit(_)
            | Self::UnknownMethod
            | Self::MessageTooLarge(_)
            | Self::ImportTooLong(_)
            | Self::BatchTooLarge { .. }
            | Self::TooMany { .. }
            | Self::MessageTooSlow(_)
            | Self::TookTooLong(_)
            | Self::Column(_)
            | Self::ReadOnly
            | Self::ReadOnlyPrimary
            | Self::SingleSite
            | Self::SecondToken(_)
            | Self::SiteKek(_)
            | Self::AnotherDomain
            | Self::AnotherSite { .. }
            | Self::EpochNotProved
            | Self::ReadOnlyReplica
            | Self::NoAuditChain
            | Self::Field { .. }
            | Self::Fault(_) => Again::Never,
            Self::ConnectionAge => Again::Now,
            Self::TooManyCalls(_)
            | Self::TooManyOfCaller(_)
            | Self::Busy(_)
            | Self::BytesBusy(_) => Again::Soon,
            Self::ListExpired
            | Self::ShuttingDown
            | Self::TooManyFollowers
            | Self::FollowerStalled
            | Self::PeerStore
            | Self::AuditNotWritable
            | Self::OutcomeUnknown
            | Self::AuditNotReadable => Again::Later,
            Self::TooManyWaiting(_) => Again::Minute,
            Self::TooManyAsked { after_ms, .. } | Self::TooManyTriages { after_ms, .. } => {
                Again::After(*after_ms)
            }
        }
    }

    /// Code and reason word.
    fn code(&self) -> (Code, &'static str) {
        match self {
            Self::NoCertificate => (Code::Unauthenticated, "NO_CERTIFICATE"),
            Self::NoName => (Code::Unauthenticated, "CERTIFICATE_WITHOUT_NAME"),
            Self::Expired => (Code::Unauthenticated, "CERTIFICATE_EXPIRED"),
            Self::NotTrusted => (Code::Unauthenticated, "CERTIFICATE_NOT_TRUSTED"),
            Self::Revoked => (Code::Unauthenticated, "CERTIFICATE_REVOKED"),
            // Not the caller's fault, and another server may have the new list.
            Self::ListExpired => (Code::Unavailable, "REVOCATION_LIST_EXPIRED"),
            Self::UnknownCaller(_) => (Code::PermissionDenied, "UNKNOWN_CALLER"),
            Self::NotGranted { .. } => (Code::PermissionDenied, "NOT_GRANTED"),
            Self::SecondPersonNeeded { .. } => (Code::FailedPrecondition, "SECOND_PERSON_NEEDED"),
            Self::MadeElsewhere { .. } => (Code::FailedPrecondition, "NOT_PRIMARY"),
            Self::TooManyWaiting(_) => (Code::ResourceExhausted, "TOO_MANY_WAITING"),
            Self::TooManyAsked { .. } => (Code::ResourceExhausted, "TOO_MANY_ASKED"),
            Self::TooManyTriages { .. } => (Code::ResourceExhausted, "TOO_MANY_TRIAGES"),
            Self::OwnCall => (Code::PermissionDenied, "OWN_CALL"),
            Self::NothingWaits => (Code::NotFound, "NOTHING_WAITS"),
            Self::OtherCall => (Code::FailedPrecondition, "OTHER_CALL"),
            Self::Unfit(unfit) => (Code::FailedPrecondition, unfit.word()),
            Self::UnknownMethod => (Code::Unimplemented, "UNKNOWN_METHOD"),
            Self::TooManyCalls(_) => (Code::ResourceExhausted, "TOO_MANY_CALLS"),
            Self::TooManyOfCaller(_) => (Code::ResourceExhausted, "TOO_MANY_CALLS"),
            Self::MessageTooLarge(_) => (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
            Self::ImportTooLong(_) => (Code::InvalidArgument, "IMPORT_TOO_LONG"),
            Self::BatchTooLarge { .. } | Self::TooMany { .. } => {
                (Code::ResourceExhausted, "BATCH_TOO_LARGE")
            }
            Self::MessageTooSlow(_) => (Code::DeadlineExceeded, "MESSAGE_TOO_SLOW"),
            Self::Busy(_) | Self::BytesBusy(_) => (Code::ResourceExhausted, "BUSY"),
            Self::TookTooLong(_) => (Code::DeadlineExceeded, "TOOK_TOO_LONG"),
            Self::ShuttingDown => (Code::Unavailable, "SHUTTING_DOWN"),
            Self::ConnectionAge => (Code::Unavailable, "CONNECTION_AGE"),
            Self::Column(_) => (Code::InvalidArgument, "BAD_COLUMN"),
            Self::AuditNotWritable => (Code::Unavailable, "AUDIT_NOT_WRITABLE"),
            Self::OutcomeUnknown => (Code::Unavailable, OUTCOME_UNKNOWN),
            Self::ReadOnly => (Code::FailedPrecondition, "READ_ONLY"),
            Self::ReadOnlyPrimary => (Code::FailedPrecondition, "READ_ONLY_PRIMARY"),
            Self::SingleSite => (Code::FailedPrecondition, "SINGLE_SITE"),
            Self::SecondToken(_) => (Code::FailedPrecondition, "SECOND_TOKEN"),
            Self::SiteKek(_) => (Code::FailedPrecondition, "SITE_KEK"),
            Self::AnotherDomain => (Code::FailedPrecondition, "ANOTHER_DOMAIN"),
            Self::AnotherSite { .. } => (Code::PermissionDenied, "ANOTHER_SITE"),
            Self::EpochNotProved => (Code::FailedPrecondition, "EPOCH_NOT_PROVED"),
            Self::ReadOnlyReplica => (Code::FailedPrecondition, "READ_ONLY_REPLICA"),
            Self::TooManyFollowers => (Code::ResourceExhausted, "TOO_MANY_FOLLOWERS"),
            Self::FollowerStalled => (Code::DeadlineExceeded, "FOLLOWER_STALLED"),
            Self::PeerStore => (Code::Unavailable, "NOT_REACHABLE"),
            Self::AuditNotReadable => (Code::Unavailable, "AUDIT_NOT_READABLE"),
            Self::NoAuditChain => (Code::NotFound, "NO_AUDIT_CHAIN"),
            Self::Field { .. } => (Code::InvalidArgument, "BAD_FIELD"),
            Self::Fault(_) => (Code::Internal, "FAULT"),
        }
    }

    /// A call that can't be made yet, and of which nothing new is said: it waits already, or finds no place to wait.
    pub(crate) fn is_asked_again(&self) -> bool {
        match self {
            Self::SecondPersonNeeded { asked_before, .. } => *asked_before,
            _ => matches!(self, Self::TooManyWaiting(_) | Self::TooManyAsked { .. }),
        }
    }

    /// The reason word.
    pub(crate) fn word(&self) -> &'static str {
        self.code().1
    }

    /// The parts of the sentence that a program may want to read.
    fn metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::UnknownCaller(caller) => vec![("caller", caller.to_string())],
            Self::AnotherSite { caller, site } => {
                vec![("caller", caller.to_string()), ("site", site.clone())]
            }
            Self::NotGranted { caller, verb } => {
                vec![("caller", caller.to_string()), ("verb", verb.to_string())]
            }
            Self::SecondPersonNeeded { verb, number, site, expires_ms, asked_before: _ } => vec![
                ("verb", verb.to_string()),
                ("approval_id", number.to_string()),
                ("site", site.clone()),
                ("expires", expires_ms.to_string()),
            ],
            Self::MadeElsewhere { verb, site } => {
                vec![("verb", verb.to_string()), ("site", site.clone())]
            }
            Self::TooManyCalls(limit) => vec![("limit", limit.to_string())],
            Self::TooManyWaiting(limit)
            | Self::TooManyOfCaller(limit)
            | Self::ImportTooLong(limit) => vec![("limit", limit.to_string())],
            Self::TooManyAsked { limit, after_ms } | Self::TooManyTriages { limit, after_ms } => {
                vec![("limit", limit.to_string()), ("after_ms", after_ms.to_string())]
            }
            Self::MessageTooLarge(limit) | Self::Busy(limit) | Self::BytesBusy(limit) => {
                vec![("limit", limit.to_string())]
            }
            Self::BatchTooLarge { items, limit } => {
                vec![("items", items.to_string()), ("limit", limit.to_string())]
            }
            Self::TooMany { what, limit } => {
                vec![("what", (*what).to_owned()), ("limit", limit.to_string())]
            }
            Self::Column(fault) => vec![("column", fault.column().to_owned())],
            Self::Field { field, .. } => vec![("field", (*field).to_owned())],
            Self::NoCertificate
            | Self::NoName
            | Self::Expired
            | Self::NotTrusted
            | Self::Revoked
            | Self::ListExpired
            | Self::OwnCall
            | Self::NothingWaits
            | Self::OtherCall
            | Self::Unfit(_)
            | Self::UnknownMethod
            | Self::TookTooLong(_)
            | Self::MessageTooSlow(_)
            | Self::ShuttingDown
            | Self::ConnectionAge
            | Self::AuditNotWritable
            | Self::OutcomeUnknown
            | Self::ReadOnly
            | Self::ReadOnlyPrimary
            | Self::SingleSite
            | Self::SecondToken(_)
            | Self::SiteKek(_)
            | Self::AnotherDomain
            | Self::EpochNotProved
            | Self::ReadOnlyReplica
            | Self::TooManyFollowers
            | Self::FollowerStalled
            | Self::PeerStore
            | Self::AuditNotReadable
            | Self::NoAuditChain
            | Self::Fault(_) => Vec::new(),
        }
    }
}

impl From<Forbidden> for Refused {
    fn from(forbidden: Forbidden) -> Self {
        match forbidden {
            Forbidden::UnknownCaller(caller) => Self::UnknownCaller(caller),
            Forbidden::NotGranted { caller, verb } => Self::NotGranted { caller, verb },
        }
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        if let Refused::Fault(what) = refused {
            tracing::error!(what, "fault in the server");
        }
        status(refused.row(), refused.to_string(), refused.metadata())
    }
}

impl From<ColumnFault> for Status {
    fn from(fault: ColumnFault) -> Self {
        Refused::from(fault).into()
    }
}

/// The status of a message that tonic could not read: too long, cut off, not protobuf.
pub(crate) fn of_incoming(status: Status, message_bytes_max: usize) -> Status {
    match status.code() {
        Code::OutOfRange => Refused::MessageTooLarge(message_bytes_max).into(),
        _ => status,
    }
}

/// A status with its details.
pub(super) fn status(row: Row, sentence: String, metadata: Vec<(&'static str, String)>) -> Status {
    let Row { code, word, again } = row;
    let metadata: HashMap<String, String> =
        metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let mut details = ErrorDetails::with_error_info(word, ERROR_DOMAIN, metadata);
    if let Some(delay) = again.delay() {
        details.set_retry_info(Some(delay));
    }
    Status::with_error_details(code, sentence, details)
}

#[cfg(test)]
mod tests;

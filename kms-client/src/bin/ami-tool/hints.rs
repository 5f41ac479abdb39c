//! Hints: what to do next, and how the tool ends; one row for each refusal that it can meet. A row
//! is found by its source and by the word that the source says; `*` stands for words that have no
//! row of their own.

use kms_core::{Numbered as _, RefusalCode};

use crate::code_hints::next_after;
use crate::exit::Exit;

/// The source of a refusal: who speaks, and in which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The connection: nothing of the service is known.
    Transport,
    /// One of the two certificates.
    Certificate,
    /// The service, which can't now.
    Unavailable,
    /// The service, which has no room.
    Busy,
    /// The service, which may not for this caller.
    Denied,
    /// The service, which does not find it.
    NotFound,
    /// The service, which will not.
    Refused,
    /// The service, which has failed.
    Service,
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hint {
    source: Source,
    word: &'static str,
    pub(crate) exit: Exit,
    /// Empty where the service's sentence says what to do.
    pub(crate) next: &'static str,
}

const fn row(source: Source, word: &'static str, exit: Exit, next: &'static str) -> Hint {
    Hint { source, word, exit, next }
}

/// The row of a word.
pub(crate) fn hint(source: Source, word: &str) -> Hint {
    if source == Source::Refused
        && let Some(code) = RefusalCode::from_word(word)
    {
        return row(source, code.word(), Exit::Refused, next_after(code));
    }
    let of = |word: &str| HINTS.iter().find(|hint| hint.source == source && hint.word == word);
    of(word).or_else(|| of("*")).copied().unwrap_or(UNKNOWN)
}

/// Every source has a row `*`, so nothing comes to this.
const UNKNOWN: Hint = row(Source::Service, "*", Exit::Unreachable, "");

use Exit::{
    Certificate as NoTrust, Denied as NoGrant, Refused as No, Unreachable as NotNow, Usage as Wrong,
};
use Source::{Busy, Certificate, Denied, NotFound, Refused, Service, Transport, Unavailable};

/// After `NOT_PRIMARY` of a site that says that it was put back: other servers are no way out where there is no other site.
pub(crate) const PUT_BACK: &str = "`ami-tool site promote --above-epoch N`, N the highest epoch that the other site, a \
    coordinator or two people name; where the other site writes, leave it so, and name its servers in `endpoints`";
const TOKEN_OR_STORE: &str = "`site status` says whether the token or the database is away; the server runs, so \
    `endpoints` need no look. Run it again when it is back";

/// The table of all other words.
pub(crate) const HINTS: &[Hint] = &[
    row(
        Transport,
        "UNREACHABLE",
        NotNow,
        "check that the server runs, and `endpoints` in client.toml",
    ),
    row(
        Transport,
        "OUTCOME_UNKNOWN",
        NotNow,
        "look whether it was done (`meter get`, `audit list`) before you run it again",
    ),
    row(
        Transport,
        "DEADLINE_EXCEEDED",
        NotNow,
        "look at `site status`, or raise `deadline_ms` in client.toml",
    ),
    row(Transport, "PROTOCOL", NotNow, "use tool and server of one version"),
    row(Transport, "*", NotNow, "run it again"),
    // TLS says it before any call, the service of a connection that was open already.
    row(
        Certificate,
        "CERTIFICATE_REFUSED",
        NoTrust,
        "check `certificate` in client.toml: it must come from an authority in the server's \
         `rpc.tls.client_ca`, be in time, and not be revoked. The server's log says which it is",
    ),
    row(
        Certificate,
        "SERVER_NOT_TRUSTED",
        NoTrust,
        "check `ca`, `server_name` and `endpoints` in client.toml; if they are right, tell the server's \
         operator: its certificate is not",
    ),
    row(
        Certificate,
        "NO_CERTIFICATE",
        NoTrust,
        "set `certificate` and `private_key` in client.toml",
    ),
    row(
        Certificate,
        "CERTIFICATE_WITHOUT_NAME",
        NoTrust,
        "have a certificate made with a URI, a DNS name or one common name",
    ),
    row(Certificate, "CERTIFICATE_EXPIRED", NoTrust, "have a new certificate made"),
    row(
        Certificate,
        "CERTIFICATE_NOT_TRUSTED",
        NoTrust,
        "have a certificate made by an authority that the server accepts now",
    ),
    row(
        Certificate,
        "CERTIFICATE_REVOKED",
        NoTrust,
        "this certificate will not be accepted again; have a new one made, with a new key",
    ),
    row(Certificate, "*", NoTrust, "check `certificate` in client.toml"),
    row(Unavailable, "NOT_REACHABLE", NotNow, TOKEN_OR_STORE),
    row(
        Unavailable,
        "OUTCOME_UNKNOWN",
        NotNow,
        "the database waits for its standby: look whether it is there, or run it again, which changes nothing twice",
    ),
    row(
        Unavailable,
        "BLOCK_BUSY",
        NotNow,
        "others change the same meters at the moment; run it again",
    ),
    row(
        Unavailable,
        "NOT_ALL_OPEN",
        NotNow,
        "the server opens its blocks; `site status` says how far it is",
    ),
    row(
        Unavailable,
        "NOT_NEWEST",
        NotNow,
        "`site status` says what is missing. A replica catches up; a database that was put back does not (see \
         the handbook)",
    ),
    row(
        Unavailable,
        "SHUTTING_DOWN",
        NotNow,
        "run it again when the server is back, or name another one in `endpoints`",
    ),
    row(Unavailable, "CONNECTION_AGE", NotNow, "run it again: it gets a new connection"),
    row(
        Unavailable,
        "AUDIT_NOT_WRITABLE",
        NotNow,
        "nothing was changed. `site status` says what is wrong with the audit log; another server may do it",
    ),
    row(
        Unavailable,
        "AUDIT_NOT_READABLE",
        NotNow,
        "`site status` says whether the database is away; run it again when it is back",
    ),
    row(
        Unavailable,
        "REVOCATION_LIST_EXPIRED",
        NotNow,
        "this certificate is not at fault: the server's operator must install the authority's new \
         revocation list",
    ),
    row(Unavailable, "*", NotNow, "run it again later; `site status` may say more"),
    row(Busy, "TOO_MANY_FOLLOWERS", NotNow, "a follower that is gone leaves its place soon"),
    row(Busy, "FOLLOWER_STALLED", NotNow, "it comes again by itself"),
    row(Busy, "ARENA_FULL", NotNow, "the operator raises `keyring.arena_mib`"),
    row(Busy, "BUSY", NotNow, "run it again in a moment"),
    row(Busy, "TOO_MANY_CALLS", NotNow, "end other calls of this client, then run it again"),
    row(
        Busy,
        "TOO_MANY_ASSOCIATIONS",
        NotNow,
        "associations that nobody ends expire within two minutes: wait, then run it again",
    ),
    row(
        Busy,
        "TOO_MANY_WAITING",
        NotNow,
        "have some of what waits approved (`approvals list`), then run it again",
    ),
    row(
        Busy,
        "TOO_MANY_ASKED",
        NotNow,
        "wait as long as it says; calls that were asked for already may be approved and made meanwhile",
    ),
    row(
        Busy,
        "TOO_MANY_TRIAGES",
        NotNow,
        "wait as long as it says; give all frames of the meter in one call, up to 64",
    ),
    row(Busy, "BATCH_TOO_LARGE", No, "send less at once: the same would be refused again"),
    row(Busy, "MESSAGE_TOO_LARGE", No, "send less at once: the same would be refused again"),
    row(Busy, "*", NotNow, "run it again later"),
    row(
        Denied,
        "NOT_GRANTED",
        NoGrant,
        "use a certificate whose role has this call, or have the role granted in `[[rpc.callers]]`",
    ),
    row(
        Denied,
        "UNKNOWN_CALLER",
        NoGrant,
        "have this name entered in the server's `[[rpc.callers]]`, or use another certificate",
    ),
    row(
        Denied,
        "OWN_CALL",
        NoGrant,
        "have another person approve it, with a certificate of his own",
    ),
    row(Denied, "*", NoGrant, "use a certificate that the server's configuration grants this call"),
    row(NotFound, "METER_NOT_FOUND", No, "`meter list` shows what there is"),
    row(
        NotFound,
        "NOTHING_WAITS",
        No,
        "`approvals list` shows what waits at this site; if the call is not among it, have it made again",
    ),
    row(
        NotFound,
        "NO_AUDIT_CHAIN",
        No,
        "leave `--node` away for the chain of the server that answers",
    ),
    row(NotFound, "*", No, ""),
    row(
        Refused,
        "SECOND_PERSON_NEEDED",
        No,
        "a second person runs `ami-tool approvals approve ID` (`approvals list` shows the call, and the site where it \
         waits); then run the same command again",
    ),
    row(
        Refused,
        "OTHER_CALL",
        No,
        "nothing was approved. `approvals list` shows what waits under that number now; approve it only if it is what \
         you were asked about",
    ),
    row(
        Refused,
        "SERVER_YOUNGER",
        No,
        "run it again: it is asked anew, and a second person approves it once more",
    ),
    row(
        Refused,
        "APPROVAL_CHANGED",
        No,
        "find out who writes to the site's database; then make the call again, which asks anew",
    ),
    row(
        Refused,
        "APPROVAL_USED",
        No,
        "find out who writes to the site's database; then make the call again, which asks anew",
    ),
    row(Refused, "CLOCKS_DIFFER", No, "set the clocks of the site's servers"),
    row(Refused, "READ_ONLY", No, "name a server in `endpoints` whose database is the primary"),
    row(Refused, "READ_ONLY_PRIMARY", No, ""),
    // A name on the command line that nobody has, as one that client.toml does not know.
    row(NotFound, "UNKNOWN_SITE", Wrong, "`site status` says what the sites are called"),
    row(Refused, "SECOND_TOKEN", No, "sites with two tokens keep their block secrets, for now"),
    row(
        Refused,
        "SITE_KEK",
        No,
        "`site rotate-kek --status` says how far it is, and which KEKs there are",
    ),
    row(Refused, "SINGLE_SITE", No, "name the other site in `[peer]` of this site's configuration"),
    row(
        Denied,
        "ANOTHER_SITE",
        No,
        "compare the name in that server's certificate with `[[rpc.callers]]` and `[peer]`",
    ),
    row(Refused, "ANOTHER_DOMAIN", No, "compare `[peer]` and `[site]` of both sites"),
    row(
        Refused,
        "EPOCH_NOT_PROVED",
        No,
        "`site status` of both sites says which promotion is missing; where it is more than one step ahead, two people take \
         it in: `site admit-epoch N`",
    ),
    row(Refused, "EPOCH_MOVED", No, "look at `site status`, and decide anew"),
    row(
        Refused,
        "PRIMARY_WRITES",
        No,
        "`site switchover SITE` demotes the one that writes and loses nothing. Only where that one is known to be off, and to \
         stay off: --primary-is-lost",
    ),
    row(Service, "ROLE_DAMAGED", NotNow, "put the newest copy of the database back"),
    row(
        Refused,
        "NO_CLIENT_TITLE",
        No,
        "give the meter a client title: `meter set-policy`, `client_title`",
    ),
    row(
        Refused,
        "NO_USABLE_KEY",
        No,
        "`meter get` shows which keys it has, in which setup and state",
    ),
    row(Refused, "REKEY_FIRST", No, "give the meter a new key: the old one has no counter left"),
    row(
        Refused,
        "STEP_TOO_LONG",
        No,
        "look whether that is the meter's counter; then let two people say so",
    ),
    row(Refused, "ASSOCIATION_UNKNOWN", No, "begin a new association with the meter"),
    row(
        Refused,
        "ASSOCIATION_OF_ANOTHER_NODE",
        No,
        "make the call at the server that began the association, or begin a new one",
    ),
    row(Refused, "ASSOCIATION_OUT_OF_ORDER", No, "begin, answer, verify: each once, in this order"),
    row(Refused, "COUNTER_FORGOTTEN", No, "declare the counter that the meter is at: --last N"),
    row(Refused, "ROLE_UNFIT", No, "look at `site status` of both sites"),
    row(Refused, "READ_ONLY_REPLICA", No, "ask one of the two sites that may write"),
    row(Refused, "NOT_IN_STEP", No, "let this site catch up: `site status` says how far it is"),
    row(
        Refused,
        "NOT_READY",
        No,
        "`site plan` says what a promotion would cost. Where nothing was proved yet, wait for one `peer.prove_interval_s`; else \
         mend what it names, or say --although-unproved",
    ),
    row(
        Refused,
        "UNKNOWN_RECORDS",
        No,
        "upgrade this site to the release of the other one, then promote it",
    ),
    row(
        Refused,
        "ROLLED_BACK",
        No,
        "promote the other site, which has what is missing here; or this one: `site promote --above-epoch N`, or \
         `site switchover` with it, N the highest epoch that the other site, a coordinator or two people name",
    ),
    row(Refused, "BLOCK_UNKNOWN", No, ""),
    row(Refused, "ROLE_RECORD_REFUSED", No, ""),
    row(
        Refused,
        "NOT_PRIMARY",
        No,
        "name servers of the primary site in `endpoints`; `site status` says which it is",
    ),
    row(
        Refused,
        "BAD_JOIN_REQUEST",
        No,
        "have the joining site run `kms-server init --join --request` and bring that file; for a second token of one site \
         that is this site, with `--same-site` and the second token in [hsm]. A third token there is none",
    ),
    row(
        Refused,
        "WRONG_FINGERPRINT",
        No,
        "have the fingerprint read out once more, by somebody at the joining site",
    ),
    row(Refused, "PEER_NOT_TRUSTED", No, ""),
    row(
        Refused,
        "PEER_EXISTS",
        No,
        "`site status` names the tokens that are known, with their fingerprints: compare them with the people at that site",
    ),
    row(Refused, "METER_EXISTS", No, "`meter get` shows it; `meter import` adds keys to it"),
    row(
        Refused,
        "METER_NOT_DAMAGED",
        No,
        "`site status` names what is damaged, and in which block",
    ),
    row(Refused, "IMPORT_TOO_LONG", No, "import the file in parts"),
    row(Refused, "BAD_COLUMN", No, "use tool and server of one version"),
    row(Refused, "UNKNOWN_METHOD", No, "use tool and server of one version"),
    row(Refused, "*", No, ""),
    row(
        Service,
        "NOT_SEALED_FOR_TOKEN",
        NotNow,
        "`site status` names the block; the handbook says how to restore it",
    ),
    row(
        Service,
        "DAMAGED",
        NotNow,
        "`site status` names what is damaged; the handbook says how to restore it",
    ),
    row(Service, "NO_RANDOMNESS", NotNow, TOKEN_OR_STORE),
    row(Service, "TOOK_TOO_LONG", NotNow, "look at `site status`, or ask for less at once"),
    row(Service, "MESSAGE_TOO_SLOW", NotNow, "the way to the server is too slow; run it again"),
    row(Service, "FAULT", NotNow, "the server's log says more; report it with the request's name"),
    row(Service, "*", NotNow, "the server's log says more"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Words in the same spelling that are no refusals: gRPC's codes, kinds, verdicts.
    const OTHER_WORDS: &[&str] = &[
        "ALREADY_EXISTS",
        "CANCELLED",
        "ABORTED",
        "INTERNAL",
        "UNAUTHENTICATED",
        "UNAVAILABLE",
        "UNIMPLEMENTED",
        "UNKNOWN",
        "DATA_LOSS",
        "DEADLINE_EXCEEDED",
        "FAILED_PRECONDITION",
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "OUT_OF_RANGE",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "CARGO_PKG_VERSION",
        "GUEK",
        "GBEK",
        "HSM",
        "MEMORY",
        "READY",
        "PRIMARY",
        "SECONDARY",
        "REJECT",
        "SECRET",
        "SECRETKEY",
    ];

    /// All words of the service's sources that can be `ErrorInfo.reason` or the code of an import's result.
    fn words_of_the_service(dir: &Path, words: &mut BTreeSet<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                words_of_the_service(&path, words);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]").next().unwrap_or_default();
                // Literals: all that stands between two quotation marks of one line.
                let literals = code.lines().flat_map(|line| line.split('"').skip(1).step_by(2));
                let is_word = |text: &&str| {
                    text.len() >= 4 && text.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
                };
                words.extend(literals.filter(is_word).map(str::to_owned));
            }
        }
    }

    #[test]
    fn every_reason_word_of_the_service_has_a_row() {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kms-server/src");
        let mut words = BTreeSet::new();
        for part in ["rpc", "lifecycle"] {
            words_of_the_service(&sources.join(part), &mut words);
        }
        words.retain(|word| !OTHER_WORDS.contains(&word.as_str()));
        assert!(words.len() > 30 && words.contains("NOT_GRANTED"), "{words:?}");
        let has_row = |word: &String| {
            HINTS.iter().any(|hint| hint.word == word) || RefusalCode::from_word(word).is_some()
        };
        let missing: Vec<_> = words.iter().filter(|word| !has_row(word)).collect();
        assert!(
            missing.is_empty(),
            "words without a row in HINTS (or in OTHER_WORDS): {missing:?}"
        );
    }

    #[test]
    fn no_row_stands_twice_and_each_source_has_one_for_the_rest() {
        let rows: BTreeSet<_> =
            HINTS.iter().map(|hint| (format!("{:?}", hint.source), hint.word)).collect();
        assert_eq!(rows.len(), HINTS.len());
        for source in
            [Transport, Certificate, Unavailable, Busy, Denied, NotFound, Refused, Service]
        {
            assert_eq!(hint(source, "NEVER_HEARD").word, "*", "{source:?}");
        }
    }

    #[test]
    fn a_hint_sends_nobody_to_the_wrong_place() {
        for (source, word) in [
            (Unavailable, "NOT_REACHABLE"),
            (Unavailable, "AUDIT_NOT_WRITABLE"),
            (Unavailable, "REVOCATION_LIST_EXPIRED"),
        ] {
            let next = hint(source, word).next;
            assert!(!next.contains("check that the server runs"), "{word}: {next}");
        }
        assert!(hint(NotFound, "NOTHING_WAITS").next.contains("approvals list"));
        assert!(!hint(NotFound, "NOTHING_WAITS").next.contains("meter list"));
        assert!(hint(Refused, "SECOND_PERSON_NEEDED").next.contains("approvals approve"));
        for hint in HINTS.iter().filter(|hint| hint.source == Certificate) {
            assert_eq!(hint.exit, Exit::Certificate, "{}", hint.word);
        }
    }
}

//! Every metric that there is, with what its changes mean. `docs/METRICS.md` is written from here; a
//! test keeps it so. A part that counts something new adds its metric here.

use std::fmt::Write as _;

use super::metrics::{
    Kind::{Counter, Gauge, Histogram},
    Metric,
};

macro_rules! catalogue {
    ($($constant:ident = $name:literal, $kind:ident, [$($label:literal),*],
        $help:literal, $meaning:literal, $alarm:literal;)*) => {
        $(#[doc = $help]
        pub static $constant: Metric = Metric {
            name: $name,
            kind: $kind,
            labels: &[$($label),*],
            help: $help,
            meaning: $meaning,
            alarm: $alarm,
        };)*

        /// All of them, in the order of the list.
        pub static CATALOGUE: &[&Metric] = &[$(&$constant),*];
    };
}

catalogue! {
    REQUESTS = "kms_rpc_requests_total", Counter, ["verb", "code"],
        "Calls that have ended, by verb and gRPC code.",
        "`verb` is `Unknown` for a path that is no call. `PERMISSION_DENIED` and `UNAUTHENTICATED`: a caller or its certificate is not what the policy expects. `RESOURCE_EXHAUSTED`: a limit was met; the caller's `ErrorInfo` says which. `CANCELLED`: the caller went away first.",
        "`INTERNAL` or `DATA_LOSS` at all; `UNAVAILABLE` above 1 % of calls for 5 minutes";
    QUEUE = "kms_rpc_queue_seconds", Histogram, ["verb"],
        "Time between a message being there and its work beginning: one observation a call, or a message of a stream.",
        "Batches of streams wait for room among `in_flight_items_max` up to a second; other calls do not wait, they are told `BUSY`. Waiting for a place at the token is not in here: it is `kms_hsm_wait_seconds`, and within the execution time of its call.",
        "p99 above 0.25 s for 5 minutes: the node is full";
    EXECUTION = "kms_rpc_execution_seconds", Histogram, ["verb"],
        "Time from the beginning of the work to its answer: one observation a call, or a message of a stream.",
        "Sending the answer is not in it. Rises with the size of batches; compare with `kms_hsm_execution_seconds` and `kms_store_operation_seconds` to see who is slow.",
        "p99 of `Ciphering/Decrypt` above 0.1 s for 5 minutes";
    IN_FLIGHT_ITEMS = "kms_rpc_in_flight_items", Gauge, [],
        "APDUs and import lines that are being worked on.",
        "Near `kms_rpc_in_flight_items_max`, batches are told to come back.",
        "above 90 % of its maximum for 5 minutes";
    IN_FLIGHT_ITEMS_MAX = "kms_rpc_in_flight_items_max", Gauge, [],
        "`rpc.limits.in_flight_items_max`.",
        "Changes with the configuration only.", "";
    IN_FLIGHT_BYTES = "kms_rpc_in_flight_bytes", Gauge, [],
        "Bytes of messages that are arriving or being worked on, by the kibibyte.",
        "Near `rpc.limits.in_flight_mib_max`, messages are told to come back.", "";
    CONNECTIONS = "kms_rpc_connections", Gauge, [],
        "Connections that are open, after their handshake.",
        "Near `rpc.limits.connections_max`, new ones are turned away; 0 on a node that should serve: callers do not reach it.",
        "0 for 5 minutes on a node in service";
    HANDSHAKES_FAILED = "kms_rpc_handshake_failures_total", Counter, ["reason"],
        "Connections that were turned away before their first call.",
        "`no_certificate`, `bad_certificate`: strangers, or an authority that was exchanged on one side only. `revoked`: a revocation list names the certificate. `incompatible`: not TLS 1.3, or not HTTP/2. `peer_alert`: the caller does not accept our certificate. `limit`: `connections_max` are open; `caller_limit`: one caller has its share of them. `crowded`: so many connections wait to shake hands that the oldest made room. `no_preface`: TLS, and no HTTP/2 after it. `timeout`, `io`: scanners, or a bad network. The log has a line of each reason once a second.",
        "`bad_certificate`, `peer_alert`, `caller_limit` or `crowded` rising for 5 minutes";
    CALLERS_REFUSED = "kms_rpc_callers_refused_total", Counter, ["reason"],
        "Calls of callers whose certificate an authority signed and who are not let in all the same.",
        "`UNKNOWN_CALLER`: no `[[rpc.callers]]` names it; the log says whom, once a minute. `CERTIFICATE_EXPIRED`, `CERTIFICATE_REVOKED`, `CERTIFICATE_NOT_TRUSTED`: on a connection that was open before.",
        "rising for 5 minutes";
    UNREAD = "kms_rpc_unread_cuts_total", Counter, [],
        "Connections that were cut because an answer was not read within `rpc.limits.answer_timeout_ms`.",
        "A client that hangs, or one that fills memory on purpose; the log names the caller.",
        "rising for 5 minutes";
    CERTIFICATE_LEFT = "kms_rpc_certificate_left_days", Gauge, ["certificate"],
        "Days until a certificate or revocation list in use expires; 0 once it has.",
        "`server` is our own, `client_ca` the one among the authorities for callers that expires first, `client_crl` the first revocation list, where there are any.",
        "below 14; `client_crl`: below a quarter of the time that its authority gives a list";
    VERDICTS = "kms_ciphering_verdicts_total", Counter, ["operation", "verdict"],
        "APDUs that were answered, by verdict.",
        "`MIC_FAILURE`: forgeries, a meter whose keys were changed elsewhere, or damage on the way. `UNKNOWN_METER`: not provisioned yet. `UNAVAILABLE`: keys could not be reached; see the token and the store.",
        "`UNAVAILABLE` at all for 5 minutes; `MIC_FAILURE` above ten times its usual rate";
    PROTECTED = "kms_transmitting_verdicts_total", Counter, ["verdict"],
        "APDUs that were to be protected, by verdict.",
        "`NO_USABLE_KEY`: a meter's last counter was never declared, it has no client title, or its counters are used up; the answer says which. `UNAVAILABLE`: this site does not write, the other one has not confirmed a counter line, another node transmits for the block, or database or keys could not be reached.",
        "`UNAVAILABLE` at all for 5 minutes at the primary";
    COUNTERS_LEFT = "kms_transmitting_counters_left", Gauge, [],
        "Counters that are left in this epoch to the line that has the fewest, of those in blocks that this node transmits for.",
        "Of 16,777,216. The last 256 serve key transfer only. Falls by up to 1,024 with each restart and each take-over, of all lines of a block; a promotion begins anew. Raise the line (`ami-tool meter declare-counter`), or replace the key.",
        "below 1,000,000";
    MISSES = "kms_ciphering_misses_total", Counter, [],
        "APDUs whose meter's block was not open, or whose meter id was not known in memory.",
        "Falls to nothing after the warm-up. A lasting rate means that the arena is too small, or that many unknown ids are asked for.", "";
    FLOORS_JUDGED = "kms_receive_floors_judged_total", Counter, ["outcome"],
        "Messages of meters with receive floors that opened, by what their floor said.",
        "`duplicate`: a call that was sent again, or a read that was hedged. `replayed`: somebody sends old messages, or messages overtake one another and the meter's profile has no window. `unavailable`: the stored floors can't be read.",
        "`replayed` above ten times its usual rate; `unavailable` at all for 5 minutes";
    FLOOR_LINES = "kms_receive_floor_lines", Gauge, [],
        "Counter lines whose floor is in memory: a key of a meter each.",
        "Grows as meters send, to the number of keys under which they do.", "";
    FLOOR_JUMPS = "kms_receive_floor_jumps_total", Counter, [],
        "Messages whose counter left out a million or more.",
        "A meter's line has 2^32 counters, and one message can use up all of them. The log names the meter.", "at all";
    FLOOR_BROKEN = "kms_receive_floors_broken_total", Counter, [],
        "Stored floors that this site did not write, each counted once.",
        "Somebody changes the database. They are not used, and replaced when their meter sends.", "at all";
    TOKEN_APDUS = "kms_ciphering_token_apdus_total", Counter, [],
        "APDUs of meters whose keys only the token uses.",
        "Each costs about a millisecond of the token.", "";
    HSM_OPERATIONS = "kms_hsm_operations_total", Counter, ["token", "operation", "outcome"],
        "Calls of the token, by its label, operation and outcome.",
        "`refused`: the input is at fault (tampered data; never load). `unreachable`, `timed_out`: the device. `busy`: no place came free in `hsm.patience_ms`. `abandoned`: the caller went away first. `check` is this service's own look at the token, every 10 seconds.",
        "`unreachable` or `timed_out` at all; `refused` of `open` at all";
    HSM_WAIT = "kms_hsm_wait_seconds", Histogram, ["token", "operation"],
        "Waiting for a place at the token's door.",
        "Rises when more is asked of the token than its sessions can do: raise `hsm.sessions_max`, or add a token.",
        "p99 above half of `hsm.patience_ms` for 5 minutes";
    HSM_EXECUTION = "kms_hsm_execution_seconds", Histogram, ["token", "operation"],
        "Time within the token's library, the place held; counted even if the caller has given up.",
        "The device itself: load from elsewhere, its network, or a fault that begins.",
        "p99 above ten times its usual value for 5 minutes";
    HSM_PLACES_USED = "kms_hsm_places_in_use", Gauge, ["token"],
        "Calls that are in the token now.",
        "Stays at `kms_hsm_places_max` when the token hangs.",
        "at its maximum for 1 minute";
    HSM_PLACES_MAX = "kms_hsm_places_max", Gauge, ["token"],
        "`hsm.sessions_max`.", "Changes with the configuration only.", "";
    HSM_SESSIONS = "kms_hsm_sessions_open", Gauge, ["token"],
        "Sessions of the pool that are open at the token, idle ones included; two more are open beside the pool.",
        "Rises to `hsm.sessions_max` with the load and stays; falls to 0 when the connection is made anew.", "";
    HSM_EPOCH = "kms_hsm_connection_epoch", Gauge, ["token"],
        "Rises each time the connection to the token is made anew.",
        "Each rise is a fault of the token or its library that was survived; see the log. Once in half a million calls it is this service's own doing, against leaks in SoftHSM.",
        "more than 3 rises in an hour";
    HSM_HEALTHY = "kms_hsm_healthy", Gauge, ["token"],
        "1 if the token passed its last check and no call has found it away since.",
        "0: nothing new can be opened; what is resident goes on.",
        "0 for 1 minute";
    RESIDENT_METERS = "kms_keyring_resident_meters", Gauge, [],
        "Meters whose keys are in memory.",
        "Rises through the warm-up; falls when blocks are closed for want of room.", "";
    BLOCKS_OPEN = "kms_keyring_blocks_open", Gauge, [],
        "Blocks that are open.",
        "After the warm-up it equals `kms_keyring_blocks`; less: some failed, or the arena is too small.", "";
    BLOCKS = "kms_keyring_blocks", Gauge, [],
        "Blocks of the key domain.",
        "Fixed when the domain is made.", "";
    BLOCKS_FAILED = "kms_keyring_blocks_failed", Gauge, [],
        "Blocks that can't be opened, or whose rows are missing, damaged or went back.",
        "What is not in memory of them gets `UNAVAILABLE`, changes are refused; `GetStatus` and the log say why.",
        "above 0 for 1 minute";
    DAMAGED_RECORDS = "kms_keyring_damaged_records", Gauge, [],
        "Records that are not what was written, in blocks that were read so far.",
        "Each takes its meter out of service, and `GetStatus` names it: restore the database, or bury the meter. It stays until the record is right again or buried, whether its block is open or not.",
        "above 0 at all";
    INDEX_LIES = "kms_keyring_index_lies_total", Counter, [],
        "Meter ids of which the database's index said something else than the records.",
        "The record decides; the index was changed outside this service. `GetStatus` names the ids.",
        "rising at all";
    ARENA_USED = "kms_keyring_arena_used_bytes", Gauge, [],
        "Locked memory for keys that is in use.",
        "About 80 bytes a meter.",
        "above 90 % of `kms_keyring_arena_bytes`";
    ARENA = "kms_keyring_arena_bytes", Gauge, [],
        "Locked memory for keys.", "Changes with the configuration only.", "";
    ARENA_LOCKED = "kms_keyring_arena_locked", Gauge, [],
        "1 if that memory is locked against swap.",
        "0 only where `keyring.allow_unlocked` says so: never in production.",
        "0";
    WARM_UP_DONE = "kms_keyring_warm_up_done", Gauge, [],
        "1 once the warm-up has been through all blocks.",
        "0 after a start; blocks are opened as they are asked for meanwhile.",
        "0 for 10 minutes";
    WARM_UP = "kms_keyring_warm_up_seconds", Gauge, [],
        "How long the warm-up took, or has taken so far.", "Grows with blocks and with the token's pace.", "";
    STORE = "kms_store_operation_seconds", Histogram, ["operation", "outcome"],
        "Calls of the database, by operation and outcome.",
        "`conflict`: another writer was first; the work is done again. `taken`: an id or a title belongs to another meter. `rule`, `damaged`: a fault in this program, or a change from outside. `unreachable`: the database. `read_only`: a standby was asked for a change. `audit_moved`, `audit_not_written`: the audit log could not be written, so nothing was.",
        "`unreachable`, `rule` or `damaged` at all; p99 of `commit` above 1 s for 5 minutes";
    AUDIT_EVENTS = "kms_audit_events", Gauge, [],
        "The number of the last event of this node's audit chain.",
        "Grows with privileged calls, and once an interval with crypto traffic.", "";
    AUDIT_UNSIGNED = "kms_audit_unsigned_events", Gauge, [],
        "Events behind the last signed head.",
        "Falls to 0 with each signature. Grows on where the token does not sign.",
        "above 0 while `kms_audit_head_age_seconds` is above 300";
    AUDIT_HEAD_AGE = "kms_audit_head_age_seconds", Gauge, [],
        "Age of the last signed head; absent before the first.",
        "Grows while nothing happens, since nothing is to be signed then: see `kms_audit_unsigned_events`.",
        "";
    BACKUP_AGE = "kms_backup_age_seconds", Gauge, [],
        "Age of the last backup that `kms-server backup` has written whole and noted in this server's `data_dir`.",
        "Missing: there was none on this host. A backup whose drill failed does not count. Age is that of the moment that the backup shows, not of its end.",
        "above twice the interval of the timer, or missing on the host that makes backups";
    AUDIT_FAULT = "kms_audit_fault", Gauge, [],
        "1 while the audit chain is broken or its end can't be signed.",
        "A broken chain refuses all privileged calls; the log and `GetStatus` say where it broke.",
        "1";
    LOG_LINES_DROPPED = "kms_log_lines_dropped_total", Counter, [],
        "Lines of the log that were dropped: nobody read them in time, or standard error did not take them.",
        "Rises while whoever reads the log (journald, a container's runtime) hangs or its disk is full. Serving does not wait for it; what was dropped is lost, and the audit log is not concerned.",
        "above 0";
    READY = "kms_ready", Gauge, [],
        "1 if the last `/readyz` was 200; absent before the first.",
        "Says what the load balancer was told.", "";
    PEER_CONNECTED = "kms_peer_connected", Gauge, [],
        "1: this server follows the other site, and is connected.",
        "Only where this site does not write. Of several servers of a site one follows; the others say 0.",
        "sum over the site's servers 0 for 1 minute";
    PEER_BLOCKS_ADOPTED = "kms_peer_blocks_adopted_total", Counter, [],
        "Blocks that were taken over from the other site.",
        "One that changed twice counts twice, unless both changes came at once.", "";
    PEER_RECORDS_ADOPTED = "kms_peer_records_adopted_total", Counter, [],
        "Records that were taken over from the other site.",
        "Follows the changes at the site that writes.", "";
    PEER_BLOCKS_REFUSED = "kms_peer_blocks_refused", Gauge, [],
        "Blocks of the other site that are not taken over.",
        "Their MACs are wrong, they have parted from ours, or ours can't be read; `site status` names them.",
        "above 0 for 1 minute";
    PEER_PROVED = "kms_peer_blocks_proved", Gauge, [],
        "Blocks that the other site's token has proved within `peer.proof_age_max_s`.",
        "Only where this site writes. All blocks, while the other site could take over at once.", "";
    PEER_UNPROVED = "kms_peer_blocks_unproved", Gauge, [],
        "Blocks that the other site did not prove in time, or failed to.",
        "The other site's token, database or connection is at fault; `site status` has the reason.",
        "above 0 for 5 minutes";
    PEER_PROOF_AGE = "kms_peer_oldest_proof_seconds", Gauge, [],
        "Age of the oldest proof, while all blocks are proved.",
        "Goes up and down with `peer.prove_interval_s`.", "";
    FOLLOWED = "kms_followed", Gauge, [],
        "1: the other site follows this one; 0: it follows no server of this site for longer than it takes to come back.",
        "Only where this site writes. What is written meanwhile is at this site alone. `site status` says whom it turned away and why.",
        "0 for 1 minute";
    FOLLOWER_BLOCKS_BEHIND = "kms_follower_blocks_behind", Gauge, ["site"],
        "Blocks in which a site or replica that follows this server has not stored all changes, by what it said.",
        "Looked at once in each `peer.heartbeat_ms`. Without a sample: it does not follow this server.", "";
    FOLLOWER_BEHIND = "kms_follower_behind_seconds", Gauge, ["site"],
        "Time since a site or replica that follows this server last had stored all changes; 0: it has.",
        "The line to it, its token or its database is slow or away; `site status` says by how many changes it is behind.",
        "above 60 for a site, 600 for a replica";
    DIVERGENCE_UNDECIDED = "kms_divergence_undecided", Gauge, [],
        "Records that one site wrote alone and that wait for a decision.",
        "After a failover with the former primary alive. `ami-tool site divergence list` shows them.",
        "above 0";
    SITE_READINESS = "kms_site_readiness", Gauge, [],
        "Readiness of the site that follows: 1 green, 2 yellow (the sites differ in something), 3 red (not all is proved).",
        "At both sites; by the newest signed report. `site status` says what differs and what failed.",
        "3 for 5 minutes; 2 for 1 hour";
    PEER_DIFFERENCES = "kms_peer_differs", Gauge, ["what"],
        "1: the other site differs from this one in this.",
        "By what it says of itself: access policy, authorities, revocation lists, profiles, suites, records.",
        "1 for 1 hour";
    PEER_WITNESSED = "kms_peer_head_table_age_seconds", Gauge, [],
        "Age of the newest head table of the other site that was witnessed here.",
        "What a plan for a promotion goes by when the other site is gone.", "";
    PEER_WENT_BACK = "kms_peer_head_tables_went_back", Gauge, [],
        "Sites, of both, that show an older state than they have shown before.",
        "Their database was put back; `site status` names them.", "above 0";
    SITE_UNKNOWN_RECORDS = "kms_site_unknown_records", Gauge, [],
        "Records that this release can't read, and keeps.",
        "While there are some, this site is not promoted: upgrade it.", "above 0 for 1 hour";
}

/// The unit that a name ends in.
pub fn unit(metric: &Metric) -> &'static str {
    let stem = metric.name.trim_end_matches("_total").trim_end_matches("_max");
    [("_seconds", "seconds"), ("_bytes", "bytes"), ("_days", "days")]
        .into_iter()
        .find_map(|(suffix, unit)| stem.ends_with(suffix).then_some(unit))
        .unwrap_or("1")
}

/// `docs/METRICS.md`.
pub fn markdown() -> String {
    let mut text = String::from(PREFACE);
    for metric in CATALOGUE {
        let Metric { name, kind, labels, help, meaning, alarm } = metric;
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        let labels = if labels.is_empty() { "none".to_owned() } else { labels.join(", ") };
        let alarm = if alarm.is_empty() { "none" } else { alarm };
        // Writing to a string can't fail.
        let _ = write!(
            text,
            "\n### `{name}`\n\n{help}\n\n| type | labels | unit |\n|---|---|---|\n| {} | {labels} | {} |\n\n\
             *A change means:* {meaning}\n\n*Alarm:* {alarm}.\n",
            kind.word(),
            unit(metric),
        );
    }
    text
}

const PREFACE: &str = "\
# Metrics

Written from `kms-server/src/telemetry/catalogue.rs`; a test fails when this file and the code differ
(`UPDATE_DOCS=1 cargo test -p kms-server --test metrics_list` writes it anew).

With `[metrics] listen = \"127.0.0.1:9464\"` the server answers plain HTTP there:

| path | says |
|---|---|
| `/metrics` | all figures, in Prometheus's text format |
| `/healthz` | 200 while the process serves |
| `/readyz` | 200 if it is to be given work, else 503; a line for each thing that is wrong. A node that lost token or database and has blocks open is ready: the others have lost them, too |

No figure names a meter, a caller or a request: labels are words of the program, or the token's label
out of the configuration. Counters and histograms begin at 0 with the process; a combination of labels
that has not occurred yet has no line. Histograms have the same 16 bounds, from 0.1 ms to 10 s.

## The list
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::Kind;

    #[test]
    fn names_are_unique_and_end_in_their_unit() {
        let mut names: Vec<_> = CATALOGUE.iter().map(|metric| metric.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CATALOGUE.len());
        for metric in CATALOGUE {
            let Metric { name, kind, labels, help, meaning, .. } = metric;
            assert!(name.starts_with("kms_"), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            assert!(*kind != Kind::Histogram || unit(metric) == "seconds", "{name}");
            assert!(help.ends_with('.') && meaning.ends_with('.'), "{name}");
            for label in *labels {
                assert!(!["meter", "meter_id", "system_title", "caller"].contains(label), "{name}");
            }
        }
    }
}

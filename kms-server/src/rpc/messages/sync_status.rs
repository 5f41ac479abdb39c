//! Progress of bringing sites in step, and the status of a refusal of it. No `_` arm here either.

use kms_proto::v1;
use tonic::{Code, Status};

use super::status::{Again, Row, status};
use crate::replication::{Difference, NotSynced, Repaired, SyncProgress};

/// The status of sites that are not brought in step.
pub(crate) fn of_sync(error: &NotSynced) -> Status {
    let (code, word, again) = match error {
        NotSynced::UnknownSite { .. } => (Code::NotFound, "UNKNOWN_SITE", Again::Never),
        NotSynced::IsPrimary(_) | NotSynced::NobodyWrites => {
            (Code::FailedPrecondition, "ROLE_UNFIT", Again::Never)
        }
        NotSynced::UnderWay => (Code::ResourceExhausted, "BUSY", Again::Later),
        NotSynced::NoBlock(_) => (Code::InvalidArgument, "BAD_FIELD", Again::Never),
        NotSynced::Peer(_) | NotSynced::Store(_) | NotSynced::Failed(_) => {
            (Code::Unavailable, "NOT_REACHABLE", Again::Later)
        }
    };
    status(Row { code, word, again }, error.to_string(), Vec::new())
}

/// How far it is, on the wire.
pub(crate) fn wire_progress(progress: SyncProgress) -> v1::SyncProgress {
    let SyncProgress { source, target, blocks, in_step, proved, .. } = progress;
    let Repaired { blocks: blocks_written, records, bytes } = progress.written;
    let difference = |difference: Difference| {
        let Difference { block, reason, records, bytes, titles } = difference;
        let system_titles = titles.iter().map(|title| title.as_bytes().to_vec().into()).collect();
        v1::SyncDifference { block: block.0, reason, records, bytes, system_titles }
    };
    let failure =
        |(block, reason): (kms_core::BlockNo, String)| v1::SyncFailure { block: block.0, reason };
    v1::SyncProgress {
        source,
        target,
        blocks,
        in_step,
        proved,
        blocks_written,
        records_written: records,
        bytes_written: bytes,
        differences: progress.differences.into_iter().map(difference).collect(),
        failures: progress.failures.into_iter().map(failure).collect(),
        done: progress.done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_site_is_told_with_the_known_ones() {
        let [asked, ours, peer] = ["west", "north", "south"].map(str::to_owned);
        let status = of_sync(&NotSynced::UnknownSite { asked, ours, peer });
        let said = status.message();
        assert_eq!(status.code(), Code::NotFound);
        assert!(
            said.contains("west") && said.contains("north") && said.contains("south"),
            "{said}"
        );
        assert_eq!(of_sync(&NotSynced::UnderWay).code(), Code::ResourceExhausted);
        assert_eq!(of_sync(&NotSynced::NobodyWrites).code(), Code::FailedPrecondition);
    }
}

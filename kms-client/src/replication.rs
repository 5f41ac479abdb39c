//! The other site, as a site's status tells of it.

use kms_proto::v1;
use serde::Serialize;

/// The other site, and how far it is in step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReplicationStatus {
    /// The peer's name, as the site's configuration says.
    pub peer: String,
    /// The highest epoch that the peer named; 0: it was not heard of.
    pub peer_epoch: u64,
    /// The release of the peer; empty: it was not heard of.
    pub peer_release: String,
    /// Milliseconds since the peer was last heard of; `None`: never since the server started.
    pub heard_ms: Option<u64>,
    /// `None`: this server follows nobody.
    pub following: Option<FollowingStatus>,
    /// `None`: the site does not write.
    pub readiness: Option<ReadinessStatus>,
    /// Readiness of the site that follows: `GREEN`, `YELLOW`, `RED`; empty: nothing is known of it yet.
    pub colour: String,
    /// In what the peer differs, as words.
    pub differences: Vec<String>,
    /// The schema of records that the peer reads.
    pub peer_record_schema: u32,
    /// The schema of its database.
    pub peer_store_schema: u32,
    /// What its token does not do.
    pub peer_unmet: Vec<String>,
    /// Records that it keeps and can't read.
    pub peer_unknown_records: u32,
    /// The time of its newest head table that was witnessed at this site; milliseconds since 1970, 0: none was.
    pub witnessed_ms: u64,
    /// The peer and replicas that follow the server that answered.
    pub followers: Vec<FollowerStatus>,
    /// Milliseconds for which the peer has followed no server of the site, which writes; `None`: it follows, or may only
    /// have lost its connection, or the site does not write.
    pub unfollowed_ms: Option<u64>,
}

/// One that follows a server's changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FollowerStatus {
    /// Its site.
    pub site: String,
    /// Blocks in which it is behind, by what it said that it has stored.
    pub blocks_behind: u32,
    /// Changes of these.
    pub changes_behind: u64,
    /// Milliseconds since it last had everything; `None`: it has.
    pub behind_ms: Option<u64>,
}

/// Taking over of the peer's changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FollowingStatus {
    /// This server is the one of its site that follows, and is connected.
    pub connected: bool,
    /// Blocks taken over since the server started.
    pub blocks_adopted: u64,
    /// Records of these.
    pub records_adopted: u64,
    /// Blocks of the peer that are refused.
    pub refused_count: u32,
    /// The reason why this server does not follow; empty: it does, or another one of the site.
    pub fault: String,
    /// Milliseconds since all blocks were last compared with the peer's.
    pub compared_ms: Option<u64>,
    /// Blocks that differed then.
    pub differed: u32,
}

/// Whether the peer could take over now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReadinessStatus {
    /// Blocks that its token opened as they are stored there.
    pub proved: u32,
    /// Blocks that it was not asked for, or not lately.
    pub unproved: u32,
    /// Blocks that it could not open.
    pub failed: u32,
    /// The time of the oldest proof, milliseconds since 1970; 0: not all blocks are proved.
    pub oldest_proof_ms: u64,
    /// What failed, in sentences. Not all of very many.
    pub failures: Vec<String>,
    /// The peer's token that proved it, by its id; empty: its release does not say.
    pub token: String,
}

pub(crate) fn from_wire(wire: v1::ReplicationStatus) -> ReplicationStatus {
    let following = |wire: v1::FollowingStatus| FollowingStatus {
        connected: wire.connected,
        blocks_adopted: wire.blocks_adopted,
        records_adopted: wire.records_adopted,
        refused_count: wire.refused_count,
        fault: wire.fault,
        compared_ms: wire.compared_ms,
        differed: wire.differed,
    };
    let follower = |wire: v1::FollowerStatus| FollowerStatus {
        site: wire.site,
        blocks_behind: wire.blocks_behind,
        changes_behind: wire.changes_behind,
        behind_ms: wire.behind_ms,
    };
    let readiness = |wire: v1::ReadinessStatus| ReadinessStatus {
        proved: wire.proved,
        unproved: wire.unproved,
        failed: wire.failed,
        oldest_proof_ms: wire.oldest_proof_ms,
        failures: wire.failures,
        token: wire.token,
    };
    ReplicationStatus {
        peer: wire.peer,
        peer_epoch: wire.peer_epoch,
        peer_release: wire.peer_release,
        heard_ms: wire.heard_ms,
        following: wire.following.map(following),
        readiness: wire.readiness.map(readiness),
        colour: wire.colour,
        differences: wire.differences,
        peer_record_schema: wire.peer_record_schema,
        peer_store_schema: wire.peer_store_schema,
        peer_unmet: wire.peer_unmet,
        peer_unknown_records: wire.peer_unknown_records,
        witnessed_ms: wire.witnessed_ms,
        followers: wire.followers.into_iter().map(follower).collect(),
        unfollowed_ms: wire.unfollowed_ms,
    }
}

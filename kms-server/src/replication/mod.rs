//! Two sites: the one that writes serves its blocks' changes, the other one follows and takes them over, proves
//! that its token opens what it stored, and refuses to write once it has seen that the other one was promoted.
//!
//! [`serving`] answers the peer's calls; [`following`] takes over what changes there; [`fencing`] meets a peer that
//! names a higher epoch; [`meeting`] finds out whether this site was promoted over or put back; [`proving`] asks the peer
//! for proofs and sums them up; [`reporting`] signs and keeps what was proved; [`witnessing`] keeps what each site has
//! shown of itself; [`planning`] says what a promotion would cost; [`confirming`] learns whether a write is replicated;
//! [`auditing`] copies the peer's audit log; [`watching`] looks whether anybody follows; [`remembering`] keeps the peer's marks of counters, [`flooring`] takes in its
//! receive floors; [`telling`] tells the site that writes what this one wrote alone; [`handing`] brings it what meters have shown here; [`turning`] turns a read-only replica
//! to the one of two that writes. They reach the other site through [`Peer`], and know nothing of how:
//! `rpc/peer` does.
//! Every block is taken over by the keyring's `Adopter`, which verifies it.

mod auditing;
mod card;
mod config;
mod confirming;
mod copies;
mod either;
mod failure;
mod fencing;
mod flooring;
mod followed;
mod following;
mod grounds;
mod handing;
mod lagging;
mod ledger;
mod letting_go;
mod makeup;
mod meeting;
mod messages;
mod not_served;
mod on_demand;
mod peer;
mod pieces;
mod planning;
mod proving;
mod recent;
mod remembering;
mod reporting;
mod serving;
mod session;
mod status;
mod syncing;
mod telling;
mod turning;
mod watching;
mod witnessing;

pub use auditing::{Auditing, Chains};
pub use card::{Cards, SiteCard};
pub use config::Config;
pub use confirming::Confirming;
pub use either::EitherSite;
pub use failure::PeerError;
pub use fencing::{Fencing, NotFenced};
pub use flooring::Flooring;
pub use following::{Following, Repaired};
pub use grounds::Grounds;
pub use handing::Handing;
pub use lagging::{Behind, FollowerStatus};
pub use ledger::{Ledger, Noted};
pub use makeup::{OwnMakeup, Trust, TrustSource};
pub use meeting::NotMet;
pub use messages::{
    AuditAsked, AuditSaid, BlockProof, BlockUpdate, Followed, HeadTablesSaid, HeadsAsked,
    HeadsSaid, Known, MarksAsked, MarksSaid, PeerSaid, Remembered, ShownTable,
};
pub use not_served::NotServed;
pub use on_demand::OnDemand;
pub use peer::Peer;
pub use planning::{CostlyBlock, KnownFrom, Plan, Planning};
pub use proving::{Answering, Proving};
pub use remembering::{PeersMemory, Remembering};
pub use reporting::Reporting;
pub use serving::{MayNot, Serving};
pub use status::{FollowingStatus, PeerHeard, RefusedBlock, ReplicationStatus, Reports, Status};
pub use syncing::{Difference, NotSynced, SyncAsked, SyncProgress, Syncing};
pub use telling::{REPORTED_AT_ONCE, Telling};
pub use watching::Watching;
pub use witnessing::{Tables, Witnessing};

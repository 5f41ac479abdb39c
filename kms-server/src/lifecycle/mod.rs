//! Keys' lives: meters come, bring keys, and go.
//!
//! [`import`] takes many meters at once; what people decide about one meter is in [`standing`], and about what a fork
//! between two sites left in [`divergence`].

mod burying;
mod campaigns;
mod config;
mod divergence;
mod error;
mod groups;
mod import;
mod listing;
mod lists;
mod meters;
mod refusal;
mod rotation;
mod standing;
mod verbs;
mod view;

pub use campaigns::{
    CampaignView, LeftOut, MemberView, Members, MeterRotation, OpenedFrame, Reported, Schedule,
    Selection, Started, Starting, Taken, Wanted, Work, WorkVerdict,
};
pub use config::Config;
pub use divergence::{Aside, AsideId, AsidePage, DECIDED_MAX, Reconciled, Which};
pub use error::LifecycleError;
pub use groups::{
    Brought, GROUPS_BLOCKS_A_PAGE, GroupMember, GroupView, Joined, Left, PER_CALL_MAX, Rotated,
};
pub use import::{
    checks::{KEYS_MAX, LOGICAL_DEVICE_NAME_MAX},
    meter::{ImportResult, ImportRules, Imported, NewKey, NewMeter},
    ranges::{BadRange, Ranges, TitleRange},
    run::{ChunkOf, Imports},
    sealed_file::{SealedChunk, SealedFile, SealedHeader},
    signers::{BadSigner, Signer, Signers},
    value::{KeyValue, TakenValue},
};
pub use listing::{DamagedMeter, Page};
pub use lists::ForgetList;
pub use meters::Created;
pub use refusal::Refusal;
pub use rotation::{Evidence, Outgoing, Sending, StagedKey, Stepped};
pub use standing::Readmitted;
pub use verbs::Lifecycle;
pub use view::MeterView;

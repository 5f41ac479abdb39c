//! Client of the key management service: opens what meters send, without ever seeing a key, and
//! provisions meters. The columns of the wire stay inside.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use kms_client::{Apdu, ClientConfig, KmsClient, MeterId};
//!
//! let config = ClientConfig::load("/etc/ami/client.toml".as_ref())?;
//! let client = KmsClient::connect(config).await?;
//! let apdu = Apdu::new(vec![0xDB, 0x08])?.of_meter(MeterId::new("MTR-000017")?);
//! let opened = client.decrypt(&apdu).await?;
//! println!("{}", opened.verdict);
//! # Ok(())
//! # }
//! ```
//!
//! Every call has a deadline. Reads are tried again where that can help, at the next endpoint if
//! need be; writes never are once they may have arrived, imports excepted, which are idempotent
//! line by line. Streams and imports whose connection breaks, in whatever way, go on over another one: every
//! item is answered once. A write whose answer was lost is [`CallError::OutcomeUnknown`].

// From the way in down; a module names only those below it:
//
// 10 client       the way in
// 9  meters       create, get, list, delete
//    groups       broadcast groups
//    campaigns    many meters' keys
// 8  rotation     the life of keys
//    sealed       sealed import files
// 7  audit        the audit log
//    ciphering    decrypt, verify
//    transmitting encrypt, and what a key was used with
//    triage       why frames don't open
//    import       one result a record
// 6  approvals    calls that need two people
//    site         status
//    flow         long streams: batches in flight, order, resending
//    records      import files: JSON Lines, CSV
//    syncing      a site brought in step with the primary
//    replication  what a site says of the other one
//    divergence   what one site wrote alone
//    role         who writes, promotion and demotion
//    stubs        the generated clients
// 5  columns      the wire's batches
//    meter        meters, keys, policies
//    transport    tries, deadlines
// 4  hedge        one call, asked of a second site where it is late
//    vigil        a stream, and what becomes of its site
//    replicated   whether the other site has a change
//    call         what can go wrong with a call
// 3  board        what is known of the sites, pings, probes
//    retry        what is tried again, and when
// 2  places       the sites' servers, TLS
// 1  link         one endpoint, its connection
//    report       which sites answered
//    sites        which site a call goes to
//    names        meter ids, system titles
//    secret       key bytes in the client
// 0  apdu         what goes in, what comes out
//    config       client.toml
//    digits       hex digits as people write them
//    request_id   what a request is called
//    setup        TCP, TLS, HTTP/2 within a bound

mod apdu;
mod approvals;
mod audit;
mod board;
mod call;
mod campaigns;
mod ciphering;
mod client;
mod columns;
mod config;
mod digits;
mod divergence;
mod flow;
mod groups;
mod hedge;
mod hls;
mod import;
mod link;
mod meter;
mod meters;
mod names;
mod places;
mod readiness;
mod records;
mod replicated;
mod replication;
mod report;
mod request_id;
mod retry;
mod role;
mod rotation;
pub mod sealed;
mod secret;
mod setup;
pub mod shipment;
mod site;
mod site_keks;
mod site_keys;
mod sites;
mod stubs;
mod syncing;
mod transmitting;
mod transport;
mod triage;
mod vigil;

pub use apdu::{Apdu, ApduTooLong, Checked, Opened, Verdict};
pub use approvals::Approval;
pub use audit::{
    Audit, AuditBlock, AuditDetail, AuditEvent, AuditHead, AuditOutcome, BrokenChain, ChainEnd,
    ChainReport, Expected, KnownHead,
};
pub use call::{CallError, ConnectError, ProtocolError};
pub use campaigns::{
    Campaign, CampaignLabel, CampaignMember, CampaignMemberState, CampaignPolicy, CampaignProgress,
    CampaignStart, CampaignStarted, CampaignStatus, CampaignWindow, KeyPair, KeyTried, LeftOut,
    MembersOf, MeterRotation, MeterSelection, NextAction, TakenWork, TransportOutcome, Work,
    WorkAction, WorkReport, WorkVerdict,
};
pub use ciphering::StreamOptions;
pub use client::KmsClient;
pub use columns::{PackedBatch, PackedReply};
pub use config::{ClientConfig, ConfigError};
pub use divergence::{
    Decision, DivergenceDecision, DivergenceLeft, DivergencePage, DivergenceResolved,
    DivergenceRow, DivergenceRule, DivergentKey, Parting,
};
pub use dlms::SystemTitle;
pub use flow::Results;
pub use groups::{
    Broadcast, BroadcastMessage, GROUP_CALL_MAX, Group, GroupChanged, GroupMember, GroupRefusal,
    GroupRotated, GroupValue, GroupView, Groups, MemberState, MembersAdded, MembersRemoved,
    NewGroup, ValueStage,
};
pub use hls::{
    HlsAction, HlsAnswered, HlsAssociation, HlsBegin, HlsBegun, HlsChallenge, HlsGiven,
    HlsVerified, HlsVersions,
};
pub use import::{ImportCounts, ImportResult, ImportResults, ImportRules, Outcome};
pub use kms_core::counters::refusal::Refusal as TransmitRefusal;
pub use meter::{
    AssociationForm, ClientTitle, KeyInfo, KeyKind, KeyState, KeyTransfer, Meter, MeterPolicy,
    MinimumProtection, NewKey, NewMeter, PastState, ProfileName, Protection, StateReason,
    TransferResult,
};
pub use meters::{Created, DamagedMeter, Listed, Meters, Readmitted};
pub use names::{BadMeterId, BadSystemTitle, MeterId, MeterName, parse_system_title, title_text};
pub use readiness::{PlanBlock, PromotionPlan, SignedReport, SigningKey, SiteReadiness};
pub use records::{
    BadRecord, CSV_COLUMNS, ImportFormat, ImportRecords, LINE_LEN_MAX, Line, MeterRecord, Place,
    TextReader, WipedLines,
};
pub use replicated::Replicated;
pub use replication::{FollowerStatus, FollowingStatus, ReadinessStatus, ReplicationStatus};
pub use report::CallReport;
pub use request_id::{BadRequestId, RequestId};
pub use role::{BlockLeft, PromoteOptions, Promoted, SiteRole, SiteStanding};
pub use rotation::{
    KeyCarrier, KeyChanged, KeyCompromised, KeyCondemned, KeyConfirmed, KeyPlace, KeyRevived,
    NextTransfer, Rotation, StageOptions, StagedKey, TransferOptions,
};
pub use sealed::{
    ImportKey, ImportKeyFingerprint, ManifestSigner, SealError, SealedPart, SealedParts, Sealer,
};
pub use secret::KeyBytes;
pub use site::{
    KeyringStatus, SiteStatus, SiteToken, StandbyStatus, StoreStatus, TokenStatus, WarmUp,
};
pub use site_keks::SiteKekRotation;
pub use site_keys::{BlockSecretRotation, BlockWaiting};
pub use syncing::{SyncDifference, SyncFailure, SyncOptions, SyncProgress};
pub use transmitting::{
    ApduProtection, CipheringForm, CounterDeclaration, CounterDeclared, CounterPurpose, PlainApdu,
    Protected, Protecting,
};
pub use triage::{Triage, TriageFinding, TriagedFrame};

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
mod apdu; //       2  what goes in, what comes out
mod approvals; //  7  calls that need two people
mod audit; //      7  the audit log
mod call; //       2  what can go wrong with a call
mod ciphering; //  7  decrypt, verify
mod client;
mod columns; //    4  the wire's batches
mod config; //     1  client.toml
mod digits; //     0  hex digits as people write them
mod flow; //       6  long streams: batches in flight, order, resending
mod import; //     7  import
mod lines; //      4  import files: JSON Lines, CSV
mod link; //       3  one endpoint, its connection
mod meter; //      3  meters, keys, policies
mod meters; //     7  create, get, list, delete
mod names; //      1  meter ids, system titles
mod request_id; // 1  what a request is called
mod retry; //      3  what is tried again, and when
pub mod sealed; // 7  sealed import files
mod secret; //     1  key bytes in the client
mod setup; //      2  TCP, TLS, HTTP/2 within a bound
mod site; //       7  status
mod transport; //  5  endpoints, TLS, deadlines //     8  the way in

pub use apdu::{Apdu, ApduTooLong, Checked, Opened, Verdict};
pub use approvals::Approval;
pub use audit::{
    Audit, AuditBlock, AuditDetail, AuditEvent, AuditHead, AuditOutcome, BrokenChain, ChainEnd,
    ChainReport, Expected, KnownHead,
};
pub use call::{CallError, ConnectError, ProtocolError};
pub use ciphering::StreamOptions;
pub use client::KmsClient;
pub use columns::{PackedBatch, PackedReply};
pub use config::{ClientConfig, ConfigError};
pub use dlms::SystemTitle;
pub use flow::Results;
pub use import::{ImportCounts, ImportResult, ImportResults, ImportRules, Outcome};
pub use lines::{
    BadLine, CSV_COLUMNS, ImportFormat, ImportLine, ImportLines, LINE_LEN_MAX, Line, TextReader,
    WipedLines,
};
pub use meter::{
    KeyInfo, KeyKind, KeyState, Meter, MeterPolicy, MinimumProtection, NewKey, NewMeter, Protection,
};
pub use meters::{Created, DamagedMeter, Listed, Meters, Readmitted};
pub use names::{BadMeterId, BadSystemTitle, MeterId, MeterName, parse_system_title, title_text};
pub use request_id::{BadRequestId, RequestId};
pub use sealed::{
    ImportKey, ImportKeyFingerprint, ManifestSigner, SealError, SealedPart, SealedParts, Sealer,
};
pub use secret::KeyBytes;
pub use site::{KeyringStatus, SiteStatus, StandbyStatus, StoreStatus, TokenStatus, WarmUp};

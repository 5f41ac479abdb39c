//! The parts put together: what each verb of the command line does.

mod alone;
mod check;
mod init;
mod migrate;
mod node;
mod outside;
mod serve;
mod token;

use std::{fmt, path::Path, sync::Arc};

use crate::{
    config::{self, Config, ConfigError, Store},
    hsm::{
        self, BoxError, TokenError,
        pkcs11::{self, Canaries, Pkcs11Token, ProbeDepth, ProbeReport},
    },
    store::{
        StoreError, WriteStore,
        postgres::{self, PostgresStore},
        sqlite::{self, SqliteStore},
    },
};
use kms_core::DomainRecord;

use alone::Alone;
pub use check::check;
pub use init::{InitOptions, init};
pub use migrate::migrate;
pub use outside::{OperatingSystem, SystemClock};
pub use serve::serve;
use token::Asked;

/// Why the process ends. Cut by its exit code.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Something failed while running.
    #[error(transparent)]
    Runtime(BoxError),
    /// The configuration is refused.
    #[error(transparent)]
    Configuration(#[from] ConfigError),
    /// What the configuration names can't be used.
    #[error(transparent)]
    Setting(BoxError),
    /// The token is refused, or refuses us.
    #[error(transparent)]
    Token(BoxError),
    /// The store is refused.
    #[error(transparent)]
    Store(BoxError),
    /// The database or the token is away. Started again, the service may find it: the only fault before
    /// it serves that a restart can mend.
    #[error(transparent)]
    Away(BoxError),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unreachable { .. } => Self::Away(error.into()),
            _ => Self::Store(error.into()),
        }
    }
}

impl From<TokenError> for Fault {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Unreachable { .. } | TokenError::Busy | TokenError::TimedOut { .. } => {
                Self::Away(error.into())
            }
            // A PIN that was refused among them: tried again and again it locks the token.
            TokenError::Refused { .. } | TokenError::Unfit { .. } => Self::Token(error.into()),
        }
    }
}

/// What a verb has to say when it is done: text for people through `Display`, JSON through serde.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Name and outcome, in order.
    pub lines: Vec<(String, String)>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let mut lines = self.lines.iter();
        lines.try_for_each(|(name, outcome)| writeln!(f, "{name:width$}  {outcome}"))
    }
}

/// Asks the token what it can do, and tries the attacks that it must withstand.
pub fn probe_hsm(config: Config) -> Result<ProbeReport, Fault> {
    let canaries = known_canaries(&config)?;
    try_token(config.hsm, canaries, ProbeDepth::Full)
}

/// Probes the token, which may hang; with canaries it has to pass them first, except where every row is
/// asked for.
fn try_token(
    config: hsm::Config,
    canaries: Option<Canaries>,
    depth: ProbeDepth,
) -> Result<ProbeReport, Fault> {
    let makes_keys = canaries.is_none() || depth == ProbeDepth::Full;
    let asked = Asked::of(&config);
    let asked = if makes_keys { asked.making_keys() } else { asked };
    let probed = asked.to(move || match canaries {
        Some(canaries) if depth == ProbeDepth::Start => {
            Pkcs11Token::connect(config, canaries)?.probe(depth)
        }
        canaries => pkcs11::probe(&config, canaries.as_ref(), depth),
    });
    Ok(runtime(1)?.block_on(probed)??)
}

/// Holds the database against a second server, where it serves one.
fn alone_over(store: &Store) -> Result<Option<Alone>, Fault> {
    match store {
        Store::Sqlite { path } => Alone::over_database(path),
        Store::Postgresql(_) => Ok(None),
    }
}

/// What to say where `init` has not been.
const NO_DOMAIN: &str = "there is no key domain in this database yet: run `kms-server init` with the same configuration, or restore the database that has it";

/// The proofs of the token's KEKs, if `init` has been here.
fn known_canaries(config: &Config) -> Result<Option<Canaries>, Fault> {
    known_domain(config).and_then(canaries_of_known)
}

fn canaries_of_known(domain: Option<DomainRecord>) -> Result<Option<Canaries>, Fault> {
    domain.map(|domain| canaries_of(&domain)).transpose()
}

/// The domain's record, if `init` has been here.
fn known_domain(config: &Config) -> Result<Option<DomainRecord>, Fault> {
    if matches!(&config.store, Store::Sqlite { path } if !path.exists()) {
        return Ok(None);
    }
    runtime(1)?.block_on(async {
        let store = match open_store(config, false).await {
            Err(NotOpened::Empty) => return Ok(None),
            opened => opened?,
        };
        let domain = store.domain().await;
        store.close().await;
        Ok::<_, Fault>(domain?)
    })
}

fn canaries_of(domain: &DomainRecord) -> Result<Canaries, Fault> {
    Canaries::decode(&domain.canaries).map_err(|error| Fault::Store(error.into()))
}

/// Why the store was not opened.
enum NotOpened {
    /// `init` has not been here.
    Empty,
    /// Anything else.
    Refused(Fault),
}

impl From<NotOpened> for Fault {
    fn from(not_opened: NotOpened) -> Self {
        match not_opened {
            NotOpened::Empty => Self::Store(NO_DOMAIN.into()),
            NotOpened::Refused(fault) => fault,
        }
    }
}

async fn open_store(config: &Config, create: bool) -> Result<Arc<dyn WriteStore>, NotOpened> {
    let refused = |is_away: bool, error: BoxError| {
        NotOpened::Refused(if is_away { Fault::Away(error) } else { Fault::Store(error) })
    };
    match &config.store {
        Store::Sqlite { path } => {
            let opened = SqliteStore::open(sqlite::Config { path: path.clone(), create }).await;
            Ok(Arc::new(opened.map_err(|error| refused(error.is_away(), error.into()))?))
        }
        Store::Postgresql(config) => {
            let config = postgres::Config { create, ..config.clone() };
            match PostgresStore::open(config).await {
                Ok(store) => Ok(Arc::new(store)),
                Err(postgres::OpenError::Missing { .. }) => Err(NotOpened::Empty),
                Err(error) => Err(refused(error.is_away(), error.into())),
            }
        }
    }
}

/// An async runtime with this many threads for tasks; 0: one a core.
fn runtime(threads: usize) -> Result<tokio::runtime::Runtime, Fault> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if threads > 0 {
        builder.worker_threads(threads);
    }
    builder.enable_all().build().map_err(|error| Fault::Runtime(error.into()))
}

/// A PIN file, for the security officer's.
fn pin_from(path: &Path) -> Result<crate::hsm::Pin, Fault> {
    Ok(config::pin_from_file(path)?)
}

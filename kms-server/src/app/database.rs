//! The database of a configuration: opened, held against a second server, and asked for its domain.

use std::sync::Arc;

use super::{alone::Alone, fault::Fault, runtime::runtime};
use crate::{
    config::{Config, Store},
    hsm::{BoxError, pkcs11::Canaries},
    store::{
        WriteStore,
        postgres::{self, PostgresStore},
        sqlite::{self, SqliteStore},
    },
};
use kms_core::DomainRecord;

/// Holds the database against a second server, where it serves one.
pub(super) fn alone_over(store: &Store) -> Result<Option<Alone>, Fault> {
    match store {
        Store::Sqlite { path } => Alone::over_database(path),
        Store::Postgresql(_) => Ok(None),
    }
}

/// Said where `init` has not been.
pub(super) const NO_DOMAIN: &str = "there is no key domain in this database yet: run `kms-server init` with the same configuration, or restore the database that has it";

/// The proofs of the token's KEKs, if `init` has been here.
pub(super) fn known_canaries(config: &Config) -> Result<Option<Canaries>, Fault> {
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

pub(super) fn canaries_of(domain: &DomainRecord) -> Result<Canaries, Fault> {
    Canaries::decode(&domain.canaries).map_err(|error| Fault::Store(error.into()))
}

/// Why the store was not opened.
pub(super) enum NotOpened {
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

pub(super) async fn open_store(
    config: &Config,
    create: bool,
) -> Result<Arc<dyn WriteStore>, NotOpened> {
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

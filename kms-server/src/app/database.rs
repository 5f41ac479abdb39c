//! The database of a configuration: opened, held against a second server, and asked for its domain.

use std::sync::Arc;

use super::{alone::Alone, fault::Fault, runtime::runtime};
use crate::{
    config::{Config, Store},
    hsm::{BoxError, pkcs11::Canaries},
    store::{
        ReadStore, StoreError,
        postgres::{self, PostgresStore},
        sqlite::{self, SqliteStore},
        whole::{RestoreState, WholeStore},
    },
};
use kms_core::{
    DomainRecord,
    site::{keks::SignedSiteKeks, tokens::SignedSiteTokens},
};

/// Holds the database against a second server, where it serves one.
pub(super) fn alone_over(store: &Store) -> Result<Option<Alone>, Fault> {
    match store {
        Store::Sqlite { path } => Alone::over_database(path),
        Store::Postgresql(_) => Ok(None),
    }
}

/// Said where `init` has not been.
pub(super) const NO_DOMAIN: &str = "there is no key domain in this database yet: run `kms-server init` with the same configuration at the first site of a domain, and `kms-server init --join --request FILE` at one that joins it (plain `init` there would found another domain, which can never be joined to the first); or restore the database that has it";

/// The key domain of an opened database.
pub(super) async fn domain_of(store: &dyn ReadStore) -> Result<DomainRecord, Fault> {
    refuse_a_part(store).await?;
    store.domain().await?.ok_or_else(|| Fault::Store(NO_DOMAIN.into()))
}

/// Refuses a database into which a backup was restored, but not all of it.
pub(super) async fn refuse_a_part(store: &dyn ReadStore) -> Result<(), Fault> {
    let RestoreState::Loading { from } = store.restore_state().await? else { return Ok(()) };
    let sentence = format!(
        "a restore into this database was broken off ({from}), and what is in it is a part: run `kms-server restore` \
         again, which begins anew"
    );
    Err(Fault::Store(sentence.into()))
}

/// The same without opening it for good, if `init` has been here.
pub(super) fn known_domain(config: &Config) -> Result<Option<Known>, Fault> {
    if matches!(&config.store, Store::Sqlite { path } if !path.exists()) {
        return Ok(None);
    }
    runtime(1)?.block_on(async {
        let store = match open_store(config, false).await {
            Err(NotOpened::Empty) => return Ok(None),
            opened => opened?,
        };
        let known = async {
            let Some(domain) = store.domain().await? else { return Ok(None) };
            let (lists, keks) = (store.site_tokens().await?, store.site_keks().await?);
            Ok::<_, StoreError>(Some(Known { domain, lists, keks }))
        };
        let known = known.await;
        store.close().await;
        Ok::<_, Fault>(known?)
    })
}

/// What a database says of its domain, and of the tokens that open it.
pub(super) struct Known {
    pub(super) domain: DomainRecord,
    /// The lists of the site's tokens.
    pub(super) lists: Vec<SignedSiteTokens>,
    /// The rows of their site KEKs.
    pub(super) keks: Vec<SignedSiteKeks>,
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

/// Opened to be read beside a server: nothing is made or brought forward.
pub(super) async fn open_as_it_is(config: &Config) -> Result<Arc<dyn WholeStore>, NotOpened> {
    open(config, Opening::AsItIs).await
}

pub(super) async fn open_store(
    config: &Config,
    create: bool,
) -> Result<Arc<dyn WholeStore>, NotOpened> {
    open(config, if create { Opening::Make } else { Opening::BringForward }).await
}

/// What opening may do to a database.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Opening {
    /// Make it, if there is none.
    Make,
    /// Bring its schema to this program's.
    BringForward,
    /// Nothing.
    AsItIs,
}

async fn open(config: &Config, how: Opening) -> Result<Arc<dyn WholeStore>, NotOpened> {
    let create = how == Opening::Make;
    let refused = |is_away: bool, error: BoxError| {
        NotOpened::Refused(if is_away { Fault::Away(error) } else { Fault::Store(error) })
    };
    match &config.store {
        Store::Sqlite { path } => {
            let config = sqlite::Config { path: path.clone(), create };
            let opened = match how {
                Opening::AsItIs => SqliteStore::open_as_it_is(config).await,
                Opening::Make | Opening::BringForward => SqliteStore::open(config).await,
            };
            Ok(Arc::new(opened.map_err(|error| refused(error.is_away(), error.into()))?))
        }
        Store::Postgresql(config) => {
            let config = postgres::Config { create, ..config.clone() };
            let opened = match how {
                Opening::AsItIs => PostgresStore::open_as_it_is(config).await,
                Opening::Make | Opening::BringForward => PostgresStore::open(config).await,
            };
            match opened {
                Ok(store) => Ok(Arc::new(store)),
                Err(postgres::OpenError::Missing { .. }) => Err(NotOpened::Empty),
                Err(error) => Err(refused(error.is_away(), error.into())),
            }
        }
    }
}

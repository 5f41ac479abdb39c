//! The `[store]` section: one of two databases, each with its own fields.

use std::path::PathBuf;

use serde::Deserialize;

use super::{
    error::ConfigError,
    pin,
    settings::Store,
    values::{absolute, text, within},
};
use crate::store::postgres::{self, Password, Tls};

/// The databases that this program knows.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum StoreSection {
    Sqlite {
        path: PathBuf,
    },
    Postgresql {
        host: String,
        #[serde(default = "port")]
        port: u16,
        database: String,
        user: String,
        password_file: Option<PathBuf>,
        password_env: Option<String>,
        tls_ca: Option<PathBuf>,
        #[serde(default)]
        tls_mode: TlsMode,
        #[serde(default)]
        allow_no_tls: bool,
        #[serde(default = "connections_max")]
        connections_max: u64,
    },
}

/// Depth of the check of the database's certificate.
#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum TlsMode {
    #[default]
    VerifyFull,
    VerifyCa,
}

fn port() -> u16 {
    5432
}

fn connections_max() -> u64 {
    10
}

impl TryFrom<StoreSection> for Store {
    type Error = ConfigError;

    fn try_from(section: StoreSection) -> Result<Self, ConfigError> {
        match section {
            StoreSection::Sqlite { path } => {
                Ok(Self::Sqlite { path: absolute("store.path", path)? })
            }
            StoreSection::Postgresql {
                host,
                port,
                database,
                user,
                password_file,
                password_env,
                tls_ca,
                tls_mode,
                allow_no_tls,
                connections_max,
            } => {
                let config = postgres::Config {
                    host: text("store.host", host, 255)?,
                    port,
                    database: text("store.database", database, 63)?, // PostgreSQL's NAMEDATALEN
                    user: text("store.user", user, 63)?,
                    tls: tls(tls_ca, tls_mode, allow_no_tls)?,
                    connections_max: within("store.connections_max", connections_max, 3..=200)?,
                    create: false,
                    password: None,
                };
                config.check_tls()?;
                // Last: no password is read for a section that is refused anyway.
                let password = pin::password(password_file, password_env)?;
                let password = password.map(Password::new);
                Ok(Self::Postgresql(postgres::Config { password, ..config }))
            }
        }
    }
}

fn tls(ca: Option<PathBuf>, mode: TlsMode, allow_none: bool) -> Result<Tls, ConfigError> {
    match (ca, allow_none) {
        (Some(_), true) | (None, false) => Err(ConfigError::StoreTls),
        (None, true) => Ok(Tls::Off),
        (Some(ca), false) => {
            let ca = absolute("store.tls_ca", ca)?;
            Ok(match mode {
                TlsMode::VerifyFull => Tls::VerifyFull { ca },
                TlsMode::VerifyCa => Tls::VerifyCa { ca },
            })
        }
    }
}

//! Opening the database: how to connect, what it must hold, its schema.

use std::time::Duration;

use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection, PgPool, Row as _,
    postgres::{PgConnectOptions, PgPoolOptions, PgRow, PgSslMode},
};
use tokio::time::timeout;

use super::{
    config::{BadTls, Config, Tls},
    pooling,
};

/// Why the database was not opened. Each sentence says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// It would be reached without TLS.
    #[error(transparent)]
    Tls(#[from] BadTls),
    /// TLS was not used although it was asked for.
    #[error(
        "the connection to the database is not encrypted although `store.tls_ca` is set: set \
         `ssl = on` in its postgresql.conf"
    )]
    NotEncrypted,
    /// A setting that durability rests on.
    #[error(
        "the database has `{name} = {found}`: set it to {wanted} in its postgresql.conf, for the \
         role and the database too (ALTER ROLE, ALTER DATABASE), and reload it"
    )]
    Setting {
        /// The setting.
        name: &'static str,
        /// The value that it must have.
        wanted: &'static str,
        /// The value that it has.
        found: String,
    },
    /// A setting that this connection asked for and did not get.
    #[error(
        "the session has `{name} = {found}` although the connection asks for `{wanted}`: what stands \
         before the database drops it (pgbouncer: ignore_startup_parameters), so connect to the \
         database itself, or set it for the role (ALTER ROLE … SET {name} = '{wanted}')"
    )]
    Session {
        /// The setting.
        name: &'static str,
        /// The value that was asked for.
        wanted: &'static str,
        /// The value that it has.
        found: String,
    },
    /// A session is not a session.
    #[error(
        "a pooler before the database gives its sessions away between transactions (pgbouncer: \
         pool_mode = transaction or statement): connect to the database itself, or through \
         pool_mode = session"
    )]
    Pooled,
    /// It is no standby and takes no changes.
    #[error(
        "the database takes no changes although it is a primary: set \
         `default_transaction_read_only = off` for the server, the database and the role"
    )]
    ReadOnlyPrimary,
    /// Older than this program knows.
    #[error("the database is PostgreSQL {found}: upgrade it to {OLDEST_MAJOR} or later")]
    OldServer {
        /// Its version.
        found: String,
    },
    /// Ids and names would not survive.
    #[error("the database has the encoding {0}: create it anew with ENCODING 'UTF8'")]
    Encoding(String),
    /// There is no schema.
    #[error(
        "there is no schema `ami_kms` in database {place}: run `kms-server init`, or correct [store]"
    )]
    Missing {
        /// Where.
        place: String,
    },
    /// The schema is to be made or changed, and this database takes no changes.
    #[error(
        "the database is a standby, and its schema is not this program's: start this version at \
         its primary first"
    )]
    Standby,
    /// Written by a newer program.
    #[error(
        "the database has schema {found}, and this program knows schemas up to {known}: \
         start the version that wrote it, or a later one"
    )]
    NewerSchema {
        /// The database's.
        found: i64,
        /// Ours.
        known: usize,
    },
    /// Written by an older program, and not to be changed now.
    #[error(
        "the database has schema {found}, and this program's is {known}: start this version's server first, or run the \
         version that wrote it"
    )]
    OlderSchema {
        /// The database's.
        found: i64,
        /// Ours.
        known: usize,
    },
    /// No answer.
    #[error(
        "the database {place} did not answer within {} s: start it, or correct [store]",
        CONNECT_PATIENCE.as_secs()
    )]
    NoAnswer {
        /// Where.
        place: String,
    },
    /// Whatever else the library says.
    #[error("cannot open the database {place}")]
    Failed {
        /// Where.
        place: String,
        /// The library's error.
        #[source]
        source: sqlx::Error,
    },
}

impl OpenError {
    /// Whether the database may be there later, as it is: it is starting, restarting, out of connections,
    /// or the way to it is down. What it refuses us (a password, a role, a certificate) stays.
    pub fn is_away(&self) -> bool {
        match self {
            Self::NoAnswer { .. } => true,
            Self::Failed { source, .. } => super::columns::is_away(source),
            _ => false,
        }
    }
}

/// The oldest server that this program was tried on is 15; nothing newer than 13 is used.
const OLDEST_MAJOR: i64 = 13;

/// The longest time for the first connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// The longest wait of a caller for a connection, a new one included.
const ACQUIRE_PATIENCE: Duration = Duration::from_secs(2);

/// Settings of each session. A client that vanished frees its locks in 10 s; nobody waits for a lock
/// longer than that.
const SESSION: [(&str, &str); 8] = [
    ("search_path", "ami_kms"),
    ("lock_timeout", "10s"),
    ("idle_in_transaction_session_timeout", "10s"),
    ("tcp_keepalives_idle", "5"),
    ("tcp_keepalives_interval", "2"),
    ("tcp_keepalives_count", "3"),
    ("statement_timeout", "30s"),
    ("jit", "off"),
];

/// Those of them that say nothing on a Unix socket.
const KEEPALIVES: &str = "tcp_keepalives_";

/// Settings that an acknowledged commit rests on, and their values that will do.
const REQUIRED: [(&str, &[&str], &str); 3] = [
    ("synchronous_commit", &["on", "remote_apply"], "`on` or `remote_apply`"),
    ("fsync", &["on"], "`on`"),
    ("full_page_writes", &["on"], "`on`"),
];

/// The schema, step by step; entry `n` leads from version `n` to `n + 1`.
const MIGRATIONS: [&str; 5] = [
    include_str!("../../../migrations/postgres/0001_blocks.sql"),
    include_str!("../../../migrations/postgres/0002_audit.sql"),
    include_str!("../../../migrations/postgres/0003_heads.sql"),
    include_str!("../../../migrations/postgres/0004_sites.sql"),
    include_str!("../../../migrations/postgres/0005_transmitting.sql"),
];

/// The version that they lead to.
pub(super) const SCHEMA: u32 = MIGRATIONS.len() as u32;

/// "AMIK": of servers that start at once, one migrates and the others then see it done.
const MIGRATION_LOCK: i64 = 0x414D_494B;

pub(super) async fn open(config: &Config, migrates: bool) -> Result<PgPool, OpenError> {
    config.check_tls()?;
    let failed = |source| OpenError::Failed { place: config.place(), source };
    let options = options(config);
    let connecting = timeout(CONNECT_PATIENCE, PgConnection::connect_with(&options)).await;
    let mut first =
        connecting.map_err(|_| OpenError::NoAnswer { place: config.place() })?.map_err(failed)?;
    let wants_tls = config.tls != Tls::Off;
    let asking = async {
        // First: through such a pooler nothing else that is asked means anything.
        if pooling::is_shared(&mut first, &options).await? {
            return Ok(None);
        }
        Found::read(&mut first).await.map(Some)
    };
    let no_answer = |_| OpenError::NoAnswer { place: config.place() };
    let found = timeout(CONNECT_PATIENCE, asking).await.map_err(no_answer)?.map_err(failed)?;
    let found = found.ok_or(OpenError::Pooled)?;
    found.check(wants_tls)?;
    if config.create && found.standby {
        return Err(OpenError::Standby);
    }
    if config.create && found.read_only {
        return Err(OpenError::ReadOnlyPrimary);
    }
    if found.read_only && !found.standby {
        tracing::warn!("{}", OpenError::ReadOnlyPrimary);
    }
    if found.superuser {
        tracing::warn!(
            user = config.user,
            "the database role is a superuser: give this service one that only owns its database"
        );
    }
    migrate(&mut first, config, &found, migrates).await?;
    first.close().await.map_err(failed)?;
    let pool = PgPoolOptions::new()
        .max_connections(config.connections_max)
        .acquire_timeout(ACQUIRE_PATIENCE)
        .after_connect(move |connection, _| {
            Box::pin(async move {
                // The database may be another one by now, or have other settings.
                let found = Found::read(connection).await?;
                found.check(wants_tls).map_err(|refused| {
                    tracing::error!(%refused, "a connection to the database is refused");
                    sqlx::Error::Configuration(refused.into())
                })
            })
        });
    pool.connect_with(options).await.map_err(failed)
}

fn options(config: &Config) -> PgConnectOptions {
    let options = PgConnectOptions::new_without_pgpass()
        .host(&config.host)
        .port(config.port)
        .database(&config.database)
        .username(&config.user)
        .application_name("kms-server")
        .options(SESSION)
        .disable_statement_logging();
    let options = match &config.password {
        Some(password) => options.password(password.expose_password()),
        None => options,
    };
    match &config.tls {
        Tls::VerifyFull { ca } => options.ssl_mode(PgSslMode::VerifyFull).ssl_root_cert(ca),
        Tls::VerifyCa { ca } => options.ssl_mode(PgSslMode::VerifyCa).ssl_root_cert(ca),
        Tls::Off => options.ssl_mode(PgSslMode::Disable),
    }
}

/// The settings and the state that a connection finds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    synchronous_commit: String,
    fsync: String,
    full_page_writes: String,
    encoding: String,
    version: String,
    version_number: i64,
    encrypted: bool,
    superuser: bool,
    standby: bool,
    read_only: bool,
    /// In the order of [`SESSION`].
    session: Vec<String>,
}

impl Found {
    async fn read(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let query = "\
            SELECT current_setting('synchronous_commit') AS synchronous_commit, \
                current_setting('fsync') AS fsync, \
                current_setting('full_page_writes') AS full_page_writes, \
                current_setting('server_encoding') AS encoding, \
                current_setting('server_version') AS version, \
                current_setting('server_version_num')::bigint AS version_number, \
                coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false) \
                    AS encrypted, \
                coalesce((SELECT rolsuper FROM pg_roles WHERE rolname = current_user), false) \
                    AS superuser, \
                pg_is_in_recovery() AS standby, \
                current_setting('transaction_read_only')::bool AS read_only, \
                ARRAY(SELECT current_setting(name) FROM unnest($1::text[]) WITH ORDINALITY \
                    AS asked (name, at) ORDER BY at) AS session";
        let names: Vec<&str> = SESSION.iter().map(|(name, _)| *name).collect();
        Self::of(&sqlx::query(query).bind(names).fetch_one(connection).await?)
    }

    fn of(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            synchronous_commit: row.try_get("synchronous_commit")?,
            fsync: row.try_get("fsync")?,
            full_page_writes: row.try_get("full_page_writes")?,
            encoding: row.try_get("encoding")?,
            version: row.try_get("version")?,
            version_number: row.try_get("version_number")?,
            encrypted: row.try_get("encrypted")?,
            superuser: row.try_get("superuser")?,
            standby: row.try_get("standby")?,
            read_only: row.try_get("read_only")?,
            session: row.try_get("session")?,
        })
    }

    fn check(&self, wants_tls: bool) -> Result<(), OpenError> {
        if self.version_number / 10_000 < OLDEST_MAJOR {
            return Err(OpenError::OldServer { found: self.version.clone() });
        }
        if self.encoding != "UTF8" {
            return Err(OpenError::Encoding(self.encoding.clone()));
        }
        if wants_tls && !self.encrypted {
            return Err(OpenError::NotEncrypted);
        }
        for ((name, wanted), found) in SESSION.into_iter().zip(&self.session) {
            let is_moot = name.starts_with(KEEPALIVES) && found == "0";
            if found != wanted && !is_moot {
                return Err(OpenError::Session { name, wanted, found: found.clone() });
            }
        }
        let found = [&self.synchronous_commit, &self.fsync, &self.full_page_writes];
        for ((name, good, wanted), found) in REQUIRED.into_iter().zip(found) {
            if !good.contains(&found.as_str()) {
                return Err(OpenError::Setting { name, wanted, found: found.clone() });
            }
        }
        Ok(())
    }
}

/// Brings the schema to ours; refuses a newer one.
async fn migrate(
    connection: &mut PgConnection,
    config: &Config,
    found: &Found,
    may_change: bool,
) -> Result<(), OpenError> {
    let Found { standby, read_only, .. } = *found;
    let failed = |source| OpenError::Failed { place: config.place(), source };
    let found = schema_version(connection).await.map_err(failed)?;
    let newer = || OpenError::NewerSchema { found, known: MIGRATIONS.len() };
    match MIGRATIONS.get(usize::try_from(found).unwrap_or(usize::MAX)..).ok_or_else(newer)? {
        [] => return Ok(()),
        _missing => {}
    }
    if found == 0 && !config.create {
        return Err(OpenError::Missing { place: config.place() });
    }
    if !may_change {
        return Err(OpenError::OlderSchema { found, known: MIGRATIONS.len() });
    }
    if standby {
        return Err(OpenError::Standby);
    }
    if read_only {
        return Err(OpenError::ReadOnlyPrimary);
    }
    let mut change = connection.begin().await.map_err(failed)?;
    let lock = sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(MIGRATION_LOCK);
    lock.execute(&mut *change).await.map_err(failed)?;
    // Asked again: somebody else may have been here while this one waited.
    let done = schema_version(&mut change).await.map_err(failed)?;
    if done == 0 {
        let make = sqlx::raw_sql("CREATE SCHEMA ami_kms");
        make.execute(&mut *change).await.map_err(failed)?;
    }
    for migration in MIGRATIONS.iter().skip(usize::try_from(done).unwrap_or(usize::MAX)) {
        sqlx::raw_sql(*migration).execute(&mut *change).await.map_err(failed)?;
    }
    change.commit().await.map_err(failed)
}

/// 0: there is no schema.
async fn schema_version(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    // Of the catalogue's tables: functions such as to_regclass may answer from a cache that is older
    // than the lock that was waited for.
    let query = "SELECT EXISTS (SELECT FROM pg_catalog.pg_tables \
                 WHERE schemaname = 'ami_kms' AND tablename = 'schema_version')";
    if !sqlx::query_scalar::<_, bool>(query).fetch_one(&mut *connection).await? {
        return Ok(0);
    }
    sqlx::query_scalar("SELECT version FROM ami_kms.schema_version").fetch_one(connection).await
}

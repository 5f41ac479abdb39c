//! Whether a session is one: between us and the database may stand a pooler that gives the database's
//! sessions away between two transactions. Then what is set, locked, prepared or listened to in one
//! transaction is gone in the next, or somebody else's.

use std::collections::BTreeSet;

use sqlx::{Connection as _, PgConnection, postgres::PgConnectOptions};

/// The most rounds of asking: while others use the same pooler, the database's session that just came free
/// may go to one of them.
const ROUNDS: usize = 8;

/// Whether `first` shares its session of the database. A session of ours has one process at the server,
/// and nobody else has that.
pub(super) async fn is_shared(
    first: &mut PgConnection,
    options: &PgConnectOptions,
) -> Result<bool, sqlx::Error> {
    let mut second = PgConnection::connect_with(options).await?;
    let shared = compare(first, &mut second).await;
    // A failure here is of a connection that is of no more use.
    let _ = second.close().await;
    match shared {
        Err(error) if is_of_a_pooler(&error) => Ok(true),
        shared => shared,
    }
}

async fn compare(first: &mut PgConnection, second: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let mut firsts = BTreeSet::from([process(first).await?]);
    for _ in 0..ROUNDS {
        // Within a transaction the second one keeps what it got: what the first one had last, where
        // that is free.
        sqlx::raw_sql("BEGIN").execute(&mut *second).await?;
        let of_second = process(second).await?;
        firsts.insert(process(first).await?);
        sqlx::raw_sql("COMMIT").execute(&mut *second).await?;
        if firsts.len() > 1 || firsts.contains(&of_second) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The process at the server. Asked in plain text: a prepared statement might be in another one.
async fn process(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    let row = sqlx::raw_sql("SELECT pg_backend_pid()").fetch_one(connection).await?;
    sqlx::Row::try_get(&row, 0)
}

/// pgbouncer's answer to a transaction where it pools statements.
fn is_of_a_pooler(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.message().contains("statement pooling"))
}

//! Seals of former block secrets.

use async_trait::async_trait;
use sqlx::{Connection as _, PgConnection};

use super::{
    COMMIT_PATIENCE, PostgresStore, READ_PATIENCE,
    columns::{classify, number},
    failure::WriteError,
    patience::{let_go, within},
    written,
};
use crate::store::{
    StoreError,
    seals::{Retirement, SealStore},
};
use kms_core::BlockNo;

#[async_trait]
impl SealStore for PostgresStore {
    async fn former_seals(&self) -> Result<Vec<BlockNo>, StoreError> {
        let query = "SELECT DISTINCT seals.block FROM block_seals AS seals JOIN blocks USING (block) \
                     WHERE seals.secret_version < blocks.secret_version ORDER BY seals.block";
        let mut connection = self.pool.acquire().await.map_err(classify)?;
        let rows = async { sqlx::query(query).fetch_all(&mut *connection).await.map_err(classify) };
        let rows = within(READ_PATIENCE, rows).await;
        let_go(&mut connection, &rows);
        rows?.iter().map(|row| Ok(BlockNo(number(row, 0)?))).collect()
    }

    async fn retire_seals(&self, retirement: &Retirement) -> Result<bool, StoreError> {
        let mut connection = self.pool.acquire().await.map_err(classify)?;
        let mut done = false;
        let work = async {
            let mut whole = connection.begin().await?;
            done = retire(&mut whole, retirement).await?;
            match done {
                true => Ok(whole.commit().await?),
                false => Ok(whole.rollback().await?),
            }
        };
        let first = Some(retirement.block);
        let work = async { work.await.map_err(|error: WriteError| error.of_commit(first)) };
        let outcome = within(COMMIT_PATIENCE, work).await;
        written(&mut connection, outcome).await?;
        Ok(done)
    }
}

async fn retire(
    connection: &mut PgConnection,
    retirement: &Retirement,
) -> Result<bool, WriteError> {
    let Retirement { block, below, mark, floors } = retirement;
    if let Some((old, new)) = mark {
        let statement =
            "UPDATE counter_marks SET secret_version = $1, mac = $2 WHERE block = $3 AND mac = $4";
        let query = sqlx::query(statement).bind(i64::from(new.secret_version)).bind(&new.mac[..]);
        let query = query.bind(i64::from(block.0)).bind(&old.mac[..]);
        if query.execute(&mut *connection).await?.rows_affected() != 1 {
            return Ok(false);
        }
    }
    for (old, row) in floors {
        let statement = "UPDATE receive_floors SET mac = $1 WHERE block = $2 AND fingerprint = $3 \
                         AND originator = $4 AND node = $5 AND mac = $6";
        let query = sqlx::query(statement)
            .bind(&row.mac[..])
            .bind(i64::from(block.0))
            .bind(&row.line.fingerprint.0[..])
            .bind(&row.line.originator.as_bytes()[..])
            .bind(&row.node.0[..])
            .bind(&old[..]);
        if query.execute(&mut *connection).await?.rows_affected() != 1 {
            return Ok(false);
        }
    }
    let statement = "DELETE FROM block_seals WHERE block = $1 AND secret_version < $2";
    let query = sqlx::query(statement).bind(i64::from(block.0)).bind(i64::from(*below));
    query.execute(connection).await?;
    Ok(true)
}

//! Seals of former block secrets.

use async_trait::async_trait;
use sqlx::SqliteConnection;

use super::{
    SqliteStore,
    columns::{classify, number},
    failure::WriteError,
};
use crate::store::{
    StoreError,
    seals::{Retirement, SealStore},
};
use kms_core::BlockNo;

#[async_trait]
impl SealStore for SqliteStore {
    async fn former_seals(&self) -> Result<Vec<BlockNo>, StoreError> {
        let query = "SELECT DISTINCT seals.block FROM block_seals AS seals JOIN blocks USING (block) \
                     WHERE seals.secret_version < blocks.secret_version ORDER BY seals.block";
        let mut reader = self.reader().await?;
        let rows = sqlx::query(query).fetch_all(&mut *reader).await.map_err(classify)?;
        rows.iter().map(|row| Ok(BlockNo(number(row, 0)?))).collect()
    }

    async fn retire_seals(&self, retirement: &Retirement) -> Result<bool, StoreError> {
        let mut begun = self.begin().await?;
        match retire(&mut begun.writer.connection, retirement).await {
            Ok(true) => self.end(begun, Ok(())).await.map(|()| true),
            // Nothing of it, then.
            Ok(false) => {
                let moved = StoreError::Conflict(retirement.block);
                match self.end(begun, Err(moved.into())).await {
                    Ok(()) | Err(StoreError::Conflict(_)) => Ok(false),
                    Err(error) => Err(error),
                }
            }
            Err(error) => self.end(begun, Err(error)).await.map(|()| false),
        }
    }
}

async fn retire(
    connection: &mut SqliteConnection,
    retirement: &Retirement,
) -> Result<bool, WriteError> {
    let Retirement { block, below, mark, floors } = retirement;
    if let Some((old, new)) = mark {
        let statement =
            "UPDATE counter_marks SET secret_version = ?, mac = ? WHERE block = ? AND mac = ?";
        let query = sqlx::query(statement).bind(new.secret_version).bind(&new.mac[..]);
        let query = query.bind(block.0).bind(&old.mac[..]);
        if query.execute(&mut *connection).await?.rows_affected() != 1 {
            return Ok(false);
        }
    }
    for (old, row) in floors {
        let statement = "UPDATE receive_floors SET mac = ? WHERE block = ? AND fingerprint = ? \
                         AND originator = ? AND node = ? AND mac = ?";
        let query = sqlx::query(statement)
            .bind(&row.mac[..])
            .bind(block.0)
            .bind(&row.line.fingerprint.0[..])
            .bind(&row.line.originator.as_bytes()[..])
            .bind(&row.node.0[..])
            .bind(&old[..]);
        if query.execute(&mut *connection).await?.rows_affected() != 1 {
            return Ok(false);
        }
    }
    let statement = "DELETE FROM block_seals WHERE block = ? AND secret_version < ?";
    sqlx::query(statement).bind(block.0).bind(*below).execute(connection).await?;
    Ok(true)
}

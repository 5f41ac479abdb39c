//! The calls that wait for their second person.

use async_trait::async_trait;
use sqlx::postgres::PgRow;

use super::{
    PostgresStore, READ_PATIENCE,
    columns::{array, bytes, classify, number},
    patience::{let_go, within},
};
use crate::store::{
    ApprovalStore, ChainLink, StoreError,
    approvals::{ApprovalStep, READ_MAX, StoredApproval},
    work::Work,
};

const QUERY: &str = "SELECT name, number, expires_ms, body, signature FROM approvals \
                     ORDER BY expires_ms DESC, name LIMIT $1";

#[async_trait]
impl ApprovalStore for PostgresStore {
    async fn approvals(&self) -> Result<Vec<StoredApproval>, StoreError> {
        let mut connection = self.pool.acquire().await.map_err(classify)?;
        let read = async {
            let rows =
                sqlx::query(QUERY).bind(i64::from(READ_MAX)).fetch_all(&mut *connection).await;
            rows.map_err(classify)?.iter().map(approval).collect()
        };
        let outcome = within(READ_PATIENCE, read).await;
        let_go(&mut connection, &outcome);
        outcome
    }

    async fn put_approval(
        &self,
        step: &ApprovalStep,
        audit: ChainLink<'_>,
    ) -> Result<(), StoreError> {
        self.write(Work::PutApproval(step), audit).await
    }
}

fn approval(row: &PgRow) -> Result<StoredApproval, StoreError> {
    Ok(StoredApproval {
        name: array(row, 0)?,
        number: number(row, 1)?,
        expires_ms: number(row, 2)?,
        body: bytes(row, 3)?.to_vec(),
        signature: array(row, 4)?,
    })
}

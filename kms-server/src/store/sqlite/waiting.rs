//! The calls that wait for their second person.

use async_trait::async_trait;
use sqlx::sqlite::SqliteRow;

use super::{
    SqliteStore,
    columns::{array, bytes, classify, number},
};
use crate::store::{
    ApprovalStore, ChainLink, StoreError,
    approvals::{ApprovalStep, READ_MAX, StoredApproval},
    work::Work,
};

const QUERY: &str = "SELECT name, number, expires_ms, body, signature FROM approvals \
                     ORDER BY expires_ms DESC, name LIMIT ?";

#[async_trait]
impl ApprovalStore for SqliteStore {
    async fn approvals(&self) -> Result<Vec<StoredApproval>, StoreError> {
        let mut connection = self.reader().await?;
        let rows = sqlx::query(QUERY).bind(READ_MAX).fetch_all(&mut *connection).await;
        rows.map_err(classify)?.iter().map(approval).collect()
    }

    async fn put_approval(
        &self,
        step: &ApprovalStep,
        audit: ChainLink<'_>,
    ) -> Result<(), StoreError> {
        self.write(Work::PutApproval(step), audit).await
    }
}

fn approval(row: &SqliteRow) -> Result<StoredApproval, StoreError> {
    Ok(StoredApproval {
        name: array(row, 0)?,
        number: number(row, 1)?,
        expires_ms: number(row, 2)?,
        body: bytes(row, 3)?.to_vec(),
        signature: array(row, 4)?,
    })
}

//! The rows of calls that wait for their second person, as they change.

use sqlx::PgConnection;

use super::{columns::signed, failure::WriteError};
use crate::store::approvals::{ApprovalStep, StoredApproval};
use kms_core::{audit::Signature, two_people::CallName};

/// Does the step where the row is the expected one: of two servers, one.
pub(super) async fn put(
    connection: &mut PgConnection,
    step: &ApprovalStep,
) -> Result<(), WriteError> {
    // What another server clears away is not waited for.
    let over = "DELETE FROM approvals WHERE name IN (SELECT name FROM approvals \
                WHERE expires_ms < $1 AND name <> $2 FOR UPDATE SKIP LOCKED)";
    let over = sqlx::query(over).bind(signed(step.over_by_ms)?).bind(&step.name[..]);
    over.execute(&mut *connection).await?;
    let done = match (&step.before, &step.after) {
        (None, None) => true,
        (None, Some(row)) => insert(connection, row).await?,
        (Some(before), Some(row)) => {
            delete(connection, &step.name, before).await? && insert(connection, row).await?
        }
        (Some(before), None) => delete(connection, &step.name, before).await?,
    };
    if done { Ok(()) } else { Err(step.taken().into()) }
}

/// Of a site that is promoted: what two people agreed on while it wrote before, it asks for anew. Meanwhile the other
/// site wrote, and may have done it.
pub(super) async fn forget_all(connection: &mut PgConnection) -> Result<(), WriteError> {
    sqlx::query("DELETE FROM approvals").execute(connection).await?;
    Ok(())
}

async fn insert(connection: &mut PgConnection, row: &StoredApproval) -> Result<bool, WriteError> {
    let statement = "INSERT INTO approvals (name, number, expires_ms, body, signature) \
                     VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";
    let put = sqlx::query(statement)
        .bind(&row.name[..])
        .bind(signed(row.number)?)
        .bind(signed(row.expires_ms)?)
        .bind(&row.body)
        .bind(&row.signature[..]);
    Ok(put.execute(connection).await?.rows_affected() == 1)
}

async fn delete(
    connection: &mut PgConnection,
    name: &CallName,
    signature: &Signature,
) -> Result<bool, WriteError> {
    let statement = "DELETE FROM approvals WHERE name = $1 AND signature = $2";
    let gone = sqlx::query(statement).bind(&name[..]).bind(&signature[..]);
    Ok(gone.execute(connection).await?.rows_affected() == 1)
}

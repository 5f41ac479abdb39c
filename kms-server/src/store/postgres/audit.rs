//! The audit log's rows.

use sqlx::{PgConnection, postgres::PgRow};

use super::{
    columns::{array, bytes, classify, number, signed},
    failure::WriteError,
};
use crate::store::StoreError;
use kms_core::{
    audit::{ChainTip, Checkpoint, NodeId, StoredEvent},
    freshness::SignedHeadTable,
};

/// Writes `events` behind the end of their chain. [`crate::store::rules::check_audit`] has passed them.
pub(super) async fn append(
    connection: &mut PgConnection,
    expected: &ChainTip,
    events: &[StoredEvent],
) -> Result<(), WriteError> {
    const BEGIN: &str = "INSERT INTO audit_chains (node, sequence, hash) VALUES ($1, $2, $3) \
                         ON CONFLICT DO NOTHING";
    const MOVE: &str = "UPDATE audit_chains SET sequence = $2, hash = $3 \
                        WHERE node = $1 AND sequence = $4 AND hash = $5";
    const ADD: &str = "INSERT INTO audit_events (node, sequence, hash, body) \
                       SELECT $1, * FROM unnest($2::bigint[], $3::bytea[], $4::bytea[])";
    let Some(last) = events.last() else { return Ok(()) };
    let statement = if expected.sequence == 0 { BEGIN } else { MOVE };
    let mut end = sqlx::query(statement)
        .bind(&last.node.0[..])
        .bind(signed(last.sequence)?)
        .bind(&last.hash[..]);
    if expected.sequence > 0 {
        end = end.bind(signed(expected.sequence)?).bind(&expected.hash[..]);
    }
    let moved = end.execute(&mut *connection).await.map_err(WriteError::Audit)?;
    if moved.rows_affected() != 1 {
        return Err(StoreError::AuditMoved(expected.node).into());
    }
    let numbers: Vec<i64> =
        events.iter().map(|event| signed(event.sequence)).collect::<Result<_, _>>()?;
    sqlx::query(ADD)
        .bind(&last.node.0[..])
        .bind(numbers)
        .bind(events.iter().map(|event| &event.hash[..]).collect::<Vec<_>>())
        .bind(events.iter().map(|event| &event.body[..]).collect::<Vec<_>>())
        .execute(connection)
        .await
        .map_err(WriteError::Audit)?;
    Ok(())
}

pub(super) async fn add_checkpoint(
    connection: &mut PgConnection,
    checkpoint: &Checkpoint,
) -> Result<(), StoreError> {
    let Checkpoint { tip, at_ms, signature } = checkpoint;
    let statement = "INSERT INTO audit_checkpoints (node, sequence, hash, at_ms, signature) \
                     VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";
    sqlx::query(statement)
        .bind(&tip.node.0[..])
        .bind(signed(tip.sequence)?)
        .bind(&tip.hash[..])
        .bind(signed(*at_ms)?)
        .bind(&signature[..])
        .execute(connection)
        .await
        .map_err(classify)?;
    Ok(())
}

pub(super) async fn chains(connection: &mut PgConnection) -> Result<Vec<ChainTip>, StoreError> {
    let query = "SELECT node, sequence, hash FROM audit_chains ORDER BY node";
    let rows = sqlx::query(query).fetch_all(connection).await.map_err(classify)?;
    rows.iter()
        .map(|row| {
            Ok(ChainTip {
                node: NodeId(array(row, 0)?),
                sequence: number(row, 1)?,
                hash: array(row, 2)?,
            })
        })
        .collect()
}

pub(super) async fn events(
    connection: &mut PgConnection,
    node: &NodeId,
    after: u64,
    limit: u32,
) -> Result<Vec<StoredEvent>, StoreError> {
    let query = "SELECT sequence, hash, body FROM audit_events \
                 WHERE node = $1 AND sequence > $2 ORDER BY sequence LIMIT $3";
    let rows = page(connection, query, node, after, limit).await?;
    rows.iter()
        .map(|row| {
            Ok(StoredEvent {
                node: *node,
                sequence: number(row, 0)?,
                hash: array(row, 1)?,
                body: bytes(row, 2)?.to_vec(),
            })
        })
        .collect()
}

pub(super) async fn checkpoints(
    connection: &mut PgConnection,
    node: &NodeId,
    after: u64,
    limit: u32,
) -> Result<Vec<Checkpoint>, StoreError> {
    let query = "SELECT sequence, hash, at_ms, signature FROM audit_checkpoints \
                 WHERE node = $1 AND sequence > $2 ORDER BY sequence LIMIT $3";
    let rows = page(connection, query, node, after, limit).await?;
    rows.iter().map(|row| checkpoint(node, row)).collect()
}

pub(super) async fn last_checkpoint(
    connection: &mut PgConnection,
    node: &NodeId,
) -> Result<Option<Checkpoint>, StoreError> {
    let query = "SELECT sequence, hash, at_ms, signature FROM audit_checkpoints \
                 WHERE node = $1 ORDER BY sequence DESC LIMIT 1";
    let row = sqlx::query(query).bind(&node.0[..]).fetch_optional(connection).await;
    row.map_err(classify)?.map(|row| checkpoint(node, &row)).transpose()
}

async fn page(
    connection: &mut PgConnection,
    query: &'static str,
    node: &NodeId,
    after: u64,
    limit: u32,
) -> Result<Vec<PgRow>, StoreError> {
    sqlx::query(query)
        .bind(&node.0[..])
        .bind(i64::try_from(after).unwrap_or(i64::MAX))
        .bind(i64::from(limit))
        .fetch_all(connection)
        .await
        .map_err(classify)
}

fn checkpoint(node: &NodeId, row: &PgRow) -> Result<Checkpoint, StoreError> {
    Ok(Checkpoint {
        tip: ChainTip { node: *node, sequence: number(row, 0)?, hash: array(row, 1)? },
        at_ms: number(row, 2)?,
        signature: array(row, 3)?,
    })
}

pub(super) async fn head_table(
    connection: &mut PgConnection,
) -> Result<Option<SignedHeadTable>, StoreError> {
    let query = "SELECT number, body, signature FROM head_table";
    let row = sqlx::query(query).fetch_optional(connection).await.map_err(classify)?;
    row.map(|row| {
        Ok(SignedHeadTable {
            number: number(&row, 0)?,
            body: bytes(&row, 1)?.to_vec(),
            signature: array(&row, 2)?,
        })
    })
    .transpose()
}

pub(super) async fn put_head_table(
    connection: &mut PgConnection,
    expected: Option<u64>,
    table: &SignedHeadTable,
) -> Result<bool, StoreError> {
    let statement = match expected {
        None => {
            "INSERT INTO head_table (number, body, signature) VALUES ($1, $2, $3) \
             ON CONFLICT DO NOTHING"
        }
        Some(_) => "UPDATE head_table SET number = $1, body = $2, signature = $3 WHERE number = $4",
    };
    let mut put = sqlx::query(statement)
        .bind(signed(table.number)?)
        .bind(&table.body)
        .bind(&table.signature[..]);
    if let Some(expected) = expected {
        put = put.bind(signed(expected)?);
    }
    Ok(put.execute(connection).await.map_err(classify)?.rows_affected() == 1)
}

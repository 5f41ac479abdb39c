//! The audit log's rows.

use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::{
    columns::{array, bytes, classify, number, signed},
    failure::WriteError,
    pieces::pieces,
};
use crate::store::StoreError;
use kms_core::{
    audit::{ChainTip, Checkpoint, NodeId, StoredEvent},
    freshness::SignedHeadTable,
};

/// Writes `events` behind the end of their chain. [`crate::store::rules::check_audit`] has passed them.
pub(super) async fn append(
    connection: &mut SqliteConnection,
    expected: &ChainTip,
    events: &[StoredEvent],
) -> Result<(), WriteError> {
    let Some(last) = events.last() else { return Ok(()) };
    let moved = if expected.sequence == 0 {
        sqlx::query(
            "INSERT INTO audit_chains (node, sequence, hash) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(&last.node.0[..])
        .bind(signed(last.sequence)?)
        .bind(&last.hash[..])
        .execute(&mut *connection)
        .await
    } else {
        sqlx::query(
            "UPDATE audit_chains SET sequence = ?, hash = ? \
             WHERE node = ? AND sequence = ? AND hash = ?",
        )
        .bind(signed(last.sequence)?)
        .bind(&last.hash[..])
        .bind(&last.node.0[..])
        .bind(signed(expected.sequence)?)
        .bind(&expected.hash[..])
        .execute(&mut *connection)
        .await
    };
    if moved.map_err(WriteError::Audit)?.rows_affected() != 1 {
        return Err(StoreError::AuditMoved(expected.node).into());
    }
    for piece in pieces(events) {
        let mut statement =
            QueryBuilder::<Sqlite>::new("INSERT INTO audit_events (node, sequence, hash, body) ");
        statement.push_values(piece, |mut row, event| {
            row.push_bind(&event.node.0[..])
                .push_bind(event.sequence as i64) // `signed`, above: the last is the highest.
                .push_bind(&event.hash[..])
                .push_bind(&event.body);
        });
        statement.build().execute(&mut *connection).await.map_err(WriteError::Audit)?;
    }
    Ok(())
}

pub(super) async fn add_checkpoint(
    connection: &mut SqliteConnection,
    checkpoint: &Checkpoint,
) -> Result<(), WriteError> {
    let Checkpoint { tip, at_ms, signature } = checkpoint;
    let statement = "INSERT INTO audit_checkpoints (node, sequence, hash, at_ms, signature) \
                     VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING";
    sqlx::query(statement)
        .bind(&tip.node.0[..])
        .bind(signed(tip.sequence)?)
        .bind(&tip.hash[..])
        .bind(signed(*at_ms)?)
        .bind(&signature[..])
        .execute(connection)
        .await
        .map_err(WriteError::Audit)?;
    Ok(())
}

pub(super) async fn chains(connection: &mut SqliteConnection) -> Result<Vec<ChainTip>, StoreError> {
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
    connection: &mut SqliteConnection,
    node: &NodeId,
    after: u64,
    limit: u32,
) -> Result<Vec<StoredEvent>, StoreError> {
    let query = "SELECT sequence, hash, body FROM audit_events \
                 WHERE node = ? AND sequence > ? ORDER BY sequence LIMIT ?";
    let rows = sqlx::query(query)
        .bind(&node.0[..])
        .bind(i64::try_from(after).unwrap_or(i64::MAX))
        .bind(limit)
        .fetch_all(connection)
        .await
        .map_err(classify)?;
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
    connection: &mut SqliteConnection,
    node: &NodeId,
    after: u64,
    limit: u32,
) -> Result<Vec<Checkpoint>, StoreError> {
    let query = "SELECT sequence, hash, at_ms, signature FROM audit_checkpoints \
                 WHERE node = ? AND sequence > ? ORDER BY sequence LIMIT ?";
    let rows = sqlx::query(query)
        .bind(&node.0[..])
        .bind(i64::try_from(after).unwrap_or(i64::MAX))
        .bind(limit)
        .fetch_all(connection)
        .await
        .map_err(classify)?;
    rows.iter().map(|row| checkpoint(node, row)).collect()
}

pub(super) async fn last_checkpoint(
    connection: &mut SqliteConnection,
    node: &NodeId,
) -> Result<Option<Checkpoint>, StoreError> {
    let query = "SELECT sequence, hash, at_ms, signature FROM audit_checkpoints \
                 WHERE node = ? ORDER BY sequence DESC LIMIT 1";
    let row = sqlx::query(query).bind(&node.0[..]).fetch_optional(connection).await;
    row.map_err(classify)?.map(|row| checkpoint(node, &row)).transpose()
}

fn checkpoint(node: &NodeId, row: &sqlx::sqlite::SqliteRow) -> Result<Checkpoint, StoreError> {
    Ok(Checkpoint {
        tip: ChainTip { node: *node, sequence: number(row, 0)?, hash: array(row, 1)? },
        at_ms: number(row, 2)?,
        signature: array(row, 3)?,
    })
}

pub(super) async fn head_table(
    connection: &mut SqliteConnection,
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
    connection: &mut SqliteConnection,
    expected: Option<u64>,
    table: &SignedHeadTable,
) -> Result<bool, WriteError> {
    let statement = match expected {
        None => {
            "INSERT INTO head_table (one, number, body, signature) VALUES (1, ?, ?, ?) \
             ON CONFLICT DO NOTHING"
        }
        Some(_) => "UPDATE head_table SET number = ?, body = ?, signature = ? WHERE number = ?",
    };
    let mut put = sqlx::query(statement)
        .bind(signed(table.number)?)
        .bind(&table.body)
        .bind(&table.signature[..]);
    if let Some(expected) = expected {
        put = put.bind(signed(expected)?);
    }
    Ok(put.execute(connection).await.map_err(WriteError::Audit)?.rows_affected() == 1)
}

//! The rows of the other site's audit chains.

use async_trait::async_trait;
use sqlx::{QueryBuilder, Row as _, Sqlite, SqliteConnection, sqlite::SqliteRow};

use super::{
    SqliteStore,
    columns::{array, bytes, classify, number, signed},
    failure::WriteError,
    pieces::pieces,
};
use crate::store::{StoreError, peer_audit::PeerAuditStore};
use kms_core::{
    Epoch,
    audit::{
        ChainTip, Checkpoint, NodeId, StoredEvent,
        copying::{Copied, Piece},
    },
};

#[async_trait]
impl PeerAuditStore for SqliteStore {
    async fn peer_chains(&self, site: &str) -> Result<Vec<Copied>, StoreError> {
        let query = "SELECT node, sequence, hash, signed, broken_in FROM peer_audit_chains \
                     WHERE site = ? ORDER BY node";
        let mut connection = self.reader().await?;
        let rows = sqlx::query(query).bind(site).fetch_all(&mut *connection).await;
        rows.map_err(classify)?.iter().map(copied).collect()
    }

    async fn peer_events(
        &self,
        node: &NodeId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        let query = "SELECT sequence, hash, body FROM peer_audit_events \
                     WHERE node = ? AND sequence > ? ORDER BY sequence LIMIT ?";
        let rows = page(self, query, node, (after, limit)).await?;
        let event = |row: &SqliteRow| {
            let (sequence, hash) = (number(row, 0)?, array(row, 1)?);
            Ok(StoredEvent { node: *node, sequence, hash, body: bytes(row, 2)?.to_vec() })
        };
        rows.iter().map(event).collect()
    }

    async fn peer_checkpoints(
        &self,
        node: &NodeId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<Checkpoint>, StoreError> {
        let query = "SELECT sequence, hash, at_ms, signature FROM peer_audit_checkpoints \
                     WHERE node = ? AND sequence > ? ORDER BY sequence LIMIT ?";
        let rows = page(self, query, node, (after, limit)).await?;
        let head = |row: &SqliteRow| {
            let tip = ChainTip { node: *node, sequence: number(row, 0)?, hash: array(row, 1)? };
            Ok(Checkpoint { tip, at_ms: number(row, 2)?, signature: array(row, 3)? })
        };
        rows.iter().map(head).collect()
    }

    async fn append_peer_audit(
        &self,
        site: &str,
        step: (&Copied, &Copied),
        piece: &Piece,
    ) -> Result<bool, StoreError> {
        let mut begun = self.begin().await?;
        let put = append(&mut begun.writer.connection, site, step, piece).await;
        let (done, outcome) = put.map_or_else(|error| (false, Err(error)), |done| (done, Ok(())));
        self.end(begun, outcome).await?;
        Ok(done)
    }

    async fn note_peer_audit_broken(&self, node: &NodeId, epoch: Epoch) -> Result<(), StoreError> {
        let mut begun = self.begin().await?;
        let outcome = note_broken(&mut begun.writer.connection, node, epoch).await;
        self.end(begun, outcome).await
    }
}

fn copied(row: &SqliteRow) -> Result<Copied, StoreError> {
    let node = NodeId(array(row, 0)?);
    let is_whole: Option<i64> = row.try_get(4).map_err(classify)?;
    let broken_in = is_whole.map(|_| number(row, 4).map(Epoch)).transpose()?;
    let tip = ChainTip { node, sequence: number(row, 1)?, hash: array(row, 2)? };
    Ok(Copied { tip, signed: number(row, 3)?, broken_in })
}

async fn page(
    store: &SqliteStore,
    query: &'static str,
    node: &NodeId,
    (after, limit): (u64, u32),
) -> Result<Vec<SqliteRow>, StoreError> {
    let mut connection = store.reader().await?;
    let rows = sqlx::query(query)
        .bind(&node.0[..])
        .bind(i64::try_from(after).unwrap_or(i64::MAX))
        .bind(limit)
        .fetch_all(&mut *connection)
        .await;
    rows.map_err(classify)
}

async fn append(
    connection: &mut SqliteConnection,
    site: &str,
    (from, to): (&Copied, &Copied),
    piece: &Piece,
) -> Result<bool, WriteError> {
    if !go_on(connection, site, (from, to)).await? {
        return Ok(false);
    }
    for events in pieces(&piece.events) {
        let mut statement = QueryBuilder::<Sqlite>::new(
            "INSERT INTO peer_audit_events (node, sequence, hash, body) ",
        );
        statement.push_values(events, |mut row, event| {
            row.push_bind(&event.node.0[..])
                .push_bind(event.sequence as i64) // Below the copy's end, which fits.
                .push_bind(&event.hash[..])
                .push_bind(&event.body);
        });
        statement.build().execute(&mut *connection).await?;
    }
    for Checkpoint { tip, at_ms, signature } in &piece.heads {
        let statement = "INSERT INTO peer_audit_checkpoints (node, sequence, hash, at_ms, signature) \
                         VALUES (?, ?, ?, ?, ?)";
        let put = sqlx::query(statement)
            .bind(&tip.node.0[..])
            .bind(signed(tip.sequence)?)
            .bind(&tip.hash[..])
            .bind(signed(*at_ms)?)
            .bind(&signature[..]);
        put.execute(&mut *connection).await?;
    }
    Ok(true)
}

/// Moves the copy's end, if it is still where the step begins.
async fn go_on(
    connection: &mut SqliteConnection,
    site: &str,
    (from, to): (&Copied, &Copied),
) -> Result<bool, WriteError> {
    let moved = if from.tip.sequence == 0 {
        sqlx::query(
            "INSERT INTO peer_audit_chains (node, site, sequence, hash, signed) \
             VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(&to.tip.node.0[..])
        .bind(site)
        .bind(signed(to.tip.sequence)?)
        .bind(&to.tip.hash[..])
        .bind(signed(to.signed)?)
    } else {
        sqlx::query(
            "UPDATE peer_audit_chains SET sequence = ?, hash = ?, signed = ? \
             WHERE node = ? AND site = ? AND sequence = ? AND signed = ?",
        )
        .bind(signed(to.tip.sequence)?)
        .bind(&to.tip.hash[..])
        .bind(signed(to.signed)?)
        .bind(&to.tip.node.0[..])
        .bind(site)
        .bind(signed(from.tip.sequence)?)
        .bind(signed(from.signed)?)
    };
    Ok(moved.execute(connection).await?.rows_affected() == 1)
}

async fn note_broken(
    connection: &mut SqliteConnection,
    node: &NodeId,
    epoch: Epoch,
) -> Result<(), WriteError> {
    let statement =
        "UPDATE peer_audit_chains SET broken_in = ? WHERE node = ? AND broken_in IS NULL";
    let noted = sqlx::query(statement).bind(signed(epoch.0)?).bind(&node.0[..]);
    noted.execute(connection).await?;
    Ok(())
}

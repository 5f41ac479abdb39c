//! The rows of the other site's audit chains.

use async_trait::async_trait;
use sqlx::{Connection as _, PgConnection, Row as _, postgres::PgRow};

use super::{
    COMMIT_PATIENCE, PostgresStore, READ_PATIENCE,
    columns::{array, bytes, classify, number, signed},
    failure::WriteError,
    patience::{let_go, within},
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
impl PeerAuditStore for PostgresStore {
    async fn peer_chains(&self, site: &str) -> Result<Vec<Copied>, StoreError> {
        let query = "SELECT node, sequence, hash, signed, broken_in FROM peer_audit_chains \
                     WHERE site = $1 ORDER BY node";
        let mut connection = self.pool.acquire().await.map_err(classify)?;
        let read = async {
            let rows = sqlx::query(query).bind(site).fetch_all(&mut *connection).await;
            rows.map_err(classify)?.iter().map(copied).collect()
        };
        let outcome = within(READ_PATIENCE, read).await;
        let_go(&mut connection, &outcome);
        outcome
    }

    async fn peer_events(
        &self,
        node: &NodeId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        let query = "SELECT sequence, hash, body FROM peer_audit_events \
                     WHERE node = $1 AND sequence > $2 ORDER BY sequence LIMIT $3";
        let rows = page(self, query, node, (after, limit)).await?;
        let event = |row: &PgRow| {
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
                     WHERE node = $1 AND sequence > $2 ORDER BY sequence LIMIT $3";
        let rows = page(self, query, node, (after, limit)).await?;
        let head = |row: &PgRow| {
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
        let mut connection = self.pool.acquire().await.map_err(classify)?;
        let work = async {
            let mut whole = connection.begin().await?;
            let done = append(&mut whole, site, step, piece).await?;
            // One that wrote nothing ends as one that did.
            whole.commit().await?;
            Ok(done)
        };
        let work = async { work.await.map_err(|error: WriteError| error.of_commit(None)) };
        let outcome = within(COMMIT_PATIENCE, work).await;
        let_go(&mut connection, &outcome);
        outcome
    }

    async fn note_peer_audit_broken(&self, node: &NodeId, epoch: Epoch) -> Result<(), StoreError> {
        let statement =
            "UPDATE peer_audit_chains SET broken_in = $1 WHERE node = $2 AND broken_in IS NULL";
        let mut connection = self.pool.acquire().await.map_err(classify)?;
        let number = signed(epoch.0)?;
        let work = async {
            let noted = sqlx::query(statement).bind(number).bind(&node.0[..]);
            noted.execute(&mut *connection).await.map(drop).map_err(classify)
        };
        let outcome = within(COMMIT_PATIENCE, work).await;
        let_go(&mut connection, &outcome);
        outcome
    }
}

fn copied(row: &PgRow) -> Result<Copied, StoreError> {
    let node = NodeId(array(row, 0)?);
    let is_whole: Option<i64> = row.try_get(4).map_err(classify)?;
    let broken_in = is_whole.map(|_| number(row, 4).map(Epoch)).transpose()?;
    let tip = ChainTip { node, sequence: number(row, 1)?, hash: array(row, 2)? };
    Ok(Copied { tip, signed: number(row, 3)?, broken_in })
}

async fn page(
    store: &PostgresStore,
    query: &'static str,
    node: &NodeId,
    (after, limit): (u64, u32),
) -> Result<Vec<PgRow>, StoreError> {
    let mut connection = store.pool.acquire().await.map_err(classify)?;
    let read = async {
        let rows = sqlx::query(query)
            .bind(&node.0[..])
            .bind(i64::try_from(after).unwrap_or(i64::MAX))
            .bind(i64::from(limit))
            .fetch_all(&mut *connection)
            .await;
        rows.map_err(classify)
    };
    let outcome = within(READ_PATIENCE, read).await;
    let_go(&mut connection, &outcome);
    outcome
}

async fn append(
    connection: &mut PgConnection,
    site: &str,
    (from, to): (&Copied, &Copied),
    piece: &Piece,
) -> Result<bool, WriteError> {
    const EVENTS: &str = "INSERT INTO peer_audit_events (node, sequence, hash, body) \
                          SELECT $1, * FROM unnest($2::bigint[], $3::bytea[], $4::bytea[])";
    const HEAD: &str = "INSERT INTO peer_audit_checkpoints (node, sequence, hash, at_ms, signature) \
                        VALUES ($1, $2, $3, $4, $5)";
    if !go_on(connection, site, (from, to)).await? {
        return Ok(false);
    }
    let numbers = piece.events.iter().map(|event| signed(event.sequence));
    let numbers: Vec<i64> = numbers.collect::<Result<_, _>>()?;
    sqlx::query(EVENTS)
        .bind(&to.tip.node.0[..])
        .bind(numbers)
        .bind(piece.events.iter().map(|event| &event.hash[..]).collect::<Vec<_>>())
        .bind(piece.events.iter().map(|event| &event.body[..]).collect::<Vec<_>>())
        .execute(&mut *connection)
        .await?;
    for Checkpoint { tip, at_ms, signature } in &piece.heads {
        let put = sqlx::query(HEAD)
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
    connection: &mut PgConnection,
    site: &str,
    (from, to): (&Copied, &Copied),
) -> Result<bool, WriteError> {
    let moved = if from.tip.sequence == 0 {
        sqlx::query(
            "INSERT INTO peer_audit_chains (node, site, sequence, hash, signed) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
        )
        .bind(&to.tip.node.0[..])
        .bind(site)
        .bind(signed(to.tip.sequence)?)
        .bind(&to.tip.hash[..])
        .bind(signed(to.signed)?)
    } else {
        sqlx::query(
            "UPDATE peer_audit_chains SET sequence = $1, hash = $2, signed = $3 \
             WHERE node = $4 AND site = $5 AND sequence = $6 AND signed = $7",
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

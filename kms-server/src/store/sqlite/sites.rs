//! The other sites: who they are, what is taken over from them, and what was set aside then.

use std::collections::BTreeMap;

use sqlx::{QueryBuilder, Row as _, Sqlite, SqliteConnection, sqlite::SqliteRow};

use super::{
    columns::{array, bounded, bytes, classify, head, head_columns, number, record, signed, text},
    failure::WriteError,
    index,
    pieces::pieces,
    role, rows,
};
use crate::store::{
    StoreError, indexing, rules,
    sites::{BlockAdoption, Decided, DivergenceAsked, Divergent, PEER_ROW, PeerStep},
};
use kms_core::{
    BlockNo, Head, Position, RecordKey, StoredRecord,
    site::peer::{Peer, SignedPeer},
};

pub(super) async fn peers(
    connection: &mut SqliteConnection,
) -> Result<Vec<SignedPeer>, StoreError> {
    let query = "SELECT body, signature FROM peers ORDER BY site";
    let rows = sqlx::query(query).fetch_all(connection).await.map_err(classify)?;
    let damaged = |_| StoreError::Damaged("a peer's record can't be read".to_owned());
    rows.iter()
        .map(|row| {
            let peer = Peer::decode(bytes(row, 0)?).map_err(damaged)?;
            Ok(SignedPeer { peer, signature: array(row, 1)? })
        })
        .collect()
}

/// In the place of the row that it was made from, and of no other.
pub(super) async fn put_peer(
    connection: &mut SqliteConnection,
    PeerStep { expected, now: SignedPeer { peer, signature } }: &PeerStep,
) -> Result<(), WriteError> {
    let statement = match expected {
        None => "INSERT INTO peers (site, body, signature) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        Some(_) => "UPDATE peers SET body = ?2, signature = ?3 WHERE site = ?1 AND signature = ?4",
    };
    let query = sqlx::query(statement).bind(&peer.site).bind(peer.message()).bind(&signature[..]);
    let query = match expected {
        None => query,
        Some(expected) => query.bind(&expected[..]),
    };
    if query.execute(connection).await?.rows_affected() == 1 {
        return Ok(());
    }
    Err(StoreError::Taken { what: PEER_ROW, value: peer.site.clone() }.into())
}

/// Applies `adoptions`, which [`crate::store::rules::check_adoptions`] has passed. `at_ms`: now.
pub(super) async fn adopt(
    connection: &mut SqliteConnection,
    adoptions: &[BlockAdoption],
    at_ms: u64,
) -> Result<(), WriteError> {
    let heads: Vec<&Head> = adoptions.iter().map(|adoption| &adoption.head).collect();
    role::check_adopter(connection, heads.iter().copied()).await?;
    let counts = counts_of_expected(connection, adoptions).await?;
    let outcome = indexing::adopted(adoptions);
    let gone = indexing::gone(adoptions);
    rows::check_counts(connection, &heads, counts, &outcome, &gone).await?;
    rows::put_heads(connection, &heads).await?;
    let seals = adoptions.iter().map(|adoption| (adoption.head.block, &adoption.seals[..]));
    rows::add_seals(connection, seals).await?;
    remove_records(connection, &gone).await?;
    rows::put_records(connection, &outcome).await?;
    index::adopt(connection, adoptions).await?;
    set_aside(connection, adoptions, at_ms).await
}

/// The record counts of the blocks as they stand; `Conflict` if one is not in the state that its adoption
/// was made for.
async fn counts_of_expected(
    connection: &mut SqliteConnection,
    adoptions: &[BlockAdoption],
) -> Result<BTreeMap<BlockNo, u64>, WriteError> {
    let mut found = BTreeMap::new();
    for piece in pieces(adoptions) {
        let mut query = QueryBuilder::<Sqlite>::new(concat!(
            "SELECT ",
            head_columns!(),
            " FROM blocks WHERE block IN ("
        ));
        let mut list = query.separated(", ");
        for adoption in piece {
            list.push_bind(adoption.head.block.0);
        }
        query.push(")");
        for row in query.build().fetch_all(&mut *connection).await? {
            let head = head(&row)?;
            found.insert(head.block, head);
        }
    }
    Ok(rules::counts_of_expected(adoptions, &found)?)
}

async fn remove_records(
    connection: &mut SqliteConnection,
    gone: &[(BlockNo, RecordKey)],
) -> Result<(), WriteError> {
    for piece in pieces(gone) {
        let mut statement =
            QueryBuilder::<Sqlite>::new("DELETE FROM records WHERE (block, key) IN (");
        statement.push_values(piece, |mut row, (block, key)| {
            row.push_bind(block.0).push_bind(key.as_bytes());
        });
        statement.push(")").build().execute(&mut *connection).await?;
    }
    Ok(())
}

/// Keeps what this site wrote and the peer never had.
async fn set_aside(
    connection: &mut SqliteConnection,
    adoptions: &[BlockAdoption],
    at_ms: u64,
) -> Result<(), WriteError> {
    if adoptions.iter().all(|adoption| adoption.set_aside.is_empty()) {
        return Ok(());
    }
    let row = sqlx::query("SELECT site FROM domain").fetch_one(&mut *connection).await?;
    let site = text(&row, 0)?.to_owned();
    put_divergence(connection, &indexing::divergent(adoptions, &site, at_ms)).await
}

/// What is known already stays as it is, except that a decision comes to it.
pub(super) async fn put_divergence(
    connection: &mut SqliteConnection,
    divergent: &[Divergent],
) -> Result<(), WriteError> {
    for one in divergent {
        let decided_ms = one.decided.as_ref().map_or(0, |decided| decided.at_ms);
        let Position { epoch, sequence } = one.record.position;
        signed(epoch.0.max(sequence.0).max(one.at_ms).max(decided_ms))?;
    }
    for piece in pieces(divergent) {
        let mut statement = QueryBuilder::<Sqlite>::new(
            "INSERT INTO divergence (block, key, epoch, sequence, secret_version, mac, body, site, \
             at_ms, resolution, decided_ms, decided_by) ",
        );
        statement.push_values(piece, |mut row, one| {
            let Divergent { block, record, site, at_ms, decided } = one;
            row.push_bind(block.0)
                .push_bind(record.key.as_bytes())
                .push_bind(record.position.epoch.0 as i64) // `signed`, above.
                .push_bind(record.position.sequence.0 as i64)
                .push_bind(record.secret_version)
                .push_bind(&record.mac[..])
                .push_bind(&record.body)
                .push_bind(site)
                .push_bind(*at_ms as i64)
                .push_bind(decided.as_ref().map(|decided| decided.resolution as u8))
                .push_bind(decided.as_ref().map(|decided| decided.at_ms as i64))
                .push_bind(decided.as_ref().map(|decided| decided.by.as_str()));
        });
        // What comes first counts. The right sides see the row as it was.
        statement.push(
            " ON CONFLICT (block, key, epoch, sequence, mac) DO UPDATE \
             SET resolution = coalesce(divergence.resolution, excluded.resolution), \
             decided_ms = CASE WHEN divergence.resolution IS NULL THEN excluded.decided_ms \
             ELSE divergence.decided_ms END, \
             decided_by = CASE WHEN divergence.resolution IS NULL THEN excluded.decided_by \
             ELSE divergence.decided_by END",
        );
        statement.build().execute(&mut *connection).await?;
    }
    Ok(())
}

pub(super) async fn divergence(
    connection: &mut SqliteConnection,
    asked: DivergenceAsked,
) -> Result<Vec<Divergent>, StoreError> {
    let query = "SELECT key, epoch, sequence, secret_version, mac, body, block, site, at_ms, \
                 resolution, decided_ms, decided_by FROM divergence \
                 WHERE (block, key, epoch, sequence, mac) > (?, ?, ?, ?, ?) \
                 AND (? IS NULL OR block = ?) AND (NOT ? OR resolution IS NULL) \
                 ORDER BY block, key, epoch, sequence, mac LIMIT ?";
    let DivergenceAsked { after, block, undecided, limit } = asked;
    let before = block.map_or(-1, |block| i64::from(block.0) - 1);
    let (from, key, at, mac) = match &after {
        Some(it) => (i64::from(it.block.0), it.key.as_bytes(), it.position, &it.mac[..]),
        None => (before, &[][..], Position::default(), &[][..]),
    };
    let block = block.map(|block| block.0);
    let rows = sqlx::query(query)
        .bind(from)
        .bind(key)
        .bind(bounded(at.epoch.0))
        .bind(bounded(at.sequence.0))
        .bind(mac)
        .bind(block)
        .bind(block)
        .bind(undecided)
        .bind(limit)
        .fetch_all(connection)
        .await
        .map_err(classify)?;
    rows.iter().map(divergent).collect()
}

pub(super) async fn count_undecided(connection: &mut SqliteConnection) -> Result<u64, StoreError> {
    let query = "SELECT count(*) FROM divergence WHERE resolution IS NULL";
    let row = sqlx::query(query).fetch_one(connection).await.map_err(classify)?;
    number(&row, 0)
}

pub(super) async fn count_undecided_of(
    connection: &mut SqliteConnection,
    site: &str,
) -> Result<u64, StoreError> {
    let query = "SELECT count(*) FROM divergence WHERE resolution IS NULL AND site = ?";
    let row = sqlx::query(query).bind(site).fetch_one(connection).await.map_err(classify)?;
    number(&row, 0)
}

fn divergent(row: &SqliteRow) -> Result<Divergent, StoreError> {
    let record: StoredRecord = record(row)?;
    let decided = (
        row.try_get(9).map_err(classify)?,
        row.try_get(10).map_err(classify)?,
        row.try_get(11).map_err(classify)?,
    );
    Ok(Divergent {
        block: BlockNo(number(row, 6)?),
        record,
        site: text(row, 7)?.to_owned(),
        at_ms: number(row, 8)?,
        decided: Decided::kept(decided)?,
    })
}

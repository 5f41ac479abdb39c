//! The other sites: who they are, what is taken over from them, and what was set aside then.

use std::collections::BTreeMap;

use sqlx::{PgConnection, Row as _, postgres::PgRow};

use super::{
    columns::{array, bounded, bytes, classify, head, number, position, record_key, signed, text},
    failure::WriteError,
    index,
    read::{self, part},
    role,
    rows::{self, UPDATE_HEADS},
};
use crate::store::{
    StoreError, indexing, rules,
    sites::{BlockAdoption, BlockChanges, Decided, DivergenceAsked, Divergent, PEER_ROW, PeerStep},
};
use kms_core::{
    BlockNo, Head, Position, RecordKey, StoredRecord,
    site::peer::{Peer, SignedPeer},
};

pub(super) async fn peers(connection: &mut PgConnection) -> Result<Vec<SignedPeer>, StoreError> {
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
    connection: &mut PgConnection,
    PeerStep { expected, now: SignedPeer { peer, signature } }: &PeerStep,
) -> Result<(), WriteError> {
    let statement = match expected {
        None => {
            "INSERT INTO peers (site, body, signature) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING"
        }
        Some(_) => "UPDATE peers SET body = $2, signature = $3 WHERE site = $1 AND signature = $4",
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

/// A block's head and its records after a position, in one statement: of one moment. Columns as in a block's.
const CHANGES: &str = "\
SELECT 0::bigint, ''::bytea, epoch, sequence, secret_version, mac, digest, count \
  FROM blocks WHERE block = $1 \
UNION ALL \
SELECT 2, key, epoch, sequence, secret_version, mac, body, 0 FROM records \
  WHERE block = $1 AND (epoch, sequence) > ($2, $3)";

pub(super) async fn changes_after(
    connection: &mut PgConnection,
    block: BlockNo,
    after: Position,
) -> Result<Option<BlockChanges>, StoreError> {
    let rows = sqlx::query(CHANGES)
        .bind(i64::from(block.0))
        .bind(bounded(after.epoch.0))
        .bind(bounded(after.sequence.0))
        .fetch_all(connection)
        .await
        .map_err(classify)?;
    let (mut head, mut records) = (None, Vec::with_capacity(rows.len()));
    for row in &rows {
        match number(row, 0)? {
            part::HEAD => head = Some(read::head_of(block, row)?),
            part::RECORD => records.push(read::record(row)?),
            part => return Err(StoreError::Damaged(format!("changes have no part {part}"))),
        }
    }
    records.sort_unstable_by_key(|record| record.position);
    Ok(head.map(|head| BlockChanges { head, records }))
}

/// Applies `adoptions`, which [`rules::check_adoptions`] has passed. `at_ms`: now.
pub(super) async fn adopt(
    connection: &mut PgConnection,
    adoptions: &[BlockAdoption],
    at_ms: u64,
) -> Result<(), WriteError> {
    // In ascending order throughout, so that two never wait for each other in a circle.
    let mut sorted: Vec<&BlockAdoption> = adoptions.iter().collect();
    sorted.sort_unstable_by_key(|adoption| adoption.head.block);
    let heads: Vec<&Head> = sorted.iter().map(|adoption| &adoption.head).collect();
    let row = role::role(connection).await?;
    rules::may_adopt(row, heads.iter().copied())?;
    let there = lock_heads(connection, &heads).await?;
    let counts = rules::counts_of_expected(adoptions, &there)?;
    let outcome = indexing::adopted(sorted.iter().copied());
    let gone = indexing::gone(adoptions);
    rows::check_counts(connection, &heads, counts, &outcome, &gone).await?;
    rows::put_heads(connection, UPDATE_HEADS, heads.iter().copied()).await?;
    let seals = sorted.iter().map(|adoption| (adoption.head.block, &adoption.seals[..]));
    rows::add_seals(connection, seals).await?;
    remove_records(connection, &gone).await?;
    rows::put_records(connection, &outcome).await?;
    index::adopt(connection, &sorted).await?;
    set_aside(connection, adoptions, at_ms).await?;
    rows::notify(connection, &heads).await
}

async fn lock_heads(
    connection: &mut PgConnection,
    heads: &[&Head],
) -> Result<BTreeMap<BlockNo, Head>, WriteError> {
    let query = "SELECT block, epoch, sequence, secret_version, count, digest, mac FROM blocks \
                 WHERE block = ANY($1::bigint[]) ORDER BY block FOR UPDATE";
    let blocks: Vec<i64> = heads.iter().map(|head| i64::from(head.block.0)).collect();
    let rows = sqlx::query(query).bind(blocks).fetch_all(connection).await?;
    let there = rows.iter().map(head);
    Ok(there.map(|head| head.map(|head| (head.block, head))).collect::<Result<_, _>>()?)
}

async fn remove_records(
    connection: &mut PgConnection,
    gone: &[(BlockNo, RecordKey)],
) -> Result<(), WriteError> {
    if gone.is_empty() {
        return Ok(());
    }
    let statement = "DELETE FROM records USING unnest($1::bigint[], $2::bytea[]) AS gone (block, key) \
                     WHERE records.block = gone.block AND records.key = gone.key";
    let (blocks, keys): (Vec<i64>, Vec<&[u8]>) =
        gone.iter().map(|(block, key)| (i64::from(block.0), key.as_bytes())).unzip();
    sqlx::query(statement).bind(blocks).bind(keys).execute(connection).await?;
    Ok(())
}

/// Keeps what this site wrote and the peer never had.
async fn set_aside(
    connection: &mut PgConnection,
    adoptions: &[BlockAdoption],
    at_ms: u64,
) -> Result<(), WriteError> {
    if adoptions.iter().all(|adoption| adoption.set_aside.is_empty()) {
        return Ok(());
    }
    let site: String =
        sqlx::query_scalar("SELECT site FROM domain").fetch_one(&mut *connection).await?;
    put_divergence(connection, &indexing::divergent(adoptions, &site, at_ms)).await
}

/// What is known already stays as it is, except that a decision comes to it.
pub(super) async fn put_divergence(
    connection: &mut PgConnection,
    divergent: &[Divergent],
) -> Result<(), WriteError> {
    let statement = "\
        INSERT INTO divergence (block, key, epoch, sequence, secret_version, mac, body, site, at_ms, \
            resolution, decided_ms, decided_by) \
        SELECT * FROM unnest($1::bigint[], $2::bytea[], $3::bigint[], $4::bigint[], $5::bigint[], \
            $6::bytea[], $7::bytea[], $8::text[], $9::bigint[], $10::bigint[], $11::bigint[], $12::text[]) \
        ON CONFLICT (block, key, epoch, sequence, mac) DO UPDATE \
            SET resolution = coalesce(divergence.resolution, excluded.resolution), \
            decided_ms = CASE WHEN divergence.resolution IS NULL THEN excluded.decided_ms \
                ELSE divergence.decided_ms END, \
            decided_by = CASE WHEN divergence.resolution IS NULL THEN excluded.decided_by \
                ELSE divergence.decided_by END";
    if divergent.is_empty() {
        return Ok(());
    }
    let numbers = |value: fn(&Divergent) -> u64| -> Result<Vec<i64>, StoreError> {
        divergent.iter().map(|one| signed(value(one))).collect()
    };
    let records = || divergent.iter().map(|one| &one.record);
    let decisions = || divergent.iter().map(|one| one.decided.as_ref());
    let decided = decisions().map(|it| it.map(|it| it.resolution as i64));
    let times = decisions().map(|it| it.map(|it| signed(it.at_ms)).transpose());
    let times: Vec<Option<i64>> = times.collect::<Result<_, _>>()?;
    sqlx::query(statement)
        .bind(numbers(|one| one.block.0.into())?)
        .bind(records().map(|record| record.key.as_bytes()).collect::<Vec<_>>())
        .bind(numbers(|one| one.record.position.epoch.0)?)
        .bind(numbers(|one| one.record.position.sequence.0)?)
        .bind(numbers(|one| one.record.secret_version.into())?)
        .bind(records().map(|record| &record.mac[..]).collect::<Vec<_>>())
        .bind(records().map(|record| &record.body[..]).collect::<Vec<_>>())
        .bind(divergent.iter().map(|one| one.site.as_str()).collect::<Vec<_>>())
        .bind(numbers(|one| one.at_ms)?)
        .bind(decided.collect::<Vec<_>>())
        .bind(times)
        .bind(decisions().map(|it| it.map(|it| it.by.as_str())).collect::<Vec<_>>())
        .execute(connection)
        .await?;
    Ok(())
}

pub(super) async fn divergence(
    connection: &mut PgConnection,
    asked: DivergenceAsked,
) -> Result<Vec<Divergent>, StoreError> {
    let query = "SELECT key, epoch, sequence, secret_version, mac, body, block, site, at_ms, \
                 resolution, decided_ms, decided_by FROM divergence \
                 WHERE (block, key, epoch, sequence, mac) > ($1, $2, $3, $4, $5) \
                 AND ($6::bigint IS NULL OR block = $6) AND (NOT $7 OR resolution IS NULL) \
                 ORDER BY block, key, epoch, sequence, mac LIMIT $8";
    let DivergenceAsked { after, block, undecided, limit } = asked;
    let before = block.map_or(-1, |block| i64::from(block.0) - 1);
    let (from, key, at, mac) = match &after {
        Some(it) => (i64::from(it.block.0), it.key.as_bytes(), it.position, &it.mac[..]),
        None => (before, &[][..], Position::default(), &[][..]),
    };
    let rows = sqlx::query(query)
        .bind(from)
        .bind(key)
        .bind(bounded(at.epoch.0))
        .bind(bounded(at.sequence.0))
        .bind(mac)
        .bind(block.map(|block| i64::from(block.0)))
        .bind(undecided)
        .bind(i64::from(limit))
        .fetch_all(connection)
        .await
        .map_err(classify)?;
    rows.iter().map(divergent).collect()
}

pub(super) async fn count_undecided(connection: &mut PgConnection) -> Result<u64, StoreError> {
    let query = "SELECT count(*) FROM divergence WHERE resolution IS NULL";
    let row = sqlx::query(query).fetch_one(connection).await.map_err(classify)?;
    number(&row, 0)
}

pub(super) async fn count_undecided_of(
    connection: &mut PgConnection,
    site: &str,
) -> Result<u64, StoreError> {
    let query = "SELECT count(*) FROM divergence WHERE resolution IS NULL AND site = $1";
    let row = sqlx::query(query).bind(site).fetch_one(connection).await.map_err(classify)?;
    number(&row, 0)
}

fn divergent(row: &PgRow) -> Result<Divergent, StoreError> {
    let record = StoredRecord {
        key: record_key(row, 0)?,
        position: position(row, 1)?,
        secret_version: number(row, 3)?,
        mac: array(row, 4)?,
        body: bytes(row, 5)?.to_vec(),
    };
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

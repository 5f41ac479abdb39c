//! The steps of a commit, within the transaction that `PostgresStore` has begun. Rows go as arrays: a
//! commit of hundreds of records is the same dozen of statements as a commit of one.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::PgConnection;

use super::{
    audit,
    columns::{classify, number, position, record_key, signed},
    failure::WriteError,
    index,
};
use crate::store::{
    BlockChange, Founding, StoreError,
    indexing::{self, Outcome},
    rules,
};
use kms_core::{BlockNo, DomainRecord, Epoch, Position, RecordKey, Sequence};

/// The channel on which servers of one database tell each other what they changed.
pub(super) const CHANNEL: &str = "ami_kms_blocks";

/// The most that PostgreSQL carries in one notification, less one.
const NOTIFICATION_BYTES_MAX: usize = 7_999;

pub(super) async fn create_domain(
    connection: &mut PgConnection,
    domain: &DomainRecord,
) -> Result<(), StoreError> {
    let statement = "INSERT INTO domain \
                     (domain, blocks, site, epoch, even, canaries, created_ms, signature) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING";
    let done = sqlx::query(statement)
        .bind(&domain.domain.0[..])
        .bind(i64::from(domain.blocks.get()))
        .bind(&domain.site)
        .bind(signed(domain.epoch.0)?)
        .bind(domain.even)
        .bind(&domain.canaries)
        .bind(signed(domain.created_ms)?)
        .bind(domain.signature.as_ref().map(|signature| &signature[..]))
        .execute(connection)
        .await
        .map_err(classify)?;
    if done.rows_affected() == 1 {
        return Ok(());
    }
    let value = hex::encode(domain.domain.0);
    Err(StoreError::Taken { what: "the place of key domain", value })
}

/// The record gets its signature, if it has none.
pub(super) async fn sign_domain(
    connection: &mut PgConnection,
    domain: &DomainRecord,
) -> Result<(), StoreError> {
    let statement = "UPDATE domain SET signature = $1 WHERE signature IS NULL AND domain = $2";
    let done = sqlx::query(statement)
        .bind(domain.signature.as_ref().map(|signature| &signature[..]))
        .bind(&domain.domain.0[..])
        .execute(connection)
        .await
        .map_err(classify)?;
    if done.rows_affected() == 1 {
        return Ok(());
    }
    let value = hex::encode(domain.domain.0);
    Err(StoreError::Taken { what: "the signature of key domain", value })
}

/// Writes all that a domain has besides its record.
pub(super) async fn found(
    connection: &mut PgConnection,
    founding: &Founding,
) -> Result<(), WriteError> {
    commit(connection, &founding.blocks).await?;
    if audit::put_head_table(connection, None, &founding.table).await? {
        return Ok(());
    }
    let value = hex::encode(founding.domain.domain.0);
    Err(StoreError::Taken { what: "the head table of key domain", value }.into())
}

/// Applies `changes`, which [`rules::check`] has passed.
pub(super) async fn commit(
    connection: &mut PgConnection,
    changes: &[BlockChange],
) -> Result<(), WriteError> {
    if changes.is_empty() {
        return Ok(());
    }
    // In ascending order throughout, so that two commits never wait for each other in a circle.
    let mut changes: Vec<&BlockChange> = changes.iter().collect();
    changes.sort_unstable_by_key(|change| change.head.block);
    let outcome = indexing::outcome(changes.iter().copied());
    let counts = lock_heads(connection, &changes).await?;
    check_counts(connection, &changes, counts, &outcome).await?;
    put_heads(connection, &changes).await?;
    add_seals(connection, &changes).await?;
    put_records(connection, &outcome).await?;
    index::update(connection, &changes, &outcome).await?;
    notify(connection, &changes).await
}

/// Locks the blocks that are there, and returns their record counts; `Conflict` if one is not where
/// `changes` expect it.
async fn lock_heads(
    connection: &mut PgConnection,
    changes: &[&BlockChange],
) -> Result<BTreeMap<BlockNo, u64>, WriteError> {
    let query = "SELECT block, epoch, sequence, count FROM blocks WHERE block = ANY($1::bigint[]) \
                 ORDER BY block FOR UPDATE";
    let blocks: Vec<i64> = changes.iter().map(|change| i64::from(change.head.block.0)).collect();
    let mut found = BTreeMap::<BlockNo, (Position, u64)>::new();
    for row in sqlx::query(query).bind(blocks).fetch_all(connection).await? {
        found.insert(BlockNo(number(&row, 0)?), (position(&row, 1)?, number(&row, 3)?));
    }
    changes
        .iter()
        .map(|change| {
            let block = change.head.block;
            let head = found.get(&block);
            if head.map(|(at, _)| *at) == change.expected {
                Ok((block, head.map_or(0, |(_, count)| *count)))
            } else {
                Err(StoreError::Conflict(block).into())
            }
        })
        .collect()
}

/// Checks that each new head counts its records: those that were there, and those that are new.
///
/// The old head's count is right because this was checked when it was written: counting a block's
/// rows each time would read all of it.
async fn check_counts(
    connection: &mut PgConnection,
    changes: &[&BlockChange],
    mut counts: BTreeMap<BlockNo, u64>,
    outcome: &Outcome<'_>,
) -> Result<(), WriteError> {
    let query = "SELECT block, key FROM records \
                 JOIN unnest($1::bigint[], $2::bytea[]) AS asked (block, key) USING (block, key)";
    let mut new: BTreeSet<(BlockNo, RecordKey)> = outcome.keys().copied().collect();
    let (blocks, keys): (Vec<i64>, Vec<&[u8]>) =
        outcome.keys().map(|(block, key)| (i64::from(block.0), key.as_bytes())).unzip();
    for row in sqlx::query(query).bind(blocks).bind(keys).fetch_all(connection).await? {
        new.remove(&(BlockNo(number(&row, 0)?), record_key(&row, 1)?));
    }
    for (block, _) in new {
        *counts.entry(block).or_default() += 1;
    }
    for change in changes {
        let block = change.head.block;
        if counts.get(&block).copied() != Some(u64::from(change.head.count)) {
            return Err(StoreError::Rule { block, rule: rules::COUNT }.into());
        }
    }
    Ok(())
}

/// Blocks that were there are locked. One that was not may have come to be meanwhile: then it stays as
/// it is, and this commit is the one that lost.
async fn put_heads(
    connection: &mut PgConnection,
    changes: &[&BlockChange],
) -> Result<(), WriteError> {
    const INSERT: &str = "\
        INSERT INTO blocks (block, epoch, sequence, secret_version, count, digest, mac) \
        SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], \
            $6::bytea[], $7::bytea[]) \
        ON CONFLICT DO NOTHING RETURNING block";
    const UPDATE: &str = "\
        UPDATE blocks SET epoch = new.epoch, sequence = new.sequence, \
            secret_version = new.secret_version, count = new.count, digest = new.digest, mac = new.mac \
        FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], \
            $6::bytea[], $7::bytea[]) AS new (block, epoch, sequence, secret_version, count, digest, mac) \
        WHERE blocks.block = new.block RETURNING blocks.block";
    let (new, old): (Vec<&BlockChange>, Vec<&BlockChange>) =
        changes.iter().partition(|change| change.expected.is_none());
    for (statement, changes) in [(INSERT, new), (UPDATE, old)] {
        if changes.is_empty() {
            continue;
        }
        let column = |value: fn(&BlockChange) -> u64| -> Result<Vec<i64>, StoreError> {
            changes.iter().map(|change| signed(value(change))).collect()
        };
        let digests: Vec<&[u8]> = changes.iter().map(|change| &change.head.digest[..]).collect();
        let macs: Vec<&[u8]> = changes.iter().map(|change| &change.head.mac[..]).collect();
        let rows = sqlx::query(statement)
            .bind(column(|change| change.head.block.0.into())?)
            .bind(column(|change| change.head.position.epoch.0)?)
            .bind(column(|change| change.head.position.sequence.0)?)
            .bind(column(|change| change.head.secret_version.into())?)
            .bind(column(|change| change.head.count.into())?)
            .bind(digests)
            .bind(macs)
            .fetch_all(&mut *connection)
            .await?;
        let mut missing: BTreeSet<BlockNo> =
            changes.iter().map(|change| change.head.block).collect();
        for row in &rows {
            missing.remove(&BlockNo(number(row, 0)?));
        }
        if let Some(block) = missing.first() {
            return Err(StoreError::Conflict(*block).into());
        }
    }
    Ok(())
}

async fn add_seals(
    connection: &mut PgConnection,
    changes: &[&BlockChange],
) -> Result<(), WriteError> {
    let statement = "INSERT INTO block_seals (block, secret_version, kek_id, sealed) \
                     SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bytea[], $4::bytea[]) \
                     ON CONFLICT DO NOTHING RETURNING block";
    let seals: Vec<_> = changes
        .iter()
        .flat_map(|change| change.seals.iter().map(|seal| (change.head.block, seal)))
        .collect();
    if seals.is_empty() {
        return Ok(());
    }
    let blocks: Vec<i64> = seals.iter().map(|(block, _)| i64::from(block.0)).collect();
    let versions: Vec<i64> = seals.iter().map(|(_, seal)| seal.secret_version.into()).collect();
    let keks: Vec<&[u8]> = seals.iter().map(|(_, seal)| &seal.kek_id[..]).collect();
    let sealed: Vec<&[u8]> = seals.iter().map(|(_, seal)| &seal.sealed[..]).collect();
    let rows = sqlx::query(statement)
        .bind(blocks)
        .bind(versions)
        .bind(keks)
        .bind(sealed)
        .fetch_all(connection)
        .await?;
    let mut left: BTreeMap<BlockNo, usize> = BTreeMap::new();
    for (block, _) in &seals {
        *left.entry(*block).or_default() += 1;
    }
    for row in &rows {
        *left.entry(BlockNo(number(row, 0)?)).or_default() -= 1;
    }
    match left.into_iter().find(|(_, left)| *left > 0) {
        Some((block, _)) => Err(StoreError::Rule { block, rule: rules::SEAL_ONCE }.into()),
        None => Ok(()),
    }
}

async fn put_records(
    connection: &mut PgConnection,
    outcome: &Outcome<'_>,
) -> Result<(), WriteError> {
    let statement = "\
        INSERT INTO records (block, key, epoch, sequence, secret_version, mac, body) \
        SELECT * FROM unnest($1::bigint[], $2::bytea[], $3::bigint[], $4::bigint[], $5::bigint[], \
            $6::bytea[], $7::bytea[]) \
        ON CONFLICT (block, key) DO UPDATE SET epoch = excluded.epoch, \
            sequence = excluded.sequence, secret_version = excluded.secret_version, \
            mac = excluded.mac, body = excluded.body";
    if outcome.is_empty() {
        return Ok(());
    }
    let records = || outcome.values().map(|change| &change.record);
    let numbers = |value: fn(&Position) -> u64| -> Result<Vec<i64>, StoreError> {
        records().map(|record| signed(value(&record.position))).collect()
    };
    let blocks: Vec<i64> = outcome.keys().map(|(block, _)| i64::from(block.0)).collect();
    let versions: Vec<i64> = records().map(|record| record.secret_version.into()).collect();
    sqlx::query(statement)
        .bind(blocks)
        .bind(records().map(|record| record.key.as_bytes()).collect::<Vec<_>>())
        .bind(numbers(|position| position.epoch.0)?)
        .bind(numbers(|position| position.sequence.0)?)
        .bind(versions)
        .bind(records().map(|record| &record.mac[..]).collect::<Vec<_>>())
        .bind(records().map(|record| &record.body[..]).collect::<Vec<_>>())
        .execute(connection)
        .await?;
    Ok(())
}

/// Tells the other servers, when and only if this commit becomes true.
async fn notify(connection: &mut PgConnection, changes: &[&BlockChange]) -> Result<(), WriteError> {
    let heads = changes.iter().map(|change| (change.head.block, change.head.position));
    let told = notifications(heads);
    let statement = "SELECT pg_notify($1, told) FROM unnest($2::text[]) AS told";
    sqlx::query(statement).bind(CHANNEL).bind(told).execute(connection).await?;
    Ok(())
}

/// `block:epoch:sequence`, with spaces between, in as many notifications as are needed.
fn notifications(heads: impl Iterator<Item = (BlockNo, Position)>) -> Vec<String> {
    let mut told: Vec<String> = Vec::new();
    for (block, Position { epoch, sequence }) in heads {
        let one = format!("{}:{}:{}", block.0, epoch.0, sequence.0);
        match told.last_mut() {
            Some(last) if last.len() + 1 + one.len() <= NOTIFICATION_BYTES_MAX => {
                last.push(' ');
                last.push_str(&one);
            }
            _ => told.push(one),
        }
    }
    told
}

/// Reads what [`notifications`] wrote; anything else is left out.
pub(super) fn told(notification: &str) -> Vec<(BlockNo, Position)> {
    let one = |text: &str| {
        let mut numbers = text.split(':').map(str::parse::<u64>);
        let mut next = || numbers.next()?.ok();
        let (block, epoch, sequence) = (next()?, next()?, next()?);
        let position = Position { epoch: Epoch(epoch), sequence: Sequence(sequence) };
        Some((BlockNo(block.try_into().ok()?), position))
    };
    notification.split(' ').filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_is_heard_in_pieces_that_fit() {
        let heads: Vec<(BlockNo, Position)> = (0..65_536)
            .map(|block| {
                let position = Position { epoch: Epoch(2), sequence: Sequence(u64::MAX / 2) };
                (BlockNo(block), position)
            })
            .collect();
        let pieces = notifications(heads.iter().copied());
        assert!(pieces.iter().all(|piece| piece.len() <= NOTIFICATION_BYTES_MAX));
        assert_eq!(pieces.iter().flat_map(|piece| told(piece)).collect::<Vec<_>>(), heads);
        assert_eq!(notifications(std::iter::empty()), [""; 0]);
    }

    #[test]
    fn what_others_say_on_the_channel_is_not_heard() {
        for noise in ["", " ", "1", "1:2", "a:b:c", "-1:2:3", "4294967296:1:1", "1:2:"] {
            assert_eq!(told(noise), [], "{noise:?}");
        }
    }
}

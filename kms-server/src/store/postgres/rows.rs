//! Rows of blocks: heads, seals and the KEKs that they are under, records, and the word to the other servers. Rows go as arrays: hundreds of
//! records are the same few statements as one.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{PgConnection, postgres::PgRow};

use super::{
    columns::{number, record_key, signed},
    failure::WriteError,
};
use crate::store::{
    SealedSecret, StoreError,
    indexing::Outcome,
    keks::{KEK_ROW, KekStep, SealsThen, Twins},
    rules,
};
use kms_core::{BlockNo, Epoch, Head, Position, RecordKey, Sequence, site::keks::SignedSiteKeks};

/// The channel on which servers of one database tell each other what they changed.
pub(super) const CHANNEL: &str = "ami_kms_blocks";

/// The most that PostgreSQL carries in one notification, less one.
const NOTIFICATION_BYTES_MAX: usize = 7_999;

/// Checks that each new head counts its records: those that were there, less those that are `gone`, and
/// those that are new.
///
/// The old head's count is right because this was checked when it was written: counting a block's
/// rows each time would read all of it.
pub(super) async fn check_counts(
    connection: &mut PgConnection,
    heads: &[&Head],
    mut counts: BTreeMap<BlockNo, u64>,
    outcome: &Outcome<'_>,
    gone: &[(BlockNo, RecordKey)],
) -> Result<(), WriteError> {
    let query = "SELECT block, key FROM records \
                 JOIN unnest($1::bigint[], $2::bytea[]) AS asked (block, key) USING (block, key)";
    let mut new: BTreeSet<(BlockNo, RecordKey)> = outcome.keys().copied().collect();
    // A block without a record has none of them: a full copy asks for nothing.
    let may_be =
        |(block, _): &&(BlockNo, RecordKey)| counts.get(block).is_none_or(|count| *count > 0);
    let (blocks, keys): (Vec<i64>, Vec<&[u8]>) = outcome
        .keys()
        .chain(gone)
        .filter(may_be)
        .map(|(block, key)| (i64::from(block.0), key.as_bytes()))
        .unzip();
    let mut there = BTreeSet::new();
    if !blocks.is_empty() {
        for row in sqlx::query(query).bind(blocks).bind(keys).fetch_all(connection).await? {
            there.insert((BlockNo(number(&row, 0)?), record_key(&row, 1)?));
        }
    }
    new.retain(|key| !there.contains(key));
    for (block, _) in new {
        *counts.entry(block).or_default() += 1;
    }
    for (block, _) in gone.iter().filter(|key| there.contains(key)) {
        let count = counts.entry(*block).or_default();
        *count = count.saturating_sub(1);
    }
    for head in heads {
        if counts.get(&head.block).copied() != Some(u64::from(head.count)) {
            return Err(StoreError::Rule { block: head.block, rule: rules::COUNT }.into());
        }
    }
    Ok(())
}

/// A block that was not there may have come to be meanwhile: then it stays as it is, and this commit is the
/// one that lost.
pub(super) const INSERT_HEADS: &str = "\
    INSERT INTO blocks (block, epoch, sequence, secret_version, count, digest, mac) \
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], \
        $6::bytea[], $7::bytea[]) \
    ON CONFLICT DO NOTHING RETURNING block";

/// Blocks that were there are locked.
pub(super) const UPDATE_HEADS: &str = "\
    UPDATE blocks SET epoch = new.epoch, sequence = new.sequence, \
        secret_version = new.secret_version, count = new.count, digest = new.digest, mac = new.mac \
    FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], \
        $6::bytea[], $7::bytea[]) AS new (block, epoch, sequence, secret_version, count, digest, mac) \
    WHERE blocks.block = new.block RETURNING blocks.block";

/// Writes heads by one of the two statements.
pub(super) async fn put_heads<'a>(
    connection: &mut PgConnection,
    statement: &'static str,
    heads: impl Iterator<Item = &'a Head>,
) -> Result<(), WriteError> {
    let heads: Vec<&Head> = heads.collect();
    if heads.is_empty() {
        return Ok(());
    }
    let column = |value: fn(&Head) -> u64| -> Result<Vec<i64>, StoreError> {
        heads.iter().map(|head| signed(value(head))).collect()
    };
    let rows = sqlx::query(statement)
        .bind(column(|head| head.block.0.into())?)
        .bind(column(|head| head.position.epoch.0)?)
        .bind(column(|head| head.position.sequence.0)?)
        .bind(column(|head| head.secret_version.into())?)
        .bind(column(|head| head.count.into())?)
        .bind(heads.iter().map(|head| &head.digest[..]).collect::<Vec<_>>())
        .bind(heads.iter().map(|head| &head.mac[..]).collect::<Vec<_>>())
        .fetch_all(connection)
        .await?;
    let mut missing: BTreeSet<BlockNo> = heads.iter().map(|head| head.block).collect();
    for row in &rows {
        missing.remove(&BlockNo(number(row, 0)?));
    }
    match missing.first() {
        Some(block) => Err(StoreError::Conflict(*block).into()),
        None => Ok(()),
    }
}

pub(super) async fn add_seals<'a>(
    connection: &mut PgConnection,
    seals: impl Iterator<Item = (BlockNo, &'a [SealedSecret])>,
) -> Result<(), WriteError> {
    let statement = "INSERT INTO block_seals (block, secret_version, kek_id, sealed) \
                     SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bytea[], $4::bytea[]) \
                     ON CONFLICT DO NOTHING RETURNING block";
    let seals: Vec<(BlockNo, &SealedSecret)> =
        seals.flat_map(|(block, seals)| seals.iter().map(move |seal| (block, seal))).collect();
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
        .fetch_all(&mut *connection)
        .await?;
    let mut left: BTreeMap<BlockNo, usize> = BTreeMap::new();
    for (block, _) in &seals {
        *left.entry(*block).or_default() += 1;
    }
    for row in &rows {
        *left.entry(BlockNo(number(row, 0)?)).or_default() -= 1;
    }
    if let Some((block, _)) = left.into_iter().find(|(_, left)| *left > 0) {
        return Err(StoreError::Rule { block, rule: rules::SEAL_ONCE }.into());
    }
    // Behind the rows: whoever closes a KEK waits for those who have added some, and who adds some later sees it.
    let keks: Vec<&[u8]> = seals.iter().map(|(_, seal)| &seal.kek_id[..]).collect();
    let closed = sqlx::query("SELECT 1 FROM closed_keks WHERE kek_id = ANY($1::bytea[]) LIMIT 1");
    match (closed.bind(keks).fetch_optional(connection).await?, seals.first()) {
        (Some(_), Some((block, _))) => Err(StoreError::Conflict(*block).into()),
        _ => Ok(()),
    }
}

pub(super) async fn put_records(
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
pub(super) async fn notify(
    connection: &mut PgConnection,
    heads: &[&Head],
) -> Result<(), WriteError> {
    let told = notifications(heads.iter().map(|head| (head.block, head.position)));
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

/// Blocks, those whose present secret has a seal under the new KEK, seals under the former one, those of them with a twin.
pub(super) async fn counted_twins(
    connection: &mut PgConnection,
    twins: Twins,
) -> Result<PgRow, sqlx::Error> {
    let query = "SELECT (SELECT count(*) FROM blocks), \
                 (SELECT count(*) FROM blocks JOIN block_seals AS twin USING (block, secret_version) \
                  WHERE twin.kek_id = $1), \
                 (SELECT count(*) FROM block_seals WHERE kek_id = $2), \
                 (SELECT count(*) FROM block_seals AS it JOIN block_seals AS twin \
                  USING (block, secret_version) WHERE it.kek_id = $2 AND twin.kek_id = $1)";
    let query = sqlx::query(query).bind(&twins.new[..]).bind(&twins.former[..]);
    query.fetch_one(connection).await
}

/// Takes a step, in its transaction.
pub(super) async fn put_site_keks(
    connection: &mut PgConnection,
    step: &KekStep,
) -> Result<(), WriteError> {
    put_kek_row(connection, step).await?;
    let (twins, then) = match step.seals {
        SealsThen::Stay => return Ok(()),
        SealsThen::HaveTwins(twins) => (twins, None),
        SealsThen::Closed(twins) => (twins, Some(CLOSE)),
        SealsThen::Gone(twins) => (twins, Some("DELETE FROM block_seals WHERE kek_id = $1")),
    };
    sqlx::query(ALONE).execute(&mut *connection).await?;
    let row = counted_twins(connection, twins).await?;
    let count = |at| number::<u64>(&row, at);
    if count(0)? != count(1)? || count(2)? != count(3)? {
        return Err(StoreError::Conflict(BlockNo(0)).into());
    }
    if let Some(then) = then {
        sqlx::query(then).bind(&twins.former[..]).execute(connection).await?;
    }
    Ok(())
}

/// Who adds a seal holds the table until he has committed, and looks at closed KEKs behind his row: either he is waited for
/// here, or he sees that it is closed.
const ALONE: &str = "LOCK TABLE block_seals IN SHARE ROW EXCLUSIVE MODE";

const CLOSE: &str = "INSERT INTO closed_keks (kek_id) VALUES ($1) ON CONFLICT DO NOTHING";

/// In the place of the row that it was made from, and of no other.
async fn put_kek_row(connection: &mut PgConnection, step: &KekStep) -> Result<(), WriteError> {
    let KekStep { expected, now: SignedSiteKeks { keks, signature }, seals: _ } = step;
    let statement = match expected {
        None => {
            "INSERT INTO site_keks (token, body, signature) VALUES ($1, $2, $3) \
             ON CONFLICT DO NOTHING"
        }
        Some(_) => {
            "UPDATE site_keks SET body = $2, signature = $3 WHERE token = $1 AND signature = $4"
        }
    };
    let query = sqlx::query(statement).bind(&keks.signing[..]).bind(keks.message());
    let query = query.bind(&signature[..]);
    let query = match expected {
        None => query,
        Some(expected) => query.bind(&expected[..]),
    };
    match query.execute(connection).await?.rows_affected() {
        1 => Ok(()),
        _ => Err(StoreError::Taken { what: KEK_ROW, value: keks.site.clone() }.into()),
    }
}

//! Rows of blocks: heads, seals and the KEKs that they are under, records. They go in batches: a statement costs a trip to the connection's
//! thread, and an import commits thousands of rows.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{QueryBuilder, Sqlite, SqliteConnection, sqlite::SqliteRow};

use super::{
    columns::{number, record_key},
    failure::WriteError,
    pieces::pieces,
};
use crate::store::{
    SealedSecret, StoreError,
    indexing::Outcome,
    keks::{KEK_ROW, KekStep, SealsThen, Twins},
    rules,
};
use kms_core::{BlockNo, Head, RecordKey, site::keks::SignedSiteKeks};

/// Checks that each new head counts its records: those that were there, less those that are `gone`, and
/// those that are new.
///
/// The old head's count is right because this was checked when it was written: counting a block's
/// rows each time would read all of it.
pub(super) async fn check_counts(
    connection: &mut SqliteConnection,
    heads: &[&Head],
    mut counts: BTreeMap<BlockNo, u64>,
    outcome: &Outcome<'_>,
    gone: &[(BlockNo, RecordKey)],
) -> Result<(), WriteError> {
    let mut new: BTreeSet<(BlockNo, RecordKey)> = outcome.keys().copied().collect();
    // A block without a record has none of them: a full copy asks for nothing.
    let may_be =
        |(block, _): &&(BlockNo, RecordKey)| counts.get(block).is_none_or(|count| *count > 0);
    let asked: Vec<_> = new.iter().chain(gone).filter(may_be).copied().collect();
    let mut there = BTreeSet::new();
    for piece in pieces(&asked) {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT block, key FROM records WHERE ");
        query.push("(block, key) IN (");
        query.push_values(piece, |mut row, (block, key)| {
            row.push_bind(block.0).push_bind(key.as_bytes());
        });
        for row in query.push(")").build().fetch_all(&mut *connection).await? {
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

pub(super) async fn put_heads(
    connection: &mut SqliteConnection,
    heads: &[&Head],
) -> Result<(), WriteError> {
    for piece in pieces(heads) {
        let mut statement = QueryBuilder::<Sqlite>::new(
            "INSERT INTO blocks (block, epoch, sequence, secret_version, count, digest, mac) ",
        );
        statement.push_values(piece, |mut row, head| {
            row.push_bind(head.block.0)
                .push_bind(head.position.epoch.0 as i64) // `rules::NUMBER_FITS`
                .push_bind(head.position.sequence.0 as i64)
                .push_bind(head.secret_version)
                .push_bind(head.count)
                .push_bind(&head.digest[..])
                .push_bind(&head.mac[..]);
        });
        statement.push(
            " ON CONFLICT (block) DO UPDATE SET epoch = excluded.epoch, \
             sequence = excluded.sequence, secret_version = excluded.secret_version, \
             count = excluded.count, digest = excluded.digest, mac = excluded.mac",
        );
        statement.build().execute(&mut *connection).await?;
    }
    Ok(())
}

/// Seals are few: they come with a new block or a new secret version. One under a former site KEK is none: whoever made it
/// learns of the new one, and decides anew.
pub(super) async fn add_seals(
    connection: &mut SqliteConnection,
    seals: impl Iterator<Item = (BlockNo, &[SealedSecret])>,
) -> Result<(), WriteError> {
    let statement = "INSERT INTO block_seals (block, secret_version, kek_id, sealed) \
                     VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING";
    for (block, seals) in seals {
        for seal in seals {
            let done = sqlx::query(statement)
                .bind(block.0)
                .bind(seal.secret_version)
                .bind(&seal.kek_id[..])
                .bind(&seal.sealed)
                .execute(&mut *connection)
                .await?;
            if done.rows_affected() != 1 {
                return Err(StoreError::Rule { block, rule: rules::SEAL_ONCE }.into());
            }
            refuse_closed(connection, block, seal).await?;
        }
    }
    Ok(())
}

async fn refuse_closed(
    connection: &mut SqliteConnection,
    block: BlockNo,
    seal: &SealedSecret,
) -> Result<(), WriteError> {
    let closed = sqlx::query("SELECT 1 FROM closed_keks WHERE kek_id = ?").bind(&seal.kek_id[..]);
    match closed.fetch_optional(connection).await? {
        Some(_) => Err(StoreError::Conflict(block).into()),
        None => Ok(()),
    }
}

pub(super) async fn put_records(
    connection: &mut SqliteConnection,
    outcome: &Outcome<'_>,
) -> Result<(), WriteError> {
    let rows: Vec<_> = outcome.iter().map(|((block, _), change)| (block, &change.record)).collect();
    for piece in pieces(&rows) {
        let mut statement = QueryBuilder::<Sqlite>::new(
            "INSERT INTO records (block, key, epoch, sequence, secret_version, mac, body) ",
        );
        statement.push_values(piece, |mut row, (block, record)| {
            row.push_bind(block.0)
                .push_bind(record.key.as_bytes())
                .push_bind(record.position.epoch.0 as i64) // `rules::NUMBER_FITS`
                .push_bind(record.position.sequence.0 as i64)
                .push_bind(record.secret_version)
                .push_bind(&record.mac[..])
                .push_bind(&record.body);
        });
        statement.push(
            " ON CONFLICT (block, key) DO UPDATE SET epoch = excluded.epoch, \
             sequence = excluded.sequence, secret_version = excluded.secret_version, \
             mac = excluded.mac, body = excluded.body",
        );
        statement.build().execute(&mut *connection).await?;
    }
    Ok(())
}

/// Blocks, those whose present secret has a seal under the new KEK, seals under the former one, those of them with a twin.
pub(super) async fn counted_twins(
    connection: &mut SqliteConnection,
    twins: Twins,
) -> Result<SqliteRow, sqlx::Error> {
    let query = "SELECT (SELECT count(*) FROM blocks), \
                 (SELECT count(*) FROM blocks JOIN block_seals AS twin USING (block, secret_version) \
                  WHERE twin.kek_id = ?1), \
                 (SELECT count(*) FROM block_seals WHERE kek_id = ?2), \
                 (SELECT count(*) FROM block_seals AS it JOIN block_seals AS twin \
                  USING (block, secret_version) WHERE it.kek_id = ?2 AND twin.kek_id = ?1)";
    let query = sqlx::query(query).bind(&twins.new[..]).bind(&twins.former[..]);
    query.fetch_one(connection).await
}

/// Takes a step, in its transaction.
pub(super) async fn put_site_keks(
    connection: &mut SqliteConnection,
    step: &KekStep,
) -> Result<(), WriteError> {
    put_kek_row(connection, step).await?;
    let (twins, then) = match step.seals {
        SealsThen::Stay => return Ok(()),
        SealsThen::HaveTwins(twins) => (twins, None),
        SealsThen::Closed(twins) => (twins, Some(CLOSE)),
        SealsThen::Gone(twins) => (twins, Some("DELETE FROM block_seals WHERE kek_id = ?")),
    };
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

const CLOSE: &str = "INSERT INTO closed_keks (kek_id) VALUES (?) ON CONFLICT DO NOTHING";

/// In the place of the row that it was made from, and of no other.
async fn put_kek_row(connection: &mut SqliteConnection, step: &KekStep) -> Result<(), WriteError> {
    let KekStep { expected, now: SignedSiteKeks { keks, signature }, seals: _ } = step;
    let statement = match expected {
        None => {
            "INSERT INTO site_keks (token, body, signature) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
        }
        Some(_) => {
            "UPDATE site_keks SET body = ?2, signature = ?3 WHERE token = ?1 AND signature = ?4"
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

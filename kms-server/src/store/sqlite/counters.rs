//! Marks of transmit counters.

use sqlx::{QueryBuilder, Sqlite, SqliteConnection, sqlite::SqliteRow};

use super::{
    columns::{array, classify, number, optional_array, signed},
    failure::WriteError,
    pieces::pieces,
    role,
};
use crate::store::{StoreError, rules};
use kms_core::{
    BlockNo, Epoch,
    audit::NodeId,
    counters::{
        allocator::{Mark, Witnessed},
        mark::StoredMark,
    },
};

pub(super) async fn mark(
    connection: &mut SqliteConnection,
    block: BlockNo,
) -> Result<Option<StoredMark>, StoreError> {
    let query = "SELECT block, epoch, reserved, holder, term, secret_version, mac \
                 FROM counter_marks WHERE block = ?";
    let row = sqlx::query(query).bind(block.0).fetch_optional(connection).await;
    row.map_err(classify)?.as_ref().map(stored).transpose()
}

pub(super) async fn marks(
    connection: &mut SqliteConnection,
) -> Result<Vec<StoredMark>, StoreError> {
    let query = "SELECT block, epoch, reserved, holder, term, secret_version, mac \
                 FROM counter_marks ORDER BY block";
    let rows = sqlx::query(query).fetch_all(connection).await.map_err(classify)?;
    rows.iter().map(stored).collect()
}

fn stored(row: &SqliteRow) -> Result<StoredMark, StoreError> {
    let mark = Mark {
        block: BlockNo(number(row, 0)?),
        epoch: Epoch(number(row, 1)?),
        end: number(row, 2)?,
        holder: optional_array(row, 3)?.map(NodeId),
        term: number(row, 4)?,
    };
    Ok(StoredMark { mark, secret_version: number(row, 5)?, mac: array(row, 6)? })
}

const IN_ITS_PLACE: &str = " ON CONFLICT (block) DO UPDATE SET epoch = excluded.epoch, \
     reserved = excluded.reserved, holder = excluded.holder, term = excluded.term, \
     secret_version = excluded.secret_version, mac = excluded.mac";

/// Each block's counters begin at its mark, whatever stands there.
pub(super) async fn begin(
    connection: &mut SqliteConnection,
    marks: &[StoredMark],
) -> Result<(), WriteError> {
    put_all(connection, marks, IN_ITS_PLACE).await
}

/// The counters of each block without a mark begin at this one. A mark that is there says what was reserved, and stays.
pub(super) async fn begin_missing(
    connection: &mut SqliteConnection,
    marks: &[StoredMark],
) -> Result<(), WriteError> {
    put_all(connection, marks, " ON CONFLICT (block) DO NOTHING").await
}

async fn put_all(
    connection: &mut SqliteConnection,
    marks: &[StoredMark],
    or_else: &str,
) -> Result<(), WriteError> {
    for piece in pieces(marks) {
        let mut statement = QueryBuilder::<Sqlite>::new(
            "INSERT INTO counter_marks (block, epoch, reserved, holder, term, secret_version, mac) ",
        );
        statement.push_values(piece, |mut row, StoredMark { mark, secret_version, mac }| {
            row.push_bind(mark.block.0)
                .push_bind(mark.epoch.0 as i64) // `rules::NUMBER_FITS`
                .push_bind(mark.end)
                .push_bind(mark.holder.map(|node| node.0.to_vec()))
                .push_bind(mark.term as i64)
                .push_bind(*secret_version)
                .push_bind(&mac[..]);
        });
        statement.push(or_else);
        statement.build().execute(&mut *connection).await?;
    }
    Ok(())
}

const NEW_MARK: &str = "INSERT INTO counter_marks (epoch, reserved, holder, term, secret_version, mac, block) \
     VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING";
const NEXT_MARK: &str = "UPDATE counter_marks SET epoch = ?, reserved = ?, holder = ?, term = ?, secret_version = ?, mac = ? \
     WHERE block = ? AND mac = ?";

/// Replaces `expected`, within a transaction that excludes every other one. False: another one is there.
pub(super) async fn put_mark(
    connection: &mut SqliteConnection,
    expected: Option<&StoredMark>,
    stored: &StoredMark,
) -> Result<bool, WriteError> {
    let StoredMark { mark, secret_version, mac } = stored;
    rules::may_reserve(role::role(connection).await?, mark.epoch)?;
    let statement = if expected.is_none() { NEW_MARK } else { NEXT_MARK };
    let mut query = sqlx::query(statement)
        .bind(signed(mark.epoch.0)?)
        .bind(mark.end)
        .bind(mark.holder.map(|node| node.0.to_vec()))
        .bind(signed(mark.term)?)
        .bind(*secret_version)
        .bind(&mac[..])
        .bind(mark.block.0);
    if let Some(expected) = expected {
        query = query.bind(&expected.mac[..]);
    }
    Ok(query.execute(connection).await?.rows_affected() == 1)
}

pub(super) async fn witnessed(
    connection: &mut SqliteConnection,
    site: &str,
) -> Result<Vec<(BlockNo, Witnessed)>, StoreError> {
    let query = "SELECT block, epoch, reserved FROM witnessed_marks WHERE site = ? ORDER BY block";
    let rows = sqlx::query(query).bind(site).fetch_all(connection).await.map_err(classify)?;
    let known = |row: &SqliteRow| {
        let known = Witnessed { epoch: Epoch(number(row, 1)?), end: number(row, 2)? };
        Ok((BlockNo(number(row, 0)?), known))
    };
    rows.iter().map(known).collect()
}

pub(super) async fn witness(
    connection: &mut SqliteConnection,
    site: &str,
    marks: &[(BlockNo, Witnessed)],
) -> Result<(), WriteError> {
    let statement = "INSERT INTO witnessed_marks (site, block, epoch, reserved) VALUES (?, ?, ?, ?) \
                     ON CONFLICT (site, block) DO UPDATE \
                     SET epoch = excluded.epoch, reserved = excluded.reserved \
                     WHERE (excluded.epoch, excluded.reserved) > (epoch, reserved)";
    for (block, mark) in marks {
        let query = sqlx::query(statement).bind(site).bind(block.0);
        query.bind(signed(mark.epoch.0)?).bind(mark.end).execute(&mut *connection).await?;
    }
    Ok(())
}

//! Marks of transmit counters.

use sqlx::{PgConnection, postgres::PgRow};

use super::{
    columns::{array, classify, number, optional_array, signed},
    failure::WriteError,
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
    connection: &mut PgConnection,
    block: BlockNo,
) -> Result<Option<StoredMark>, StoreError> {
    let query = "SELECT block, epoch, reserved, holder, term, secret_version, mac \
                 FROM counter_marks WHERE block = $1";
    let row = sqlx::query(query).bind(i64::from(block.0)).fetch_optional(connection).await;
    row.map_err(classify)?.as_ref().map(stored).transpose()
}

pub(super) async fn marks(connection: &mut PgConnection) -> Result<Vec<StoredMark>, StoreError> {
    let query = "SELECT block, epoch, reserved, holder, term, secret_version, mac \
                 FROM counter_marks ORDER BY block";
    let rows = sqlx::query(query).fetch_all(connection).await.map_err(classify)?;
    rows.iter().map(stored).collect()
}

fn stored(row: &PgRow) -> Result<StoredMark, StoreError> {
    let mark = Mark {
        block: BlockNo(number(row, 0)?),
        epoch: Epoch(number(row, 1)?),
        end: number(row, 2)?,
        holder: optional_array(row, 3)?.map(NodeId),
        term: number(row, 4)?,
    };
    Ok(StoredMark { mark, secret_version: number(row, 5)?, mac: array(row, 6)? })
}

macro_rules! begin {
    ($or_else:literal) => {
        concat!(
            "INSERT INTO counter_marks (block, epoch, reserved, holder, term, secret_version, mac) \
             SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bytea[], $5::bigint[], $6::bigint[], \
             $7::bytea[]) ON CONFLICT (block) DO ",
            $or_else
        )
    };
}

const BEGIN: &str = begin!(
    "UPDATE SET epoch = excluded.epoch, reserved = excluded.reserved, holder = excluded.holder, \
     term = excluded.term, secret_version = excluded.secret_version, mac = excluded.mac"
);
const BEGIN_MISSING: &str = begin!("NOTHING");

/// Each block's counters begin at its mark, whatever stands there.
pub(super) async fn begin(
    connection: &mut PgConnection,
    marks: &[StoredMark],
) -> Result<(), WriteError> {
    put_all(connection, marks, BEGIN).await
}

/// The counters of each block without a mark begin at this one. A mark that is there says what was reserved, and stays.
pub(super) async fn begin_missing(
    connection: &mut PgConnection,
    marks: &[StoredMark],
) -> Result<(), WriteError> {
    put_all(connection, marks, BEGIN_MISSING).await
}

async fn put_all(
    connection: &mut PgConnection,
    marks: &[StoredMark],
    statement: &'static str,
) -> Result<(), WriteError> {
    let column = |value: fn(&StoredMark) -> u64| -> Result<Vec<i64>, StoreError> {
        marks.iter().map(|stored| signed(value(stored))).collect()
    };
    let holder = |stored: &StoredMark| stored.mark.holder.map(|node| node.0.to_vec());
    sqlx::query(statement)
        .bind(column(|stored| stored.mark.block.0.into())?)
        .bind(column(|stored| stored.mark.epoch.0)?)
        .bind(column(|stored| stored.mark.end.into())?)
        .bind(marks.iter().map(holder).collect::<Vec<_>>())
        .bind(column(|stored| stored.mark.term)?)
        .bind(column(|stored| stored.secret_version.into())?)
        .bind(marks.iter().map(|stored| &stored.mac[..]).collect::<Vec<_>>())
        .execute(connection)
        .await?;
    Ok(())
}

const NEW_MARK: &str = "INSERT INTO counter_marks (epoch, reserved, holder, term, secret_version, mac, block) \
     VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING";
const NEXT_MARK: &str = "UPDATE counter_marks SET epoch = $1, reserved = $2, holder = $3, term = $4, secret_version = $5, mac = $6 \
     WHERE block = $7 AND mac = $8";

/// Replaces `expected`, within a transaction that holds the role's lock since it began. False: another one is there.
pub(super) async fn put_mark(
    connection: &mut PgConnection,
    expected: Option<&StoredMark>,
    stored: &StoredMark,
) -> Result<bool, WriteError> {
    let StoredMark { mark, secret_version, mac } = stored;
    rules::may_reserve(role::role(connection).await?, mark.epoch)?;
    let statement = if expected.is_none() { NEW_MARK } else { NEXT_MARK };
    let mut query = sqlx::query(statement)
        .bind(signed(mark.epoch.0)?)
        .bind(i64::from(mark.end))
        .bind(mark.holder.map(|node| node.0.to_vec()))
        .bind(signed(mark.term)?)
        .bind(i64::from(*secret_version))
        .bind(&mac[..])
        .bind(i64::from(mark.block.0));
    if let Some(expected) = expected {
        query = query.bind(&expected.mac[..]);
    }
    Ok(query.execute(connection).await?.rows_affected() == 1)
}

pub(super) async fn witnessed(
    connection: &mut PgConnection,
    site: &str,
) -> Result<Vec<(BlockNo, Witnessed)>, StoreError> {
    let query = "SELECT block, epoch, reserved FROM witnessed_marks WHERE site = $1 ORDER BY block";
    let rows = sqlx::query(query).bind(site).fetch_all(connection).await.map_err(classify)?;
    let known = |row: &PgRow| {
        let known = Witnessed { epoch: Epoch(number(row, 1)?), end: number(row, 2)? };
        Ok((BlockNo(number(row, 0)?), known))
    };
    rows.iter().map(known).collect()
}

/// In order of the blocks, so that two that tell at once don't wait for each other in a circle.
const WITNESS: &str = "\
INSERT INTO witnessed_marks (site, block, epoch, reserved) \
SELECT $1, block, epoch, reserved \
FROM unnest($2::bigint[], $3::bigint[], $4::bigint[]) AS told (block, epoch, reserved) ORDER BY block \
ON CONFLICT (site, block) DO UPDATE SET epoch = excluded.epoch, reserved = excluded.reserved \
WHERE (excluded.epoch, excluded.reserved) > (witnessed_marks.epoch, witnessed_marks.reserved)";

pub(super) async fn witness(
    connection: &mut PgConnection,
    site: &str,
    marks: &[(BlockNo, Witnessed)],
) -> Result<(), StoreError> {
    let epochs: Vec<i64> =
        marks.iter().map(|(_, mark)| signed(mark.epoch.0)).collect::<Result<_, _>>()?;
    sqlx::query(WITNESS)
        .bind(site)
        .bind(marks.iter().map(|(block, _)| i64::from(block.0)).collect::<Vec<_>>())
        .bind(epochs)
        .bind(marks.iter().map(|(_, mark)| i64::from(mark.end)).collect::<Vec<_>>())
        .execute(connection)
        .await
        .map_err(classify)?;
    Ok(())
}

//! Who writes: the role's row, at which commits look, the signed records that it follows from, and their
//! change.

use std::collections::BTreeMap;

use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};

use super::{
    audit,
    columns::{array, bytes, classify, number, signed},
    failure::WriteError,
    read, rows, whole,
};
use crate::store::{
    StoreError, rules,
    sites::{RoleRow, RoleStep},
};
use kms_core::{
    BlockNo, Epoch, Head,
    site::role::{RoleRecord, SignedRoleRecord},
};

/// The role; `None`: there is no domain, so nobody has one.
async fn found(connection: &mut SqliteConnection) -> Result<Option<RoleRow>, StoreError> {
    let query = "SELECT role.epoch, role.writes FROM domain LEFT JOIN role ON true";
    let row = sqlx::query(query).fetch_optional(connection).await.map_err(classify)?;
    row.as_ref().map(of_row).transpose()
}

fn of_row(row: &SqliteRow) -> Result<RoleRow, StoreError> {
    if row.try_get::<Option<i64>, _>(0).map_err(classify)?.is_none() {
        return Err(StoreError::Damaged("the site's role is missing".to_owned()));
    }
    Ok(RoleRow { epoch: Epoch(number(row, 0)?), writes: number::<u8>(row, 1)? == 1 })
}

pub(super) async fn role(connection: &mut SqliteConnection) -> Result<RoleRow, StoreError> {
    let nobody = || StoreError::Damaged("there is no key domain, so no role in it".to_owned());
    found(connection).await?.ok_or_else(nobody)
}

/// Refuses what this site may not write, in the transaction that would.
pub(super) async fn check_writer(
    connection: &mut SqliteConnection,
    heads: impl Iterator<Item = &Head>,
) -> Result<(), WriteError> {
    match found(connection).await? {
        Some(row) => Ok(rules::may_write(row, heads)?),
        None => Ok(()),
    }
}

/// Refuses what this site may not take over, in the transaction that would.
pub(super) async fn check_adopter(
    connection: &mut SqliteConnection,
    heads: impl Iterator<Item = &Head>,
) -> Result<(), WriteError> {
    Ok(rules::may_adopt(role(connection).await?, heads)?)
}

pub(super) async fn records(
    connection: &mut SqliteConnection,
) -> Result<Vec<SignedRoleRecord>, StoreError> {
    let query = "SELECT body, signature FROM role_records ORDER BY epoch, change";
    let rows = sqlx::query(query).fetch_all(connection).await.map_err(classify)?;
    let damaged = |_| StoreError::Damaged("a role record can't be read".to_owned());
    rows.iter()
        .map(|row| {
            let record = RoleRecord::decode(bytes(row, 0)?).map_err(damaged)?;
            Ok(SignedRoleRecord { record, signature: array(row, 1)? })
        })
        .collect()
}

pub(super) async fn add_record(
    connection: &mut SqliteConnection,
    SignedRoleRecord { record, signature }: &SignedRoleRecord,
) -> Result<(), WriteError> {
    let statement = "INSERT INTO role_records (epoch, change, body, signature) VALUES (?, ?, ?, ?) \
                     ON CONFLICT DO NOTHING";
    let done = sqlx::query(statement)
        .bind(signed(record.epoch.0)?)
        .bind(record.change as u8)
        .bind(record.message())
        .bind(&signature[..])
        .execute(connection)
        .await?;
    if done.rows_affected() == 1 {
        return Ok(());
    }
    let value = format!("{} to epoch {}", record.change.word(), record.epoch.0);
    Err(StoreError::Taken { what: "the role record", value }.into())
}

pub(super) async fn put(connection: &mut SqliteConnection, row: RoleRow) -> Result<(), WriteError> {
    let statement = "INSERT INTO role (one, epoch, writes) VALUES (1, ?, ?) \
                     ON CONFLICT (one) DO UPDATE SET epoch = excluded.epoch, writes = excluded.writes";
    let row = sqlx::query(statement).bind(signed(row.epoch.0)?).bind(row.writes);
    row.execute(connection).await?;
    Ok(())
}

/// Applies `step`, which [`rules::check_role`] has passed.
pub(super) async fn change(
    connection: &mut SqliteConnection,
    step: &RoleStep,
) -> Result<(), WriteError> {
    let there = role(connection).await?;
    if there != step.expected {
        return Err(StoreError::NotWriter(there).into());
    }
    if step.ends_our_epoch() {
        let there = read::heads(connection).await?;
        let there = there.into_iter().map(|head| (head.block, head)).collect();
        rules::check_ended(&step.record.record, &there)?;
    }
    if !step.blocks.is_empty() {
        let there = read::readable_heads(connection).await?;
        let there: BTreeMap<BlockNo, Head> =
            there.into_iter().map(|head| (head.block, head)).collect();
        rules::check_promoted(&step.blocks, &step.left, &there)?;
        let heads: Vec<&Head> = step.blocks.iter().map(|change| &change.head).collect();
        rows::put_heads(connection, &heads).await?;
    }
    add_record(connection, &step.record).await?;
    put(connection, step.now).await?;
    if step.now.writes {
        whole::release(connection, step.released.as_ref()).await?;
    }
    match &step.table {
        Some((expected, table)) if !audit::put_head_table(connection, *expected, table).await? => {
            Err(StoreError::Conflict(BlockNo(0)).into())
        }
        _ => Ok(()),
    }
}

//! Who writes: the role's row, at which commits look, the signed records that it follows from, and their
//! change.
//!
//! A commit holds the role's lock with others, from before its first statement until it has ended; a change
//! of role holds it alone. So what a commit reads of the role is what it is until that commit is true, and
//! a commit that was given up and still waits somewhere is waited for.

use sqlx::{PgConnection, Row as _, postgres::PgRow};

use super::{
    audit,
    columns::{array, bytes, classify, head, number, signed},
    failure::WriteError,
    rows::{UPDATE_HEADS, notify, put_heads},
    whole,
};
use crate::store::{
    StoreError, rules,
    sites::{RoleRow, RoleStep},
    work::Work,
};
use kms_core::{
    BlockNo, Epoch, Head,
    site::role::{RoleRecord, SignedRoleRecord},
};

/// Begins a transaction. Rows are locked as they are met, each at its newest version; what a head was when it
/// was locked is what it stays.
pub(super) const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

/// The beginning of a transaction in which the role is what it is read as: one trip for both, the lock first, so that
/// whatever is read afterwards is read behind it. The number is "AMIR".
pub(super) const BEGIN_IN_ROLE: &str =
    "BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock_shared(1095584082)";

/// The same, with the role's lock alone: no commit is under way meanwhile.
pub(super) const BEGIN_ALONE: &str =
    "BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock(1095584082)";

/// The statements that a transaction begins with.
pub(super) const fn begin(work: Work<'_>) -> &'static str {
    match work {
        Work::ChangeRole(_) => BEGIN_ALONE,
        Work::Commit([])
        | Work::PutPeer(_)
        | Work::PutApproval(_)
        | Work::PutDivergence(_)
        | Work::PutSiteKeks(_) => BEGIN,
        Work::Commit(_) | Work::Adopt(_) => BEGIN_IN_ROLE,
    }
}

/// The role; `None`: there is no domain, so nobody has one.
async fn found(connection: &mut PgConnection) -> Result<Option<RoleRow>, StoreError> {
    let query = "SELECT role.epoch, role.writes::int::bigint FROM domain LEFT JOIN role ON true";
    let row = sqlx::query(query).fetch_optional(connection).await.map_err(classify)?;
    let missing = || StoreError::Damaged("the site's role is missing".to_owned());
    row.map(|row| of_row(&row, 0)?.ok_or_else(missing)).transpose()
}

/// The role in two columns; `None`: the row is missing.
fn of_row(row: &PgRow, at: usize) -> Result<Option<RoleRow>, StoreError> {
    if row.try_get::<Option<i64>, _>(at).map_err(classify)?.is_none() {
        return Ok(None);
    }
    Ok(Some(RoleRow { epoch: Epoch(number(row, at)?), writes: number::<u8>(row, at + 1)? == 1 }))
}

pub(super) async fn role(connection: &mut PgConnection) -> Result<RoleRow, StoreError> {
    let nobody = || StoreError::Damaged("there is no key domain, so no role in it".to_owned());
    found(connection).await?.ok_or_else(nobody)
}

/// Refuses what this site may not write, in the transaction that would. `row`: one of the blocks that are
/// there, with the role in its columns 4 and 5.
pub(super) async fn check_writer(
    connection: &mut PgConnection,
    row: Option<&PgRow>,
    heads: impl Iterator<Item = &Head>,
) -> Result<(), WriteError> {
    let read = row.map(|row| of_row(row, 4)).transpose()?.flatten();
    let role = match read {
        Some(role) => Some(role),
        None => found(connection).await?,
    };
    match role {
        Some(row) => Ok(rules::may_write(row, heads)?),
        None => Ok(()),
    }
}

pub(super) async fn records(
    connection: &mut PgConnection,
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
    connection: &mut PgConnection,
    SignedRoleRecord { record, signature }: &SignedRoleRecord,
) -> Result<(), WriteError> {
    let statement = "INSERT INTO role_records (epoch, change, body, signature) \
                     VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
    let done = sqlx::query(statement)
        .bind(signed(record.epoch.0)?)
        .bind(record.change as i64)
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

pub(super) async fn put(connection: &mut PgConnection, row: RoleRow) -> Result<(), WriteError> {
    let statement = "INSERT INTO role (epoch, writes) VALUES ($1, $2) \
                     ON CONFLICT (one) DO UPDATE SET epoch = excluded.epoch, writes = excluded.writes";
    let row = sqlx::query(statement).bind(signed(row.epoch.0)?).bind(row.writes);
    row.execute(connection).await?;
    Ok(())
}

/// Applies `step`, which [`rules::check_role`] has passed.
pub(super) async fn change(
    connection: &mut PgConnection,
    step: &RoleStep,
) -> Result<(), WriteError> {
    let there = role(connection).await?;
    if there != step.expected {
        return Err(StoreError::NotWriter(there).into());
    }
    if step.ends_our_epoch() {
        let there = lock_all_heads(connection).await?.into_iter();
        let there = there.map(|head| head.map(|head| (head.block, head)));
        rules::check_ended(&step.record.record, &there.collect::<Result<_, _>>()?)?;
    }
    if !step.blocks.is_empty() {
        // One that can't be read stops no other.
        let there = lock_all_heads(connection).await?.into_iter();
        let there = there.flatten().map(|head| (head.block, head)).collect();
        rules::check_promoted(&step.blocks, &step.left, &there)?;
        let heads: Vec<&Head> = step.blocks.iter().map(|change| &change.head).collect();
        put_heads(connection, UPDATE_HEADS, heads.iter().copied()).await?;
        notify(connection, &heads).await?;
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

/// All heads. Locked, too: a server of a release that knows of no role does not take its lock.
async fn lock_all_heads(
    connection: &mut PgConnection,
) -> Result<Vec<Result<Head, StoreError>>, WriteError> {
    let query = "SELECT block, epoch, sequence, secret_version, count, digest, mac \
                 FROM blocks ORDER BY block FOR UPDATE";
    let rows = sqlx::query(query).fetch_all(connection).await?;
    Ok(rows.iter().map(head).collect())
}

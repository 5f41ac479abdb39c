//! Writes the indexes over meters: id and title of the living, key fingerprints of all.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::PgConnection;

use super::{
    columns::{array, bytes, number, text},
    failure::WriteError,
};
use crate::store::{
    BlockChange, StoreError,
    indexing::{
        Adopted, Entry, Outcome, Plan, Title, id_taken, living, take_dead, title_taken, titles,
        unpack,
    },
    sites::BlockAdoption,
};
use kms_core::BlockNo;

/// Brings the indexes to what `outcome` says.
pub(super) async fn update(
    connection: &mut PgConnection,
    changes: &[&BlockChange],
    outcome: &Outcome<'_>,
) -> Result<(), WriteError> {
    let titles = titles(outcome.keys().map(|(_, key)| key));
    let mut old = entries(connection, &titles).await?;
    let dead = take_dead(&mut old, changes.iter().copied());
    let living = living(outcome)?;
    let plan = Plan::of(&old, &living)?;

    remove_fingerprints(connection, &plan.lost).await?;
    let dead: Vec<Title> = dead.into_keys().collect();
    remove_meters(connection, &dead).await?;
    add_meters(connection, &plan.new).await?;
    change_meters(connection, &plan.changed).await?;
    add_fingerprints(connection, &plan.gained).await
}

/// Brings the indexes to what adopted blocks say. An id that two of their meters claim is no error.
pub(super) async fn adopt(
    connection: &mut PgConnection,
    adoptions: &[&BlockAdoption],
) -> Result<(), WriteError> {
    let keys = adoptions.iter().flat_map(|adoption| {
        let records = adoption.records.iter().map(|change| &change.record.key);
        records.chain(&adoption.gone)
    });
    let old = entries(connection, &titles(keys)).await?;
    let plan = Adopted::of(&old, adoptions.iter().copied());
    remove_fingerprints(connection, &plan.lost).await?;
    remove_meters(connection, &plan.dead).await?;
    adopt_meters(connection, &plan.put).await?;
    add_fingerprints(connection, &plan.gained).await
}

async fn adopt_meters(
    connection: &mut PgConnection,
    meters: &[(Title, Entry)],
) -> Result<(), WriteError> {
    if meters.is_empty() {
        return Ok(());
    }
    let statement = "INSERT INTO meters (system_title, meter_id, block, fingerprints, adopted) \
                     SELECT *, true FROM unnest($1::bytea[], $2::text[], $3::bigint[], $4::bytea[]) \
                     ON CONFLICT (system_title) DO UPDATE SET meter_id = excluded.meter_id, \
                     block = excluded.block, fingerprints = excluded.fingerprints, adopted = true";
    sqlx::query(statement)
        .bind(meters.iter().map(|(title, _)| &title[..]).collect::<Vec<_>>())
        .bind(meters.iter().map(|(_, entry)| entry.meter_id.as_str()).collect::<Vec<_>>())
        .bind(meters.iter().map(|(_, entry)| i64::from(entry.block.0)).collect::<Vec<_>>())
        .bind(meters.iter().map(|(_, entry)| entry.packed()).collect::<Vec<_>>())
        .execute(connection)
        .await?;
    Ok(())
}

/// The entries that there are for `titles`.
async fn entries(
    connection: &mut PgConnection,
    titles: &[Title],
) -> Result<BTreeMap<Title, Entry>, WriteError> {
    let query = "SELECT system_title, meter_id, block, fingerprints FROM meters \
                 WHERE system_title = ANY($1::bytea[])";
    let mut found = BTreeMap::new();
    if titles.is_empty() {
        return Ok(found);
    }
    let titles: Vec<&[u8]> = titles.iter().map(|title| &title[..]).collect();
    for row in sqlx::query(query).bind(titles).fetch_all(connection).await? {
        let entry = Entry {
            meter_id: text(&row, 1)?.to_owned(),
            block: BlockNo(number(&row, 2)?),
            fingerprints: unpack(bytes(&row, 3)?)?,
        };
        found.insert(array(&row, 0)?, entry);
    }
    Ok(found)
}

async fn remove_meters(connection: &mut PgConnection, dead: &[Title]) -> Result<(), WriteError> {
    if dead.is_empty() {
        return Ok(());
    }
    let statement = "DELETE FROM meters WHERE system_title = ANY($1::bytea[])";
    let titles: Vec<&[u8]> = dead.iter().map(|title| &title[..]).collect();
    sqlx::query(statement).bind(titles).execute(connection).await?;
    Ok(())
}

/// An id or a title that somebody else has, or takes at the same time, is left to them; then this
/// commit fails. An id that came from a peer is as taken as one of ours; none comes at the same time. In order of id, so that two commits rarely wait for each other in a circle.
async fn add_meters(
    connection: &mut PgConnection,
    new: &[(Title, &Entry)],
) -> Result<(), WriteError> {
    if new.is_empty() {
        return Ok(());
    }
    let statement = "INSERT INTO meters (system_title, meter_id, block, fingerprints) \
                     SELECT * FROM unnest($1::bytea[], $2::text[], $3::bigint[], $4::bytea[]) \
                         AS new (title, id, block, fingerprints) \
                     WHERE NOT EXISTS (SELECT FROM meters WHERE adopted AND meter_id = new.id) \
                     ON CONFLICT DO NOTHING RETURNING system_title";
    let mut sorted: Vec<&(Title, &Entry)> = new.iter().collect();
    sorted.sort_unstable_by_key(|(_, entry)| &entry.meter_id);
    let rows = sqlx::query(statement)
        .bind(sorted.iter().map(|(title, _)| &title[..]).collect::<Vec<_>>())
        .bind(sorted.iter().map(|(_, entry)| entry.meter_id.as_str()).collect::<Vec<_>>())
        .bind(sorted.iter().map(|(_, entry)| i64::from(entry.block.0)).collect::<Vec<_>>())
        .bind(sorted.iter().map(|(_, entry)| entry.packed()).collect::<Vec<_>>())
        .fetch_all(&mut *connection)
        .await?;
    let added = rows.iter().map(|row| array(row, 0)).collect::<Result<BTreeSet<Title>, _>>()?;
    match sorted.iter().find(|(title, _)| !added.contains(title)) {
        Some((title, entry)) => Err(whose(connection, title, entry).await?.into()),
        None => Ok(()),
    }
}

/// The error for the one of the two that is taken: title or id.
async fn whose(
    connection: &mut PgConnection,
    title: &Title,
    entry: &Entry,
) -> Result<StoreError, WriteError> {
    let query = "SELECT EXISTS (SELECT FROM meters WHERE system_title = $1)";
    let is_title = sqlx::query_scalar(query).bind(&title[..]).fetch_one(connection).await?;
    Ok(if is_title { title_taken(title) } else { id_taken(&entry.meter_id) })
}

async fn change_meters(
    connection: &mut PgConnection,
    changed: &[(Title, &Entry)],
) -> Result<(), WriteError> {
    if changed.is_empty() {
        return Ok(());
    }
    let statement = "UPDATE meters SET fingerprints = new.fingerprints \
                     FROM unnest($1::bytea[], $2::bytea[]) AS new (system_title, fingerprints) \
                     WHERE meters.system_title = new.system_title";
    sqlx::query(statement)
        .bind(changed.iter().map(|(title, _)| &title[..]).collect::<Vec<_>>())
        .bind(changed.iter().map(|(_, entry)| entry.packed()).collect::<Vec<_>>())
        .execute(connection)
        .await?;
    Ok(())
}

async fn add_fingerprints(
    connection: &mut PgConnection,
    gained: &[([u8; 16], Title)],
) -> Result<(), WriteError> {
    let statement = "INSERT INTO key_fingerprints (fingerprint, system_title) \
                     SELECT * FROM unnest($1::bytea[], $2::bytea[]) \
                     ON CONFLICT DO NOTHING";
    pairs(connection, statement, gained).await
}

async fn remove_fingerprints(
    connection: &mut PgConnection,
    lost: &[([u8; 16], Title)],
) -> Result<(), WriteError> {
    let statement = "DELETE FROM key_fingerprints \
                     USING unnest($1::bytea[], $2::bytea[]) AS lost (fingerprint, system_title) \
                     WHERE key_fingerprints.fingerprint = lost.fingerprint \
                       AND key_fingerprints.system_title = lost.system_title";
    pairs(connection, statement, lost).await
}

async fn pairs(
    connection: &mut PgConnection,
    statement: &'static str,
    pairs: &[([u8; 16], Title)],
) -> Result<(), WriteError> {
    if pairs.is_empty() {
        return Ok(());
    }
    let (fingerprints, titles): (Vec<&[u8]>, Vec<&[u8]>) =
        pairs.iter().map(|(fingerprint, title)| (&fingerprint[..], &title[..])).unzip();
    sqlx::query(statement).bind(fingerprints).bind(titles).execute(connection).await?;
    Ok(())
}

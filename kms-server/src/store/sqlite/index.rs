//! Writes the indexes over meters: id and title of the living, key fingerprints of all.

use std::collections::BTreeMap;

use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::{
    columns::{array, bytes, number, text},
    failure::WriteError,
    pieces::pieces,
};
use crate::store::{
    BlockChange,
    indexing::{Adopted, Entry, Outcome, Plan, Title, id_taken, living, take_dead, titles, unpack},
    sites::BlockAdoption,
};
use kms_core::BlockNo;

/// Brings the indexes to what `outcome` says.
pub(super) async fn update(
    connection: &mut SqliteConnection,
    changes: &[BlockChange],
    outcome: &Outcome<'_>,
) -> Result<(), WriteError> {
    let titles = titles(outcome.keys().map(|(_, key)| key));
    let mut old = entries(connection, &titles).await?;
    let dead = take_dead(&mut old, changes);
    let living = living(outcome)?;
    let plan = Plan::of(&old, &living)?;

    remove_fingerprints(connection, &plan.lost).await?;
    let dead: Vec<Title> = dead.into_keys().collect();
    remove_meters(connection, &dead).await?;
    refuse_taken_ids(connection, &plan.new).await?;
    put_meters(connection, &plan.new).await?;
    put_meters(connection, &plan.changed).await?;
    add_fingerprints(connection, &plan.gained).await
}

/// Brings the indexes to what adopted blocks say. An id that two of their meters claim is no error.
pub(super) async fn adopt(
    connection: &mut SqliteConnection,
    adoptions: &[BlockAdoption],
) -> Result<(), WriteError> {
    let keys = adoptions.iter().flat_map(|adoption| {
        let records = adoption.records.iter().map(|change| &change.record.key);
        records.chain(&adoption.gone)
    });
    let old = entries(connection, &titles(keys)).await?;
    let plan = Adopted::of(&old, adoptions);
    remove_fingerprints(connection, &plan.lost).await?;
    remove_meters(connection, &plan.dead).await?;
    adopt_meters(connection, &plan.put).await?;
    add_fingerprints(connection, &plan.gained).await
}

async fn adopt_meters(
    connection: &mut SqliteConnection,
    meters: &[(Title, Entry)],
) -> Result<(), WriteError> {
    for piece in pieces(meters) {
        let mut statement = QueryBuilder::<Sqlite>::new(
            "INSERT INTO meters (system_title, meter_id, block, fingerprints, adopted) ",
        );
        statement.push_values(piece, |mut row, (title, entry)| {
            row.push_bind(&title[..])
                .push_bind(&entry.meter_id)
                .push_bind(entry.block.0)
                .push_bind(entry.packed())
                .push_bind(true);
        });
        statement.push(
            " ON CONFLICT (system_title) DO UPDATE SET meter_id = excluded.meter_id, \
             block = excluded.block, fingerprints = excluded.fingerprints, adopted = 1",
        );
        statement.build().execute(&mut *connection).await?;
    }
    Ok(())
}

/// The entries that there are for `titles`.
async fn entries(
    connection: &mut SqliteConnection,
    titles: &[Title],
) -> Result<BTreeMap<Title, Entry>, WriteError> {
    let mut found = BTreeMap::new();
    for piece in pieces(titles) {
        let mut query = QueryBuilder::<Sqlite>::new(
            "SELECT system_title, meter_id, block, fingerprints FROM meters WHERE system_title IN (",
        );
        let mut list = query.separated(", ");
        for title in piece {
            list.push_bind(&title[..]);
        }
        query.push(")");
        for row in query.build().fetch_all(&mut *connection).await? {
            let entry = Entry {
                meter_id: text(&row, 1)?.to_owned(),
                block: BlockNo(number(&row, 2)?),
                fingerprints: unpack(bytes(&row, 3)?)?,
            };
            found.insert(array(&row, 0)?, entry);
        }
    }
    Ok(found)
}

async fn refuse_taken_ids(
    connection: &mut SqliteConnection,
    new: &[(Title, &Entry)],
) -> Result<(), WriteError> {
    for piece in pieces(new) {
        let mut query = QueryBuilder::<Sqlite>::new(
            "SELECT meter_id FROM meters WHERE adopted = 0 AND meter_id IN (",
        );
        // An id that came from a peer is as taken as one of ours.
        let second = ") UNION ALL SELECT meter_id FROM meters WHERE adopted = 1 AND meter_id IN (";
        for end in [second, ") LIMIT 1"] {
            let mut list = query.separated(", ");
            for (_, entry) in piece {
                list.push_bind(&entry.meter_id);
            }
            query.push(end);
        }
        if let Some(row) = query.build().fetch_optional(&mut *connection).await? {
            return Err(id_taken(text(&row, 0)?).into());
        }
    }
    Ok(())
}

async fn remove_meters(
    connection: &mut SqliteConnection,
    dead: &[Title],
) -> Result<(), WriteError> {
    for piece in pieces(dead) {
        let mut statement =
            QueryBuilder::<Sqlite>::new("DELETE FROM meters WHERE system_title IN (");
        let mut list = statement.separated(", ");
        for title in piece {
            list.push_bind(&title[..]);
        }
        statement.push(")").build().execute(&mut *connection).await?;
    }
    Ok(())
}

async fn put_meters(
    connection: &mut SqliteConnection,
    meters: &[(Title, &Entry)],
) -> Result<(), WriteError> {
    for piece in pieces(meters) {
        let mut statement = QueryBuilder::<Sqlite>::new(
            "INSERT INTO meters (system_title, meter_id, block, fingerprints) ",
        );
        statement.push_values(piece, |mut row, (title, entry)| {
            row.push_bind(&title[..])
                .push_bind(&entry.meter_id)
                .push_bind(entry.block.0)
                .push_bind(entry.packed());
        });
        statement
            .push(" ON CONFLICT (system_title) DO UPDATE SET fingerprints = excluded.fingerprints");
        statement.build().execute(&mut *connection).await?;
    }
    Ok(())
}

async fn add_fingerprints(
    connection: &mut SqliteConnection,
    gained: &[([u8; 16], Title)],
) -> Result<(), WriteError> {
    for piece in pieces(gained) {
        let mut statement = QueryBuilder::<Sqlite>::new(
            "INSERT INTO key_fingerprints (fingerprint, system_title) ",
        );
        statement.push_values(piece, |mut row, (fingerprint, title)| {
            row.push_bind(&fingerprint[..]).push_bind(&title[..]);
        });
        // A meter that comes back finds those of its former life.
        statement.push(" ON CONFLICT DO NOTHING").build().execute(&mut *connection).await?;
    }
    Ok(())
}

async fn remove_fingerprints(
    connection: &mut SqliteConnection,
    lost: &[([u8; 16], Title)],
) -> Result<(), WriteError> {
    for piece in pieces(lost) {
        let mut statement = QueryBuilder::<Sqlite>::new("DELETE FROM key_fingerprints WHERE ");
        statement.push("(fingerprint, system_title) IN (");
        statement.push_values(piece, |mut row, (fingerprint, title)| {
            row.push_bind(&fingerprint[..]).push_bind(&title[..]);
        });
        statement.push(")").build().execute(&mut *connection).await?;
    }
    Ok(())
}

//! The indexes over living meters: id, title, key fingerprints.
//!
//! First all of the dead go, then the living come: an id that one block frees may be taken by another
//! in the same commit, in whatever order the blocks stand.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{QueryBuilder, Sqlite, SqliteConnection, sqlite::SqliteRow};

use super::{
    columns::{array, bytes, number, text},
    write::{Outcome, WriteError, pieces},
};
use crate::{
    domain::BlockNo,
    store::{BlockChange, IndexEntry, StoreError},
};

/// A system title's bytes.
type Title = [u8; 8];
type Fingerprints = BTreeSet<[u8; 16]>;

/// What the index says, or is to say, of one meter.
struct Entry {
    meter_id: String,
    block: BlockNo,
    fingerprints: Fingerprints,
}

/// Brings the indexes to what `outcome` says.
pub(super) async fn update(
    connection: &mut SqliteConnection,
    changes: &[BlockChange],
    outcome: &Outcome<'_>,
) -> Result<(), WriteError> {
    let mut old = entries(connection, outcome).await?;
    let dead = take_dead(&mut old, changes);
    let living = living(outcome)?;
    let plan = Plan::of(&dead, &old, &living)?;

    remove_fingerprints(connection, &plan.lost).await?;
    remove_meters(connection, &dead).await?;
    refuse_taken_ids(connection, &plan.new).await?;
    put_meters(connection, &plan.new).await?;
    put_meters(connection, &plan.changed).await?;
    add_fingerprints(connection, &plan.gained).await
}

/// The entries that there are for the titles of `outcome`.
async fn entries(
    connection: &mut SqliteConnection,
    outcome: &Outcome<'_>,
) -> Result<BTreeMap<Title, Entry>, WriteError> {
    let titles: BTreeSet<Title> =
        outcome.keys().map(|(_, key)| *key.system_title().as_bytes()).collect();
    let titles: Vec<Title> = titles.into_iter().collect();
    let mut found = BTreeMap::new();
    for piece in pieces(&titles) {
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
                fingerprints: unpack(&row, 3)?,
            };
            found.insert(array(&row, 0)?, entry);
        }
    }
    Ok(found)
}

fn unpack(row: &SqliteRow, at: usize) -> Result<Fingerprints, StoreError> {
    let (fingerprints, rest) = bytes(row, at)?.as_chunks::<16>();
    if rest.is_empty() {
        Ok(fingerprints.iter().copied().collect())
    } else {
        Err(StoreError::Damaged("a meter's fingerprints are cut off".into()))
    }
}

/// Takes those out of `old` that `changes` bury.
fn take_dead(old: &mut BTreeMap<Title, Entry>, changes: &[BlockChange]) -> BTreeMap<Title, Entry> {
    let mut dead = BTreeMap::new();
    for change in changes {
        for record in change.records.iter().filter(|record| record.index == IndexEntry::Tombstone) {
            let title = *record.record.key.system_title().as_bytes();
            // A tombstone in another block is not this meter's.
            if old.get(&title).is_some_and(|entry| entry.block == change.head.block) {
                dead.extend(old.remove_entry(&title));
            }
        }
    }
    dead
}

/// What the index is to say of those that live on. Within one commit, too, an id and a title are
/// one meter's.
fn living(outcome: &Outcome<'_>) -> Result<BTreeMap<Title, Entry>, StoreError> {
    let mut living = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for ((block, key), change) in outcome {
        let IndexEntry::Meter { meter_id, fingerprints } = &change.index else { continue };
        let fingerprints = fingerprints.iter().map(|fingerprint| fingerprint.0).collect();
        let entry = Entry { meter_id: meter_id.as_str().to_owned(), block: *block, fingerprints };
        if !ids.insert(meter_id) {
            return Err(id_taken(meter_id.as_str()));
        }
        let title = key.system_title();
        if living.insert(*title.as_bytes(), entry).is_some() {
            return Err(title_taken(title.as_bytes()));
        }
    }
    Ok(living)
}

/// The rows that change.
#[derive(Default)]
struct Plan<'a> {
    new: Vec<(Title, &'a Entry)>,
    changed: Vec<(Title, &'a Entry)>,
    lost: Vec<([u8; 16], Title)>,
    gained: Vec<([u8; 16], Title)>,
}

impl<'a> Plan<'a> {
    fn of(
        dead: &BTreeMap<Title, Entry>,
        old: &BTreeMap<Title, Entry>,
        living: &'a BTreeMap<Title, Entry>,
    ) -> Result<Self, StoreError> {
        let mut plan = Self::default();
        for (title, entry) in dead {
            plan.lost.extend(entry.fingerprints.iter().map(|fingerprint| (*fingerprint, *title)));
        }
        for (title, entry) in living {
            plan.meter(title, old.get(title), entry)?;
        }
        Ok(plan)
    }

    fn meter(
        &mut self,
        title: &Title,
        old: Option<&Entry>,
        entry: &'a Entry,
    ) -> Result<(), StoreError> {
        let Some(old) = old else {
            self.new.push((*title, entry));
            self.gained.extend(entry.fingerprints.iter().map(|gained| (*gained, *title)));
            return Ok(());
        };
        // A record keeps its meter for life: under another id it would be another meter's.
        if old.meter_id != entry.meter_id || old.block != entry.block {
            return Err(title_taken(title));
        }
        if old.fingerprints != entry.fingerprints {
            self.changed.push((*title, entry));
            let lost = old.fingerprints.difference(&entry.fingerprints);
            self.lost.extend(lost.map(|lost| (*lost, *title)));
            let gained = entry.fingerprints.difference(&old.fingerprints);
            self.gained.extend(gained.map(|gained| (*gained, *title)));
        }
        Ok(())
    }
}

fn id_taken(meter_id: &str) -> StoreError {
    StoreError::Taken { what: "meter id", value: meter_id.to_owned() }
}

fn title_taken(title: &Title) -> StoreError {
    StoreError::Taken { what: "system title", value: hex::encode_upper(title) }
}

async fn refuse_taken_ids(
    connection: &mut SqliteConnection,
    new: &[(Title, &Entry)],
) -> Result<(), WriteError> {
    for piece in pieces(new) {
        let mut query =
            QueryBuilder::<Sqlite>::new("SELECT meter_id FROM meters WHERE meter_id IN (");
        let mut list = query.separated(", ");
        for (_, entry) in piece {
            list.push_bind(&entry.meter_id);
        }
        query.push(") LIMIT 1");
        if let Some(row) = query.build().fetch_optional(&mut *connection).await? {
            return Err(id_taken(text(&row, 0)?).into());
        }
    }
    Ok(())
}

async fn remove_meters(
    connection: &mut SqliteConnection,
    dead: &BTreeMap<Title, Entry>,
) -> Result<(), WriteError> {
    let titles: Vec<&Title> = dead.keys().collect();
    for piece in pieces(&titles) {
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
                .push_bind(entry.fingerprints.iter().flatten().copied().collect::<Vec<u8>>());
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
        statement.build().execute(&mut *connection).await?;
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

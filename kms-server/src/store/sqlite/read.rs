//! Queries. Each is one range scan or one look-up.

use sqlx::{AssertSqlSafe, QueryBuilder, Row as _, Sqlite, SqliteConnection, sqlite::SqliteRow};

use super::{
    columns::{
        array, bounded, bytes, classify, head, head_columns, number, optional_array, position,
        record_key, text,
    },
    pieces::pieces,
};
use crate::store::{
    Holder, IndexedMeter, Positions, SealedSecret, StoreError, StoredBlock, sites::BlockChanges,
};
use kms_core::{
    BlockCount, BlockNo, DomainId, DomainRecord, Epoch, Fingerprint, Head, MeterId, Position,
    RecordKey, StoredRecord, SystemTitle, site::peer::PeerKind,
};

pub(super) async fn domain(
    connection: &mut SqliteConnection,
) -> Result<Option<DomainRecord>, StoreError> {
    let query = "SELECT domain, blocks, site, epoch, even, canaries, created_ms, signature, \
                 read_only FROM domain";
    let row = sqlx::query(query).fetch_optional(connection).await.map_err(classify)?;
    let Some(row) = row else { return Ok(None) };
    let blocks = BlockCount::new(number(&row, 1)?)
        .map_err(|error| StoreError::Damaged(error.to_string()))?;
    Ok(Some(DomainRecord {
        domain: DomainId(array(&row, 0)?),
        blocks,
        site: text(&row, 2)?.to_owned(),
        epoch: Epoch(number(&row, 3)?),
        kind: PeerKind::of_site(number::<u8>(&row, 4)? == 1, number::<u8>(&row, 8)? == 1),
        canaries: bytes(&row, 5)?.to_vec(),
        created_ms: number(&row, 6)?,
        signature: optional_array(&row, 7)?,
    }))
}

pub(super) async fn heads(connection: &mut SqliteConnection) -> Result<Vec<Head>, StoreError> {
    let query = concat!("SELECT ", head_columns!(), " FROM blocks ORDER BY block");
    let rows = sqlx::query(query).fetch_all(connection).await.map_err(classify)?;
    rows.iter().map(head).collect()
}

pub(super) async fn heads_of(
    connection: &mut SqliteConnection,
    blocks: &[BlockNo],
) -> Result<Vec<Head>, StoreError> {
    let mut heads = Vec::with_capacity(blocks.len());
    for piece in pieces(blocks) {
        let mut query = QueryBuilder::<Sqlite>::new(concat!(
            "SELECT ",
            head_columns!(),
            " FROM blocks WHERE block IN ("
        ));
        let mut list = query.separated(", ");
        for block in piece {
            list.push_bind(block.0);
        }
        query.push(")");
        for row in query.build().fetch_all(&mut *connection).await.map_err(classify)? {
            heads.push(head(&row)?);
        }
    }
    heads.sort_unstable_by_key(|head| head.block);
    Ok(heads)
}

/// Those of the heads that can be read: one that can't stops no other.
pub(super) async fn readable_heads(
    connection: &mut SqliteConnection,
) -> Result<Vec<Head>, StoreError> {
    let query = concat!("SELECT ", head_columns!(), " FROM blocks ORDER BY block");
    let rows = sqlx::query(query).fetch_all(connection).await.map_err(classify)?;
    Ok(rows.iter().filter_map(|row| head(row).ok()).collect())
}

pub(super) async fn positions(connection: &mut SqliteConnection) -> Result<Positions, StoreError> {
    let query = "SELECT block, epoch, sequence FROM blocks";
    let rows = sqlx::query(query).fetch_all(connection).await.map_err(classify)?;
    let read = |row| (number(row, 0).map(BlockNo), position(row, 1));
    Ok(Positions::of_rows(rows.iter().map(read)))
}

/// The part of a block that is in a row of [`BLOCK`], and of the changes of one.
mod part {
    pub(super) const HEAD: i64 = 0;
    pub(super) const SEAL: i64 = 1;
    pub(super) const RECORD: i64 = 2;
}

/// All of a block in one statement, so that its parts are of one moment: each statement costs a trip to the connection's
/// thread, and so do begin and end of a transaction. Columns: part, key, epoch, sequence, secret version, MAC, bytes,
/// count.
const BLOCK: &str = "\
SELECT 0, NULL, epoch, sequence, secret_version, mac, digest, count FROM blocks WHERE block = ?1 \
UNION ALL \
SELECT 1, kek_id, 0, 0, secret_version, NULL, sealed, 0 FROM block_seals WHERE block = ?1 \
UNION ALL \
SELECT 2, key, epoch, sequence, secret_version, mac, body, 0 FROM records WHERE block = ?1";

/// The most keys of a statement that reads a block in part: one with more is hardly read in part.
const KEYS_MAX: usize = 64;

/// A block's head and its records after a position. Columns as in [`BLOCK`].
const CHANGES: &str = "\
SELECT 0, NULL, epoch, sequence, secret_version, mac, digest, count FROM blocks WHERE block = ?1 \
UNION ALL \
SELECT 2, key, epoch, sequence, secret_version, mac, body, 0 FROM records \
  WHERE block = ?1 AND (epoch, sequence) > (?2, ?3)";

/// All of a block, its three parts of one moment.
pub(super) async fn block(
    connection: &mut SqliteConnection,
    block: BlockNo,
) -> Result<Option<StoredBlock>, StoreError> {
    let rows = sqlx::query(BLOCK).bind(block.0).fetch_all(connection).await.map_err(classify)?;
    stored(block, &rows)
}

/// The same, with those of its records that have one of these keys.
pub(super) async fn block_in_part(
    connection: &mut SqliteConnection,
    block: BlockNo,
    keys: &[RecordKey],
) -> Result<Option<StoredBlock>, StoreError> {
    let Some(last) = keys.last().filter(|_| keys.len() <= KEYS_MAX) else {
        let mut all = self::block(connection, block).await?;
        all.iter_mut().for_each(|it| it.records.retain(|record| keys.contains(&record.key)));
        return Ok(all);
    };
    // Filled up to a power of two: few texts, so that they are found again among the prepared ones.
    let places = keys.len().next_power_of_two();
    let list: Vec<String> = (2..2 + places).map(|nth| format!("?{nth}")).collect();
    let statement = format!("{BLOCK} AND key IN ({})", list.join(", "));
    let mut asked = sqlx::query(AssertSqlSafe(statement)).bind(block.0);
    for nth in 0..places {
        asked = asked.bind(keys.get(nth).unwrap_or(last).as_bytes());
    }
    stored(block, &asked.fetch_all(connection).await.map_err(classify)?)
}

fn stored(block: BlockNo, rows: &[SqliteRow]) -> Result<Option<StoredBlock>, StoreError> {
    let (mut head, mut seals) = (None, Vec::new());
    let mut records = Vec::with_capacity(rows.len());
    for row in rows {
        match number(row, 0)? {
            part::HEAD => head = Some(head_part(block, row)?),
            part::SEAL => seals.push(seal_part(row)?),
            part::RECORD => records.push(record_part(row)?),
            part => return Err(StoreError::Damaged(format!("a block has no part {part}"))),
        }
    }
    let Some(head) = head else { return Ok(None) };
    seals.sort_unstable_by_key(|seal| (seal.secret_version, seal.kek_id));
    records.sort_unstable_by_key(|record| record.key);
    Ok(Some(StoredBlock { head, seals, records }))
}

/// A block's head and its records after a position, of one moment.
pub(super) async fn changes_after(
    connection: &mut SqliteConnection,
    block: BlockNo,
    after: Position,
) -> Result<Option<BlockChanges>, StoreError> {
    let rows = sqlx::query(CHANGES)
        .bind(block.0)
        .bind(bounded(after.epoch.0))
        .bind(bounded(after.sequence.0))
        .fetch_all(connection)
        .await
        .map_err(classify)?;
    let (mut head, mut records) = (None, Vec::with_capacity(rows.len()));
    for row in &rows {
        match number(row, 0)? {
            part::HEAD => head = Some(head_part(block, row)?),
            part::RECORD => records.push(record_part(row)?),
            part => return Err(StoreError::Damaged(format!("changes have no part {part}"))),
        }
    }
    records.sort_unstable_by_key(|record| record.position);
    Ok(head.map(|head| BlockChanges { head, records }))
}

fn head_part(block: BlockNo, row: &SqliteRow) -> Result<Head, StoreError> {
    Ok(Head {
        block,
        position: position(row, 2)?,
        secret_version: number(row, 4)?,
        mac: array(row, 5)?,
        digest: array(row, 6)?,
        count: number(row, 7)?,
    })
}

fn seal_part(row: &SqliteRow) -> Result<SealedSecret, StoreError> {
    Ok(SealedSecret {
        kek_id: array(row, 1)?,
        secret_version: number(row, 4)?,
        sealed: bytes(row, 6)?.to_vec(),
    })
}

fn record_part(row: &SqliteRow) -> Result<StoredRecord, StoreError> {
    Ok(StoredRecord {
        key: record_key(row, 1)?,
        position: position(row, 2)?,
        secret_version: number(row, 4)?,
        mac: array(row, 5)?,
        body: bytes(row, 6)?.to_vec(),
    })
}

fn place(row: &SqliteRow) -> Result<IndexedMeter, StoreError> {
    Ok(IndexedMeter { meter_id: meter_id(row, 0)?, system_title: SystemTitle::new(array(row, 1)?) })
}

fn meter_id(row: &sqlx::sqlite::SqliteRow, at: usize) -> Result<MeterId, StoreError> {
    MeterId::new(text(row, at)?).map_err(|error| StoreError::Damaged(error.to_string()))
}

fn living(row: &sqlx::sqlite::SqliteRow, at: usize) -> Result<Option<MeterId>, StoreError> {
    let id: Option<&str> = row.try_get(at).map_err(classify)?;
    let id = id.map(MeterId::new).transpose();
    id.map_err(|error| StoreError::Damaged(error.to_string()))
}

pub(super) async fn find_meter(
    connection: &mut SqliteConnection,
    meter_id: &MeterId,
) -> Result<Option<IndexedMeter>, StoreError> {
    // Two meters that came from a peer may claim it for a while: one of them is shown.
    let query = "SELECT meter_id, system_title FROM meters WHERE adopted = 0 AND meter_id = ?1 \
                 UNION ALL \
                 SELECT meter_id, system_title FROM meters WHERE adopted = 1 AND meter_id = ?1 LIMIT 1";
    let row = sqlx::query(query).bind(meter_id.as_str()).fetch_optional(connection).await;
    row.map_err(classify)?.as_ref().map(place).transpose()
}

/// In one statement: each is a way to the connection's thread and back.
pub(super) async fn find_meters(
    connection: &mut SqliteConnection,
    meter_ids: &[MeterId],
) -> Result<Vec<IndexedMeter>, StoreError> {
    let query = "SELECT meter_id, system_title FROM meters \
                     WHERE adopted = 0 AND meter_id IN (SELECT value FROM json_each(?1)) \
                 UNION ALL \
                 SELECT meter_id, system_title FROM meters \
                     WHERE adopted = 1 AND meter_id IN (SELECT value FROM json_each(?1))";
    let asked = json_of(meter_ids.iter().map(|id| serde_json::Value::from(id.as_str())));
    let rows = sqlx::query(query).bind(asked).fetch_all(connection).await.map_err(classify)?;
    let mut found: Vec<IndexedMeter> = rows.iter().map(place).collect::<Result<_, _>>()?;
    // Two meters that came from a peer may claim an id for a while: one of them is shown, as by `find_meter`.
    let mut seen = std::collections::HashSet::new();
    found.retain(|meter| seen.insert(meter.meter_id.clone()));
    Ok(found)
}

/// What SQLite takes as a list.
fn json_of(values: impl Iterator<Item = serde_json::Value>) -> String {
    serde_json::Value::Array(values.collect()).to_string()
}

/// Those of the fingerprints that anybody has, in one statement: of a fleet's first import, none.
async fn held(
    connection: &mut SqliteConnection,
    fingerprints: &[Fingerprint],
) -> Result<Vec<Fingerprint>, StoreError> {
    let query = "SELECT key FROM json_each(?1) \
                 WHERE EXISTS (SELECT 1 FROM key_fingerprints WHERE fingerprint = unhex(value)) ORDER BY key";
    let asked = json_of(fingerprints.iter().map(|it| serde_json::Value::from(hex::encode(it.0))));
    let rows = sqlx::query_scalar::<_, i64>(query).bind(asked).fetch_all(connection).await;
    let places = rows.map_err(classify)?.into_iter();
    Ok(places
        .filter_map(|at| usize::try_from(at).ok().and_then(|at| fingerprints.get(at)).copied())
        .collect())
}

pub(super) async fn find_title(
    connection: &mut SqliteConnection,
    title: &SystemTitle,
) -> Result<Option<IndexedMeter>, StoreError> {
    let query = "SELECT meter_id, system_title FROM meters WHERE system_title = ?";
    let row = sqlx::query(query).bind(&title.as_bytes()[..]).fetch_optional(connection).await;
    row.map_err(classify)?.as_ref().map(place).transpose()
}

pub(super) async fn list_meters(
    connection: &mut SqliteConnection,
    after: Option<&MeterId>,
    limit: u32,
) -> Result<Vec<IndexedMeter>, StoreError> {
    // No meter id is empty, so all of them come after the empty text. What can be no id was written by
    // somebody else, and must not end the list.
    let query = "SELECT meter_id, system_title FROM meters WHERE adopted = 0 AND meter_id > ?1 \
                 AND length(meter_id) <= 64 AND meter_id NOT GLOB '*[^!-~]*' \
                 UNION ALL \
                 SELECT meter_id, system_title FROM meters WHERE adopted = 1 AND meter_id > ?1 \
                 AND length(meter_id) <= 64 AND meter_id NOT GLOB '*[^!-~]*' \
                 ORDER BY meter_id, system_title LIMIT ?2";
    let rows = sqlx::query(query)
        .bind(after.map_or("", MeterId::as_str))
        .bind(limit)
        .fetch_all(connection)
        .await
        .map_err(classify)?;
    rows.iter().map(place).collect()
}

pub(super) async fn count_meters(connection: &mut SqliteConnection) -> Result<u64, StoreError> {
    let query = "SELECT COUNT(*) FROM meters";
    number(&sqlx::query(query).fetch_one(connection).await.map_err(classify)?, 0)
}

pub(super) async fn holders_of(
    connection: &mut SqliteConnection,
    fingerprints: &[Fingerprint],
    limit: u32,
) -> Result<Vec<Holder>, StoreError> {
    let query = "SELECT key_fingerprints.system_title, meter_id \
                 FROM key_fingerprints LEFT JOIN meters USING (system_title) \
                 WHERE fingerprint = ? \
                 ORDER BY meter_id IS NULL, key_fingerprints.system_title LIMIT ?";
    let mut holders = Vec::new();
    for fingerprint in &held(connection, fingerprints).await? {
        let rows = sqlx::query(query)
            .bind(&fingerprint.0[..])
            .bind(limit)
            .fetch_all(&mut *connection)
            .await
            .map_err(classify)?;
        for row in &rows {
            holders.push((*fingerprint, SystemTitle::new(array(row, 0)?), living(row, 1)?));
        }
    }
    Ok(holders)
}

//! Queries. Each is one range scan or one look-up.

use futures_util::TryStreamExt as _;
use sqlx::{Connection as _, Row as _, SqliteConnection};

use super::columns::{
    array, bytes, classify, head, head_columns, number, optional_array, position, record, text,
};
use crate::store::{Holder, IndexedMeter, Positions, SealedSecret, StoreError, StoredBlock};
use kms_core::{
    BlockCount, BlockNo, DomainId, DomainRecord, Epoch, Fingerprint, Head, MeterId, StoredRecord,
    SystemTitle, site::peer::PeerKind,
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

/// All of a block, its three parts of one moment.
pub(super) async fn block_of_one_moment(
    connection: &mut SqliteConnection,
    block: BlockNo,
) -> Result<Option<StoredBlock>, StoreError> {
    // Dropped at the end: it only reads, and rolling back is ending.
    let mut moment = connection.begin().await.map_err(classify)?;
    self::block(&mut moment, block).await
}

/// All of a block. The caller has begun a transaction, so that the three parts are of one moment.
pub(super) async fn block(
    connection: &mut SqliteConnection,
    block: BlockNo,
) -> Result<Option<StoredBlock>, StoreError> {
    let query = concat!("SELECT ", head_columns!(), " FROM blocks WHERE block = ?");
    let row = sqlx::query(query)
        .bind(block.0)
        .fetch_optional(&mut *connection)
        .await
        .map_err(classify)?;
    let Some(head) = row.as_ref().map(head).transpose()? else { return Ok(None) };
    let seals = seals(connection, block).await?;
    let records = records(connection, &head).await?;
    Ok(Some(StoredBlock { head, seals, records }))
}

async fn seals(
    connection: &mut SqliteConnection,
    block: BlockNo,
) -> Result<Vec<SealedSecret>, StoreError> {
    let query = "SELECT secret_version, kek_id, sealed FROM block_seals WHERE block = ? \
                 ORDER BY secret_version, kek_id";
    let rows = sqlx::query(query).bind(block.0).fetch_all(connection).await.map_err(classify)?;
    rows.iter()
        .map(|row| {
            Ok(SealedSecret {
                secret_version: number(row, 0)?,
                kek_id: array(row, 1)?,
                sealed: bytes(row, 2)?.to_vec(),
            })
        })
        .collect()
}

async fn records(
    connection: &mut SqliteConnection,
    head: &Head,
) -> Result<Vec<StoredRecord>, StoreError> {
    let query = "SELECT key, epoch, sequence, secret_version, mac, body FROM records \
                 WHERE block = ? ORDER BY key";
    let mut rows = sqlx::query(query).bind(head.block.0).fetch(connection);
    // A hint only: a damaged head must not make us ask for memory that we don't have.
    let mut records = Vec::with_capacity(head.count.min(4_096) as usize);
    while let Some(row) = rows.try_next().await.map_err(classify)? {
        records.push(record(&row)?);
    }
    Ok(records)
}

fn place(row: &sqlx::sqlite::SqliteRow) -> Result<IndexedMeter, StoreError> {
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
    for fingerprint in fingerprints {
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

//! Queries. Each is one statement: one trip, and one moment.

use sqlx::{PgConnection, Row as _, postgres::PgRow};

use super::columns::{
    array, bytes, classify, head, number, optional_array, position, record_key, text,
};
use crate::store::{
    Holder, IndexedMeter, Positions, SealedSecret, StandbyLag, StoreError, StoredBlock, Timeline,
};
use kms_core::{
    BlockCount, BlockNo, DomainId, DomainRecord, Epoch, Fingerprint, Head, MeterId, Position,
    RecordKey, StoredRecord, SystemTitle, site::peer::PeerKind,
};

pub(super) async fn domain(
    connection: &mut PgConnection,
) -> Result<Option<DomainRecord>, StoreError> {
    let query = "SELECT domain, blocks, site, epoch, even::int::bigint, canaries, created_ms, \
                 signature, read_only::int::bigint \
                 FROM domain";
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

pub(super) async fn heads(connection: &mut PgConnection) -> Result<Vec<Head>, StoreError> {
    let query = "SELECT block, epoch, sequence, secret_version, count, digest, mac \
                 FROM blocks ORDER BY block";
    let rows = sqlx::query(query).fetch_all(connection).await.map_err(classify)?;
    rows.iter().map(head).collect()
}

pub(super) async fn heads_of(
    connection: &mut PgConnection,
    blocks: &[BlockNo],
) -> Result<Vec<Head>, StoreError> {
    let query = "SELECT block, epoch, sequence, secret_version, count, digest, mac \
                 FROM blocks WHERE block = ANY($1) ORDER BY block";
    let blocks: Vec<i64> = blocks.iter().map(|block| i64::from(block.0)).collect();
    let rows = sqlx::query(query).bind(blocks).fetch_all(connection).await.map_err(classify)?;
    rows.iter().map(head).collect()
}

/// Where all blocks stand: a third of what their heads are.
pub(super) async fn positions(connection: &mut PgConnection) -> Result<Positions, StoreError> {
    let query = "SELECT block, epoch, sequence FROM blocks";
    let rows = sqlx::query(query).fetch_all(connection).await.map_err(classify)?;
    let read = |row| (number(row, 0).map(BlockNo), position(row, 1));
    Ok(Positions::of_rows(rows.iter().map(read)))
}

pub(super) async fn position_of(
    connection: &mut PgConnection,
    block: BlockNo,
) -> Result<Option<Position>, StoreError> {
    let query = "SELECT epoch, sequence FROM blocks WHERE block = $1";
    let row = sqlx::query(query).bind(i64::from(block.0)).fetch_optional(connection).await;
    row.map_err(classify)?.map(|row| position(&row, 0)).transpose()
}

/// The part of a block that is in a row of [`BLOCK`].
pub(super) mod part {
    pub(in super::super) const HEAD: i64 = 0;
    pub(super) const SEAL: i64 = 1;
    pub(in super::super) const RECORD: i64 = 2;
}

/// All of a block in one statement, so that its parts are of one moment without a transaction around
/// them. Columns: part, key, epoch, sequence, secret version, MAC, bytes, count.
macro_rules! block_query {
    () => {
        "\
SELECT 0::bigint, ''::bytea, epoch, sequence, secret_version, mac, digest, count \
  FROM blocks WHERE block = $1 \
UNION ALL \
SELECT 1, kek_id, 0, 0, secret_version, ''::bytea, sealed, 0 FROM block_seals WHERE block = $1 \
UNION ALL \
SELECT 2, key, epoch, sequence, secret_version, mac, body, 0 FROM records WHERE block = $1"
    };
}

const BLOCK: &str = block_query!();

const BLOCK_IN_PART: &str = concat!(block_query!(), " AND key = ANY($2)");

pub(super) async fn block(
    connection: &mut PgConnection,
    block: BlockNo,
) -> Result<Option<StoredBlock>, StoreError> {
    let rows = sqlx::query(BLOCK).bind(i64::from(block.0)).fetch_all(connection).await;
    stored(block, &rows.map_err(classify)?)
}

/// The same, with those of its records that have one of these keys.
pub(super) async fn block_in_part(
    connection: &mut PgConnection,
    block: BlockNo,
    keys: &[RecordKey],
) -> Result<Option<StoredBlock>, StoreError> {
    let keys: Vec<&[u8]> = keys.iter().map(RecordKey::as_bytes).collect();
    let asked = sqlx::query(BLOCK_IN_PART).bind(i64::from(block.0)).bind(keys);
    stored(block, &asked.fetch_all(connection).await.map_err(classify)?)
}

fn stored(block: BlockNo, rows: &[PgRow]) -> Result<Option<StoredBlock>, StoreError> {
    let (mut head, mut seals) = (None, Vec::new());
    let mut records = Vec::with_capacity(rows.len());
    for row in rows {
        match number(row, 0)? {
            part::HEAD => head = Some(head_of(block, row)?),
            part::SEAL => seals.push(seal(row)?),
            part::RECORD => records.push(record(row)?),
            part => return Err(StoreError::Damaged(format!("a block has no part {part}"))),
        }
    }
    let Some(head) = head else { return Ok(None) };
    // Sorted here: the database promises no order over the parts of a UNION.
    seals.sort_unstable_by_key(|seal| (seal.secret_version, seal.kek_id));
    records.sort_unstable_by_key(|record| record.key);
    Ok(Some(StoredBlock { head, seals, records }))
}

pub(super) fn head_of(block: BlockNo, row: &PgRow) -> Result<Head, StoreError> {
    Ok(Head {
        block,
        position: position(row, 2)?,
        secret_version: number(row, 4)?,
        mac: array(row, 5)?,
        digest: array(row, 6)?,
        count: number(row, 7)?,
    })
}

fn seal(row: &PgRow) -> Result<SealedSecret, StoreError> {
    Ok(SealedSecret {
        kek_id: array(row, 1)?,
        secret_version: number(row, 4)?,
        sealed: bytes(row, 6)?.to_vec(),
    })
}

pub(super) fn record(row: &PgRow) -> Result<StoredRecord, StoreError> {
    Ok(StoredRecord {
        key: record_key(row, 1)?,
        position: position(row, 2)?,
        secret_version: number(row, 4)?,
        mac: array(row, 5)?,
        body: bytes(row, 6)?.to_vec(),
    })
}

fn place(row: &PgRow) -> Result<IndexedMeter, StoreError> {
    Ok(IndexedMeter { meter_id: meter_id(row, 0)?, system_title: SystemTitle::new(array(row, 1)?) })
}

fn meter_id(row: &PgRow, at: usize) -> Result<MeterId, StoreError> {
    MeterId::new(text(row, at)?).map_err(|error| StoreError::Damaged(error.to_string()))
}

fn living(row: &PgRow, at: usize) -> Result<Option<MeterId>, StoreError> {
    let id: Option<&str> = row.try_get(at).map_err(classify)?;
    let id = id.map(MeterId::new).transpose();
    id.map_err(|error| StoreError::Damaged(error.to_string()))
}

pub(super) async fn find_meter(
    connection: &mut PgConnection,
    meter_id: &MeterId,
) -> Result<Option<IndexedMeter>, StoreError> {
    // Two meters that came from a peer may claim it for a while: one of them is shown.
    let query = "SELECT meter_id, system_title FROM meters WHERE NOT adopted AND meter_id = $1 \
                 UNION ALL \
                 SELECT meter_id, system_title FROM meters WHERE adopted AND meter_id = $1 LIMIT 1";
    let row = sqlx::query(query).bind(meter_id.as_str()).fetch_optional(connection).await;
    row.map_err(classify)?.as_ref().map(place).transpose()
}

pub(super) async fn find_meters(
    connection: &mut PgConnection,
    meter_ids: &[MeterId],
) -> Result<Vec<IndexedMeter>, StoreError> {
    let query = "SELECT meter_id, system_title FROM meters WHERE NOT adopted AND meter_id = ANY($1) \
                 UNION ALL \
                 SELECT meter_id, system_title FROM meters WHERE adopted AND meter_id = ANY($1)";
    let asked: Vec<&str> = meter_ids.iter().map(MeterId::as_str).collect();
    let rows = sqlx::query(query).bind(asked).fetch_all(connection).await.map_err(classify)?;
    let mut found: Vec<IndexedMeter> = rows.iter().map(place).collect::<Result<_, _>>()?;
    // Two meters that came from a peer may claim an id for a while: one of them is shown, as by `find_meter`.
    let mut seen = std::collections::HashSet::new();
    found.retain(|meter| seen.insert(meter.meter_id.clone()));
    Ok(found)
}

pub(super) async fn find_title(
    connection: &mut PgConnection,
    title: &SystemTitle,
) -> Result<Option<IndexedMeter>, StoreError> {
    let query = "SELECT meter_id, system_title FROM meters WHERE system_title = $1";
    let row = sqlx::query(query).bind(&title.as_bytes()[..]).fetch_optional(connection).await;
    row.map_err(classify)?.as_ref().map(place).transpose()
}

pub(super) async fn list_meters(
    connection: &mut PgConnection,
    after: Option<&MeterId>,
    limit: u32,
) -> Result<Vec<IndexedMeter>, StoreError> {
    // No meter id is empty, so all of them come after the empty text. What can be no id was written by
    // somebody else, and must not end the list.
    let query = "(SELECT meter_id, system_title FROM meters WHERE NOT adopted AND meter_id > $1 \
                 AND meter_id ~ '^[!-~]{1,64}$' ORDER BY meter_id LIMIT $2) \
                 UNION ALL \
                 (SELECT meter_id, system_title FROM meters WHERE adopted AND meter_id > $1 \
                 AND meter_id ~ '^[!-~]{1,64}$' ORDER BY meter_id LIMIT $2) \
                 ORDER BY meter_id, system_title LIMIT $2";
    let rows = sqlx::query(query)
        .bind(after.map_or("", MeterId::as_str))
        .bind(i64::from(limit))
        .fetch_all(connection)
        .await
        .map_err(classify)?;
    rows.iter().map(place).collect()
}

pub(super) async fn count_meters(connection: &mut PgConnection) -> Result<u64, StoreError> {
    let query = "SELECT count(*) FROM meters";
    number(&sqlx::query(query).fetch_one(connection).await.map_err(classify)?, 0)
}

pub(super) async fn holders_of(
    connection: &mut PgConnection,
    fingerprints: &[Fingerprint],
    limit: u32,
) -> Result<Vec<Holder>, StoreError> {
    let query = "SELECT asked.fingerprint, holder.system_title, holder.meter_id \
                 FROM unnest($1::bytea[]) WITH ORDINALITY AS asked (fingerprint, nth) \
                 CROSS JOIN LATERAL (SELECT meter_id, system_title \
                     FROM key_fingerprints LEFT JOIN meters USING (system_title) \
                     WHERE key_fingerprints.fingerprint = asked.fingerprint \
                     ORDER BY meter_id IS NULL, system_title LIMIT $2) AS holder \
                 ORDER BY asked.nth, holder.meter_id IS NULL, holder.system_title";
    let asked: Vec<&[u8]> = fingerprints.iter().map(|fingerprint| &fingerprint.0[..]).collect();
    let rows = sqlx::query(query).bind(asked).bind(i64::from(limit)).fetch_all(connection).await;
    let rows = rows.map_err(classify)?;
    rows.iter()
        .map(|row| {
            Ok((Fingerprint(array(row, 0)?), SystemTitle::new(array(row, 1)?), living(row, 2)?))
        })
        .collect()
}

/// Asked of the WAL that is written now: what the control file says comes late.
pub(super) async fn timeline(
    connection: &mut PgConnection,
) -> Result<Option<Timeline>, StoreError> {
    let query = "SELECT system_identifier::text, CASE WHEN NOT pg_is_in_recovery() \
                 THEN left(pg_walfile_name(pg_current_wal_lsn()), 8) END FROM pg_control_system()";
    let row = sqlx::query_as::<_, (String, Option<String>)>(query).fetch_one(connection).await;
    let (system, number) = row.map_err(classify)?;
    let damaged = |_| StoreError::Damaged("the database's timeline can't be read".to_owned());
    let number = number.map(|number| u32::from_str_radix(&number, 16)).transpose();
    Ok(number.map_err(damaged)?.map(|number| Timeline { system, number }))
}

/// Whether it is a primary whose transactions can't change anything.
pub(super) async fn is_read_only_primary(
    connection: &mut PgConnection,
) -> Result<bool, StoreError> {
    let query = "SELECT NOT pg_is_in_recovery() AND current_setting('transaction_read_only')::bool";
    sqlx::query_scalar(query).fetch_one(connection).await.map_err(classify)
}

pub(super) async fn takes_changes(connection: &mut PgConnection) -> Result<(), StoreError> {
    if is_read_only_primary(connection).await? {
        return Err(StoreError::ReadOnlyPrimary);
    }
    Ok(())
}

/// Roles without `pg_read_all_stats` don't see the primary's end of WAL: for them the bytes are those
/// received and not replayed.
const STANDBY_LAG: &str = "\
SELECT greatest(pg_wal_lsn_diff( \
           greatest(pg_last_wal_receive_lsn(), receiver.latest_end_lsn), \
           pg_last_wal_replay_lsn()), 0)::bigint, \
       (CASE WHEN receiver.pid IS NOT NULL \
                  AND pg_last_wal_replay_lsn() >= pg_last_wal_receive_lsn() THEN 0 \
             ELSE extract(epoch FROM now() - pg_last_xact_replay_timestamp()) * 1000 END)::bigint, \
       receiver.pid IS NOT NULL \
FROM (SELECT pg_is_in_recovery() AS standby) AS role LEFT JOIN pg_stat_wal_receiver AS receiver ON true \
WHERE role.standby";

pub(super) async fn standby_lag(
    connection: &mut PgConnection,
) -> Result<Option<StandbyLag>, StoreError> {
    type Row = (Option<i64>, Option<i64>, bool);
    let row = sqlx::query_as::<_, Row>(STANDBY_LAG).fetch_optional(connection).await;
    Ok(row.map_err(classify)?.map(|(bytes, ms, receiving)| StandbyLag {
        bytes: bytes.and_then(|bytes| bytes.try_into().ok()).unwrap_or(0),
        ms: ms.map(|ms| ms.try_into().unwrap_or(0)),
        receiving,
    }))
}

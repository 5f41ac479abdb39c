//! Receive floors.

use sqlx::{PgConnection, Row as _, postgres::PgRow};

use super::{
    columns::{array, bounded, classify, number, signed},
    failure::WriteError,
};
use crate::store::{StoreError, floors::FloorRun};
use kms_core::{
    BlockNo, Fingerprint, SystemTitle,
    audit::NodeId,
    counters::LineName,
    floors::{FloorPlace, FloorRow},
};

pub(super) async fn of_block(
    connection: &mut PgConnection,
    block: BlockNo,
) -> Result<Vec<FloorRow>, StoreError> {
    let query = "SELECT block, fingerprint, originator, node, at_ms, body, mac FROM receive_floors \
                 WHERE block = $1";
    let rows = sqlx::query(query).bind(i64::from(block.0)).fetch_all(connection).await;
    rows.map_err(classify)?.iter().map(floor_row).collect()
}

pub(super) async fn after(
    connection: &mut PgConnection,
    place: &FloorPlace,
    but: &NodeId,
    limit: u32,
) -> Result<Vec<FloorRow>, StoreError> {
    let query = "SELECT block, fingerprint, originator, node, at_ms, body, mac FROM receive_floors \
                 WHERE (at_ms, block, fingerprint, originator, node) > ($1, $2, $3, $4, $5) AND node <> $6 \
                 ORDER BY at_ms, block, fingerprint, originator, node LIMIT $7";
    let rows = sqlx::query(query)
        .bind(bounded(place.at_ms))
        .bind(i64::from(place.block.0))
        .bind(&place.line.fingerprint.0[..])
        .bind(&place.line.originator.as_bytes()[..])
        .bind(&place.node.0[..])
        .bind(&but.0[..])
        .bind(i64::from(limit))
        .fetch_all(connection)
        .await
        .map_err(classify)?;
    rows.iter().map(floor_row).collect()
}

pub(super) async fn run(
    connection: &mut PgConnection,
    node: &NodeId,
) -> Result<Option<FloorRun>, StoreError> {
    let query = "SELECT at_ms, ended FROM floor_runs WHERE node = $1";
    let row = sqlx::query(query).bind(&node.0[..]).fetch_optional(connection).await;
    let run = |row: PgRow| {
        let ended = row.try_get(1).map_err(classify)?;
        Ok(FloorRun { node: *node, at_ms: number(&row, 0)?, ended })
    };
    row.map_err(classify)?.map(run).transpose()
}

pub(super) async fn put(
    connection: &mut PgConnection,
    rows: &[FloorRow],
    run: &FloorRun,
) -> Result<(), WriteError> {
    let statement = "\
        INSERT INTO receive_floors (block, fingerprint, originator, node, at_ms, body, mac) \
        SELECT * FROM unnest($1::bigint[], $2::bytea[], $3::bytea[], $4::bytea[], $5::bigint[], \
            $6::bytea[], $7::bytea[]) \
        ON CONFLICT (block, fingerprint, originator, node) DO UPDATE \
            SET at_ms = excluded.at_ms, body = excluded.body, mac = excluded.mac";
    if !rows.is_empty() {
        let times: Vec<i64> = rows.iter().map(|row| signed(row.at_ms)).collect::<Result<_, _>>()?;
        sqlx::query(statement)
            .bind(rows.iter().map(|row| i64::from(row.block.0)).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| &row.line.fingerprint.0[..]).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| &row.line.originator.as_bytes()[..]).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| &row.node.0[..]).collect::<Vec<_>>())
            .bind(times)
            .bind(rows.iter().map(|row| &row.body[..]).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| &row.mac[..]).collect::<Vec<_>>())
            .execute(&mut *connection)
            .await?;
    }
    let FloorRun { node, at_ms, ended } = run;
    let statement = "INSERT INTO floor_runs (node, at_ms, ended) VALUES ($1, $2, $3) \
                     ON CONFLICT (node) DO UPDATE SET at_ms = excluded.at_ms, ended = excluded.ended";
    let run = sqlx::query(statement).bind(&node.0[..]).bind(signed(*at_ms)?).bind(*ended);
    run.execute(connection).await?;
    Ok(())
}

fn floor_row(row: &PgRow) -> Result<FloorRow, StoreError> {
    let line = LineName {
        fingerprint: Fingerprint(array(row, 1)?),
        originator: SystemTitle::new(array(row, 2)?),
    };
    Ok(FloorRow {
        block: BlockNo(number(row, 0)?),
        line,
        node: NodeId(array(row, 3)?),
        at_ms: number(row, 4)?,
        body: array(row, 5)?,
        mac: array(row, 6)?,
    })
}

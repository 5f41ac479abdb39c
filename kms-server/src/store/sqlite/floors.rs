//! Receive floors.

use sqlx::{QueryBuilder, Sqlite, SqliteConnection, sqlite::SqliteRow};

use super::{
    columns::{array, bounded, classify, number, signed},
    failure::WriteError,
    pieces::pieces,
};
use crate::store::{StoreError, floors::FloorRun};
use kms_core::{
    BlockNo, Fingerprint, SystemTitle,
    audit::NodeId,
    counters::LineName,
    floors::{FloorPlace, FloorRow},
};

pub(super) async fn of_block(
    connection: &mut SqliteConnection,
    block: BlockNo,
) -> Result<Vec<FloorRow>, StoreError> {
    let query = "SELECT block, fingerprint, originator, node, at_ms, body, mac FROM receive_floors \
                 WHERE block = ?";
    let rows = sqlx::query(query).bind(block.0).fetch_all(connection).await.map_err(classify)?;
    rows.iter().map(floor_row).collect()
}

pub(super) async fn after(
    connection: &mut SqliteConnection,
    place: &FloorPlace,
    but: &NodeId,
    limit: u32,
) -> Result<Vec<FloorRow>, StoreError> {
    let query = "SELECT block, fingerprint, originator, node, at_ms, body, mac FROM receive_floors \
                 WHERE (at_ms, block, fingerprint, originator, node) > (?, ?, ?, ?, ?) AND node <> ? \
                 ORDER BY at_ms, block, fingerprint, originator, node LIMIT ?";
    let rows = sqlx::query(query)
        .bind(bounded(place.at_ms))
        .bind(place.block.0)
        .bind(&place.line.fingerprint.0[..])
        .bind(&place.line.originator.as_bytes()[..])
        .bind(&place.node.0[..])
        .bind(&but.0[..])
        .bind(limit)
        .fetch_all(connection)
        .await
        .map_err(classify)?;
    rows.iter().map(floor_row).collect()
}

pub(super) async fn run(
    connection: &mut SqliteConnection,
    node: &NodeId,
) -> Result<Option<FloorRun>, StoreError> {
    let query = "SELECT at_ms, ended FROM floor_runs WHERE node = ?";
    let row = sqlx::query(query).bind(&node.0[..]).fetch_optional(connection).await;
    let run = |row: SqliteRow| {
        let ended: u8 = number(&row, 1)?;
        Ok(FloorRun { node: *node, at_ms: number(&row, 0)?, ended: ended != 0 })
    };
    row.map_err(classify)?.map(run).transpose()
}

pub(super) async fn put(
    connection: &mut SqliteConnection,
    rows: &[FloorRow],
    run: &FloorRun,
) -> Result<(), WriteError> {
    for row in rows {
        signed(row.at_ms)?;
    }
    for piece in pieces(rows) {
        let mut statement = QueryBuilder::<Sqlite>::new(
            "INSERT INTO receive_floors (block, fingerprint, originator, node, at_ms, body, mac) ",
        );
        statement.push_values(piece, |mut values, row| {
            let FloorRow { block, line, node, at_ms, body, mac } = row;
            values
                .push_bind(block.0)
                .push_bind(&line.fingerprint.0[..])
                .push_bind(&line.originator.as_bytes()[..])
                .push_bind(&node.0[..])
                .push_bind(*at_ms as i64) // `signed`, above.
                .push_bind(&body[..])
                .push_bind(&mac[..]);
        });
        statement.push(
            " ON CONFLICT (block, fingerprint, originator, node) DO UPDATE \
             SET at_ms = excluded.at_ms, body = excluded.body, mac = excluded.mac",
        );
        statement.build().execute(&mut *connection).await?;
    }
    let FloorRun { node, at_ms, ended } = run;
    let statement = "INSERT INTO floor_runs (node, at_ms, ended) VALUES (?, ?, ?) \
                     ON CONFLICT (node) DO UPDATE SET at_ms = excluded.at_ms, ended = excluded.ended";
    let run = sqlx::query(statement).bind(&node.0[..]).bind(signed(*at_ms)?).bind(*ended);
    run.execute(connection).await?;
    Ok(())
}

fn floor_row(row: &SqliteRow) -> Result<FloorRow, StoreError> {
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

//! Signed papers about the two sites, and records that this release can't read.

use sqlx::{QueryBuilder, Sqlite, SqliteConnection, sqlite::SqliteRow};

use super::{
    columns::{array, bytes, classify, number, record_key, signed, text},
    failure::WriteError,
};
use crate::store::{
    StoreError,
    papers::{Paper, PaperKind, Strange},
};
use kms_core::{BlockNo, Epoch};

pub(super) async fn papers(connection: &mut SqliteConnection) -> Result<Vec<Paper>, StoreError> {
    let query =
        "SELECT kind, site, epoch, number, body, signature, signer FROM papers ORDER BY kind, site";
    let rows = sqlx::query(query).fetch_all(connection).await.map_err(classify)?;
    rows.iter().map(paper).collect()
}

fn paper(row: &SqliteRow) -> Result<Paper, StoreError> {
    Ok(Paper {
        kind: PaperKind::kept(number(row, 0)?)?,
        site: text(row, 1)?.to_owned(),
        place: (Epoch(number(row, 2)?), number(row, 3)?),
        body: bytes(row, 4)?.to_vec(),
        signature: array(row, 5)?,
        signer: array(row, 6)?,
    })
}

pub(super) async fn put_paper(
    connection: &mut SqliteConnection,
    paper: &Paper,
) -> Result<bool, WriteError> {
    let Paper { kind, site, place: (epoch, number), body, signature, signer } = paper;
    let statement = "INSERT INTO papers (kind, site, epoch, number, body, signature, signer) \
                     VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (kind, site) DO UPDATE \
                     SET epoch = excluded.epoch, number = excluded.number, body = excluded.body, \
                     signature = excluded.signature, signer = excluded.signer \
                     WHERE papers.signer <> excluded.signer \
                     OR (excluded.epoch, excluded.number) > (papers.epoch, papers.number)";
    let put = sqlx::query(statement)
        .bind(*kind as u8)
        .bind(site)
        .bind(signed(epoch.0)?)
        .bind(signed(*number)?)
        .bind(body)
        .bind(&signature[..])
        .bind(&signer[..]);
    Ok(put.execute(connection).await?.rows_affected() == 1)
}

pub(super) async fn strange_records(
    connection: &mut SqliteConnection,
    known: &[[u8; 2]],
    limit: u32,
) -> Result<Strange, StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new(
        "SELECT block, key, count(*) OVER () FROM records WHERE substr(body, 1, 2) NOT IN (",
    );
    let mut list = query.separated(", ");
    for beginning in known {
        list.push_bind(&beginning[..]);
    }
    query.push(") ORDER BY block, key LIMIT ").push_bind(limit);
    let rows = query.build().fetch_all(connection).await.map_err(classify)?;
    let some = rows.iter().map(|row| Ok((BlockNo(number(row, 0)?), record_key(row, 1)?)));
    let count = rows.first().map(|row| number(row, 2)).transpose()?.unwrap_or(0);
    Ok(Strange { count, some: some.collect::<Result<_, StoreError>>()? })
}

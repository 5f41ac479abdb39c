//! Signed papers about the two sites, and records that this release can't read.

use sqlx::{PgConnection, postgres::PgRow};

use super::columns::{array, bytes, classify, number, record_key, signed, text};
use crate::store::{
    StoreError,
    papers::{Paper, PaperKind, Strange},
};
use kms_core::{BlockNo, Epoch};

pub(super) async fn papers(connection: &mut PgConnection) -> Result<Vec<Paper>, StoreError> {
    let query =
        "SELECT kind, site, epoch, number, body, signature, signer FROM papers ORDER BY kind, site";
    let rows = sqlx::query(query).fetch_all(connection).await.map_err(classify)?;
    rows.iter().map(paper).collect()
}

fn paper(row: &PgRow) -> Result<Paper, StoreError> {
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
    connection: &mut PgConnection,
    paper: &Paper,
) -> Result<bool, StoreError> {
    let Paper { kind, site, place: (epoch, number), body, signature, signer } = paper;
    let statement = "INSERT INTO papers (kind, site, epoch, number, body, signature, signer) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (kind, site) DO UPDATE \
                     SET epoch = excluded.epoch, number = excluded.number, body = excluded.body, \
                     signature = excluded.signature, signer = excluded.signer \
                     WHERE papers.signer <> excluded.signer \
                     OR (excluded.epoch, excluded.number) > (papers.epoch, papers.number)";
    let put = sqlx::query(statement)
        .bind(*kind as i64)
        .bind(site)
        .bind(signed(epoch.0)?)
        .bind(signed(*number)?)
        .bind(body)
        .bind(&signature[..])
        .bind(&signer[..]);
    Ok(put.execute(connection).await.map_err(classify)?.rows_affected() == 1)
}

pub(super) async fn strange_records(
    connection: &mut PgConnection,
    known: &[[u8; 2]],
    limit: u32,
) -> Result<Strange, StoreError> {
    let query = "SELECT block, key, count(*) OVER () FROM records \
                 WHERE substring(body FROM 1 FOR 2) <> ALL ($1::bytea[]) ORDER BY block, key LIMIT $2";
    let known: Vec<&[u8]> = known.iter().map(|beginning| &beginning[..]).collect();
    let rows = sqlx::query(query).bind(known).bind(i64::from(limit)).fetch_all(connection).await;
    let rows = rows.map_err(classify)?;
    let some = rows.iter().map(|row| Ok((BlockNo(number(row, 0)?), record_key(row, 1)?)));
    let count = rows.first().map(|row| number(row, 2)).transpose()?.unwrap_or(0);
    Ok(Strange { count, some: some.collect::<Result<_, StoreError>>()? })
}

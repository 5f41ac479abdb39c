//! Site KEKs.

use async_trait::async_trait;
use sqlx::{Row as _, sqlite::SqliteRow};

use super::{
    SqliteStore,
    columns::{array, bytes, classify, number},
    rows,
};
use crate::store::{
    ChainLink, SealedSecret, StoreError,
    keks::{KekRows, KekStep, KekStore, Pair, Twins},
    work::Work,
};
use kms_core::{
    BlockNo,
    site::keks::{KekId, Looked, SignedSiteKeks, SiteKeks},
};

#[async_trait]
impl KekRows for SqliteStore {
    async fn site_keks(&self) -> Result<Vec<SignedSiteKeks>, StoreError> {
        let query = "SELECT body, signature FROM site_keks ORDER BY token";
        let mut reader = self.reader().await?;
        let rows = sqlx::query(query).fetch_all(&mut *reader).await.map_err(classify)?;
        let damaged = |_| StoreError::Damaged("the row of site KEKs can't be read".to_owned());
        rows.iter()
            .map(|row| {
                let keks = SiteKeks::decode(bytes(row, 0)?).map_err(damaged)?;
                Ok(SignedSiteKeks { keks, signature: array(row, 1)? })
            })
            .collect()
    }
}

#[async_trait]
impl KekStore for SqliteStore {
    async fn pairs(
        &self,
        twins: Twins,
        after: Option<(BlockNo, u32)>,
        limit: u32,
    ) -> Result<Vec<Pair>, StoreError> {
        let query = "SELECT it.block, it.secret_version, it.sealed, twin.sealed FROM block_seals AS it \
                     LEFT JOIN block_seals AS twin ON twin.block = it.block AND \
                     twin.secret_version = it.secret_version AND twin.kek_id = ?2 \
                     WHERE it.kek_id = ?1 AND (it.block, it.secret_version) > (?3, ?4) \
                     ORDER BY it.block, it.secret_version LIMIT ?5";
        let (block, version) =
            after.map_or((-1, 0), |(block, version)| (i64::from(block.0), i64::from(version)));
        let mut reader = self.reader().await?;
        let query = sqlx::query(query).bind(&twins.former[..]).bind(&twins.new[..]);
        let query = query.bind(block).bind(version).bind(limit);
        let rows = query.fetch_all(&mut *reader).await.map_err(classify)?;
        rows.iter().map(|row| pair(row, twins)).collect()
    }

    async fn count_pairs(&self, twins: Twins) -> Result<Looked, StoreError> {
        let mut reader = self.reader().await?;
        let row = rows::counted_twins(&mut reader, twins).await.map_err(classify)?;
        Ok(Looked {
            blocks: number(&row, 0)?,
            blocks_sealed: number(&row, 1)?,
            seals: number(&row, 2)?,
            proved: 0,
        })
    }

    async fn add_twin(
        &self,
        block: BlockNo,
        former: &KekId,
        twin: &SealedSecret,
    ) -> Result<bool, StoreError> {
        let mut begun = self.begin().await?;
        let statement = "INSERT INTO block_seals (block, secret_version, kek_id, sealed) \
                         SELECT block, secret_version, ?4, ?5 FROM block_seals \
                         WHERE block = ?1 AND secret_version = ?2 AND kek_id = ?3 \
                         ON CONFLICT DO NOTHING";
        let query = sqlx::query(statement).bind(block.0).bind(twin.secret_version);
        let query = query.bind(&former[..]).bind(&twin.kek_id[..]).bind(&twin.sealed);
        let done = query.execute(&mut begun.writer.connection).await;
        let (added, outcome) = match done {
            Ok(done) => (done.rows_affected() == 1, Ok(())),
            Err(error) => (false, Err(error.into())),
        };
        self.end(begun, outcome).await.map(|()| added)
    }

    async fn put_site_keks(&self, step: &KekStep, audit: ChainLink<'_>) -> Result<(), StoreError> {
        self.write(Work::PutSiteKeks(step), audit).await
    }
}

fn pair(row: &SqliteRow, twins: Twins) -> Result<Pair, StoreError> {
    let (block, secret_version) = (BlockNo(number(row, 0)?), number(row, 1)?);
    let seal =
        |kek_id, sealed: &[u8]| SealedSecret { secret_version, kek_id, sealed: sealed.into() };
    let twin: Option<&[u8]> = row.try_get(3).map_err(classify)?;
    Ok(Pair {
        block,
        former: seal(twins.former, bytes(row, 2)?),
        twin: twin.map(|sealed| seal(twins.new, sealed)),
    })
}

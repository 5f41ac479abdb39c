//! Site KEKs.

use async_trait::async_trait;
use sqlx::{Connection as _, PgConnection, Row as _, postgres::PgRow};

use super::{
    COMMIT_PATIENCE, PostgresStore, READ_PATIENCE,
    columns::{array, bytes, classify, number},
    failure::WriteError,
    patience::{let_go, within},
    written,
};
use crate::store::{
    ChainLink, SealedSecret, StoreError,
    keks::{KEK_ROW, KekRows, KekStep, KekStore, Pair, SealsThen, Twins},
    work::Work,
};
use kms_core::{
    BlockNo,
    site::keks::{KekId, Looked, SignedSiteKeks, SiteKeks},
};

#[async_trait]
impl KekRows for PostgresStore {
    async fn site_keks(&self) -> Result<Vec<SignedSiteKeks>, StoreError> {
        let query = "SELECT body, signature FROM site_keks ORDER BY token";
        let mut connection = self.pool.acquire().await.map_err(classify)?;
        let rows = async { sqlx::query(query).fetch_all(&mut *connection).await.map_err(classify) };
        let rows = within(READ_PATIENCE, rows).await;
        let_go(&mut connection, &rows);
        let damaged = |_| StoreError::Damaged("the row of site KEKs can't be read".to_owned());
        rows?
            .iter()
            .map(|row| {
                let keks = SiteKeks::decode(bytes(row, 0)?).map_err(damaged)?;
                Ok(SignedSiteKeks { keks, signature: array(row, 1)? })
            })
            .collect()
    }
}

#[async_trait]
impl KekStore for PostgresStore {
    async fn pairs(
        &self,
        twins: Twins,
        after: Option<(BlockNo, u32)>,
        limit: u32,
    ) -> Result<Vec<Pair>, StoreError> {
        let query = "SELECT it.block, it.secret_version, it.sealed, twin.sealed FROM block_seals AS it \
                     LEFT JOIN block_seals AS twin ON twin.block = it.block AND \
                     twin.secret_version = it.secret_version AND twin.kek_id = $2 \
                     WHERE it.kek_id = $1 AND (it.block, it.secret_version) > ($3, $4) \
                     ORDER BY it.block, it.secret_version LIMIT $5";
        let (block, version) =
            after.map_or((-1, 0), |(block, version)| (i64::from(block.0), i64::from(version)));
        let mut connection = self.pool.acquire().await.map_err(classify)?;
        let query = sqlx::query(query).bind(&twins.former[..]).bind(&twins.new[..]);
        let query = query.bind(block).bind(version).bind(i64::from(limit));
        let rows = async { query.fetch_all(&mut *connection).await.map_err(classify) };
        let rows = within(READ_PATIENCE, rows).await;
        let_go(&mut connection, &rows);
        rows?.iter().map(|row| pair(row, twins)).collect()
    }

    async fn count_pairs(&self, twins: Twins) -> Result<Looked, StoreError> {
        let mut connection = self.pool.acquire().await.map_err(classify)?;
        let row = async { counted(&mut connection, twins).await.map_err(classify) };
        let row = within(READ_PATIENCE, row).await;
        let_go(&mut connection, &row);
        let row = row?;
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
        let statement = "INSERT INTO block_seals (block, secret_version, kek_id, sealed) \
                         SELECT block, secret_version, $4, $5 FROM block_seals \
                         WHERE block = $1 AND secret_version = $2 AND kek_id = $3 \
                         ON CONFLICT DO NOTHING";
        let mut connection = self.pool.acquire().await.map_err(classify)?;
        let mut added = false;
        let work = async {
            let mut whole = connection.begin().await?;
            let query = sqlx::query(statement).bind(i64::from(block.0));
            let query = query.bind(i64::from(twin.secret_version)).bind(&former[..]);
            let query = query.bind(&twin.kek_id[..]).bind(&twin.sealed);
            added = query.execute(&mut *whole).await?.rows_affected() == 1;
            Ok(whole.commit().await?)
        };
        let work = async { work.await.map_err(|error: WriteError| error.of_commit(Some(block))) };
        let outcome = within(COMMIT_PATIENCE, work).await;
        written(&mut connection, outcome).await?;
        Ok(added)
    }

    async fn put_site_keks(&self, step: &KekStep, audit: ChainLink<'_>) -> Result<(), StoreError> {
        self.write(Work::PutSiteKeks(step), audit).await
    }
}

fn pair(row: &PgRow, twins: Twins) -> Result<Pair, StoreError> {
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

/// Blocks, those whose present secret has a seal under the new KEK, seals under the former one, those of them with a twin.
async fn counted(connection: &mut PgConnection, twins: Twins) -> Result<PgRow, sqlx::Error> {
    let query = "SELECT (SELECT count(*) FROM blocks), \
                 (SELECT count(*) FROM blocks JOIN block_seals AS twin USING (block, secret_version) \
                  WHERE twin.kek_id = $1), \
                 (SELECT count(*) FROM block_seals WHERE kek_id = $2), \
                 (SELECT count(*) FROM block_seals AS it JOIN block_seals AS twin \
                  USING (block, secret_version) WHERE it.kek_id = $2 AND twin.kek_id = $1)";
    let query = sqlx::query(query).bind(&twins.new[..]).bind(&twins.former[..]);
    query.fetch_one(connection).await
}

/// Takes a step, in its transaction.
pub(super) async fn put(connection: &mut PgConnection, step: &KekStep) -> Result<(), WriteError> {
    put_row(connection, step).await?;
    let (twins, then) = match step.seals {
        SealsThen::Stay => return Ok(()),
        SealsThen::HaveTwins(twins) => (twins, None),
        SealsThen::Closed(twins) => (twins, Some(CLOSE)),
        SealsThen::Gone(twins) => (twins, Some("DELETE FROM block_seals WHERE kek_id = $1")),
    };
    sqlx::query(ALONE).execute(&mut *connection).await?;
    let row = counted(connection, twins).await?;
    let count = |at| number::<u64>(&row, at);
    if count(0)? != count(1)? || count(2)? != count(3)? {
        return Err(StoreError::Conflict(BlockNo(0)).into());
    }
    if let Some(then) = then {
        sqlx::query(then).bind(&twins.former[..]).execute(connection).await?;
    }
    Ok(())
}

/// Who adds a seal holds the table until he has committed, and looks at closed KEKs behind his row: either he is waited for
/// here, or he sees that it is closed.
const ALONE: &str = "LOCK TABLE block_seals IN SHARE ROW EXCLUSIVE MODE";

const CLOSE: &str = "INSERT INTO closed_keks (kek_id) VALUES ($1) ON CONFLICT DO NOTHING";

/// In the place of the row that it was made from, and of no other.
async fn put_row(connection: &mut PgConnection, step: &KekStep) -> Result<(), WriteError> {
    let KekStep { expected, now: SignedSiteKeks { keks, signature }, seals: _ } = step;
    let statement = match expected {
        None => {
            "INSERT INTO site_keks (token, body, signature) VALUES ($1, $2, $3) \
             ON CONFLICT DO NOTHING"
        }
        Some(_) => {
            "UPDATE site_keks SET body = $2, signature = $3 WHERE token = $1 AND signature = $4"
        }
    };
    let query = sqlx::query(statement).bind(&keks.signing[..]).bind(keks.message());
    let query = query.bind(&signature[..]);
    let query = match expected {
        None => query,
        Some(expected) => query.bind(&expected[..]),
    };
    match query.execute(connection).await?.rows_affected() {
        1 => Ok(()),
        _ => Err(StoreError::Taken { what: KEK_ROW, value: keks.site.clone() }.into()),
    }
}

//! The tokens of this site.

use async_trait::async_trait;
use sqlx::{Connection as _, PgConnection};

use super::{
    COMMIT_PATIENCE, PostgresStore, READ_PATIENCE,
    columns::{array, bytes, classify, signed},
    failure::WriteError,
    patience::{let_go, within},
    role, rows, written,
};
use crate::store::{
    StoreError,
    tokens::{FurtherToken, TOKEN_LISTS, TokenStore},
};
use kms_core::site::tokens::{SignedSiteTokens, SiteTokens};

#[async_trait]
impl TokenStore for PostgresStore {
    async fn site_tokens(&self) -> Result<Vec<SignedSiteTokens>, StoreError> {
        let mut connection = self.pool.acquire().await.map_err(classify)?;
        let outcome = within(READ_PATIENCE, lists(&mut connection)).await;
        let_go(&mut connection, &outcome);
        outcome
    }

    async fn add_token(&self, token: &FurtherToken) -> Result<(), StoreError> {
        let mut connection = self.pool.acquire().await.map_err(classify)?;
        let work = async {
            let mut whole = connection.begin_with(role::BEGIN).await?;
            add(&mut whole, token).await?;
            Ok(whole.commit().await?)
        };
        let work = async { work.await.map_err(|error: WriteError| error.of_commit(None)) };
        let outcome = within(COMMIT_PATIENCE, work).await;
        written(&mut connection, outcome).await
    }
}

async fn lists(connection: &mut PgConnection) -> Result<Vec<SignedSiteTokens>, StoreError> {
    let query = "SELECT body, signature FROM site_tokens ORDER BY place";
    let rows = sqlx::query(query).fetch_all(connection).await.map_err(classify)?;
    let damaged = |_| StoreError::Damaged("a list of this site's tokens can't be read".to_owned());
    rows.iter()
        .map(|row| {
            let tokens = SiteTokens::decode(bytes(row, 0)?).map_err(damaged)?;
            Ok(SignedSiteTokens { tokens, signature: array(row, 1)? })
        })
        .collect()
}

async fn add(connection: &mut PgConnection, token: &FurtherToken) -> Result<(), WriteError> {
    let seals = token.seals.iter().map(|(block, seals)| (*block, &seals[..]));
    rows::add_seals(connection, seals).await?;
    let taken = |place: u64| StoreError::Taken { what: TOKEN_LISTS, value: place.to_string() };
    let statement = "DELETE FROM site_tokens WHERE signature = $1";
    for (place, expected) in (0..).zip(&token.expected) {
        let gone = sqlx::query(statement).bind(&expected[..]).execute(&mut *connection).await?;
        if gone.rows_affected() != 1 {
            return Err(taken(place).into());
        }
    }
    let statement = "INSERT INTO site_tokens (place, body, signature) VALUES ($1, $2, $3) \
                     ON CONFLICT DO NOTHING";
    for (place, list) in (0..).zip(&token.lists) {
        let row = sqlx::query(statement).bind(signed(place)?).bind(list.tokens.message());
        let put = row.bind(&list.signature[..]).execute(&mut *connection).await?;
        if put.rows_affected() != 1 {
            return Err(taken(place).into());
        }
    }
    Ok(())
}

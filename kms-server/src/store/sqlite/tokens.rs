//! The tokens of this site.

use async_trait::async_trait;
use sqlx::SqliteConnection;

use super::{
    SqliteStore,
    columns::{array, bytes, classify, signed},
    failure::WriteError,
    rows,
};
use crate::store::{
    StoreError,
    tokens::{FurtherToken, TOKEN_LISTS, TokenStore},
};
use kms_core::site::tokens::{SignedSiteTokens, SiteTokens};

#[async_trait]
impl TokenStore for SqliteStore {
    async fn site_tokens(&self) -> Result<Vec<SignedSiteTokens>, StoreError> {
        let mut connection = self.reader().await?;
        lists(&mut connection).await
    }

    async fn add_token(&self, token: &FurtherToken) -> Result<(), StoreError> {
        let mut begun = self.begin().await?;
        let outcome = add(&mut begun.writer.connection, token).await;
        self.end(begun, outcome).await
    }
}

async fn lists(connection: &mut SqliteConnection) -> Result<Vec<SignedSiteTokens>, StoreError> {
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

async fn add(connection: &mut SqliteConnection, token: &FurtherToken) -> Result<(), WriteError> {
    let seals = token.seals.iter().map(|(block, seals)| (*block, &seals[..]));
    rows::add_seals(connection, seals).await?;
    let taken = |place: u64| StoreError::Taken { what: TOKEN_LISTS, value: place.to_string() };
    let statement = "DELETE FROM site_tokens WHERE signature = ?";
    for (place, expected) in (0..).zip(&token.expected) {
        let gone = sqlx::query(statement).bind(&expected[..]).execute(&mut *connection).await?;
        if gone.rows_affected() != 1 {
            return Err(taken(place).into());
        }
    }
    let statement = "INSERT INTO site_tokens (place, body, signature) VALUES (?, ?, ?) \
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

//! A site that is served and written to by turns: its server with a client that is everything to it, and its database,
//! by the database itself.

use std::path::PathBuf;

use kms_client::KmsClient;
use softhsm_tests::{Role, Running, Site};
use sqlx::{AssertSqlSafe, Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};

use super::{Home, client, warm};

/// A running server and a client that is everything to it.
pub struct Up {
    pub running: Running,
    pub client: KmsClient,
}

impl Up {
    pub async fn of(home: &Home) -> Self {
        let running = home.start().unwrap();
        let client = client(home, Role::Dev).await;
        warm(&client).await;
        Self { running, client }
    }

    pub fn stop(self) {
        assert!(self.running.stop().unwrap().success());
    }
}

pub fn database(site: &Site) -> PathBuf {
    site.places().data.join("kms.db")
}

pub async fn sql(site: &Site, statements: &str) {
    let options = SqliteConnectOptions::new().filename(database(site)).foreign_keys(false);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

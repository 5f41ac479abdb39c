//! Whatever somebody who may write the database can do to it: rows read and written past the service,
//! in any table, whatever the tables are.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sqlx::{
    AssertSqlSafe, Connection as _, PgConnection, Row as _, SqliteConnection,
    sqlite::SqliteConnectOptions,
};

use super::postgres_common::Cluster;

/// The schema that the service keeps its tables in, on PostgreSQL.
const SCHEMA: &str = "ami_kms";
/// The database on PostgreSQL.
const NAME: &str = "ami";

/// What stands in one column of one row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cell {
    Null,
    Bytes(Vec<u8>),
    Number(i64),
    Flag(bool),
    Text(String),
}

/// How a column is read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bytes,
    Number,
    Flag,
    Text,
}

#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) name: String,
    pub(crate) columns: Vec<String>,
    kinds: Vec<Kind>,
    /// Which columns name a row.
    pub(crate) key: Vec<usize>,
}

pub(crate) type Cells = Vec<Cell>;

/// All rows of all tables.
pub(crate) type Dump = BTreeMap<String, Vec<Cells>>;

impl Table {
    pub(crate) fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column == name)
    }

    pub(crate) fn key_of(&self, row: &Cells) -> Cells {
        self.key.iter().map(|at| row[*at].clone()).collect()
    }

    /// The block that a row belongs to, if this table knows blocks.
    pub(crate) fn block_of(&self, row: &Cells) -> Option<i64> {
        match row[self.column("block")?] {
            Cell::Number(block) => Some(block),
            _ => None,
        }
    }
}

#[derive(Clone)]
pub(crate) enum Database {
    Sqlite(PathBuf),
    Postgres(Arc<Cluster>),
}

impl Database {
    pub(crate) fn sqlite(data: &Path) -> Self {
        Self::Sqlite(data.join("kms.db"))
    }

    fn is_sqlite(&self) -> bool {
        matches!(self, Self::Sqlite(_))
    }

    async fn open_sqlite(path: &Path) -> SqliteConnection {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .foreign_keys(false)
            .busy_timeout(Duration::from_secs(20))
            .pragma("ignore_check_constraints", "ON");
        SqliteConnection::connect_with(&options).await.unwrap()
    }

    async fn open_postgres(cluster: &Cluster) -> PgConnection {
        let mut connection = cluster.beside(NAME).await;
        let path = format!("SET search_path = {SCHEMA}");
        sqlx::raw_sql(AssertSqlSafe(path)).execute(&mut connection).await.unwrap();
        connection
    }

    /// Rules of the schema that keep rows together: an attacker who owns the tables drops them.
    pub(crate) async fn drop_rules(&self) {
        let Self::Postgres(_) = self else { return };
        let sql = format!(
            "SELECT 'ALTER TABLE ' || conrelid::regclass || ' DROP CONSTRAINT ' || quote_ident(conname) \
             || ' CASCADE' FROM pg_constraint JOIN pg_namespace n ON n.oid = connamespace \
             WHERE n.nspname = '{SCHEMA}' AND contype IN ('f', 'c')"
        );
        for row in self.read(&sql).await {
            self.write(&[row[0].clone().unwrap()]).await.unwrap();
        }
    }

    /// Text of the columns of a query.
    async fn read(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        match self {
            Self::Sqlite(path) => {
                let mut connection = Self::open_sqlite(path).await;
                let rows = sqlx::query(AssertSqlSafe(sql.to_owned()));
                let rows = rows.fetch_all(&mut connection).await.unwrap();
                connection.close().await.unwrap();
                rows.iter().map(|row| (0..row.len()).map(|at| row.get(at)).collect()).collect()
            }
            Self::Postgres(cluster) => {
                let mut connection = Self::open_postgres(cluster).await;
                let rows = sqlx::query(AssertSqlSafe(sql.to_owned()));
                let rows = rows.fetch_all(&mut connection).await.unwrap();
                connection.close().await.unwrap();
                rows.iter().map(|row| (0..row.len()).map(|at| row.get(at)).collect()).collect()
            }
        }
    }

    /// All of these statements or none.
    pub(crate) async fn write(&self, statements: &[String]) -> Result<(), sqlx::Error> {
        let sql = format!("BEGIN;{};COMMIT", statements.join(";"));
        match self {
            Self::Sqlite(path) => {
                let mut connection = Self::open_sqlite(path).await;
                let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await;
                // Dropped, an unfinished transaction is rolled back.
                let _ = connection.close().await;
                done.map(|_| ())
            }
            Self::Postgres(cluster) => {
                let mut connection = Self::open_postgres(cluster).await;
                let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await;
                let _ = connection.close().await;
                done.map(|_| ())
            }
        }
    }

    /// The tables there are, by what the database says of itself.
    pub(crate) async fn tables(&self) -> Vec<Table> {
        let names = if self.is_sqlite() {
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' \
             ORDER BY name"
                .to_owned()
        } else {
            format!(
                "SELECT table_name::text FROM information_schema.tables \
                 WHERE table_schema = '{SCHEMA}' ORDER BY 1"
            )
        };
        let mut tables = Vec::new();
        for name in self.read(&names).await {
            let name = name[0].clone().unwrap();
            let columns = if self.is_sqlite() {
                format!("SELECT name, type, CAST(pk AS TEXT) FROM pragma_table_info('{name}')")
            } else {
                format!(
                    "SELECT a.attname::text, format_type(a.atttypid, NULL), \
                     coalesce(array_position(i.indkey::int2[], a.attnum) + 1, 0)::text \
                     FROM pg_attribute a LEFT JOIN pg_index i ON i.indrelid = a.attrelid \
                     AND i.indisprimary WHERE a.attrelid = '{SCHEMA}.{name}'::regclass \
                     AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"
                )
            };
            let mut table = Table { name, columns: vec![], kinds: vec![], key: vec![] };
            for (at, column) in self.read(&columns).await.into_iter().enumerate() {
                let [name, kind, key] = [0, 1, 2].map(|at| column[at].clone().unwrap());
                table.columns.push(name);
                table.kinds.push(match kind.to_lowercase().as_str() {
                    "blob" | "bytea" => Kind::Bytes,
                    "integer" | "bigint" | "smallint" => Kind::Number,
                    "boolean" => Kind::Flag,
                    _ => Kind::Text,
                });
                if key != "0" {
                    table.key.push(at);
                }
            }
            if table.key.is_empty() {
                table.key = (0..table.columns.len()).collect();
            }
            tables.push(table);
        }
        tables
    }

    pub(crate) async fn rows(&self, table: &Table) -> Vec<Cells> {
        let column = |(name, kind): (&String, &Kind)| match (self.is_sqlite(), kind) {
            (true, Kind::Bytes) => format!("hex({name})"),
            (false, Kind::Bytes) => format!("encode({name}, 'hex')"),
            (true, _) => format!("CAST({name} AS TEXT)"),
            (false, _) => format!("({name})::text"),
        };
        // `hex` of nothing is nothing, and not NULL: no column of bytes is without a value.
        let columns: Vec<String> = table.columns.iter().zip(&table.kinds).map(column).collect();
        let sql = format!("SELECT {} FROM {}", columns.join(", "), table.name);
        let cell = |(text, kind): (Option<String>, &Kind)| match (text, kind) {
            (None, _) => Cell::Null,
            (Some(text), Kind::Bytes) => Cell::Bytes(hex::decode(text).unwrap()),
            (Some(text), Kind::Number) => Cell::Number(text.parse().unwrap()),
            (Some(text), Kind::Flag) => Cell::Flag(text.starts_with('t') || text == "1"),
            (Some(text), Kind::Text) => Cell::Text(text),
        };
        let row = |row: Vec<Option<String>>| row.into_iter().zip(&table.kinds).map(cell).collect();
        self.read(&sql).await.into_iter().map(row).collect()
    }

    pub(crate) async fn dump(&self, tables: &[Table]) -> Dump {
        let mut dump = Dump::new();
        for table in tables {
            dump.insert(table.name.clone(), self.rows(table).await);
        }
        dump
    }

    fn literal(&self, cell: &Cell) -> String {
        match cell {
            Cell::Null => "NULL".to_owned(),
            Cell::Bytes(bytes) if self.is_sqlite() => format!("X'{}'", hex::encode(bytes)),
            Cell::Bytes(bytes) => format!("'\\x{}'::bytea", hex::encode(bytes)),
            Cell::Number(number) => format!("({number})"),
            Cell::Flag(flag) => if *flag { "TRUE" } else { "FALSE" }.to_owned(),
            Cell::Text(text) => format!("'{}'", text.replace('\'', "''")),
        }
    }

    fn is_row(&self, table: &Table, row: &Cells) -> String {
        let is = |at: &usize| {
            let (column, value) = (&table.columns[*at], self.literal(&row[*at]));
            if row[*at] == Cell::Null {
                format!("{column} IS NULL")
            } else {
                format!("{column} = {value}")
            }
        };
        table.key.iter().map(is).collect::<Vec<_>>().join(" AND ")
    }

    pub(crate) fn delete(&self, table: &Table, row: &Cells) -> String {
        format!("DELETE FROM {} WHERE {}", table.name, self.is_row(table, row))
    }

    pub(crate) fn insert(&self, table: &Table, row: &Cells) -> String {
        let values: Vec<String> = row.iter().map(|cell| self.literal(cell)).collect();
        let columns = table.columns.join(", ");
        format!("INSERT INTO {} ({columns}) VALUES ({})", table.name, values.join(", "))
    }

    pub(crate) fn update(&self, table: &Table, row: &Cells, at: usize, cell: &Cell) -> String {
        let (column, value) = (&table.columns[at], self.literal(cell));
        format!("UPDATE {} SET {column} = {value} WHERE {}", table.name, self.is_row(table, row))
    }

    /// Makes `now` what it was `then`: only rows that differ are touched.
    pub(crate) fn restore(&self, table: &Table, now: &[Cells], then: &[Cells]) -> Vec<String> {
        let gone = now.iter().filter(|row| !then.contains(row));
        let back = then.iter().filter(|row| !now.contains(row));
        gone.map(|row| self.delete(table, row))
            .chain(back.map(|row| self.insert(table, row)))
            .collect()
    }
}

//! All of the database: its tables as the schema has them, their rows as of one moment, and a restore.

use futures_util::TryStreamExt as _;
use sqlx::{
    AssertSqlSafe, Connection as _, QueryBuilder, Row as _, Sqlite, SqliteConnection,
    sqlite::SqliteRow,
};

use super::{
    columns::{bytes, classify, number, optional_array, text},
    failure::WriteError,
    pieces::pieces,
};
use crate::store::{
    StoreError,
    sites::Released,
    whole::{
        Column, Kind, Pieces, RestoreState, RollBack, Shape, decoded, in_order, listed, misfit,
        quoted, shape_of,
    },
};
use kms_core::{
    BlockNo, Epoch,
    backup::part::{Cell, Rows, Table},
    site::restored::RolledBackBy,
};

/// The tables that are copied, in order.
pub(super) async fn shapes(connection: &mut SqliteConnection) -> Result<Vec<Shape>, StoreError> {
    let query = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' \
                 ESCAPE '\\'";
    let rows = sqlx::query(query).fetch_all(&mut *connection).await.map_err(classify)?;
    let mut shapes = Vec::new();
    for row in &rows {
        let name = text(row, 0)?;
        if Shape::is_copied(name) {
            shapes.push(shape(connection, name).await?);
        }
    }
    Ok(in_order(shapes))
}

async fn shape(connection: &mut SqliteConnection, name: &str) -> Result<Shape, StoreError> {
    let query = "SELECT name, type, pk FROM pragma_table_info(?) ORDER BY cid";
    let rows = sqlx::query(query).bind(name).fetch_all(&mut *connection).await.map_err(classify)?;
    let column = |row: &SqliteRow| {
        let kind = match text(row, 1)? {
            "INTEGER" => Kind::Integer,
            "BLOB" => Kind::Bytes,
            "TEXT" => Kind::Text,
            other => return Err(StoreError::Damaged(format!("{name} has a column of {other}"))),
        };
        let key = number::<i64>(row, 2)?;
        Ok(Column { name: text(row, 0)?.to_owned(), kind, key: (key > 0).then_some(key) })
    };
    let columns = rows.iter().map(column).collect::<Result<_, _>>()?;
    let query = "SELECT \"table\" FROM pragma_foreign_key_list(?)";
    let rows = sqlx::query(query).bind(name).fetch_all(connection).await.map_err(classify)?;
    let parents = rows.iter().map(|row| text(row, 0).map(str::to_owned));
    Ok(Shape { name: name.to_owned(), columns, parents: parents.collect::<Result<_, _>>()? })
}

/// Sends everything as it is at one moment.
pub(super) async fn copy_out(
    connection: &mut SqliteConnection,
    mut to: Pieces,
) -> Result<(), StoreError> {
    // Dropped at the end: it only reads, and rolling back is ending.
    let mut moment = connection.begin().await.map_err(classify)?;
    for shape in shapes(&mut moment).await? {
        to.begin(&shape).await?;
        let columns = listed(shape.columns.iter().map(|column| column.name.as_str()));
        let (name, key) = (quoted(&shape.name), listed(shape.key()));
        // Names of the schema, quoted; no value.
        let query = AssertSqlSafe(format!("SELECT {columns} FROM {name} ORDER BY {key}"));
        let mut rows = sqlx::query(query).fetch(&mut *moment);
        while let Some(row) = rows.try_next().await.map_err(classify)? {
            let cells = shape.columns.iter().enumerate();
            let cells = cells.map(|(at, column)| cell(&row, at, column.kind));
            to.push(&cells.collect::<Result<Vec<_>, _>>()?).await?;
        }
        drop(rows);
        to.flush().await?;
    }
    Ok(())
}

fn cell(row: &SqliteRow, at: usize, kind: Kind) -> Result<Cell, StoreError> {
    let cell = match kind {
        Kind::Integer | Kind::Truth => {
            row.try_get::<Option<i64>, _>(at).map_err(classify)?.map(Cell::Integer)
        }
        Kind::Bytes => row.try_get::<Option<Vec<u8>>, _>(at).map_err(classify)?.map(Cell::Bytes),
        Kind::Text => row.try_get::<Option<String>, _>(at).map_err(classify)?.map(Cell::Text),
    };
    Ok(cell.unwrap_or(Cell::Null))
}

pub(super) async fn restore_state(
    connection: &mut SqliteConnection,
) -> Result<RestoreState, StoreError> {
    let query = "SELECT state, body, signature FROM restore";
    let row = sqlx::query(query).fetch_optional(connection).await.map_err(classify)?;
    let Some(row) = row else { return Ok(RestoreState::Nothing) };
    RestoreState::of_row(number(&row, 0)?, bytes(&row, 1)?, optional_array(&row, 2)?)
}

/// Sees to it that the database is empty, and says that it is being loaded.
pub(super) async fn begin_copy_in(
    connection: &mut SqliteConnection,
    what: &str,
) -> Result<(), WriteError> {
    let broken_off = match restore_state(connection).await? {
        RestoreState::Loading { .. } => true,
        RestoreState::Nothing | RestoreState::Marked(_) => false,
    };
    for shape in shapes(connection).await?.iter().rev() {
        let name = quoted(&shape.name);
        if broken_off {
            let delete = AssertSqlSafe(format!("DELETE FROM {name}"));
            sqlx::query(delete).execute(&mut *connection).await?;
            continue;
        }
        let query = AssertSqlSafe(format!("SELECT EXISTS (SELECT 1 FROM {name})"));
        let row = sqlx::query(query).fetch_one(&mut *connection).await?;
        if number::<u8>(&row, 0)? != 0 {
            return Err(StoreError::not_empty(&shape.name).into());
        }
    }
    let statement = "INSERT INTO restore (one, state, body) VALUES (1, 1, ?) \
                     ON CONFLICT (one) DO UPDATE SET body = excluded.body";
    sqlx::query(statement).bind(what.as_bytes()).execute(connection).await?;
    Ok(())
}

pub(super) async fn copy_in(
    connection: &mut SqliteConnection,
    table: &Table,
    rows: &[Rows],
) -> Result<(), WriteError> {
    let shapes = shapes(connection).await?;
    let kinds = shape_of(&shapes, table)?.kinds_of(table)?;
    let rows = decoded(table, rows)?;
    for row in &rows {
        let fits = |(cell, kind): (&Cell, &Kind)| match cell {
            Cell::Null => true,
            Cell::Integer(_) => matches!(kind, Kind::Integer | Kind::Truth),
            Cell::Bytes(_) => *kind == Kind::Bytes,
            Cell::Text(_) => *kind == Kind::Text,
        };
        if let Some(at) = row.iter().zip(&kinds).position(|pair| !fits(pair)) {
            return Err(misfit(table, at).into());
        }
    }
    let columns = listed(table.columns.iter().map(String::as_str));
    for piece in pieces(&rows) {
        let begin = format!("INSERT INTO {} ({columns}) ", quoted(&table.name));
        let mut statement = QueryBuilder::<Sqlite>::new(begin);
        statement.push_values(piece, |mut row, cells| {
            for cell in cells {
                match cell {
                    Cell::Null => row.push_bind(None::<i64>),
                    Cell::Integer(number) => row.push_bind(*number),
                    Cell::Bytes(bytes) => row.push_bind(bytes),
                    Cell::Text(text) => row.push_bind(text),
                };
            }
        });
        statement.build().execute(&mut *connection).await?;
    }
    Ok(())
}

/// The last rows of a copy, and the mark.
pub(super) async fn end_copy_in(
    connection: &mut SqliteConnection,
    last: &[(Table, Rows)],
    rolled_back: &RollBack,
) -> Result<(), WriteError> {
    for (table, rows) in last {
        copy_in(connection, table, std::slice::from_ref(rows)).await?;
    }
    mark(connection, rolled_back).await
}

/// The site does not write, and its domain's record is signed over the mark.
pub(super) async fn mark(
    connection: &mut SqliteConnection,
    RollBack { mark, domain }: &RollBack,
) -> Result<(), WriteError> {
    sqlx::query("UPDATE role SET writes = 0").execute(&mut *connection).await?;
    if mark.mark.by != RolledBackBy::Backup {
        check_epoch(connection, mark.mark.epoch).await?;
    }
    sign(connection, domain).await?;
    let statement = "INSERT INTO restore (one, state, body, signature) VALUES (1, 2, ?, ?) \
                     ON CONFLICT (one) DO UPDATE SET state = 2, body = excluded.body, \
                     signature = excluded.signature";
    let row = sqlx::query(statement).bind(mark.mark.message()).bind(&mark.signature[..]);
    row.execute(connection).await?;
    Ok(())
}

/// What was found out of a database is of an epoch: once the site has another one, it was dealt with.
async fn check_epoch(connection: &mut SqliteConnection, epoch: Epoch) -> Result<(), WriteError> {
    let row = sqlx::query("SELECT epoch FROM role").fetch_one(connection).await?;
    match number::<u64>(&row, 0)? == epoch.0 {
        true => Ok(()),
        false => Err(StoreError::Conflict(BlockNo(0)).into()),
    }
}

/// The mark goes: this site was promoted. One that the promotion was not decided on stays: then it is decided anew.
pub(super) async fn release(
    connection: &mut SqliteConnection,
    released: Option<&Released>,
) -> Result<(), WriteError> {
    if let Some(Released { mark, domain }) = released {
        sign(connection, domain).await?;
        let gone = sqlx::query("DELETE FROM restore WHERE state = 2 AND signature = ?");
        gone.bind(&mark[..]).execute(&mut *connection).await?;
    }
    let left =
        sqlx::query("SELECT 1 FROM restore WHERE state = 2").fetch_optional(connection).await?;
    match left {
        Some(_) => Err(StoreError::Conflict(BlockNo(0)).into()),
        None => Ok(()),
    }
}

async fn sign(connection: &mut SqliteConnection, domain: &[u8; 64]) -> Result<(), WriteError> {
    let signed = sqlx::query("UPDATE domain SET signature = ?").bind(&domain[..]);
    if signed.execute(connection).await?.rows_affected() == 1 {
        return Ok(());
    }
    Err(StoreError::Damaged("there is no key domain".to_owned()).into())
}

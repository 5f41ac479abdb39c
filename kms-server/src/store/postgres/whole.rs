//! All of the database: its tables as the schema has them, their rows as of one moment, and a restore.

use futures_util::TryStreamExt as _;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _, postgres::PgRow};

use super::{
    columns::{bytes, classify, number, optional_array, text},
    failure::WriteError,
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

/// Columns of all tables, with their places in the primary key.
const COLUMNS: &str = "\
SELECT c.relname::text, a.attname::text, t.typname::text, \
       array_position(i.indkey::int2[], a.attnum)::bigint \
  FROM pg_catalog.pg_class c \
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'ami_kms' \
  JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
  JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
  LEFT JOIN pg_catalog.pg_index i ON i.indrelid = c.oid AND i.indisprimary \
 WHERE c.relkind = 'r' ORDER BY c.relname, a.attnum";

/// Which table refers to which.
const REFERENCES: &str = "\
SELECT child.relname::text, parent.relname::text FROM pg_catalog.pg_constraint k \
  JOIN pg_catalog.pg_class child ON child.oid = k.conrelid \
  JOIN pg_catalog.pg_class parent ON parent.oid = k.confrelid \
  JOIN pg_catalog.pg_namespace n ON n.oid = child.relnamespace AND n.nspname = 'ami_kms' \
 WHERE k.contype = 'f'";

/// A copy takes as long as it takes: a session's limits are those of commits.
const WITHOUT_LIMITS: &str =
    "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0";

/// The tables that are copied, in order.
async fn shapes(connection: &mut PgConnection) -> Result<Vec<Shape>, StoreError> {
    let mut shapes: Vec<Shape> = Vec::new();
    for row in &sqlx::query(COLUMNS).fetch_all(&mut *connection).await.map_err(classify)? {
        let (table, name) = (text(row, 0)?, text(row, 1)?.to_owned());
        if !Shape::is_copied(table) {
            continue;
        }
        let kind = match text(row, 2)? {
            "int8" | "int4" | "int2" => Kind::Integer,
            "bool" => Kind::Truth,
            "bytea" => Kind::Bytes,
            "text" | "varchar" => Kind::Text,
            other => return Err(StoreError::Damaged(format!("{table} has a column of {other}"))),
        };
        let column = Column { name, kind, key: row.try_get(3).map_err(classify)? };
        match shapes.last_mut().filter(|shape| shape.name == table) {
            Some(shape) => shape.columns.push(column),
            None => shapes.push(Shape {
                name: table.to_owned(),
                columns: vec![column],
                parents: Vec::new(),
            }),
        }
    }
    for row in &sqlx::query(REFERENCES).fetch_all(connection).await.map_err(classify)? {
        let (child, parent) = (text(row, 0)?, text(row, 1)?);
        if let Some(shape) = shapes.iter_mut().find(|shape| shape.name == child) {
            shape.parents.push(parent.to_owned());
        }
    }
    Ok(in_order(shapes))
}

/// Sends everything as it is at one moment.
pub(super) async fn copy_out(
    connection: &mut PgConnection,
    mut to: Pieces,
) -> Result<(), StoreError> {
    const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    let mut moment = connection.begin_with(BEGIN).await.map_err(classify)?;
    sqlx::raw_sql(WITHOUT_LIMITS).execute(&mut *moment).await.map_err(classify)?;
    for shape in shapes(&mut moment).await? {
        to.begin(&shape).await?;
        let read = |column: &Column| match column.kind {
            Kind::Integer => format!("{}::bigint", quoted(&column.name)),
            Kind::Truth => format!("{}::int::bigint", quoted(&column.name)),
            Kind::Bytes => quoted(&column.name),
            Kind::Text => format!("{}::text", quoted(&column.name)),
        };
        let columns = shape.columns.iter().map(read).collect::<Vec<_>>().join(", ");
        let (name, key) = (quoted(&shape.name), listed(shape.key()));
        // Names of the schema, quoted; no value.
        let query = AssertSqlSafe(format!("SELECT {columns} FROM {name} ORDER BY {key}"));
        let mut rows = sqlx::query(query).persistent(false).fetch(&mut *moment);
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

fn cell(row: &PgRow, at: usize, kind: Kind) -> Result<Cell, StoreError> {
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
    connection: &mut PgConnection,
) -> Result<RestoreState, StoreError> {
    let query = "SELECT state, body, signature FROM restore";
    let row = sqlx::query(query).fetch_optional(connection).await.map_err(classify)?;
    let Some(row) = row else { return Ok(RestoreState::Nothing) };
    RestoreState::of_row(number(&row, 0)?, bytes(&row, 1)?, optional_array(&row, 2)?)
}

/// Sees to it that the database is empty, and says that it is being loaded.
pub(super) async fn begin_copy_in(
    connection: &mut PgConnection,
    what: &str,
) -> Result<(), WriteError> {
    sqlx::raw_sql(WITHOUT_LIMITS).execute(&mut *connection).await?;
    let shapes = shapes(connection).await?;
    match restore_state(connection).await? {
        RestoreState::Loading { .. } => {
            let all = listed(shapes.iter().map(|shape| shape.name.as_str()));
            let truncate = AssertSqlSafe(format!("TRUNCATE {all}"));
            sqlx::query(truncate).execute(&mut *connection).await?;
        }
        RestoreState::Nothing | RestoreState::Marked(_) => {
            for shape in &shapes {
                let name = quoted(&shape.name);
                let query = AssertSqlSafe(format!("SELECT EXISTS (SELECT FROM {name})"));
                if sqlx::query_scalar(query).fetch_one(&mut *connection).await? {
                    return Err(StoreError::not_empty(&shape.name).into());
                }
            }
        }
    }
    let statement = "INSERT INTO restore (state, body) VALUES (1, $1) \
                     ON CONFLICT (one) DO UPDATE SET body = excluded.body";
    sqlx::query(statement).bind(what.as_bytes()).execute(connection).await?;
    Ok(())
}

/// A column of cells, as the database takes it: one array.
enum Array {
    Integers(Vec<Option<i64>>),
    Bytes(Vec<Option<Vec<u8>>>),
    Texts(Vec<Option<String>>),
}

impl Array {
    /// Column `at` of all rows.
    fn of(table: &Table, rows: &[Vec<Cell>], at: usize, kind: Kind) -> Result<Self, StoreError> {
        let misfit = || misfit(table, at);
        let cells = rows.iter().map(|row| row.get(at));
        Ok(match kind {
            Kind::Integer | Kind::Truth => Self::Integers(
                cells
                    .map(|cell| match cell {
                        Some(Cell::Integer(number)) => Ok(Some(*number)),
                        Some(Cell::Null) => Ok(None),
                        _ => Err(misfit()),
                    })
                    .collect::<Result<_, _>>()?,
            ),
            Kind::Bytes => Self::Bytes(
                cells
                    .map(|cell| match cell {
                        Some(Cell::Bytes(bytes)) => Ok(Some(bytes.clone())),
                        Some(Cell::Null) => Ok(None),
                        _ => Err(misfit()),
                    })
                    .collect::<Result<_, _>>()?,
            ),
            Kind::Text => Self::Texts(
                cells
                    .map(|cell| match cell {
                        Some(Cell::Text(text)) => Ok(Some(text.clone())),
                        Some(Cell::Null) => Ok(None),
                        _ => Err(misfit()),
                    })
                    .collect::<Result<_, _>>()?,
            ),
        })
    }
}

pub(super) async fn copy_in(
    connection: &mut PgConnection,
    table: &Table,
    rows: &[Rows],
) -> Result<(), WriteError> {
    sqlx::raw_sql(WITHOUT_LIMITS).execute(&mut *connection).await?;
    let shapes = shapes(connection).await?;
    let kinds = shape_of(&shapes, table)?.kinds_of(table)?;
    let rows = decoded(table, rows)?;
    let (mut read, mut names, mut given) = (Vec::new(), Vec::new(), Vec::new());
    for (at, kind) in kinds.iter().enumerate() {
        read.push(if *kind == Kind::Truth { format!("c{at} <> 0") } else { format!("c{at}") });
        names.push(format!("c{at}"));
        given.push(match kind {
            Kind::Integer | Kind::Truth => format!("${}::bigint[]", at + 1),
            Kind::Bytes => format!("${}::bytea[]", at + 1),
            Kind::Text => format!("${}::text[]", at + 1),
        });
    }
    // Names of the schema, quoted; values are bound.
    let statement = format!(
        "INSERT INTO {} ({}) SELECT {} FROM unnest({}) AS given ({})",
        quoted(&table.name),
        listed(table.columns.iter().map(String::as_str)),
        read.join(", "),
        given.join(", "),
        names.join(", "),
    );
    let mut insert = sqlx::query(AssertSqlSafe(statement));
    for (at, kind) in kinds.iter().enumerate() {
        insert = match Array::of(table, &rows, at, *kind)? {
            Array::Integers(all) => insert.bind(all),
            Array::Bytes(all) => insert.bind(all),
            Array::Texts(all) => insert.bind(all),
        };
    }
    insert.execute(connection).await?;
    Ok(())
}

/// The site does not write, and its domain's record is signed over the mark.
pub(super) async fn mark(
    connection: &mut PgConnection,
    RollBack { mark, domain }: &RollBack,
) -> Result<(), WriteError> {
    sqlx::query("UPDATE role SET writes = false").execute(&mut *connection).await?;
    if mark.mark.by != RolledBackBy::Backup {
        check_epoch(connection, mark.mark.epoch).await?;
    }
    sign(connection, domain).await?;
    let statement = "INSERT INTO restore (state, body, signature) VALUES (2, $1, $2) \
                     ON CONFLICT (one) DO UPDATE SET state = 2, body = excluded.body, \
                     signature = excluded.signature";
    let row = sqlx::query(statement).bind(mark.mark.message()).bind(&mark.signature[..]);
    row.execute(connection).await?;
    Ok(())
}

/// What was found out of a database is of an epoch: once the site has another one, it was dealt with.
async fn check_epoch(connection: &mut PgConnection, epoch: Epoch) -> Result<(), WriteError> {
    let row = sqlx::query("SELECT epoch FROM role").fetch_one(connection).await?;
    match number::<u64>(&row, 0)? == epoch.0 {
        true => Ok(()),
        false => Err(StoreError::Conflict(BlockNo(0)).into()),
    }
}

/// The mark goes: this site was promoted. One that the promotion was not decided on stays: then it is decided anew.
pub(super) async fn release(
    connection: &mut PgConnection,
    released: Option<&Released>,
) -> Result<(), WriteError> {
    if let Some(Released { mark, domain }) = released {
        sign(connection, domain).await?;
        let gone = sqlx::query("DELETE FROM restore WHERE state = 2 AND signature = $1");
        gone.bind(&mark[..]).execute(&mut *connection).await?;
    }
    let left =
        sqlx::query("SELECT 1 FROM restore WHERE state = 2").fetch_optional(connection).await?;
    match left {
        Some(_) => Err(StoreError::Conflict(BlockNo(0)).into()),
        None => Ok(()),
    }
}

async fn sign(connection: &mut PgConnection, domain: &[u8; 64]) -> Result<(), WriteError> {
    let signed = sqlx::query("UPDATE domain SET signature = $1").bind(&domain[..]);
    if signed.execute(connection).await?.rows_affected() == 1 {
        return Ok(());
    }
    Err(StoreError::Damaged("there is no key domain".to_owned()).into())
}

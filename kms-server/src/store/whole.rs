//! All of a database at once: copied out for a backup, copied in by a restore, marked after a roll back.
//!
//! What tables there are is read from the database itself, so that a table that comes with a later schema is in the
//! next backup without anybody's thinking of it.

use async_trait::async_trait;
use tokio::sync::mpsc;

pub use super::nouns::RestoreState;
use super::{WriteStore, nouns::StoreError, tokens::TokenStore};
use kms_core::{
    audit::Signature,
    backup::part::{Cell, Part, Rows, Table},
    site::restored::SignedRestoreMark,
};

/// Rows are sent on once they have as many bytes: what a backup's reader and writer hold of a table.
pub(super) const PIECE_LEN: usize = 256 << 10;

/// Tables that are no part of what is copied: what they say is about this very database. An approval that comes back from
/// a backup would be one that may have been used.
const OF_ITS_OWN: [&str; 3] = ["approvals", "restore", "schema_version"];

/// A database that was rolled back, from now on marked: its site does not write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RollBack {
    /// The mark.
    pub mark: SignedRestoreMark,
    /// Of the domain's record, over the mark.
    pub domain: Signature,
}

/// Copies a database as a whole.
#[async_trait]
pub trait WholeStore: WriteStore + TokenStore {
    /// The version of its schema.
    fn schema(&self) -> u32;

    /// Sends all tables and their rows as they are at one moment: none before one that it refers to, rows in the
    /// order of their keys. Waits for the receiver; ends when it is gone.
    async fn copy_out(&self, to: mpsc::Sender<Part>) -> Result<(), StoreError>;

    /// A restore of `what` begins. [`StoreError::NotLoaded`] if the database is not empty; what a restore that was
    /// broken off has left goes first.
    async fn begin_copy_in(&self, what: &str) -> Result<(), StoreError>;

    /// Rows of one table; on disk when this returns. In the order in which [`WholeStore::copy_out`] sent them.
    async fn copy_in(&self, table: &Table, rows: &[Rows]) -> Result<(), StoreError>;

    /// The restore ends: with the last rows, and the mark, in one transaction.
    async fn end_copy_in(
        &self,
        last: &[(Table, Rows)],
        rolled_back: &RollBack,
    ) -> Result<(), StoreError>;

    /// The database was rolled back by somebody else: it is marked, and this site does not write.
    /// [`StoreError::Conflict`] if it is of another epoch than the mark by now.
    async fn mark_rolled_back(&self, rolled_back: &RollBack) -> Result<(), StoreError>;
}

/// The type of a column, as far as it matters for a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Integer,
    Truth,
    Bytes,
    Text,
}

/// A column of a table that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) kind: Kind,
    /// Its place in the primary key.
    pub(super) key: Option<i64>,
}

/// A table that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) name: String,
    pub(super) columns: Vec<Column>,
    /// Tables that its rows refer to.
    pub(super) parents: Vec<String>,
}

impl Shape {
    pub(super) fn is_copied(name: &str) -> bool {
        !OF_ITS_OWN.contains(&name)
    }

    /// The columns of its primary key, in order.
    pub(super) fn key(&self) -> Vec<&str> {
        let mut key: Vec<&Column> =
            self.columns.iter().filter(|column| column.key.is_some()).collect();
        key.sort_by_key(|column| column.key);
        key.into_iter().map(|column| column.name.as_str()).collect()
    }

    pub(super) fn table(&self) -> Table {
        let columns = self.columns.iter().map(|column| column.name.clone()).collect();
        Table { name: self.name.clone(), columns }
    }

    /// The kinds of a copied table's columns, if this is the table that it was copied from.
    pub(super) fn kinds_of(&self, table: &Table) -> Result<Vec<Kind>, StoreError> {
        let other = |what: String| StoreError::NotLoaded(format!("table {}: {what}", table.name));
        if table.columns.len() != self.columns.len() {
            return Err(other("the backup has another number of columns".to_owned()));
        }
        let kind = |name: &String| {
            let column = self.columns.iter().find(|column| column.name == *name);
            column
                .map(|column| column.kind)
                .ok_or_else(|| other(format!("there is no column {name}")))
        };
        table.columns.iter().map(kind).collect()
    }
}

/// The shape of a table that a backup names.
pub(super) fn shape_of<'a>(shapes: &'a [Shape], table: &Table) -> Result<&'a Shape, StoreError> {
    let unknown = || StoreError::NotLoaded(format!("there is no table {}", table.name));
    shapes.iter().find(|shape| shape.name == table.name).ok_or_else(unknown)
}

/// The rows of pieces, decoded.
pub(super) fn decoded(table: &Table, rows: &[Rows]) -> Result<Vec<Vec<Cell>>, StoreError> {
    let bad = |_| StoreError::NotLoaded(format!("table {}: its rows can't be read", table.name));
    let mut all = Vec::new();
    for rows in rows {
        all.extend(rows.rows(table.columns.len()).map_err(bad)?);
    }
    Ok(all)
}

/// A cell of another kind than its column.
pub(super) fn misfit(table: &Table, column: usize) -> StoreError {
    let name = table.columns.get(column).map_or("?", String::as_str);
    StoreError::NotLoaded(format!(
        "table {}: a value of column {name} is of another kind",
        table.name
    ))
}

/// In an order in which none comes before one that it refers to. Two that refer to each other stay as they are.
pub(super) fn in_order(mut shapes: Vec<Shape>) -> Vec<Shape> {
    shapes.sort_by(|a, b| a.name.cmp(&b.name));
    let mut ordered: Vec<Shape> = Vec::with_capacity(shapes.len());
    while !shapes.is_empty() {
        let is_there = |parent: &String, own: &str| {
            parent == own || ordered.iter().any(|shape| shape.name == *parent)
        };
        let next = shapes
            .iter()
            .position(|shape| shape.parents.iter().all(|parent| is_there(parent, &shape.name)));
        ordered.push(shapes.remove(next.unwrap_or(0)));
    }
    ordered
}

/// Collects rows, and sends them on in pieces.
pub(super) struct Pieces {
    to: mpsc::Sender<Part>,
    rows: Rows,
}

/// The receiver is gone.
pub(super) struct Gone;

impl Pieces {
    pub(super) fn new(to: mpsc::Sender<Part>) -> Self {
        Self { to, rows: Rows::default() }
    }

    pub(super) async fn begin(&mut self, shape: &Shape) -> Result<(), Gone> {
        self.to.send(Part::Table(shape.table())).await.map_err(|_| Gone)
    }

    pub(super) async fn push(&mut self, row: &[Cell]) -> Result<(), Gone> {
        self.rows.push(row);
        if self.rows.bytes.len() < PIECE_LEN { Ok(()) } else { self.flush().await }
    }

    pub(super) async fn flush(&mut self) -> Result<(), Gone> {
        if self.rows.count == 0 {
            return Ok(());
        }
        let rows = std::mem::take(&mut self.rows);
        self.to.send(Part::Rows(rows)).await.map_err(|_| Gone)
    }
}

impl From<Gone> for StoreError {
    fn from(Gone: Gone) -> Self {
        Self::Unreachable { reason: "the backup was broken off".to_owned() }
    }
}

/// A name of the schema, as it stands in a statement.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Names, quoted, with commas.
pub(super) fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(quoted).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(name: &str, parents: &[&str]) -> Shape {
        let parents = parents.iter().map(|parent| (*parent).to_owned()).collect();
        Shape { name: name.to_owned(), columns: Vec::new(), parents }
    }

    #[test]
    fn a_table_comes_behind_those_that_it_refers_to() {
        let shapes = in_order(vec![
            shape("records", &["blocks"]),
            shape("audit_events", &["audit_chains"]),
            shape("blocks", &[]),
            shape("audit_chains", &[]),
            shape("tree", &["tree", "records"]),
        ]);
        let names: Vec<&str> = shapes.iter().map(|shape| shape.name.as_str()).collect();
        assert_eq!(names, ["audit_chains", "audit_events", "blocks", "records", "tree"]);
    }
}

//! Parts of a backup: tables, and their rows as any of our databases keeps them.

use crate::codec::{BadEncoding, Reader, put_bytes};

/// A value of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// Nothing.
    Null,
    /// A number; 0 or 1 where a database keeps a truth.
    Integer(i64),
    /// Bytes.
    Bytes(Vec<u8>),
    /// Text.
    Text(String),
}

/// A table: its name and the names of its columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The name.
    pub name: String,
    /// The columns, in the order of a row's cells.
    pub columns: Vec<String>,
}

/// A part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// A table begins: the rows that follow are its.
    Table(Table),
    /// Rows of the table that began last.
    Rows(Rows),
}

/// Rows, encoded one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// Their number.
    pub count: u32,
    /// Their cells.
    pub bytes: Vec<u8>,
}

const TABLE: u8 = 1;
const ROWS: u8 = 2;
const SUMMARY: u8 = 3;

const NULL: u8 = 0;
const INTEGER: u8 = 1;
const BYTES: u8 = 2;
const TEXT: u8 = 3;

impl Rows {
    /// Appends a row.
    pub fn push(&mut self, cells: &[Cell]) {
        for cell in cells {
            match cell {
                Cell::Null => self.bytes.push(NULL),
                Cell::Integer(number) => {
                    self.bytes.push(INTEGER);
                    self.bytes.extend_from_slice(&number.to_be_bytes());
                }
                Cell::Bytes(bytes) => {
                    self.bytes.push(BYTES);
                    put_bytes(&mut self.bytes, bytes);
                }
                Cell::Text(text) => {
                    self.bytes.push(TEXT);
                    put_bytes(&mut self.bytes, text.as_bytes());
                }
            }
        }
        self.count += 1;
    }

    /// The rows, each of so many cells.
    pub fn rows(&self, columns: usize) -> Result<Vec<Vec<Cell>>, BadEncoding> {
        let mut input = Reader::new(&self.bytes);
        let mut rows = Vec::new();
        for _ in 0..self.count {
            rows.push((0..columns).map(|_| cell(&mut input)).collect::<Result<_, _>>()?);
        }
        input.end()?;
        Ok(rows)
    }
}

fn cell(input: &mut Reader<'_>) -> Result<Cell, BadEncoding> {
    Ok(match input.u8()? {
        NULL => Cell::Null,
        INTEGER => Cell::Integer(i64::from_be_bytes(input.array()?)),
        BYTES => Cell::Bytes(input.bytes()?.to_vec()),
        TEXT => Cell::Text(input.text()?.to_owned()),
        _ => return Err(BadEncoding),
    })
}

impl Part {
    /// As the content of a chunk.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Table(Table { name, columns }) => {
                let mut out = vec![TABLE];
                put_bytes(&mut out, name.as_bytes());
                // No table of ours has as many.
                out.extend_from_slice(&(columns.len() as u16).to_be_bytes());
                columns.iter().for_each(|column| put_bytes(&mut out, column.as_bytes()));
                out
            }
            Self::Rows(Rows { count, bytes }) => {
                let mut out = Vec::with_capacity(5 + bytes.len());
                out.push(ROWS);
                out.extend_from_slice(&count.to_be_bytes());
                out.extend_from_slice(bytes);
                out
            }
        }
    }

    /// The part in a chunk that is not the last.
    pub fn decode(content: &[u8]) -> Result<Self, BadEncoding> {
        let mut input = Reader::new(content);
        match input.u8()? {
            TABLE => {
                let name = input.text()?.to_owned();
                let count = input.u16()?;
                let column = |_| input.text().map(str::to_owned);
                let columns = (0..count).map(column).collect::<Result<_, _>>()?;
                input.end()?;
                Ok(Self::Table(Table { name, columns }))
            }
            ROWS => {
                let count = input.u32()?;
                let bytes = content.get(5..).ok_or(BadEncoding)?.to_vec();
                Ok(Self::Rows(Rows { count, bytes }))
            }
            _ => Err(BadEncoding),
        }
    }
}

/// The content of the last chunk: a summary's message and its signature.
pub fn encode_last(message: &[u8], signature: &[u8; 64]) -> Vec<u8> {
    let mut out = vec![SUMMARY];
    out.extend_from_slice(signature);
    out.extend_from_slice(message);
    out
}

/// Message and signature in the last chunk.
pub fn decode_last(content: &[u8]) -> Result<(&[u8], [u8; 64]), BadEncoding> {
    let rest = content.strip_prefix(&[SUMMARY]).ok_or(BadEncoding)?;
    let (signature, message) = rest.split_first_chunk::<64>().ok_or(BadEncoding)?;
    Ok((message, *signature))
}

//! The summary of a backup: what is in it, counted while it was written, and signed by the token.

use sha2::{Digest as _, Sha256};

use super::part::{Cell, Part, Rows, Table};
use crate::{
    Epoch,
    audit::{ChainTip, NodeId},
    codec::{BadEncoding, Reader, put_bytes},
};

/// The summary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Rows by table, in the file's order.
    pub tables: Vec<(String, u64)>,
    /// SHA-256 over all parts.
    pub parts: [u8; 32],
    /// SHA-256 over the heads of all blocks, in order.
    pub heads: [u8; 32],
    /// The highest epoch that the site knew.
    pub epoch: Epoch,
    /// Whether the site wrote in it.
    pub writes: bool,
    /// The ends of its audit chains.
    pub tips: Vec<ChainTip>,
}

impl Summary {
    /// Rows of a table; 0 if there is none of this name.
    pub fn rows_of(&self, table: &str) -> u64 {
        self.tables.iter().find(|(name, _)| name == table).map_or(0, |(_, rows)| *rows)
    }

    /// The message that is signed; `header` is the digest of the file's header.
    pub fn message(&self, header: &[u8; 32]) -> Vec<u8> {
        let Self { tables, parts, heads, epoch, writes, tips } = self;
        let mut out = [LABEL, header, parts, heads, &epoch.0.to_be_bytes()].concat();
        out.push(u8::from(*writes));
        out.extend_from_slice(&(tables.len() as u32).to_be_bytes());
        for (name, rows) in tables {
            put_bytes(&mut out, name.as_bytes());
            out.extend_from_slice(&rows.to_be_bytes());
        }
        out.extend_from_slice(&(tips.len() as u32).to_be_bytes());
        for ChainTip { node, sequence, hash } in tips {
            out.extend_from_slice(&node.0);
            out.extend_from_slice(&sequence.to_be_bytes());
            out.extend_from_slice(hash);
        }
        out
    }

    /// The summary in a message, if that is of the file with this header.
    pub fn decode(message: &[u8], header: &[u8; 32]) -> Result<Self, BadEncoding> {
        let rest = message.strip_prefix(LABEL).ok_or(BadEncoding)?;
        let mut input = Reader::new(rest.strip_prefix(&header[..]).ok_or(BadEncoding)?);
        let (parts, heads) = (input.array()?, input.array()?);
        let (epoch, writes) = (Epoch(input.u64()?), input.flag()?);
        let mut tables = Vec::new();
        for _ in 0..input.u32()? {
            tables.push((input.text()?.to_owned(), input.u64()?));
        }
        let mut tips = Vec::new();
        for _ in 0..input.u32()? {
            let (node, sequence) = (NodeId(input.array()?), input.u64()?);
            tips.push(ChainTip { node, sequence, hash: input.array()? });
        }
        input.end()?;
        Ok(Self { tables, parts, heads, epoch, writes, tips })
    }
}

const LABEL: &[u8] = b"ami.kms/backup-summary/1";

/// Sums up parts as they pass, at the writer and at the reader alike.
#[derive(Clone)]
pub struct Counter {
    parts: Sha256,
    heads: Sha256,
    tables: Vec<(String, u64)>,
    table: Option<Table>,
    epoch: Epoch,
    writes: bool,
    tips: Vec<ChainTip>,
}

impl Default for Counter {
    fn default() -> Self {
        Self {
            parts: Sha256::new(),
            heads: Sha256::new(),
            tables: Vec::new(),
            table: None,
            epoch: Epoch::default(),
            writes: false,
            tips: Vec::new(),
        }
    }
}

impl Counter {
    /// Takes in a part, whose encoding is `content`. An error: rows without a table, or of another one.
    pub fn see(&mut self, part: &Part, content: &[u8]) -> Result<(), BadEncoding> {
        self.parts.update((content.len() as u64).to_be_bytes());
        self.parts.update(content);
        match part {
            Part::Table(table) => {
                self.tables.push((table.name.clone(), 0));
                self.table = Some(table.clone());
                Ok(())
            }
            Part::Rows(rows) => self.see_rows(rows),
        }
    }

    fn see_rows(&mut self, rows: &Rows) -> Result<(), BadEncoding> {
        let table = self.table.clone().ok_or(BadEncoding)?;
        if let Some((_, count)) = self.tables.last_mut() {
            *count += u64::from(rows.count);
        }
        match table.name.as_str() {
            "blocks" => self.heads.update(&rows.bytes),
            "role" => {
                for row in rows.rows(table.columns.len())? {
                    let number = |name| match named(&table, &row, name) {
                        Some(Cell::Integer(number)) => Ok(*number),
                        _ => Err(BadEncoding),
                    };
                    self.epoch = Epoch(number("epoch")?.try_into().map_err(|_| BadEncoding)?);
                    self.writes = number("writes")? == 1;
                }
            }
            "audit_chains" => {
                for row in rows.rows(table.columns.len())? {
                    self.tips.push(tip(&table, &row).ok_or(BadEncoding)?);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Rows that were seen so far.
    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|(_, rows)| rows).sum()
    }

    /// The summary of all that was seen.
    pub fn summary(self) -> Summary {
        let Self { parts, heads, tables, epoch, writes, tips, table: _ } = self;
        let (parts, heads) = (parts.finalize().into(), heads.finalize().into());
        Summary { tables, parts, heads, epoch, writes, tips }
    }
}

fn named<'a>(table: &Table, row: &'a [Cell], name: &str) -> Option<&'a Cell> {
    let at = table.columns.iter().position(|column| column == name)?;
    row.get(at)
}

fn tip(table: &Table, row: &[Cell]) -> Option<ChainTip> {
    let bytes = |name| match named(table, row, name) {
        Some(Cell::Bytes(bytes)) => Some(bytes.as_slice()),
        _ => None,
    };
    let Some(Cell::Integer(sequence)) = named(table, row, "sequence") else { return None };
    Some(ChainTip {
        node: NodeId(bytes("node")?.try_into().ok()?),
        sequence: (*sequence).try_into().ok()?,
        hash: bytes("hash")?.try_into().ok()?,
    })
}

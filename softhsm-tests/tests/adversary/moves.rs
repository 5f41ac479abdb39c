//! One move of somebody who may write the database: a change, a deletion, a swap, or a return to what
//! once was true.

use super::{
    common::Numbers,
    database::{Cell, Cells, Database, Dump, Table},
};

/// What a move does, and to what.
pub(crate) struct Move {
    pub(crate) what: String,
    pub(crate) statements: Vec<String>,
    /// Blocks whose rows it touches.
    pub(crate) blocks: Vec<i64>,
    /// It takes back the log as well as what the log speaks of.
    pub(crate) whole: bool,
}

/// Tables of the audit log and of what witnesses blocks, by the words in their names.
fn is_log(table: &Table) -> bool {
    table.name.contains("audit") || table.name.contains("head")
}

pub(crate) struct Mover<'a> {
    pub(crate) database: &'a Database,
    pub(crate) tables: &'a [Table],
    pub(crate) now: &'a Dump,
    /// Earlier states, oldest first.
    pub(crate) past: &'a [Dump],
    pub(crate) numbers: &'a mut Numbers,
}

impl Mover<'_> {
    fn below(&mut self, bound: usize) -> usize {
        self.numbers.below(bound as u64) as usize
    }

    /// A table with rows; those of keys more often than the rest.
    fn table(&mut self) -> Option<Table> {
        let often = ["records", "blocks", "block_seals", "meters"];
        let filled: Vec<&Table> =
            self.tables.iter().filter(|table| !self.now[&table.name].is_empty()).collect();
        let mut drawn: Vec<&Table> = filled.clone();
        for table in filled.iter().filter(|table| often.contains(&table.name.as_str())) {
            drawn.extend([*table; 4]);
        }
        let at = self.below(drawn.len().max(1));
        drawn.get(at).map(|table| (*table).clone())
    }

    fn row(&mut self, table: &Table) -> Cells {
        let at = self.below(self.now[&table.name].len());
        self.now[&table.name][at].clone()
    }

    fn mutated(&mut self, cell: &Cell) -> Cell {
        match cell {
            Cell::Null => Cell::Number(1),
            Cell::Flag(flag) => Cell::Flag(!flag),
            Cell::Number(number) => {
                let others = [0, 1, -1, number + 1, number - 1, number * 2, 1 << 40, i64::MAX];
                Cell::Number(others[self.below(others.len())])
            }
            Cell::Text(text) => Cell::Text(match self.below(3) {
                0 => String::new(),
                1 => format!("{text}0"),
                _ => text.chars().rev().collect(),
            }),
            Cell::Bytes(bytes) => {
                let mut bytes = bytes.clone();
                match self.below(6) {
                    0 => bytes.clear(),
                    1 => bytes.push(0),
                    _ if bytes.is_empty() => bytes.push(1),
                    _ => {
                        let at = self.below(bytes.len());
                        bytes[at] ^= 1 << self.below(8);
                    }
                }
                Cell::Bytes(bytes)
            }
        }
    }

    /// The next move; `None` if it would change nothing.
    pub(crate) fn next(&mut self) -> Option<Move> {
        let made = match self.below(12) {
            0..=2 => self.change(),
            3 => self.delete(),
            4 => self.delete_block(),
            5 => self.swap(),
            6 => self.copy(),
            7 => self.roll_back_row(),
            8 => self.roll_back_block(false),
            9 => self.roll_back_block(true),
            10 => self.roll_back_table(),
            _ => self.roll_back_all(),
        }?;
        (!made.statements.is_empty()).then_some(made)
    }

    fn change(&mut self) -> Option<Move> {
        let table = self.table()?;
        let row = self.row(&table);
        let at = self.below(table.columns.len());
        let cell = self.mutated(&row[at]);
        Some(Move {
            what: format!("change {}.{} of {}", table.name, table.columns[at], name(&table, &row)),
            statements: vec![self.database.update(&table, &row, at, &cell)],
            blocks: table.block_of(&row).into_iter().collect(),
            whole: false,
        })
    }

    fn delete(&mut self) -> Option<Move> {
        let table = self.table()?;
        let row = self.row(&table);
        Some(Move {
            what: format!("delete from {}: {}", table.name, name(&table, &row)),
            statements: vec![self.database.delete(&table, &row)],
            blocks: table.block_of(&row).into_iter().collect(),
            whole: false,
        })
    }

    /// A block that has records, if there is one.
    fn block(&mut self) -> Option<i64> {
        let records = self.tables.iter().find(|table| table.name == "records")?;
        let blocks: Vec<i64> =
            self.now["records"].iter().filter_map(|row| records.block_of(row)).collect();
        if blocks.is_empty() { None } else { Some(blocks[self.below(blocks.len())]) }
    }

    fn delete_block(&mut self) -> Option<Move> {
        let block = self.block()?;
        let only_records = self.below(2) == 0;
        let mut statements = Vec::new();
        for table in self.tables.iter().filter(|table| table.column("block").is_some()) {
            if only_records && table.name != "records" {
                continue;
            }
            let rows = self.now[&table.name].iter();
            let rows = rows.filter(|row| table.block_of(row) == Some(block));
            statements.extend(rows.map(|row| self.database.delete(table, row)));
        }
        let part = if only_records { "the records" } else { "all" };
        let what = format!("delete {part} of block {block}");
        Some(Move { what, statements, blocks: vec![block], whole: false })
    }

    fn swap(&mut self) -> Option<Move> {
        let table = self.table()?;
        let (a, b) = (self.row(&table), self.row(&table));
        let free: Vec<usize> =
            (0..table.columns.len()).filter(|at| !table.key.contains(at)).collect();
        if a == b || free.is_empty() {
            return None;
        }
        let whole = self.below(2) == 0;
        let one = free[self.below(free.len())];
        let columns = if whole { free } else { vec![one] };
        let mut statements = Vec::new();
        for at in &columns {
            statements.push(self.database.update(&table, &a, *at, &b[*at]));
            statements.push(self.database.update(&table, &b, *at, &a[*at]));
        }
        let columns: Vec<&str> = columns.iter().map(|at| &*table.columns[*at]).collect();
        Some(Move {
            what: format!(
                "swap {}.{} of {} and {}",
                table.name,
                columns.join("+"),
                name(&table, &a),
                name(&table, &b)
            ),
            statements,
            blocks: [&a, &b].into_iter().filter_map(|row| table.block_of(row)).collect(),
            whole: false,
        })
    }

    /// A row once more, under another key.
    fn copy(&mut self) -> Option<Move> {
        let table = self.table()?;
        let (row, other) = (self.row(&table), self.row(&table));
        let mut copy = row.clone();
        let at = table.key[self.below(table.key.len())];
        copy[at] = if row[at] == other[at] { self.mutated(&row[at]) } else { other[at].clone() };
        Some(Move {
            what: format!(
                "copy in {}: {} as {}",
                table.name,
                name(&table, &row),
                name(&table, &copy)
            ),
            statements: vec![self.database.insert(&table, &copy)],
            blocks: [&row, &copy].into_iter().filter_map(|row| table.block_of(row)).collect(),
            whole: false,
        })
    }

    fn then(&mut self) -> Option<Dump> {
        if self.past.is_empty() {
            None
        } else {
            Some(self.past[self.below(self.past.len())].clone())
        }
    }

    fn roll_back_row(&mut self) -> Option<Move> {
        let then = self.then()?;
        let mut candidates = Vec::new();
        for table in self.tables {
            let now = &self.now[&table.name];
            let rows = then[&table.name].iter().filter(|row| !now.contains(row));
            candidates.extend(rows.map(|row| (table.clone(), row.clone())));
        }
        if candidates.is_empty() {
            return None;
        }
        let (table, row) = candidates.swap_remove(self.below(candidates.len()));
        Some(Move {
            what: format!("roll back a row of {}: {}", table.name, name(&table, &row)),
            statements: vec![
                self.database.delete(&table, &row),
                self.database.insert(&table, &row),
            ],
            blocks: table.block_of(&row).into_iter().collect(),
            whole: false,
        })
    }

    fn roll_back_block(&mut self, log_too: bool) -> Option<Move> {
        let (then, block) = (self.then()?, self.block()?);
        let mut statements = Vec::new();
        for table in self.tables {
            let (now, was) = (&self.now[&table.name], &then[&table.name]);
            if table.column("block").is_some() && !is_log(table) {
                let of = |rows: &[Cells]| -> Vec<Cells> {
                    let own = rows.iter().filter(|row| table.block_of(row) == Some(block));
                    own.cloned().collect()
                };
                statements.extend(self.database.restore(table, &of(now), &of(was)));
            } else if log_too && is_log(table) {
                statements.extend(self.database.restore(table, now, was));
            }
        }
        let log = if log_too { " and the whole log" } else { "" };
        let what = format!("roll back block {block}{log}");
        Some(Move { what, statements, blocks: vec![block], whole: log_too })
    }

    fn roll_back_table(&mut self) -> Option<Move> {
        let (then, table) = (self.then()?, self.table()?);
        let statements = self.database.restore(&table, &self.now[&table.name], &then[&table.name]);
        let what = format!("roll back the table {}", table.name);
        Some(Move { what, statements, blocks: Vec::new(), whole: false })
    }

    fn roll_back_all(&mut self) -> Option<Move> {
        let then = self.then()?;
        let mut statements = Vec::new();
        for table in self.tables {
            let (now, was) = (&self.now[&table.name], &then[&table.name]);
            statements.extend(self.database.restore(table, now, was));
        }
        let what = "roll back the whole database".to_owned();
        Some(Move { what, statements, blocks: Vec::new(), whole: true })
    }
}

fn name(table: &Table, row: &Cells) -> String {
    let short = |cell: Cell| match cell {
        Cell::Null => "NULL".to_owned(),
        Cell::Number(number) => number.to_string(),
        Cell::Flag(flag) => flag.to_string(),
        Cell::Text(text) => text,
        Cell::Bytes(bytes) => hex::encode(bytes),
    };
    let words: Vec<String> = table.key_of(row).into_iter().map(short).collect();
    let mut words = words.join("/");
    words.truncate(60);
    words
}

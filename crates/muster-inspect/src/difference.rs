//! What differs between two states of a table.

use std::collections::HashMap;

use muster_rows::{Field, Row, encode_row};
use muster_types::Digest;
use muster_types::table::CapturedTable;

/// One state of a table as digests: the other state's rows are compared with it one by one.
#[derive(Debug, Default)]
pub struct TableImage {
    rows: HashMap<Vec<u8>, (Digest, String)>,
}

/// Rows added, removed and changed, by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Keys of rows that only the later state has.
    pub added: Vec<String>,
    /// Keys of rows that only the earlier state has.
    pub removed: Vec<String>,
    /// Keys of rows that both have, with other values.
    pub changed: Vec<String>,
    /// Rows that are the same.
    pub same: u64,
}

impl Difference {
    /// Whether the two states are equal.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}

impl TableImage {
    /// Adds a row of the earlier state.
    pub fn add(&mut self, table: &CapturedTable, row: &Row) {
        let (key, shown) = key_of(table, row);
        self.rows.insert(key, (digest(row), shown));
    }

    /// Compares with the later state, row by row, taking matched rows out.
    pub fn compare(&mut self, table: &CapturedTable, row: &Row, difference: &mut Difference) {
        let (key, shown) = key_of(table, row);
        match self.rows.remove(&key) {
            None => difference.added.push(shown),
            Some((before, _)) if before == digest(row) => difference.same += 1,
            Some(_) => difference.changed.push(shown),
        }
    }

    /// Ends the comparison: what is left was removed.
    pub fn finish(self, difference: &mut Difference) {
        difference.removed.extend(self.rows.into_values().map(|(_, shown)| shown));
        for keys in [&mut difference.added, &mut difference.removed, &mut difference.changed] {
            keys.sort();
        }
    }
}

fn digest(row: &Row) -> Digest {
    let mut line = Vec::new();
    encode_row(row, &mut line);
    Digest::of(&line)
}

fn key_of(table: &CapturedTable, row: &Row) -> (Vec<u8>, String) {
    let (mut key, mut shown) = (Vec::new(), Vec::new());
    for number in table.def.key_indexes() {
        let Some(field) = row.get(number) else { continue };
        key.push(field.class.letter());
        key.extend((field.bytes.len() as u64).to_le_bytes());
        key.extend(field.bytes);
        shown.push(show(field));
    }
    (key, shown.join(","))
}

fn show(field: Field<'_>) -> String {
    String::from_utf8_lossy(field.bytes).into_owned()
}

//! Keys of rows, as bytes that are equal when class and bytes of all key columns are.

use std::fmt::Write;

use crate::change::Op;
use crate::row::{Class, Row, RowBuilder};

/// Longest part of a key column in a message.
const SHOWN_CHARS: usize = 60;

/// Which columns identify a row.
#[derive(Clone, Debug)]
pub(super) struct KeyColumns {
    indexes: Vec<usize>,
    columns: usize,
}

impl KeyColumns {
    /// Without key columns, all columns together identify a row.
    pub(super) fn new(indexes: Vec<usize>, columns: usize) -> Self {
        let indexes = if indexes.is_empty() { (0..columns).collect() } else { indexes };
        Self { indexes, columns }
    }

    /// Fields that a row has.
    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Writes the key of `row` to `key`; false where a key column is unchanged or missing.
    #[must_use]
    pub(super) fn read(&self, row: &Row, key: &mut Vec<u8>) -> bool {
        key.clear();
        for &index in &self.indexes {
            let Some(field) = row.get(index).filter(|field| field.class != Class::Unchanged) else {
                return false;
            };
            key.push(field.class.letter());
            // A row is below 4 GiB.
            key.extend_from_slice(&(field.bytes.len() as u32).to_le_bytes());
            key.extend_from_slice(field.bytes);
        }
        true
    }
}

/// The change of a row in terms of keys.
pub(super) enum Effect {
    /// `row` comes to be.
    Insert { row: Row },
    /// The row that `old` describes goes.
    Delete { old: Row },
    /// The row that `old` describes becomes `row`; both have the same key, or `row` is incomplete.
    Become { old: Row, row: Row },
    /// The row that `old` describes goes and `row`, which is complete, comes to be under another key.
    Replace { old: Row, row: Row },
    /// All rows go.
    Truncate,
}

impl Effect {
    /// The effect of `op`, with its keys in `from` and `to` where it has them; none where a key is not known.
    pub(super) fn of(op: Op, keys: &KeyColumns, from: &mut Vec<u8>, to: &mut Vec<u8>) -> Option<Self> {
        Some(match op {
            Op::Truncate => Self::Truncate,
            Op::Insert { new: row } => keys.read(&row, to).then_some(Self::Insert { row })?,
            Op::Delete { old } => keys.read(&old, from).then_some(Self::Delete { old })?,
            Op::Update { old, new } => {
                let row = fill(new, &old);
                if !keys.read(&old, from) || !keys.read(&row, to) {
                    return None;
                }
                if from != to && is_complete(&row) {
                    Self::Replace { old, row }
                } else {
                    Self::Become { old, row }
                }
            }
        })
    }
}

/// Whether no field of `row` is unchanged.
pub(super) fn is_complete(row: &Row) -> bool {
    row.fields().all(|field| field.class != Class::Unchanged)
}

/// `row` with its unchanged fields from `from`.
pub(super) fn fill(row: Row, from: &Row) -> Row {
    if is_complete(&row) {
        return row;
    }
    let mut builder = RowBuilder::new();
    for (field, known) in row.fields().zip(from.fields()) {
        let field = if field.class == Class::Unchanged { known } else { field };
        builder.push(field.class, field.bytes);
    }
    builder.take()
}

/// The first column in which two images of a row that both know it differ.
pub(super) fn difference(a: &Row, b: &Row) -> Option<usize> {
    a.fields().zip(b.fields()).position(|(a, b)| {
        a.class != Class::Unchanged && b.class != Class::Unchanged && (a.class, a.bytes) != (b.class, b.bytes)
    })
}

/// A key as people read it.
pub(super) fn show(mut key: &[u8]) -> String {
    let mut shown = String::new();
    while let Some((field, rest)) = split_field(key) {
        shown.push_str(if shown.is_empty() { "(" } else { ", " });
        show_field(field, &mut shown);
        key = rest;
    }
    shown.push_str(if shown.is_empty() { "()" } else { ")" });
    shown
}

type KeyField<'a> = (u8, &'a [u8]);

fn split_field(key: &[u8]) -> Option<(KeyField<'_>, &[u8])> {
    let (&class, rest) = key.split_first()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (bytes, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    Some(((class, bytes), rest))
}

fn show_field((class, bytes): KeyField<'_>, out: &mut String) {
    let text = String::from_utf8_lossy(bytes);
    let head: String = text.chars().take(SHOWN_CHARS).collect();
    let cut = if head.len() < text.len() { "…" } else { "" };
    let head = head.escape_debug();
    // Writing to a string cannot fail.
    let _ = match Class::from_letter(class) {
        Some(Class::Null) | None => write!(out, "NULL"),
        Some(Class::Integer | Class::Real) => write!(out, "{head}{cut}"),
        Some(Class::Blob) => {
            let hex = bytes.iter().take(SHOWN_CHARS / 2).map(|byte| format!("{byte:02x}"));
            write!(out, "x'{}'", hex.collect::<String>())
        }
        Some(Class::Text | Class::Unchanged) => write!(out, "'{head}{cut}'"),
    };
}

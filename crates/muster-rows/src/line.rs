//! Lines of packs and segments.
//!
//! - A row line is the row's fields and then its class letters, one per field ([`Class::letter`]), separated by tabs.
//! - A change line is `position`, `ordinal`, `at` (microseconds since the Unix epoch), an operation letter, and then a
//!   row line. `I` has the new row, `D` the old one, `T` (truncate) none. An update is two lines with the same stamp:
//!   `B` with the old row, directly followed by `U` with the new one.
//!
//! Every line ends with `\n`, and frames end at line ends. All lines of a frame are of one table, so the number of
//! fields is known from its definition.
//!
//! # Invariants
//! Decoding accepts exactly what encoding writes: a line that decodes is the encoding of what came out.
//!
//! # Errors
//! [`LineError`] numbers the line within what the reader has read. Nothing that is read can make a reader panic.

use std::fmt;

use muster_types::segment::ChangeStamp;
use muster_types::{ChangeKey, Position, Timestamp};

use crate::change::{Change, Op};
use crate::copy::{decode_field, encode_field};
use crate::row::{Class, Row, RowBuilder};

/// A line that nothing in here has written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct LineError {
    /// Its number, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: LineReason,
}

/// What can be wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineReason {
    /// Another number of fields than the table has columns.
    Fields {
        /// Columns of the table.
        expected: usize,
        /// Fields of the line, without its class letters.
        found: usize,
    },
    /// A byte that is no class letter.
    Class(u8),
    /// A field of class NULL or unchanged that is not `\N`.
    NotNull,
    /// A field of class blob that is not `\\x` and pairs of lower-case hexadecimal digits.
    NotBlob,
    /// A control character that should have been escaped.
    RawControl(u8),
    /// A backslash followed by something that is no escape.
    Escape,
    /// The position, ordinal or time of a change is missing, not a number, or out of range.
    Stamp,
    /// No known operation letter.
    Operation,
    /// A `U` line without the `B` line before it, or with another stamp.
    LoneNew,
    /// A `B` line without the `U` line behind it.
    LoneOld,
    /// The text ends without a line end.
    Unended,
    /// Longer than a row can be.
    TooLong,
}

impl fmt::Display for LineReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fields { expected, found } => {
                write!(f, "it has {found} fields and the table has {expected} columns")
            }
            Self::Class(byte) => write!(f, "`{}` is no class letter", byte.escape_ascii()),
            Self::NotNull => f.write_str("a NULL or unchanged field is not \\N"),
            Self::NotBlob => f.write_str("a blob field is not \\\\x and pairs of hexadecimal digits"),
            Self::RawControl(byte) => write!(f, "the control character 0x{byte:02x} is not escaped"),
            Self::Escape => f.write_str("a backslash is followed by something that is no escape"),
            Self::Stamp => f.write_str("position, ordinal or time of the change is missing or not a number"),
            Self::Operation => f.write_str("the operation is none of I, D, B, U and T"),
            Self::LoneNew => f.write_str("a new image (U) without the old image (B) of its stamp before it"),
            Self::LoneOld => f.write_str("an old image (B) without the new image (U) behind it"),
            Self::Unended => f.write_str("the text ends in the middle of a line"),
            Self::TooLong => f.write_str("the line is longer than a row can be"),
        }
    }
}

/// Appends the line of `row`.
pub fn encode_row(row: &Row, out: &mut Vec<u8>) {
    encode_fields(row, out);
    out.push(b'\n');
}

/// Fields and class letters, without the line end.
pub(crate) fn encode_fields(row: &Row, out: &mut Vec<u8>) {
    for field in row.fields() {
        encode_field(field, out);
        out.push(b'\t');
    }
    out.extend(row.fields().map(|field| field.class.letter()));
}

/// Reads one row line, with or without its line end. For many lines, [`RowReader`] is faster.
///
/// # Errors
/// When `line` is not what [`encode_row`] writes for a row of `columns` fields.
pub fn decode_row(line: &[u8], columns: usize) -> Result<Row, LineError> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    decode_fields(line, columns, &mut RowBuilder::new()).map_err(|reason| LineError { line: 1, reason })
}

fn decode_fields(text: &[u8], columns: usize, builder: &mut RowBuilder) -> Result<Row, LineReason> {
    builder.clear();
    if text.len() > u32::MAX as usize {
        return Err(LineReason::TooLong);
    }
    let miscount = || {
        let found = text.iter().filter(|&&byte| byte == b'\t').count();
        LineReason::Fields { expected: columns, found }
    };
    let (mut rest, classes) = text
        .len()
        .checked_sub(columns)
        .and_then(|start| text.split_at_checked(start))
        .ok_or_else(miscount)?;
    for &letter in classes {
        let class = match Class::from_letter(letter) {
            Some(class) => class,
            None if letter == b'\t' => return Err(miscount()),
            None => return Err(LineReason::Class(letter)),
        };
        rest = decode_field(class, rest, builder)?.strip_prefix(b"\t").ok_or_else(miscount)?;
    }
    if rest.is_empty() { Ok(builder.take()) } else { Err(miscount()) }
}

/// Appends the line of `change`, or both lines of an update.
pub fn encode_change(change: &Change, out: &mut Vec<u8>) {
    match &change.op {
        Op::Insert { new } => encode_image(change.stamp, b'I', Some(new), out),
        Op::Delete { old } => encode_image(change.stamp, b'D', Some(old), out),
        Op::Truncate => encode_image(change.stamp, b'T', None, out),
        Op::Update { old, new } => {
            encode_image(change.stamp, b'B', Some(old), out);
            encode_image(change.stamp, b'U', Some(new), out);
        }
    }
}

fn encode_image(stamp: ChangeStamp, op: u8, row: Option<&Row>, out: &mut Vec<u8>) {
    push_decimal(stamp.key.position.0, out);
    out.push(b'\t');
    push_decimal(stamp.key.ordinal, out);
    out.push(b'\t');
    let micros = stamp.at.as_micros();
    if micros < 0 {
        out.push(b'-');
    }
    push_decimal(micros.unsigned_abs(), out);
    out.extend_from_slice(&[b'\t', op, b'\t']);
    if let Some(row) = row {
        encode_fields(row, out);
    }
    out.push(b'\n');
}

fn push_decimal(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

/// A number as [`push_decimal`] writes it: no sign, no leading zeros.
fn parse_decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || (text.len() > 1 && text[0] == b'0') {
        return None;
    }
    text.iter().try_fold(0_u64, |number, &byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

fn parse_time(text: &[u8]) -> Option<Timestamp> {
    let micros = match text.strip_prefix(b"-") {
        Some(text) => 0_i64.checked_sub_unsigned(parse_decimal(text).filter(|&number| number > 0)?)?,
        None => i64::try_from(parse_decimal(text)?).ok()?,
    };
    // Times out of range would be clamped, and the line not be the encoding of what came out.
    Some(Timestamp::from_micros(micros)).filter(|time| time.as_micros() == micros)
}

/// The stamp, the operation letter and what follows them.
fn decode_head(line: &[u8]) -> Result<(ChangeStamp, u8, &[u8]), LineReason> {
    let mut parts = line.splitn(5, |&byte| byte == b'\t');
    let mut number = |parse: fn(&[u8]) -> Option<u64>| parts.next().and_then(parse);
    let position = number(parse_decimal).ok_or(LineReason::Stamp)?;
    let ordinal = number(parse_decimal).ok_or(LineReason::Stamp)?;
    let at = parts.next().and_then(parse_time).ok_or(LineReason::Stamp)?;
    let (Some(&[op]), Some(rest)) = (parts.next(), parts.next()) else { return Err(LineReason::Operation) };
    let key = ChangeKey { position: Position(position), ordinal };
    Ok((ChangeStamp { key, at }, op, rest))
}

/// Splits the first line off `text`.
fn next_line<'a>(text: &mut &'a [u8]) -> Option<Result<&'a [u8], LineReason>> {
    if text.is_empty() {
        return None;
    }
    let Some(end) = text.iter().position(|&byte| byte == b'\n') else {
        *text = &[];
        return Some(Err(LineReason::Unended));
    };
    let line = &text[..end];
    *text = &text[end + 1..];
    Some(Ok(line))
}

/// Reads the row lines of one frame, chunk by chunk.
#[derive(Debug)]
pub struct RowReader {
    columns: usize,
    lines: u64,
    builder: RowBuilder,
}

impl RowReader {
    /// A reader of rows of `columns` fields.
    pub fn new(columns: usize) -> Self {
        Self { columns, lines: 0, builder: RowBuilder::new() }
    }

    /// The rows of the next chunk, which must end at a line end.
    pub fn rows<'a>(&'a mut self, chunk: &'a [u8]) -> impl Iterator<Item = Result<Row, LineError>> + 'a {
        let mut text = chunk;
        std::iter::from_fn(move || {
            let line = next_line(&mut text)?;
            self.lines += 1;
            let row = line.and_then(|line| decode_fields(line, self.columns, &mut self.builder));
            Some(row.map_err(|reason| LineError { line: self.lines, reason }))
        })
    }
}

/// Reads the change lines of one frame, chunk by chunk, and pairs the two lines of each update, which may lie in
/// different chunks. Call [`Self::finish`] behind the last chunk.
#[derive(Debug)]
pub struct ChangeReader {
    columns: usize,
    lines: u64,
    builder: RowBuilder,
    old: Option<(ChangeStamp, Row)>,
}

impl ChangeReader {
    /// A reader of changes of rows of `columns` fields.
    pub fn new(columns: usize) -> Self {
        Self { columns, lines: 0, builder: RowBuilder::new(), old: None }
    }

    /// The changes of the next chunk, which must end at a line end.
    pub fn changes<'a>(
        &'a mut self,
        chunk: &'a [u8],
    ) -> impl Iterator<Item = Result<Change, LineError>> + 'a {
        let mut text = chunk;
        std::iter::from_fn(move || {
            loop {
                let line = next_line(&mut text)?;
                self.lines += 1;
                match line.and_then(|line| self.change(line)) {
                    Ok(Some(change)) => return Some(Ok(change)),
                    Ok(None) => {}
                    Err(reason) => return Some(Err(LineError { line: self.lines, reason })),
                }
            }
        })
    }

    /// Says that there is no further chunk.
    ///
    /// # Errors
    /// When the last update lacks its second line.
    pub fn finish(self) -> Result<(), LineError> {
        match self.old {
            None => Ok(()),
            Some(_) => Err(LineError { line: self.lines, reason: LineReason::LoneOld }),
        }
    }

    /// The change that `line` completes; none for the first line of an update.
    fn change(&mut self, line: &[u8]) -> Result<Option<Change>, LineReason> {
        let before = self.old.take();
        let (stamp, op, rest) = decode_head(line)?;
        if before.is_some() && op != b'U' {
            return Err(LineReason::LoneOld);
        }
        let mut row = || decode_fields(rest, self.columns, &mut self.builder);
        let op = match op {
            b'I' => Op::Insert { new: row()? },
            b'D' => Op::Delete { old: row()? },
            b'B' => {
                self.old = Some((stamp, row()?));
                return Ok(None);
            }
            b'U' => match before {
                Some((of, old)) if of == stamp => Op::Update { old, new: row()? },
                _ => return Err(LineReason::LoneNew),
            },
            b'T' if rest.is_empty() => Op::Truncate,
            b'T' => return Err(LineReason::Fields { expected: 0, found: self.columns }),
            _ => return Err(LineReason::Operation),
        };
        Ok(Some(Change { stamp, op }))
    }
}

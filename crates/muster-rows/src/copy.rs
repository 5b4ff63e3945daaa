//! Fields as PostgreSQL's COPY text.
//!
//! The escapes are those that `COPY … TO` writes (PostgreSQL manual, COPY, "Text Format"), plus `\000` for the NUL
//! that PostgreSQL's text cannot hold and SQLite's can. Blobs are written as `bytea_output = hex` would, their
//! backslash escaped in turn. NULL and unchanged columns are both `\N`: the class letter tells them apart.
//!
//! # Invariants
//! Decoding accepts exactly what encoding writes, so equal rows have equal text and the text can be digested.

use crate::line::LineReason;
use crate::row::{Class, Field, RowBuilder};

const HEX: &[u8; 16] = b"0123456789abcdef";
const NO_DIGIT: u8 = 0xff;

/// Bytes that stand for themselves.
const PLAIN: [bool; 256] = {
    let mut plain = [true; 256];
    let special = [0, 0x08, b'\t', b'\n', 0x0b, 0x0c, b'\r', b'\\'];
    let mut i = 0;
    while i < special.len() {
        plain[special[i] as usize] = false;
        i += 1;
    }
    plain
};

/// Values of lower-case hexadecimal digits.
const DIGIT: [u8; 256] = {
    let mut digit = [NO_DIGIT; 256];
    let mut i = 0;
    while i < HEX.len() {
        digit[HEX[i] as usize] = i as u8;
        i += 1;
    }
    digit
};

/// Length of the run of plain bytes that `bytes` begins with.
fn plain_run(bytes: &[u8]) -> usize {
    bytes.iter().position(|&byte| !PLAIN[byte as usize]).unwrap_or(bytes.len())
}

fn escape_of(byte: u8) -> &'static [u8] {
    match byte {
        0 => b"\\000",
        0x08 => b"\\b",
        b'\t' => b"\\t",
        b'\n' => b"\\n",
        0x0b => b"\\v",
        0x0c => b"\\f",
        b'\r' => b"\\r",
        _ => b"\\\\",
    }
}

/// Appends the text of `field`, without a separator.
pub(crate) fn encode_field(field: Field<'_>, out: &mut Vec<u8>) {
    match field.class {
        Class::Null | Class::Unchanged => out.extend_from_slice(b"\\N"),
        Class::Blob => encode_blob(field.bytes, out),
        Class::Text | Class::Integer | Class::Real => encode_text(field.bytes, out),
    }
}

fn encode_blob(bytes: &[u8], out: &mut Vec<u8>) {
    out.reserve(3 + 2 * bytes.len());
    out.extend_from_slice(b"\\\\x");
    for &byte in bytes {
        out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
    }
}

fn encode_text(mut bytes: &[u8], out: &mut Vec<u8>) {
    loop {
        let (plain, rest) = bytes.split_at(plain_run(bytes));
        out.extend_from_slice(plain);
        let Some((&special, rest)) = rest.split_first() else { return };
        out.extend_from_slice(escape_of(special));
        bytes = rest;
    }
}

/// Reads one field of `class` from the beginning of `text` into `row`; gives what follows it, beginning with the
/// separator if there is one.
pub(crate) fn decode_field<'a>(
    class: Class,
    text: &'a [u8],
    row: &mut RowBuilder,
) -> Result<&'a [u8], LineReason> {
    let rest = match class {
        Class::Null | Class::Unchanged => text.strip_prefix(b"\\N").ok_or(LineReason::NotNull)?,
        Class::Blob => decode_blob(text, row.open_field())?,
        Class::Text | Class::Integer | Class::Real => decode_text(text, row.open_field())?,
    };
    row.close_field(class);
    Ok(rest)
}

fn decode_blob<'a>(text: &'a [u8], out: &mut Vec<u8>) -> Result<&'a [u8], LineReason> {
    let text = text.strip_prefix(b"\\\\x").ok_or(LineReason::NotBlob)?;
    let digits = text.iter().position(|&byte| DIGIT[byte as usize] == NO_DIGIT).unwrap_or(text.len());
    let (digits, rest) = text.split_at(digits);
    if digits.len() % 2 != 0 {
        return Err(LineReason::NotBlob);
    }
    out.extend(digits.chunks_exact(2).map(|two| DIGIT[two[0] as usize] << 4 | DIGIT[two[1] as usize]));
    Ok(rest)
}

fn decode_text<'a>(mut text: &'a [u8], out: &mut Vec<u8>) -> Result<&'a [u8], LineReason> {
    loop {
        let (plain, rest) = text.split_at(plain_run(text));
        out.extend_from_slice(plain);
        match rest {
            [] | [b'\t', ..] => return Ok(rest),
            [b'\\', escaped @ ..] => text = decode_escape(escaped, out)?,
            [raw, ..] => return Err(LineReason::RawControl(*raw)),
        }
    }
}

/// What follows the backslash.
fn decode_escape<'a>(text: &'a [u8], out: &mut Vec<u8>) -> Result<&'a [u8], LineReason> {
    let (byte, rest) = match text {
        [b'0', b'0', b'0', rest @ ..] => (0, rest),
        [b'b', rest @ ..] => (0x08, rest),
        [b't', rest @ ..] => (b'\t', rest),
        [b'n', rest @ ..] => (b'\n', rest),
        [b'v', rest @ ..] => (0x0b, rest),
        [b'f', rest @ ..] => (0x0c, rest),
        [b'r', rest @ ..] => (b'\r', rest),
        [b'\\', rest @ ..] => (b'\\', rest),
        _ => return Err(LineReason::Escape),
    };
    out.push(byte);
    Ok(rest)
}

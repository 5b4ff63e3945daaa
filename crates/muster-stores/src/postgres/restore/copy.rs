//! Rows as PostgreSQL's COPY text, both ways. Memory: one chunk, and the longest row.

use std::collections::BTreeMap;
use std::pin::Pin;

use bytes::Bytes;
use futures::StreamExt;
use muster_engine::driver::DriverError;
use muster_rows::{Class, Row, RowBuilder, RowsDigest};
use muster_types::journal::TableDigest;
use tokio_postgres::{Client, CopyOutStream};

use super::shard::Shard;

/// Appends the COPY line of a row behind `prefix`, which is complete with its separators; the field's index and class
/// where one is no value of PostgreSQL.
pub(super) fn encode(prefix: &str, row: &Row, out: &mut Vec<u8>) -> Result<(), (usize, Class)> {
    out.extend_from_slice(prefix.as_bytes());
    for (index, field) in row.fields().enumerate() {
        if index > 0 {
            out.push(b'\t');
        }
        match field.class {
            Class::Null => out.extend_from_slice(b"\\N"),
            Class::Text => escape(field.bytes, out),
            other => return Err((index, other)),
        }
    }
    out.push(b'\n');
    Ok(())
}

fn escape(bytes: &[u8], out: &mut Vec<u8>) {
    for &byte in bytes {
        match byte {
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\t' => out.extend_from_slice(b"\\t"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            other => out.push(other),
        }
    }
}

/// Reads one line, without its end, as a row.
fn decode(line: &[u8], builder: &mut RowBuilder, scratch: &mut Vec<u8>) -> Row {
    for field in line.split(|&byte| byte == b'\t') {
        if field == b"\\N" {
            builder.push(Class::Null, &[]);
            continue;
        }
        scratch.clear();
        let mut rest = field;
        while let Some(at) = rest.iter().position(|&byte| byte == b'\\') {
            scratch.extend_from_slice(&rest[..at]);
            scratch.push(match rest.get(at + 1) {
                Some(b'b') => 0x08,
                Some(b'f') => 0x0c,
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(b't') => b'\t',
                Some(b'v') => 0x0b,
                Some(&other) => other,
                None => b'\\',
            });
            rest = rest.get(at + 2..).unwrap_or_default();
        }
        scratch.extend_from_slice(rest);
        builder.push(Class::Text, scratch);
    }
    builder.take()
}

/// The rows of `COPY (select) TO STDOUT`, one after the other.
pub(super) struct Rows<'s> {
    shard: &'s Shard,
    doing: String,
    stream: Pin<Box<CopyOutStream>>,
    chunk: Bytes,
    open: Vec<u8>,
    builder: RowBuilder,
    scratch: Vec<u8>,
}

impl<'s> Rows<'s> {
    /// Begins to read; `doing` completes "could not …".
    pub(super) async fn of(
        shard: &'s Shard,
        client: &Client,
        doing: &str,
        select: &str,
    ) -> Result<Self, DriverError> {
        let stream = client.copy_out(&format!("COPY ({select}) TO STDOUT")).await;
        Ok(Self {
            shard,
            doing: doing.to_owned(),
            stream: Box::pin(stream.map_err(|error| shard.error(doing, &error))?),
            chunk: Bytes::new(),
            open: Vec::new(),
            builder: RowBuilder::new(),
            scratch: Vec::new(),
        })
    }

    /// The next row.
    pub(super) async fn next(&mut self) -> Result<Option<Row>, DriverError> {
        let line = self.line().await?;
        Ok(line.map(|line| decode(&line, &mut self.builder, &mut self.scratch)))
    }

    /// The next row without its first field, and that field as text; NULL is empty.
    pub(super) async fn next_keyed(&mut self) -> Result<Option<(String, Row)>, DriverError> {
        let Some(line) = self.line().await? else { return Ok(None) };
        let end = line.iter().position(|&byte| byte == b'\t').unwrap_or(line.len());
        let key = decode(&line[..end], &mut self.builder, &mut self.scratch);
        let key = key.get(0).map_or(&[][..], |field| field.bytes);
        let key = String::from_utf8_lossy(key).into_owned();
        let rest = line.get(end + 1..).unwrap_or_default();
        Ok(Some((key, decode(rest, &mut self.builder, &mut self.scratch))))
    }

    /// The next line, without its end.
    async fn line(&mut self) -> Result<Option<Bytes>, DriverError> {
        loop {
            if let Some(end) = self.chunk.iter().position(|&byte| byte == b'\n') {
                let line = self.chunk.split_to(end + 1);
                if self.open.is_empty() {
                    return Ok(Some(line.slice(..end)));
                }
                self.open.extend_from_slice(&line[..end]);
                return Ok(Some(std::mem::take(&mut self.open).into()));
            }
            self.open.extend_from_slice(&self.chunk);
            match self.stream.next().await {
                Some(Ok(chunk)) => self.chunk = chunk,
                Some(Err(error)) => return Err(self.shard.error(&self.doing, &error)),
                None if self.open.is_empty() => return Ok(None),
                None => {
                    let what = format!("could not {}: the server's answer ends in a row", self.doing);
                    return Err(self.shard.transient(what, "the step is tried again"));
                }
            }
        }
    }
}

/// Rows and digest of a query, as rows of `table`.
pub(super) async fn digest(
    shard: &Shard,
    client: &Client,
    doing: &str,
    table: &str,
    select: &str,
) -> Result<TableDigest, DriverError> {
    let mut found = Rows::of(shard, client, doing, select).await?;
    let (mut digest, mut rows) = (RowsDigest::new(), 0);
    while let Some(row) = found.next().await? {
        digest.add(table, &row);
        rows += 1;
    }
    Ok(TableDigest { rows, digest: digest.finish() })
}

/// Rows and digest of a query by its first field, as rows of `table` without it.
pub(super) async fn digest_by(
    shard: &Shard,
    client: &Client,
    doing: &str,
    table: &str,
    select: &str,
) -> Result<BTreeMap<String, TableDigest>, DriverError> {
    let mut found = Rows::of(shard, client, doing, select).await?;
    let mut digests: BTreeMap<String, (RowsDigest, u64)> = BTreeMap::new();
    while let Some((key, row)) = found.next_keyed().await? {
        let (digest, rows) = digests.entry(key).or_insert_with(|| (RowsDigest::new(), 0));
        digest.add(table, &row);
        *rows += 1;
    }
    let finish = |(key, (digest, rows)): (String, (RowsDigest, u64))| {
        (key, TableDigest { rows, digest: digest.finish() })
    };
    Ok(digests.into_iter().map(finish).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut builder = RowBuilder::new();
        let text = "a\tb\\c\nd\re\u{8}\u{b}\u{c} ü \\N".as_bytes();
        builder
            .push(Class::Text, text)
            .push(Class::Null, &[])
            .push(Class::Text, b"")
            .push(Class::Text, b"\\N");
        let row = builder.take();
        let mut line = Vec::new();
        encode("7\t", &row, &mut line).unwrap();
        let line = line.strip_prefix(b"7\t").unwrap().strip_suffix(b"\n").unwrap();
        assert_eq!(decode(line, &mut builder, &mut Vec::new()), row);
        assert_eq!(
            decode(b"\\b\\v\\f\\t\\\\N", &mut builder, &mut Vec::new()).get(0).unwrap().bytes,
            b"\x08\x0b\x0c\t\\N"
        );
    }

    #[test]
    fn a_value_of_another_kind_is_refused() {
        let mut builder = RowBuilder::new();
        let row = builder.push(Class::Text, b"x").push(Class::Blob, b"y").take();
        assert_eq!(encode("", &row, &mut Vec::new()), Err((1, Class::Blob)));
    }
}

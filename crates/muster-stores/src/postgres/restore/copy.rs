//! Rows as PostgreSQL's COPY text, both ways. Memory: one chunk, and the longest row.

use std::collections::{BTreeMap, VecDeque};
use std::future::ready;
use std::pin::Pin;

use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use futures::{FutureExt, StreamExt};
use muster_engine::driver::DriverError;
use muster_rows::{Class, Row, RowBuilder, RowsDigest};
use muster_types::journal::TableDigest;
use tokio_postgres::{Client, CopyOutStream, Error};

use super::lines::LinesSum;
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

/// Escapes what the server escapes, so that it writes the same line.
fn escape(mut bytes: &[u8], out: &mut Vec<u8>) {
    while let Some(at) = bytes.iter().position(|&byte| ESCAPED[byte as usize] != 0) {
        out.extend_from_slice(&bytes[..at]);
        out.extend_from_slice(&[b'\\', ESCAPED[bytes[at] as usize]]);
        bytes = &bytes[at + 1..];
    }
    out.extend_from_slice(bytes);
}

/// What stands behind the backslash for a byte that does not stand for itself.
const ESCAPED: [u8; 256] = {
    let mut escaped = [0; 256];
    escaped[0x08] = b'b';
    escaped[b'\t' as usize] = b't';
    escaped[b'\n' as usize] = b'n';
    escaped[0x0b] = b'v';
    escaped[0x0c] = b'f';
    escaped[b'\r' as usize] = b'r';
    escaped[b'\\' as usize] = b'\\';
    escaped
};

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
        Ok(Self::new(shard, doing, stream.map_err(|error| shard.error(doing, &error))?))
    }

    fn new(shard: &'s Shard, doing: &str, stream: CopyOutStream) -> Self {
        Self {
            shard,
            doing: doing.to_owned(),
            stream: Box::pin(stream),
            chunk: Bytes::new(),
            open: Vec::new(),
            builder: RowBuilder::new(),
            scratch: Vec::new(),
        }
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

impl Rows<'_> {
    /// Their number and digest, as rows of `table`.
    pub(super) async fn digest(mut self, table: &str) -> Result<TableDigest, DriverError> {
        let (mut digest, mut rows) = (RowsDigest::new(), 0);
        while let Some(row) = self.next().await? {
            digest.add(table, &row);
            rows += 1;
        }
        Ok(TableDigest { rows, digest: digest.finish() })
    }

    /// The same by their first field, without it.
    pub(super) async fn digest_by(
        mut self,
        table: &str,
    ) -> Result<BTreeMap<String, TableDigest>, DriverError> {
        let mut digests: BTreeMap<String, (RowsDigest, u64)> = BTreeMap::new();
        while let Some((key, row)) = self.next_keyed().await? {
            let (digest, rows) = digests.entry(key).or_insert_with(|| (RowsDigest::new(), 0));
            digest.add(table, &row);
            *rows += 1;
        }
        let finish = |(key, (digest, rows)): (String, (RowsDigest, u64))| {
            (key, TableDigest { rows, digest: digest.finish() })
        };
        Ok(digests.into_iter().map(finish).collect())
    }

    /// The sum of their lines.
    pub(super) async fn lines(mut self) -> Result<LinesSum, DriverError> {
        let (key, mut sum) = (self.shard.lines_key(), LinesSum::default());
        while let Some(line) = self.line().await? {
            sum.add(key, &line);
        }
        Ok(sum)
    }

    /// The same by their first field, without it.
    pub(super) async fn lines_by(mut self) -> Result<BTreeMap<String, LinesSum>, DriverError> {
        let mut sums: BTreeMap<Vec<u8>, LinesSum> = BTreeMap::new();
        while let Some(line) = self.line().await? {
            let end = line.iter().position(|&byte| byte == b'\t').unwrap_or(line.len());
            let (key, rest) = (&line[..end], line.get(end + 1..).unwrap_or_default());
            match sums.get_mut(key) {
                Some(sum) => sum.add(self.shard.lines_key(), rest),
                None => {
                    let mut sum = LinesSum::default();
                    sum.add(self.shard.lines_key(), rest);
                    sums.insert(key.to_vec(), sum);
                }
            }
        }
        let mut text = |key: Vec<u8>| {
            let key = decode(&key, &mut self.builder, &mut self.scratch);
            String::from_utf8_lossy(key.get(0).map_or(&[][..], |field| field.bytes)).into_owned()
        };
        Ok(sums.into_iter().map(|(key, sum)| (text(key), sum)).collect())
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
    Rows::of(shard, client, doing, select).await?.digest(table).await
}

/// Rows and digest of a query by its first field, as rows of `table` without it.
pub(super) async fn digest_by(
    shard: &Shard,
    client: &Client,
    doing: &str,
    table: &str,
    select: &str,
) -> Result<BTreeMap<String, TableDigest>, DriverError> {
    Rows::of(shard, client, doing, select).await?.digest_by(table).await
}

/// Queries that are sent together; their rows come one query after the other.
pub(super) struct Queries<'s> {
    shard: &'s Shard,
    doing: &'s str,
    coming: VecDeque<BoxFuture<'s, Result<CopyOutStream, Error>>>,
}

impl<'s> Queries<'s> {
    /// Sends them; `doing` completes "could not …".
    pub(super) async fn send(
        shard: &'s Shard,
        client: &'s Client,
        doing: &'s str,
        selects: impl IntoIterator<Item = String>,
    ) -> Result<Self, DriverError> {
        let texts: Vec<String> =
            selects.into_iter().map(|select| format!("COPY ({select}) TO STDOUT")).collect();
        let prepared = join_all(texts.iter().map(|text| client.prepare(text))).await;
        let mut queries = Self { shard, doing, coming: VecDeque::with_capacity(prepared.len()) };
        for statement in prepared {
            let statement = statement.map_err(|error| shard.error(doing, &error))?;
            let mut stream: BoxFuture<'s, _> = Box::pin(async move { client.copy_out(&statement).await });
            // It is sent when it is first asked for its answer.
            if let Some(answer) = (&mut stream).now_or_never() {
                stream = Box::pin(ready(answer));
            }
            queries.coming.push_back(stream);
        }
        Ok(queries)
    }

    /// The rows of the next one. Those before have to be at their end, or dropped.
    ///
    /// # Errors
    /// Also when there is none.
    pub(super) async fn next(&mut self) -> Result<Rows<'s>, DriverError> {
        let Some(coming) = self.coming.pop_front() else {
            return Err(self
                .shard
                .permanent(format!("could not {}: too few queries", self.doing), "report this"));
        };
        let stream = coming.await.map_err(|error| self.shard.error(self.doing, &error))?;
        Ok(Rows::new(self.shard, self.doing, stream))
    }
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
        assert!(line.starts_with(b"a\\tb\\\\c\\nd\\re\\b\\v\\f"), "{:?}", String::from_utf8_lossy(line));
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

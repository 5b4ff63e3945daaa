//! What the server's `pgoutput` plugin says of rows, protocol version 1 in text.
//!
//! Pure: bytes in, messages out. Nothing that is read can make it panic or allocate more than a few times its length.
//! Begin, Commit and Message are told apart from the rest by the replication client already.

use muster_rows::{Class, Row, RowBuilder};

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// Describes a table; comes before its first change in a session, and again when the table has changed.
    Relation(Relation),
    /// A new row.
    Insert { relation: u32, new: Row },
    /// A changed row. There is an old image only where the replica identity changed or is FULL.
    Update { relation: u32, old: Option<OldImage>, new: Row },
    /// A row is gone.
    Delete { relation: u32, old: OldImage },
    /// All rows of these tables are gone.
    Truncate { relations: Vec<u32> },
    /// A type's name, or where a transaction comes from: nothing that capture needs.
    Other,
}

/// A table as the log describes it at some place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Relation {
    pub(super) id: u32,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) columns: Vec<Column>,
}

/// A column that is not generated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Column {
    /// Part of the replica identity.
    pub(super) identity: bool,
    pub(super) name: String,
    pub(super) type_oid: u32,
    pub(super) type_modifier: i32,
}

/// What the log says of a row before its change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OldImage {
    /// All columns; else only those of the replica identity, and NULL in place of the others.
    pub(super) full: bool,
    pub(super) row: Row,
}

/// Bytes that are no message of the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message `{kind}` of the change log is not understood: {reason}")]
pub(super) struct DecodeError {
    kind: char,
    reason: &'static str,
}

/// Reads one message; `rows` builds its rows, and is reused.
pub(super) fn decode(bytes: &[u8], rows: &mut RowBuilder) -> Result<Message, DecodeError> {
    let (kind, rest) = bytes.split_first().ok_or(DecodeError { kind: '-', reason: "it is empty" })?;
    rows.clear();
    let mut reader = Reader { rest, rows };
    let message = match kind {
        b'R' => reader.relation(),
        b'I' => reader.insert(),
        b'U' => reader.update(),
        b'D' => reader.delete(),
        b'T' => reader.truncate(),
        b'Y' | b'O' => return Ok(Message::Other),
        _ => Err("its kind is unknown"),
    };
    let done =
        message.and_then(|message| if reader.rest.is_empty() { Ok(message) } else { Err("it is too long") });
    done.map_err(|reason| DecodeError { kind: char::from(*kind), reason })
}

struct Reader<'a> {
    rest: &'a [u8],
    rows: &'a mut RowBuilder,
}

type Read<T> = Result<T, &'static str>;

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Read<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or("it is too short")?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        self.bytes(N)?.try_into().map_err(|_| "it is too short")
    }

    fn u8(&mut self) -> Read<u8> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Read<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Read<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn i32(&mut self) -> Read<i32> {
        self.array().map(i32::from_be_bytes)
    }

    fn text(&mut self) -> Read<String> {
        let end = self.rest.iter().position(|&byte| byte == 0).ok_or("a text does not end")?;
        let text = std::str::from_utf8(self.bytes(end)?).map_err(|_| "a text is not UTF-8")?.to_owned();
        self.bytes(1)?;
        Ok(text)
    }

    fn relation(&mut self) -> Read<Message> {
        let (id, namespace, name) = (self.u32()?, self.text()?, self.text()?);
        let _replica_identity = self.u8()?;
        let count = usize::from(self.u16()?);
        let mut columns = Vec::new();
        for _ in 0..count {
            let identity = self.u8()? & 1 == 1;
            let (name, type_oid, type_modifier) = (self.text()?, self.u32()?, self.i32()?);
            columns.push(Column { identity, name, type_oid, type_modifier });
        }
        // The system's own schema is written as nothing.
        let namespace = if namespace.is_empty() { "pg_catalog".to_owned() } else { namespace };
        Ok(Message::Relation(Relation { id, namespace, name, columns }))
    }

    fn insert(&mut self) -> Read<Message> {
        let relation = self.u32()?;
        match self.u8()? {
            b'N' => Ok(Message::Insert { relation, new: self.row()? }),
            _ => Err("the new row is missing"),
        }
    }

    fn update(&mut self) -> Read<Message> {
        let relation = self.u32()?;
        let mut kind = self.u8()?;
        let mut old = None;
        if matches!(kind, b'K' | b'O') {
            old = Some(OldImage { full: kind == b'O', row: self.row()? });
            kind = self.u8()?;
        }
        if kind != b'N' {
            return Err("the new row is missing");
        }
        Ok(Message::Update { relation, old, new: self.row()? })
    }

    fn delete(&mut self) -> Read<Message> {
        let relation = self.u32()?;
        let full = match self.u8()? {
            b'K' => false,
            b'O' => true,
            _ => return Err("the old row is missing"),
        };
        Ok(Message::Delete { relation, old: OldImage { full, row: self.row()? } })
    }

    fn truncate(&mut self) -> Read<Message> {
        let count = self.u32()?;
        let _options = self.u8()?;
        let mut relations = Vec::new();
        for _ in 0..count {
            relations.push(self.u32()?);
        }
        Ok(Message::Truncate { relations })
    }

    fn row(&mut self) -> Read<Row> {
        let count = self.u16()?;
        for _ in 0..count {
            match self.u8()? {
                b'n' => self.rows.push(Class::Null, b""),
                b'u' => self.rows.push(Class::Unchanged, b""),
                b't' => {
                    let length = usize::try_from(self.i32()?).map_err(|_| "a length is negative")?;
                    let text = self.bytes(length)?;
                    self.rows.push(Class::Text, text)
                }
                b'b' => return Err("a value is binary, and text was asked for"),
                _ => return Err("a value is of unknown class"),
            };
        }
        Ok(self.rows.take())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that meets an error fails")]

    use proptest::prelude::*;

    use super::*;

    fn decode(bytes: &[u8]) -> Result<Message, DecodeError> {
        super::decode(bytes, &mut RowBuilder::new())
    }

    fn row_bytes(fields: &[Option<&[u8]>]) -> Vec<u8> {
        let mut bytes = u16::try_from(fields.len()).unwrap().to_be_bytes().to_vec();
        for field in fields {
            match field {
                None => bytes.push(b'n'),
                Some(b"?") => bytes.push(b'u'),
                Some(text) => {
                    bytes.push(b't');
                    bytes.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
                    bytes.extend_from_slice(text);
                }
            }
        }
        bytes
    }

    fn row(fields: &[Option<&[u8]>]) -> Row {
        let mut builder = RowBuilder::new();
        for field in fields {
            match field {
                None => builder.push(Class::Null, b""),
                Some(b"?") => builder.push(Class::Unchanged, b""),
                Some(text) => builder.push(Class::Text, text),
            };
        }
        builder.take()
    }

    #[test]
    fn changes_are_read() {
        let old: [Option<&[u8]>; 3] = [Some(b"1"), None, None];
        let new: [Option<&[u8]>; 3] = [Some(b"2"), None, Some(b"?")];
        let bytes = [&b"U\0\0\0\x07K"[..], &row_bytes(&old), b"N", &row_bytes(&new)].concat();
        let image = OldImage { full: false, row: row(&old) };
        assert_eq!(
            decode(&bytes).unwrap(),
            Message::Update { relation: 7, old: Some(image), new: row(&new) }
        );
        let bytes = [&b"I\0\0\0\x07N"[..], &row_bytes(&new)].concat();
        assert_eq!(decode(&bytes).unwrap(), Message::Insert { relation: 7, new: row(&new) });
        let bytes = [&b"D\0\0\0\x07O"[..], &row_bytes(&old)].concat();
        let image = OldImage { full: true, row: row(&old) };
        assert_eq!(decode(&bytes).unwrap(), Message::Delete { relation: 7, old: image });
        let bytes = b"T\0\0\0\x02\x01\0\0\0\x07\0\0\0\x09";
        assert_eq!(decode(bytes).unwrap(), Message::Truncate { relations: vec![7, 9] });
    }

    #[test]
    fn tables_are_read() {
        let bytes = b"R\0\0\0\x07public\0t\xc3\xa4\0d\0\x02\x01id\0\0\0\0\x17\xff\xff\xff\xff\0b\0\0\0\0\x19\0\0\0\x05";
        let Message::Relation(found) = decode(bytes).unwrap() else { panic!("a relation") };
        assert_eq!((found.id, found.namespace.as_str(), found.name.as_str()), (7, "public", "tä"));
        let columns: Vec<_> = found
            .columns
            .iter()
            .map(|column| (column.identity, column.name.as_str(), column.type_oid, column.type_modifier))
            .collect();
        assert_eq!(columns, [(true, "id", 23, -1), (false, "b", 25, 5)]);
    }

    #[test]
    fn garbage_is_refused() {
        for bytes in [&b""[..], b"X", b"I", b"I\0\0\0\x07K", b"I\0\0\0\x07N\0\x01b", b"T\xff\xff\xff\xff\0"] {
            decode(bytes).unwrap_err();
        }
        let long = [&b"I\0\0\0\x07N"[..], &row_bytes(&[None]), b"!"].concat();
        assert!(decode(&long).unwrap_err().to_string().contains("too long"));
        let length = b"I\0\0\0\x07N\0\x01t\x7f\xff\xff\xff";
        assert!(decode(length).unwrap_err().to_string().contains("too short"));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(kind in prop::sample::select(b"RIUDTYO?".to_vec()), rest in any::<Vec<u8>>()) {
            let mut bytes = vec![kind];
            bytes.extend(rest);
            let _ = decode(&bytes);
        }

        #[test]
        fn rows_come_back(values in prop::collection::vec(prop::option::of(any::<Vec<u8>>()), 0..20), cut in any::<usize>()) {
            let fields: Vec<Option<&[u8]>> = values.iter().map(|value| value.as_deref()).collect();
            let bytes = [&b"I\0\0\0\x07N"[..], &row_bytes(&fields)].concat();
            prop_assert_eq!(decode(&bytes).unwrap(), Message::Insert { relation: 7, new: row(&fields) });
            decode(&bytes[..cut % bytes.len()]).unwrap_err();
        }
    }
}

//! Lines that `COPY … TO STDOUT` writes.

use muster_rows::{Class, Row, RowBuilder};

/// The first field of a line, if it is not NULL, and the others as a row; `None` when the line is none of COPY's.
pub(super) fn site_and_row(line: &[u8], builder: &mut RowBuilder) -> Option<(Option<Vec<u8>>, Row)> {
    let line = line.strip_suffix(b"\n")?;
    let mut fields = line.split(|&byte| byte == b'\t');
    let mut text = Vec::new();
    let site = match fields.next()? {
        b"\\N" => None,
        field => {
            unescape(field, &mut text)?;
            Some(text.clone())
        }
    };
    builder.clear();
    for field in fields {
        if field == b"\\N" {
            builder.push(Class::Null, b"");
            continue;
        }
        text.clear();
        unescape(field, &mut text)?;
        builder.push(Class::Text, &text);
    }
    Some((site, builder.take()))
}

fn unescape(mut field: &[u8], out: &mut Vec<u8>) -> Option<()> {
    while let Some(at) = field.iter().position(|&byte| byte == b'\\') {
        out.extend_from_slice(&field[..at]);
        out.push(match field.get(at + 1)? {
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 0x0b,
            b'\\' => b'\\',
            _ => return None,
        });
        field = &field[at + 2..];
    }
    out.extend_from_slice(field);
    Some(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that meets an error fails")]

    use super::*;

    #[test]
    fn lines_are_read() {
        let mut builder = RowBuilder::new();
        let (site, row) =
            site_and_row(b"a\t\\N\t\t\\\\x00\\t\\n\\r\\b\\f\\v\xc3\xa4\n", &mut builder).unwrap();
        assert_eq!(site.as_deref(), Some(&b"a"[..]));
        let fields: Vec<_> = row.fields().map(|field| (field.class, field.bytes.to_vec())).collect();
        let text = b"\\x00\t\n\r\x08\x0c\x0b\xc3\xa4".to_vec();
        assert_eq!(fields, [(Class::Null, vec![]), (Class::Text, vec![]), (Class::Text, text)]);
        let (site, row) = site_and_row(b"\\N\n", &mut builder).unwrap();
        assert_eq!((site, row.len()), (None, 0));
        assert!(site_and_row(b"a\\q\n", &mut builder).is_none());
        assert!(site_and_row(b"a", &mut builder).is_none());
    }
}

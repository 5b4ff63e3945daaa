//! Lines of rows and changes.

use muster_rows::{
    Change, ChangeReader, Class, LineError, LineReason, Op, Row, RowBuilder, RowReader, decode_row,
    encode_change, encode_row,
};
use muster_types::segment::ChangeStamp;
use muster_types::{ChangeKey, Position, Timestamp};
use proptest::prelude::*;

fn row_of(fields: &[(Class, &[u8])]) -> Row {
    let mut builder = RowBuilder::new();
    for (class, bytes) in fields {
        builder.push(*class, bytes);
    }
    builder.take()
}

fn stamp(position: u64, ordinal: u64, micros: i64) -> ChangeStamp {
    let key = ChangeKey { position: Position(position), ordinal };
    ChangeStamp { key, at: Timestamp::from_micros(micros) }
}

fn line_of(row: &Row) -> Vec<u8> {
    let mut line = Vec::new();
    encode_row(row, &mut line);
    line
}

fn lines_of(changes: &[Change]) -> Vec<u8> {
    let mut lines = Vec::new();
    changes.iter().for_each(|change| encode_change(change, &mut lines));
    lines
}

/// Reads `text` as one frame in the chunks that end at the given line ends.
fn read_changes(text: &[u8], columns: usize, chunk_lines: usize) -> Result<Vec<Change>, LineError> {
    let mut reader = ChangeReader::new(columns);
    let mut changes = Vec::new();
    let lines: Vec<&[u8]> = text.split_inclusive(|&byte| byte == b'\n').collect();
    for chunk in lines.chunks(chunk_lines) {
        for change in reader.changes(&chunk.concat()) {
            changes.push(change?);
        }
    }
    reader.finish()?;
    Ok(changes)
}

fn class() -> impl Strategy<Value = Class> {
    prop_oneof![
        Just(Class::Null),
        Just(Class::Unchanged),
        Just(Class::Text),
        Just(Class::Integer),
        Just(Class::Real),
        Just(Class::Blob),
    ]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let nasty = prop::sample::select(b"\0\x01\x08\t\n\x0b\x0c\r\\Nx0tn\x7f\x80\xff".to_vec());
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        prop::collection::vec(nasty, 0..12),
        any::<i64>().prop_map(|number| number.to_string().into_bytes()),
        any::<f64>().prop_map(|number| format!("{number:?}").into_bytes()),
    ]
}

fn row(columns: usize) -> impl Strategy<Value = Row> {
    prop::collection::vec((class(), bytes()), columns).prop_map(|fields| {
        let fields: Vec<(Class, &[u8])> = fields.iter().map(|(class, bytes)| (*class, &bytes[..])).collect();
        row_of(&fields)
    })
}

fn change(columns: usize) -> impl Strategy<Value = Change> {
    let op = prop_oneof![
        row(columns).prop_map(|new| Op::Insert { new }),
        (row(columns), row(columns)).prop_map(|(old, new)| Op::Update { old, new }),
        row(columns).prop_map(|old| Op::Delete { old }),
        Just(Op::Truncate),
    ];
    let stamp = (any::<u64>(), any::<u64>(), any::<i64>()).prop_map(|(p, o, at)| stamp(p, o, at));
    (stamp, op).prop_map(|(stamp, op)| Change { stamp, op })
}

proptest! {
    #[test]
    fn rows_round_trip(rows in (0_usize..5).prop_flat_map(|columns| prop::collection::vec(row(columns), 1..6))) {
        let columns = rows[0].len();
        let text: Vec<u8> = rows.iter().flat_map(line_of).collect();
        prop_assert_eq!(text.iter().filter(|&&byte| byte == b'\n').count(), rows.len());
        let read: Result<Vec<Row>, _> = RowReader::new(columns).rows(&text).collect();
        prop_assert_eq!(read.as_ref(), Ok(&rows));
        prop_assert_eq!(decode_row(&line_of(&rows[0]), columns), Ok(rows[0].clone()));
    }

    #[test]
    fn changes_round_trip_in_any_chunks(
        changes in (0_usize..4).prop_flat_map(|columns| (Just(columns), prop::collection::vec(change(columns), 0..6))),
        chunk_lines in 1_usize..4,
    ) {
        let (columns, changes) = changes;
        prop_assert_eq!(read_changes(&lines_of(&changes), columns, chunk_lines), Ok(changes));
    }

    /// What decodes is exactly what would be written, so that digests of text and of rows agree.
    #[test]
    fn what_decodes_is_canonical(
        fields in prop::collection::vec(bytes(), 0..4),
        letters in prop::collection::vec(prop::sample::select(b"nutirb".to_vec()), 0..4),
        columns in 0_usize..4,
    ) {
        let mut text = fields.join(&b'\t');
        text.push(b'\t');
        text.extend_from_slice(&letters);
        if let Ok(row) = decode_row(&text, columns) {
            text.push(b'\n');
            prop_assert_eq!(line_of(&row), text);
        }
    }

    #[test]
    fn one_changed_byte_is_an_error_or_another_row(
        row in row(3), place in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut line = line_of(&row);
        line.pop();
        let place = place.index(line.len());
        prop_assume!(line[place] != byte && byte != b'\n');
        line[place] = byte;
        prop_assert_ne!(decode_row(&line, 3), Ok(row));
    }

    #[test]
    fn nothing_makes_readers_panic(text in prop::collection::vec(any::<u8>(), 0..80), columns in 0_usize..6) {
        let _ = decode_row(&text, columns);
        let rows = RowReader::new(columns).rows(&text).count();
        let mut reader = ChangeReader::new(columns);
        let changes = reader.changes(&text).count();
        let lines = text.split_inclusive(|&byte| byte == b'\n').count();
        prop_assert_eq!(rows, lines);
        prop_assert!(changes <= lines);
    }

    #[test]
    fn damaged_changes_never_panic_and_stay_canonical(
        changes in prop::collection::vec(change(2), 1..4),
        place in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut text = lines_of(&changes);
        let place = place.index(text.len());
        text[place] = byte;
        if let Ok(read) = read_changes(&text, 2, 100) {
            prop_assert_eq!(lines_of(&read), text);
        }
    }
}

/// The text is a stored format, and what people load by hand.
#[test]
fn row_lines_are_copy_text() {
    let golden = |fields: &[(Class, &[u8])], text: &str| {
        let line = line_of(&row_of(fields));
        assert_eq!(String::from_utf8_lossy(&line), text);
        assert_eq!(decode_row(&line, fields.len()), Ok(row_of(fields)));
    };
    golden(
        &[
            (Class::Integer, b"7"),
            (Class::Text, b"ann"),
            (Class::Null, b""),
            (Class::Blob, b"hi"),
            (Class::Real, b"1.5"),
        ],
        "7\tann\t\\N\t\\\\x6869\t1.5\titnbr\n",
    );
    golden(&[(Class::Text, b"\x08\x0c\n\r\t\x0b\\\x001")], "\\b\\f\\n\\r\\t\\v\\\\\\0001\tt\n");
    golden(&[(Class::Text, b"\\N"), (Class::Text, b""), (Class::Blob, b"")], "\\\\N\t\t\\\\x\tttb\n");
    golden(
        &[(Class::Integer, b"-9223372036854775808"), (Class::Unchanged, b"")],
        "-9223372036854775808\t\\N\tiu\n",
    );
    golden(&[], "\n");
    assert_eq!(line_of(&row_of(&[(Class::Text, b"\xff\xfe")])), b"\xff\xfe\tt\n");
}

#[test]
fn change_lines_are_stamped_row_lines() {
    let row = |name: &[u8]| row_of(&[(Class::Integer, b"1"), (Class::Text, name)]);
    let changes = [
        Change { stamp: stamp(5, 0, 1_649_144_280_000_001), op: Op::Insert { new: row(b"a") } },
        Change { stamp: stamp(6, 1, -5), op: Op::Update { old: row(b"a"), new: row(b"b") } },
        Change { stamp: stamp(u64::MAX, u64::MAX, 0), op: Op::Delete { old: row(b"b") } },
        Change { stamp: stamp(0, 0, 0), op: Op::Truncate },
    ];
    let text = "5\t0\t1649144280000001\tI\t1\ta\tit\n\
                6\t1\t-5\tB\t1\ta\tit\n\
                6\t1\t-5\tU\t1\tb\tit\n\
                18446744073709551615\t18446744073709551615\t0\tD\t1\tb\tit\n\
                0\t0\t0\tT\t\n";
    assert_eq!(String::from_utf8(lines_of(&changes)).unwrap(), text);
    assert_eq!(read_changes(text.as_bytes(), 2, 1).unwrap(), changes);
}

#[test]
fn errors_name_line_and_reason() {
    let reason = |text: &str| {
        let error = read_changes(text.as_bytes(), 1, 100).unwrap_err();
        (error.line, error.reason)
    };
    let good = "1\t0\t0\tD\tx\tt\n";
    assert_eq!(
        reason(&format!("{good}1\t0\t0\tD\tx\ty\ttt\n")),
        (2, LineReason::Fields { expected: 1, found: 2 })
    );
    assert_eq!(reason(&format!("{good}1\t0\t0\tD\tt\n")), (2, LineReason::Fields { expected: 1, found: 0 }));
    assert_eq!(reason("1\t0\t0\tD\tx\tq\n"), (1, LineReason::Class(b'q')));
    assert_eq!(reason("1\t0\t0\tD\tx\tn\n"), (1, LineReason::NotNull));
    assert_eq!(reason("1\t0\t0\tD\t\\\\xA0\tb\n"), (1, LineReason::Fields { expected: 1, found: 1 }));
    assert_eq!(reason("1\t0\t0\tD\t\\\\xa\tb\n"), (1, LineReason::NotBlob));
    assert_eq!(reason("1\t0\t0\tD\ta\rb\tt\n"), (1, LineReason::RawControl(b'\r')));
    assert_eq!(reason("1\t0\t0\tD\t\\q\tt\n"), (1, LineReason::Escape));
    assert_eq!(reason("01\t0\t0\tD\tx\tt\n"), (1, LineReason::Stamp));
    assert_eq!(reason("1\t0\t-0\tD\tx\tt\n"), (1, LineReason::Stamp));
    assert_eq!(reason("1\t0\t9223372036854775807\tD\tx\tt\n"), (1, LineReason::Stamp));
    assert_eq!(reason("18446744073709551616\t0\t0\tD\tx\tt\n"), (1, LineReason::Stamp));
    assert_eq!(reason("1\t0\t0\tX\tx\tt\n"), (1, LineReason::Operation));
    assert_eq!(reason("1\t0\t0\tU\tx\tt\n"), (1, LineReason::LoneNew));
    assert_eq!(reason("1\t0\t0\tB\tx\tt\n1\t1\t0\tU\tx\tt\n"), (2, LineReason::LoneNew));
    assert_eq!(reason(&format!("1\t0\t0\tB\tx\tt\n{good}")), (2, LineReason::LoneOld));
    assert_eq!(reason("1\t0\t0\tB\tx\tt\n"), (1, LineReason::LoneOld));
    assert_eq!(reason("1\t0\t0\tD\tx\tt"), (1, LineReason::Unended));
    let error = read_changes(b"1\t0\t0\tD\t\\q\tt\n", 1, 1).unwrap_err();
    assert_eq!(error.to_string(), "line 1: a backslash is followed by something that is no escape");
}

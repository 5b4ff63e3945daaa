//! SQLite values as fields of `muster-rows`, and back.
//!
//! Integers are decimal, reals the shortest decimal form that reads back equal (`Infinity`, `-Infinity`), text and
//! blobs are their bytes; text need not be valid UTF-8.

use muster_rows::{Class, Field, Row, RowBuilder};
use rusqlite::ToSql;
use rusqlite::types::{ToSqlOutput, Value, ValueRef};

/// Appends a value to the row being built.
pub fn push(builder: &mut RowBuilder, value: ValueRef<'_>) {
    match value {
        ValueRef::Null => builder.push(Class::Null, b""),
        ValueRef::Integer(number) => builder.push(Class::Integer, number.to_string().as_bytes()),
        ValueRef::Real(number) => builder.push(Class::Real, real_text(number).as_bytes()),
        ValueRef::Text(text) => builder.push(Class::Text, text),
        ValueRef::Blob(bytes) => builder.push(Class::Blob, bytes),
    };
}

/// Columns `from..from + columns` of a result row.
///
/// # Errors
/// When there are fewer columns.
pub fn read_row(
    row: &rusqlite::Row<'_>,
    from: usize,
    columns: usize,
    builder: &mut RowBuilder,
) -> rusqlite::Result<Row> {
    for index in from..from + columns {
        push(builder, row.get_ref(index)?);
    }
    Ok(builder.take())
}

/// The shortest decimal text of a double that reads back equal.
fn real_text(number: f64) -> String {
    if number == f64::INFINITY {
        "Infinity".to_owned()
    } else if number == f64::NEG_INFINITY {
        "-Infinity".to_owned()
    } else {
        format!("{number:?}")
    }
}

/// The SQLite value of a field; `None` for numbers that are none and for `Unchanged`, which no stored row has.
pub fn bind(field: Field<'_>) -> Option<ToSqlOutput<'_>> {
    let text = || std::str::from_utf8(field.bytes).ok();
    Some(match field.class {
        Class::Null => ToSqlOutput::Owned(Value::Null),
        Class::Integer => ToSqlOutput::Owned(Value::Integer(text()?.parse().ok()?)),
        Class::Real => ToSqlOutput::Owned(Value::Real(text()?.parse().ok()?)),
        Class::Text => ToSqlOutput::Borrowed(ValueRef::Text(field.bytes)),
        Class::Blob => ToSqlOutput::Borrowed(ValueRef::Blob(field.bytes)),
        Class::Unchanged => return None,
    })
}

/// A field as a parameter of a statement.
#[derive(Clone, Copy, Debug)]
pub struct SqlField<'a>(pub Field<'a>);

impl ToSql for SqlField<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        bind(self.0).ok_or_else(|| {
            let error = format!("{:?} is no value that SQLite can store", self.0);
            rusqlite::Error::ToSqlConversionFailure(error.into())
        })
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::{Connection, params_from_iter};

    use super::*;

    #[test]
    fn every_storage_class_round_trips_through_a_row() {
        let conn = Connection::open_in_memory().unwrap();
        let select = "SELECT NULL, 1, -9223372036854775808, 0.1, -0.0, 1e300, 5e-324, 9e999, -9e999, 1.0, \
                      'héllo', CAST(x'ff00fe' AS TEXT), x'0061', ''";
        let read = |sql: &str, row: Option<&Row>| {
            let mut statement = conn.prepare(sql).unwrap();
            let parameters: Vec<_> = row.map(|row| row.fields().map(SqlField).collect()).unwrap_or_default();
            statement
                .query_row(params_from_iter(parameters), |found| {
                    read_row(found, 0, 14, &mut RowBuilder::new())
                })
                .unwrap()
        };
        let row = read(select, None);
        let holes = vec!["?"; 14].join(", ");
        assert_eq!(read(&format!("SELECT {holes}"), Some(&row)), row);
        let shown = format!("{row:?}");
        assert!(
            shown.contains("r:Infinity") && shown.contains("r:-0.0") && shown.contains("r:1.0"),
            "{shown}"
        );
        assert!(shown.contains("b:\\0a"), "{shown}");
    }

    #[test]
    fn fields_that_are_no_values_are_told() {
        assert!(bind(Field { class: Class::Integer, bytes: b"12x" }).is_none());
        assert!(bind(Field { class: Class::Unchanged, bytes: b"" }).is_none());
    }
}

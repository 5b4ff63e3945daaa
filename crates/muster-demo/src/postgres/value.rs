//! Values between the model in SQLite and the text of PostgreSQL's types.
//!
//! The model's storage classes come back exactly: a `boolean` is an integer there, a `timestamptz` its seconds, a `numeric`
//! a real. Text that does not look as this module would have written it stays text, so that the judge sees it differ.

use std::error::Error;

use bytes::BytesMut;
use postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};
use rusqlite::types::Value;

/// How a type's values are written and read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Integer,
    Boolean,
    Real,
    Numeric,
    Bytes,
    /// `jsonb` that holds a value of any storage class.
    Any,
    /// A point in time: whole seconds in the model.
    Moment,
    Text,
}

impl Class {
    /// By the type's name in `pg_type`.
    pub(super) fn of(type_name: &str) -> Self {
        match type_name {
            "int2" | "int4" | "int8" => Self::Integer,
            "bool" => Self::Boolean,
            "float8" => Self::Real,
            "numeric" => Self::Numeric,
            "bytea" => Self::Bytes,
            "jsonb" => Self::Any,
            "timestamptz" => Self::Moment,
            _ => Self::Text,
        }
    }

    /// What the server is asked for to get a column of this class.
    pub(super) fn selected(self, column: &str) -> String {
        match self {
            Self::Moment => format!("extract(epoch FROM \"{column}\")"),
            _ => format!("\"{column}\""),
        }
    }

    /// The text that the type's input function takes; none for NULL.
    pub(super) fn encode(self, value: &Value) -> Option<String> {
        Some(match (self, value) {
            (_, Value::Null) => return None,
            (Self::Any, Value::Text(text)) => serde_json::Value::from(text.as_str()).to_string(),
            (Self::Any, Value::Blob(bytes)) => format!("{{\"bytes\": \"{}\"}}", hex(bytes)),
            (Self::Moment, Value::Integer(seconds)) => moment(*seconds),
            (_, Value::Integer(number)) => number.to_string(),
            (Self::Numeric, Value::Real(number)) => number.to_string(),
            // Always with a point or an exponent, and the shortest that reads back as the same number.
            (_, Value::Real(number)) => format!("{number:?}"),
            (_, Value::Text(text)) => text.clone(),
            (_, Value::Blob(bytes)) => format!("\\x{}", hex(bytes)),
        })
    }

    /// The model's value for a text that the server printed.
    pub(super) fn decode(self, text: &str) -> Value {
        let value = match self {
            Self::Integer => text.parse().ok().map(Value::Integer),
            Self::Boolean => match text {
                "t" => Some(Value::Integer(1)),
                "f" => Some(Value::Integer(0)),
                _ => None,
            },
            // Of two shortest texts of one number, the server may print the other.
            Self::Real => text.parse().ok().map(Value::Real),
            Self::Numeric => numeric(text),
            Self::Bytes => text.strip_prefix("\\x").and_then(unhex).map(Value::Blob),
            Self::Any => any(text),
            Self::Moment => seconds(text),
            Self::Text => None,
        };
        value.unwrap_or_else(|| Value::Text(text.to_owned()))
    }
}

/// A number with nothing but its digits: trailing zeros of a `numeric` are a difference.
fn numeric(text: &str) -> Option<Value> {
    let number: f64 = text.parse().ok()?;
    // A `numeric` has no exponents.
    (format!("{number}") == text).then_some(Value::Real(number))
}

fn any(text: &str) -> Option<Value> {
    match text.as_bytes().first()? {
        b'"' => serde_json::from_str(text).ok().map(Value::Text),
        b'{' => {
            let inner = text.strip_prefix("{\"bytes\": \"")?.strip_suffix("\"}")?;
            unhex(inner).map(Value::Blob)
        }
        _ if text.contains('.') => numeric(text).or_else(|| {
            // `10.0`: a real without a fraction.
            let number: f64 = text.parse().ok()?;
            (format!("{number:?}") == text).then_some(Value::Real(number))
        }),
        _ => text.parse().ok().map(Value::Integer),
    }
}

/// Seconds since 1970 as `extract(epoch …)` prints them; a part of a second makes it a real.
fn seconds(text: &str) -> Option<Value> {
    match text.split_once('.') {
        Some((whole, fraction)) if fraction.bytes().all(|digit| digit == b'0') => {
            whole.parse().ok().map(Value::Integer)
        }
        Some(_) => text.parse().ok().map(Value::Real),
        None => text.parse().ok().map(Value::Integer),
    }
}

/// A point in time as `timestamptz` takes it.
fn moment(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}+00")
}

/// Year, month and day of a day counted from 1970, in the proleptic Gregorian calendar.
fn civil(days: i64) -> (i64, i64, i64) {
    // Years start in March here, so that the leap day is a year's last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (year_of_era + era * 400 + later, month, day)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| {
            let digits = std::str::from_utf8(pair).ok()?;
            (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
        })
        .collect()
}

/// A value of the model as a statement's parameter, sent as text and read by the type's own input function.
#[derive(Debug)]
pub(super) struct Parameter<'a>(pub(super) &'a Value);

impl ToSql for Parameter<'_> {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        Ok(match Class::of(ty.name()).encode(self.0) {
            None => IsNull::Yes,
            Some(text) => {
                out.extend_from_slice(text.as_bytes());
                IsNull::No
            }
        })
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let cases = [
            (Class::Integer, Value::Integer(-7)),
            (Class::Boolean, Value::Integer(0)),
            (Class::Real, Value::Real(0.1 + 0.2)),
            (Class::Real, Value::Real(1e-7)),
            (Class::Numeric, Value::Real(0.0)),
            (Class::Numeric, Value::Real(1e-7)),
            (Class::Bytes, Value::Blob(vec![0, 92, 255])),
            (Class::Any, Value::Text("a \"b\" \\ \t 🚀".to_owned())),
            (Class::Any, Value::Integer(13)),
            (Class::Any, Value::Real(13.0)),
            (Class::Any, Value::Real(1.0 / 3.0)),
            (Class::Any, Value::Blob(vec![0, 9, 10])),
            (Class::Text, Value::Text("\\N".to_owned())),
        ];
        for (class, value) in cases {
            let text = class.encode(&value).unwrap();
            // A boolean is read as a number and printed as a letter.
            let printed = if class == Class::Boolean { "f".to_owned() } else { text };
            assert_eq!(class.decode(&printed), value, "{class:?} {printed}");
        }
        assert_eq!(Class::Text.encode(&Value::Null), None);
    }

    #[test]
    fn two_shortest_texts_are_one_number() {
        let number = 1_645_069_796.0 + 9.25 / 64.0;
        assert_eq!(Class::Real.decode("1645069796.1445312"), Value::Real(number));
        assert_eq!(Class::Real.decode("1645069796.1445313"), Value::Real(number));
    }

    #[test]
    fn points_in_time_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00+00"),
            (951_826_554, "2000-02-29 12:15:54+00"),
            (1_648_000_001, "2022-03-23 01:46:41+00"),
            (-1, "1969-12-31 23:59:59+00"),
            (4_102_444_800, "2100-01-01 00:00:00+00"),
        ] {
            assert_eq!(Class::Moment.encode(&Value::Integer(seconds)).unwrap(), text);
        }
        assert_eq!(Class::Moment.decode("1648000001.000000"), Value::Integer(1_648_000_001));
        assert_eq!(Class::Moment.decode("1648000001.000001"), Value::Real(1_648_000_001.000_001));
    }

    #[test]
    fn what_one_would_not_have_written_is_a_difference() {
        assert_eq!(Class::Numeric.decode("7.750"), Value::Text("7.750".to_owned()));
        assert_eq!(Class::Numeric.decode("7.75"), Value::Real(7.75));
        assert_eq!(Class::Numeric.decode("0.0000001"), Value::Real(1e-7));
        assert_eq!(Class::Real.decode("1e-07"), Value::Real(1e-7));
        assert_eq!(Class::Integer.decode("x"), Value::Text("x".to_owned()));
        assert_eq!(Class::Any.decode("null"), Value::Text("null".to_owned()));
    }
}

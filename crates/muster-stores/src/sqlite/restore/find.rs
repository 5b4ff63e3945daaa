//! Rows by a key, for those who ask what an id names.

use muster_engine::driver::DriverError;
use rusqlite::types::ValueRef;

use super::live::read_definition;
use super::shard::Shard;
use crate::lookup::{FoundRow, Lookup};
use crate::sqlite::schema::quote;

pub(super) fn find(shard: &Shard, lookup: &Lookup) -> Result<Vec<FoundRow>, DriverError> {
    let conn = shard.reader()?;
    if read_definition(shard, &conn, &lookup.table)?.is_none() {
        return Ok(Vec::new());
    }
    let failed =
        |error: rusqlite::Error| shard.error(&format!("look for rows of `{}`", lookup.table), &error);
    let (table, key) = (quote(&lookup.table), quote(&lookup.key));
    let columns: String = lookup.columns.iter().map(|column| format!(", t.{}", quote(column))).collect();
    // The first part finds rows by index where the column is text, the second is exact under any affinity and collation.
    let sql = format!(
        "SELECT CAST(t.{key} AS TEXT){columns} FROM main.{table} t WHERE t.{key} = ?1 \
         AND CAST(t.{key} AS TEXT) = ?1 COLLATE BINARY"
    );
    let mut select = conn.prepare(&sql).map_err(failed)?;
    let mut found = Vec::new();
    for value in &lookup.values {
        let mut rows = select.query([value]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let column = |number: usize| row.get_ref(number).map(text_of).map_err(failed);
            let values = (1..=lookup.columns.len()).map(column).collect::<Result<_, _>>()?;
            found.push(FoundRow { key: value.clone(), values });
        }
    }
    Ok(found)
}

fn text_of(value: ValueRef<'_>) -> Option<String> {
    match value {
        ValueRef::Null => None,
        ValueRef::Integer(number) => Some(number.to_string()),
        ValueRef::Real(number) => Some(number.to_string()),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
    }
}

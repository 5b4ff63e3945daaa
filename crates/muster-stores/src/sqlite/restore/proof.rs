//! What proves that neighbours are untouched: the shard's own log by mark, and digests of everything else.

use std::collections::{BTreeSet, HashMap, HashSet};

use muster_engine::driver::DriverError;
use muster_rows::{RowBuilder, RowsDigest};
use muster_types::journal::NeighbourDigest;
use muster_types::{Kind, StoreId};
use rusqlite::Connection;
use rusqlite::types::ValueRef;

use super::live::read_definition;
use super::shard::Shard;
use super::sql::column_list;
use crate::sqlite::schema::quote;
use crate::sqlite::system::{has_table, last_position, site_sql};
use crate::sqlite::value::read_row;

/// Digests every row of declared tables that belongs to none of `excluded`, in one read transaction.
pub(super) fn neighbour_digest(
    shard: &Shard,
    excluded: &BTreeSet<StoreId>,
) -> Result<NeighbourDigest, DriverError> {
    let conn = shard.reader()?;
    let failed = |error: rusqlite::Error| shard.error("digest its neighbours", &error);
    conn.execute_batch("BEGIN").map_err(failed)?;
    require_capture(shard, &conn)?;
    let position = last_position(&conn).map_err(failed)?;
    let mut by_kind: HashMap<&Kind, HashSet<&[u8]>> = HashMap::new();
    for store in excluded {
        by_kind.entry(&store.kind).or_default().insert(store.site.as_str().as_bytes());
    }
    let nobody = HashSet::new();
    let (mut digest, mut rows) = (RowsDigest::new(), 0);
    for (table, config) in shard.tables() {
        let Some(def) = read_definition(shard, &conn, table)? else { continue };
        let columns = column_list("t", def.stored_columns().map(|column| column.name.as_str()));
        let sql = format!("SELECT {}, {columns} FROM main.{} t", site_sql(&config.owner, "t"), quote(table));
        rows += add_rows(&conn, &sql, table, by_kind.get(&config.kind).unwrap_or(&nobody), &mut digest)
            .map_err(failed)?;
    }
    Ok(NeighbourDigest { position, rows, state: digest.to_hex(), digest: digest.finish() })
}

/// Without the change table a position has no meaning, and without owner maps a row has no owner.
pub(super) fn require_capture(shard: &Shard, conn: &Connection) -> Result<(), DriverError> {
    if has_table(conn, "_muster_change").map_err(|error| shard.error("look for its change table", &error))? {
        return Ok(());
    }
    Err(shard.permanent("it is not captured", "run `muster capture init` for the shard"))
}

fn add_rows(
    conn: &Connection,
    sql: &str,
    table: &str,
    excluded: &HashSet<&[u8]>,
    digest: &mut RowsDigest,
) -> rusqlite::Result<u64> {
    let mut select = conn.prepare(sql)?;
    let width = select.column_count();
    let mut rows = select.query([])?;
    let (mut builder, mut count) = (RowBuilder::new(), 0);
    while let Some(row) = rows.next()? {
        // A row whose site cannot be told is a neighbour.
        if matches!(row.get_ref(0)?, ValueRef::Text(site) if excluded.contains(site)) {
            continue;
        }
        digest.add(table, &read_row(row, 1, width - 1, &mut builder)?);
        count += 1;
    }
    Ok(count)
}

//! Removes from the shard what is durable in the repository.
//!
//! # Invariants
//! - Batches are small: writers wait for none longer than a few milliseconds.
//! - A tombstone of an owner map goes when no row is owned through it and the deletion that made it is acknowledged.

use muster_types::Position;
use rusqlite::{Connection, params};

use super::evict;
use super::layout::Layout;
use crate::sqlite::schema::quote;
use crate::sqlite::system::{self, OwnerMap};

/// Change rows removed in one transaction.
const CHANGES_PER_BATCH: i64 = 4_000;
/// Tombstones and notes removed in one transaction.
const OTHERS_PER_BATCH: i64 = 1_000;

/// Removes change rows up to `upto`, batch by batch.
pub(super) fn remove_changes(conn: &mut Connection, upto: Position) -> rusqlite::Result<()> {
    let upto = upto.0.cast_signed();
    remember_sequence(conn)?;
    loop {
        let first: Option<i64> =
            conn.query_row("SELECT min(seq) FROM main._muster_change", [], |row| row.get(0))?;
        let Some(first) = first.filter(|first| *first <= upto) else { return Ok(()) };
        let last = upto.min(first.saturating_add(CHANGES_PER_BATCH - 1));
        conn.execute("DELETE FROM main._muster_change WHERE seq <= ?1", [last])?;
    }
}

/// Writes the last position into SQLite's own memory of it. SQLite does so at the end of a statement; one that ends in
/// the middle and keeps what it did (`OR FAIL`) leaves it out, and the position would be given again once its row is
/// removed.
fn remember_sequence(conn: &Connection) -> rusqlite::Result<()> {
    let last = system::last_position(conn)?.0.cast_signed();
    let known = "SELECT coalesce((SELECT seq FROM main.sqlite_sequence WHERE name = '_muster_change'), 0)";
    if conn.prepare_cached(known)?.query_row([], |row| row.get::<_, i64>(0))? >= last {
        return Ok(());
    }
    let changed = conn.execute(
        "UPDATE main.sqlite_sequence SET seq = max(seq, ?1) WHERE name = '_muster_change'",
        [last],
    )?;
    if changed == 0 {
        conn.execute("INSERT INTO main.sqlite_sequence(name, seq) VALUES ('_muster_change', ?1)", [last])?;
    }
    Ok(())
}

/// Removes tombstones that nothing needs, and notes that statements left behind.
pub(super) fn collect(conn: &mut Connection, layout: &Layout, upto: Position) -> rusqlite::Result<()> {
    for table in &layout.tables {
        for map in layout.maps_of(table.name()) {
            while collect_tombstones(conn, layout, &map, upto)? >= OTHERS_PER_BATCH as usize {}
        }
        let notes = evict::table_name(table);
        if conn.query_row(&format!("SELECT EXISTS (SELECT 1 FROM main.{notes})"), [], |row| row.get(0))? {
            let sql = format!(
                "DELETE FROM main.{notes} WHERE rowid IN (SELECT rowid FROM main.{notes} LIMIT {OTHERS_PER_BATCH})"
            );
            while conn.execute(&sql, [])? >= OTHERS_PER_BATCH as usize {}
        }
    }
    Ok(())
}

fn collect_tombstones(
    conn: &Connection,
    layout: &Layout,
    map: &OwnerMap,
    upto: Position,
) -> rusqlite::Result<usize> {
    let name = quote(&map.name());
    let upto = upto.0.cast_signed();
    let any = format!("SELECT EXISTS (SELECT 1 FROM main.{name} WHERE dead_seq <= ?1)");
    if !conn.prepare_cached(&any)?.query_row([upto], |row| row.get(0))? {
        return Ok(0);
    }
    // A join, so that SQLite makes an index for itself where the child table has none.
    let mut joins = String::new();
    let mut conditions = String::new();
    for (index, child) in layout.children_of(map).into_iter().enumerate() {
        let column = quote(system::owning_column(child.owner()).unwrap_or_default());
        let table = quote(child.name());
        joins.push_str(&format!(" LEFT JOIN main.{table} c{index} ON c{index}.{column} = m.key"));
        conditions.push_str(&format!(" AND c{index}.{column} IS NULL"));
    }
    let sql = format!(
        "DELETE FROM main.{name} WHERE dead_seq <= ?1 AND key IN (SELECT m.key FROM main.{name} m{joins} \
         WHERE m.dead_seq <= ?1{conditions} LIMIT ?2)"
    );
    conn.prepare_cached(&sql)?.execute(params![upto, OTHERS_PER_BATCH])
}

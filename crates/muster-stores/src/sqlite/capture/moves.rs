//! Rows that change site because the row that they are owned through does.
//!
//! Triggers log only that a key of an owner map went from one site to another (`V`): a trigger that read the child table
//! would stand in the way of that table's rebuild. The rows are found here, within the transaction of the poll: those
//! that the child table holds now and that were not touched since, and for those touched since, the image before the
//! first such change.

use muster_types::Position;
use rusqlite::Connection;

use super::layout::{Captured, Layout};
use crate::sqlite::schema::quote;
use crate::sqlite::system::{self, CHANGE, OwnerMap};

/// Fills `temp._muster_moved(id, seq, tbl, old_site, new_site, v0..)` with the rows that moves in `(after, upto]` took
/// along, and perhaps with those of later ones. Tables in `left_out` are delivered otherwise.
pub(super) fn expand(
    conn: &Connection,
    layout: &Layout,
    (after, upto): (Position, Position),
    left_out: &[String],
) -> rusqlite::Result<()> {
    prepare(conn, system::value_columns(conn, CHANGE)?)?;
    // Without the upper bound this reads all of the log for each of the many short spans that a run checks.
    let any: bool = conn
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM main._muster_change WHERE seq > ?1 AND seq <= ?2 AND op = 'V')",
        )?
        .query_row([after.0.cast_signed(), upto.0.cast_signed()], |row| row.get(0))?;
    if !any {
        return Ok(());
    }
    for table in &layout.tables {
        for map in layout.maps_of(table.name()) {
            let moves = read_moves(conn, table, &map, after)?;
            let children = layout.children_of(&map).into_iter();
            for child in
                children.filter(|child| moves > 0 && !left_out.iter().any(|name| name == child.name()))
            {
                expand_child(conn, table, &map, child)?;
            }
        }
    }
    Ok(())
}

fn prepare(conn: &Connection, columns: usize) -> rusqlite::Result<()> {
    conn.execute_batch(&format!(
        "DROP TABLE IF EXISTS temp._muster_moved; DROP TABLE IF EXISTS temp._muster_moves;
         CREATE TEMP TABLE _muster_moved(id INTEGER PRIMARY KEY, seq, tbl, old_site TEXT, new_site TEXT, {});
         CREATE TEMP TABLE _muster_moves(seq INTEGER PRIMARY KEY, key, old_site TEXT, new_site TEXT);",
        system::value_list("", columns)
    ))
}

fn read_moves(
    conn: &Connection,
    table: &Captured,
    map: &OwnerMap,
    after: Position,
) -> rusqlite::Result<usize> {
    conn.execute_batch("DELETE FROM temp._muster_moves")?;
    conn.execute(
        "INSERT INTO temp._muster_moves SELECT seq, v0, old_site, new_site FROM main._muster_change \
         WHERE seq > ?1 AND op = 'V' AND tbl = ?2 AND v1 = ?3",
        rusqlite::params![after.0.cast_signed(), table.id, map.key],
    )
}

fn expand_child(
    conn: &Connection,
    table: &Captured,
    map: &OwnerMap,
    child: &Captured,
) -> rusqlite::Result<()> {
    let column = system::owning_column(child.owner()).unwrap_or_default();
    let value = child.value_column(column).unwrap_or_else(|| "v0".to_owned());
    let collation = quote(table.shape.single_key_collation(&map.key).unwrap_or("BINARY"));
    let key = child.key();
    let declared: Vec<String> = key
        .iter()
        .enumerate()
        .map(|(n, (.., collation))| format!("k{n} COLLATE {}", quote(collation)))
        .collect();
    let names: Vec<String> = (0..key.len()).map(|n| format!("k{n}")).collect();
    let logged: Vec<String> = key.iter().map(|(index, ..)| format!("v{index}")).collect();
    let (names, id) = (names.join(", "), child.id);
    conn.execute_batch(&format!(
        "DROP TABLE IF EXISTS temp._muster_touched;
         CREATE TEMP TABLE _muster_touched({}, seq, op, owner COLLATE {collation});
         INSERT INTO temp._muster_touched SELECT {}, seq, op, {value} FROM main._muster_change
           WHERE seq > (SELECT min(seq) FROM temp._muster_moves) AND tbl = {id} AND op IN ('I', 'B', 'U', 'D');
         CREATE INDEX temp._muster_touched_key ON _muster_touched({names}, seq);
         CREATE INDEX temp._muster_touched_owner ON _muster_touched(owner, seq);",
        declared.join(", "),
        logged.join(", "),
    ))?;
    let same = |other: &dyn Fn(usize, &str) -> String| {
        let one = |(n, (_, name, _)): (usize, &(usize, &str, &str))| format!("e.k{n} = {}", other(n, name));
        key.iter().enumerate().map(one).collect::<Vec<_>>().join(" AND ")
    };
    let columns = child.columns();
    let values = system::value_list("", columns.len());
    let insert = format!("INSERT INTO temp._muster_moved(seq, tbl, old_site, new_site, {values})");
    conn.execute_batch(&format!(
        "{insert} SELECT m.seq, {id}, m.old_site, m.new_site, {}
           FROM temp._muster_moves m JOIN temp._muster_touched x ON x.owner = m.key AND x.seq > m.seq
           JOIN main._muster_change c ON c.seq = x.seq
           WHERE x.op IN ('B', 'D') AND NOT EXISTS (SELECT 1 FROM temp._muster_touched e
             WHERE {} AND e.seq > m.seq AND e.seq < x.seq) ORDER BY m.seq, x.seq;
         {insert} SELECT m.seq, {id}, m.old_site, m.new_site, {}
           FROM temp._muster_moves m JOIN main.{} t ON t.{} = m.key COLLATE {collation}
           WHERE NOT EXISTS (SELECT 1 FROM temp._muster_touched e WHERE {} AND e.seq > m.seq) ORDER BY m.seq;",
        system::value_list("c.", columns.len()),
        same(&|n, _| format!("x.k{n}")),
        columns.iter().map(|column| format!("t.{}", quote(column))).collect::<Vec<_>>().join(", "),
        quote(child.name()),
        quote(column),
        same(&|_, name| format!("+t.{}", quote(name))),
    ))
}

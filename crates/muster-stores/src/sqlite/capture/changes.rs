//! Reads the change table.
//!
//! # Invariants
//! - Sorting is SQLite's, over keys only, and spills to a temporary file: memory does not grow with the changes.
//! - An update is one change at the position of its `U` row. A row that changes site gives a delete in the old and an
//!   insert in the new site at one position; many rows that move with one parent share its position and have ordinals
//!   of their own.

use std::collections::HashMap;

use muster_rows::{Change, Op, Row, RowBuilder};
use muster_types::segment::{ChangeStamp, Mark};
use muster_types::{ChangeKey, Epoch, Position, RunId, SiteId, Timestamp};
use rusqlite::{CachedStatement, Connection};

use super::layout::{Captured, Layout};
use super::moves;
use crate::sqlite::system;
use crate::sqlite::value::read_row;

/// One change with whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SiteChange<'l> {
    pub(crate) site: Option<SiteId>,
    pub(crate) table: &'l Captured,
    pub(crate) mark: Option<Mark>,
    pub(crate) change: Change,
}

/// In which order changes are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// By site, table in the order of the layout, mark, and then history.
    Grouped,
    /// By history.
    History,
}

/// Which changes are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading<'a> {
    /// Behind this position.
    pub(crate) after: Position,
    /// Up to this one.
    pub(crate) upto: Position,
    /// Tables that are delivered otherwise.
    pub(crate) left_out: &'a [String],
    /// How.
    pub(crate) order: Order,
}

/// Gives the changes to `emit`, within the caller's read transaction. An error of `emit` ends the reading.
pub(crate) fn read<'l, E: From<rusqlite::Error>>(
    conn: &Connection,
    layout: &'l Layout,
    reading: &Reading<'_>,
    mut emit: impl FnMut(SiteChange<'l>) -> Result<(), E>,
) -> Result<u64, E> {
    let included = |table: &&'l Captured| !reading.left_out.iter().any(|name| name == table.name());
    let tables: Vec<&'l Captured> = layout.tables.iter().filter(included).collect();
    if tables.is_empty() {
        return Ok(0);
    }
    moves::expand(conn, layout, (reading.after, reading.upto), reading.left_out)?;
    let mut keys = conn.prepare(&keys_sql(&tables, reading.order))?;
    let mut fetch = Fetch::new(conn)?;
    let mut rows = keys.query([reading.after.0.cast_signed(), reading.upto.0.cast_signed()])?;
    let mut count = 0;
    while let Some(row) = rows.next()? {
        let site: Option<String> = row.get(0)?;
        let Some(&table) = tables.get(row.get::<_, u32>(1)? as usize) else { continue };
        let place = Place { seq: row.get(3)?, ordinal: row.get(4)?, moved: row.get(5)? };
        let mark = row.get::<_, Option<i64>>(2)?.map(|id| fetch.mark(id)).transpose()?.flatten();
        let change = fetch.change(table, &place)?;
        emit(SiteChange { site: site.and_then(|site| SiteId::new(site).ok()), table, mark, change })?;
        count += 1;
    }
    Ok(count)
}

/// Where the parts of a change lie.
struct Place {
    seq: i64,
    ordinal: i64,
    /// Row of `temp._muster_moved`.
    moved: Option<i64>,
}

fn keys_sql(tables: &[&Captured], order: Order) -> String {
    let places: Vec<String> =
        tables.iter().enumerate().map(|(place, table)| format!("({}, {place})", table.id)).collect();
    let order = match order {
        Order::Grouped => "s.site, o.place, s.mark, s.seq, s.ordinal",
        Order::History => "s.seq, s.ordinal",
    };
    format!(
        "WITH o(id, place) AS (VALUES {}), c AS (SELECT * FROM main._muster_change WHERE seq > ?1 AND seq <= ?2), \
         s(site, tbl, mark, seq, ordinal, moved) AS (\
           SELECT new_site, tbl, mark, seq, 0, NULL FROM c WHERE op = 'I' OR (op = 'U' AND old_site IS new_site) \
           UNION ALL SELECT old_site, tbl, mark, seq, 0, NULL FROM c WHERE op = 'D' OR (op = 'U' AND old_site IS NOT new_site) \
           UNION ALL SELECT new_site, tbl, mark, seq, 1, NULL FROM c WHERE op = 'U' AND old_site IS NOT new_site \
           UNION ALL SELECT old_site, tbl, NULL, seq, 2 * id, id FROM temp._muster_moved WHERE seq <= ?2 \
           UNION ALL SELECT new_site, tbl, NULL, seq, 2 * id + 1, id FROM temp._muster_moved WHERE seq <= ?2) \
         SELECT s.site, o.place, s.mark, s.seq, s.ordinal, s.moved FROM s JOIN o ON o.id = s.tbl ORDER BY {order}",
        places.join(", ")
    )
}

/// Reads single rows of the change table by position.
struct Fetch<'c> {
    conn: &'c Connection,
    logged: CachedStatement<'c>,
    moved: CachedStatement<'c>,
    marks: HashMap<i64, Option<Mark>>,
    builder: RowBuilder,
}

impl<'c> Fetch<'c> {
    fn new(conn: &'c Connection) -> rusqlite::Result<Self> {
        let values = system::value_list("", system::value_columns(conn, system::CHANGE)?);
        let logged = format!(
            "SELECT at_ms, op, old_site IS NOT new_site, {values} FROM main._muster_change WHERE seq = ?1"
        );
        let moved = format!(
            "SELECT (SELECT at_ms FROM main._muster_change c WHERE c.seq = m.seq), {} \
             FROM temp._muster_moved m WHERE id = ?1",
            values
        );
        Ok(Self {
            conn,
            logged: conn.prepare_cached(&logged)?,
            moved: conn.prepare_cached(&moved)?,
            marks: HashMap::new(),
            builder: RowBuilder::new(),
        })
    }

    fn change(&mut self, table: &Captured, place: &Place) -> rusqlite::Result<Change> {
        let columns = table.columns().len();
        let (at_ms, op) = match place.moved {
            Some(id) => self.moved_row(id, columns, place.ordinal % 2 == 1)?,
            None => self.logged_row(place, columns)?,
        };
        let key = ChangeKey {
            position: Position(place.seq.cast_unsigned()),
            ordinal: place.ordinal.cast_unsigned(),
        };
        Ok(Change { stamp: ChangeStamp { key, at: Timestamp::from_micros(at_ms.saturating_mul(1_000)) }, op })
    }

    fn moved_row(&mut self, id: i64, columns: usize, arrives: bool) -> rusqlite::Result<(i64, Op)> {
        let builder = &mut self.builder;
        let (at_ms, image) =
            self.moved.query_row([id], |row| Ok((row.get(0)?, read_row(row, 1, columns, builder)?)))?;
        Ok((at_ms, if arrives { Op::Insert { new: image } } else { Op::Delete { old: image } }))
    }

    fn logged_row(&mut self, place: &Place, columns: usize) -> rusqlite::Result<(i64, Op)> {
        let (at_ms, letter, between_sites, image) = self.image(place.seq, columns)?;
        let op = match (letter.as_str(), between_sites, place.ordinal) {
            ("D", ..) => Op::Delete { old: image },
            ("U", true, 0) => Op::Delete { old: self.image(place.seq - 1, columns)?.3 },
            ("U", false, _) => Op::Update { old: self.image(place.seq - 1, columns)?.3, new: image },
            _ => Op::Insert { new: image },
        };
        Ok((at_ms, op))
    }

    fn image(&mut self, seq: i64, columns: usize) -> rusqlite::Result<(i64, String, bool, Row)> {
        let builder = &mut self.builder;
        self.logged.query_row([seq], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, read_row(row, 3, columns, builder)?))
        })
    }

    fn mark(&mut self, id: i64) -> rusqlite::Result<Option<Mark>> {
        if let Some(mark) = self.marks.get(&id) {
            return Ok(mark.clone());
        }
        let mut select =
            self.conn.prepare_cached("SELECT run, step, epoch FROM main._muster_mark WHERE id = ?1")?;
        let mut rows = select.query([id])?;
        let mark = match rows.next()? {
            Some(row) => RunId::new(row.get::<_, String>(0)?)
                .ok()
                .map(|run| {
                    Ok::<_, rusqlite::Error>(Mark {
                        run,
                        step: row.get(1)?,
                        epoch: Epoch(row.get::<_, i64>(2)?.cast_unsigned()),
                    })
                })
                .transpose()?,
            None => None,
        };
        self.marks.insert(id, mark.clone());
        Ok(mark)
    }
}

//! The shard's own log, as far as capture has left it there.

use std::collections::HashMap;

use muster_engine::driver::{DriverError, ErrorClass, LoggedChange};
use muster_rows::{Change, Op, Row, RowBuilder};
use muster_types::segment::{ChangeStamp, Mark};
use muster_types::table::TableDef;
use muster_types::{ChangeKey, Epoch, Position, SiteId, Timestamp};
use rusqlite::{Connection, OptionalExtension};

use super::proof::require_capture;
use super::shard::Shard;
use crate::sqlite::system;
use crate::sqlite::value::read_row;

/// Columns of the change table before the values.
const FIXED_COLUMNS: usize = 7;

/// Changes in `(after, upto]` that are still there, and the first position from which on all are.
pub(super) fn logged_changes(
    shard: &Shard,
    after: Position,
    upto: Position,
) -> Result<(Position, Vec<LoggedChange>), DriverError> {
    let conn = shard.reader()?;
    let failed = |error: rusqlite::Error| shard.error("read its change table", &error);
    conn.execute_batch("BEGIN").map_err(failed)?;
    require_capture(shard, &conn)?;
    let acknowledged = acknowledged(&conn).map_err(failed)?;
    let moved = last_move(&conn, after, upto).map_err(failed)?;
    if let Some(moved) = moved.filter(|moved| *moved > acknowledged) {
        return Err(DriverError::new(
            ErrorClass::Transient,
            format!(
                "shard `{}`: a row with others under it changed its site at position {moved}",
                shard.name()
            ),
            "what went with it is known once `muster capture` has polled the shard; the step is tried again",
        ));
    }
    let complete_after = moved.map_or(acknowledged, |moved| moved.max(acknowledged));
    let after = moved.map_or(after, |moved| moved.max(after));
    let changes = Reader::new(&conn).and_then(|mut reader| reader.read(after, upto)).map_err(failed)?;
    Ok((Position(complete_after.0 + 1), changes))
}

fn acknowledged(conn: &Connection) -> rusqlite::Result<Position> {
    let found: Option<i64> =
        conn.query_row("SELECT acknowledged FROM main._muster_state", [], |row| row.get(0)).optional()?;
    Ok(Position(found.unwrap_or(0).cast_unsigned()))
}

/// The last position in the range at which rows moved with their parent.
fn last_move(conn: &Connection, after: Position, upto: Position) -> rusqlite::Result<Option<Position>> {
    let found: Option<i64> = conn.query_row(
        "SELECT max(seq) FROM main._muster_change WHERE op = 'V' AND seq > ?1 AND seq <= ?2",
        [seq(after), seq(upto)],
        |row| row.get(0),
    )?;
    Ok(found.map(|seq| Position(seq.cast_unsigned())))
}

fn seq(position: Position) -> i64 {
    i64::try_from(position.0).unwrap_or(i64::MAX)
}

/// The fixed columns of one row of the change table.
struct Entry {
    position: Position,
    at: Timestamp,
    table: i64,
    op: String,
    old_site: Option<SiteId>,
    new_site: Option<SiteId>,
    mark: Option<Mark>,
}

struct Reader<'c> {
    conn: &'c Connection,
    tables: HashMap<i64, (String, usize)>,
    marks: HashMap<i64, Mark>,
    builder: RowBuilder,
}

impl<'c> Reader<'c> {
    fn new(conn: &'c Connection) -> rusqlite::Result<Self> {
        let mut tables = HashMap::new();
        let mut select = conn.prepare("SELECT id, name, def FROM main._muster_table")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let (id, name, text): (i64, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            if let Ok(def) = serde_json::from_str::<TableDef>(&text) {
                tables.insert(id, (name, def.stored_columns().count()));
            }
        }
        Ok(Self { conn, tables, marks: HashMap::new(), builder: RowBuilder::new() })
    }

    fn read(&mut self, after: Position, upto: Position) -> rusqlite::Result<Vec<LoggedChange>> {
        let width = system::value_columns(self.conn, system::CHANGE)?;
        let mut select = self.conn.prepare(&format!(
            "SELECT seq, at_ms, tbl, op, old_site, new_site, mark, {} FROM main._muster_change \
             WHERE seq > ?1 AND seq <= ?2 ORDER BY seq",
            system::value_list("", width)
        ))?;
        // An update is two rows, and the range may begin between them: its position is that of the second.
        let mut rows = select.query([seq(after) - 1, seq(upto)])?;
        let (mut changes, mut before) = (Vec::new(), None);
        while let Some(row) = rows.next()? {
            let entry = self.entry(row)?;
            let Some((name, columns)) = self.tables.get(&entry.table).cloned() else { continue };
            let image = read_row(row, FIXED_COLUMNS, columns.min(width), &mut self.builder)?;
            if entry.op == "B" {
                before = Some(image);
                continue;
            }
            if entry.position > after {
                push(&mut changes, entry, &name, before.take(), image);
            }
            before = None;
        }
        Ok(changes)
    }

    fn entry(&mut self, row: &rusqlite::Row<'_>) -> rusqlite::Result<Entry> {
        let site = |index: usize| -> rusqlite::Result<Option<SiteId>> {
            Ok(row.get::<_, Option<String>>(index)?.and_then(|text| SiteId::new(text).ok()))
        };
        let mark = row.get::<_, Option<i64>>(6)?;
        Ok(Entry {
            position: Position(row.get::<_, i64>(0)?.cast_unsigned()),
            at: Timestamp::from_micros(row.get::<_, i64>(1)?.saturating_mul(1000)),
            table: row.get(2)?,
            op: row.get(3)?,
            old_site: site(4)?,
            new_site: site(5)?,
            mark: mark.map(|id| self.mark(id)).transpose()?,
        })
    }

    fn mark(&mut self, id: i64) -> rusqlite::Result<Mark> {
        if let Some(known) = self.marks.get(&id) {
            return Ok(known.clone());
        }
        let mark = self.conn.query_row(
            "SELECT run, step, epoch FROM main._muster_mark WHERE id = ?1",
            [id],
            |row| {
                let run = muster_types::RunId::new(row.get::<_, String>(0)?).map_err(|error| {
                    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
                })?;
                Ok(Mark { run, step: row.get(1)?, epoch: Epoch(row.get::<_, i64>(2)?.cast_unsigned()) })
            },
        )?;
        self.marks.insert(id, mark.clone());
        Ok(mark)
    }
}

/// Adds what one entry says: one change, or a delete and an insert when the row changed its site.
fn push(changes: &mut Vec<LoggedChange>, entry: Entry, table: &str, before: Option<Row>, image: Row) {
    let change = |site: &Option<SiteId>, ordinal, op| LoggedChange {
        table: table.to_owned(),
        site: site.clone(),
        mark: entry.mark.clone(),
        change: Change {
            stamp: ChangeStamp { key: ChangeKey { position: entry.position, ordinal }, at: entry.at },
            op,
        },
    };
    match (entry.op.as_str(), before) {
        ("I", _) => changes.push(change(&entry.new_site, 0, Op::Insert { new: image })),
        ("D", _) => changes.push(change(&entry.old_site, 0, Op::Delete { old: image })),
        ("U", Some(old)) if entry.old_site == entry.new_site => {
            changes.push(change(&entry.new_site, 0, Op::Update { old, new: image }));
        }
        ("U", Some(old)) => {
            changes.push(change(&entry.old_site, 0, Op::Delete { old }));
            changes.push(change(&entry.new_site, 1, Op::Insert { new: image }));
        }
        _ => {}
    }
}

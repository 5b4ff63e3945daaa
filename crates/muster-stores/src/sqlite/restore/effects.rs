//! What a publish transaction really does to tables, seen row by row.
//!
//! Temporary triggers on every table of the application hand each changed row to a function of ours. SQLite fires
//! them also where `SQLITE_DBCONFIG_ENABLE_TRIGGER` keeps the triggers of the shard itself quiet (since 3.35), for
//! cascades, for tables without rowid, and, with `recursive_triggers`, for rows that a conflict clause removes.
//!
//! # Invariants
//! - Every row change of a table that is not Muster's own is counted, whoever causes it.
//! - Memory is bounded by the number of tables, not of rows.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use muster_rows::{RowBuilder, RowsDigest};
use muster_types::journal::TableDigest;
use muster_types::table::TableDef;
use rusqlite::Connection;
use rusqlite::functions::{Context, FunctionFlags};

use crate::sqlite::schema::{quote, read_shape, user_tables};
use crate::sqlite::value;

/// The function that triggers call.
const SAW: &str = "_muster_saw";
/// Arguments before the row's values: what happened, and the table's number.
const ARGUMENTS_BEFORE: usize = 2;

/// Which columns of a row count, as indexes into the live table's stored columns.
#[derive(Clone, Debug, Default)]
pub(super) struct Watched {
    /// Of a row that appears: the columns at the recovery point, in their order.
    pub(super) inserted: Vec<usize>,
    /// Of a row that goes: all that are stored now.
    pub(super) deleted: Vec<usize>,
}

/// Rows that appeared and went, by table, and changes that no publish makes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Effects {
    /// Rows that appeared.
    pub(super) inserted: BTreeMap<String, TableDigest>,
    /// Rows that went.
    pub(super) deleted: BTreeMap<String, TableDigest>,
    /// Updates and changes of tables that are not the store's: how many, by description.
    pub(super) other: BTreeMap<String, u64>,
}

impl Effects {
    /// In words, the first difference from what was to happen.
    pub(super) fn difference(&self, expected: &Self) -> Option<String> {
        if let Some((what, times)) = self.other.iter().next() {
            return Some(format!("{what} ({times} times)"));
        }
        compare("inserted into", &self.inserted, &expected.inserted)
            .or_else(|| compare("deleted from", &self.deleted, &expected.deleted))
    }
}

fn compare(
    verb: &str,
    found: &BTreeMap<String, TableDigest>,
    expected: &BTreeMap<String, TableDigest>,
) -> Option<String> {
    let rows =
        |of: &BTreeMap<String, TableDigest>, table: &str| of.get(table).map_or(0, |digest| digest.rows);
    for table in found.keys().chain(expected.keys()) {
        let (now, wanted) = (rows(found, table), rows(expected, table));
        if now != wanted {
            return Some(format!("{now} rows were {verb} `{table}` instead of {wanted}"));
        }
        let same = found.get(table).map(|one| one.digest) == expected.get(table).map(|one| one.digest);
        if now > 0 && !same {
            return Some(format!("the {now} rows {verb} `{table}` are other rows than those meant"));
        }
    }
    None
}

#[derive(Default)]
struct Tally {
    rows: u64,
    digest: RowsDigest,
}

#[derive(Default)]
struct State {
    /// Names by number.
    tables: Vec<String>,
    watched: HashMap<String, Watched>,
    inserted: BTreeMap<String, Tally>,
    deleted: BTreeMap<String, Tally>,
    other: BTreeMap<String, u64>,
    builder: RowBuilder,
}

/// Watches one connection for as long as that lives.
pub(super) struct Watch {
    state: Arc<Mutex<State>>,
    schema_version: i64,
}

impl Watch {
    /// Puts triggers on every table as they are at `schema_version`. Outside of a transaction.
    pub(super) fn install(conn: &Connection, schema_version: i64) -> rusqlite::Result<Self> {
        let tables = user_tables(conn)?;
        let state = Arc::new(Mutex::new(State { tables: tables.clone(), ..State::default() }));
        let seen = Arc::clone(&state);
        conn.pragma_update(None, "recursive_triggers", true)?;
        conn.create_scalar_function(SAW, -1, FunctionFlags::SQLITE_UTF8, move |context| {
            lock(&seen).note(context)
        })?;
        let mut ddl = String::from("BEGIN;");
        for (number, table) in tables.iter().enumerate() {
            // Virtual tables have no triggers, and what lies under them is their own business.
            if let Some(shape) = read_shape(conn, table)?.filter(|shape| !shape.special) {
                ddl.push_str(&triggers(number, &shape.def));
            }
        }
        ddl.push_str("COMMIT;");
        conn.execute_batch(&ddl)?;
        Ok(Self { state, schema_version })
    }

    /// The definitions that the triggers were made for.
    pub(super) fn schema_version(&self) -> i64 {
        self.schema_version
    }

    /// Begins to count anew.
    pub(super) fn begin(&self, watched: HashMap<String, Watched>) {
        let mut state = lock(&self.state);
        let tables = std::mem::take(&mut state.tables);
        *state = State { tables, watched, ..State::default() };
    }

    /// What was seen since then.
    pub(super) fn seen(&self) -> Effects {
        let state = lock(&self.state);
        Effects {
            inserted: finish(&state.inserted),
            deleted: finish(&state.deleted),
            other: state.other.clone(),
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn triggers(number: usize, def: &TableDef) -> String {
    let table = quote(&def.name);
    let one = |event: &str, image: &str| {
        let values: String =
            def.stored_columns().map(|column| format!(", {image}.{}", quote(&column.name))).collect();
        let name = quote(&format!("_muster_saw_{number}_{event}"));
        format!(
            "CREATE TEMP TRIGGER {name} AFTER {event} ON main.{table} \
             BEGIN SELECT {SAW}('{event}', {number}{values}); END;"
        )
    };
    one("INSERT", "NEW") + &one("UPDATE", "NEW") + &one("DELETE", "OLD")
}

fn finish(tallies: &BTreeMap<String, Tally>) -> BTreeMap<String, TableDigest> {
    let one = |(table, tally): (&String, &Tally)| {
        (table.clone(), TableDigest { rows: tally.rows, digest: tally.digest.finish() })
    };
    tallies.iter().map(one).collect()
}

impl State {
    fn note(&mut self, context: &Context<'_>) -> rusqlite::Result<Option<i64>> {
        let event = context.get_raw(0).as_str()?;
        let number = usize::try_from(context.get_raw(1).as_i64()?).unwrap_or(usize::MAX);
        let table = self.tables.get(number).map_or("", String::as_str);
        let watched = self.watched.get(table);
        let (tallies, columns) = match (event, watched) {
            ("INSERT", Some(watched)) => (&mut self.inserted, &watched.inserted),
            ("DELETE", Some(watched)) => (&mut self.deleted, &watched.deleted),
            (_, Some(_)) => {
                return Ok(note_other(&mut self.other, format!("a row of table `{table}` was updated")));
            }
            (_, None) => {
                let what = format!("table `{table}`, which is not the store's, was changed");
                return Ok(note_other(&mut self.other, what));
            }
        };
        for &column in columns {
            value::push(&mut self.builder, context.get_raw(column + ARGUMENTS_BEFORE));
        }
        if !tallies.contains_key(table) {
            tallies.insert(table.to_owned(), Tally::default());
        }
        if let Some(tally) = tallies.get_mut(table) {
            tally.rows += 1;
            tally.digest.add(table, &self.builder.take());
        }
        Ok(None)
    }
}

fn note_other(other: &mut BTreeMap<String, u64>, what: String) -> Option<i64> {
    *other.entry(what).or_default() += 1;
    None
}

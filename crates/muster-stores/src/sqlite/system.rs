//! The tables that Muster keeps in a shard: names, definitions, and the SQL that both sides share.
//!
//! | table | what |
//! |---|---|
//! | `_muster_state` | one row: incarnation, acknowledged position, head of the log |
//! | `_muster_table` | what is captured, with the definition that its triggers were made for |
//! | `_muster_change` | the change table, see [`Op`] |
//! | `_muster_owner_TABLE(KEY)` | key → site of every row that other tables are owned through, see [`OwnerMap`] |
//! | `_muster_evict_ID` | rows that the statement being run may replace |
//! | `_muster_mark` | notes of runs and steps that changes refer to |
//! | `_muster_epoch`, `_muster_claim`, `_muster_publish`, `_muster_replaced` | the runs' own |
//!
//! # Invariants
//! - Positions are values of `_muster_change.seq` and are never given twice (AUTOINCREMENT).
//! - Sites are stored canonically: the bare id as text, or NULL where there is no valid one. Integers in tenant columns
//!   stand for their decimal text; values that are no site id belong to nobody.

use std::collections::BTreeSet;

use muster_types::Position;
use muster_types::table::Owner;
use rusqlite::Connection;

use super::schema::{quote, quote_text};

/// The table of changes.
pub const CHANGE: &str = "_muster_change";
/// The table of captured tables.
pub const TABLE: &str = "_muster_table";
/// The table of rows replaced under overwrite.
pub const REPLACED: &str = "_muster_replaced";

/// Milliseconds since the Unix epoch by the shard's clock, in SQL that every SQLite version knows.
pub const NOW_MS: &str = "CAST((julianday('now') - 2440587.5) * 86400000.0 + 0.5 AS INTEGER)";

/// What a row of the change table is, by its `op`.
///
/// `I` and `D` carry the new and the old image in `v0..`, the stored columns of the table in order. An update is two
/// rows with adjacent numbers: `B` with the old image, then `U` with the new one; its position is that of `U`, and
/// both carry `old_site` and `new_site`. `V` says that the row with key `v0` in the owner map `v1` of table `tbl` went
/// from `old_site` to `new_site`, and so did all rows owned through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A new row; `new_site` is set.
    Insert,
    /// The old image of an update.
    Before,
    /// The new image of an update.
    Update,
    /// A row is gone; `old_site` is set.
    Delete,
    /// Rows change site with their parent.
    Move,
}

impl Op {
    /// The letter in the change table.
    pub const fn letter(self) -> &'static str {
        match self {
            Self::Insert => "I",
            Self::Before => "B",
            Self::Update => "U",
            Self::Delete => "D",
            Self::Move => "V",
        }
    }
}

const CAPTURE_DDL: &str = "
CREATE TABLE IF NOT EXISTS _muster_state(
  id INTEGER PRIMARY KEY CHECK (id = 1), format INTEGER NOT NULL, incarnation TEXT NOT NULL,
  acknowledged INTEGER NOT NULL, head_sequence INTEGER, head_digest TEXT);
CREATE TABLE IF NOT EXISTS _muster_table(
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, owner TEXT NOT NULL, def TEXT NOT NULL,
  objects TEXT NOT NULL, pending TEXT, reason TEXT, generation INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS _muster_change(
  seq INTEGER PRIMARY KEY AUTOINCREMENT, at_ms INTEGER, tbl INTEGER, op TEXT, old_site TEXT, new_site TEXT,
  mark INTEGER, v0, v1);
";

const RUN_DDL: &str = "
CREATE TABLE IF NOT EXISTS _muster_mark(
  id INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL, step TEXT NOT NULL, epoch INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS _muster_epoch(run TEXT PRIMARY KEY NOT NULL, epoch INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS _muster_claim(
  site TEXT NOT NULL, kind TEXT NOT NULL, run TEXT NOT NULL, epoch INTEGER NOT NULL, at_ms INTEGER NOT NULL,
  PRIMARY KEY (site, kind)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS _muster_publish(
  run TEXT NOT NULL, site TEXT NOT NULL, kind TEXT NOT NULL, epoch INTEGER NOT NULL, rows INTEGER NOT NULL,
  replaced INTEGER NOT NULL, first_seq INTEGER, last_seq INTEGER, blocked_us INTEGER NOT NULL,
  at_us INTEGER NOT NULL, PRIMARY KEY (run, site, kind)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS _muster_replaced(
  id INTEGER PRIMARY KEY, run TEXT NOT NULL, site TEXT NOT NULL, kind TEXT NOT NULL, tbl TEXT NOT NULL, v0, v1);
CREATE INDEX IF NOT EXISTS _muster_replaced_store ON _muster_replaced(run, site, kind);
";

/// Creates the tables that runs need, where they are missing. Writes nothing when all are there.
///
/// # Errors
/// Those of rusqlite.
pub fn ensure_run_tables(conn: &Connection) -> rusqlite::Result<()> {
    if has_table(conn, "_muster_mark")? && has_table(conn, REPLACED)? {
        return Ok(());
    }
    conn.execute_batch(RUN_DDL)
}

/// Creates the tables that capture needs, where they are missing.
///
/// # Errors
/// Those of rusqlite.
pub fn ensure_capture_tables(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute_batch(CAPTURE_DDL)?;
    ensure_run_tables(conn)
}

/// Widens [`CHANGE`] or [`REPLACED`] to hold rows of `columns` values.
///
/// # Errors
/// Those of rusqlite.
pub fn ensure_value_columns(conn: &Connection, table: &str, columns: usize) -> rusqlite::Result<()> {
    for index in value_columns(conn, table)?..columns {
        conn.execute_batch(&format!("ALTER TABLE {table} ADD COLUMN v{index}"))?;
    }
    Ok(())
}

/// How many values a row of [`CHANGE`] or [`REPLACED`] holds.
///
/// # Errors
/// Those of rusqlite.
pub fn value_columns(conn: &Connection, table: &str) -> rusqlite::Result<usize> {
    let count: u32 = conn
        .prepare_cached("SELECT count(*) FROM pragma_table_xinfo(?1, 'main') WHERE name GLOB 'v[0-9]*'")?
        .query_row([table], |row| row.get(0))?;
    Ok(count as usize)
}

/// Whether the shard has a table of that name.
///
/// # Errors
/// Those of rusqlite.
pub fn has_table(conn: &Connection, table: &str) -> rusqlite::Result<bool> {
    conn.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM main.sqlite_schema WHERE type = 'table' AND name = ?1)",
    )?
    .query_row([table], |row| row.get(0))
}

/// `v0, v1, …`, each with `prefix` before it.
pub fn value_list(prefix: &str, columns: usize) -> String {
    (0..columns).map(|index| format!("{prefix}v{index}")).collect::<Vec<_>>().join(", ")
}

/// The last position that the shard has given.
///
/// # Errors
/// Those of rusqlite.
pub fn last_position(conn: &Connection) -> rusqlite::Result<Position> {
    let last: i64 = conn
        .prepare_cached(
            "SELECT max(coalesce((SELECT seq FROM main.sqlite_sequence WHERE name = '_muster_change'), 0), \
                        coalesce((SELECT max(seq) FROM main._muster_change), 0))",
        )?
        .query_row([], |row| row.get(0))?;
    Ok(Position(u64::try_from(last).unwrap_or(0)))
}

/// The id of a captured table in [`TABLE`] and in `_muster_change.tbl`; `None` when it is not captured.
///
/// # Errors
/// Those of rusqlite.
pub fn table_id(conn: &Connection, table: &str) -> rusqlite::Result<Option<i64>> {
    use rusqlite::OptionalExtension as _;
    conn.prepare_cached("SELECT id FROM main._muster_table WHERE name = ?1")?
        .query_row([table], |row| row.get(0))
        .optional()
}

/// The durable map from a key of a table to the site of its row: columns `key`, `parent` (the key of the row that this
/// one is owned through, NULL under a tenant column), `site`, and `dead_seq`.
///
/// Entries of rows that are gone keep their site and get the position of the deletion as `dead_seq`, until no row is
/// owned through them and capture has acknowledged that position. Where a child came before its parent the entry is
/// there with a NULL site.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnerMap {
    /// The owning table.
    pub table: String,
    /// Its column that children refer to.
    pub key: String,
}

impl OwnerMap {
    /// The map's own name, not quoted.
    pub fn name(&self) -> String {
        format!("_muster_owner_{}({})", self.table, self.key)
    }
}

/// The maps that tables with these owners need.
pub fn owner_maps<'a>(owners: impl IntoIterator<Item = &'a Owner>) -> Vec<OwnerMap> {
    owners.into_iter().filter_map(owner_map).collect::<BTreeSet<_>>().into_iter().collect()
}

/// The canonical site that a value stands for: its text where that is a site id, else NULL.
pub fn canonical_site_sql(value: &str) -> String {
    let text = format!("CAST({value} AS TEXT)");
    format!(
        "CASE WHEN length(CAST({text} AS BLOB)) BETWEEN 1 AND 128 AND length({text}) = length(CAST({text} AS BLOB)) \
         AND {text} NOT GLOB '*[^-A-Za-z0-9._]*' AND {text} COLLATE BINARY NOT IN ('.', '..') THEN {text} END"
    )
}

/// The column that says to whom a row belongs.
pub fn owning_column(owner: &Owner) -> Option<&str> {
    match owner {
        Owner::Tenant { column } | Owner::Parent { column, .. } => Some(column),
        // The topology refuses tables of single sites: SQLite has no schemas.
        Owner::Site { .. } | Owner::Reference => None,
    }
}

/// The map through which rows are owned, if they have no tenant column of their own.
pub fn owner_map(owner: &Owner) -> Option<OwnerMap> {
    match owner {
        Owner::Parent { table, key, .. } => Some(OwnerMap { table: table.clone(), key: key.clone() }),
        Owner::Tenant { .. } | Owner::Site { .. } | Owner::Reference => None,
    }
}

/// The site of the row `alias` (`NEW`, `OLD` or a table alias), as an expression.
pub fn site_sql(owner: &Owner, alias: &str) -> String {
    let value = owning_column(owner).map(|column| format!("{alias}.{}", quote(column)));
    site_of_value_sql(owner, value.as_deref().unwrap_or("NULL"))
}

/// The site of a row whose owning column has `value`, as an expression.
pub fn site_of_value_sql(owner: &Owner, value: &str) -> String {
    match (owner, owner_map(owner)) {
        (Owner::Tenant { .. }, _) => canonical_site_sql(value),
        (_, Some(map)) => {
            format!("(SELECT _o.site FROM {} AS _o WHERE _o.key = {value})", quote(&map.name()))
        }
        (_, None) => "NULL".to_owned(),
    }
}

/// The key of the row that the row `alias` is owned through, as an expression; NULL under a tenant column.
pub fn parent_sql(owner: &Owner, alias: &str) -> String {
    match owner {
        Owner::Parent { column, .. } => format!("{alias}.{}", quote(column)),
        Owner::Tenant { .. } | Owner::Site { .. } | Owner::Reference => "NULL".to_owned(),
    }
}

/// Whether the row `alias` belongs to the site bound as `parameter` (`?1`), as a condition that can use an index on
/// the owning column.
pub fn belongs_sql(owner: &Owner, alias: &str, parameter: &str) -> String {
    match owner {
        Owner::Tenant { column } => {
            let value = format!("{alias}.{}", quote(column));
            // The first part finds rows by index under any affinity, the second is exact.
            format!(
                "({value} IN ({parameter}, CAST({parameter} AS NUMERIC)) AND CAST({value} AS TEXT) = {parameter} COLLATE BINARY)"
            )
        }
        Owner::Parent { column, table, key } => {
            let map = OwnerMap { table: table.clone(), key: key.clone() };
            format!(
                "{alias}.{} IN (SELECT key FROM {} WHERE site = {parameter})",
                quote(column),
                quote(&map.name())
            )
        }
        Owner::Site { .. } | Owner::Reference => "0".to_owned(),
    }
}

/// An owner map's table and indexes. `affinity` and `collation` are those of the key in its table; `parent` those of
/// the key that the table itself is owned through.
pub fn owner_map_ddl(
    map: &OwnerMap,
    (affinity, collation): (&str, &str),
    parent: Option<(&str, &str)>,
) -> Vec<(String, String)> {
    let name = map.name();
    let quoted = quote(&name);
    let (parent_affinity, parent_collation) = parent.unwrap_or(("BLOB", "BINARY"));
    let table = format!(
        "CREATE TABLE {quoted}(key {affinity} COLLATE {} PRIMARY KEY NOT NULL, parent {parent_affinity} COLLATE {}, \
         site TEXT, dead_seq INTEGER) WITHOUT ROWID",
        quote(collation),
        quote(parent_collation)
    );
    let index = |suffix: &str, on: &str| {
        let index = format!("{name}{suffix}");
        let sql = format!("CREATE INDEX {} ON {quoted}({on}", quote(&index));
        (index, sql)
    };
    let (by_parent, by_parent_sql) = index("parent", "parent) WHERE parent IS NOT NULL");
    let (by_site, by_site_sql) = index("site", "site)");
    let (by_death, by_death_sql) = index("dead", "dead_seq) WHERE dead_seq IS NOT NULL");
    vec![(name, table), (by_parent, by_parent_sql), (by_site, by_site_sql), (by_death, by_death_sql)]
}

/// Takes everything of Muster out of the shard: triggers first, then tables.
///
/// # Errors
/// Those of rusqlite.
pub fn drop_everything(conn: &Connection) -> rusqlite::Result<()> {
    for kind in ["trigger", "table"] {
        for name in objects(conn, kind)? {
            conn.execute_batch(&format!("DROP {kind} main.{}", quote(&name)))?;
        }
    }
    let sequences = "DELETE FROM main.sqlite_sequence WHERE name GLOB '_muster*'";
    if has_table(conn, "sqlite_sequence")? {
        conn.execute_batch(sequences)?;
    }
    Ok(())
}

fn objects(conn: &Connection, kind: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = conn.prepare(&format!(
        "SELECT name FROM main.sqlite_schema WHERE type = {} AND name LIKE '\\_muster%' ESCAPE '\\'",
        quote_text(kind)
    ))?;
    let names = statement.query_map([], |row| row.get(0))?;
    names.collect()
}

//! Compares what capture knows of a shard with what the shard is.
//!
//! The comparison is read within the transaction of each poll: the usual rebuild of a table drops its triggers without
//! a word, and an added column makes them incomplete.

use std::collections::{BTreeMap, BTreeSet};

use muster_types::Digest;
use muster_types::table::{CapturedTable, Owner};
use muster_types::topology::TableConfig;
use rusqlite::{Connection, OptionalExtension};

use super::layout::{Captured, Layout, Object, ObjectKind};
use crate::sqlite::schema::{Shape, read_shape, user_tables};
use crate::sqlite::system::{self, has_table};

/// Most columns of a captured table: the change table holds a row with its particulars, and SQLite's limit is 2,000.
const COLUMNS_MAX: usize = 1_900;

/// A row of `_muster_table`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Installed {
    pub(super) id: i64,
    kind: String,
    owner: String,
    def: String,
    objects: String,
    pub(super) pending: Option<String>,
}

/// What has to be done before a poll can be trusted.
#[derive(Clone, Debug, Default)]
pub(super) struct Findings {
    /// Everything that can be captured, as it is now.
    pub(super) layout: Layout,
    /// Captured tables whose triggers must be made anew, and why.
    pub(super) stale: BTreeMap<String, String>,
    /// Captured before, and there no more.
    pub(super) dropped: BTreeSet<String>,
    /// Captured before, there, and no longer declared or no longer possible to capture, with the reason.
    pub(super) released: BTreeMap<String, String>,
    /// There and not declared.
    pub(super) undeclared: Vec<String>,
    /// Declared, there, and impossible to capture: table and reason with way out.
    pub(super) refused: Vec<(String, String)>,
    /// Objects of capture, by name, that no table needs any more.
    pub(super) leftovers: Vec<Object>,
    /// Capture's own tables are missing or too narrow.
    pub(super) incomplete: bool,
}

impl Findings {
    /// Whether the shard is as capture knows it.
    pub(super) fn in_order(&self) -> bool {
        self.stale.is_empty()
            && self.dropped.is_empty()
            && self.released.is_empty()
            && self.leftovers.is_empty()
            && !self.incomplete
    }
}

/// Compares the shard with what is declared and installed.
pub(super) fn check(
    conn: &Connection,
    declared: &BTreeMap<String, TableConfig>,
) -> rusqlite::Result<Findings> {
    let installed = read_installed(conn)?;
    let mut findings = Findings::default();
    let shapes = present(conn, declared, &mut findings)?;
    findings.layout = number(shapes, declared, &installed);
    let objects = findings.layout.objects();
    let actual = read_objects(conn)?;
    for table in &findings.layout.tables {
        let wanted = objects.get(&table.id).map(Vec::as_slice).unwrap_or_default();
        if let Some(reason) = staleness(table, wanted, installed.get(table.name()), &actual) {
            findings.stale.insert(table.name().to_owned(), reason);
        }
    }
    note_gone(conn, &installed, &mut findings)?;
    let needed: BTreeSet<&str> = objects.values().flatten().map(|object| object.name.as_str()).collect();
    let unneeded = |object: &&Object| managed(object) && !needed.contains(object.name.as_str());
    findings.leftovers = actual.objects.values().filter(unneeded).cloned().collect();
    findings.incomplete = !has_table(conn, system::TABLE)?
        || !has_table(conn, system::REPLACED)?
        || system::value_columns(conn, system::CHANGE)? < findings.layout.columns_max().max(2)
        || system::value_columns(conn, system::REPLACED)? < findings.layout.columns_max();
    Ok(findings)
}

/// Shapes of the declared tables that are there and can be captured.
fn present(
    conn: &Connection,
    declared: &BTreeMap<String, TableConfig>,
    findings: &mut Findings,
) -> rusqlite::Result<BTreeMap<String, Shape>> {
    let mut shapes = BTreeMap::new();
    for name in user_tables(conn)? {
        match (declared.get(&name), read_shape(conn, &name)?) {
            (Some(_), Some(shape)) => {
                shapes.insert(name, shape);
            }
            (None, Some(_)) => findings.undeclared.push(name),
            (_, None) => {}
        }
    }
    // A refused table takes those with it that are owned through it.
    loop {
        let refusal = |(name, shape): (&String, &Shape)| {
            let config = declared.get(name)?;
            Some((name.clone(), refusal(shape, &config.owner, &shapes)?))
        };
        let refused: Vec<(String, String)> = shapes.iter().filter_map(refusal).collect();
        if refused.is_empty() {
            return Ok(shapes);
        }
        for (name, _) in &refused {
            shapes.remove(name);
        }
        findings.refused.extend(refused);
    }
}

/// Why a table cannot be captured.
fn refusal(shape: &Shape, owner: &Owner, shapes: &BTreeMap<String, Shape>) -> Option<String> {
    let def = &shape.def;
    if shape.special {
        return Some(
            "it is virtual, and SQLite has no triggers on those; declare the tables that it is made from"
                .into(),
        );
    }
    if def.key.is_empty() {
        return Some("it has no primary key, so its rows cannot be told apart; give it one".into());
    }
    if def.columns.len() > COLUMNS_MAX {
        return Some(format!("it has {} columns; at most {COLUMNS_MAX} can be captured", def.columns.len()));
    }
    let nullable = |name: &&String| {
        let column = def.columns.iter().find(|column| column.name == **name);
        shape.rowid_alias.as_ref() != Some(*name) && column.is_some_and(|column| !column.not_null)
    };
    if let Some(column) = def.key.iter().find(nullable) {
        return Some(format!(
            "its primary key column `{column}` may hold NULL, in any number of rows; declare it NOT NULL"
        ));
    }
    let by_expression =
        |key: &&crate::sqlite::schema::KeyShape| key.columns.iter().any(|(name, _)| name.is_none());
    if let Some(key) = shape.keys.iter().find(by_expression) {
        return Some(format!(
            "its unique index `{}` is on an expression, and rows replaced through it cannot be seen; \
             index a generated column instead",
            key.name
        ));
    }
    owner_refusal(shape, owner, shapes)
}

fn owner_refusal(shape: &Shape, owner: &Owner, shapes: &BTreeMap<String, Shape>) -> Option<String> {
    let has = |shape: &Shape, column: &str| shape.def.stored_columns().any(|found| found.name == column);
    if let Some(column) = system::owning_column(owner).filter(|column| !has(shape, column)) {
        return Some(format!(
            "its declared owning column `{column}` is not a stored column of it; correct the topology"
        ));
    }
    let Owner::Parent { table, key, .. } = owner else { return None };
    let Some(parent) = shapes.get(table) else {
        return Some(format!("it is owned through table `{table}`, which is not captured in this shard"));
    };
    if !has(parent, key) || parent.single_key_collation(key).is_none() {
        return Some(format!(
            "it is owned through `{table}.{key}`, which is neither the primary key nor a unique column of `{table}`; \
             make it one, or name another"
        ));
    }
    (table == &shape.def.name)
        .then(|| "it is declared to be owned through itself; name a tenant column".into())
}

fn number(
    shapes: BTreeMap<String, Shape>,
    declared: &BTreeMap<String, TableConfig>,
    installed: &BTreeMap<String, Installed>,
) -> Layout {
    let mut next = installed.values().map(|table| table.id).max().unwrap_or(0);
    let mut id_of = |name: &str| {
        installed.get(name).map_or_else(
            || {
                next += 1;
                next
            },
            |table| table.id,
        )
    };
    let mut tables = Vec::new();
    for (name, shape) in shapes {
        let Some(config) = declared.get(&name) else { continue };
        let id = id_of(&name);
        let table =
            CapturedTable { kind: config.kind.clone(), owner: config.owner.clone(), def: shape.def.clone() };
        tables.push(Captured { id, table, shape });
    }
    Layout::new(tables)
}

/// The text of `_muster_table` for a table: kind, owner, definition, objects.
pub(super) fn description(table: &Captured, objects: &[Object]) -> (String, String, String, String) {
    let owner = serde_json::to_string(table.owner()).unwrap_or_default();
    let def = serde_json::to_string(&table.table.def).unwrap_or_default();
    let mut text = String::new();
    for object in objects {
        text.push_str(&object.sql);
        text.push('\n');
    }
    (table.table.kind.to_string(), owner, def, Digest::of(text.as_bytes()).to_string())
}

fn staleness(
    table: &Captured,
    wanted: &[Object],
    installed: Option<&Installed>,
    actual: &Actual,
) -> Option<String> {
    let Some(installed) = installed else { return Some("it appeared".to_owned()) };
    let (kind, owner, def, objects) = description(table, wanted);
    if installed.pending.as_deref().is_some_and(|pending| pending != "reread") {
        return Some("it came back".to_owned());
    }
    if installed.def != def {
        return Some("its definition changed".to_owned());
    }
    if installed.kind != kind || installed.owner != owner {
        return Some("it was declared anew".to_owned());
    }
    let same = |object: &&Object| actual.objects.get(&object.name).is_some_and(|found| found == *object);
    if wanted.iter().any(|object| !same(&object)) {
        return Some("its triggers were dropped or altered".to_owned());
    }
    if installed.objects != objects {
        return Some("its triggers are those of another version of Muster".to_owned());
    }
    let newer = actual.newest_other.get(table.name()) > actual.oldest_own.get(table.name());
    newer.then(|| "a trigger was added to it, which would fire before those of capture".to_owned())
}

fn note_gone(
    conn: &Connection,
    installed: &BTreeMap<String, Installed>,
    findings: &mut Findings,
) -> rusqlite::Result<()> {
    for (name, table) in installed {
        if findings.layout.by_name(name).is_some() {
            continue;
        }
        let there = read_shape(conn, name)?.is_some();
        let known = table.pending.as_deref();
        if !there && known != Some("dropped") {
            findings.dropped.insert(name.clone());
        } else if there && known != Some("undeclared") {
            let refused = findings.refused.iter().find(|(refused, _)| refused == name);
            let reason =
                refused.map_or_else(|| "it is no longer declared".to_owned(), |(_, reason)| reason.clone());
            findings.released.insert(name.clone(), reason);
        }
    }
    Ok(())
}

pub(super) fn read_installed(conn: &Connection) -> rusqlite::Result<BTreeMap<String, Installed>> {
    if !has_table(conn, system::TABLE)? {
        return Ok(BTreeMap::new());
    }
    let mut statement =
        conn.prepare_cached("SELECT name, id, kind, owner, def, objects, pending FROM main._muster_table")?;
    let read = |row: &rusqlite::Row<'_>| {
        let table = Installed {
            id: row.get(1)?,
            kind: row.get(2)?,
            owner: row.get(3)?,
            def: row.get(4)?,
            objects: row.get(5)?,
            pending: row.get(6)?,
        };
        Ok((row.get(0)?, table))
    };
    let tables = statement.query_map([], read)?;
    tables.collect()
}

/// Objects of capture in the shard, and how its triggers lie among others.
pub(super) struct Actual {
    pub(super) objects: BTreeMap<String, Object>,
    newest_other: BTreeMap<String, i64>,
    oldest_own: BTreeMap<String, i64>,
}

/// Whether an object belongs to one captured table.
fn managed(object: &Object) -> bool {
    let fixed = ["_muster_table", "_muster_change", "_muster_state", "_muster_mark", "_muster_epoch"];
    let of_runs = ["_muster_claim", "_muster_publish", "_muster_replaced"];
    let name = object.name.as_str();
    !fixed.contains(&name) && !of_runs.iter().any(|own| name.starts_with(own))
        || object.kind == ObjectKind::Trigger
}

pub(super) fn read_objects(conn: &Connection) -> rusqlite::Result<Actual> {
    let mut actual =
        Actual { objects: BTreeMap::new(), newest_other: BTreeMap::new(), oldest_own: BTreeMap::new() };
    let mut statement = conn.prepare_cached(
        "SELECT type, name, sql, tbl_name, rowid FROM main.sqlite_schema \
         WHERE sql IS NOT NULL AND (name LIKE '\\_muster%' ESCAPE '\\' OR type = 'trigger') ORDER BY rowid",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (kind, name): (String, String) = (row.get(0)?, row.get(1)?);
        let (table, place): (String, i64) = (row.get(3)?, row.get(4)?);
        let own = name.starts_with("_muster");
        if kind == "trigger" && own {
            actual.oldest_own.entry(table).or_insert(place);
        } else if kind == "trigger" {
            actual.newest_other.insert(table, place);
        }
        let kind = match kind.as_str() {
            "table" => ObjectKind::Table,
            "index" => ObjectKind::Index,
            "trigger" => ObjectKind::Trigger,
            _ => continue,
        };
        if own {
            actual.objects.insert(name.clone(), Object::new(kind, name, row.get::<_, String>(2)?));
        }
    }
    Ok(actual)
}

/// The journal mode of the file.
pub(super) fn journal_mode(conn: &Connection) -> rusqlite::Result<Option<String>> {
    conn.query_row("PRAGMA main.journal_mode", [], |row| row.get(0)).optional()
}

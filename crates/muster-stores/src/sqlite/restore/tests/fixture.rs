//! A small shard with two kinds, three sites, a self-reference, an owned chain, a table without rowid and an
//! application trigger.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use muster_engine::driver::{DriverError, RowBatch, StoreDriver, StoreProbe, StoreWork};
use muster_rows::{Row, RowBuilder, RowsDigest};
use muster_types::journal::{Published, TableDigest};
use muster_types::table::{CapturedTable, Owner};
use muster_types::topology::TableConfig;
use muster_types::{Epoch, RunId, SiteId, StoreId};
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::capture::CaptureSource;
use crate::sqlite::capture::SqliteSource;
use crate::sqlite::restore::SqliteDriver;
use crate::sqlite::schema::{quote, read_table};
use crate::sqlite::value::read_row;

pub(super) const SCHEMA: &str = "
CREATE TABLE users(id INTEGER PRIMARY KEY, site TEXT NOT NULL, email TEXT COLLATE NOCASE, boss INTEGER REFERENCES users(id));
CREATE UNIQUE INDEX users_email ON users(email) WHERE email IS NOT NULL;
CREATE INDEX users_site ON users(site);
CREATE TABLE projects(id INTEGER PRIMARY KEY AUTOINCREMENT, site TEXT NOT NULL, name TEXT,
  lead INTEGER REFERENCES users(id) ON DELETE SET NULL);
CREATE INDEX projects_site ON projects(site);
CREATE TABLE issues(id INTEGER PRIMARY KEY, project_id INTEGER NOT NULL REFERENCES projects(id) ON DELETE CASCADE,
  parent_id INTEGER REFERENCES issues(id), title TEXT, size REAL, loud TEXT AS (upper(title)));
CREATE INDEX issues_project ON issues(project_id);
CREATE TABLE comments(id TEXT PRIMARY KEY NOT NULL, issue_id INTEGER NOT NULL REFERENCES issues(id), body BLOB)
  WITHOUT ROWID;
CREATE INDEX comments_issue ON comments(issue_id);
CREATE TABLE settings(site TEXT NOT NULL, k NOT NULL, v, n INTEGER, PRIMARY KEY(site, k));
CREATE TABLE audit(id INTEGER PRIMARY KEY, what TEXT);
CREATE TRIGGER users_audit AFTER INSERT ON users BEGIN INSERT INTO audit(what) VALUES ('user ' || NEW.id); END;
";

/// Tables by name, kind, owner; parents first.
fn declared() -> Vec<(&'static str, &'static str, Owner)> {
    let tenant = || Owner::Tenant { column: "site".into() };
    let parent = |column: &str, table: &str| Owner::Parent {
        column: column.into(),
        table: table.into(),
        key: "id".into(),
    };
    vec![
        ("users", "identity", tenant()),
        ("projects", "product:jira", tenant()),
        ("issues", "product:jira", parent("project_id", "projects")),
        ("comments", "product:jira", parent("issue_id", "issues")),
        ("settings", "product:jira", tenant()),
    ]
}

pub(super) struct Fixture {
    pub(super) dir: TempDir,
    pub(super) driver: SqliteDriver,
}

/// Rows of a store: table index and row.
pub(super) type Rows = Vec<(usize, Row)>;

impl Fixture {
    /// The schema, captured, with sites a, b and c.
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shard.db");
        let conn = Connection::open(&path).unwrap();
        conn.pragma_update(None, "journal_mode", "wal").unwrap();
        conn.execute_batch(SCHEMA).unwrap();
        let driver = SqliteDriver::new("s1".parse().unwrap(), path, config());
        let fixture = Self { dir, driver };
        for (index, site) in ["a", "b", "c"].into_iter().enumerate() {
            fixture.seed(&conn, site, 1000 * (index as i64 + 1));
        }
        fixture.install();
        fixture
    }

    pub(super) fn path(&self) -> PathBuf {
        self.dir.path().join("shard.db")
    }

    /// A connection as the application has it.
    pub(super) fn app(&self) -> Connection {
        let conn = Connection::open(self.path()).unwrap();
        conn.execute_batch("PRAGMA foreign_keys=ON").unwrap();
        conn.busy_timeout(std::time::Duration::from_secs(60)).unwrap();
        conn
    }

    fn seed(&self, conn: &Connection, site: &str, base: i64) {
        let sql = format!(
            "INSERT INTO users VALUES ({base}, '{site}', '{site}@x', NULL), ({base}+1, '{site}', NULL, {base});
             INSERT INTO projects VALUES ({base}, '{site}', 'p', {base}), ({base}+1, '{site}', NULL, NULL);
             INSERT INTO issues(id, project_id, parent_id, title, size) VALUES
               ({base}+1, {base}, NULL, 'first', 2.0), ({base}+2, {base}+1, {base}+1, 'second', 1e300);
             UPDATE issues SET parent_id = {base}+2 WHERE id = {base}+1;
             INSERT INTO comments VALUES ('{site}-1', {base}+1, x'00ff'), ('{site}-2', {base}+2, 'text');
             INSERT INTO settings VALUES ('{site}', 1, NULL, 7), ('{site}', 'one', 9e999, 'not a number'),
               ('{site}', x'61', -9e999, 9223372036854775807), ('{site}', 'a' || char(0) || 'b', 0.1, -9223372036854775808),
               ('{site}', CAST(x'ff00fe' AS TEXT), CAST(x'c328' AS TEXT), x'6162'), ('{site}', 2.5, 1.0, 3.5);"
        );
        conn.execute_batch("PRAGMA foreign_keys=OFF").unwrap();
        conn.execute_batch(&sql).unwrap();
    }

    /// Installs capture, or brings it up to date.
    pub(super) fn install(&self) {
        self.source().init().unwrap();
    }

    pub(super) fn source(&self) -> SqliteSource {
        SqliteSource::new(self.path(), config())
    }

    /// Deletes a site as a script would.
    pub(super) fn delete(&self, site: &str) {
        self.app()
            .execute_batch(&format!(
                "BEGIN; PRAGMA defer_foreign_keys=ON;
                 DELETE FROM comments WHERE id GLOB '{site}-*';
                 DELETE FROM issues WHERE project_id IN (SELECT id FROM projects WHERE site = '{site}');
                 DELETE FROM settings WHERE site = '{site}';
                 DELETE FROM projects WHERE site = '{site}'; DELETE FROM users WHERE site = '{site}'; COMMIT;"
            ))
            .unwrap();
    }

    /// Definitions of a kind's tables, parents first.
    pub(super) fn tables(&self, kind: &str) -> Arc<Vec<CapturedTable>> {
        let conn = self.app();
        let of_kind = declared().into_iter().filter(|(_, of, _)| *of == kind);
        let table = |(name, kind, owner): (&str, &str, Owner)| CapturedTable {
            kind: kind.parse().unwrap(),
            owner,
            def: read_table(&conn, name).unwrap().unwrap(),
        };
        Arc::new(of_kind.map(table).collect())
    }

    pub(super) fn work(&self, run: &str, epoch: u64, store: &str) -> StoreWork {
        let store = self::store(store);
        let tables = self.tables(store.kind.as_str());
        StoreWork {
            run: RunId::new(run).unwrap(),
            epoch: Epoch(epoch),
            store,
            tables,
            overwrite: false,
            definitions: None,
            writer_block_milliseconds_max: None,
        }
    }

    pub(super) fn probe_of(&self, store: &str) -> StoreProbe {
        let work = self.work("x", 1, store);
        StoreProbe { store: work.store, tables: work.tables }
    }

    /// The live rows of a store.
    pub(super) fn rows(&self, work: &StoreWork) -> Rows {
        let conn = self.app();
        let mut found = Rows::new();
        for (index, table) in work.tables.iter().enumerate() {
            let name = table.def.name.as_str();
            let site = work.store.site.as_str();
            let whose = match name {
                "issues" => "project_id IN (SELECT id FROM projects WHERE site = ?1)",
                "comments" => {
                    "issue_id IN (SELECT i.id FROM issues i JOIN projects p ON p.id = project_id WHERE site = ?1)"
                }
                _ => "site = ?1",
            };
            found.extend(select(&conn, &table.def, whose, &[&site]).into_iter().map(|row| (index, row)));
        }
        found
    }

    /// Every row of every declared and undeclared table, sorted, for whole comparisons.
    pub(super) fn everything(&self) -> BTreeMap<String, Vec<Row>> {
        let conn = self.app();
        let names = declared().into_iter().map(|(name, ..)| name).chain(["audit"]);
        names
            .map(|name| {
                let def = read_table(&conn, name).unwrap().unwrap();
                let mut rows = select(&conn, &def, "1", &[]);
                rows.sort_by_key(|row| format!("{row:?}"));
                (name.to_owned(), rows)
            })
            .collect()
    }

    /// Fences, claims, stages; what is staged.
    pub(super) async fn prepare(
        &self,
        work: &StoreWork,
        rows: &Rows,
    ) -> Result<BTreeMap<String, TableDigest>, DriverError> {
        self.driver.fence(&work.run, work.epoch).await?;
        let refused = self.driver.claim(&work.run, work.epoch, std::slice::from_ref(&work.store)).await?;
        assert_eq!(refused, []);
        self.stage(work, rows).await?;
        self.driver.digest_staged(work).await
    }

    pub(super) async fn stage(&self, work: &StoreWork, rows: &Rows) -> Result<(), DriverError> {
        let (send, receive) = mpsc::channel(4);
        let rows = rows.clone();
        let feed = async move {
            for (table, row) in rows {
                // A receiver that is gone has failed, and says so itself.
                let _ = send.send(RowBatch { table, rows: vec![row] }).await;
            }
        };
        tokio::join!(self.driver.stage(work, receive), feed).0
    }

    /// All of it.
    pub(super) async fn restore(&self, work: &StoreWork, rows: &Rows) -> Result<Published, DriverError> {
        let staged = self.prepare(work, rows).await?;
        assert_eq!(staged, digests(work, rows));
        self.driver.publish(work, &staged).await
    }

    pub(super) fn with_fault(self, fault: super::super::Fault) -> Self {
        let Self { dir, driver } = self;
        Self { dir, driver: driver.with_fault(fault) }
    }
}

pub(super) fn config() -> BTreeMap<String, TableConfig> {
    let reference = ("audit", "identity", Owner::Reference);
    declared()
        .into_iter()
        .chain([reference])
        .map(|(name, kind, owner)| {
            (
                name.to_owned(),
                TableConfig {
                    kind: kind.parse().unwrap(),
                    owner,
                    migrations: vec![],
                    harmless_triggers: vec![],
                },
            )
        })
        .collect()
}

pub(super) fn store(text: &str) -> StoreId {
    text.parse().unwrap()
}

pub(super) fn site(text: &str) -> SiteId {
    SiteId::new(text).unwrap()
}

pub(super) fn select(
    conn: &Connection,
    def: &muster_types::table::TableDef,
    whose: &str,
    parameters: &[&dyn rusqlite::ToSql],
) -> Vec<Row> {
    let columns: Vec<String> = def.stored_columns().map(|column| quote(&column.name)).collect();
    let sql = format!("SELECT {} FROM {} WHERE {whose}", columns.join(", "), quote(&def.name));
    let mut statement = conn.prepare(&sql).unwrap();
    let mut builder = RowBuilder::new();
    let width = columns.len();
    let mut rows = statement.query(parameters).unwrap();
    let mut found = Vec::new();
    while let Some(row) = rows.next().unwrap() {
        found.push(read_row(row, 0, width, &mut builder).unwrap());
    }
    found
}

/// What staging must digest to.
pub(super) fn digests(work: &StoreWork, rows: &Rows) -> BTreeMap<String, TableDigest> {
    let of = |index: usize, name: &str| {
        let mut digest = RowsDigest::new();
        let mut count = 0;
        for (_, row) in rows.iter().filter(|(table, _)| *table == index) {
            digest.add(name, row);
            count += 1;
        }
        TableDigest { rows: count, digest: digest.finish() }
    };
    let tables = work.tables.iter().enumerate();
    tables.map(|(index, table)| (table.def.name.clone(), of(index, &table.def.name))).collect()
}

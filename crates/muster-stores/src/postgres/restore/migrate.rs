//! Declared migrations: SQL on one store's staged rows, between their proof and their publish.
//!
//! The rows of the store are copied into a staging table of their own, so that a statement cannot reach those of others;
//! its name follows from run, store and table. From then on it stands for the store's staged rows of that table.
//!
//! # Invariants
//! - All of it is one transaction, which begins with what is staged: whoever repeats it gets the same.
//! - Nothing but the rows' own table is written: any other relation that the transaction holds a lock of a writer on
//!   undoes it.
//! - What comes out fits the live table, or the store fails.

use muster_engine::driver::{DriverError, ErrorClass, StoreWork};
use muster_types::journal::{AppliedMigration, Migrated, MigratedTable, TableDigest};
use muster_types::table::{CapturedTable, ColumnDef, TableDef};
use muster_types::topology::{Migration, STAGED};
use tokio_postgres::{Client, Error};

use super::compare::compare;
use super::copy;
use super::errors::judge;
use super::fence::check_epoch;
use super::owner::column_list;
use super::shard::{Catalog, Shard};
use super::stage::{self, ATTEMPT, Staged, of_attempt, table_name};
use crate::comparison::Comparison;
use crate::postgres::schema::{LiveTable, literal, quote, sql_text};

/// Longest that one statement may take: rows of one store, of which the largest take minutes to load.
const STATEMENT_LIMIT: &str = "15min";

/// A migration whose engine fell silent is rolled back by the server after this, so that another can take the run over.
const IDLE_LIMIT: &str = "60s";

/// The migrations that rows of a definition go through; each is asked of the columns that it begins with.
pub(super) fn applying(shard: &Shard, def: &TableDef) -> Option<Vec<Migration>> {
    let migrations = shard.tables().get(&def.name)?.into_owned().migrations;
    migrations.iter().any(|migration| migration.applies(def)).then_some(migrations)
}

/// What a plan says of a table whose rows will be migrated, in place of what they would meet as they are.
/// A table that is gone is created in the shape of its rows, which need no migration then.
pub(super) fn foresee(shard: &Shard, def: &TableDef, now: Option<&LiveTable>, found: &mut Comparison) {
    let Some(migrations) = applying(shard, def).filter(|_| now.is_some()) else { return };
    found.obstacles.drain(..std::mem::take(&mut found.column_obstacles));
    let names: Vec<String> = migrations.iter().map(|migration| format!("`{}`", migration.name)).collect();
    found.notes.insert(
        0,
        format!(
            "table `{}`: restored rows go through its migrations ({}) and are held against the live table then",
            def.name,
            names.join(", ")
        ),
    );
}

/// The section of a topology that would bring rows of `then` into the shape of `now`, to be completed.
pub(super) fn section_hint(then: &TableDef, now: Option<&TableDef>) -> String {
    let here = |def: &TableDef, name: &str| def.stored_columns().any(|column| column.name == name);
    let (mut has, mut sql) = (Vec::new(), Vec::new());
    for column in then.stored_columns() {
        let live = now.and_then(|now| now.columns.iter().find(|live| live.name == column.name));
        match live.filter(|live| !live.generated) {
            None => {
                has.push(column.name.clone());
                sql.push(format!("ALTER TABLE {STAGED} DROP COLUMN {}", quote(&column.name)));
            }
            Some(live) if live.declared_type != column.declared_type => {
                let (name, new) = (quote(&column.name), &live.declared_type);
                // Its name alone would stand for the new type, too.
                has.push(format!("{} {}", column.name, column.declared_type));
                sql.push(format!("ALTER TABLE {STAGED} ALTER {name} TYPE {new} USING {name}::{new}"));
            }
            Some(_) => {}
        }
    }
    let new = now.into_iter().flat_map(TableDef::stored_columns);
    let new: Vec<&ColumnDef> = new.filter(|column| !here(then, &column.name)).collect();
    for column in new.iter().filter(|column| column.not_null && column.default_sql.is_none()) {
        let (name, new) = (quote(&column.name), &column.declared_type);
        sql.push(format!("ALTER TABLE {STAGED} ADD COLUMN {name} {new} DEFAULT VALUE"));
    }
    let lacks: Vec<&String> = new.iter().map(|column| &column.name).collect();
    format!(
        "declare what brings its rows into today's shape, such as\n[[tables.{:?}.migrations]]\nname = \"NAME\"\n\
         has_columns = {has:?}\nlacks_columns = {lacks:?}\nsql = {sql:?}\nand plan again; or ",
        then.name
    )
}

/// Applies what the staged rows of a store need.
pub(super) async fn migrate(shard: &Shard, work: &StoreWork) -> Result<Option<Migrated>, DriverError> {
    if !work.tables.iter().any(|table| applying(shard, &table.def).is_some()) {
        return Ok(None);
    }
    let session = shard.session().await?;
    let failed = |error: Error| shard.error(&format!("migrate {}", work.store), &error);
    let staged = stage::existing(shard, &session, work).await?;
    let catalog = Catalog::read(&session).await.map_err(failed)?;
    let begin = format!(
        "BEGIN; SET LOCAL statement_timeout = '{STATEMENT_LIMIT}'; SET LOCAL lock_timeout = '10s'; \
             SET LOCAL idle_in_transaction_session_timeout = '{IDLE_LIMIT}'"
    );
    session.batch_execute(&begin).await.map_err(failed)?;
    check_epoch(shard, &session, work).await?;
    let mut migrated = Migrated::default();
    let mut own = Vec::new();
    for table in work.tables.iter() {
        let Some(migrations) = applying(shard, &table.def) else { continue };
        let Some(now) = catalog.tables.get(&table.def.name) else { continue };
        let name = own_name(work, &table.def);
        let migration = Table { shard, client: &session, work, captured: table, then: &table.def, name };
        migration.copy(&staged).await.map_err(failed)?;
        migration.check_whole(&staged).await?;
        let def = migration.apply(&migrations, &mut migrated.applied).await?;
        migration.check(&def, now)?;
        let digest = migration.digest(&def, &staged).await?;
        migrated.tables.insert(table.def.name.clone(), MigratedTable { def, digest });
        own.push(table_name(&work.run, &migrated.tables[&table.def.name].def));
    }
    check_others(shard, &session, work, &own).await?;
    session.batch_execute("COMMIT").await.map_err(failed)?;
    session.keep();
    Ok(Some(migrated))
}

/// The shape of a table under its own name for this store: statements tell definitions apart, and with them the names of
/// staging tables.
fn own_def(work: &StoreWork, def: &TableDef, columns: Vec<ColumnDef>) -> TableDef {
    let create_sql = vec![format!("-- rows of {} after its migrations", work.store)];
    let TableDef { name, key, .. } = def.clone();
    TableDef { name, columns, key, unique: Vec::new(), foreign_keys: Vec::new(), create_sql }
}

/// Where the rows lie while they are migrated.
fn own_name(work: &StoreWork, def: &TableDef) -> String {
    table_name(&work.run, &own_def(work, def, Vec::new()))
}

struct Table<'a> {
    shard: &'a Shard,
    client: &'a Client,
    work: &'a StoreWork,
    captured: &'a CapturedTable,
    then: &'a TableDef,
    name: String,
}

impl Table<'_> {
    /// Copies the store's staged rows.
    async fn copy(&self, staged: &Staged) -> Result<(), Error> {
        let Self { name, work, then, .. } = self;
        let columns = column_list("s", then.stored_columns().map(|column| column.name.as_str()));
        let comma = if columns.is_empty() { "" } else { ", " };
        let (from, rows) = (table_name(&work.run, then), of_attempt(staged.attempt));
        // Rows that a statement adds belong to the store as well.
        let sql = format!(
            "SELECT pg_advisory_xact_lock(hashtextextended({lock}, 0)); DROP TABLE IF EXISTS {name}; \
             CREATE UNLOGGED TABLE {name} AS SELECT s.{ATTEMPT}{comma}{columns} FROM {from} s WHERE {rows}; \
             ALTER TABLE {name} ALTER {ATTEMPT} SET DEFAULT {attempt}, ALTER {ATTEMPT} SET NOT NULL",
            attempt = staged.attempt,
            // The names are this store's alone: migrations of others need not wait.
            lock = literal(name),
        );
        self.client.batch_execute(&sql).await
    }

    /// A crash of the server since the rows were proven has emptied what they were staged in.
    async fn check_whole(&self, staged: &Staged) -> Result<(), DriverError> {
        let table = &self.then.name;
        let (wanted, found) = (staged.rows.get(table).copied().unwrap_or(0), self.rows().await?);
        if found == wanted {
            return Ok(());
        }
        let what = format!("{found} of {wanted} staged rows of table `{table}` are there");
        Err(stage::lost(self.shard, self.work, &what))
    }

    /// Runs the statements; gives the shape that comes out.
    async fn apply(
        &self,
        migrations: &[Migration],
        applied: &mut Vec<AppliedMigration>,
    ) -> Result<TableDef, DriverError> {
        let mut def = own_def(self.work, self.then, self.columns().await?);
        for migration in migrations {
            if !migration.applies(&def) {
                continue;
            }
            let rows_before = self.rows().await?;
            for statement in &migration.sql {
                let sql = statement.replace(STAGED, &self.name);
                let done = self.client.execute(&sql, &[]).await;
                done.map_err(|error| match judge(error.code().map(|code| code.code())).0 {
                    ErrorClass::Permanent => self.refused(migration, statement, &sql_text(&error)),
                    _ => self.failed(&error),
                })?;
            }
            def = own_def(self.work, self.then, self.columns().await?);
            applied.push(AppliedMigration {
                table: self.then.name.clone(),
                name: migration.name.clone(),
                rows_before,
                rows_after: self.rows().await?,
            });
        }
        Ok(def)
    }

    fn refused(&self, migration: &Migration, statement: &str, reason: &str) -> DriverError {
        self.shard.permanent(
            format!(
                "migration `{}` of table `{}` failed on the rows of {}: {reason}, in `{statement}`",
                migration.name, self.then.name, self.work.store
            ),
            "nothing was changed; correct the migration in the topology, then plan the site again",
        )
    }

    async fn rows(&self) -> Result<u64, DriverError> {
        let sql = format!("SELECT count(*) FROM {}", self.name);
        let row = self.client.query_one(&sql, &[]).await.map_err(|error| self.failed(&error))?;
        Ok(row.get::<_, i64>(0).cast_unsigned())
    }

    async fn columns(&self) -> Result<Vec<ColumnDef>, DriverError> {
        let sql = "SELECT attname::text, format_type(atttypid, atttypmod), attnotnull, attgenerated <> '' \
            FROM pg_attribute WHERE attrelid = to_regclass($1::text) AND attnum > 0 AND NOT attisdropped ORDER BY attnum";
        let rows = self.client.query(sql, &[&self.name]).await.map_err(|error| self.failed(&error))?;
        let column = |row: &tokio_postgres::Row| ColumnDef {
            name: row.get(0),
            declared_type: row.get(1),
            not_null: row.get(2),
            default_sql: None,
            generated: row.get(3),
        };
        Ok(rows.iter().map(column).filter(|column| quote(&column.name) != ATTEMPT).collect())
    }

    /// The rows fit the live table, as restored rows that need no migration do.
    fn check(&self, def: &TableDef, now: &LiveTable) -> Result<(), DriverError> {
        let migrated = CapturedTable { def: def.clone(), ..self.captured.clone() };
        let found = compare(self.shard.tables(), &migrated, Some(now));
        if found.obstacles.is_empty() {
            return Ok(());
        }
        Err(self.shard.permanent(
            format!(
                "{} does not fit the live table after the migrations of `{}`: {}",
                self.work.store,
                def.name,
                found.obstacles.join("; ")
            ),
            "complete the migration in the topology, then plan the site again",
        ))
    }

    /// Gives the rows to the publish, which finds them by their shape.
    async fn digest(&self, def: &TableDef, staged: &Staged) -> Result<TableDigest, DriverError> {
        let name = table_name(&self.work.run, def);
        let bare = |name: &str| name.trim_start_matches("muster.").to_owned();
        let index = format!("{}_attempt", bare(&name));
        let sql = format!(
            "DROP TABLE IF EXISTS {name}; ALTER TABLE {} RENAME TO {new}; CREATE INDEX {index} ON {name} ({ATTEMPT}); \
             INSERT INTO muster.staging (run, name, tbl) VALUES ({run}, {text}, {table}) ON CONFLICT DO NOTHING",
            self.name,
            new = bare(&name),
            run = literal(self.work.run.as_str()),
            text = literal(&bare(&name)),
            table = literal(&def.name),
        );
        self.client.batch_execute(&sql).await.map_err(|error| self.failed(&error))?;
        let columns = column_list("s", def.stored_columns().map(|column| column.name.as_str()));
        let select = format!("SELECT {columns} FROM {name} s WHERE {}", of_attempt(staged.attempt));
        let doing = format!("read back what was migrated of {}", self.work.store);
        copy::digest(self.shard, self.client, &doing, &def.name, &select).await
    }

    fn failed(&self, error: &Error) -> DriverError {
        self.shard.error(&format!("migrate rows of table `{}` of {}", self.then.name, self.work.store), error)
    }
}

/// Fails when the transaction wrote to anything but the rows' own tables: a writer's lock stays until its end.
async fn check_others(
    shard: &Shard,
    client: &Client,
    work: &StoreWork,
    own: &[String],
) -> Result<(), DriverError> {
    let sql = "SELECT c.oid::regclass::text FROM pg_locks l JOIN pg_class c ON c.oid = l.relation \
        JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_index i ON i.indexrelid = c.oid \
        WHERE l.pid = pg_backend_pid() AND l.locktype = 'relation' \
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
        AND l.mode NOT IN ('AccessShareLock', 'RowShareLock') \
        AND n.nspname NOT IN ('pg_catalog', 'pg_toast', 'information_schema') \
        AND coalesce(i.indrelid, c.oid) NOT IN (SELECT to_regclass(own)::oid FROM unnest($1::text[]) own \
        WHERE to_regclass(own) IS NOT NULL) ORDER BY 1 LIMIT 1";
    let own: Vec<&str> = own.iter().map(String::as_str).chain(["muster.staging"]).collect();
    let found = client.query_opt(sql, &[&own]).await;
    let found = found.map_err(|error| shard.error("look at what a migration wrote to", &error))?;
    let Some(row) = found else { return Ok(()) };
    Err(shard.permanent(
        format!(
            "the migrations of {} wrote to `{}`, or locked it; they were undone",
            work.store,
            row.get::<_, &str>(0)
        ),
        "let them write to {staged} only, then plan the site again",
    ))
}

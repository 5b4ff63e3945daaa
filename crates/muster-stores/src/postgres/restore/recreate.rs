//! Tables of a site's own that are gone are created again, inside the publish transaction.
//!
//! Schema, sequences and tables first, then the rows, then keys, checks and indexes, then foreign keys, then owner and
//! privileges: as capture recorded them at the recovery point.
//!
//! # Invariants
//! - Only tables of [`Owner::Site`] are created: nothing of tables that neighbours share is changed. A foreign key to
//!   such a table is made last, since writers to that table wait from then on until the commit.
//! - Until the commit nobody sees any of it, and a publish that fails leaves nothing behind.
//! - Two publishes into one schema take turns: `CREATE SCHEMA IF NOT EXISTS` alone fails where two come together.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use muster_engine::driver::{DriverError, ErrorClass, StoreWork};
use muster_types::plan::CREATED_AGAIN;
use muster_types::table::{CapturedTable, Owner, TableDef};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use super::live::TABLE_LOCK_WAIT;
use super::owner::column_list;
use super::shard::{Catalog, Shard};
use crate::comparison::Comparison;
use crate::postgres::schema::{Phase, literal, quote};

/// Tables of a work that are created again.
pub(super) struct Recreation<'a> {
    gone: Vec<&'a CapturedTable>,
    /// Schemas that were not there.
    made: BTreeSet<&'a str>,
    /// All tables of the work are created.
    whole: bool,
}

/// What a table that is gone means for restored rows.
pub(super) fn comparison(table: &CapturedTable) -> Comparison {
    let name = &table.def.name;
    if !is_own(table) {
        return Comparison::gone(name);
    }
    let note = format!(
        "{CREATED_AGAIN}table `{name}` is gone: the publish makes it as it was at the recovery point"
    );
    Comparison { notes: vec![note], ..Comparison::default() }
}

/// The statements that give the role what it lacks to create the tables that are gone; none if it lacks nothing.
pub(super) async fn missing(
    client: &Client,
    catalog: &Catalog,
    tables: &[CapturedTable],
) -> Result<Option<String>, Error> {
    let gone = gone(catalog, tables);
    let mut statements = Vec::new();
    for schema in schemas(&gone) {
        let row = client
            .query_one(
                "SELECT CASE WHEN to_regnamespace(quote_ident($1)) IS NULL \
                 THEN has_database_privilege(current_database(), 'CREATE') \
                 ELSE has_schema_privilege($1, 'CREATE') END, \
                 to_regnamespace(quote_ident($1)) IS NULL, current_database()::text, current_user::text",
                &[&schema],
            )
            .await?;
        let (database, user): (&str, &str) = (row.get(2), row.get(3));
        match (row.get(0), row.get(1)) {
            (true, _) => {}
            (false, true) => {
                statements.push(format!("GRANT CREATE ON DATABASE {} TO {}", quote(database), quote(user)));
            }
            (false, false) => {
                statements.push(format!("GRANT CREATE ON SCHEMA {} TO {}", quote(schema), quote(user)));
            }
        }
    }
    Ok((!statements.is_empty())
        .then(|| format!("its role may not create tables that are gone: {}", statements.join("; "))))
}

fn is_own(table: &CapturedTable) -> bool {
    matches!(table.owner, Owner::Site { .. })
}

fn gone<'a>(catalog: &Catalog, tables: &'a [CapturedTable]) -> Vec<&'a CapturedTable> {
    let there = |table: &CapturedTable| catalog.tables.contains_key(&table.def.name);
    tables.iter().filter(|table| is_own(table) && !there(table)).collect()
}

fn schemas<'a>(tables: &[&'a CapturedTable]) -> BTreeSet<&'a str> {
    tables.iter().map(|table| schema_of(table)).collect()
}

/// Schema and name of a table by its topology name; a schema with a dot in its name is no site's.
fn parts(name: &str) -> (&str, &str) {
    name.split_once('.').unwrap_or(("public", name))
}

fn schema_of(table: &CapturedTable) -> &str {
    parts(&table.def.name).0
}

impl<'a> Recreation<'a> {
    /// Of what `catalog` does not have.
    pub(super) fn of(catalog: &Catalog, work: &'a StoreWork) -> Self {
        let gone = gone(catalog, &work.tables);
        let owned = work.tables.iter().filter(|table| table.owner != Owner::Reference).count();
        let whole = !gone.is_empty() && gone.len() == owned;
        Self { gone, made: BTreeSet::new(), whole }
    }

    /// Creates the tables, without keys and indexes; gives the definitions as the transaction then sees them.
    pub(super) async fn begin(
        &mut self,
        shard: &Shard,
        client: &Client,
        work: &StoreWork,
        catalog: Arc<Catalog>,
    ) -> Result<Arc<Catalog>, DriverError> {
        if self.gone.is_empty() {
            return Ok(catalog);
        }
        let failed = |error: Error| failed(shard, work, "create its tables again", &error);
        for schema in schemas(&self.gone) {
            let turn = format!("muster schema {schema}");
            let took =
                client.query_one("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", &[&turn]).await;
            took.map_err(failed)?;
            self.create_schema(client, schema).await.map_err(failed)?;
        }
        self.check_gone(shard, client, work).await?;
        // Bodies may name tables that come later.
        client.batch_execute("SET LOCAL check_function_bodies = off").await.map_err(failed)?;
        if self.whole {
            // Nobody waits for tables that nobody sees: the bound counts from the foreign keys on.
            client.batch_execute("SET LOCAL statement_timeout = 0").await.map_err(failed)?;
        }
        self.run(client, Phase::Before).await.map_err(failed)?;
        let made = self.oids(client).await.map_err(failed)?;
        Ok(Arc::new(catalog.with(client, &made).await.map_err(failed)?))
    }

    async fn create_schema(&mut self, client: &Client, schema: &'a str) -> Result<(), Error> {
        let there = "SELECT to_regnamespace(quote_ident($1)) IS NOT NULL";
        if !client.query_one(there, &[&schema]).await?.get::<_, bool>(0) {
            client.batch_execute(&format!("CREATE SCHEMA {}", quote(schema))).await?;
            self.made.insert(schema);
        }
        Ok(())
    }

    /// Owner of and privileges on the schemas that were made, each once.
    async fn hand_schemas_over(&self, client: &Client) -> Result<(), Error> {
        let mut done = BTreeSet::new();
        for table in self.gone.iter().filter(|table| self.made.contains(schema_of(table))) {
            for statement in table.def.create_sql.iter().filter(|sql| Phase::of(sql) == Phase::Schema) {
                if done.insert(statement) {
                    client.batch_execute(statement).await?;
                }
            }
        }
        Ok(())
    }

    /// Fails where a table came meanwhile.
    async fn check_gone(&self, shard: &Shard, client: &Client, work: &StoreWork) -> Result<(), DriverError> {
        let found = self.oids(client).await.map_err(|error| shard.error("read its definitions", &error))?;
        if found.is_empty() {
            return Ok(());
        }
        shard.catalog(client).await?;
        Err(shard
            .transient(format!("a table of {} was made meanwhile", work.store), "the step is tried again"))
    }

    /// Of those that are there now.
    async fn oids(&self, client: &Client) -> Result<Vec<u32>, Error> {
        let (schemas, names): (Vec<&str>, Vec<&str>) =
            self.gone.iter().map(|table| parts(&table.def.name)).unzip();
        let sql = "SELECT c.oid FROM unnest($1::text[], $2::text[]) w(schema, name) \
            JOIN pg_namespace n ON n.nspname = w.schema \
            JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name";
        Ok(client.query(sql, &[&schemas, &names]).await?.iter().map(|row| row.get(0)).collect())
    }

    /// The columns of staged rows as the created table has them: one whose type was gone, too, was staged as text.
    pub(super) fn column_list(&self, def: &TableDef) -> String {
        if !self.gone.iter().any(|table| table.def.name == def.name) {
            return column_list("s", def.stored_columns().map(|column| column.name.as_str()));
        }
        let cast =
            def.stored_columns().map(|column| format!("s.{}::{}", quote(&column.name), column.declared_type));
        cast.collect::<Vec<_>>().join(", ")
    }

    /// Whether all tables of the work are created: until [`Self::bind`] nobody waits for anything.
    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }

    /// What created tables need beside their rows, as far as it concerns nobody else: keys, checks and indexes.
    pub(super) async fn index(
        &self,
        shard: &Shard,
        client: &Client,
        work: &StoreWork,
    ) -> Result<(), DriverError> {
        let doing = "give its tables their keys and indexes again";
        let unmade = |error: Error| failed(shard, work, doing, &error);
        self.run(client, Phase::Loaded).await.map_err(unmade)
    }

    /// The rest: foreign keys, owner, privileges and triggers. Where all tables are created, gives the moment from which on
    /// others may have to wait.
    pub(super) async fn bind(
        &self,
        shard: &Shard,
        client: &Client,
        work: &StoreWork,
    ) -> Result<Option<Instant>, DriverError> {
        if self.gone.is_empty() {
            return Ok(None);
        }
        let doing = "limit the waits for its foreign keys";
        let unmade = |error: Error| failed(shard, work, doing, &error);
        let since = self.whole.then(Instant::now);
        // Writers to a table that is referred to queue behind this lock.
        let wait = format!(
            "SET LOCAL lock_timeout = {}; SET LOCAL statement_timeout = {}",
            TABLE_LOCK_WAIT.as_millis(),
            work.writer_block_milliseconds_max.unwrap_or(0)
        );
        client.batch_execute(&wait).await.map_err(unmade)?;
        self.run(client, Phase::Foreign).await.map_err(|error| Self::no_foreign_key(shard, work, &error))?;
        let doing = "give its tables their owner, privileges and triggers again";
        let unfinished = |error: Error| failed(shard, work, doing, &error);
        self.run(client, Phase::Last).await.map_err(unfinished)?;
        self.hand_schemas_over(client).await.map_err(unfinished)?;
        Ok(since)
    }

    async fn run(&self, client: &Client, phase: Phase) -> Result<(), Error> {
        for table in &self.gone {
            for statement in table.def.create_sql.iter().filter(|sql| Phase::of(sql) == phase) {
                client.batch_execute(statement).await?;
            }
        }
        Ok(())
    }

    fn no_foreign_key(shard: &Shard, work: &StoreWork, error: &Error) -> DriverError {
        let mut failed = failed(shard, work, "make its foreign keys again", error);
        match error.code() {
            Some(code) if *code == SqlState::LOCK_NOT_AVAILABLE => {
                failed.hint = "a foreign key leads to a table outside of the site's schema, which is locked against \
                    writers until the publish commits, and is in use: the step is tried again; end long transactions \
                    there if this stays"
                    .into();
            }
            Some(code) if [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME].contains(code) => {
                failed.class = ErrorClass::Permanent;
                failed.hint =
                    "restore the store that holds that table first: name its kind in `after` of this one's \
                    in the topology"
                        .into();
            }
            Some(code) if *code == SqlState::FOREIGN_KEY_VIOLATION => {
                failed.hint =
                    "restore the store that holds the missing row first, or to the same moment".into();
            }
            _ => {}
        }
        failed
    }
}

fn failed(shard: &Shard, work: &StoreWork, doing: &str, error: &Error) -> DriverError {
    let mut failed = shard.error(&format!("publish {}: {doing}", work.store), error);
    match error.code() {
        Some(_) if was_made_meanwhile(error) => {
            failed.class = ErrorClass::Transient;
            failed.hint = "another transaction made it meanwhile; the step is tried again".into();
        }
        Some(code) if *code == SqlState::UNDEFINED_OBJECT => {
            failed.hint = "make that role or type again, then resume the run".into();
        }
        _ => {}
    }
    failed
}

/// Whether the object is there already: stores may share schemas, types and functions, and two that make one at once meet
/// in its catalog's unique key, or find it there.
fn was_made_meanwhile(error: &Error) -> bool {
    let Some(answer) = error.as_db_error() else { return false };
    let duplicate = [
        SqlState::DUPLICATE_TABLE,
        SqlState::DUPLICATE_OBJECT,
        SqlState::DUPLICATE_FUNCTION,
        SqlState::DUPLICATE_SCHEMA,
    ];
    let in_catalog = || answer.schema() == Some("pg_catalog");
    duplicate.contains(answer.code()) || *answer.code() == SqlState::UNIQUE_VIOLATION && in_catalog()
}

/// The type of a staged column: that of the definition, or text where it is gone with the site's schema.
pub(super) async fn staged_type(client: &Client, declared: &str) -> Result<String, Error> {
    let there = format!("SELECT to_regtype({}) IS NOT NULL", literal(declared));
    Ok(match client.query_one(&there, &[]).await?.get(0) {
        true => declared.to_owned(),
        false => "text".to_owned(),
    })
}

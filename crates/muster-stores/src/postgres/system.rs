//! The tables that Muster keeps in a shard, all in schema `muster`: names, definitions, and the SQL that both sides
//! share. What is capture's alone it creates itself in the same schema.
//!
//! | table | what |
//! |---|---|
//! | `muster.epoch` | the engine's generation by run |
//! | `muster.claim` | stores held by an open run |
//! | `muster.published` | what runs have published, one row for each run and store |
//! | `muster.replaced` | rows replaced under overwrite, column by column as text |
//! | `muster.staging` | staging tables by run; each is unlogged and named `muster.stage_…` |
//! | `muster.staged` | what lies in staging tables: logged, so that a loss of these is noticed |
//!
//! # Invariants
//! - Nothing of schema `muster` is in a publication.
//! - The last position of a publish is not in its record, since that is written before the commit: whoever reads it
//!   takes the end of the log at that moment.

use tokio_postgres::GenericClient;

/// The schema.
pub const SCHEMA: &str = "muster";

/// Prefix of the message that a publish transaction begins with; its content is the JSON of
/// [`Mark`](muster_types::segment::Mark).
pub const MARK_PREFIX: &str = "muster.mark";

/// Key of the advisory lock under which Muster creates and drops its own tables.
pub const DDL_LOCK: i64 = 0x6d75_7374_6572;

const RUN_TABLES: &str = "\
CREATE SCHEMA IF NOT EXISTS muster;
CREATE TABLE IF NOT EXISTS muster.epoch (run text PRIMARY KEY, epoch bigint NOT NULL);
CREATE TABLE IF NOT EXISTS muster.claim (
    site text, kind text, run text NOT NULL, epoch bigint NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (site, kind));
CREATE TABLE IF NOT EXISTS muster.published (
    run text, site text, kind text, epoch bigint NOT NULL, rows bigint NOT NULL, replaced bigint NOT NULL,
    first_lsn pg_lsn, blocked_us bigint NOT NULL, at timestamptz NOT NULL, PRIMARY KEY (run, site, kind));
CREATE TABLE IF NOT EXISTS muster.replaced (
    run text NOT NULL, site text NOT NULL, kind text NOT NULL, tbl text NOT NULL, columns text[] NOT NULL,
    fields text[] NOT NULL);
CREATE INDEX IF NOT EXISTS replaced_store ON muster.replaced (run, site, kind);
CREATE TABLE IF NOT EXISTS muster.staging (run text, name text, tbl text NOT NULL, PRIMARY KEY (run, name));
CREATE SEQUENCE IF NOT EXISTS muster.attempt;
CREATE TABLE IF NOT EXISTS muster.staged (
    run text, site text, kind text, epoch bigint NOT NULL, attempt bigint NOT NULL, rows jsonb NOT NULL,
    PRIMARY KEY (run, site, kind));
";

/// Creates the runs' tables where they are not there. Repeatable; in a transaction of its own.
///
/// # Errors
/// Those of the connection; without the right to create, that of the server.
pub async fn ensure_run_tables(client: &impl GenericClient) -> Result<(), tokio_postgres::Error> {
    let there = client.query_one("SELECT to_regclass('muster.staged') IS NOT NULL", &[]).await?;
    if there.get(0) {
        return Ok(());
    }
    // Both sides may come at once, and IF NOT EXISTS does not bear that.
    let sql = format!("BEGIN; SELECT pg_advisory_xact_lock({DDL_LOCK}); {RUN_TABLES} COMMIT;");
    let created = client.batch_execute(&sql).await;
    if created.is_err() {
        // A connection that is gone has no transaction either.
        let _ = client.batch_execute("ROLLBACK").await;
    }
    created
}

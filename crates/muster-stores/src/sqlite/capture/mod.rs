//! The capture side of a SQLite shard.
//!
//! [`SqliteSource`] installs triggers that write every change of a declared table into the shard's own change table, in
//! the writer's transaction, whichever process writes; polls that table in read transactions; and removes from it what
//! the repository holds.
//!
//! # Invariants
//! - A poll is one read transaction: its boundary is a state that the shard really had. Its stamp is read after the
//!   transaction's snapshot was taken and is not before the newest change in it, so "at or before" never includes a
//!   later write.
//! - Within that transaction tables and triggers are compared with those that capture knows. Where they differ the poll
//!   is given up, the triggers are made anew, and the tables in question are delivered whole by the next one.
//! - Rows whose tenant value is no valid site id belong to nobody: they are captured, without a site.
//! - Triggers never name another table of the application, and so never stand in the way of a schema change, with one
//!   exception: SQLite refuses `ALTER TABLE … DROP COLUMN` of a column that a trigger names; run `muster capture remove`
//!   before it and `muster capture init` after it.
//!
//! # Errors
//! [`CaptureError`](crate::capture::CaptureError): transient where the file is busy or a disk full, else with what the operator has to do.
//!
//! # Not here
//! Where the changes go (`muster-capture`), and how rows come back (the restore side).

mod acknowledge;
mod beside;
pub(crate) mod changes;
mod check;
mod error;
mod evict;
mod install;
mod layout;
mod moves;
mod owner_map;
mod rows;
mod source;
mod triggers;

pub use source::SqliteSource;

use std::collections::BTreeMap;

use muster_types::topology::TableConfig;
use rusqlite::Connection;

pub(crate) use layout::Layout;

/// Puts capture's tables and triggers into a shard that was just given its tables; why a table cannot be captured, if one
/// cannot. In the caller's write transaction.
///
/// # Errors
/// Those of rusqlite.
pub(crate) fn install(
    conn: &Connection,
    declared: &BTreeMap<String, TableConfig>,
) -> rusqlite::Result<Option<String>> {
    let findings = install::install(conn, declared)?;
    Ok(findings.refused.first().map(|(table, reason)| format!("table `{table}`: {reason}")))
}

/// The captured tables of a shard as they are now, for readers of the change table. Tables that capture has not yet
/// noticed are among them; they have no changes.
///
/// # Errors
/// Those of rusqlite.
pub(crate) fn layout(
    conn: &Connection,
    declared: &BTreeMap<String, TableConfig>,
) -> rusqlite::Result<Layout> {
    Ok(check::check(conn, declared)?.layout)
}

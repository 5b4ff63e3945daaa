//! Puts capture into shards, and takes it away.

use std::collections::BTreeSet;
use std::time::Duration;

use muster_stores::capture::{CaptureError, CaptureSource, Installed};
use muster_stores::postgres::{self, PostgresSource};
use muster_stores::sqlite::capture::SqliteSource;
use muster_stores::sqlite::live_definitions;
use muster_types::ShardName;
use muster_types::table::TableDef;
use muster_types::topology::{DriverConfig, Topology};

use crate::error::CaptureFailure;
use crate::servers;

/// What was done to one shard.
#[derive(Clone, Debug)]
pub struct ShardInstalled<T> {
    /// The shard.
    pub shard: ShardName,
    /// What came of it.
    pub result: Result<T, CaptureFailure>,
}

/// Installs and removes capture in the shards of a topology.
pub struct Installer<'t> {
    topology: &'t Topology,
    shards: Vec<ShardName>,
}

impl<'t> Installer<'t> {
    /// For these shards, or all.
    pub fn new(topology: &'t Topology, shards: Option<&BTreeSet<ShardName>>) -> Self {
        let wanted = |name: &&ShardName| shards.is_none_or(|shards| shards.contains(*name));
        Self { topology, shards: topology.shards.keys().filter(wanted).cloned().collect() }
    }

    /// Checks the shards' tables against the topology, then installs what records changes. Repeatable. Blocks.
    pub fn init(&self) -> Vec<ShardInstalled<Installed>> {
        let too_many = servers::check_slots(self.topology);
        self.each(|shard| {
            if let Some((_, error)) = too_many.iter().find(|(shards, _)| shards.contains(shard)) {
                return Err(error.clone());
            }
            self.check(shard)?;
            source(self.topology, shard).init()
        })
    }

    /// Takes away everything that capture and runs put into the shards. Blocks.
    pub fn remove(&self) -> Vec<ShardInstalled<()>> {
        self.each(|shard| source(self.topology, shard).remove())
    }

    fn each<T>(&self, work: impl Fn(&ShardName) -> Result<T, CaptureError>) -> Vec<ShardInstalled<T>> {
        let one = |shard: &ShardName| {
            let failure = |error| CaptureFailure::Shard { shard: shard.clone(), error };
            ShardInstalled { shard: shard.clone(), result: work(shard).map_err(failure) }
        };
        self.shards.iter().map(one).collect()
    }

    fn check(&self, shard: &ShardName) -> Result<(), CaptureError> {
        let live = live_tables(&self.topology.shards[shard].driver)?;
        let problems = self.topology.check_shard(shard, &live);
        if problems.is_empty() {
            return Ok(());
        }
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        Err(CaptureError::new(
            format!("its tables and the topology disagree:\n{}", lines.join("\n")),
            "correct the topology, then run `muster capture init` again",
        ))
    }
}

/// The tables that a shard really has, without Muster's own. Blocks.
///
/// # Errors
/// [`CaptureError`] when the shard cannot be read.
pub fn live_tables(driver: &DriverConfig) -> Result<Vec<TableDef>, CaptureError> {
    match driver {
        DriverConfig::Sqlite { path } => live_definitions(path).map_err(|error| {
            CaptureError::new(
                format!("cannot read the tables of `{}`: {error}", path.display()),
                "check the shard's path in the topology, and that it is a SQLite file",
            )
        }),
        DriverConfig::Postgres { connection } => postgres::live_tables(connection),
    }
}

/// What an operator should know of a shard before it is captured, or restored into: problems, each with the way out, and
/// notes. Blocks; reads only.
///
/// # Errors
/// [`CaptureError`] when the shard cannot be reached.
pub fn check_shard(
    topology: &Topology,
    shard: &ShardName,
) -> Result<(Vec<String>, Vec<String>), CaptureError> {
    match &topology.shards[shard].driver {
        // A file takes whatever its process may write.
        DriverConfig::Sqlite { .. } => Ok((Vec::new(), Vec::new())),
        DriverConfig::Postgres { connection } => {
            let found = postgres::check(shard, connection, &topology.declared(shard))?;
            Ok((found.problems, found.notes))
        }
    }
}

/// The capture side of a shard of the topology.
pub(crate) fn source(topology: &Topology, shard: &ShardName) -> Box<dyn CaptureSource> {
    let limit = Duration::from_secs(topology.capture.snapshot_seconds_max);
    let (tables, declared) = (topology.shard_tables(shard), topology.declared(shard));
    match &topology.shards[shard].driver {
        DriverConfig::Sqlite { path } => Box::new(SqliteSource::new(path, tables).with_snapshot_max(limit)),
        DriverConfig::Postgres { connection } => {
            let source = PostgresSource::new(shard.clone(), connection, declared).with_snapshot_max(limit);
            Box::new(source.with_wal_bytes_max(topology.capture.wal_bytes_max))
        }
    }
}

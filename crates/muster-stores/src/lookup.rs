//! Live rows of a shared table by a key: what ids that someone hands over name now.

use muster_engine::driver::DriverError;
use muster_types::ShardName;
use muster_types::topology::{DriverConfig, Topology};

use crate::postgres::PostgresDriver;
use crate::sqlite::restore::SqliteDriver;

/// Rows to look for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// A declared table of all sites.
    pub table: String,
    /// The column that is looked in; compared as text.
    pub key: String,
    /// What to look for.
    pub values: Vec<String>,
    /// The columns wanted, in order.
    pub columns: Vec<String>,
}

/// A row that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundRow {
    /// What its key column holds.
    pub key: String,
    /// The columns wanted, as text; none where it is NULL.
    pub values: Vec<Option<String>>,
}

/// The rows of one shard, in no particular order; none where the shard has no such table. Reads only.
///
/// The key is compared as text, so that ids of whatever form can be asked for: a key of another type is looked for by a scan.
///
/// # Errors
/// The shard cannot be reached or read, or has no such column.
pub async fn find(
    topology: &Topology,
    shard: &ShardName,
    lookup: &Lookup,
) -> Result<Vec<FoundRow>, DriverError> {
    match &topology.shards[shard].driver {
        DriverConfig::Sqlite { path } => {
            SqliteDriver::new(shard.clone(), path.clone(), topology.shard_tables(shard)).find(lookup).await
        }
        DriverConfig::Postgres { connection } => {
            PostgresDriver::new(shard.clone(), connection, topology.declared(shard)).find(lookup).await
        }
    }
}

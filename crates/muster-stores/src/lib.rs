//! Store drivers: each has a capture and a restore side. [`lookup`] finds live rows by a key; [`sandbox`]: shards that drills
//! make.

pub mod capture;
mod comparison;
pub mod lookup;
pub mod postgres;
pub mod sandbox;
pub mod sqlite;

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_engine::driver::StoreDriver;
use muster_types::ShardName;
use muster_types::topology::{DriverConfig, Topology};

/// The restore side of every shard of a topology.
pub fn drivers(topology: &Topology) -> BTreeMap<ShardName, Arc<dyn StoreDriver>> {
    topology.shards.keys().map(|shard| (shard.clone(), driver(topology, shard))).collect()
}

fn driver(topology: &Topology, shard: &ShardName) -> Arc<dyn StoreDriver> {
    let (tables, declared) = (topology.shard_tables(shard), topology.declared(shard));
    match &topology.shards[shard].driver {
        DriverConfig::Sqlite { path } => {
            Arc::new(sqlite::restore::SqliteDriver::new(shard.clone(), path.clone(), tables))
        }
        DriverConfig::Postgres { connection } => {
            Arc::new(postgres::PostgresDriver::new(shard.clone(), connection, declared))
        }
    }
}

//! Shards that drills make and remove, in declared sandboxes.
//!
//! - [`Sandbox`]: one declared sandbox: makes, lists and removes.
//! - [`SandboxDrivers`]: the restore side of made shards, and of no others.
//!
//! # Invariants
//! - [`SandboxDrivers`] are made from [`SandboxShard`]s alone, and those from `[sandbox.NAME]` sections alone.
//! - What is made is new: a file or database that is there already is never opened.
//! - Only what begins with [`MADE_PREFIX`] is removed, and a sandbox in which anything
//!   alive begins so is refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_engine::Drivers;
use muster_engine::driver::StoreDriver;
use muster_types::topology::{MADE_PREFIX, SandboxConfig, SandboxPlace, SandboxShard, Topology};
use muster_types::{DrillId, ShardName};

use crate::postgres::connect::PostgresConfig;
use crate::{postgres, sqlite};

/// Why a sandbox cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SandboxError {
    /// It is, or holds, what is alive.
    #[error("sandbox `{sandbox}` is refused: {reason}; name a place for it in which nothing is alive")]
    Live {
        /// Its name.
        sandbox: String,
        /// What was found.
        reason: String,
    },
    /// It cannot be reached or written.
    #[error("sandbox `{sandbox}`: {message}")]
    Failed {
        /// Its name.
        sandbox: String,
        /// What failed, and the way out.
        message: String,
    },
}

/// Keeps the things of a drill from being taken for left behind; dropped with the process that holds it, however that ends.
pub struct Hold {
    _held: Held,
}

enum Held {
    File { _file: std::fs::File },
    Session { _client: tokio_postgres::Client },
}

/// A declared sandbox.
pub struct Sandbox {
    name: String,
    place: Place,
}

enum Place {
    Sqlite(sqlite::Folder),
    Postgres(Box<postgres::Server>),
}

impl Sandbox {
    /// The sandbox of that name, checked not to be, nor to hold, anything that is alive.
    ///
    /// # Errors
    /// [`SandboxError`]; [`SandboxError::Failed`] where there is no such section.
    pub fn open(topology: &Topology, name: &str) -> Result<Self, SandboxError> {
        let failed = |message: String| SandboxError::Failed { sandbox: name.to_owned(), message };
        let SandboxConfig { place, .. } = topology
            .sandboxes
            .get(name)
            .ok_or_else(|| failed("the topology declares no such sandbox; add [sandbox.NAME]".to_owned()))?;
        let live = match place {
            SandboxPlace::Sqlite { dir } => sqlite::is_live(topology, dir),
            SandboxPlace::Postgres { connection } => postgres::is_live(topology, connection),
        };
        if let Some(reason) = live.map_err(failed)? {
            return Err(SandboxError::Live { sandbox: name.to_owned(), reason });
        }
        let place = match place {
            SandboxPlace::Sqlite { dir } => Place::Sqlite(sqlite::Folder::new(dir)),
            SandboxPlace::Postgres { connection } => {
                Place::Postgres(Box::new(postgres::Server::new(connection).map_err(failed)?))
            }
        };
        Ok(Self { name: name.to_owned(), place })
    }

    /// Marks what this process makes for a drill as in use; none while another process holds it.
    ///
    /// # Errors
    /// [`SandboxError::Failed`].
    pub async fn hold(&self, drill: &DrillId) -> Result<Option<Hold>, SandboxError> {
        let held = match &self.place {
            Place::Sqlite(folder) => folder.hold(drill).map(|held| held.map(|_file| Held::File { _file })),
            Place::Postgres(server) => {
                server.hold(drill).await.map(|held| held.map(|_client| Held::Session { _client }))
            }
        };
        Ok(held.map_err(|message| self.failed(message))?.map(|_held| Hold { _held }))
    }

    /// Makes the place of a shard, empty.
    ///
    /// # Errors
    /// [`SandboxError::Failed`], also where there is something of that name.
    pub async fn make(&self, shard: &SandboxShard) -> Result<(), SandboxError> {
        let made = match &self.place {
            Place::Sqlite(folder) => folder.make(shard.name().as_str()),
            Place::Postgres(server) => server.make(shard.name().as_str()).await,
        };
        made.map_err(|message| self.failed(message))
    }

    /// Names of everything that drills made here and that is there still.
    ///
    /// # Errors
    /// [`SandboxError::Failed`].
    pub async fn list(&self) -> Result<Vec<String>, SandboxError> {
        let listed = match &self.place {
            Place::Sqlite(folder) => folder.list(),
            Place::Postgres(server) => server.list().await,
        };
        listed.map_err(|message| self.failed(message))
    }

    /// Removes what a drill made, with all that belongs to it. What is not there is removed.
    ///
    /// # Errors
    /// [`SandboxError::Failed`], also for a name that no drill gives.
    pub async fn remove(&self, name: &str) -> Result<(), SandboxError> {
        if drill_of(name).is_none() {
            return Err(
                self.failed(format!("`{name}` is not named like what drills make; it was left alone"))
            );
        }
        let removed = match &self.place {
            Place::Sqlite(folder) => folder.remove(name),
            Place::Postgres(server) => server.remove(name).await,
        };
        removed.map_err(|message| self.failed(message))
    }

    fn failed(&self, message: String) -> SandboxError {
        SandboxError::Failed { sandbox: self.name.clone(), message }
    }
}

/// The drill that made what has this name.
pub fn drill_of(name: &str) -> Option<DrillId> {
    let rest = name.strip_prefix(MADE_PREFIX)?;
    DrillId::new(rest.split('_').next()?).ok()
}

/// The restore side of the shards that a drill made.
#[derive(Clone)]
pub struct SandboxDrivers(Drivers);

impl SandboxDrivers {
    /// Of these shards. `topology` is that of the drill, which declares them ([`Topology::for_drill`]).
    ///
    /// # Errors
    /// [`SandboxError::Failed`] for a connection that cannot be understood.
    pub fn open(topology: &Topology, shards: &[SandboxShard]) -> Result<Self, SandboxError> {
        let mut drivers: BTreeMap<ShardName, Arc<dyn StoreDriver>> = BTreeMap::new();
        for shard in shards {
            let name = shard.name().clone();
            let driver: Arc<dyn StoreDriver> = match shard.place() {
                SandboxPlace::Sqlite { dir } => {
                    let path = sqlite::Folder::new(dir).path(name.as_str());
                    let tables = topology.shard_tables(&name);
                    Arc::new(sqlite::restore::SqliteDriver::new(name.clone(), path, tables))
                }
                SandboxPlace::Postgres { connection } => {
                    let failed = |error: postgres::connect::ConnectError| SandboxError::Failed {
                        sandbox: shard.sandbox().to_owned(),
                        message: error.to_string(),
                    };
                    let config = PostgresConfig::parse(connection).map_err(failed)?;
                    let config = config.with_database(name.as_str());
                    Arc::new(postgres::PostgresDriver::at(name.clone(), config, topology.declared(&name)))
                }
            };
            drivers.insert(name, driver);
        }
        Ok(Self(drivers))
    }

    /// For an engine.
    pub fn to_engine(&self) -> Drivers {
        self.0.clone()
    }

    /// Of one shard.
    pub fn get(&self, shard: &ShardName) -> Option<&Arc<dyn StoreDriver>> {
        self.0.get(shard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_drills_give_are_theirs() {
        assert_eq!(drill_of("muster_drill_0a1b_0_eu_jira").unwrap().as_str(), "0a1b");
        assert_eq!(drill_of("muster_drill_"), None);
        assert_eq!(drill_of("production"), None);
        assert_eq!(drill_of("muster_dril"), None);
    }
}

//! One database: where it is, its declared tables, a few connections, and what is known of its definitions.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use muster_engine::driver::{DriverError, ErrorClass};
use muster_types::ShardName;
use muster_types::topology::Declared;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::Client;

use crate::postgres::connect::{ConnectError, PostgresConfig};
use crate::postgres::schema::{self, LiveTable};

/// Connections to one shard at once: above the pools of stage and publish slots that topologies declare, far below a
/// server's `max_connections`.
const CONNECTIONS_MAX: usize = 16;

/// See the module.
pub(super) struct Shard {
    name: ShardName,
    config: Result<PostgresConfig, ConnectError>,
    tables: Declared,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Client>>,
    known: Mutex<Option<Arc<Catalog>>>,
}

/// The tables of the database as they once were.
pub(super) struct Catalog {
    /// By topology name.
    pub(super) tables: BTreeMap<String, LiveTable>,
    /// Versions of sets of tables that these definitions are known to be of, by oids.
    pub(super) versions: BTreeMap<Vec<u32>, String>,
}

impl Catalog {
    /// Reads it whole.
    pub(super) async fn read(client: &Client) -> Result<Self, tokio_postgres::Error> {
        let tables = schema::read(client).await?;
        let tables = tables.into_iter().map(|table| (table.def.name.clone(), table)).collect();
        Ok(Self { tables, versions: BTreeMap::new() })
    }

    /// With the tables of these oids as they are now.
    pub(super) async fn with(&self, client: &Client, oids: &[u32]) -> Result<Self, tokio_postgres::Error> {
        let now = schema::read_some(client, oids).await?;
        let mut tables = self.tables.clone();
        tables.retain(|_, table| !oids.contains(&table.oid));
        tables.extend(now.into_iter().map(|table| (table.def.name.clone(), table)));
        Ok(Self { tables, versions: self.versions.clone() })
    }
}

impl Shard {
    pub(super) fn new(name: ShardName, connection: &str, tables: Declared) -> Self {
        Self {
            name,
            config: PostgresConfig::parse(connection),
            tables,
            permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            idle: Mutex::new(Vec::new()),
            known: Mutex::new(None),
        }
    }

    pub(super) fn name(&self) -> &ShardName {
        &self.name
    }

    /// The declared tables.
    pub(super) fn tables(&self) -> &Declared {
        &self.tables
    }

    /// Where it is.
    pub(super) fn config(&self) -> Result<&PostgresConfig, DriverError> {
        self.config.as_ref().map_err(|error| self.connect_error(error))
    }

    /// A session, kept or new. Waits while all are in use.
    pub(super) async fn session(&self) -> Result<Session<'_>, DriverError> {
        // The semaphore is never closed; were it, the limit alone would be lost.
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        let kept = loop {
            let Some(client) = lock(&self.idle).pop() else { break None };
            // One that the server has closed meanwhile, in a restart perhaps, is told by the loss of its task.
            if !client.is_closed() && client.simple_query("SELECT 1").await.is_ok() {
                break Some(client);
            }
        };
        let client = match kept {
            Some(client) => client,
            None => self.config()?.connect().await.map_err(|error| self.connect_error(&error))?,
        };
        Ok(Session { shard: self, client: Some(client), _permit: permit })
    }

    /// What is known of definitions, which may be old.
    pub(super) fn known(&self) -> Option<Arc<Catalog>> {
        lock(&self.known).clone()
    }

    /// Remembers definitions.
    pub(super) fn learn(&self, catalog: Catalog) -> Arc<Catalog> {
        let catalog = Arc::new(catalog);
        *lock(&self.known) = Some(Arc::clone(&catalog));
        catalog
    }

    /// The definitions as they are now.
    pub(super) async fn catalog(&self, client: &Client) -> Result<Arc<Catalog>, DriverError> {
        let read = Catalog::read(client).await;
        Ok(self.learn(read.map_err(|error| self.error("read its definitions", &error))?))
    }

    pub(super) fn connect_error(&self, error: &ConnectError) -> DriverError {
        let message = format!("shard `{}`: {}", self.name, error.message());
        let short = message.contains("SQLSTATE 53300") || message.contains("SQLSTATE 57P03");
        let class = match error.is_transient() {
            true if short => ErrorClass::Throttled,
            true => ErrorClass::Transient,
            false => ErrorClass::Permanent,
        };
        DriverError::new(class, message, error.hint())
    }
}

/// A connection in use. Dropped, it is closed, which ends whatever transaction it is in; see [`Session::keep`].
pub(super) struct Session<'s> {
    shard: &'s Shard,
    client: Option<Client>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Session<'_> {
    /// Gives the connection back, which must be in no transaction and have no settings of its own.
    pub(super) fn keep(mut self) {
        if let Some(client) = self.client.take() {
            lock(&self.shard.idle).push(client);
        }
    }
}

impl Deref for Session<'_> {
    type Target = Client;

    #[expect(clippy::expect_used, reason = "the client is taken only by `keep`, which consumes the session")]
    fn deref(&self) -> &Client {
        self.client.as_ref().expect("a session has its client until it is kept")
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

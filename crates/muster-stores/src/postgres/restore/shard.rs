//! One database: where it is, its declared tables, a few connections, and what is known of its definitions.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use muster_engine::driver::{DriverError, ErrorClass};
use muster_types::ShardName;
use muster_types::topology::Declared;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::Client;

use super::lines::{LinesKey, SentLines};
use crate::postgres::connect::{ConnectError, PostgresConfig};
use crate::postgres::schema::{self, LiveTable};
use crate::postgres::system;

/// Connections to one shard at once: above the pools of stage and publish slots that topologies declare, far below a
/// server's `max_connections`.
const CONNECTIONS_MAX: usize = 16;

/// A connection that was in use so lately is not tried before it is used again: what can be lost in the meantime, a network
/// that forgets it, takes minutes.
const TRUSTED_IDLE: Duration = Duration::from_secs(5);

/// See the module.
pub(super) struct Shard {
    name: ShardName,
    config: Result<PostgresConfig, ConnectError>,
    tables: Declared,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<(Client, Instant)>>,
    known: Mutex<Option<Arc<Catalog>>>,
    /// Staging tables that are there.
    staging: Mutex<BTreeSet<String>>,
    /// The runs' tables are there.
    ready: AtomicBool,
    lines_key: LinesKey,
    /// What was staged by this process.
    pub(super) sent: SentLines,
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
    pub(super) fn new(
        name: ShardName,
        config: Result<PostgresConfig, ConnectError>,
        tables: Declared,
    ) -> Self {
        Self {
            name,
            config,
            tables,
            permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            idle: Mutex::new(Vec::new()),
            known: Mutex::new(None),
            staging: Mutex::default(),
            ready: AtomicBool::new(false),
            lines_key: LinesKey::draw(),
            sent: SentLines::default(),
        }
    }

    pub(super) fn name(&self) -> &ShardName {
        &self.name
    }

    /// The key of sums of lines.
    pub(super) fn lines_key(&self) -> &LinesKey {
        &self.lines_key
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
            let Some((client, since)) = lock(&self.idle).pop() else { break None };
            // One that the server has closed meanwhile, in a restart perhaps, is told by the loss of its task.
            if client.is_closed() {
                continue;
            }
            if since.elapsed() < TRUSTED_IDLE || client.simple_query("SELECT 1").await.is_ok() {
                break Some(client);
            }
        };
        let client = match kept {
            Some(client) => client,
            None => self.config()?.connect().await.map_err(|error| self.connect_error(&error))?,
        };
        Ok(Session { shard: self, client: Some(client), _permit: permit })
    }

    /// Creates the runs' tables where they are not there; once seen they are not looked for again.
    pub(super) async fn ensure_run_tables(&self, client: &Client) -> Result<(), tokio_postgres::Error> {
        if !self.ready.load(Ordering::Relaxed) {
            system::ensure_run_tables(client).await?;
            self.ready.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether all of these staging tables are known to be there.
    pub(super) fn knows_staging(&self, names: &[String]) -> bool {
        let known = lock(&self.staging);
        names.iter().all(|name| known.contains(name))
    }

    /// These staging tables are there.
    pub(super) fn learn_staging(&self, names: &[String]) {
        lock(&self.staging).extend(names.iter().cloned());
    }

    /// Staging tables may have gone.
    pub(super) fn forget_staging(&self) {
        lock(&self.staging).clear();
    }

    /// What is known of definitions does not hold.
    pub(super) fn forget(&self) {
        *lock(&self.known) = None;
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
        let class = match error.is_transient() {
            true if message.contains("SQLSTATE 53") => ErrorClass::Throttled,
            true => ErrorClass::Unavailable,
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
            lock(&self.shard.idle).push((client, Instant::now()));
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

//! Databases on a real server, and stores to restore in them.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_engine::driver::{DriverError, RowBatch, StoreDriver, StoreProbe, StoreWork};
use muster_rows::{Row, RowsDigest};
use muster_services::Postgres;
use muster_stores::postgres::PostgresDriver;
use muster_stores::postgres::connect::PostgresConfig;
use muster_stores::postgres::schema;
use muster_types::journal::{Published, TableDigest};
use muster_types::table::{CapturedTable, Owner};
use muster_types::topology::TableConfig;
use muster_types::{Epoch, Kind, RunId, ShardName, SiteId, StoreId};
use tokio::sync::mpsc;
use tokio_postgres::Client;

pub(crate) type TableDigests = BTreeMap<String, TableDigest>;

/// A fresh database of the shared server, or of another.
pub(crate) struct Database {
    /// How to get there.
    pub(crate) connection: String,
}

impl Database {
    /// A database in which `sql` was run with the server's own search path.
    pub(crate) async fn with(sql: &str) -> Self {
        Self::on(&Postgres::shared().unwrap(), sql).await
    }

    pub(crate) async fn on(server: &Postgres, sql: &str) -> Self {
        let name = server.create_database("restore").unwrap();
        let database = Self { connection: server.url(&name) };
        database.app().await.batch_execute(sql).await.unwrap_or_else(|error| panic!("{error:?}"));
        database
    }

    /// A session of Muster.
    pub(crate) async fn muster(&self) -> Client {
        PostgresConfig::parse(&self.connection).unwrap().connect().await.unwrap()
    }

    /// A session of an application.
    pub(crate) async fn app(&self) -> Client {
        let client = self.muster().await;
        client.batch_execute("SET search_path = public; SET TimeZone = 'Europe/Berlin'").await.unwrap();
        client
    }
}

pub(crate) fn tenant(column: &str) -> Owner {
    Owner::Tenant { column: column.into() }
}

pub(crate) fn parent(column: &str, table: &str, key: &str) -> Owner {
    Owner::Parent { column: column.into(), table: table.into(), key: key.into() }
}

/// One shard with one kind.
pub(crate) struct World {
    pub(crate) database: Database,
    pub(crate) driver: Arc<PostgresDriver>,
    pub(crate) tables: Arc<Vec<CapturedTable>>,
    pub(crate) app: Client,
    pub(crate) declared: BTreeMap<String, TableConfig>,
}

/// The rows of a store as they once were.
#[derive(Clone)]
pub(crate) struct Snapshot {
    pub(crate) tables: Arc<Vec<CapturedTable>>,
    pub(crate) rows: Vec<(usize, Row)>,
}

impl World {
    /// Runs `sql`; `tables` are declared, parents first.
    pub(crate) async fn new(sql: &str, tables: &[(&str, Owner)]) -> Self {
        Self::on(&Postgres::shared().unwrap(), sql, tables).await
    }

    pub(crate) async fn on(server: &Postgres, sql: &str, tables: &[(&str, Owner)]) -> Self {
        let database = Database::on(server, sql).await;
        let kind: Kind = "product:jira".parse().unwrap();
        let config = |(name, owner): &(&str, Owner)| {
            (
                (*name).to_owned(),
                TableConfig {
                    kind: kind.clone(),
                    owner: owner.clone(),
                    migrations: vec![],
                    harmless_triggers: vec![],
                },
            )
        };
        let shard = ShardName::new("db-1").unwrap();
        let declared: BTreeMap<String, TableConfig> = tables.iter().map(config).collect();
        let driver = Arc::new(PostgresDriver::new(shard, &database.connection, declared.clone()));
        let app = database.app().await;
        let mut world = Self { database, driver, tables: Arc::default(), app, declared };
        world.tables = world.captured(tables).await;
        world
    }

    /// A driver that has no connection yet.
    pub(crate) fn fresh_driver(&self) -> Arc<PostgresDriver> {
        self.driver_at(&self.database.connection)
    }

    /// A driver that goes there by another way.
    pub(crate) fn driver_at(&self, connection: &str) -> Arc<PostgresDriver> {
        let shard = ShardName::new("db-1").unwrap();
        Arc::new(PostgresDriver::new(shard, connection, self.declared.clone()))
    }

    /// The declared tables as they are now.
    pub(crate) async fn captured(&self, tables: &[(&str, Owner)]) -> Arc<Vec<CapturedTable>> {
        let live = schema::read(&self.database.muster().await).await.unwrap();
        let one = |(name, owner): &(&str, Owner)| CapturedTable {
            kind: "product:jira".parse().unwrap(),
            owner: owner.clone(),
            def: live
                .iter()
                .find(|table| table.def.name == *name)
                .unwrap_or_else(|| panic!("{name}"))
                .def
                .clone(),
        };
        Arc::new(tables.iter().map(one).collect())
    }

    pub(crate) async fn sql(&self, sql: &str) {
        self.app.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// The one value of a query, as text.
    pub(crate) async fn ask(&self, sql: &str) -> String {
        let sql = format!("SELECT coalesce(({sql})::text, 'NULL')");
        self.app.query_one(&sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
    }

    /// What a store's live rows are now.
    pub(crate) async fn snapshot(&self, site: &str) -> Snapshot {
        let (sender, mut receiver) = mpsc::channel(2);
        let probe = StoreProbe { store: store(site), tables: Arc::clone(&self.tables) };
        let read = async {
            let mut rows = Vec::new();
            while let Some(RowBatch { table, rows: found }) = receiver.recv().await {
                rows.extend(found.into_iter().map(|row| (table, row)));
            }
            rows
        };
        let (sent, rows) = tokio::join!(self.driver.live_rows(&probe, sender), read);
        sent.unwrap();
        Snapshot { tables: Arc::clone(&self.tables), rows }
    }

    /// Fences and claims.
    pub(crate) async fn begin(&self, work: &StoreWork) {
        self.driver.fence(&work.run, work.epoch).await.unwrap();
        let refused =
            self.driver.claim(&work.run, work.epoch, std::slice::from_ref(&work.store)).await.unwrap();
        assert_eq!(refused, []);
    }

    /// Stages and verifies; returns what was staged.
    pub(crate) async fn stage(
        &self,
        work: &StoreWork,
        snapshot: &Snapshot,
    ) -> Result<TableDigests, DriverError> {
        let (sender, receiver) = mpsc::channel(2);
        let send = async {
            // Small batches, tables mixed: any order is allowed.
            for chunk in snapshot.rows.chunks(3) {
                for (table, row) in chunk {
                    if sender.send(RowBatch { table: *table, rows: vec![row.clone()] }).await.is_err() {
                        break;
                    }
                }
            }
            drop(sender);
        };
        let (staged, ()) = tokio::join!(self.driver.stage(work, receiver), send);
        staged?;
        let found = self.driver.digest_staged(work).await?;
        assert_eq!(found, snapshot.digests());
        assert!(self.driver.is_as_staged(work).await?, "the server writes rows in another way than Muster");
        Ok(found)
    }

    /// All steps of a store.
    pub(crate) async fn restore(
        &self,
        work: &StoreWork,
        snapshot: &Snapshot,
    ) -> Result<Published, DriverError> {
        self.begin(work).await;
        let staged = self.stage(work, snapshot).await?;
        self.driver.publish(work, &staged).await
    }

    /// The message of a restore that must fail.
    pub(crate) async fn refusal(&self, work: &StoreWork, snapshot: &Snapshot) -> DriverError {
        match self.restore(work, snapshot).await {
            Err(error) => error,
            Ok(published) => panic!("published {published:?}"),
        }
    }
}

impl Snapshot {
    pub(crate) fn digests(&self) -> TableDigests {
        let mut found: BTreeMap<String, (u64, RowsDigest)> =
            self.tables.iter().map(|table| (table.def.name.clone(), Default::default())).collect();
        for (table, row) in &self.rows {
            let name = &self.tables[*table].def.name;
            let (rows, digest) = found.get_mut(name).unwrap();
            *rows += 1;
            digest.add(name, row);
        }
        let finish = |(name, (rows, digest)): (String, (u64, RowsDigest))| {
            (name, TableDigest { rows, digest: digest.finish() })
        };
        found.into_iter().map(finish).collect()
    }

    pub(crate) fn work(&self, site: &str, run: &str) -> StoreWork {
        StoreWork {
            run: RunId::new(run).unwrap(),
            epoch: Epoch(1),
            store: store(site),
            tables: Arc::clone(&self.tables),
            overwrite: false,
            definitions: None,
            writer_block_milliseconds_max: None,
        }
    }
}

pub(crate) fn store(site: &str) -> StoreId {
    StoreId { site: SiteId::new(site).unwrap(), kind: "product:jira".parse().unwrap() }
}

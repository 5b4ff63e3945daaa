//! A database with a schema of each site, captured by the real source and restored by the real driver.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use muster_engine::driver::{DriverError, RowBatch, StoreDriver, StoreProbe, StoreWork};
use muster_rows::{Row, RowsDigest};
use muster_services::Postgres;
use muster_stores::capture::{CaptureError, CaptureSource, SnapshotSink};
use muster_stores::postgres::{PostgresDriver, PostgresSource};
use muster_types::journal::{Published, TableDigest};
use muster_types::plan::LiveStore;
use muster_types::table::{CapturedTable, Owner};
use muster_types::topology::{Declared, Topology};
use muster_types::{Boundary, Epoch, Incarnation, Position, RunId, ShardName, SiteId, StoreId, Timestamp};
use postgres::{Client, NoTls};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

/// What the source delivered.
pub(crate) struct Captured {
    pub(crate) tables: Vec<CapturedTable>,
    pub(crate) boundary: Boundary,
    rows: Vec<(Option<SiteId>, usize, Row)>,
}

impl SnapshotSink for Captured {
    fn tables(&mut self, tables: &[CapturedTable]) -> Result<(), CaptureError> {
        self.tables = tables.to_vec();
        Ok(())
    }

    fn row(&mut self, site: Option<&SiteId>, table: usize, row: &Row) -> Result<(), CaptureError> {
        self.rows.push((site.cloned(), table, row.clone()));
        Ok(())
    }
}

/// One site's rows of one kind.
pub(crate) struct Store {
    pub(crate) work: StoreWork,
    rows: Vec<(usize, Row)>,
}

impl Captured {
    /// The sites of all rows, in the order of their delivery, each once.
    pub(crate) fn sites(&self) -> Vec<Option<SiteId>> {
        let mut sites: Vec<Option<SiteId>> = self.rows.iter().map(|(site, ..)| site.clone()).collect();
        sites.dedup();
        sites
    }

    /// The store of a site, with tables in the order in which a plan has them.
    pub(crate) fn store(&self, site: &str, kind: &str, run: &str) -> Store {
        let site = SiteId::new(site).unwrap();
        let of_others =
            |table: &CapturedTable| matches!(&table.owner, Owner::Site { site: of } if *of != site);
        let of_kind = self.tables.iter().filter(|table| table.kind.as_str() == kind && !of_others(table));
        let sorted = parents_first(of_kind.collect());
        let number =
            |table: usize| sorted.iter().position(|other| other.def.name == self.tables[table].def.name);
        let own = self.rows.iter().filter(|(of, ..)| of.as_ref() == Some(&site));
        let rows = own.filter_map(|(_, table, row)| Some((number(*table)?, row.clone()))).collect();
        let work = StoreWork {
            run: RunId::new(run).unwrap(),
            epoch: Epoch(1),
            store: StoreId { site, kind: kind.parse().unwrap() },
            tables: Arc::new(sorted),
            overwrite: false,
            definitions: None,
            writer_block_milliseconds_max: None,
        };
        Store { work, rows }
    }
}

/// Parents before the tables that refer to them.
fn parents_first(mut tables: Vec<&CapturedTable>) -> Vec<CapturedTable> {
    let mut sorted: Vec<CapturedTable> = Vec::new();
    while !tables.is_empty() {
        let waits = |table: &&CapturedTable| {
            let of =
                |name: &String| tables.iter().any(|other| other.def.name == *name && *name != table.def.name);
            table.def.foreign_keys.iter().any(|key| of(&key.parent_table))
        };
        let next = tables.iter().position(|table| !waits(table)).unwrap_or(0);
        sorted.push(tables.remove(next).clone());
    }
    sorted
}

impl Store {
    fn digests(&self) -> BTreeMap<String, TableDigest> {
        let tables = &self.work.tables;
        let mut found: BTreeMap<String, (u64, RowsDigest)> =
            tables.iter().map(|table| (table.def.name.clone(), Default::default())).collect();
        for (table, row) in &self.rows {
            let (rows, digest) = found.get_mut(&tables[*table].def.name).unwrap();
            *rows += 1;
            digest.add(&tables[*table].def.name, row);
        }
        let finish = |(name, (rows, digest)): (String, (u64, RowsDigest))| {
            (name, TableDigest { rows, digest: digest.finish() })
        };
        found.into_iter().map(finish).collect()
    }
}

pub(crate) struct World {
    server: Postgres,
    url: String,
    pub(crate) app: Client,
    pub(crate) source: PostgresSource,
    pub(crate) driver: Arc<PostgresDriver>,
    runtime: Runtime,
}

/// Beside the tables of a test.
const TOPOLOGY: &str = r#"fleet = "t"
repository = { bucket = "muster" }
tiers.standard = { rto_seconds = 3600, rpo_seconds = 60 }
directory = { kind = "metadata", table = "site" }
shards.core = { driver = "postgres", connection = "dbname=none", region = "eu", kinds = ["*KINDS*"] }

[tables]
site = { kind = "metadata", tenant = "site_id" }
"#;

impl World {
    /// A database in which `sql` was run, with these declarations besides table `site`.
    pub(crate) fn new(sql: &str, kinds: &[&str], tables: &str) -> Self {
        let server = Postgres::shared().unwrap();
        let name = server.create_database("tenancy").unwrap();
        let url = server.url(&name);
        let mut app = Client::connect(&url, NoTls).unwrap();
        app.batch_execute("SET search_path = public; SET client_min_messages = warning").unwrap();
        app.batch_execute("CREATE TABLE site (site_id text PRIMARY KEY)").unwrap();
        app.batch_execute(sql).unwrap_or_else(|error| panic!("{error:?}"));
        let hosted = ["metadata"].iter().chain(kinds).copied().collect::<Vec<_>>().join("\", \"");
        let text = format!("{}{tables}", TOPOLOGY.replace("*KINDS*", &hosted));
        let topology =
            Topology::parse(&text, "t.toml", Path::new("/")).unwrap_or_else(|error| panic!("{error}"));
        let declared: Declared = topology.declared(&ShardName::new("core").unwrap());
        let shard = ShardName::new(name.as_str()).unwrap();
        let source = PostgresSource::new(shard.clone(), &url, declared.clone());
        let driver = Arc::new(PostgresDriver::new(shard, &url, declared));
        Self { server, url, app, source, driver, runtime: Runtime::new().unwrap() }
    }

    pub(crate) fn sql(&mut self, sql: &str) {
        self.app.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// Another connection.
    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.url, NoTls).unwrap()
    }

    /// The one value of a query, as text.
    pub(crate) fn ask(&mut self, sql: &str) -> String {
        let sql = format!("SELECT coalesce(({sql})::text, 'NULL')");
        self.app.query_one(&sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
    }

    /// Everything as it is now, through the source.
    pub(crate) fn capture(&mut self) -> Captured {
        self.source.init().unwrap();
        self.source.begin_incarnation(&Incarnation::new("0001-t").unwrap()).unwrap();
        let from = Boundary { position: Position(0), at: Timestamp::EPOCH };
        let mut captured = Captured { tables: Vec::new(), boundary: from, rows: Vec::new() };
        captured.boundary = self.source.snapshot(from, &mut captured).unwrap();
        captured
    }

    /// What `pg_dump` writes: definitions, owners, privileges, rows and positions of sequences. Without the lines that
    /// differ each time, and without Muster's own publication.
    pub(crate) fn dump(&self, options: &[&str]) -> String {
        let mut command = Command::new(self.server.bin("pg_dump"));
        command.arg("--no-publications").args(options).arg(&self.url);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let wanted = |line: &&str| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict");
        text.lines().filter(wanted).collect::<Vec<_>>().join("\n")
    }

    /// Looks at a store.
    pub(crate) fn probe(&self, store: &Store) -> LiveStore {
        let probe = StoreProbe { store: store.work.store.clone(), tables: Arc::clone(&store.work.tables) };
        self.runtime.block_on(self.driver.probe(&[probe])).unwrap().remove(0)
    }

    /// All steps of a store.
    pub(crate) fn restore(&self, store: &Store) -> Result<Published, DriverError> {
        self.runtime.block_on(async {
            let (driver, work) = (&self.driver, &store.work);
            driver.fence(&work.run, work.epoch).await?;
            let refused = driver.claim(&work.run, work.epoch, std::slice::from_ref(&work.store)).await?;
            assert_eq!(refused, []);
            let (sender, receiver) = mpsc::channel(2);
            let send = async {
                for (table, row) in &store.rows {
                    sender.send(RowBatch { table: *table, rows: vec![row.clone()] }).await.unwrap();
                }
                drop(sender);
            };
            let (staged, ()) = tokio::join!(driver.stage(work, receiver), send);
            staged?;
            let staged = driver.digest_staged(work).await?;
            assert_eq!(staged, store.digests());
            driver.publish(work, &staged).await
        })
    }

    /// Digest of everything but these sites' rows of a kind.
    pub(crate) fn neighbours(&self, sites: &[&str], kind: &str) -> String {
        let store = |site: &&str| StoreId { site: SiteId::new(*site).unwrap(), kind: kind.parse().unwrap() };
        let excluded: BTreeSet<StoreId> = sites.iter().map(store).collect();
        self.runtime.block_on(self.driver.neighbour_digest(&excluded)).unwrap().state
    }
}

impl Drop for World {
    /// Slots are few, and hold log back.
    fn drop(&mut self) {
        let _ = self.source.remove();
    }
}

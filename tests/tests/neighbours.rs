//! The proof of the neighbours, end to end: a publish that touches one row of another site is caught, whichever way
//! the stray write takes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use muster_capture::{CaptureOptions, CaptureRunner, Installer};
use muster_engine::driver::{StoreDriver, StoreProbe};
use muster_engine::{Cancel, Engine, Events, Options, RunSummary};
use muster_plan::planner::{self, PlanInput};
use muster_repo::catalog::{self, CatalogQuery, Sites};
use muster_repo::{MemoryObjects, Repository};
use muster_stores::sqlite::restore::{Fault, SqliteDriver};
use muster_types::format::FORMAT;
use muster_types::incident::{Incident, IncidentSite};
use muster_types::plan::Plan;
use muster_types::request::{PlanRequest, ProofLevel};
use muster_types::topology::Topology;
use muster_types::{RunId, ShardName, Timestamp};
use rusqlite::Connection;

const TOPOLOGY: &str = "fleet = 'neighbours'\n[repository]\nbucket = 'neighbours'\nregion = 'here'\n\
     [directory]\nkind = 'metadata'\ntable = 'site'\n[tiers.only]\nrto_seconds = 60\nrpo_seconds = 60\n\
     [shards.s]\ndriver = 'sqlite'\npath = 'shard.db'\nregion = 'here'\nkinds = ['metadata']\n\
     [tables.site]\nkind = 'metadata'\ntenant = 'id'\n[tables.note]\nkind = 'metadata'\ntenant = 'site'\n";

/// The row of the neighbour that the faults go for.
const NEIGHBOUR: &str = "SELECT body FROM note WHERE id = 2";

struct World {
    folder: tempfile::TempDir,
    topology: Topology,
    repository: Repository,
    before_deletion: Timestamp,
}

impl World {
    /// Two sites, captured; then site `a` is deleted, and that is captured, too.
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let topology = Topology::parse(TOPOLOGY, "neighbours", folder.path())
            .unwrap_or_else(|errors| panic!("{errors}"));
        let conn = Connection::open(path(&folder)).unwrap();
        conn.execute_batch(
            "PRAGMA journal_mode = WAL;
             CREATE TABLE site(id TEXT PRIMARY KEY NOT NULL, name TEXT);
             CREATE TABLE note(id INTEGER PRIMARY KEY, site TEXT NOT NULL REFERENCES site, body TEXT);
             INSERT INTO site VALUES ('a', 'A'), ('b', 'B');
             INSERT INTO note VALUES (1, 'a', 'mine'), (2, 'b', 'theirs');",
        )
        .unwrap();
        assert!(Installer::new(&topology, None).init().iter().all(|shard| shard.result.is_ok()));
        let repository = Repository::create(Arc::new(MemoryObjects::new()), Timestamp::EPOCH).await.unwrap();
        let mut world = Self { folder, topology, repository, before_deletion: Timestamp::EPOCH };
        world.before_deletion = world.capture().await;
        conn.execute_batch(
            "BEGIN; DELETE FROM note WHERE site = 'a'; DELETE FROM site WHERE id = 'a'; COMMIT",
        )
        .unwrap();
        world.capture().await;
        world
    }

    async fn capture(&self) -> Timestamp {
        let options = CaptureOptions::of(&self.topology);
        let outcomes = CaptureRunner::new(&self.repository, &self.topology, options).once().await;
        outcomes[0].result.as_ref().unwrap().boundary.at
    }

    async fn plan(&self, driver: &SqliteDriver, proof: ProofLevel) -> Plan {
        let query = CatalogQuery { sites: Sites::All, shards: None };
        let catalog = catalog::read(&self.repository, &query, self.before_deletion).await.unwrap();
        let (site, target) = ("site:a".parse().unwrap(), self.before_deletion);
        let site = IncidentSite { site, target, outage_at: None, before: BTreeMap::new(), note: None };
        let incident = Incident {
            format: FORMAT,
            title: "one site".to_owned(),
            declared_at: target,
            id_source: "test".to_owned(),
            sites: vec![site],
        };
        let found = planner::select_stores(&self.topology, &catalog, &incident.sites).unwrap();
        let probes: Vec<StoreProbe> =
            found.into_iter().map(|store| StoreProbe { store: store.store, tables: store.tables }).collect();
        let live = driver.probe(&probes).await.unwrap();
        let live = probes.into_iter().map(|probe| probe.store).zip(live).collect();
        let request = PlanRequest {
            incident,
            proof,
            overwrite: BTreeSet::new(),
            accept_block: BTreeSet::new(),
            accept_gap: BTreeSet::new(),
            placement: muster_types::request::Placement::default(),
        };
        let input = PlanInput {
            topology: &self.topology,
            catalog: &catalog,
            request: &request,
            live: &live,
            now: target,
        };
        planner::plan(input).unwrap()
    }

    async fn restore(&self, fault: Option<Fault>, proof: ProofLevel) -> RunSummary {
        let shard = ShardName::new("s").unwrap();
        let tables = self.topology.shard_tables(&shard);
        let mut driver = SqliteDriver::new(shard.clone(), path(&self.folder), tables);
        if let Some(fault) = fault {
            driver = driver.with_fault(fault);
        }
        let plan = self.plan(&driver, proof).await;
        let drivers = BTreeMap::from([(shard, Arc::new(driver) as Arc<dyn StoreDriver>)]);
        let options = Options::new("test", self.topology.digest);
        let engine = Engine::new(self.repository.clone(), drivers, options, Events::none());
        engine.apply(plan, &RunId::new("r").unwrap(), &Cancel::new()).await.unwrap()
    }

    fn neighbour(&self) -> String {
        Connection::open(path(&self.folder)).unwrap().query_row(NEIGHBOUR, [], |row| row.get(0)).unwrap()
    }
}

fn path(folder: &tempfile::TempDir) -> PathBuf {
    Path::new(folder.path()).join("shard.db")
}

fn errors(summary: &RunSummary) -> String {
    let all: Vec<String> =
        summary.failures.iter().map(|failure| format!("{}: {}", failure.step, failure.error)).collect();
    all.join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_stray_write_both_forms_hold() {
    let world = World::new().await;
    let summary = world.restore(None, ProofLevel::Full).await;
    assert_eq!((summary.sites_restored, errors(&summary).as_str()), (1, ""));
    assert_eq!(world.neighbour(), "theirs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stray_write_is_seen_before_the_commit_and_rolled_back() {
    let world = World::new().await;
    let sql = "UPDATE note SET body = 'stray' WHERE id = 2".to_owned();
    let summary = world.restore(Some(Fault::StrayWrite { sql }), ProofLevel::Marked).await;
    assert_eq!(summary.sites_restored, 0);
    assert!(errors(&summary).contains("publish/site:a/metadata"), "{}", errors(&summary));
    assert_eq!(world.neighbour(), "theirs");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_marked_form_catches_a_stray_write_that_the_log_shows() {
    let world = World::new().await;
    let sql = "INSERT INTO _muster_change (at_ms, tbl, op, old_site, mark, v0, v1, v2)
                 SELECT 1, id, 'D', 'b', {mark}, 2, 'b', 'theirs' FROM _muster_table WHERE name = 'note';
               DELETE FROM note WHERE id = 2"
        .to_owned();
    let summary = world.restore(Some(Fault::HiddenStrayWrite { sql }), ProofLevel::Marked).await;
    assert_eq!(summary.sites_restored, 0);
    assert!(errors(&summary).contains("stray write"), "{}", errors(&summary));
    assert!(errors(&summary).contains("site:b"), "{}", errors(&summary));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_full_form_catches_a_stray_write_that_no_log_shows() {
    let world = World::new().await;
    let sql = "UPDATE note SET body = 'stray' WHERE id = 2".to_owned();
    let summary = world.restore(Some(Fault::HiddenStrayWrite { sql }), ProofLevel::Full).await;
    assert!(errors(&summary).contains("digest-after/s"), "{}", errors(&summary));
    assert!(errors(&summary).contains("not proven untouched"), "{}", errors(&summary));
}

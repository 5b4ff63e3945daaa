//! Random shards and writers, through capture, repository, plan and engine: restored rows equal the truth at the
//! reached boundary for every site, and untouched rows are untouched; also restores of restores.
//!
//! `MUSTER_SEED=N` runs that seed alone, `MUSTER_CASES=N` more or fewer of them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a failed test may say so by a panic"
)]

mod random;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use muster_capture::ShardCapture;
use muster_engine::driver::{StoreDriver, StoreProbe};
use muster_engine::{Cancel, Engine, Events, Options};
use muster_plan::planner::{self, PlanInput};
use muster_repo::catalog::{self, CatalogQuery, Sites};
use muster_repo::{MemoryObjects, Repository};
use muster_stores::sqlite::capture::SqliteSource;
use muster_stores::sqlite::restore::SqliteDriver;
use muster_tests::cases;
use muster_types::format::FORMAT;
use muster_types::incident::{Incident, IncidentSite};
use muster_types::plan::Plan;
use muster_types::request::{PlanRequest, ProofLevel};
use muster_types::topology::Topology;
use muster_types::{Boundary, RunId, ShardName, SiteId, Timestamp};
use random::{Generator, attempt, transaction};
use rusqlite::Connection;
use tempfile::TempDir;

const SITES: [&str; 3] = ["a", "b", "c"];

/// By site and table: rows in the order of their text, each column by name.
type Rows = BTreeMap<(String, &'static str), Vec<BTreeMap<String, String>>>;

/// Rows of the sites whose owner is one of `sites`, by plain joins.
fn rows(conn: &Connection, by_code: bool, sites: &[&str]) -> Rows {
    let key = if by_code { "code" } else { "id" };
    let tables = [
        ("p", "SELECT t.site, t.* FROM p t".to_owned()),
        ("c", format!("SELECT p.site, t.* FROM c t JOIN p ON p.{key} = t.up")),
        ("g", format!("SELECT p.site, t.* FROM g t JOIN c ON c.id = t.up JOIN p ON p.{key} = c.up")),
        ("later", "SELECT t.site, t.* FROM later t".to_owned()),
    ];
    let mut found = Rows::new();
    for (table, sql) in tables {
        if table == "later" && !exists(conn, table) {
            continue;
        }
        let mut statement = conn.prepare(&sql).unwrap();
        let names: Vec<String> = statement.column_names().skip(1).map(str::to_owned).collect();
        let mut read = statement.query([]).unwrap();
        while let Some(row) = read.next().unwrap() {
            let Ok(site) = row.get::<_, String>(0) else { continue };
            if sites.contains(&site.as_str()) {
                let value = |at: usize| format!("{:?}", row.get_ref_unwrap(at + 1));
                let columns = names.iter().enumerate().map(|(at, name)| (name.clone(), value(at))).collect();
                found.entry((site, table)).or_default().push(columns);
            }
        }
    }
    found.values_mut().for_each(|rows| rows.sort());
    found
}

fn exists(conn: &Connection, table: &str) -> bool {
    let sql = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1)";
    conn.query_row(sql, [table], |row| row.get(0)).unwrap()
}

/// Everything that no restore may touch: the neighbour, nobody's rows, the reference table.
fn untouched(conn: &Connection, by_code: bool) -> (Rows, Vec<String>) {
    let mut statement = conn.prepare("SELECT * FROM r ORDER BY id").unwrap();
    let columns = statement.column_count();
    let text = |row: &rusqlite::Row<'_>| {
        Ok((0..columns).map(|at| format!("{:?} ", row.get_ref_unwrap(at))).collect())
    };
    let reference = statement.query_map([], text).unwrap().collect::<Result<_, _>>().unwrap();
    (rows(conn, by_code, &["z"]), reference)
}

/// One shard with everything that Muster has around it.
struct World {
    _folder: TempDir,
    path: PathBuf,
    conn: Connection,
    topology: Topology,
    shard: ShardName,
    repository: Repository,
    capture: ShardCapture,
    by_code: bool,
    /// What was true at each recovery point.
    truths: Vec<(Boundary, Rows)>,
}

fn writer(path: &Path, recursive: bool) -> Connection {
    let conn = Connection::open(path).unwrap();
    let settings = "PRAGMA journal_mode = WAL; PRAGMA foreign_keys = ON; PRAGMA synchronous = OFF;";
    conn.execute_batch(&format!("{settings} PRAGMA recursive_triggers = {recursive};")).unwrap();
    conn
}

fn topology(path: &Path, by_code: bool) -> Topology {
    let key = if by_code { "code" } else { "id" };
    let text = format!(
        "fleet = 'property'\n[repository]\nbucket = 'property'\nregion = 'here'\n[directory]\nkind = 'metadata'\ntable = 'p'\n\
         [kinds.metadata]\nafter = []\n[tiers.only]\nrto_seconds = 60\nrpo_seconds = 60\n\
         [shards.s]\ndriver = 'sqlite'\npath = '{}'\nregion = 'here'\nkinds = ['metadata']\n\
         [tables.p]\nkind = 'metadata'\ntenant = 'site'\n\
         [tables.c]\nkind = 'metadata'\nparent = {{ column = 'up', table = 'p', key = '{key}' }}\n\
         [tables.g]\nkind = 'metadata'\nparent = {{ column = 'up', table = 'c', key = 'id' }}\n\
         [tables.r]\nkind = 'metadata'\nreference = true\n\
         [tables.later]\nkind = 'metadata'\ntenant = 'site'\n",
        path.display()
    );
    Topology::parse(&text, "property", Path::new(".")).unwrap_or_else(|errors| panic!("{errors}"))
}

impl World {
    async fn new(schema: &str, by_code: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shard.db");
        let conn = writer(&path, false);
        conn.execute_batch(schema).unwrap();
        let shard = ShardName::new("s").unwrap();
        let topology = topology(&path, by_code);
        let tables = topology.shard_tables(&shard);
        let source = {
            let path = path.clone();
            move || SqliteSource::new(&path, tables.clone())
        };
        muster_stores::capture::CaptureSource::init(&mut source()).unwrap();
        let repository = Repository::create(Arc::new(MemoryObjects::new()), Timestamp::EPOCH).await.unwrap();
        let factory = Arc::new(move || Box::new(source()) as Box<dyn muster_stores::capture::CaptureSource>);
        let capture = ShardCapture::new(repository.clone(), shard.clone(), factory, None, Arc::new(|_| {}));
        Self {
            _folder: folder,
            path,
            conn,
            topology,
            shard,
            repository,
            capture,
            by_code,
            truths: Vec::new(),
        }
    }

    /// A recovery point, and what is true there.
    async fn poll(&mut self, snapshot: bool) {
        let boundary = self.capture.cycle(snapshot, true).await.unwrap().boundary;
        let truth = rows(&self.conn, self.by_code, &SITES);
        self.truths.push((boundary, truth));
    }

    /// Deletes everything but the reference rows, and gives the neighbour rows of its own.
    fn delete_all(&self, round: i64) {
        let later = if exists(&self.conn, "later") { "DELETE FROM later;" } else { "" };
        let (first, second) = (-1000 * (round + 2), -1000 * (round + 2) - 1);
        self.conn
            .execute_batch(&format!(
                "PRAGMA foreign_keys = OFF; BEGIN; DELETE FROM g; DELETE FROM c; DELETE FROM p; {later} COMMIT;
                 PRAGMA foreign_keys = ON;
                 INSERT INTO p(id, site, code, u, w) VALUES ({first}, 'z', {first}, 'z{round}', 1),
                   ({second}, 'z', {second}, 'y{round}', 2);
                 INSERT INTO c(id, up, u, w) VALUES ({first}, {first}, 'z{round}', 3);
                 INSERT INTO g(up, n, w) VALUES ({first}, 1, x'00');"
            ))
            .unwrap();
    }

    async fn plan(&self, target: Timestamp, sites: &[SiteId], driver: &SqliteDriver) -> Plan {
        let query = CatalogQuery { sites: Sites::Some(sites.iter().cloned().collect()), shards: None };
        let now = self.truths.last().unwrap().0.at;
        let catalog = catalog::read(&self.repository, &query, now).await.unwrap();
        let one = |site: &SiteId| IncidentSite {
            site: site.clone(),
            target,
            outage_at: None,
            before: BTreeMap::new(),
            note: None,
        };
        let incident = Incident {
            format: FORMAT,
            title: "property".to_owned(),
            declared_at: now,
            id_source: "property".to_owned(),
            sites: sites.iter().map(one).collect(),
        };
        let probes = planner::select_stores(&self.topology, &catalog, &incident.sites).unwrap();
        let probes: Vec<StoreProbe> =
            probes.into_iter().map(|probe| StoreProbe { store: probe.store, tables: probe.tables }).collect();
        let live = driver.probe(&probes).await.unwrap();
        let live = probes.into_iter().map(|probe| probe.store).zip(live).collect();
        let request = PlanRequest {
            incident,
            proof: ProofLevel::Full,
            overwrite: BTreeSet::new(),
            accept_block: BTreeSet::new(),
            accept_gap: BTreeSet::new(),
            placement: muster_types::request::Placement::default(),
        };
        let input =
            PlanInput { topology: &self.topology, catalog: &catalog, request: &request, live: &live, now };
        planner::plan(input).unwrap()
    }

    /// Restores all sites to the truth with this number, and compares.
    async fn restore(&mut self, number: usize, beside: i64, run: &str) -> usize {
        let (boundary, truth) = self.truths[number].clone();
        // Anywhere up to the next recovery point the same one is reached.
        let next = self.truths.get(number + 1).map_or(boundary.at, |(next, _)| next.at);
        let room = next.as_micros() - boundary.at.as_micros();
        let target = boundary.at.plus_micros(beside.min(room - 1).max(0));
        let had: BTreeSet<&String> = truth.keys().map(|(site, _)| site).collect();
        let sites: Vec<SiteId> = had.iter().map(|site| SiteId::new(site.as_str()).unwrap()).collect();
        if sites.is_empty() {
            return 0;
        }
        let driver =
            SqliteDriver::new(self.shard.clone(), self.path.clone(), self.topology.shard_tables(&self.shard));
        let plan = self.plan(target, &sites, &driver).await;
        for site in &plan.sites {
            assert_eq!(site.stores[0].reached.position, boundary.position, "{} {:?}", site.site, plan.notes);
        }
        let before = untouched(&self.conn, self.by_code);
        let drivers = BTreeMap::from([(self.shard.clone(), Arc::new(driver) as Arc<dyn StoreDriver>)]);
        let options = Options::new("property", self.topology.digest);
        let engine = Engine::new(self.repository.clone(), drivers, options, Events::none());
        let notes = plan.notes.clone();
        let summary = engine.apply(plan, &RunId::new(run).unwrap(), &Cancel::new()).await.unwrap();
        assert_eq!(summary.sites_restored, sites.len() as u64, "{:?} {notes:?}", summary.failures);
        self.equals(&truth);
        assert_eq!(untouched(&self.conn, self.by_code), before, "what is not restored");
        truth.values().map(Vec::len).sum()
    }

    /// The live rows are those of the truth; columns that came later have their default.
    fn equals(&self, truth: &Rows) {
        let mut live = rows(&self.conn, self.by_code, &SITES);
        for (place, rows) in &mut live {
            let Some(first) = truth.get(place).and_then(|rows| rows.first()) else { continue };
            for row in rows.iter_mut() {
                let added: Vec<String> =
                    row.keys().filter(|name| !first.contains_key(*name)).cloned().collect();
                for name in added {
                    let value = row.remove(&name).unwrap();
                    assert_eq!(value, "Text([100])", "{name} of {place:?} came later and is not its default");
                }
            }
            rows.sort();
        }
        for place in live.keys().chain(truth.keys()).collect::<BTreeSet<_>>() {
            assert_eq!(live.get(place), truth.get(place), "{place:?}");
        }
    }
}

/// Gives the number of rows that were restored.
async fn case(seed: u64) -> usize {
    println!("MUSTER_SEED={seed} cargo test -p muster-tests --test property");
    let mut generator = Generator::new(seed);
    let schema = generator.schema();
    println!("{schema}");
    let mut world = World::new(&schema, generator.by_code).await;
    let other = writer(&world.path, true);
    let mut restored = 0;
    for round in 0..3 {
        for _ in 0..6 {
            for _ in 0..=generator.below(5) {
                let conn = if generator.chance(50) { &other } else { &world.conn };
                if generator.chance(5) {
                    let sql = generator.reshape();
                    println!("{sql};");
                    attempt(conn, &sql);
                } else {
                    transaction(&mut generator, conn);
                }
            }
            let snapshot = generator.chance(15);
            world.poll(snapshot).await;
        }
        let number = generator.below(u32::try_from(world.truths.len()).unwrap()) as usize;
        let beside = i64::from(generator.below(2000));
        println!("-- restore to {number}");
        world.delete_all(i64::from(round));
        world.poll(false).await;
        restored += world.restore(number, beside, &format!("r{round}")).await;
        // What was restored is captured in its turn.
        world.poll(false).await;
    }
    restored
}

#[tokio::test]
async fn restored_rows_equal_the_truth_and_others_are_untouched() {
    if let Some(seed) = std::env::var("MUSTER_SEED").ok().and_then(|seed| seed.parse().ok()) {
        case(seed).await;
        return;
    }
    let (cases, mut restored) = (cases(30), 0);
    for seed in 1..=cases {
        restored += case(seed).await;
    }
    println!("{restored} rows restored in {cases} cases");
    assert!(restored as u64 > cases, "the cases are too small to say anything");
}

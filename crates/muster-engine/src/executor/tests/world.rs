//! A small fleet: its snapshots in a repository in memory, its shards without the victims, and a plan.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use muster_repo::catalog::{self, CatalogQuery, Sites};
use muster_repo::snapshot::{SnapshotWriter, new_snapshot_id};
use muster_repo::{Creation, MemoryObjects, ObjectEntry, Objects, RepoError, Repository};
use muster_rows::{Class, Row, RowBuilder};
use muster_types::catalog::SiteFacts;
use muster_types::format::FORMAT;
use muster_types::incident::{Incident, IncidentSite};
use muster_types::plan::{
    BaseInput, LiveStore, Plan, PlanStep, Restoration, ShardPlan, SitePlan, StepKey, StorePlan, TableInput,
};
use muster_types::request::{PlanRequest, ProofLevel};
use muster_types::snapshot::ObjectInfo;
use muster_types::table::{CapturedTable, ColumnDef, Owner, TableDef};
use muster_types::{Boundary, Digest, Incarnation, Kind, Position, ShardName, SiteId, StoreId, Timestamp};

use super::fake::{FakeShard, Live, State, driver};
use crate::{Drivers, Engine, Events, Options};

/// Rows of each store.
const ROWS: usize = 4;

pub(in crate::executor) fn row(id: &str, site: &str) -> Row {
    RowBuilder::new().push(Class::Text, id.as_bytes()).push(Class::Text, site.as_bytes()).take()
}

/// Memory that lets others run at each request, as a network does, and counts what is read.
pub(super) struct Yielding(pub(super) MemoryObjects, pub(super) Mutex<BTreeMap<String, u64>>);

impl Yielding {
    fn count(&self, key: &str) {
        *self.1.lock().unwrap().entry(key.to_owned()).or_default() += 1;
    }
}

#[async_trait]
impl Objects for Yielding {
    async fn create(&self, key: &str, body: Bytes) -> Result<Creation, RepoError> {
        tokio::task::yield_now().await;
        self.0.create(key, body).await
    }
    async fn put(&self, key: &str, body: Bytes) -> Result<(), RepoError> {
        self.0.put(key, body).await
    }
    async fn put_file(&self, key: &str, path: &Path) -> Result<(), RepoError> {
        self.0.put_file(key, path).await
    }
    async fn get(&self, key: &str) -> Result<Option<Bytes>, RepoError> {
        tokio::task::yield_now().await;
        self.count(key);
        self.0.get(key).await
    }
    async fn get_range(&self, key: &str, offset: u64, bytes: u64) -> Result<Bytes, RepoError> {
        tokio::task::yield_now().await;
        self.count(key);
        self.0.get_range(key, offset, bytes).await
    }
    async fn size(&self, key: &str) -> Result<Option<u64>, RepoError> {
        self.0.size(key).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectEntry>, RepoError> {
        tokio::task::yield_now().await;
        self.0.list(prefix, after).await
    }
    async fn delete(&self, key: &str) -> Result<(), RepoError> {
        self.0.delete(key).await
    }
    async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, RepoError> {
        self.0.list_folders(prefix).await
    }
}

pub(super) struct World {
    pub(super) repository: Repository,
    pub(super) objects: Arc<dyn Objects>,
    pub(super) memory: Arc<Yielding>,
    pub(super) shards: BTreeMap<ShardName, Arc<FakeShard>>,
    pub(super) plan: Plan,
    /// What the shards hold of the victims when all are back.
    pub(super) restored: Live,
}

/// Metadata is in shard `d`, identity in shard `e`, and comes after metadata.
const STORES: [(&str, &str, &str); 2] = [("d", "metadata", "sites"), ("e", "identity", "users")];

fn table(kind: &str, name: &str) -> CapturedTable {
    let column = |name: &str| ColumnDef {
        name: name.to_owned(),
        declared_type: "TEXT".to_owned(),
        not_null: true,
        default_sql: None,
        generated: false,
    };
    CapturedTable {
        kind: kind.parse().unwrap(),
        owner: Owner::Tenant { column: "site".to_owned() },
        def: TableDef {
            name: name.to_owned(),
            columns: vec![column("id"), column("site")],
            key: vec!["id".to_owned()],
            unique: vec![],
            foreign_keys: vec![],
            create_sql: vec![],
        },
    }
}

pub(super) fn time(seconds: i64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}

pub(super) fn victim(number: usize) -> SiteId {
    SiteId::new(format!("v{number}")).unwrap()
}

pub(super) fn store(number: usize, kind: &str) -> StoreId {
    StoreId { site: victim(number), kind: kind.parse().unwrap() }
}

impl World {
    /// A fleet with so many victims, proven fully; with `capture`, changes are only found in the repository.
    pub(super) async fn new(victims: usize, capture: bool) -> Self {
        let memory = Arc::new(Yielding(MemoryObjects::new(), Mutex::default()));
        let objects: Arc<dyn Objects> = Arc::clone(&memory) as Arc<dyn Objects>;
        let repository = Repository::create(Arc::clone(&objects), time(0)).await.unwrap();
        let mut shards = BTreeMap::new();
        let mut builder = PlanBuilder::default();
        let mut restored = Live::new();
        for (shard, kind, name) in STORES {
            let shard: ShardName = shard.parse().unwrap();
            let table = table(kind, name);
            let begun = repository.begin_incarnation(&shard, time(0), "first", None).await.unwrap();
            let incarnation = begun.incarnation;
            snapshot(&repository, &shard, &incarnation, &table, victims).await;
            for number in 0..victims {
                let site = victim(number);
                let text = |id: usize| format!("{site}-{name}-{id}|{}", site.as_str());
                restored.extend((0..ROWS).map(|id| (name.to_owned(), site.clone(), text(id))));
            }
            let mut state = State::default();
            state.insert(name, &SiteId::new("n0").unwrap(), None, row("old", "n0"));
            let capture =
                capture.then(|| (repository.clone(), incarnation.clone(), tempfile::tempdir().unwrap()));
            let fake = FakeShard {
                name: shard.clone(),
                tables: vec![table.clone()],
                state: state.into(),
                capture,
                capturing: tokio::sync::Mutex::default(),
            };
            builder.tables.push(table);
            shards.insert(shard, Arc::new(fake));
        }
        let query = CatalogQuery { sites: Sites::All, shards: None };
        let catalog = catalog::read(&repository, &query, time(1)).await.unwrap();
        let plan = builder.plan(&catalog, victims);
        Self { repository, objects, memory, shards, plan, restored }
    }

    /// Gives the first site a kind that is rebuilt after its stores, and one that is checked at hand-back.
    pub(super) fn add_commands(&mut self, rebuild: &[&str], outside: &[&str]) {
        let words = |command: &[&str]| command.iter().map(|&word| word.to_owned()).collect();
        let mut plan = self.plan.clone();
        let model = plan.sites[0].stores[0].clone();
        let mut add = |kind: &str, restoration| {
            let kind = kind.parse().unwrap();
            plan.sites[0].stores.push(StorePlan {
                kind,
                restoration,
                tables: vec![],
                rows: 0,
                bytes: 0,
                ..model.clone()
            });
        };
        add("search", Restoration::Rebuilt { command: words(rebuild) });
        add("routing", Restoration::External { command: words(outside) });
        let key = StepKey::Publish(store(0, "search"));
        let find = |key: &StepKey| plan.steps.iter().position(|step| step.key == *key).unwrap();
        let published = find(&StepKey::Publish(store(0, "identity")));
        let check = find(&StepKey::Check(victim(0)));
        let number = u32::try_from(plan.steps.len()).unwrap();
        let model = plan.steps[check].clone();
        plan.steps.push(PlanStep { key, after: vec![u32::try_from(published).unwrap()], ..model });
        plan.steps[check].after.push(number);
        self.plan = plan.seal();
    }

    /// Lets the steps of one verb and kind run in groups of so many sites, and groups be published whole or not at all.
    pub(super) fn group(&mut self, size: usize) {
        let mut numbers: BTreeMap<(String, usize), u32> = BTreeMap::new();
        for step in &mut self.plan.steps {
            let Some(store) = step
                .key
                .store()
                .filter(|store| STORES.iter().any(|(_, kind, _)| *kind == store.kind.to_string()))
            else {
                continue;
            };
            let verb = step.key.to_string().split('/').next().unwrap().to_owned();
            let site: usize = store.site.as_str()[1..].parse().unwrap();
            let next = u32::try_from(numbers.len()).unwrap();
            step.group =
                Some(*numbers.entry((format!("{verb} {}", store.kind), site / size)).or_insert(next));
        }
        self.plan = self.plan.clone().seal();
        self.shards.values().for_each(|shard| shard.lock().atomic = true);
    }

    pub(super) fn options(&self) -> Options {
        let mut options = Options::new("test", self.plan.topology);
        options.retry.base_micros = 10;
        options
    }

    pub(super) fn drivers(&self) -> Drivers {
        self.shards.iter().map(|(name, shard)| (name.clone(), driver(shard))).collect()
    }

    pub(super) fn engine(&self, options: Options) -> Engine {
        Engine::new(self.repository.clone(), self.drivers(), options, Events::none())
    }

    pub(super) fn shard(&self, name: &str) -> &Arc<FakeShard> {
        &self.shards[name]
    }

    /// From now on, restored rows go through a migration.
    pub(super) fn migrate(&mut self) {
        self.shards.values().for_each(|shard| shard.lock().migrates = true);
        let restored = std::mem::take(&mut self.restored).into_iter();
        let end = format!("{}|", super::fake::MIGRATED);
        let restored = restored.map(|(table, site, text)| (table, site, text.replacen('|', &end, 1)));
        self.restored = restored.collect();
    }

    /// Live rows of the victims.
    pub(super) fn victims_live(&self) -> Live {
        let all = self.shards.values().flat_map(|shard| shard.live());
        all.filter(|(_, site, _)| site.as_str().starts_with('v')).collect()
    }

    /// Publishes with an effect, by store.
    pub(super) fn effects(&self) -> BTreeMap<StoreId, u32> {
        self.shards.values().flat_map(|shard| shard.lock().effects.clone()).collect()
    }

    pub(super) fn claims(&self) -> BTreeMap<StoreId, muster_types::RunId> {
        self.shards.values().flat_map(|shard| shard.lock().claims.clone()).collect()
    }
}

async fn snapshot(
    repository: &Repository,
    shard: &ShardName,
    incarnation: &Incarnation,
    table: &CapturedTable,
    victims: usize,
) {
    let dir = tempfile::tempdir().unwrap();
    let id = new_snapshot_id(Position(0));
    let mut writer = SnapshotWriter::new(dir.path(), shard.clone(), incarnation.clone(), id, BTreeMap::new());
    writer.tables(std::slice::from_ref(table));
    for number in 0..victims {
        let site = victim(number);
        for id in 0..ROWS {
            let row = row(&format!("{site}-{}-{id}", table.def.name), site.as_str());
            writer.row(Some(&site), 0, &row).unwrap();
        }
    }
    writer.finish(repository, Boundary { position: Position(0), at: time(0) }).await.unwrap();
}

#[derive(Default)]
struct PlanBuilder {
    tables: Vec<CapturedTable>,
    objects: Vec<ObjectInfo>,
    steps: Vec<PlanStep>,
}

impl PlanBuilder {
    fn plan(mut self, catalog: &muster_types::catalog::Catalog, victims: usize) -> Plan {
        let sites: Vec<SitePlan> = (0..victims).map(|number| self.site(catalog, victim(number))).collect();
        self.all_steps(&sites);
        let shard = |(shard, kind, _): (&str, &str, &str)| {
            let plan = ShardPlan {
                region: "eu".to_owned(),
                driver: "fake".to_owned(),
                writer_block_milliseconds_max: 1000,
                stage_bytes_per_second_max: None,
                stores: victims as u64,
                rows: (victims * ROWS) as u64,
                kinds: vec![kind.parse().unwrap()],
            };
            (shard.parse::<ShardName>().unwrap(), plan)
        };
        let plan = Plan {
            format: FORMAT,
            id: Plan::unsealed_id(),
            created_at: time(100),
            expires_at: Timestamp::from_micros(i64::MAX),
            request: request(&sites),
            repository: catalog.repository.clone(),
            topology: Digest::of(b"topology"),
            objects: self.objects,
            tables: self.tables,
            sites,
            shards: STORES.into_iter().map(shard).collect(),
            provisions: BTreeMap::new(),
            references: vec![],
            kind_checks: BTreeMap::new(),
            pools: BTreeMap::from([("stage".to_owned(), 2), ("publish".to_owned(), 1)]),
            steps: self.steps,
            notes: Vec::new(),
        };
        plan.seal()
    }

    fn site(&mut self, catalog: &muster_types::catalog::Catalog, site: SiteId) -> SitePlan {
        let stores = STORES.iter().zip(0u32..).map(|(&(shard, kind, _), table)| {
            let shard: ShardName = shard.parse().unwrap();
            let trace = catalog.sites[&site].traces.iter().find(|trace| trace.shard == shard).unwrap();
            let slice = &trace.snapshots[&0][0];
            let incarnation = &catalog.shards[&shard].incarnations[0].incarnation.clone();
            let pack = &catalog.shards[&shard].incarnations[0].snapshots[0].packs[slice.pack as usize];
            let object = self.objects.iter().position(|object| object == pack).unwrap_or_else(|| {
                self.objects.push(pack.clone());
                self.objects.len() - 1
            });
            let object = u32::try_from(object).unwrap();
            let base = BaseInput { object, chunks: slice.chunks.clone(), rows_digest: slice.rows_digest };
            let bytes = slice.chunks.iter().map(|chunk| chunk.bytes).sum();
            let inputs = vec![TableInput { table, base: Some(base), changes: vec![] }];
            store_plan(kind.parse().unwrap(), shard, incarnation, inputs, bytes)
        });
        let stores = stores.collect();
        SitePlan {
            site,
            facts: SiteFacts { users: 3, ..SiteFacts::default() },
            target: time(50),
            outage_at: Some(time(60)),
            wave: 0,
            rto_seconds: 3600,
            rpo_seconds: 30,
            stores,
            references: vec![],
            beside: vec![],
        }
    }

    fn push(&mut self, key: StepKey, after: Vec<u32>, pool: Option<&str>) -> u32 {
        let demand = pool.map(|pool| (pool, 1)).into_iter().collect();
        self.steps.push(PlanStep {
            key,
            after,
            after_ended: vec![],
            demand,
            estimate_micros: 10,
            wave: 0,
            group: None,
        });
        u32::try_from(self.steps.len()).unwrap() - 1
    }

    fn all_steps(&mut self, sites: &[SitePlan]) {
        let mut before = BTreeMap::new();
        for (shard, ..) in STORES {
            before.insert(shard, self.push(StepKey::DigestBefore(shard.parse().unwrap()), vec![], None));
        }
        let mut publishes: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
        for site in sites {
            let mut previous = None;
            for (shard, kind, _) in STORES {
                let id = StoreId { site: site.site.clone(), kind: kind.parse().unwrap() };
                let stage = self.push(StepKey::Stage(id.clone()), vec![], Some("stage"));
                let verify = self.push(StepKey::Verify(id.clone()), vec![stage], Some("stage"));
                let after = [Some(verify), Some(before[shard]), previous].into_iter().flatten().collect();
                let publish = self.push(StepKey::Publish(id), after, Some("publish"));
                publishes.entry(shard).or_default().push(publish);
                previous = Some(publish);
            }
            let check = self.push(StepKey::Check(site.site.clone()), previous.into_iter().collect(), None);
            self.push(StepKey::Handback(site.site.clone()), vec![check], None);
        }
        for (shard, ..) in STORES {
            let after = self.push(StepKey::DigestAfter(shard.parse().unwrap()), vec![before[shard]], None);
            self.steps[after as usize].after_ended = publishes.remove(shard).unwrap();
        }
    }
}

fn store_plan(
    kind: Kind,
    shard: ShardName,
    incarnation: &Incarnation,
    tables: Vec<TableInput>,
    bytes: u64,
) -> StorePlan {
    StorePlan {
        kind,
        restoration: Restoration::Restored,
        source: shard.clone(),
        shard,
        before: None,
        incarnation: incarnation.clone(),
        reached: Boundary { position: Position(0), at: time(40) },
        reached_because: "the last poll before the target".to_owned(),
        snapshot: None,
        tables,
        rows: ROWS as u64,
        bytes,
        raw_bytes: bytes,
        live: LiveStore::default(),
        overwrite: false,
        publish_block_milliseconds: 1,
    }
}

fn request(sites: &[SitePlan]) -> PlanRequest {
    let site = |site: &SitePlan| IncidentSite {
        site: site.site.clone(),
        target: site.target,
        outage_at: site.outage_at,
        before: BTreeMap::new(),
        note: None,
    };
    PlanRequest {
        incident: Incident {
            format: FORMAT,
            title: "a test".to_owned(),
            declared_at: time(90),
            id_source: "the test".to_owned(),
            sites: sites.iter().map(site).collect(),
        },
        proof: ProofLevel::Full,
        overwrite: BTreeSet::new(),
        accept_block: BTreeSet::new(),
        accept_gap: BTreeSet::new(),
        placement: muster_types::request::Placement::default(),
    }
}

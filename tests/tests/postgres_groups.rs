//! Small stores of one shard on PostgreSQL and MinIO: restored in groups, one culprit alone.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]
#![allow(clippy::print_stdout, reason = "a measurement is printed")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use muster_demo::Role;
use muster_engine::{Cancel, Engine, Event, Events, Options, RunSummary};
use muster_repo::{Creation, ObjectEntry, Objects, RepoError, Repository, S3Config, S3Objects};
use muster_services::Minio;
use muster_tests::{Incident, Size, World, seed, until};
use muster_types::plan::{Plan, StepKey};
use muster_types::report::RunStatus;
use muster_types::topology::Topology;
use muster_types::{Epoch, RunId};
use postgres::{Client, NoTls};

/// One world at a time.
static TURN: Mutex<()> = Mutex::new(());

/// A captured world whose victims were deleted, all of it in the log, with a plan for them.
fn planned(size: Size, victims: usize, seed: u64) -> (World, Incident) {
    let mut world = World::on_services(size, seed);
    world.muster(&["capture", "init"]).ok();
    world.capture_once();
    world.follow();
    let incident = Incident::delete(&world, victims, Duration::ZERO);
    world.muster(&["capture", "wait", "--covers", "now"]).ok();
    incident.detect(&world);
    incident.plan(&world, &[]).ok();
    (world, incident)
}

fn plan_of(world: &World) -> Plan {
    serde_json::from_slice(&std::fs::read(world.path("plan.json")).unwrap()).unwrap()
}

/// Sizes of the plan's groups of publishes.
fn publish_groups(plan: &Plan) -> Vec<usize> {
    let mut sizes: BTreeMap<u32, usize> = BTreeMap::new();
    let publishes = plan.steps.iter().filter(|step| matches!(step.key, StepKey::Publish(_)));
    publishes.filter_map(|step| step.group).for_each(|group| *sizes.entry(group).or_default() += 1);
    sizes.into_values().collect()
}

/// A session in the shard of a role that holds `site`.
fn shard_of(world: &World, role: Role, site: &str) -> Client {
    let region = world.fleet.sites.iter().find(|known| known.id == site).unwrap().region;
    let shard = world.fleet.shards.iter().find(|shard| shard.role == role && shard.region == region).unwrap();
    Client::connect(&shard.database.as_ref().unwrap().connection, NoTls).unwrap()
}

#[test]
fn a_key_that_is_taken_costs_its_own_site_and_the_others_of_its_group_come_back() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    const VICTIMS: usize = 9;
    let size = Size { sites: 24, rows_per_site: 120 };
    let mut world = World::on_services(size, seed(7));
    let names: BTreeMap<String, String> =
        world.fleet.sites.iter().map(|site| (site.id.clone(), site.name.clone())).collect();
    world.muster(&["capture", "init"]).ok();
    world.capture_once();
    world.follow();
    let incident = Incident::delete(&world, VICTIMS, Duration::ZERO);
    world.muster(&["capture", "wait", "--covers", "now"]).ok();
    incident.detect(&world);
    incident.plan(&world, &["--proof", "full"]).ok();
    let groups = publish_groups(&plan_of(&world));
    assert!(groups.iter().any(|&size| size >= 2), "{groups:?}");

    // Somebody takes the name of a victim between plan and publish.
    let victim = incident.log.sites[VICTIMS / 2].site.clone();
    let mut shard = shard_of(&world, Role::Core, &victim);
    let take = "INSERT INTO site (site_id, name, region, tier, customer, internal, users, status, created_at) \
                VALUES ('squatter', $1, 'eu', 'free', 'c', false, 1, 'active', now())";
    assert_eq!(shard.execute(take, &[&names[&victim]]).unwrap(), 1);
    let held = format!(
        "site:{victim}/metadata: key (name) = ('{}') of table `site` is held by site:squatter",
        names[&victim]
    );
    let ran = world.muster(&["apply", "plan.json", "--run", "first"]).code(3);
    ran.says(&["8 sites restored, 1 not", &held]);
    let report = world.report("first");
    assert_eq!(report.status, RunStatus::RestoredInPart);
    for site in &report.sites {
        let failed = site.site.as_str() == victim;
        assert_eq!(site.failure.is_some(), failed, "{}: {:?}", site.site, site.failure);
        assert_eq!(site.handed_back_at.is_none(), failed, "{}", site.site);
    }
    assert_eq!(report.proof.sites_proven, VICTIMS as u64 - 1);

    // When it is free again the site comes back as well, and the oracle finds no difference in any row.
    assert_eq!(shard.execute("DELETE FROM site WHERE site_id = 'squatter'", &[]).unwrap(), 1);
    world.muster(&["resume", "first"]).ok().says(&["9 sites restored, 0 not"]);
    world.stop_following();
    let verdict = incident.judge(&world, "first");
    assert!(verdict.holds(), "seed {}:\n{verdict}", world.seed);
    assert_eq!(verdict.victims_equal, VICTIMS, "{verdict}");
}

/// Whatever a publish of a group writes beside its stores stands in the log under a mark of the group, and is found there.
#[test]
fn a_stray_write_within_a_group_is_found_by_its_mark() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut world, incident) = planned(Size { sites: 24, rows_per_site: 120 }, 9, seed(10));
    let victims: Vec<&str> = incident.log.sites.iter().map(|site| site.site.as_str()).collect();
    let region = |site: &str| world.fleet.sites.iter().find(|known| known.id == site).unwrap().region;
    let victim = victims
        .iter()
        .find(|victim| victims.iter().filter(|other| region(other) == region(victim)).count() >= 2);
    let victim = *victim.expect("nine victims in two regions");
    let neighbour = world
        .fleet
        .sites
        .iter()
        .find(|site| site.region == region(victim) && !victims.contains(&site.id.as_str()));
    let neighbour = &neighbour.unwrap().id;
    plant(&world, victim, neighbour);
    let ran = world.muster(&["apply", "plan.json", "--run", "first"]).code(3);
    let owner = format!("site:{neighbour}");
    ran.says(&["8 sites restored, 1 not", "stray write: the publish of", "`site_configuration`", &owner]);
    world.stop_following();
}

/// A neighbour's row is written in the transaction that publishes `victim`, behind everything that the driver counts.
fn plant(world: &World, victim: &str, neighbour: &str) {
    let text = std::fs::read_to_string(world.path("muster.toml")).unwrap();
    let topology = Topology::parse(&text, "muster.toml", &world.dir).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let drivers = muster_stores::drivers(&topology);
    // So that the table of records is there.
    for driver in drivers.values() {
        runtime.block_on(driver.fence(&RunId::new("earlier").unwrap(), Epoch(1))).unwrap();
    }
    let sql = format!(
        "CREATE FUNCTION public.plant() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
           INSERT INTO public.site_configuration VALUES ('{neighbour}', 'planted', '1', 1); RETURN NULL; END $$; \
         CREATE TRIGGER planted AFTER INSERT ON muster.published FOR EACH ROW \
           WHEN (new.site = '{victim}' AND new.kind = 'metadata') EXECUTE FUNCTION public.plant(); \
         ALTER TABLE muster.published ENABLE ALWAYS TRIGGER planted"
    );
    shard_of(world, Role::Core, victim).batch_execute(&sql).unwrap();
}

/// `kill -9` of the engine as soon as something is published, and of the next one later: each group is there whole or
/// not at all, and what is there is not published again.
#[test]
fn an_engine_that_is_killed_among_groups_is_followed_by_another() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    const VICTIMS: usize = 30;
    let (mut world, incident) = planned(Size { sites: 50, rows_per_site: 80 }, VICTIMS, seed(11));
    let stores = plan_of(&world).shards.values().map(|shard| shard.stores).sum::<u64>();
    let mut shards: Vec<Client> = world
        .fleet
        .shards
        .iter()
        .map(|shard| Client::connect(&shard.database.as_ref().unwrap().connection, NoTls).unwrap())
        .collect();
    let mut command: &[&str] = &["apply", "plan.json", "--run", "first"];
    for moment in [1, stores / 2] {
        let mut engine = world.command(command).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        until("the engine to publish, or its end", || {
            published(&mut shards) >= moment || engine.try_wait().unwrap().is_some()
        });
        engine.kill().unwrap();
        engine.wait().unwrap();
        command = &["resume", "first"];
    }
    let killed_at = published(&mut shards);
    assert!(killed_at >= 1, "killed before anything was published");
    world.muster(&["resume", "first"]).ok().says(&["30 sites restored, 0 not"]);
    assert_eq!(published(&mut shards), stores);
    world.stop_following();
    let verdict = incident.judge(&world, "first");
    assert!(verdict.holds(), "seed {}:\n{verdict}", world.seed);
    assert_eq!(verdict.victims_equal, VICTIMS, "{verdict}");
}

/// Stores that the shards say were published.
fn published(shards: &mut [Client]) -> u64 {
    let count = |shard: &mut Client| {
        let there = shard.query_one("SELECT to_regclass('muster.published') IS NOT NULL", &[]).unwrap();
        if !there.get::<_, bool>(0) {
            return 0;
        }
        let row = shard.query_one("SELECT count(*) FROM muster.published", &[]).unwrap();
        row.get::<_, i64>(0).unsigned_abs()
    };
    shards.iter_mut().map(count).sum()
}

/// A repository that counts reads by key.
struct Counting {
    objects: S3Objects,
    reads: Mutex<BTreeMap<String, u64>>,
}

impl Counting {
    fn count(&self, key: &str) {
        *self.reads.lock().unwrap().entry(key.to_owned()).or_default() += 1;
    }
}

#[async_trait]
impl Objects for Counting {
    async fn create(&self, key: &str, body: Bytes) -> Result<Creation, RepoError> {
        self.objects.create(key, body).await
    }
    async fn put(&self, key: &str, body: Bytes) -> Result<(), RepoError> {
        self.objects.put(key, body).await
    }
    async fn put_file(&self, key: &str, path: &Path) -> Result<(), RepoError> {
        self.objects.put_file(key, path).await
    }
    async fn get(&self, key: &str) -> Result<Option<Bytes>, RepoError> {
        self.count(key);
        self.objects.get(key).await
    }
    async fn get_range(&self, key: &str, offset: u64, bytes: u64) -> Result<Bytes, RepoError> {
        self.count(key);
        self.objects.get_range(key, offset, bytes).await
    }
    async fn size(&self, key: &str) -> Result<Option<u64>, RepoError> {
        self.objects.size(key).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectEntry>, RepoError> {
        self.objects.list(prefix, after).await
    }
    async fn delete(&self, key: &str) -> Result<(), RepoError> {
        self.objects.delete(key).await
    }
    async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, RepoError> {
        self.objects.list_folders(prefix).await
    }
}

async fn counting(world: &World, topology: &Topology) -> Arc<Counting> {
    let minio = Minio::shared().unwrap();
    let credentials = world.path("credentials");
    let text = format!(
        "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        minio.access_key(),
        minio.secret_key()
    );
    std::fs::write(&credentials, text).unwrap();
    let config = S3Config {
        bucket: topology.repository.bucket.clone(),
        prefix: String::new(),
        region: Some("us-east-1".to_owned()),
        endpoint: topology.repository.endpoint.clone(),
        path_style: true,
        credentials_file: Some(credentials),
        requests_in_flight: 64,
    };
    let objects = S3Objects::connect(&config).await.unwrap();
    Arc::new(Counting { objects, reads: Mutex::default() })
}

/// What an engine of this process did.
struct Applied {
    summary: RunSummary,
    /// Until the last store was published, and until all was proven and handed back.
    published: Duration,
    ended: Duration,
    /// By key.
    reads: BTreeMap<String, u64>,
}

/// Applies a plan.
fn applied(world: &World, plan: &Plan) -> Applied {
    let text = std::fs::read_to_string(world.path("muster.toml")).unwrap();
    let topology = Topology::parse(&text, "muster.toml", &world.dir).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let objects = counting(world, &topology).await;
        let repository = Repository::open(Arc::clone(&objects) as Arc<dyn Objects>).await.unwrap();
        let drivers = muster_stores::drivers(&topology);
        let (events, mut told) = Events::channel();
        let engine = Engine::new(repository, drivers, Options::new("test", topology.digest), events);
        let began = Instant::now();
        let last_publish = tokio::spawn(async move {
            let mut published = Duration::ZERO;
            while let Some(event) = told.recv().await {
                if matches!(event, Event::Succeeded { step: StepKey::Publish(_), .. }) {
                    published = began.elapsed();
                }
            }
            published
        });
        let summary =
            engine.apply(plan.clone(), &RunId::new("first").unwrap(), &Cancel::new()).await.unwrap();
        let ended = began.elapsed();
        drop(engine);
        let reads = objects.reads.lock().unwrap().clone();
        Applied { summary, published: last_publish.await.unwrap(), ended, reads }
    })
}

/// Each pack, each segment of the log and each index is asked for once, however many stores need a part of it.
#[test]
fn many_victims_of_a_shard_read_each_object_once() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut world, incident) = planned(Size { sites: 60, rows_per_site: 80 }, 30, seed(8));
    let plan = plan_of(&world);
    let Applied { summary, reads, .. } = applied(&world, &plan);
    assert_eq!((summary.sites_restored, summary.failures), (30, vec![]));
    for object in &plan.objects {
        // An extent is read by one request, and these objects are smaller than one.
        assert!(object.bytes < 4 * 1024 * 1024, "{object:?}");
        assert_eq!(reads.get(&object.key), Some(&1), "{}", object.key);
    }
    // What the proofs read of the log behind the plan: index and data of each segment, once an engine.
    let planned: Vec<&String> = plan.objects.iter().map(|object| &object.key).collect();
    let others = reads.iter().filter(|(key, _)| key.contains("/log/") && !planned.contains(key));
    let others: Vec<_> = others.collect();
    assert!(!others.is_empty(), "{reads:?}");
    for (key, reads) in others {
        assert_eq!(*reads, 1, "{key}");
    }
    world.stop_following();
    incident.is_undone(&world, "first");
}

/// With groups and without, all comes back; prints what each way took. For figures:
/// `SITES=330 cargo test --release -p muster-tests --test postgres_groups with_groups -- --nocapture`
#[test]
fn with_groups_and_without_all_sites_come_back() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let number = |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (sites, rows) = (number("SITES", 22), number("ROWS", 60));
    for grouped in [false, true] {
        let (mut world, incident) = planned(Size { sites, rows_per_site: rows }, sites * 10 / 11, seed(9));
        let mut plan = plan_of(&world);
        if !grouped {
            plan.steps.iter_mut().for_each(|step| step.group = None);
            plan = plan.seal();
        }
        let Applied { summary, published, ended, reads } = applied(&world, &plan);
        assert_eq!(summary.sites_failed, 0, "{:?}", summary.failures);
        let (stores, rows) = plan
            .shards
            .values()
            .fold((0, 0), |(stores, rows), shard| (stores + shard.stores, rows + shard.rows));
        let seconds = published.as_secs_f64();
        println!(
            "grouped {grouped}: {} sites, {stores} stores, {rows} rows of {} shards published in {seconds:.2} s: {:.0} \
             stores/s, {:.0} rows/s; handed back after {:.2} s; {} reads",
            plan.sites.len(),
            plan.shards.len(),
            stores as f64 / seconds,
            rows as f64 / seconds,
            ended.as_secs_f64(),
            reads.values().sum::<u64>(),
        );
        world.stop_following();
        incident.is_undone(&world, "first");
    }
}

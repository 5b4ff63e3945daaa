//! The fleet that is restored: shards, a repository behind the embedded S3 server, plans.
//!
//! Made once: a generated fleet is captured, written to for a while, captured again, loses its victims, and is captured
//! once more. What the shards are then is kept aside, and each round of a benchmark begins with a copy of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use muster_capture::{CaptureOptions, CaptureRunner, Installer};
use muster_demo::{Fleet, FleetConfig, RepositoryPlace, TopologyOptions, WriterConfig};
use muster_engine::Drivers;
use muster_engine::driver::StoreProbe;
use muster_plan::{PlanInput, planner};
use muster_repo::catalog::{self, CatalogQuery, Sites};
use muster_repo::{Repository, S3Config, S3Objects};
use muster_s3_server::{RunningServer, ServerConfig};
use muster_types::format::FORMAT;
use muster_types::incident::{Incident, IncidentSite};
use muster_types::plan::{LiveStore, Plan};
use muster_types::request::{PlanRequest, ProofLevel};
use muster_types::topology::Topology;
use muster_types::{ShardName, SiteId, StoreId, Timestamp};

use crate::Args;
use crate::measure::count;

const BUCKET: &str = "muster";
/// Requests in flight, as the topology's default.
pub(crate) const REQUESTS: usize = 64;
/// Writers work on the fleet for so long, so that the log is more than its snapshot.
const WRITING: Duration = Duration::from_secs(3);

/// See the module.
pub(crate) struct World {
    pub(crate) topology: Topology,
    pub(crate) repository: Repository,
    /// The victims' restore.
    pub(crate) plan: Plan,
    /// Every site's rows at the same moment; only to be read.
    pub(crate) whole: Plan,
    /// Shards as the victims left them: with capture, and without anything of Muster.
    captured: PathBuf,
    plain: PathBuf,
    live: PathBuf,
    server: RunningServer,
    // Removes the folder in the end.
    _dir: tempfile::TempDir,
}

/// How a shard of a peer is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeping {
    /// Nothing of Muster in it.
    Plain,
    /// With capture's triggers and tables.
    Captured,
}

impl World {
    pub(crate) async fn make(args: &Args) -> Result<Self> {
        let began = Instant::now();
        let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(&args.dir)?;
        let root = fs::canonicalize(dir.path())?;
        let fleet = generate(args, &root).await?;
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let server = muster_s3_server::start(ServerConfig { dir: root.join("s3"), listen: any }).await?;
        let topology = topology(&fleet, &server, &root)?;
        let repository = repository(&server).await?;
        for shard in Installer::new(&topology, None).init() {
            shard.result?;
        }
        capture(&repository, &topology).await?;
        let target = disturb(&fleet, &repository, &topology).await?;
        let victims = delete(&fleet, args.victims).await?;
        capture(&repository, &topology).await?;
        let (live, captured, plain) = keep(&fleet, &topology, &root)?;
        let sites = victims.iter().map(|site| site.parse()).collect::<Result<Vec<SiteId>, _>>()?;
        let all = fleet.sites.iter().map(|site| format!("site:{}", site.id).parse());
        let plan = make_plan(&repository, &topology, &sites, target).await?;
        let all = all.collect::<Result<Vec<SiteId>, _>>()?;
        let whole = make_plan(&repository, &topology, &all, target).await?;
        ensure!(
            planner::held_back(&plan.notes).is_empty(),
            "some victims cannot be restored: {:?}",
            plan.notes
        );
        println!(
            "fleet of {} sites, {} rows; {} victims with {} stores; made in {:.0} s",
            fleet.sites.len(),
            count(fleet.rows() as f64),
            plan.sites.len(),
            plan.sites.iter().map(|site| site.stores.len()).sum::<usize>(),
            began.elapsed().as_secs_f64()
        );
        Ok(Self { topology, repository, plan, whole, captured, plain, live, server, _dir: dir })
    }

    pub(crate) async fn close(self) {
        self.server.shutdown().await;
    }

    /// Brings the live shards back to where the victims are gone, and gives drivers for them.
    pub(crate) fn reset(&self) -> Result<Drivers> {
        copy_shards(&self.captured, &self.live)?;
        Ok(muster_stores::drivers(&self.topology))
    }

    /// A folder of its own for a peer, with the same shards; paths by shard.
    pub(crate) fn peer(&self, keeping: Keeping) -> Result<BTreeMap<ShardName, PathBuf>> {
        let from = if keeping == Keeping::Plain { &self.plain } else { &self.captured };
        let to = self.live.with_file_name("peer");
        copy_shards(from, &to)?;
        let path = |name: &ShardName| (name.clone(), to.join(format!("{name}.db")));
        Ok(self.topology.shards.keys().map(path).collect())
    }
}

async fn generate(args: &Args, root: &Path) -> Result<Arc<Fleet>> {
    let mut config = FleetConfig::new(root);
    (config.sites, config.rows_per_site, config.seed) = (args.sites, args.rows_per_site, args.seed);
    tokio::task::spawn_blocking(move || Fleet::generate(&config)).await?
}

fn topology(fleet: &Fleet, server: &RunningServer, root: &Path) -> Result<Topology> {
    let options = TopologyOptions {
        bucket: BUCKET.to_owned(),
        repository: RepositoryPlace::Embedded { folder: root.join("s3"), port: server.addr.port() },
        poll_interval_milliseconds: 500,
    };
    Ok(Topology::parse(&fleet.topology(&options), "muster.toml", root)?)
}

async fn repository(server: &RunningServer) -> Result<Repository> {
    let config = S3Config {
        bucket: BUCKET.to_owned(),
        prefix: String::new(),
        region: Some("us-east-1".to_owned()),
        endpoint: Some(format!("http://{}", server.addr)),
        path_style: true,
        credentials_file: Some(server.credentials_file.clone()),
        requests_in_flight: REQUESTS,
    };
    let objects = S3Objects::connect(&config).await?;
    objects.ensure_bucket().await?;
    Ok(Repository::create(Arc::new(objects), now()).await?)
}

pub(crate) async fn capture(repository: &Repository, topology: &Topology) -> Result<()> {
    let outcomes = CaptureRunner::new(repository, topology, CaptureOptions::of(topology)).once().await;
    for outcome in outcomes {
        outcome.result?;
    }
    Ok(())
}

/// Lets writers work; gives the moment to go back to, which the log covers.
async fn disturb(fleet: &Arc<Fleet>, repository: &Repository, topology: &Topology) -> Result<Timestamp> {
    let writers = fleet.start_writers(WriterConfig::default());
    tokio::time::sleep(WRITING).await;
    tokio::task::spawn_blocking(move || writers.stop()).await??;
    capture(repository, topology).await?;
    Ok(now())
}

async fn delete(fleet: &Arc<Fleet>, victims: usize) -> Result<Vec<String>> {
    let fleet = Arc::clone(fleet);
    tokio::task::spawn_blocking(move || {
        let victims = fleet.pick_victims(victims);
        let log = fleet.delete_victims(&victims, Duration::ZERO)?;
        Ok(log.sites.into_iter().map(|site| format!("site:{}", site.site)).collect())
    })
    .await?
}

/// Keeps the shards aside in both forms; live, captured and plain folder.
fn keep(fleet: &Fleet, topology: &Topology, root: &Path) -> Result<(PathBuf, PathBuf, PathBuf)> {
    for shard in &fleet.shards {
        let conn = rusqlite::Connection::open(&shard.path)?;
        conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    }
    let live = root.join("shards");
    let (captured, plain) = (root.join("captured"), root.join("plain"));
    copy_shards(&live, &captured)?;
    for shard in Installer::new(topology, None).remove() {
        shard.result?;
    }
    for shard in &fleet.shards {
        rusqlite::Connection::open(&shard.path)?.execute_batch("PRAGMA wal_checkpoint(TRUNCATE); VACUUM;")?;
    }
    copy_shards(&live, &plain)?;
    copy_shards(&captured, &live)?;
    Ok((live, captured, plain))
}

/// Copies shard files into a folder emptied before, durably, so that no round pays for the copy.
fn copy_shards(from: &Path, to: &Path) -> Result<()> {
    match fs::remove_dir_all(to) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => fs::create_dir_all(to)?,
    }
    for entry in fs::read_dir(from).with_context(|| format!("failed to read `{}`", from.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "db") {
            let copy = to.join(path.file_name().unwrap_or_default());
            fs::copy(&path, &copy)?;
            File::open(&copy)?.sync_all()?;
        }
    }
    Ok(File::open(to)?.sync_all()?)
}

pub(crate) async fn make_plan(
    repository: &Repository,
    topology: &Topology,
    sites: &[SiteId],
    target: Timestamp,
) -> Result<Plan> {
    let query =
        CatalogQuery { sites: Sites::Some(sites.iter().cloned().collect::<BTreeSet<_>>()), shards: None };
    let mut catalog = catalog::read(repository, &query, now()).await?;
    let one = |site: &SiteId| {
        let site = site.clone();
        IncidentSite { site, target, outage_at: None, before: BTreeMap::new(), note: None }
    };
    let incident = Incident {
        format: FORMAT,
        title: "benchmark".to_owned(),
        declared_at: now(),
        id_source: "benchmark".to_owned(),
        sites: sites.iter().map(one).collect(),
    };
    muster_inspect::read_facts(repository, topology, &mut catalog, &incident.sites).await?;
    let request = PlanRequest {
        incident,
        proof: ProofLevel::Marked,
        overwrite: BTreeSet::new(),
        accept_block: BTreeSet::new(),
        accept_gap: BTreeSet::new(),
        placement: muster_types::request::Placement::default(),
    };
    let live = probe(topology, &planner::select_stores(topology, &catalog, &request.incident.sites)?).await?;
    let input = PlanInput { topology, catalog: &catalog, request: &request, live: &live, now: now() };
    Ok(planner::plan(input)?)
}

async fn probe(
    topology: &Topology,
    stores: &[planner::StoreToProbe],
) -> Result<BTreeMap<StoreId, LiveStore>> {
    let mut by_shard: BTreeMap<&ShardName, Vec<StoreProbe>> = BTreeMap::new();
    for store in stores {
        let probe = StoreProbe { store: store.store.clone(), tables: Arc::clone(&store.tables) };
        by_shard.entry(&store.shard).or_default().push(probe);
    }
    let drivers = muster_stores::drivers(topology);
    let mut live = BTreeMap::new();
    for (shard, probes) in by_shard {
        let answers = drivers[shard].probe(&probes).await?;
        live.extend(probes.into_iter().map(|probe| probe.store).zip(answers));
    }
    Ok(live)
}

pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

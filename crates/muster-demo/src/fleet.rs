//! The fleet: sites over shards, made from a seed.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use anyhow::{Context, Result, ensure};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rusqlite::Connection;

use crate::kind::{Kind, Role};
use crate::load;
use crate::postgres::{self, PostgresServer};
use crate::record::{Ledger, Shard};
use crate::site::{self, REGIONS, Site};

/// Ids that writers give out start here, far above those of the first rows.
const WRITER_IDS_FROM: i64 = 1_000_000_000;

/// What to make.
#[derive(Clone, Debug)]
pub struct FleetConfig {
    /// Number of sites.
    pub sites: usize,
    /// Rows aimed at per site, on average.
    pub rows_per_site: usize,
    /// The same seed gives the same rows.
    pub seed: u64,
    /// Folder for all files; made if absent, and must hold no fleet yet.
    pub dir: PathBuf,
}

impl FleetConfig {
    /// The demo's own size: 2,000 sites.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { sites: 2_000, rows_per_site: 400, seed: 883, dir: dir.into() }
    }
}

/// Sites over shards, and the record of every write.
#[derive(Debug)]
pub struct Fleet {
    /// What it was made from.
    pub config: FleetConfig,
    /// All sites; other parts name them by index.
    pub sites: Vec<Site>,
    /// All shards, by region and role.
    pub shards: Vec<Shard>,
    pub(crate) gone: Vec<AtomicBool>,
    has: Vec<AtomicU16>,
    ids: AtomicI64,
    pub(crate) queue: RwLock<Vec<usize>>,
    pub(crate) queue_at: AtomicUsize,
    /// One a site, and the last for what is nobody's.
    turns: Vec<Mutex<()>>,
}

impl Fleet {
    /// Makes the shards as SQLite files and fills them, two at a time.
    ///
    /// # Errors
    /// If the folder cannot be written or holds a fleet already.
    pub fn generate(config: &FleetConfig) -> Result<Arc<Self>> {
        Self::make(config, None)
    }

    /// Makes the shards as databases of a server, with the same rows.
    ///
    /// # Errors
    /// As [`Self::generate`], or if the server cannot be reached or refuses.
    pub fn generate_on(server: &PostgresServer, config: &FleetConfig) -> Result<Arc<Self>> {
        Self::make(config, Some(server))
    }

    fn make(config: &FleetConfig, server: Option<&PostgresServer>) -> Result<Arc<Self>> {
        ensure!(config.sites > 0, "a fleet needs at least one site: give --sites 1 or more");
        let sites = site::sites(config.sites, config.rows_per_site, config.seed);
        let config = FleetConfig { dir: std::path::absolute(&config.dir)?, ..config.clone() };
        let mut shards = Self::make_shards(&config.dir, server)?;
        fill(&mut shards, &sites, config.seed)?;
        let bits =
            |site: &Site| AtomicU16::new(site.kinds.iter().fold(0, |bits, kind| bits | 1 << *kind as u16));
        Ok(Arc::new(Self {
            gone: sites.iter().map(|_| AtomicBool::new(false)).collect(),
            has: sites.iter().map(bits).collect(),
            ids: AtomicI64::new(WRITER_IDS_FROM),
            queue: RwLock::default(),
            queue_at: AtomicUsize::new(0),
            turns: (0..=sites.len()).map(|_| Mutex::default()).collect(),
            config,
            sites,
            shards,
        }))
    }

    fn make_shards(dir: &Path, server: Option<&PostgresServer>) -> Result<Vec<Shard>> {
        let live = if server.is_some() { "model" } else { "shards" };
        let (live, first) = (dir.join(live), dir.join("oracle"));
        for folder in [&live, &first] {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let mut shards = Vec::new();
        for (region, region_name) in REGIONS.iter().enumerate() {
            for role in Role::ALL {
                let name = format!("{region_name}-{}", role.name());
                let path = live.join(format!("{name}.db"));
                ensure!(!path.exists(), "{} exists: choose an empty folder, or remove it", path.display());
                let first = first.join(format!("{name}.db"));
                let database = server.map(|server| server.create(&name)).transpose()?;
                // Replication slots are named by shard, and are those of the whole server.
                let name = database.as_ref().map_or(name, |database| database.name.clone());
                shards.push(Shard {
                    name,
                    region,
                    role,
                    path,
                    first,
                    database,
                    rows: 0,
                    ledger: Mutex::new(Ledger::default()),
                });
            }
        }
        Ok(shards)
    }

    /// Rows at first, over all shards.
    pub fn rows(&self) -> u64 {
        self.shards.iter().map(|shard| shard.rows).sum()
    }

    /// Transactions committed so far.
    pub fn transactions(&self) -> u64 {
        self.shards.iter().map(|shard| shard.ledger().entries.len() as u64).sum()
    }

    /// Index of the shard that holds a site's stores of `kind`.
    pub(crate) fn shard_of(&self, site: usize, kind: Kind) -> usize {
        let (region, role) = (self.sites[site].region, kind.role());
        region * Role::ALL.len() + Role::ALL.iter().position(|other| *other == role).unwrap_or_default()
    }

    /// Held by whoever writes to a site, or to rows of nobody.
    pub(crate) fn turn(&self, site: Option<usize>) -> &Mutex<()> {
        &self.turns[site.unwrap_or(self.sites.len())]
    }

    /// An id that no row has.
    pub(crate) fn new_id(&self) -> i64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn is_gone(&self, site: usize) -> bool {
        self.gone[site].load(Ordering::SeqCst)
    }

    /// The site has this kind now.
    pub(crate) fn has(&self, site: usize, kind: Kind) -> bool {
        self.has[site].load(Ordering::SeqCst) & (1 << kind as u16) != 0
    }

    pub(crate) fn activate(&self, site: usize, kind: Kind) {
        self.has[site].fetch_or(1 << kind as u16, Ordering::SeqCst);
    }

    /// Chooses `count` sites for the bad script, in its order: a fifth are the operator's own, and most of the others
    /// are inactive, free or small, as in the incident.
    pub fn pick_victims(&self, count: usize) -> Vec<usize> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.config.seed ^ 0x5eed_dead);
        let count = count.min(self.sites.len());
        let mut order: Vec<(f64, usize)> = Vec::with_capacity(self.sites.len());
        for (index, site) in self.sites.iter().enumerate() {
            let dull = site.inactive || site.tier == "free" || site.rows < self.config.rows_per_site / 2;
            let weight: f64 = if dull { 3.0 } else { 1.0 };
            order.push((rng.random::<f64>().powf(1.0 / weight), index));
        }
        order.sort_by(|a, b| b.0.total_cmp(&a.0));
        let (own, others): (Vec<usize>, Vec<usize>) =
            order.into_iter().map(|(_, index)| index).partition(|index| self.sites[*index].internal);
        let own_count = own.len().min(count / 5).max(count.saturating_sub(others.len()));
        let mut victims: Vec<usize> = own.into_iter().take(own_count).collect();
        victims.extend(others.into_iter().take(count - victims.len()));
        victims.shuffle(&mut rng);
        victims
    }
}

fn fill(shards: &mut [Shard], sites: &[Site], seed: u64) -> Result<()> {
    // The largest shards first, so that the threads end together.
    let mut work: Vec<&mut Shard> = shards.iter_mut().collect();
    work.sort_by_key(|shard| (shard.role != Role::Jira, shard.role != Role::Identity, shard.region));
    work.reverse();
    let work = Mutex::new(work);
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(8);
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    while let Some(shard) = work.lock().ok().and_then(|mut work| work.pop()) {
                        fill_shard(shard, sites, seed)?;
                    }
                    Ok(())
                })
            })
            .collect();
        handles.into_iter().try_for_each(|handle| {
            handle.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a thread that fills shards panicked")))
        })
    })
}

fn fill_shard(shard: &mut Shard, sites: &[Site], seed: u64) -> Result<()> {
    let connection = Connection::open(&shard.path)?;
    let region = shard.region;
    let here = sites.iter().enumerate().filter(|(_, site)| site.region == region);
    shard.rows = load::fill(&connection, shard.role, here, seed)
        .with_context(|| format!("filling {}", shard.path.display()))?;
    if let Some(database) = &mut shard.database {
        postgres::fill(database, shard.role, &connection)?;
    }
    connection.close().map_err(|(_, error)| error)?;
    std::fs::copy(&shard.path, &shard.first)
        .with_context(|| format!("cannot copy {} to {}", shard.path.display(), shard.first.display()))?;
    Ok(())
}

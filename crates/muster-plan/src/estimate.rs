//! Pools, what each step takes of them, and how long it is expected to last.
//!
//! The rates are defaults for one ordinary machine with a local disk, chosen low rather than high, so that a forecast
//! errs towards late. They are assumptions of a plan, not promises; a run reports what it measured.
//!
//! # Invariants
//! - Every demand is bounded by a constant of this module, whatever the size of a store.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use muster_types::ShardName;
use muster_types::catalog::Catalog;
use muster_types::plan::{Demand, Provision, Restoration, SitePlan, StorePlan};
use muster_types::topology::Topology;

/// Compressed bytes read and checked per second by one stage step.
pub const READ_BYTES_PER_SECOND: u64 = 40_000_000;
/// Rows folded and loaded beside the live data per second by one stage step.
pub const STAGE_ROWS_PER_SECOND: u64 = 150_000;
/// Staged rows digested per second.
pub const VERIFY_ROWS_PER_SECOND: u64 = 400_000;
/// Rows published per second: with indexes, foreign keys and the log rows.
pub const PUBLISH_ROWS_PER_SECOND: u64 = 60_000;
/// Marked changes read back per second.
pub const CHECK_ROWS_PER_SECOND: u64 = 400_000;
/// Bytes of a shard digested per second, by the compressed size of its last snapshot.
pub const DIGEST_BYTES_PER_SECOND: u64 = 20_000_000;
/// What every step costs beside its rows: requests, files, journal.
pub const STEP_MICROS: u64 = 10_000;
/// A publish transaction's begin, checks and synced commit.
pub const PUBLISH_MICROS: u64 = 5_000;
/// A declared command: to re-create a rebuilt kind, or to check an external one.
pub const COMMAND_MICROS: u64 = 1_000_000;
/// A check of the operator's: a statement with its connection, or a small program.
pub const KIND_CHECK_MICROS: u64 = 100_000;
/// Most memory that one stage step may hold: its fold spills beyond it.
pub const STAGE_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Least memory of a stage step: one frame, compressed and not, and the batch in flight.
pub const STAGE_BYTES_MIN: u64 = 4 * 1024 * 1024;
/// Requests that one stage step has in flight at most: enough to hide the latency of S3 behind the loading of rows.
pub const STAGE_REQUESTS_MAX: u64 = 4;

/// The pool of stores staged at once, over all shards.
pub const POOL_STAGE: &str = "stage";
/// The pool of bytes in flight.
pub const POOL_BYTES: &str = "bytes";
/// The pool of S3 requests in flight.
pub const POOL_S3: &str = "s3";

/// The pool of a shard's stage slots.
pub fn stage_pool(shard: &ShardName) -> String {
    format!("stage:{shard}")
}

/// The pool of a shard's publish slots.
pub fn publish_pool(shard: &ShardName) -> String {
    format!("publish:{shard}")
}

/// Capacity of every pool that the stores of `sites` use.
pub fn pools(topology: &Topology, sites: &[SitePlan]) -> BTreeMap<String, u64> {
    let limits = &topology.limits;
    let mut pools = BTreeMap::from([
        (POOL_STAGE.to_owned(), limits.stage_slots),
        (POOL_BYTES.to_owned(), limits.bytes_in_flight),
        (POOL_S3.to_owned(), limits.s3_requests),
    ]);
    let shards: std::collections::BTreeSet<&ShardName> =
        sites.iter().flat_map(|site| &site.stores).map(|store| &store.shard).collect();
    for shard in shards {
        let config = topology.shards.get(shard);
        pools.insert(stage_pool(shard), config.map_or(0, |config| config.stage_slots));
        pools.insert(publish_pool(shard), config.map_or(0, |config| config.publish_slots));
    }
    pools
}

/// How long publishing blocks the shard's other writers, in milliseconds, rounded up.
pub fn publish_block_milliseconds(rows: u64, replaced: u64) -> u64 {
    publish_micros(rows, replaced).div_ceil(1_000)
}

fn publish_micros(rows: u64, replaced: u64) -> u64 {
    PUBLISH_MICROS + at_rate(rows + replaced, PUBLISH_ROWS_PER_SECOND)
}

/// The least that loading a store takes where the topology bounds it: its stage slots share the rate.
pub(crate) fn bounded_stage_micros(store: &StorePlan, bytes_per_second_max: u64) -> u64 {
    STEP_MICROS + at_rate(store.raw_bytes, bytes_per_second_max)
}

/// Microseconds for `amount` at `per_second`.
fn at_rate(amount: u64, per_second: u64) -> u64 {
    amount.saturating_mul(1_000_000) / per_second
}

/// Demand and expected microseconds of a step.
pub(crate) type Cost = (Demand, u64);

/// What steps take.
#[derive(Debug)]
pub struct Demands<'a> {
    catalog: &'a Catalog,
    names: [Arc<str>; 3],
    shards: BTreeMap<&'a ShardName, ShardDemands>,
    request: Demand,
}

/// Demands that all steps of a shard share.
#[derive(Clone, Debug)]
struct ShardDemands {
    stage_pool: Arc<str>,
    verify: Demand,
    publish: Demand,
}

impl ShardDemands {
    fn new(shard: &ShardName) -> Self {
        let stage_pool: Arc<str> = stage_pool(shard).into();
        let verify = [(POOL_STAGE.into(), 1), (Arc::clone(&stage_pool), 1)].into_iter().collect();
        Self { stage_pool, verify, publish: [(publish_pool(shard), 1)].into_iter().collect() }
    }
}

impl<'a> Demands<'a> {
    /// Demands of a plan made from `catalog`.
    pub fn new(catalog: &'a Catalog) -> Self {
        Self {
            catalog,
            names: [POOL_STAGE, POOL_BYTES, POOL_S3].map(Arc::from),
            shards: catalog.shards.keys().map(|shard| (shard, ShardDemands::new(shard))).collect(),
            request: [(POOL_S3, 1)].into_iter().collect(),
        }
    }

    fn shard(&self, shard: &ShardName) -> Cow<'_, ShardDemands> {
        self.shards.get(shard).map_or_else(|| Cow::Owned(ShardDemands::new(shard)), Cow::Borrowed)
    }

    /// Of giving an empty shard its definitions and reference rows.
    pub fn provision(&self, shard: &ShardName, provision: &Provision) -> Cost {
        let demand = self.shard(shard).verify.clone();
        let read = at_rate(provision.bytes, READ_BYTES_PER_SECOND);
        (demand, STEP_MICROS + PUBLISH_MICROS + read + at_rate(provision.rows, STAGE_ROWS_PER_SECOND))
    }

    /// Of loading a store: a slot here and there, memory by its size, requests by its number of ranges.
    pub fn stage(&self, store: &StorePlan) -> Cost {
        let ranges: usize =
            store.tables.iter().map(|table| usize::from(table.base.is_some()) + table.changes.len()).sum();
        let bytes = store.raw_bytes.saturating_mul(2).clamp(STAGE_BYTES_MIN, STAGE_BYTES_MAX);
        let [stage, in_flight, s3] = self.names.clone();
        let demand = [
            (stage, 1),
            (Arc::clone(&self.shard(&store.shard).stage_pool), 1),
            (in_flight, bytes),
            (s3, (ranges as u64).clamp(1, STAGE_REQUESTS_MAX)),
        ];
        let demand = demand.into_iter().collect();
        let read = at_rate(store.bytes, READ_BYTES_PER_SECOND);
        (demand, STEP_MICROS + read + at_rate(store.rows, STAGE_ROWS_PER_SECOND))
    }

    /// Of digesting staged rows.
    pub fn verify(&self, store: &StorePlan) -> Cost {
        let demand = self.shard(&store.shard).verify.clone();
        (demand, STEP_MICROS + at_rate(store.rows, VERIFY_ROWS_PER_SECOND))
    }

    /// Of publishing, or of the command that re-creates a rebuilt store.
    pub fn publish(&self, store: &StorePlan) -> Cost {
        let demand = self.shard(&store.shard).publish.clone();
        match store.restoration {
            Restoration::Restored => {
                let replaced = if store.overwrite { store.live.rows } else { 0 };
                (demand, STEP_MICROS + publish_micros(store.rows, replaced))
            }
            Restoration::Rebuilt { .. } | Restoration::External { .. } => (demand, COMMAND_MICROS),
        }
    }

    /// Of reading back what a site's publishes did.
    pub fn check(&self, site: &SitePlan) -> Cost {
        let rows = site.stores.iter().map(|store| store.rows).sum();
        (self.request.clone(), STEP_MICROS + at_rate(rows, CHECK_ROWS_PER_SECOND))
    }

    /// Of counting references: the rows of both ends are read, each once.
    pub fn references(&self, site: &SitePlan) -> Cost {
        let rows = site.stores.iter().map(|store| store.rows).sum();
        (self.request.clone(), STEP_MICROS + at_rate(rows, CHECK_ROWS_PER_SECOND))
    }

    /// Of a check of the operator's.
    pub fn kind_check(&self) -> Cost {
        (self.request.clone(), KIND_CHECK_MICROS)
    }

    /// Of giving a site back, with the commands of its external kinds.
    pub fn handback(&self, site: &SitePlan) -> Cost {
        let external = |store: &&StorePlan| matches!(store.restoration, Restoration::External { .. });
        let commands = site.stores.iter().filter(external).count() as u64;
        (self.request.clone(), STEP_MICROS + commands * COMMAND_MICROS)
    }

    /// Of digesting a shard's neighbours.
    pub fn digest(&self, shard: &ShardName) -> Cost {
        let history = self.catalog.shards.get(shard).and_then(|history| history.incarnations.last());
        let snapshot = history.and_then(|history| history.snapshots.last());
        let bytes = snapshot.map_or(0, |snapshot| snapshot.packs.iter().map(|pack| pack.bytes).sum());
        let demand = self.shard(shard).verify.clone();
        (demand, STEP_MICROS + at_rate(bytes, DIGEST_BYTES_PER_SECOND))
    }
}

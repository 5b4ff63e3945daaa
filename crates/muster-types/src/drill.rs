//! Drills: what one is asked to do, and what came of it.
//!
//! [`DrillSpec`] is the file that an operator writes; [`DrillBegun`] and [`DrillRecord`] lie in the repository.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::ids::{DrillId, Kind, PlanId, RunId, ShardName, SiteId};
use crate::position::Boundary;
use crate::report::ForecastReport;
use crate::time::Timestamp;

/// What is rehearsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DrillClass {
    /// One store of one site.
    OneStore,
    /// One site with all its stores.
    OneSite,
    /// Many sites with all their stores.
    ManySites,
    /// All that a shard held, into an empty one.
    LostShard,
    /// Sites whose live rows are replaced by those of an earlier moment.
    Corruption,
}

impl DrillClass {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::OneStore, Self::OneSite, Self::ManySites, Self::LostShard, Self::Corruption];

    /// As drill files write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::OneStore => "one-store",
            Self::OneSite => "one-site",
            Self::ManySites => "many-sites",
            Self::LostShard => "lost-shard",
            Self::Corruption => "corruption",
        }
    }
}

/// By what sites are told apart, so that each sort has its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stratum {
    /// Their tier.
    Tier,
    /// The shards that hold them.
    Shard,
    /// The order of magnitude of their rows.
    Size,
    /// Their kinds.
    Products,
}

/// The drill file (TOML).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrillSpec {
    /// Format version.
    pub format: u32,
    /// What the drill is called in the history.
    pub name: String,
    /// What is rehearsed.
    pub class: DrillClass,
    /// How many sites, for classes of several.
    #[serde(default = "one")]
    pub sites: u64,
    /// Makes the choice repeatable; drawn anew each time where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// By what sites are told apart.
    #[serde(default = "all_strata")]
    pub strata: Vec<Stratum>,
    /// Any moment of the last so many seconds is promised.
    pub window_seconds: u64,
    /// The newest moments are left to capture to become durable.
    #[serde(default = "settle")]
    pub settle_seconds: u64,
    /// This moment, and none by chance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// The shard that is lost, or that sites are taken from; any where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<ShardName>,
    /// An incident that is replayed: its sites and their targets. Relative to the drill file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incident: Option<PathBuf>,
    /// What keeps it from disturbing production.
    #[serde(default)]
    pub limits: DrillLimits,
    /// It is given up after so long.
    #[serde(default = "timeout")]
    pub timeout_seconds: u64,
    /// What it must reach.
    #[serde(default)]
    pub expect: DrillExpectation,
}

fn one() -> u64 {
    1
}

fn all_strata() -> Vec<Stratum> {
    vec![Stratum::Tier, Stratum::Shard, Stratum::Size, Stratum::Products]
}

/// A minute: several polls, and the upload of a large segment.
fn settle() -> u64 {
    60
}

/// Six hours: less than a night.
fn timeout() -> u64 {
    6 * 3600
}

/// Limits of a drill; what is absent is as the topology has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrillLimits {
    /// Stores staged at once, over all shards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage_slots: Option<u64>,
    /// Bytes of rows loaded into a sandbox in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage_bytes_per_second_max: Option<u64>,
    /// S3 requests in flight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3_requests: Option<u64>,
}

/// What a drill must reach; without a figure, the targets of the sites' tiers count.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrillExpectation {
    /// 95th percentile of the recovery time of its sites, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rto_seconds: Option<f64>,
    /// The worst recovery point of its sites, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo_seconds: Option<f64>,
}

/// Written before anything is made: whose the things in a sandbox are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrillBegun {
    /// Format version.
    pub format: u32,
    /// The drill.
    pub id: DrillId,
    /// Its name.
    pub name: String,
    /// When.
    pub at: Timestamp,
    /// Host and process.
    pub by: String,
    /// What it makes, by its name in the sandbox.
    pub makes: Vec<Made>,
}

/// A file or database in a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Made {
    /// The sandbox, by its name in the topology.
    pub sandbox: String,
    /// Of the file or database.
    pub name: String,
}

/// How a drill ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Everything came back as the repository has it, within what was expected, and nothing is left.
    Passed,
    /// Something did not.
    Failed,
    /// It was stopped: by a real run, its time limit, or the operator. It says nothing about the restore.
    Stopped,
}

/// What came of a drill.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrillRecord {
    /// Format version.
    pub format: u32,
    /// The drill.
    pub id: DrillId,
    /// Its name.
    pub name: String,
    /// What was rehearsed.
    pub class: DrillClass,
    /// The seed of its choice.
    pub seed: u64,
    /// When it began.
    pub began_at: Timestamp,
    /// When everything was removed.
    pub ended_at: Timestamp,
    /// The moment that was restored; of a replayed incident the first.
    pub moment: Option<Timestamp>,
    /// Its runs, whose plans and journals stay.
    pub runs: Vec<RunId>,
    /// Their plans.
    pub plans: Vec<PlanId>,
    /// How it ended.
    pub verdict: Verdict,
    /// Why not well: each names what it is about.
    pub errors: Vec<String>,
    /// Its sites.
    pub sites: Vec<DrilledSite>,
    /// Kinds of the sites that have no rows and were left out.
    pub left_out: Vec<Kind>,
    /// 95th percentile of the recovery time, in seconds from the beginning of the run.
    pub rto_seconds: Option<f64>,
    /// The worst recovery point, in seconds before the moment.
    pub rpo_seconds: Option<f64>,
    /// Rows compared.
    pub rows: u64,
    /// Compressed bytes read by the run.
    pub bytes: u64,
    /// From the first step of the run to its last, in seconds.
    pub run_seconds: f64,
    /// What was forecast of its last run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forecast: Option<ForecastReport>,
    /// What it made.
    pub made: Vec<Made>,
    /// Of these, what a listing still shows; must be none.
    pub left: Vec<Made>,
}

/// One site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrilledSite {
    /// The site.
    pub site: SiteId,
    /// Its tier.
    pub tier: Option<String>,
    /// The moment asked for.
    pub target: Timestamp,
    /// From the beginning of the run, in seconds.
    pub rto_seconds: Option<f64>,
    /// Worst of its stores, in seconds.
    pub rpo_seconds: Option<f64>,
    /// Its stores.
    pub stores: Vec<DrilledStore>,
}

/// One store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrilledStore {
    /// Its kind.
    pub kind: Kind,
    /// The live shard that held it.
    pub shard: ShardName,
    /// The recovery point.
    pub reached: Boundary,
    /// Rows compared, of all its tables.
    pub rows: u64,
    /// All of them were in the sandbox as the repository has them, and no others.
    pub proven: bool,
}

//! The report of a run, assembled from plan and journal.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::catalog::SiteFacts;
use crate::ids::{Epoch, Kind, PlanId, RunId, ShardName, SiteId};
use crate::journal::{ReferenceCount, TableDigest};
use crate::plan::{Note, StepKey};
use crate::position::Boundary;
use crate::request::ProofLevel;
use crate::time::Timestamp;

/// The whole report; its JSON form is a written contract.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Format version.
    pub format: u32,
    /// The run.
    pub run: RunId,
    /// Its plan.
    pub plan: PlanId,
    /// The incident, in words.
    pub title: String,
    /// When the incident was declared.
    pub declared_at: Timestamp,
    /// When the run was opened.
    pub opened_at: Timestamp,
    /// When its last record was written.
    pub last_at: Timestamp,
    /// Where it stands.
    pub status: RunStatus,
    /// Engines that held it.
    pub epochs: Vec<(Epoch, String, Timestamp)>,
    /// Sums.
    pub totals: Totals,
    /// Recovery time per site from the declaration, in seconds.
    pub rto_declared: Distribution,
    /// Recovery time per site from its own outage, in seconds.
    pub rto_outage: Distribution,
    /// Loss per site (worst of its stores), in seconds.
    pub rpo: Distribution,
    /// Sites, in plan order.
    pub sites: Vec<SiteReport>,
    /// The proof of the neighbours.
    pub proof: ProofReport,
    /// Notes of the plan.
    pub notes: Vec<Note>,
    /// When the run was forecast to end; absent before its first step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forecast: Option<ForecastReport>,
}

/// What was forecast of a run's end, by what was known then.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ForecastReport {
    /// When the last step ended; none before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// When the first step started, from the rates of runs and drills that had ended before.
    pub at_start: ForecastPoint,
    /// When a tenth of the work was done, with what the run had measured until then; none before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_tenth: Option<ForecastPoint>,
}

/// A forecast of a run's end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ForecastPoint {
    /// When it was due.
    pub at: Timestamp,
    /// The end.
    pub ends_at: Timestamp,
    /// The end if all goes as fast as the measured spread allows.
    pub earliest: Timestamp,
    /// The same for as slow.
    pub latest: Timestamp,
    /// Measured starts (of one step, or of several together) that it rests on; 0: stated defaults alone.
    pub measured: u64,
    /// The forecast end less the real one, as a share of the run from its first step to its end; none before the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_share: Option<f64>,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// No record says that it ended.
    Open,
    /// All sites are back.
    Restored,
    /// Some sites are not back.
    RestoredInPart,
    /// Given up by the operator.
    Abandoned,
}

/// Sums over the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Sites planned.
    pub sites: u64,
    /// Sites handed back.
    pub sites_restored: u64,
    /// Customers behind the planned sites.
    pub customers: u64,
    /// Users of the planned sites.
    pub users: u64,
    /// Stores planned.
    pub stores: u64,
    /// Rows published.
    pub rows: u64,
    /// Compressed bytes read.
    pub bytes: u64,
    /// Seconds from the first step's start to the last record.
    pub seconds: f64,
}

/// Percentiles of a figure over sites.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// Number of sites with a value.
    pub count: u64,
    /// Median.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
    /// Largest.
    pub max: f64,
    /// Sites above their tier's target.
    pub misses: Vec<SiteId>,
}

/// One site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteReport {
    /// The site.
    pub site: SiteId,
    /// What is known of it.
    pub facts: SiteFacts,
    /// What was asked.
    pub target: Timestamp,
    /// When it stopped working.
    pub outage_at: Option<Timestamp>,
    /// When it was handed back.
    pub handed_back_at: Option<Timestamp>,
    /// From the declaration, in seconds.
    pub rto_declared_seconds: Option<f64>,
    /// From the outage, in seconds.
    pub rto_outage_seconds: Option<f64>,
    /// Its tier's target, in seconds.
    pub rto_target_seconds: u64,
    /// Worst of its stores, in seconds.
    pub rpo_seconds: Option<f64>,
    /// Its tier's target, in seconds.
    pub rpo_target_seconds: u64,
    /// Why it is not back.
    pub failure: Option<Failure>,
    /// Its stores.
    pub stores: Vec<StoreReport>,
    /// Times of `check`.
    pub check: Option<StepTimes>,
    /// References across stores that were counted; none where no reference concerns the site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub references: Option<ReferencesReport>,
    /// The operator's checks of its stores, in the order of the plan.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kind_checks: Vec<KindCheckReport>,
    /// Times of `handback`.
    pub handback: Option<StepTimes>,
}

/// References across stores of one site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReferencesReport {
    /// What was counted; empty while it is not, and where it failed.
    pub counts: Vec<ReferenceCount>,
    /// What leads nowhere and did not before, with examples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Times of `references`.
    pub times: Option<StepTimes>,
}

/// A check of the operator's on one store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KindCheckReport {
    /// The store's kind.
    pub kind: Kind,
    /// The check's name.
    pub check: String,
    /// It passed; none while it has not ended.
    pub passed: Option<bool>,
    /// What it said: the tail of its output, or why it failed.
    pub output: String,
    /// Times of `kind-check`.
    pub times: Option<StepTimes>,
}

/// Why a site is not back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The step that failed.
    pub step: StepKey,
    /// The error.
    pub error: String,
}

/// One store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoreReport {
    /// Its kind.
    pub kind: Kind,
    /// Where it was published.
    pub shard: ShardName,
    /// The recovery point.
    pub reached: Boundary,
    /// Why it is not the target.
    pub reached_because: String,
    /// Outage (or target) minus reached, in seconds.
    pub rpo_seconds: f64,
    /// Rows published.
    pub rows: u64,
    /// Compressed bytes read.
    pub bytes: u64,
    /// Digests of the staged tables.
    pub tables: BTreeMap<String, TableDigest>,
    /// Writers were blocked for so long, in microseconds.
    pub blocked_micros: Option<u64>,
    /// Times of `stage`.
    pub stage: Option<StepTimes>,
    /// Times of `verify`.
    pub verify: Option<StepTimes>,
    /// Times of `publish`.
    pub publish: Option<StepTimes>,
}

/// When a step was ready, started and ended; of its last attempt.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepTimes {
    /// Waiting ended here.
    pub ready_at: Timestamp,
    /// Work began here.
    pub started_at: Timestamp,
    /// Work ended here; none while it runs.
    pub ended_at: Option<Timestamp>,
    /// Attempts made.
    pub attempts: u32,
}

/// What is proven of the neighbours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProofReport {
    /// What was asked for.
    pub level: ProofLevel,
    /// Marked row changes read back and found to be the staged rows.
    pub marked_changes: u64,
    /// Sites whose marked changes were all read back.
    pub sites_proven: u64,
    /// By shard: rows of neighbours digested, logged changes between, and whether it came out even.
    pub shards: BTreeMap<ShardName, ShardProof>,
}

/// The full form for one shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardProof {
    /// Rows of neighbours after the run.
    pub rows: u64,
    /// Logged changes of neighbours during it.
    pub changes: u64,
    /// Digest before plus changes equals digest after.
    pub holds: bool,
    /// What failed, if it did.
    pub error: Option<String>,
}

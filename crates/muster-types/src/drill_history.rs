//! What drills have proven, what they never have, and how their figures went: what `muster drill history` shows.

use serde::{Deserialize, Serialize};

use crate::drill::{DrillClass, Verdict};
use crate::ids::{DrillId, Kind, ShardName, SiteId};
use crate::time::Timestamp;

/// Proven ones among all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Coverage<T> {
    /// How many there are.
    pub all: u64,
    /// How many were proven within the stretch.
    pub proven: u64,
    /// Those that never were, in any drill.
    pub never: Vec<T>,
}

/// The moments of one day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DayProven {
    /// When the day begins.
    pub from: Timestamp,
    /// Moments of it to which a site was proven.
    pub moments: u64,
}

/// Of one class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassHistory {
    /// The class.
    pub class: DrillClass,
    /// Its last drill that passed.
    pub proven_at: Option<Timestamp>,
    /// Its last drill that failed.
    pub failed_at: Option<Timestamp>,
    /// Drills within the stretch.
    pub drills: u64,
}

/// Of the drills of one name, the last beside those before it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trend {
    /// The drill's name.
    pub name: String,
    /// When the last one began.
    pub at: Timestamp,
    /// Its recovery time, in seconds (95th percentile).
    pub rto_seconds: Option<f64>,
    /// The median of those before it.
    pub rto_median_seconds: Option<f64>,
    /// Its worst recovery point, in seconds.
    pub rpo_seconds: Option<f64>,
    /// The median of those before it.
    pub rpo_median_seconds: Option<f64>,
    /// Rows restored and compared in a second.
    pub rows_per_second: Option<f64>,
    /// The median of those before it.
    pub rows_per_second_median: Option<f64>,
}

/// One drill, as far as a history shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PastDrill {
    /// Its id.
    pub id: DrillId,
    /// Its name.
    pub name: String,
    /// What was rehearsed.
    pub class: DrillClass,
    /// When it began.
    pub began_at: Timestamp,
    /// How it ended.
    pub verdict: Verdict,
    /// Sites rehearsed.
    pub sites: u64,
    /// Recovery time, in seconds (95th percentile).
    pub rto_seconds: Option<f64>,
    /// Worst recovery point, in seconds.
    pub rpo_seconds: Option<f64>,
    /// Rows restored and compared in a second.
    pub rows_per_second: Option<f64>,
    /// Why it did not end well, first reason first.
    pub errors: Vec<String>,
}

/// Forecasts that were due at one time of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ForecastErrors {
    /// How many there are.
    pub runs: u64,
    /// The median of the errors without their signs, as a share of the run.
    pub error_median: f64,
    /// Their 95th percentile.
    pub error_p95: f64,
    /// Within 15 %, as a share.
    pub near_share: f64,
    /// Runs that ended within the range that was forecast, as a share.
    pub in_range_share: f64,
}

/// See [`ForecastErrors`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ForecastHistory {
    /// When the first step started.
    pub at_start: ForecastErrors,
    /// When a tenth of the work was done.
    pub at_tenth: Option<ForecastErrors>,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrillHistory {
    /// From when on drills count as proof.
    pub since: Timestamp,
    /// The present moment of the history.
    pub until: Timestamp,
    /// A figure above so many times the median of those before it is an alarm.
    pub factor: f64,
    /// Sites.
    pub sites: Coverage<SiteId>,
    /// Shards.
    pub shards: Coverage<ShardName>,
    /// Kinds.
    pub kinds: Coverage<Kind>,
    /// The earliest and the latest moment that was proven within the stretch.
    pub moments: Option<(Timestamp, Timestamp)>,
    /// The days of the stretch, each with the moments that were proven of it; ascending.
    pub days: Vec<DayProven>,
    /// By class.
    pub classes: Vec<ClassHistory>,
    /// By name.
    pub trends: Vec<Trend>,
    /// How well the runs of drills within the stretch were forecast; none where none was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forecast: Option<ForecastHistory>,
    /// Every drill that was recorded, in the order of time.
    pub drills: Vec<PastDrill>,
    /// Why someone should look: drills whose last one failed, or takes longer than it used to.
    pub alarms: Vec<String>,
}

//! Sites lost, gaps and lag, read from the change logs.

use std::collections::BTreeSet;

use muster_plan::detect::{self, DetectOptions, Detection};
use muster_repo::catalog::{FollowedCatalog, Sites};
use muster_repo::{RepoError, Repository};
use muster_types::Timestamp;
use muster_types::alarm::{AlarmName, Condition};
use muster_types::catalog::Catalog;
use muster_types::topology::{DetectConfig, Topology};

use super::before;

/// A gap cannot be mended: it is an alarm for a day, so that somebody of each shift sees it.
const GAP_STANDS_SECONDS: u64 = 86_400;

/// Looks at the logs of all shards.
#[derive(Debug)]
pub struct LogWatch {
    catalog: FollowedCatalog,
    detects: Option<DetectConfig>,
    lag_seconds_max: u64,
    /// Damages that stand and were told.
    told: BTreeSet<String>,
}

/// What a look showed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogLook {
    /// Gaps, and lags.
    pub capture: Vec<Condition>,
    /// Sites that were lost, where it is looked for them.
    pub lost: Option<LostSites>,
    /// What could not be read, and could before.
    pub damages: Vec<String>,
}

/// Lost sites within a window.
#[derive(Clone, Debug, PartialEq)]
pub struct LostSites {
    /// The window.
    pub window: (Timestamp, Timestamp),
    /// What is lost, and what else happened.
    pub found: Detection,
    /// More than these are an alarm.
    pub sites_max: u64,
}

impl LogWatch {
    /// What every look of it reads; nothing is read yet.
    pub fn new(repository: &Repository, topology: &Topology) -> Self {
        let detects = topology.serve.detect.clone();
        // Without detection, histories alone are of interest.
        let sites = if detects.is_some() { Sites::All } else { Sites::Some([].into()) };
        let catalog = FollowedCatalog::new(repository, sites);
        let lag_seconds_max = topology.serve.alarms.capture_lag_seconds_max;
        Self { catalog, detects, lag_seconds_max, told: BTreeSet::new() }
    }

    /// Reads what is new, and judges.
    ///
    /// # Errors
    /// What the object store answers; newer documents.
    pub async fn look(&mut self, topology: &Topology, now: Timestamp) -> Result<LogLook, RepoError> {
        self.catalog.refresh(now).await?;
        let catalog = self.catalog.catalog();
        let mut capture = gaps(topology, catalog, now);
        capture.extend(lags(topology, catalog, now, self.lag_seconds_max));
        let lost = self.detects.as_ref().map(|config| LostSites::find(topology, catalog, config, now));
        let standing: BTreeSet<String> = self.catalog.damages().map(ToString::to_string).collect();
        let damages = standing.difference(&self.told).cloned().collect();
        self.told = standing;
        Ok(LogLook { capture, lost, damages })
    }
}

impl LostSites {
    fn find(topology: &Topology, catalog: &Catalog, config: &DetectConfig, now: Timestamp) -> Self {
        let window = (before(now, config.window_seconds), now);
        let found = detect::detect(topology, catalog, window.0, window.1, &DetectOptions::default());
        Self { window, found, sites_max: config.sites_max }
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.found.lost.len()
    }

    /// There are more than are allowed.
    pub fn is_alarm(&self) -> bool {
        self.count() as u64 > self.sites_max
    }

    /// The alarm, if it is one.
    pub fn condition(&self, way_out: impl Into<String>) -> Option<Condition> {
        if !self.is_alarm() {
            return None;
        }
        let since = self.found.lost.iter().map(|site| site.first_loss_at).min().unwrap_or(self.window.1);
        Some(Condition {
            name: AlarmName::SitesLost,
            subject: "fleet".to_owned(),
            since,
            text: format!("{} sites lost since {since}, {} allowed", self.count(), self.sites_max),
            way_out: way_out.into(),
        })
    }
}

/// The latest gap of each shard, if it is recent.
fn gaps(topology: &Topology, catalog: &Catalog, now: Timestamp) -> Vec<Condition> {
    let recent = before(now, GAP_STANDS_SECONDS);
    let mut conditions = Vec::new();
    for (shard, history) in catalog.shards.iter().filter(|(shard, _)| topology.shards.contains_key(*shard)) {
        let gaps = history.incarnations.iter().flat_map(|incarnation| &incarnation.gaps);
        let latest = gaps.max_by_key(|gap| gap.before.map_or(gap.after.at, |before| before.at));
        if let Some(gap) = latest.filter(|gap| gap.before.map_or(gap.after.at, |before| before.at) >= recent)
        {
            conditions.push(Condition {
                name: AlarmName::CaptureGap,
                subject: shard.to_string(),
                since: gap.after.at,
                text: format!(
                    "no moment behind {} can be restored until it goes on: {}",
                    gap.after.at, gap.reason
                ),
                way_out:
                    "muster check names every gap; see why: what the server that captures the shard said then"
                        .to_owned(),
            });
        }
    }
    conditions
}

/// Shards whose last recovery point is too old.
fn lags(topology: &Topology, catalog: &Catalog, now: Timestamp, seconds_max: u64) -> Vec<Condition> {
    let mut conditions = Vec::new();
    for (shard, history) in catalog.shards.iter().filter(|(shard, _)| topology.shards.contains_key(*shard)) {
        let Some(last) = history.incarnations.last().and_then(|newest| newest.end()) else { continue };
        let lag = now.seconds_since(last.at);
        if lag > seconds_max as f64 {
            conditions.push(Condition {
                name: AlarmName::CaptureLag,
                subject: shard.to_string(),
                since: last.at,
                text: format!("its last recovery point is of {}, more than {seconds_max} s ago", last.at),
                way_out:
                    "see that a server captures it: its log says what is in the way, and so does /readyz"
                        .to_owned(),
            });
        }
    }
    conditions
}

//! What the service tells a monitoring system. Names carry their units.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use muster_types::Timestamp;
use muster_types::alarm::Condition;
use muster_types::jobs::JobOutcome;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::runner::JobEvent;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfJob {
    job: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfOutcome {
    job: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfShard {
    shard: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
struct OfAlarm {
    alarm: &'static str,
    subject: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfDelivery {
    webhook: String,
    outcome: &'static str,
}

/// Seconds since the epoch, with fractions.
type Seconds = Gauge<f64, std::sync::atomic::AtomicU64>;

/// All metrics, and their registry.
pub struct Metrics {
    registry: Registry,
    runs: Family<OfOutcome, Counter>,
    running: Family<OfJob, Gauge>,
    missed: Family<OfJob, Counter>,
    last_success: Family<OfJob, Seconds>,
    duration: Family<OfJob, Seconds>,
    unreachable: Counter,
    recovery_point: Family<OfShard, Seconds>,
    lag: Family<OfShard, Seconds>,
    capture_failures: Family<OfShard, Counter>,
    gaps: Family<OfShard, Counter>,
    undeclared: Family<OfShard, Gauge>,
    lost_sites: Gauge,
    lost_sites_max: Gauge,
    alarms: Family<OfAlarm, Gauge>,
    standing: Mutex<BTreeSet<OfAlarm>>,
    deliveries: Family<OfDelivery, Counter>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("muster");
        macro_rules! register {
            ($name:literal, $help:literal) => {{
                let metric = Default::default();
                registry.register($name, $help, Clone::clone(&metric));
                metric
            }};
        }
        Self {
            runs: register!("job_runs", "Occurrences of a job that came to their end here, by outcome"),
            running: register!("job_running", "1 while a job is at work here"),
            missed: register!("job_missed", "Occurrences of a job that nobody ran"),
            last_success: register!("job_last_success_timestamp_seconds", "When a job last succeeded here"),
            duration: register!("job_duration_seconds", "How long a job last took here"),
            unreachable: register!("repository_failures", "Requests to the repository that failed for good"),
            recovery_point: register!(
                "capture_recovery_point_timestamp_seconds",
                "Last recovery point of a shard"
            ),
            lag: register!(
                "capture_lag_seconds",
                "From the last recovery point of a shard until it was durable"
            ),
            capture_failures: register!("capture_failures", "Cycles of a shard's capture that failed"),
            gaps: register!(
                "capture_gaps",
                "Histories of a shard that began anew: what lies before is a gap"
            ),
            undeclared: register!("capture_undeclared_tables", "Tables of a shard that nothing captures"),
            lost_sites: register!("lost_sites", "Sites lost within the window that is looked at"),
            lost_sites_max: register!("lost_sites_allowed", "More lost sites than these are an alarm"),
            alarms: register!("alarm", "1 while an alarm stands, as this server sees it"),
            standing: Mutex::default(),
            deliveries: register!("webhook_deliveries", "Tries to tell a webhook of an alarm, by outcome"),
            registry,
        }
    }
}

impl Metrics {
    /// Takes what happened to a job.
    pub fn job(&self, event: &JobEvent, now: Timestamp) {
        let of = |job: &str| OfJob { job: job.to_owned() };
        match event {
            JobEvent::Missed { job, missed } => {
                self.missed.get_or_create(&of(job)).inc_by(missed.count);
            }
            JobEvent::Started { job, .. } => {
                self.running.get_or_create(&of(job)).set(1);
            }
            JobEvent::Ended { job, outcome, milliseconds, .. } => {
                self.running.get_or_create(&of(job)).set(0);
                self.duration.get_or_create(&of(job)).set(*milliseconds as f64 / 1e3);
                let outcome = match outcome {
                    JobOutcome::Succeeded { .. } => {
                        self.last_success.get_or_create(&of(job)).set(seconds(now));
                        "succeeded"
                    }
                    JobOutcome::Failed { .. } => "failed",
                    JobOutcome::Lost => "lost",
                };
                self.runs.get_or_create(&OfOutcome { job: job.clone(), outcome }).inc();
            }
            JobEvent::Superseded { job, .. } => {
                self.running.get_or_create(&of(job)).set(0);
                self.runs.get_or_create(&OfOutcome { job: job.clone(), outcome: "superseded" }).inc();
            }
            JobEvent::Unreachable { .. } => {
                self.unreachable.inc();
            }
        }
    }

    /// A shard has a new recovery point.
    pub fn recovery_point(&self, shard: &str, at: Timestamp, lag_seconds: f64) {
        let of = OfShard { shard: shard.to_owned() };
        self.recovery_point.get_or_create(&of).set(seconds(at));
        self.lag.get_or_create(&of).set(lag_seconds);
    }

    /// A cycle of a shard's capture failed.
    pub fn capture_failed(&self, shard: &str) {
        self.capture_failures.get_or_create(&OfShard { shard: shard.to_owned() }).inc();
    }

    /// A shard's history began anew behind another one.
    pub fn gap(&self, shard: &str) {
        self.gaps.get_or_create(&OfShard { shard: shard.to_owned() }).inc();
    }

    /// Tables of a shard that nothing captures.
    pub fn undeclared(&self, shard: &str, tables: usize) {
        let count = i64::try_from(tables).unwrap_or(i64::MAX);
        self.undeclared.get_or_create(&OfShard { shard: shard.to_owned() }).set(count);
    }

    /// Sites lost within the window, and how many are allowed.
    pub fn lost_sites(&self, lost: usize, allowed: u64) {
        self.lost_sites.set(i64::try_from(lost).unwrap_or(i64::MAX));
        self.lost_sites_max.set(i64::try_from(allowed).unwrap_or(i64::MAX));
    }

    /// The alarms that stand.
    pub fn alarms<'c>(&self, standing: impl Iterator<Item = &'c Condition>) {
        let now: BTreeSet<OfAlarm> = standing
            .map(|condition| OfAlarm { alarm: condition.name.as_str(), subject: condition.subject.clone() })
            .collect();
        let mut before = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in before.difference(&now) {
            self.alarms.remove(gone);
        }
        for alarm in &now {
            self.alarms.get_or_create(alarm).set(1);
        }
        *before = now;
    }

    /// Something came of telling a webhook.
    pub fn webhook(&self, webhook: &str, outcome: &'static str) {
        self.deliveries.get_or_create(&OfDelivery { webhook: webhook.to_owned(), outcome }).inc();
    }

    /// In the OpenMetrics text format.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}

fn seconds(at: Timestamp) -> f64 {
    at.as_micros() as f64 / 1e6
}

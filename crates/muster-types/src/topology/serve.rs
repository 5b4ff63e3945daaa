//! What the long-running service does: where it can be asked, and its scheduled jobs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::raw::{At, Findings, Section};

/// A server that leaves no sign of life for so long is taken for dead: several times what a slow object store takes to
/// write one.
const LEASE_SECONDS: u64 = 30;

/// Each look reads the indexes of the log that is not compacted.
const DETECT_EVERY_SECONDS: u64 = 15;

/// Longer than a script that was stopped and begun again.
const DETECT_WINDOW_SECONDS: u64 = 1800;

/// Customers leave one by one.
const DETECT_SITES_MAX: u64 = 3;

/// Within the two weeks that are promised as a rule, so that what a fold got wrong is found while the log that would tell is there.
const REAL_SNAPSHOT_EVERY_DAYS: u64 = 7;

/// The service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeConfig {
    /// Where health and metrics can be asked; nowhere if absent.
    pub listen: Option<SocketAddr>,
    /// A server that leaves no sign of life for so long is taken for dead.
    pub lease_seconds: u64,
    /// How it looks for lost sites; it does not if absent.
    pub detect: Option<DetectConfig>,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self { listen: None, lease_seconds: LEASE_SECONDS, detect: None }
    }
}

/// Looking for lost sites all the time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetectConfig {
    /// Between two looks.
    pub every_seconds: u64,
    /// How far back each looks.
    pub window_seconds: u64,
    /// More lost sites than these in the window are an alarm.
    pub sites_max: u64,
    /// Where draft incident files go.
    pub incident_dir: PathBuf,
}

/// A scheduled job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobConfig {
    /// What it does.
    pub what: JobWhat,
    /// Cron expression, read by who runs it.
    pub cron: String,
    /// Time zone of the IANA database.
    pub zone: String,
    /// Each occurrence starts up to so much later.
    pub jitter_seconds: u64,
}

/// What a job does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobWhat {
    /// A snapshot of each shard that the server captures.
    Snapshot,
    /// Lay the change logs out anew.
    Compact,
    /// New snapshots from the last ones and the logs.
    Fold {
        /// A snapshot older than this is followed by one that is read from the shard, which is compared.
        real_snapshot_every_days: u64,
    },
    /// Remove what nothing needs.
    Prune,
    /// Hold objects against their digests: this share of all, in percent.
    Check {
        /// Of all objects, in percent.
        share_percent: u64,
    },
    /// A rehearsal.
    Drill {
        /// The drill file.
        file: PathBuf,
    },
}

const WHATS: &str = "`snapshot`, `fold`, `compact`, `prune`, `check` or `drill`";

/// Reads `[serve]`.
pub(super) fn serve(findings: &mut Findings<'_>, root: &mut Section<'_>, base_dir: &Path) -> ServeConfig {
    let Some(mut section) = root.section(findings, "serve") else { return ServeConfig::default() };
    let listen = section.text(findings, "listen").and_then(|At { value, at }| {
        let parsed = value.parse();
        if parsed.is_err() {
            let what = format!("`{value}` in [serve] is no address to listen on");
            findings.add(at, what, "write ADDRESS:PORT, such as \"127.0.0.1:9320\"");
        }
        parsed.ok()
    });
    let lease_seconds = section.positive_or(findings, "lease_seconds", LEASE_SECONDS);
    let detect = section.section(findings, "detect").map(|mut detect| {
        let config = DetectConfig {
            every_seconds: detect.positive_or(findings, "every_seconds", DETECT_EVERY_SECONDS),
            window_seconds: detect.positive_or(findings, "window_seconds", DETECT_WINDOW_SECONDS),
            sites_max: detect.positive_or(findings, "sites_max", DETECT_SITES_MAX),
            incident_dir: base_dir.join(
                detect.text(findings, "incident_dir").map_or_else(|| "incidents".to_owned(), |dir| dir.value),
            ),
        };
        detect.close(findings);
        config
    });
    section.close(findings);
    ServeConfig { listen, lease_seconds, detect }
}

/// Reads `[jobs]`.
pub(super) fn jobs(
    findings: &mut Findings<'_>,
    root: &mut Section<'_>,
    base_dir: &Path,
) -> BTreeMap<String, JobConfig> {
    let mut jobs = BTreeMap::new();
    for At { value: (name, section), at } in root.sections(findings, "jobs") {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
            let hint = "use 1 to 64 letters, digits, `-` and `_`: it becomes part of object keys";
            findings.add(at, format!("`{name}` is no name of a job"), hint);
        }
        if let Some(config) = job(findings, section, base_dir) {
            jobs.insert(name, config);
        }
    }
    jobs
}

fn job(findings: &mut Findings<'_>, mut section: Section<'_>, base_dir: &Path) -> Option<JobConfig> {
    let what_hint = format!("add `what = \"...\"`: {WHATS}");
    let what = section.required_text(findings, "what", &what_hint);
    let cron_hint = "add `cron = \"MINUTE HOUR DAY MONTH WEEKDAY\"`, e.g. \"30 2 * * *\"";
    let cron = section.required_text(findings, "cron", cron_hint);
    let zone = section.text(findings, "zone").map_or_else(|| "UTC".to_owned(), |zone| zone.value);
    let jitter_seconds = section.positive(findings, "jitter_seconds").map_or(0, |jitter| jitter.value);
    let what = what.and_then(|what| job_what(findings, &what, &mut section, base_dir));
    section.close(findings);
    Some(JobConfig { what: what?, cron: cron?.value, zone, jitter_seconds })
}

fn job_what(
    findings: &mut Findings<'_>,
    what: &At<String>,
    section: &mut Section<'_>,
    base_dir: &Path,
) -> Option<JobWhat> {
    match what.value.as_str() {
        "snapshot" => Some(JobWhat::Snapshot),
        "compact" => Some(JobWhat::Compact),
        "fold" => {
            let days = section.positive_or(findings, "real_snapshot_every_days", REAL_SNAPSHOT_EVERY_DAYS);
            Some(JobWhat::Fold { real_snapshot_every_days: days })
        }
        "prune" => Some(JobWhat::Prune),
        "check" => {
            let share_percent = section.positive_or(findings, "share_percent", 100);
            Some(JobWhat::Check { share_percent: share_percent.min(100) })
        }
        "drill" => {
            let file = section.required_text(findings, "file", "add `file = \"...\"`, the drill file")?;
            Some(JobWhat::Drill { file: base_dir.join(file.value) })
        }
        other => {
            findings.add(what.at, format!("`{other}` is nothing that a job does"), format!("write {WHATS}"));
            None
        }
    }
}

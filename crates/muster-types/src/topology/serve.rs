//! What the long-running service does: where it can be asked, and its scheduled jobs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::raw::{At, Findings, Section, listed};
use crate::alarm::AlarmName;

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
/// Each look reads what is new in the repository since the last one: a few listings.
const ALARMS_EVERY_SECONDS: u64 = 15;

/// Several watermarks, and a restart of the shard or of the object store.
const CAPTURE_LAG_SECONDS_MAX: u64 = 300;

/// Twice the trailing median: what varies from night to night is less, what broke is more.
const DRILL_PERCENT_MAX: u64 = 200;

/// Longer than the time limit of a drill, six hours by default.
const OVERDUE_SECONDS: u64 = 7 * 3600;

/// The service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeConfig {
    /// Where health and metrics can be asked; nowhere if absent.
    pub listen: Option<SocketAddr>,
    /// A server that leaves no sign of life for so long is taken for dead.
    pub lease_seconds: u64,
    /// How it looks for lost sites; it does not if absent.
    pub detect: Option<DetectConfig>,
    /// When other things are an alarm.
    pub alarms: AlarmsConfig,
    /// Who is told of alarms, by name.
    pub webhooks: BTreeMap<String, WebhookConfig>,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            listen: None,
            lease_seconds: LEASE_SECONDS,
            detect: None,
            alarms: AlarmsConfig::default(),
            webhooks: BTreeMap::new(),
        }
    }
}

/// When something is an alarm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlarmsConfig {
    /// Between two looks.
    pub every_seconds: u64,
    /// A last recovery point of a shard older than this is one.
    pub capture_lag_seconds_max: u64,
    /// A recovery time or point of a drill above so many percent of the trailing median is one.
    pub drill_percent_max: u64,
}

impl Default for AlarmsConfig {
    fn default() -> Self {
        Self {
            every_seconds: ALARMS_EVERY_SECONDS,
            capture_lag_seconds_max: CAPTURE_LAG_SECONDS_MAX,
            drill_percent_max: DRILL_PERCENT_MAX,
        }
    }
}

/// Someone who is told of alarms.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookConfig {
    /// Where the payload is posted.
    pub address: WebhookAddress,
    /// Of which alarms; of all if empty.
    pub events: Vec<AlarmName>,
    /// The header that the secret goes into.
    pub header: String,
    /// Where the secret is; none is sent if absent.
    pub secret: Option<SecretSource>,
}

impl std::fmt::Debug for WebhookConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (events, header, secret) = (&self.events, &self.header, &self.secret);
        f.debug_struct("WebhookConfig")
            .field("events", events)
            .field("header", header)
            .field("secret", secret)
            .finish_non_exhaustive()
    }
}

/// Where payloads are posted. It may hold a secret of its own, so nothing prints it.
#[derive(Clone, PartialEq, Eq)]
pub enum WebhookAddress {
    /// As the topology has it, and so the repository, which keeps the topology.
    Plain(String),
    /// It is a secret itself.
    Secret(SecretSource),
}

/// Where a secret is read from when the service starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// An environment variable.
    Environment(String),
    /// A file, without its last line break.
    File(PathBuf),
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
    /// An occurrence that has not come to its end so long after it was due is an alarm.
    pub overdue_seconds: u64,
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
    let alarms = section.section(findings, "alarms").map_or_else(AlarmsConfig::default, |mut alarms| {
        let config = AlarmsConfig {
            every_seconds: alarms.positive_or(findings, "every_seconds", ALARMS_EVERY_SECONDS),
            capture_lag_seconds_max: alarms.positive_or(
                findings,
                "capture_lag_seconds_max",
                CAPTURE_LAG_SECONDS_MAX,
            ),
            drill_percent_max: alarms.positive_or(findings, "drill_percent_max", DRILL_PERCENT_MAX),
        };
        alarms.close(findings);
        config
    });
    let mut webhooks = BTreeMap::new();
    for At { value: (name, webhook), .. } in section.sections(findings, "webhooks") {
        webhooks.extend(self::webhook(findings, webhook, base_dir).map(|webhook| (name, webhook)));
    }
    section.close(findings);
    ServeConfig { listen, lease_seconds, detect, alarms, webhooks }
}

fn webhook(findings: &mut Findings<'_>, mut section: Section<'_>, base_dir: &Path) -> Option<WebhookConfig> {
    let address = address(findings, &mut section, base_dir);
    let mut events = Vec::new();
    for At { value, at } in section.texts(findings, "events").map(|events| events.value).unwrap_or_default() {
        match value.parse() {
            Ok(name) => events.push(name),
            Err(wrong) => {
                let names = AlarmName::ALL.map(AlarmName::as_str);
                findings.add(
                    at,
                    format!("{wrong}, in {}", section.name()),
                    format!("write {}", listed(&names)),
                );
            }
        }
    }
    let header =
        section.text(findings, "header").map_or_else(|| "authorization".to_owned(), |text| text.value);
    let secret =
        secret(findings, &mut section, ["secret_env", "secret_file"], base_dir).map(|At { value, .. }| value);
    section.close(findings);
    Some(WebhookConfig { address: address?, events, header: header.to_ascii_lowercase(), secret })
}

/// Reads `url`, or where it is read from.
fn address(
    findings: &mut Findings<'_>,
    section: &mut Section<'_>,
    base_dir: &Path,
) -> Option<WebhookAddress> {
    let elsewhere = secret(findings, section, ["url_env", "url_file"], base_dir);
    let Some(At { value: source, at }) = elsewhere else {
        let hint = "add `url = \"https://...\"`, where alarms are posted, or `url_env` or `url_file` if it is a secret";
        let At { value, at } = section.required_text(findings, "url", hint)?;
        if !(value.starts_with("https://") || value.starts_with("http://")) {
            let what = format!("`url` in {} is no address of a web server", section.name());
            findings.add(at, what, "write https://HOST/PATH");
        }
        return Some(WebhookAddress::Plain(value));
    };
    if section.text(findings, "url").is_some() {
        let what = format!("{} has two addresses", section.name());
        findings.add(at, what, "keep one of `url`, `url_env` and `url_file`");
    }
    Some(WebhookAddress::Secret(source))
}

/// Reads what names an environment variable, or a file.
fn secret(
    findings: &mut Findings<'_>,
    section: &mut Section<'_>,
    [variable_key, file_key]: [&'static str; 2],
    base_dir: &Path,
) -> Option<At<SecretSource>> {
    let variable = section.text(findings, variable_key);
    let file = section.text(findings, file_key);
    if let (Some(_), Some(file)) = (&variable, &file) {
        let what = format!("{} has `{variable_key}` and `{file_key}`", section.name());
        findings.add(file.at, what, format!("keep one of `{variable_key}` and `{file_key}`"));
    }
    match (variable, file) {
        (Some(At { value, at }), _) => Some(At { value: SecretSource::Environment(value), at }),
        (None, Some(At { value, at })) => Some(At { value: SecretSource::File(base_dir.join(value)), at }),
        (None, None) => None,
    }
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
    let overdue_seconds = section.positive_or(findings, "overdue_seconds", OVERDUE_SECONDS);
    let what = what.and_then(|what| job_what(findings, &what, &mut section, base_dir));
    section.close(findings);
    Some(JobConfig { what: what?, cron: cron?.value, zone, jitter_seconds, overdue_seconds })
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

//! Looking for what is wrong all the time: alarms for the log, health, metrics and webhooks, and a draft incident.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use muster_serve::Job;
use muster_serve::agreement::Agreement;
use muster_serve::watch::{self, DrillsWatch, JobsWatch, LogWatch, LostSites, RunsWatch};
use muster_serve::webhook::{Delivery, WebhookEvent, WebhookEvents, Webhooks};
use muster_types::SiteId;
use muster_types::alarm::{AlarmName, AlarmPayload, AlarmRecord, Change, Condition, Edge};
use muster_types::format::FORMAT;
use muster_types::topology::DetectConfig;
use tokio::sync::{Mutex, watch as signal};

use super::serve::Health;
use crate::context::{self, Context};
use crate::print;

/// What the looks at the logs speak of.
const OF_LOG: [AlarmName; 3] = [AlarmName::SitesLost, AlarmName::CaptureGap, AlarmName::CaptureLag];

/// The alarms of one server.
pub(crate) struct AlarmService {
    context: Arc<Context>,
    health: Arc<Health>,
    webhooks: Webhooks,
    view: Mutex<Agreement>,
}

impl AlarmService {
    pub(crate) fn new(
        context: &Arc<Context>,
        health: &Arc<Health>,
        server: &str,
        webhooks: Webhooks,
    ) -> Self {
        Self {
            context: Arc::clone(context),
            health: Arc::clone(health),
            webhooks,
            view: Mutex::new(Agreement::new(&context.repository, server)),
        }
    }

    /// Looks at the logs until told to stop.
    pub(crate) async fn watch_logs(&self, mut stop: signal::Receiver<bool>) {
        let serve = &self.context.topology.serve;
        let seconds = serve.detect.as_ref().map_or(serve.alarms.every_seconds, |detect| detect.every_seconds);
        let mut watch = LogWatch::new(&self.context.repository, &self.context.topology);
        let mut draft = Draft::default();
        while !stopped_within(&mut stop, seconds).await {
            if let Err(error) = self.look_at_logs(&mut watch, &mut draft).await {
                print::talk(format!("looking at the logs for alarms: {error:#}; trying again"));
            }
        }
    }

    /// Looks at drills, runs, checks and jobs until told to stop.
    pub(crate) async fn watch_records(&self, jobs: Vec<Job>, mut stop: signal::Receiver<bool>) {
        let (repository, topology) = (&self.context.repository, &self.context.topology);
        let alarms = &topology.serve.alarms;
        let mut drills = DrillsWatch::new(repository, alarms.drill_percent_max);
        let mut runs = RunsWatch::new(repository);
        let of = |job: Job| {
            let seconds = topology.jobs[&job.name].overdue_seconds;
            (job, seconds)
        };
        let mut jobs = JobsWatch::new(repository, jobs.into_iter().map(of));
        while !stopped_within(&mut stop, alarms.every_seconds).await {
            let looks = [
                (&[AlarmName::DrillFailed, AlarmName::DrillSlower][..], drills.look().await.map_err(text)),
                (&[AlarmName::SiteFailed], runs.look(context::now()).await.map_err(text)),
                (&[AlarmName::DamageFound], watch::damages(repository).await.map_err(text)),
                (&[AlarmName::JobOverdue], jobs.look(context::now()).await.map_err(text)),
            ];
            for (names, found) in looks {
                let told = match found {
                    Ok(found) => self.saw(names, found).await,
                    Err(error) => Err(anyhow::anyhow!(error)),
                };
                if let Err(error) = told {
                    print::talk(format!("looking for alarms ({}): {error:#}; trying again", names[0]));
                }
            }
        }
    }

    async fn look_at_logs(&self, watch: &mut LogWatch, draft: &mut Draft) -> Result<()> {
        let look = watch.look(&self.context.topology, context::now()).await?;
        for damage in &look.damages {
            print::talk(format!("looking at the logs for alarms: {damage}"));
        }
        let mut found = look.capture;
        if let (Some(lost), Some(config)) = (look.lost, &self.context.topology.serve.detect) {
            self.health.metrics.lost_sites(lost.count(), lost.sites_max);
            let more = draft.write(config, &lost);
            let condition = lost.condition(draft.way_out.clone());
            if let Some(condition) = condition.as_ref().filter(|_| more) {
                print::talk(format!("ALARM {condition}"));
            }
            found.extend(condition);
        }
        self.saw(&OF_LOG, found).await
    }

    /// Takes what a look showed, and writes and tells what has changed for the repository.
    async fn saw(&self, names: &[AlarmName], found: Vec<Condition>) -> Result<()> {
        let mut view = self.view.lock().await;
        for edge in view.saw(names, found) {
            say(&edge);
        }
        self.health.alarms(view.standing());
        Ok(view.write(context::now(), |record| self.tell(record)).await?)
    }

    fn tell(&self, record: &AlarmRecord) {
        let repository = self.context.repository.id();
        for (number, edge) in record.edges.iter().enumerate() {
            self.webhooks.tell(&AlarmPayload {
                format: FORMAT,
                id: format!("{repository}-{}-{number}", record.sequence),
                repository: repository.to_owned(),
                fleet: self.context.topology.fleet.clone(),
                at: record.at,
                server: record.server.clone(),
                change: edge.change,
                alarm: edge.alarm.clone(),
            });
        }
    }
}

/// The draft incident of the sites that are lost: one file for as long as they are too many.
#[derive(Default)]
struct Draft {
    sites: BTreeSet<SiteId>,
    path: Option<PathBuf>,
    written: bool,
    way_out: String,
}

impl Draft {
    /// Brings the file to what is lost now; whether that is more than before. An alarm is told with or without a draft.
    fn write(&mut self, config: &DetectConfig, lost: &LostSites) -> bool {
        if !lost.is_alarm() {
            *self = Self::default();
            return false;
        }
        let sites: BTreeSet<SiteId> = lost.found.lost.iter().map(|lost| lost.site.clone()).collect();
        let more = sites.difference(&self.sites).next().is_some();
        if sites == self.sites && self.written {
            return false;
        }
        self.sites = sites;
        let path = self.path.get_or_insert_with(|| path(config, lost));
        let written = file(path, lost);
        self.written = written.is_ok();
        self.way_out = match written {
            Ok(()) => format!("draft incident: {0}; next: muster plan --incident {0}", path.display()),
            Err(error) => format!(
                "no draft incident ({error:#}); next: muster detect --from {} --out incident.toml",
                lost.window.0
            ),
        };
        more
    }
}

fn path(config: &DetectConfig, lost: &LostSites) -> PathBuf {
    let digits: String = lost.window.1.to_string().chars().filter(char::is_ascii_digit).take(14).collect();
    config.incident_dir.join(format!("draft-{digits}.toml"))
}

/// Written beside and renamed, so that whoever plans from it reads a whole one.
fn file(path: &Path, lost: &LostSites) -> Result<()> {
    let (from, to) = lost.window;
    let incident = lost.found.incident("sites lost", &format!("detect {from}..{to}"), to);
    let text = toml::to_string(&incident).context("failed to write the incident")?;
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)
            .with_context(|| format!("failed to make the folder `{}`", dir.display()))?;
    }
    let beside = path.with_extension("toml.new");
    std::fs::write(&beside, text).with_context(|| format!("failed to write `{}`", beside.display()))?;
    std::fs::rename(&beside, path).with_context(|| format!("failed to write `{}`", path.display()))
}

fn say(edge: &Edge) {
    match edge.change {
        // Said with each further site.
        Change::Raised if edge.alarm.name == AlarmName::SitesLost => {}
        Change::Raised => print::talk(format!("ALARM {}", edge.alarm)),
        Change::Cleared => {
            print::talk(format!("over: {} {}: {}", edge.alarm.name, edge.alarm.subject, edge.alarm.text));
        }
    }
}

/// What is said of webhooks, and counted.
pub(crate) fn webhook_events(health: &Arc<Health>) -> WebhookEvents {
    let health = Arc::clone(health);
    Arc::new(move |WebhookEvent { webhook, id, outcome }| {
        let (counted, said) = match outcome {
            Delivery::Delivered => ("delivered", format!("has alarm {id}")),
            Delivery::Retried { error } => ("retried", format!("alarm {id}: {error}; trying again")),
            Delivery::GivenUp { error } => ("given_up", format!("FAILED to tell alarm {id}: {error}")),
            Delivery::Dropped => ("dropped", format!("FAILED to tell alarm {id}: too many wait already")),
        };
        health.metrics.webhook(&webhook, counted);
        print::talk(format!("webhook {webhook}: {said}"));
    })
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Waits; true when the server is told to stop.
async fn stopped_within(stop: &mut signal::Receiver<bool>, seconds: u64) -> bool {
    // Without the sender the server is gone.
    tokio::time::timeout(Duration::from_secs(seconds), stop.wait_for(|stop| *stop)).await.is_ok()
}

//! `muster serve`: capture, scheduled jobs, and a look for lost sites all the time, as one long-running process.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use futures::future::join_all;
use muster_capture::{CaptureEvent, CaptureOptions, CaptureRunner};
use muster_serve::http::{self, Pages};
use muster_serve::webhook::Webhooks;
use muster_serve::{Job, JobEvent, JobRunner, Metrics, Schedule, Work};
use muster_types::alarm::Condition;
use muster_types::jobs::JobOutcome;
use muster_types::topology::Topology;
use muster_types::{ShardName, Timestamp};
use tokio::sync::{broadcast, watch};

use super::serve_alarm::{AlarmService, webhook_events};
use super::serve_jobs::{self, Server};
use super::{capture, s3};
use crate::context::{self, Context};
use crate::topology_place::TopologyPlace;
use crate::{exit, print};

/// Capture events that a snapshot job may be behind: a cycle of each shard tells a few.
const EVENTS_KEPT: usize = 4096;

/// Arguments of `muster serve`.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {}

pub(crate) async fn run(place: &TopologyPlace, _args: ServeArgs) -> Result<ExitCode> {
    let context = Arc::new(Context::open_or_create(place).await?);
    let schedules = schedules(&context.topology)?;
    context.keep_topology_or_tell().await;
    let health = Arc::new(Health::new(&context.topology));
    let (webhooks, senders) =
        Webhooks::open(&context.topology.serve.webhooks, &webhook_events(&health)).map_err(exit::input)?;
    let listener = match context.topology.serve.listen {
        Some(listen) => {
            let bound = http::bind(listen).await;
            Some(bound.map_err(|error| exit::input(format!("failed to listen on {listen}: {error}")))?)
        }
        None => None,
    };
    let (stop, stopping) = watch::channel(false);
    let pages = Arc::new(Pages { metrics: Arc::clone(&health.metrics), obstacles: obstacles(&health) });
    if let Some(listener) = listener {
        print::talk(format!("health and metrics on http://{}", listener.local_addr()?));
        tokio::spawn(http::serve(listener, pages, stopping.clone()));
    }
    let lease = Duration::from_secs(context.topology.serve.lease_seconds);
    let (snapshots, wanted) = watch::channel(0);
    let (told, _) = broadcast::channel(EVENTS_KEPT);
    let mut options = CaptureOptions::of(&context.topology);
    options.stand_by = Some(lease.max(options.watermark_interval * 2));
    options.snapshots_wanted = Some(wanted);
    options.events = capture_events(&health, &told);
    let server =
        Arc::new(Server { context: Arc::clone(&context), snapshots, told, health: Arc::clone(&health) });
    let jobs = schedules.iter().cloned().map(|job| {
        let work: Arc<dyn Work> = Arc::new(serve_jobs::work(&server, &job.name));
        (job, work)
    });
    let name = format!("{}-{:08x}", apply_name(), nonce());
    let alarms = AlarmService::new(&context, &health, &name, webhooks);
    let runner = JobRunner::new(&context.repository, name, lease, context::now, job_events(&health));
    let mut follower = CaptureRunner::new(&context.repository, &context.topology, options);
    let told = join_all(senders.into_iter().map(|sender| sender.run(stopping.clone())));
    let mut shutdown = stopping.clone();
    let followed = follower.follow(async move {
        // Without the sender the server is gone.
        let _ = shutdown.wait_for(|stop| *stop).await;
    });
    let ended = async {
        s3::interrupted().await?;
        print::talk("stopping; once more to stop at once");
        stop.send_replace(true);
        tokio::spawn(async {
            if s3::interrupted().await.is_ok() {
                std::process::exit(130);
            }
        });
        Ok::<(), anyhow::Error>(())
    };
    let (ended, ..) = tokio::join!(
        ended,
        followed,
        runner.run(jobs.collect(), stopping.clone()),
        alarms.watch_logs(stopping.clone()),
        alarms.watch_records(schedules.clone(), stopping.clone()),
        told,
    );
    ended?;
    print::talk("stopped");
    Ok(ExitCode::SUCCESS)
}

/// The jobs with their schedules; every wrong one is named.
pub(crate) fn schedules(topology: &Topology) -> Result<Vec<Job>> {
    let now = context::now();
    let (mut jobs, mut wrong) = (Vec::new(), Vec::new());
    for (name, config) in &topology.jobs {
        match Schedule::parse(&config.cron, &config.zone, config.jitter_seconds, now) {
            Ok(schedule) => jobs.push(Job { name: name.clone(), schedule }),
            Err(error) => wrong.push(format!("[jobs.{name}]: {error}")),
        }
    }
    if wrong.is_empty() { Ok(jobs) } else { Err(exit::input(wrong.join("\n"))) }
}

/// The host and process, as part of a key.
fn apply_name() -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    super::apply::operator().chars().map(plain).collect()
}

/// A number of this process alone: names of servers are never used again.
fn nonce() -> u32 {
    use std::hash::{BuildHasher as _, Hasher as _};
    // Every state is keyed at random.
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_i64(context::now().as_micros());
    (hasher.finish() >> 32) as u32
}

/// How the shards fare, for `/readyz`.
pub(crate) struct Health {
    pub(crate) metrics: Arc<Metrics>,
    shards: Mutex<BTreeMap<ShardName, ShardHealth>>,
    /// Alarms that stand.
    alarms: Mutex<Vec<String>>,
    /// A recovery point older than this stands in the way.
    stale_seconds: f64,
}

#[derive(Default)]
struct ShardHealth {
    last: Option<Timestamp>,
    problem: Option<String>,
    stands_by: bool,
}

impl Health {
    fn new(topology: &Topology) -> Self {
        let shards = topology.shards.keys().map(|shard| (shard.clone(), ShardHealth::default()));
        // A few watermarks may be late.
        let stale_seconds = (topology.capture.watermark_interval_seconds * 3).max(60) as f64;
        let shards = Mutex::new(shards.collect());
        Self { metrics: Arc::default(), shards, alarms: Mutex::default(), stale_seconds }
    }

    fn change(&self, shard: &ShardName, change: impl FnOnce(&mut ShardHealth)) {
        let mut shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        change(shards.entry(shard.clone()).or_default());
    }

    /// What stands now, as this server sees it.
    pub(crate) fn alarms<'c>(&self, standing: impl Iterator<Item = &'c Condition> + Clone) {
        self.metrics.alarms(standing.clone());
        let lines = standing.map(|condition| format!("ALARM {condition}")).collect();
        *self.alarms.lock().unwrap_or_else(PoisonError::into_inner) = lines;
    }

    /// Whether this server captures every shard.
    pub(crate) fn captures_all(&self) -> bool {
        let shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        shards.values().all(|shard| shard.last.is_some() && !shard.stands_by)
    }

    fn obstacles(&self, now: Timestamp) -> Vec<String> {
        let mut lines = self.alarms.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, shard) in shards.iter().filter(|(_, shard)| !shard.stands_by) {
            let problem = shard.problem.as_deref().map(|problem| format!(": {problem}")).unwrap_or_default();
            match shard.last {
                None => lines.push(format!("shard {name} has no recovery point of this server yet{problem}")),
                Some(last) if now.seconds_since(last) > self.stale_seconds => {
                    lines.push(format!("the last recovery point of shard {name} is of {last}{problem}"));
                }
                Some(_) => {}
            }
        }
        lines
    }
}

fn obstacles(health: &Arc<Health>) -> Arc<dyn Fn() -> Vec<String> + Send + Sync> {
    let health = Arc::clone(health);
    Arc::new(move || health.obstacles(context::now()))
}

fn capture_events(health: &Arc<Health>, told: &broadcast::Sender<CaptureEvent>) -> muster_capture::Events {
    let (health, told) = (Arc::clone(health), told.clone());
    Arc::new(move |event| {
        match &event {
            CaptureEvent::Appended { shard, boundary, lag_seconds, .. } => {
                health.metrics.recovery_point(shard.as_str(), boundary.at, *lag_seconds);
                health.change(shard, |shard| {
                    *shard = ShardHealth { last: Some(boundary.at), ..ShardHealth::default() };
                });
            }
            CaptureEvent::IncarnationBegun { shard, after: Some(_), .. } => {
                health.metrics.gap(shard.as_str());
            }
            CaptureEvent::Undeclared { shard, tables } => {
                health.metrics.undeclared(shard.as_str(), tables.len());
            }
            CaptureEvent::Failed { failure, .. } | CaptureEvent::Stopped { failure } => {
                health.metrics.capture_failed(failure.shard().as_str());
                health.change(failure.shard(), |shard| shard.problem = Some(failure.to_string()));
            }
            CaptureEvent::StandsBy { failure } => {
                health.change(failure.shard(), |shard| shard.stands_by = true);
            }
            _ => {}
        }
        // Every segment would be a line a second; what is out of the ordinary is told.
        if !matches!(event, CaptureEvent::Appended { .. }) {
            capture::say(&event);
        }
        // Nobody may be waiting for events.
        let _ = told.send(event);
    })
}

fn job_events(health: &Arc<Health>) -> muster_serve::JobEvents {
    let health = Arc::clone(health);
    Arc::new(move |event| {
        health.metrics.job(&event, context::now());
        match event {
            JobEvent::Missed { job, missed } => print::talk(format!(
                "job {job}: {} occurrences from {} to {} were not run",
                missed.count, missed.first, missed.last
            )),
            JobEvent::Started { job, occurrence, attempt } => {
                print::talk(format!("job {job} of {occurrence} begins, attempt {attempt}"));
            }
            JobEvent::Ended { job, occurrence, outcome, milliseconds } => {
                let how = match outcome {
                    JobOutcome::Succeeded { summary } => format!("succeeded: {summary}"),
                    JobOutcome::Failed { reason } => format!("FAILED: {reason}"),
                    JobOutcome::Lost => "was lost: every server that was at work on it died".to_owned(),
                };
                let took = print::seconds(milliseconds as f64 / 1e3);
                print::talk(format!("job {job} of {occurrence} {how} ({took})"));
            }
            JobEvent::Superseded { job, occurrence } => print::talk(format!(
                "job {job} of {occurrence} ended here and does not count: another server had taken it over"
            )),
            JobEvent::Unreachable { job, error } => {
                let job = job.map_or_else(|| "signs of life".to_owned(), |job| format!("job {job}"));
                print::talk(format!("{job}: {error}; trying again"));
            }
        }
    })
}

//! What the jobs of `muster serve` do: the same as the commands of their names.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use async_trait::async_trait;
use muster_capture::CaptureEvent;
use muster_engine::Cancel;
use muster_repo::scratch::Scratch;
use muster_serve::Work;
use muster_types::drill::Verdict;
use muster_types::topology::JobWhat;
use muster_types::{ShardName, Timestamp};
use tokio::sync::{broadcast, oneshot, watch};

use super::drill;
use super::repo::fold::{differences, shard_folded};
use super::serve::Health;
use crate::context::{self, Context};
use crate::print;

/// Microseconds of a day.
const DAY_MICROS: i64 = 86_400_000_000;

/// What the jobs of one server share.
pub(crate) struct Server {
    pub(crate) context: Arc<Context>,
    /// Each change asks the server's capture for a snapshot of every shard.
    pub(crate) snapshots: watch::Sender<u64>,
    /// What its capture tells.
    pub(crate) told: broadcast::Sender<CaptureEvent>,
    pub(crate) health: Arc<Health>,
}

/// One job.
pub(crate) struct JobWork {
    server: Arc<Server>,
    what: JobWhat,
}

/// The work of a job of the topology.
pub(crate) fn work(server: &Arc<Server>, job: &str) -> JobWork {
    JobWork { server: Arc::clone(server), what: server.context.topology.jobs[job].what.clone() }
}

#[async_trait]
impl Work for JobWork {
    async fn run(&self, _occurrence: Timestamp) -> Result<String, String> {
        let (server, what) = (Arc::clone(&self.server), self.what.clone());
        // Goes with this future when it is dropped, and the work on its thread with it.
        let (alive, dropped) = oneshot::channel::<()>();
        let handle = tokio::runtime::Handle::current();
        let done = tokio::task::spawn_blocking(move || {
            handle.block_on(async {
                tokio::select! {
                    done = does(&server, &what) => done,
                    _ = dropped => Err(anyhow!("the server stops")),
                }
            })
        });
        let done = done.await;
        drop(alive);
        match done {
            Ok(done) => done.map_err(|error| format!("{error:#}")),
            Err(error) => Err(format!("the job's thread ended: {error}")),
        }
    }

    /// Only who captures a shard can have a snapshot of it taken.
    fn is_able(&self) -> bool {
        let snapshots = matches!(self.what, JobWhat::Snapshot | JobWhat::Fold { .. });
        !snapshots || self.server.health.captures_all()
    }
}

async fn does(server: &Server, what: &JobWhat) -> Result<String> {
    let context = &server.context;
    match what {
        JobWhat::Snapshot => snapshot(server).await,
        JobWhat::Fold { real_snapshot_every_days } => fold(server, *real_snapshot_every_days).await,
        JobWhat::Compact => compact(context).await,
        JobWhat::Prune => prune(context).await,
        JobWhat::Check { share_percent } => check(context, *share_percent).await,
        JobWhat::Drill { file } => rehearse(context, file).await,
    }
}

async fn snapshot(server: &Server) -> Result<String> {
    let mut told = server.told.subscribe();
    let mut wanted: BTreeSet<ShardName> = server.context.topology.shards.keys().cloned().collect();
    let shards = wanted.len();
    server.snapshots.send_modify(|number| *number += 1);
    let most = Duration::from_secs(server.context.topology.capture.snapshot_seconds_max);
    let mut rows_total = 0;
    let all = async {
        while !wanted.is_empty() {
            match told.recv().await {
                Ok(CaptureEvent::Snapshot { shard, rows, .. }) => {
                    rows_total += rows;
                    wanted.remove(&shard);
                }
                Ok(CaptureEvent::Released { shard, .. }) => drop(wanted.remove(&shard)),
                Ok(CaptureEvent::StandsBy { failure } | CaptureEvent::Stopped { failure }) => bail!(failure),
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => bail!("capture has ended"),
            }
        }
        Ok(())
    };
    match tokio::time::timeout(most, all).await {
        Ok(done) => done?,
        Err(_) => {
            let names: Vec<&str> = wanted.iter().map(ShardName::as_str).collect();
            bail!("after {} s there is no snapshot of {}", most.as_secs(), names.join(", "));
        }
    }
    Ok(format!("{shards} shards, {} rows", print::count(rows_total)))
}

/// Snapshots of the shards where the last ones are too old; else folded ones, and what was read since is compared.
async fn fold(server: &Server, real_snapshot_every_days: u64) -> Result<String> {
    let context = &server.context;
    let days = i64::try_from(real_snapshot_every_days).unwrap_or(i64::MAX);
    let since = context::now().plus_micros(days.saturating_mul(DAY_MICROS).saturating_neg());
    let catalog = context.catalog_of([]).await?;
    let real = |shard: &ShardName| {
        let history = catalog.shards.get(shard)?.incarnations.last()?;
        let read = history.snapshots.iter().rfind(|snapshot| snapshot.folded_from.is_none())?;
        Some(read.boundary.at)
    };
    let shards: Vec<&ShardName> = context.topology.shards.keys().collect();
    if shards.iter().any(|shard| real(shard).is_none_or(|at| at < since)) {
        return Ok(format!(
            "read from the shards, since {real_snapshot_every_days} days are over: {}",
            snapshot(server).await?
        ));
    }
    let (mut rows, mut found, mut compared) = (0, Vec::new(), 0);
    for shard in &shards {
        let done = shard_folded(context, shard, None, false).await?;
        rows += done.folded.map_or(0, |folded| folded.rows);
        if let Some(done) = done.compared {
            compared += 1;
            found.extend(differences(&done).into_iter().map(|line| format!("{shard}: {line}")));
        }
    }
    if let Some(first) = found.first() {
        found.iter().for_each(print::talk);
        bail!("folded snapshots are not what the shards had: {first}");
    }
    Ok(format!("{} shards, {} rows, {compared} snapshots compared", shards.len(), print::count(rows)))
}

async fn compact(context: &Context) -> Result<String> {
    let dir =
        Scratch::new(None).context("failed to make a folder for packs; set TMPDIR to a disk with room")?;
    let (mut merged, mut bytes) = (0, 0);
    for shard in context.repository.shards().await? {
        let done = muster_upkeep::compact::compact_shard(&context.repository, &shard, dir.path()).await?;
        merged += done.merged.len();
        bytes += done.merged.iter().map(|merged| merged.bytes).sum::<u64>();
    }
    Ok(format!("{merged} compacted segments, {} written", print::bytes(bytes)))
}

async fn prune(context: &Context) -> Result<String> {
    let policy = context
        .topology
        .retention
        .context("the topology has no [retention], so that nothing may be pruned")?;
    let pruned = muster_upkeep::prune::prune(&context.repository, &policy, context::now(), false).await?;
    if let Some(first) = pruned.left_alone.first() {
        bail!("{} things were left alone: {first}", pruned.left_alone.len());
    }
    let condemned: u64 = pruned.condemned.values().map(|amount| amount.objects).sum();
    Ok(format!("{} objects removed, {condemned} condemned", pruned.removed.objects))
}

async fn check(context: &Context, share_percent: u64) -> Result<String> {
    let share = share_percent as f64 / 100.0;
    let checked = muster_repo::check::check(&context.repository, share, context::now()).await?;
    match checked.damages.first() {
        Some(first) => Err(anyhow!("{} objects are damaged or missing: {first}", checked.damages.len())),
        None => Ok(format!("{} objects, {} read", checked.objects, print::bytes(checked.bytes))),
    }
}

async fn rehearse(context: &Context, file: &Path) -> Result<String> {
    let record = drill::run_file(context, file, None, Cancel::new()).await?;
    let said = format!("drill {}: {} sites, {} rows compared", record.id, record.sites.len(), record.rows);
    match record.verdict {
        Verdict::Passed => Ok(said),
        Verdict::Stopped => Err(anyhow!("{said}; stopped: {}", record.errors.join("; "))),
        Verdict::Failed => Err(anyhow!("{said}; failed: {}", record.errors.join("; "))),
    }
}

//! Databases of single sites given free: captured no longer, so that they can be dropped.
//!
//! # Invariants
//! - Nothing that was committed before is lost from the log: it covers the moment of the release first.
//! - The repository says that a history was released before anything is taken away: a capture that follows takes it for
//!   what it is. A database that is captured again begins a new history.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use muster_repo::{RepoError, Repository};
use muster_stores::capture::CaptureError;
use muster_stores::postgres;
use muster_types::topology::{DriverConfig, Topology};
use muster_types::{Incarnation, ShardName, SiteId, Timestamp};

use crate::error::CaptureFailure;
use crate::event::Events;
use crate::install::{Installer, ShardInstalled};
use crate::runner::{CaptureOptions, CaptureRunner};
use crate::shard::last_boundary;

/// How long a capture that follows may take until its log covers the release: many polls and uploads.
const COVERED_MAX: Duration = Duration::from_secs(60);

/// Between two looks at its log.
const LOOK: Duration = Duration::from_millis(200);

/// What became of one database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// Its last recovery point; none if it was never captured.
    pub ends_at: Option<Timestamp>,
    /// It was released before.
    pub before: bool,
}

/// The shards that are databases of `site` alone.
pub fn databases_of(topology: &Topology, site: &SiteId) -> BTreeSet<ShardName> {
    let own = topology.shards.iter().filter(|(_, config)| config.site.as_ref() == Some(site));
    own.map(|(name, _)| name.clone()).collect()
}

/// Captures these shards a last time, notes that they are released, and takes everything of Muster's out of them.
/// Repeatable.
pub async fn release(
    repository: &Repository,
    topology: &Topology,
    shards: &BTreeSet<ShardName>,
    events: &Events,
) -> Vec<ShardInstalled<Released>> {
    let mut done = Vec::new();
    for shard in shards {
        let result = release_one(repository, topology, shard, events).await;
        done.push(ShardInstalled { shard: shard.clone(), result });
    }
    done
}

async fn release_one(
    repository: &Repository,
    topology: &Topology,
    shard: &ShardName,
    events: &Events,
) -> Result<Released, CaptureFailure> {
    let in_repository = |error: RepoError| CaptureFailure::Repository { shard: shard.clone(), error };
    let known = repository.incarnations(shard).await.map_err(in_repository)?.pop();
    let Some(incarnation) = known.map(|document| document.incarnation) else {
        remove(topology, shard).await?;
        return Ok(Released { ends_at: None, before: false });
    };
    let before = repository.released(shard, &incarnation).await.map_err(in_repository)?.is_some();
    if !before {
        let there = use_of(topology, shard).await?;
        if let Some(following) = there {
            cover(repository, topology, shard, &incarnation, following, events).await?;
        }
        repository.release(shard, &incarnation, now()).await.map_err(in_repository)?;
    }
    remove(topology, shard).await?;
    let last = last_boundary(repository, shard, &incarnation).await.map_err(in_repository)?;
    Ok(Released { ends_at: last.map(|last| last.at), before })
}

/// Whether a capture follows the shard; none if its database is gone, or capture is not installed. An open run that holds
/// its stores is an error.
async fn use_of(topology: &Topology, shard: &ShardName) -> Result<Option<bool>, CaptureFailure> {
    let DriverConfig::Postgres { connection } = &topology.shards[shard].driver else { return Ok(None) };
    let (name, connection) = (shard.clone(), connection.clone());
    let using = blocking(shard, move || postgres::capture::using(&name, &connection)).await;
    let found = match using {
        Err(CaptureFailure::Shard { error, .. }) if error.gone => return Ok(None),
        found => found?,
    };
    if let Some((store, run)) = found.claims.first_key_value() {
        let error = CaptureError::new(
            format!("run {run} is open and holds {store}"),
            format!(
                "let it end, or give it up (`muster abandon {run}`), then run `muster capture release` again"
            ),
        );
        return Err(CaptureFailure::Shard { shard: shard.clone(), error });
    }
    Ok(found.installed.then_some(found.followed))
}

/// Has the log cover the present moment.
async fn cover(
    repository: &Repository,
    topology: &Topology,
    shard: &ShardName,
    incarnation: &Incarnation,
    followed: bool,
    events: &Events,
) -> Result<(), CaptureFailure> {
    if !followed {
        let mut options = CaptureOptions::of(topology);
        (options.shards, options.events) = (Some([shard.clone()].into()), events.clone());
        let outcomes = CaptureRunner::new(repository, topology, options).once().await;
        return outcomes.into_iter().try_for_each(|outcome| outcome.result.map(drop));
    }
    let (moment, until) = (now(), tokio::time::Instant::now() + COVERED_MAX);
    loop {
        let last = last_boundary(repository, shard, incarnation).await;
        let last = last.map_err(|error| CaptureFailure::Repository { shard: shard.clone(), error })?;
        if last.is_some_and(|last| last.at >= moment) {
            return Ok(());
        }
        if tokio::time::Instant::now() > until {
            let error = CaptureError::transient(
                format!(
                    "the capture that follows it does not cover {moment} after {} s",
                    COVERED_MAX.as_secs()
                ),
                "look at its messages, or stop it; then run `muster capture release` again",
            );
            return Err(CaptureFailure::Shard { shard: shard.clone(), error });
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn remove(topology: &Topology, shard: &ShardName) -> Result<(), CaptureFailure> {
    let (topology, only) = (topology.clone(), BTreeSet::from([shard.clone()]));
    let removed = blocking(shard, move || Ok(Installer::new(&topology, Some(&only)).remove())).await?;
    for done in removed {
        match done.result {
            // Somebody dropped it by force: there is nothing to take away.
            Err(CaptureFailure::Shard { error, .. }) if error.gone => {}
            result => result?,
        }
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    shard: &ShardName,
    work: impl FnOnce() -> Result<T, CaptureError> + Send + 'static,
) -> Result<T, CaptureFailure> {
    let ended = |error: tokio::task::JoinError| {
        Err(CaptureError::transient(format!("a thread ended early: {error}"), "try again"))
    };
    let done = tokio::task::spawn_blocking(work).await.unwrap_or_else(ended);
    done.map_err(|error| CaptureFailure::Shard { shard: shard.clone(), error })
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

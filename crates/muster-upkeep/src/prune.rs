//! Pruning in two phases: what nothing needs is condemned, and after a grace removed if nothing needs it still.
//!
//! # Invariants
//! - Needed is: what a promised moment needs, a daily snapshot, what a hold of an operator, a saved plan or an open run
//!   needs, what is under way, and the last slots of every log. [`muster_plan::retention`] says what moments need.
//! - An object is removed only if it was condemned a grace ago and nothing needs it now, as read after the sweep was
//!   noted; whoever saves a plan reads those notes after its hold ([`muster_repo::retention`]).
//! - Before segments of a log go, its floor is raised, so that what is left of it is not taken for a gap.
//! - Documents go before the data that they name. Ended anywhere, a sweep is done again from the beginning.
//! - A shard with damaged objects or a hole in its log is left alone, and said.
//!
//! # Errors
//! What the object store answers; a run, plan or hold that cannot be read, since what it needs is then unknown.

mod fate;
mod needs;

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, TryStreamExt};
use muster_engine::JournalError;
use muster_repo::{RepoError, Repository, records, retention};
use muster_types::Timestamp;
use muster_types::format::FORMAT;
use muster_types::retention::{Condemned, Retention};

pub use fate::Fate;
use fate::Judgement;

/// Objects on one list: some 20 MB as text. What is beyond it is condemned by the next pruning.
const CONDEMNED_MAX: usize = 200_000;

/// Removals at once: small requests, as many as small reads.
const DELETES_AT_ONCE: usize = 16;

/// Why a repository could not be pruned.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// The repository.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// A run, of which it cannot be told whether it is open.
    #[error("what run needs cannot be told: {0}")]
    Run(#[from] JournalError),
}

/// Objects and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Objects.
    pub objects: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }
}

/// What a pruning did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Condemned now, by reason.
    pub condemned: BTreeMap<String, Amount>,
    /// Condemned before, within its grace.
    pub waiting: Amount,
    /// Removed.
    pub removed: Amount,
    /// Records of jobs and alarms, and signs of life of servers, that were removed.
    pub records: u64,
    /// Kept, by reason.
    pub kept: BTreeMap<String, Amount>,
    /// Shards that were left alone, with the reason.
    pub left_alone: Vec<String>,
}

/// Prunes `repository`: sweeps lists whose grace is over, then condemns what nothing needs. With `dry_run` it says what
/// it would do.
///
/// # Errors
/// See the module.
pub async fn prune(
    repository: &Repository,
    policy: &Retention,
    now: Timestamp,
    dry_run: bool,
) -> Result<Pruned, PruneError> {
    let mut pruned = Pruned::default();
    let lists = retention::condemned(repository).await?;
    let (due, waiting): (Vec<_>, Vec<_>) =
        lists.into_iter().partition(|list| list.condemned_at <= policy.condemned_by(now));
    if !due.is_empty() {
        sweep(repository, policy, &due, (now, dry_run), &mut pruned).await?;
    }
    let judgement = Judgement::read(repository, policy, now).await?;
    condemn(repository, &judgement, (&due, &waiting), (now, dry_run), &mut pruned).await?;
    if !dry_run {
        retention::forget_orphans(repository).await?;
        pruned.records = records::prune(repository, now).await?;
        for plan in &judgement.expired_plans {
            retention::drop_plan_hold(repository, plan).await?;
        }
    }
    pruned.left_alone = judgement.left_alone;
    Ok(pruned)
}

/// Removes what is on `lists` and still needed by nothing.
async fn sweep(
    repository: &Repository,
    policy: &Retention,
    lists: &[Condemned],
    (now, dry_run): (Timestamp, bool),
    pruned: &mut Pruned,
) -> Result<(), PruneError> {
    let mut begun = Vec::new();
    for list in lists {
        if !dry_run {
            let sweep = retention::begin_sweep(repository, &list.name, now).await?;
            let done = retention::is_swept(repository, &list.name).await?;
            if done && sweep.begun_at <= policy.condemned_by(now) {
                // Whoever read a catalog before it has written a hold by now.
                retention::forget_sweep(repository, &list.name).await?;
                continue;
            }
            if done {
                continue;
            }
        }
        begun.push(list);
    }
    if begun.is_empty() {
        return Ok(());
    }
    // After the notes: a hold that is not seen here was written by someone who sees them.
    let judgement = Judgement::read(repository, policy, now).await?;
    let listed: BTreeSet<&String> = begun.iter().flat_map(|list| &list.objects).collect();
    let gone: Vec<(&str, u64)> = judgement
        .unneeded()
        .filter(|(key, _, _)| listed.contains(key))
        .map(|(key, bytes, _)| (key.as_str(), bytes))
        .collect();
    gone.iter().for_each(|(_, bytes)| pruned.removed.add(*bytes));
    if dry_run {
        return Ok(());
    }
    for floor in judgement.floors_above(begun.iter().flat_map(|list| &list.floors)) {
        retention::raise_floor(repository, &floor, now).await?;
    }
    let (documents, data): (Vec<_>, Vec<_>) = gone.iter().partition(|(key, _)| fate::names_others(key));
    for keys in [documents, data] {
        futures::stream::iter(keys)
            .map(|(key, _)| repository.objects().delete(key))
            .buffer_unordered(DELETES_AT_ONCE)
            .try_collect::<()>()
            .await?;
    }
    for list in begun {
        retention::end_sweep(repository, &list.name, now).await?;
    }
    Ok(())
}

/// Condemns what nothing needs and no list has yet.
async fn condemn(
    repository: &Repository,
    judgement: &Judgement,
    (due, waiting): (&[Condemned], &[Condemned]),
    (now, dry_run): (Timestamp, bool),
    pruned: &mut Pruned,
) -> Result<(), PruneError> {
    // What is on a list that was swept and stayed is condemned anew once nothing needs it.
    let unswept = due.iter().filter(|_| dry_run);
    let listed: BTreeSet<&String> = waiting.iter().chain(unswept).flat_map(|list| &list.objects).collect();
    let mut objects = Vec::new();
    for (key, bytes, reason) in judgement.unneeded() {
        if listed.contains(key) {
            pruned.waiting.add(bytes);
        } else if objects.len() < CONDEMNED_MAX {
            objects.push(key.clone());
            pruned.condemned.entry(reason.to_owned()).or_default().add(bytes);
        }
    }
    for (bytes, reason) in judgement.kept() {
        pruned.kept.entry(reason.to_owned()).or_default().add(bytes);
    }
    if dry_run || objects.is_empty() {
        return Ok(());
    }
    let name = format!("{:020}-{:08x}", now.as_micros(), judgement.salt());
    let list =
        Condemned { format: FORMAT, name, condemned_at: now, floors: judgement.floors.clone(), objects };
    Ok(retention::condemn(repository, &list).await?)
}

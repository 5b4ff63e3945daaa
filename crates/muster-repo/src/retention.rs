//! Holds of operators and of saved plans, and lists of what is to be removed.
//!
//! # Invariants
//! - Whoever removes notes that it does so ([`begin_sweep`]), and then reads the holds. Whoever holds writes the hold,
//!   and then reads the notes ([`swept`]). So one of the two sees the other.
//!
//! # Errors
//! What the object store answers; damaged or newer documents.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use muster_types::compacted::LogFloor;
use muster_types::format::FORMAT;
use muster_types::retention::{Condemned, Floor, Hold, PlanHold, Sweep};
use muster_types::{PlanId, Timestamp};

use crate::catalog::READS_AT_ONCE;
use crate::document::{from_json, from_json_zstd, to_json, to_json_zstd};
use crate::error::{RepoError, RepoErrorKind};
use crate::keys;
use crate::objects::Creation;
use crate::repository::Repository;

/// Places a hold.
///
/// # Errors
/// See the module; another hold of that name.
pub async fn place(repository: &Repository, hold: &Hold) -> Result<(), RepoError> {
    match repository.objects().create(&keys::hold(&hold.name), to_json(hold)?).await? {
        Creation::Mine => Ok(()),
        Creation::Other(_) => Err(RepoError::new(
            RepoErrorKind::Misuse,
            format!("there is a hold `{}` already", hold.name),
            "choose another name; `muster repo holds` lists them",
        )),
    }
}

/// Lifts a hold; `false` if there was none.
///
/// # Errors
/// See the module.
pub async fn lift(repository: &Repository, name: &str) -> Result<bool, RepoError> {
    let key = keys::hold(name);
    let there = repository.objects().size(&key).await?.is_some();
    repository.objects().delete(&key).await?;
    Ok(there)
}

/// All holds of operators, by name.
///
/// # Errors
/// See the module.
pub async fn holds(repository: &Repository) -> Result<Vec<Hold>, RepoError> {
    documents(repository, keys::HOLDS, from_json::<Hold>).await
}

/// Holds the objects of a saved plan until it expires. One that is there already is left.
///
/// # Errors
/// See the module.
pub async fn hold_plan(repository: &Repository, hold: &PlanHold) -> Result<(), RepoError> {
    repository.objects().create(&keys::plan_hold(&hold.plan), plan_hold_body(hold)?).await.map(drop)
}

/// The object that a hold is.
///
/// # Errors
/// None that a hold can cause.
pub fn plan_hold_body(hold: &PlanHold) -> Result<Bytes, RepoError> {
    to_json_zstd(hold)
}

/// The holds of saved plans, expired ones too.
///
/// # Errors
/// See the module.
pub async fn plan_holds(repository: &Repository) -> Result<Vec<PlanHold>, RepoError> {
    documents(repository, keys::PLANS, from_json_zstd::<PlanHold>).await
}

/// Removes the hold of a plan that has expired.
///
/// # Errors
/// See the module.
pub async fn drop_plan_hold(repository: &Repository, plan: &PlanId) -> Result<(), RepoError> {
    repository.objects().delete(&keys::plan_hold(plan)).await
}

/// Writes a list.
///
/// # Errors
/// See the module.
pub async fn condemn(repository: &Repository, list: &Condemned) -> Result<(), RepoError> {
    repository.objects().create(&keys::condemned(&list.name), to_json_zstd(list)?).await.map(drop)
}

/// All lists, by name.
///
/// # Errors
/// See the module.
pub async fn condemned(repository: &Repository) -> Result<Vec<Condemned>, RepoError> {
    documents(repository, keys::CONDEMNED, from_json_zstd::<Condemned>).await
}

/// Notes that a list is being swept; when the first to do so began.
///
/// # Errors
/// See the module.
pub async fn begin_sweep(repository: &Repository, name: &str, now: Timestamp) -> Result<Sweep, RepoError> {
    let sweep = Sweep { format: FORMAT, begun_at: now };
    let key = keys::sweep(name);
    match repository.objects().create(&key, to_json(&sweep)?).await? {
        Creation::Mine => Ok(sweep),
        Creation::Other(theirs) => from_json(&key, &theirs),
    }
}

/// Notes that a list was swept to its end.
///
/// # Errors
/// See the module.
pub async fn end_sweep(repository: &Repository, name: &str, now: Timestamp) -> Result<(), RepoError> {
    let body = to_json(&Sweep { format: FORMAT, begun_at: now })?;
    repository.objects().create(&keys::swept(name), body).await.map(drop)
}

/// A list was swept to its end.
///
/// # Errors
/// See the module.
pub async fn is_swept(repository: &Repository, name: &str) -> Result<bool, RepoError> {
    Ok(repository.objects().size(&keys::swept(name)).await?.is_some())
}

/// Removes a list that was swept, and the notes of it.
///
/// # Errors
/// See the module.
pub async fn forget_sweep(repository: &Repository, name: &str) -> Result<(), RepoError> {
    repository.objects().delete(&keys::sweep(name)).await?;
    repository.objects().delete(&keys::condemned(name)).await?;
    repository.objects().delete(&keys::swept(name)).await
}

/// Removes notes whose list is gone: left where forgetting ended early.
///
/// # Errors
/// See the module.
pub async fn forget_orphans(repository: &Repository) -> Result<(), RepoError> {
    // Notes first: one of a list that is new by then has it.
    let mut notes = repository.objects().list(keys::SWEEPS, None).await?;
    notes.extend(repository.objects().list(keys::SWEPT, None).await?);
    let lists = repository.objects().list(keys::CONDEMNED, None).await?;
    let names: std::collections::BTreeSet<&str> = lists
        .iter()
        .filter_map(|list| list.key.strip_prefix(keys::CONDEMNED)?.strip_suffix(".json.zst"))
        .collect();
    for note in &notes {
        let name = note.key.rsplit('/').next().and_then(|name| name.strip_suffix(".json"));
        if name.is_some_and(|name| !names.contains(name)) {
            repository.objects().delete(&note.key).await?;
        }
    }
    Ok(())
}

/// Of `objects`, those that are being removed, or were a short while ago.
///
/// # Errors
/// See the module.
pub async fn swept(repository: &Repository, objects: &[String]) -> Result<Vec<String>, RepoError> {
    let notes = repository.objects().list(keys::SWEEPS, None).await?;
    let swept: Vec<&str> =
        notes.iter().filter_map(|note| note.key.strip_prefix(keys::SWEEPS)?.strip_suffix(".json")).collect();
    if swept.is_empty() {
        return Ok(Vec::new());
    }
    let mut gone = Vec::new();
    for list in condemned(repository).await?.into_iter().filter(|list| swept.contains(&list.name.as_str())) {
        let done = repository.objects().size(&keys::swept(&list.name)).await?.is_some();
        let listed: std::collections::BTreeSet<String> = list.objects.into_iter().collect();
        for object in objects.iter().filter(|object| listed.contains(*object)) {
            // What something needed by then is still there at the end.
            if !done || repository.objects().size(object).await?.is_none() {
                gone.push(object.clone());
            }
        }
    }
    Ok(gone)
}

/// Notes that nothing before a segment of a log counts as missing.
///
/// # Errors
/// See the module.
pub async fn raise_floor(repository: &Repository, floor: &Floor, now: Timestamp) -> Result<(), RepoError> {
    let document = LogFloor { format: FORMAT, first: floor.first, pruned_at: now };
    let key = keys::floor(&floor.shard, &floor.incarnation, floor.first);
    repository.objects().create(&key, to_json(&document)?).await.map(drop)
}

async fn documents<T>(
    repository: &Repository,
    folder: &str,
    read: impl Fn(&str, &[u8]) -> Result<T, RepoError>,
) -> Result<Vec<T>, RepoError> {
    let entries = repository.objects().list(folder, None).await?;
    let bodies: Vec<(String, Option<Bytes>)> = futures::stream::iter(entries)
        .map(|entry| async move {
            let body = repository.objects().get(&entry.key).await?;
            Ok::<_, RepoError>((entry.key, body))
        })
        .buffered(READS_AT_ONCE)
        .try_collect::<Vec<_>>()
        .await?;
    // One that is gone by now was lifted, or is done.
    bodies
        .into_iter()
        .filter_map(|(key, body)| Some((key, body?)))
        .map(|(key, body)| read(&key, &body))
        .collect()
}

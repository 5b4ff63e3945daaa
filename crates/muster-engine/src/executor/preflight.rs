//! Whether a plan's inputs are still what they were.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use muster_repo::Repository;
use muster_types::format;
use muster_types::plan::{LiveStore, Plan, Severity, StorePlan};
use muster_types::{ShardName, StoreId};

use super::context::{carried_out, restored};
use super::start::{driver, insist};
use super::{Drivers, Options};
use crate::driver::StoreProbe;
use crate::error::EngineError;

/// Size questions in flight: cheap for any object store, and a plan reads hundreds of objects.
const SIZES_AT_ONCE: usize = 16;

/// Reasons printed at most; a plan that differs in more is simply old.
const REASONS_MAX: usize = 20;

/// Checks what the plan as a whole rests on, and refuses with all that was found. Harm to an object costs the sites
/// that need it and no others: see [`harmed_objects`].
pub(super) async fn preflight(
    repository: &Repository,
    drivers: &Drivers,
    options: &Options,
    plan: &Plan,
) -> Result<(), EngineError> {
    let mut reasons = content(repository, options, plan);
    if reasons.is_empty() {
        reasons.extend(live(drivers, plan).await?);
    }
    refuse(reasons)
}

/// As [`preflight`], and with the objects: for those who only look.
pub(super) async fn preflight_whole(
    repository: &Repository,
    drivers: &Drivers,
    options: &Options,
    plan: &Plan,
) -> Result<(), EngineError> {
    preflight(repository, drivers, options, plan).await?;
    refuse(harmed_objects(repository, plan).await?.into_values().collect())
}

/// Refuses a plan made for another topology.
pub(super) fn same_topology(options: &Options, plan: &Plan) -> Result<(), EngineError> {
    refuse(topology(options, plan).into_iter().collect())
}

fn refuse(mut reasons: Vec<String>) -> Result<(), EngineError> {
    if reasons.is_empty() {
        return Ok(());
    }
    let left = reasons.len().saturating_sub(REASONS_MAX);
    reasons.truncate(REASONS_MAX);
    if left > 0 {
        reasons.push(format!("and {left} more"));
    }
    Err(EngineError::Refused { reasons })
}

fn topology(options: &Options, plan: &Plan) -> Option<String> {
    (plan.topology != options.topology).then(|| {
        format!(
            "the topology changed since (digest {} then, {} now)",
            plan.topology.short(),
            options.topology.short()
        )
    })
}

fn content(repository: &Repository, options: &Options, plan: &Plan) -> Vec<String> {
    let mut reasons = Vec::new();
    if let Err(newer) = format::accept("the plan", plan.format) {
        reasons.push(newer.to_string());
    }
    if plan.content_id() != plan.id {
        reasons
            .push(format!("its content was edited: it does not have the digest {} that is its id", plan.id));
    }
    if plan.repository != repository.id() {
        reasons.push(format!(
            "it was made for repository `{}`, and this is `{}`",
            plan.repository,
            repository.id()
        ));
    }
    if plan.expires_at < options.clock.now() {
        reasons.push(format!("it expired at {}, and its objects were not held any longer", plan.expires_at));
    }
    reasons.extend(topology(options, plan));
    let fatal = plan.notes.iter().filter(|note| note.severity == Severity::Fatal);
    reasons.extend(fatal.map(|note| format!("{}: {}", note.subject, note.text)));
    reasons
}

/// Objects of the plan that are missing or have another size, by their number in it, and what is wrong with each.
pub(super) async fn harmed_objects(
    repository: &Repository,
    plan: &Plan,
) -> Result<BTreeMap<u32, String>, EngineError> {
    let objects = repository.objects();
    let sizes = futures::stream::iter((0..).zip(&plan.objects)).map(|(number, object)| async move {
        let found = objects.size(&object.key).await?;
        let reason = match found {
            Some(bytes) if bytes == object.bytes => return Ok(None),
            Some(bytes) => format!("object `{}` has {bytes} bytes instead of {}", object.key, object.bytes),
            None => format!("object `{}` is missing from the repository", object.key),
        };
        Ok::<_, EngineError>(Some((number, reason)))
    });
    let reasons: Vec<Option<(u32, String)>> = sizes.buffered(SIZES_AT_ONCE).try_collect().await?;
    Ok(reasons.into_iter().flatten().collect())
}

async fn live(drivers: &Drivers, plan: &Plan) -> Result<Vec<String>, EngineError> {
    let mut shards: BTreeMap<&ShardName, Vec<(StoreId, &StorePlan)>> = BTreeMap::new();
    for site in carried_out(plan) {
        for (store, planned) in restored(site) {
            shards.entry(&planned.shard).or_default().push((store, planned));
        }
    }
    let mut reasons = Vec::new();
    for (shard, stores) in shards {
        let driver = driver(drivers, shard)?;
        if plan.provisions.contains_key(shard) {
            let surveyed = insist(Duration::ZERO, || driver.survey(&[])).await;
            let inhabited =
                surveyed.ok().and_then(|survey| survey.tables.first().map(|table| table.name.clone()));
            reasons.extend(inhabited.map(|table| {
                format!("shard `{shard}` was empty when the plan was made, and has a table `{table}` now")
            }));
            continue;
        }
        let probes: Vec<StoreProbe> =
            stores.iter().map(|(store, planned)| probe(plan, store, planned)).collect();
        let probed = insist(Duration::ZERO, || driver.probe(&probes)).await;
        // A shard that cannot be read now fails its own sites when the run begins.
        let Ok(found) = probed.inspect_err(|error| tracing::warn!(%shard, %error, "not probed")) else {
            continue;
        };
        let pairs = stores.iter().zip(&found);
        reasons
            .extend(pairs.filter_map(|((store, planned), live)| changed(shard, store, &planned.live, live)));
    }
    Ok(reasons)
}

fn probe(plan: &Plan, store: &StoreId, planned: &StorePlan) -> StoreProbe {
    let tables = planned.tables.iter().filter_map(|input| plan.tables.get(input.table as usize).cloned());
    StoreProbe { store: store.clone(), tables: Arc::new(tables.collect()) }
}

/// What changed of a store's live state. Claims and write protection are left out: they cost that site alone.
fn changed(shard: &ShardName, store: &StoreId, planned: &LiveStore, found: &LiveStore) -> Option<String> {
    if planned.rows != found.rows {
        return Some(format!(
            "{store} had {} live rows in shard `{shard}`, and has {} now",
            planned.rows, found.rows
        ));
    }
    if planned.definitions != found.definitions || planned.differences != found.differences {
        let now = if found.differences.is_empty() {
            String::new()
        } else {
            format!(" ({})", found.differences.join(", "))
        };
        return Some(format!("the table definitions of {store} in shard `{shard}` changed{now}"));
    }
    None
}

//! One attempt of one step: what it needs of earlier steps, and its effect.

use std::collections::BTreeMap;

use muster_rows::RowsDigest;
use muster_types::journal::{Migrated, NeighbourDigest, Outcome, Published, TableDigest};
use muster_types::plan::{Restoration, StepKey};
use muster_types::{Digest, ShardName, SiteId, StoreId};

use super::context::{Context, StepError, StepResult, restored};
use super::{check, command, kind_check, neighbours, provision, references, stage};
use crate::driver::{ErrorClass, StoreDriver, StoreWork};
use crate::journal::{RunState, StepPhase};

pub(super) type TableDigests = BTreeMap<String, TableDigest>;

/// A published store of a site that is to be checked.
pub(super) struct CheckedStore {
    pub(super) store: StoreId,
    /// What was to become live.
    pub(super) staged: TableDigests,
    pub(super) migrated: Option<Box<Migrated>>,
    pub(super) published: Published,
}

/// An attempt, with what it takes from earlier steps.
pub(super) enum Job {
    Provision(ShardName),
    Stage(StoreId),
    Verify {
        store: StoreId,
        staged: TableDigests,
        /// Another engine staged it, and may have died since: what is found beside the live data may be incomplete.
        inherited: bool,
    },
    Publish {
        store: StoreId,
        staged: TableDigests,
        migrated: Option<Box<Migrated>>,
    },
    Command {
        site: SiteId,
        command: Vec<String>,
    },
    Check(Vec<CheckedStore>),
    References {
        site: SiteId,
        /// What migrations made of its stores.
        migrated: BTreeMap<StoreId, Box<Migrated>>,
    },
    KindCheck {
        store: StoreId,
        check: String,
    },
    Handback(SiteId),
    DigestBefore(ShardName),
    DigestAfter {
        shard: ShardName,
        before: NeighbourDigest,
    },
}

impl Job {
    /// The attempt of a step that the scheduler starts now.
    pub(super) fn of(key: &StepKey, context: &Context, state: &RunState) -> Result<Self, StepError> {
        if let Some(reason) = key.site().and_then(|site| context.refused.get(site)) {
            return Err(StepError::permanent(reason.clone()));
        }
        let missing =
            |what: &str| StepError::permanent(format!("the journal lacks {what} of {key}; plan again"));
        Ok(match key {
            StepKey::Provision(shard) => Self::Provision(shard.clone()),
            StepKey::Stage(store) => Self::Stage(store.clone()),
            StepKey::Verify(store) => {
                let stage = state.step(&StepKey::Stage(store.clone()));
                let inherited = stage.is_some_and(|stage| stage.epoch < state.epoch());
                let staged = staged(state, store).ok_or_else(|| missing("the staging"))?;
                Self::Verify { store: store.clone(), staged, inherited }
            }
            StepKey::Publish(store) => match &context.store(store)?.restoration {
                Restoration::Restored => {
                    let staged = staged(state, store).ok_or_else(|| missing("the staging"))?;
                    Self::Publish { store: store.clone(), staged, migrated: migrated(state, store) }
                }
                Restoration::Rebuilt { command } | Restoration::External { command } => {
                    Self::Command { site: store.site.clone(), command: command.clone() }
                }
            },
            StepKey::Check(site) => {
                let checked = |(store, _): (StoreId, _)| {
                    let staged = staged(state, &store).ok_or_else(|| missing("a staging"))?;
                    let published = published(state, &store).ok_or_else(|| missing("a publish"))?;
                    let migrated = migrated(state, &store);
                    let staged = expected(&staged, migrated.as_deref());
                    Ok(CheckedStore { store, staged, migrated, published })
                };
                Self::Check(restored(context.site(site)?).map(checked).collect::<Result<_, StepError>>()?)
            }
            StepKey::References(site) => {
                let stores = restored(context.site(site)?);
                let migrated =
                    stores.filter_map(|(store, _)| Some((store.clone(), migrated(state, &store)?)));
                Self::References { site: site.clone(), migrated: migrated.collect() }
            }
            StepKey::KindCheck { store, check } => {
                Self::KindCheck { store: store.clone(), check: check.clone() }
            }
            StepKey::Handback(site) => Self::Handback(site.clone()),
            StepKey::DigestBefore(shard) => Self::DigestBefore(shard.clone()),
            StepKey::DigestAfter(shard) => {
                let before = state.step(&StepKey::DigestBefore(shard.clone()));
                match before.and_then(|before| before.outcome.clone()) {
                    Some(Outcome::DigestedBefore(before)) => {
                        Self::DigestAfter { shard: shard.clone(), before }
                    }
                    _ => return Err(missing("the digest before")),
                }
            }
        })
    }

    /// Whether others can see what it does. The rest only reads, or writes staging that is checked before it is used
    /// and made again if it is not whole, so that nothing is lost when its record is.
    pub(super) fn is_visible(&self) -> bool {
        match self {
            Self::Provision(_) | Self::Publish { .. } | Self::Command { .. } | Self::Handback(_) => true,
            // A program of the operator's may do anything.
            Self::KindCheck { .. } => true,
            Self::Stage(_) | Self::Verify { .. } | Self::Check(_) | Self::References { .. } => false,
            Self::DigestBefore(_) | Self::DigestAfter { .. } => false,
        }
    }

    /// Does it.
    pub(super) async fn run(self, context: &Context) -> StepResult {
        match self {
            Self::Provision(shard) => provision::provision(context, &shard).await,
            Self::Stage(store) => stage::stage(context, &store).await,
            Self::Verify { store, staged, inherited } => verify(context, &store, &staged, inherited).await,
            Self::Publish { store, staged, migrated } => {
                publish(context, &store, &staged, migrated.as_deref()).await
            }
            Self::Command { site, command } => {
                let output = command::run(&command, &site, context.options.command_limit).await?;
                Ok(Outcome::CommandRan { output })
            }
            Self::Check(stores) => check::check(context, &stores).await,
            Self::References { site, migrated } => references::count(context, &site, &migrated).await,
            Self::KindCheck { store, check } => kind_check::check(context, &store, &check).await,
            Self::Handback(site) => handback(context, &site).await,
            Self::DigestBefore(shard) => neighbours::before(context, &shard).await,
            Self::DigestAfter { shard, before } => neighbours::after(context, &shard, &before).await,
        }
    }
}

fn staged(state: &RunState, store: &StoreId) -> Option<TableDigests> {
    match &state.step(&StepKey::Stage(store.clone()))?.outcome {
        Some(Outcome::Staged { tables, .. }) => Some(tables.clone()),
        _ => None,
    }
}

fn migrated(state: &RunState, store: &StoreId) -> Option<Box<Migrated>> {
    match &state.step(&StepKey::Verify(store.clone()))?.outcome {
        Some(Outcome::Verified { migrated, .. }) => migrated.clone(),
        _ => None,
    }
}

/// What is to become live of what was staged.
pub(super) fn expected(staged: &TableDigests, migrated: Option<&Migrated>) -> TableDigests {
    let mut expected = staged.clone();
    let tables = migrated.into_iter().flat_map(|migrated| &migrated.tables);
    expected.extend(tables.map(|(name, table)| (name.clone(), table.digest)));
    expected
}

fn published(state: &RunState, store: &StoreId) -> Option<Published> {
    let step = state.step(&StepKey::Publish(store.clone()))?;
    match &step.outcome {
        Some(Outcome::Published(published)) if step.phase == StepPhase::Succeeded => Some(published.clone()),
        _ => None,
    }
}

/// Proves that what lies beside the live data is what the repository holds.
pub(super) async fn verify(
    context: &Context,
    store: &StoreId,
    staged: &TableDigests,
    inherited: bool,
) -> StepResult {
    let driver = context.driver(&context.store(store)?.shard)?;
    let work = context.work(store)?;
    // Another engine's rows were given to another process.
    let known = if inherited { Ok(false) } else { driver.is_as_staged(&work).await };
    match known {
        Ok(true) => return verified(&**driver, &work, staged).await,
        Err(error) if error.class != ErrorClass::StagingLost => return Err(error.into()),
        _ => {}
    }
    let mut found = driver.digest_staged(&work).await;
    let whole = found.as_ref().is_ok_and(|found| found == staged);
    let lost = found.as_ref().is_err_and(|error| error.class == ErrorClass::StagingLost);
    if lost || (inherited && !whole) {
        stage_again(context, store, staged).await?;
        found = driver.digest_staged(&work).await;
    }
    let found = found?;
    compare(context, store, staged, &found)?;
    verified(&**driver, &work, &found).await
}

/// The outcome for rows that were found as they should be, with what their migrations make of them.
pub(super) async fn verified(driver: &dyn StoreDriver, work: &StoreWork, found: &TableDigests) -> StepResult {
    let migrated = driver.migrate(work).await?.map(Box::new);
    let rows = found.values().map(|table| table.rows).sum();
    Ok(Outcome::Verified { rows, digest: over_tables(found), migrated })
}

/// Publishes what was proven. Where it was lost meanwhile, it is staged and proven once more: the journal need not know,
/// since what the repository holds and what was proven stay the same.
async fn publish(
    context: &Context,
    store: &StoreId,
    staged: &TableDigests,
    migrated: Option<&Migrated>,
) -> StepResult {
    let driver = context.driver(&context.store(store)?.shard)?;
    let work = context.work(store)?;
    let (migrated_work, wanted) = (work.clone().migrated(migrated), expected(staged, migrated));
    let mut published = driver.publish(&migrated_work, &wanted).await;
    if published.as_ref().is_err_and(|error| error.class == ErrorClass::StagingLost) {
        stage_again(context, store, staged).await?;
        compare(context, store, staged, &driver.digest_staged(&work).await?)?;
        if driver.migrate(&work).await?.as_ref() != migrated {
            return Err(StepError::permanent(format!(
                "the migrations of {store} make other rows of it than they did before; let them depend on the staged rows \
                 alone, abandon the run and plan again",
            )));
        }
        published = driver.publish(&migrated_work, &wanted).await;
    }
    Ok(Outcome::Published(published?))
}

/// The sums already count what was staged before, which is what the repository has to give again.
async fn stage_again(context: &Context, store: &StoreId, before: &TableDigests) -> Result<(), StepError> {
    let Outcome::Staged { rows, bytes, tables } = stage::stage(context, store).await? else { return Ok(()) };
    context.events.take_back(rows, bytes);
    match difference(before, &tables) {
        None => Ok(()),
        Some(difference) => Err(StepError::permanent(format!(
            "the repository gave other rows of {store} than before: {difference}; run `muster check` on it, then \
             `muster resume {}`",
            context.run
        ))),
    }
}

fn compare(
    context: &Context,
    store: &StoreId,
    staged: &TableDigests,
    found: &TableDigests,
) -> Result<(), StepError> {
    let Some(difference) = difference(staged, found) else { return Ok(()) };
    Err(StepError::permanent(format!(
        "what was staged of {store} is not what the repository holds: {difference}; check the disk of shard `{}` and run \
         `muster resume {}`",
        context.store(store)?.shard,
        context.run,
    )))
}

/// The first table in which two sets of rows differ.
pub(super) fn difference(wanted: &TableDigests, found: &TableDigests) -> Option<String> {
    let tables = wanted.keys().chain(found.keys());
    let nothing = TableDigest { rows: 0, digest: RowsDigest::new().finish() };
    let of = |tables: &TableDigests, table: &String| tables.get(table).copied().unwrap_or(nothing);
    tables
        .map(|table| (table, of(wanted, table), of(found, table)))
        .find(|(_, wanted, found)| wanted != found)
        .map(|(table, wanted, found)| {
            format!(
                "table `{table}` should have {} rows (digest {}) and has {} (digest {})",
                wanted.rows,
                wanted.digest.short(),
                found.rows,
                found.digest.short(),
            )
        })
}

fn over_tables(tables: &TableDigests) -> Digest {
    let text: String =
        tables.iter().map(|(name, table)| format!("{name}\t{}\t{}\n", table.rows, table.digest)).collect();
    Digest::of(text.as_bytes())
}

/// Gives the site back: the world outside first, so that a site whose check fails stays claimed.
async fn handback(context: &Context, site: &SiteId) -> StepResult {
    let planned = context.site(site)?;
    let mut outputs = Vec::new();
    for store in &planned.stores {
        if let Restoration::External { command } = &store.restoration {
            outputs.push(command::run(command, site, context.options.command_limit).await?);
        }
    }
    let mut shards: BTreeMap<&ShardName, Vec<StoreId>> = BTreeMap::new();
    for (store, planned) in restored(planned) {
        shards.entry(&planned.shard).or_default().push(store);
    }
    for (shard, stores) in shards {
        context.driver(shard)?.release(&context.run, context.epoch, &stores).await?;
    }
    if outputs.is_empty() {
        return Ok(Outcome::HandedBack);
    }
    Ok(Outcome::CommandRan { output: outputs.join("\n") })
}

//! Removes what drills left behind that did not come to their end.
//!
//! # Invariants
//! - Only what this repository knows to have begun is removed, and only while nobody holds it: another repository's drills may
//!   share the sandbox, and so may one that is under way.

use std::collections::{BTreeMap, BTreeSet};

use muster_engine::{Engine, EngineError, Events, JournalError, Options};
use muster_repo::{DrillObjects, Repository, RunObjects};
use muster_stores::sandbox::{Sandbox, drill_of};
use muster_types::drill::Made;
use muster_types::topology::Topology;
use muster_types::{DrillId, RunId};

use crate::drill::RUN_PREFIX;
use crate::error::DrillError;

/// What was found in the sandboxes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Removed.
    pub removed: Vec<Made>,
    /// Of drills that are under way.
    pub held: Vec<Made>,
    /// Of drills that this repository knows nothing of: left alone.
    pub unknown: Vec<Made>,
    /// Sandboxes that could not be cleaned, and why.
    pub problems: Vec<String>,
}

/// Cleans every declared sandbox, and gives up the runs of the drills in question. A sandbox that cannot be used costs the
/// others nothing.
///
/// # Errors
/// The repository's.
pub async fn clean(
    repository: &Repository,
    topology: &Topology,
    options: &Options,
) -> Result<Cleaned, DrillError> {
    let mut cleaned = Cleaned::default();
    let mut gone = BTreeSet::new();
    for name in topology.sandboxes.keys() {
        let done = clean_one(repository, topology, name, &mut cleaned, &mut gone).await;
        match done {
            Err(DrillError::Sandbox(error)) => cleaned.problems.push(error.to_string()),
            done => done?,
        }
    }
    for drill in gone {
        close_runs(repository, options, &drill, "the drill ended early, and its sandbox was cleaned").await?;
    }
    Ok(cleaned)
}

async fn clean_one(
    repository: &Repository,
    topology: &Topology,
    name: &str,
    cleaned: &mut Cleaned,
    gone: &mut BTreeSet<DrillId>,
) -> Result<(), DrillError> {
    let sandbox = Sandbox::open(topology, name)?;
    let mut by_drill: BTreeMap<DrillId, Vec<Made>> = BTreeMap::new();
    for made in sandbox.list().await? {
        let Some(drill) = drill_of(&made) else { continue };
        by_drill.entry(drill).or_default().push(Made { sandbox: name.to_owned(), name: made });
    }
    for (drill, found) in by_drill {
        if DrillObjects::new(repository).begun(&drill).await?.is_none() {
            cleaned.unknown.extend(found);
            continue;
        }
        let Some(_hold) = sandbox.hold(&drill).await? else {
            cleaned.held.extend(found);
            continue;
        };
        for made in found {
            sandbox.remove(&made.name).await?;
            cleaned.removed.push(made);
        }
        // Holding may have made a lock file of its own.
        let own = |name: &String| drill_of(name).as_ref() == Some(&drill);
        for name in sandbox.list().await?.into_iter().filter(own) {
            sandbox.remove(&name).await?;
        }
        gone.insert(drill);
    }
    Ok(())
}

/// Gives up the runs of a drill that are open still.
pub(crate) async fn close_runs(
    repository: &Repository,
    options: &Options,
    drill: &DrillId,
    reason: &str,
) -> Result<(), DrillError> {
    let engine = Engine::new(repository.clone(), BTreeMap::new(), options.clone(), Events::none());
    let begin = format!("{RUN_PREFIX}{drill}");
    let runs: Vec<RunId> = RunObjects::list(repository).await?;
    for run in runs.iter().filter(|run| run.as_str().starts_with(&begin)) {
        match engine.close_drill(run, reason).await {
            Ok(()) | Err(EngineError::Journal(JournalError::NoRun { .. })) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

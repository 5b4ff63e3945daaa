//! Why a run cannot begin or go on.

use muster_repo::RepoError;
use muster_types::{RunId, ShardName};

use crate::driver::DriverError;
use crate::journal::JournalError;
use crate::scheduler::ScheduleError;

/// An error that ends an engine; what fails within a run is in its journal instead.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The plan may not be applied, for all these reasons.
    #[error("the plan cannot be applied: {}", reasons.join("; "))]
    Refused {
        /// What changed, or what forbids it, each naming its subject.
        reasons: Vec<String>,
    },
    /// A shard of the plan that this process knows nothing of.
    #[error("the plan writes to shard `{shard}`, for which there is no driver")]
    NoDriver {
        /// The shard.
        shard: ShardName,
    },
    /// The plan contradicts itself.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The repository.
    #[error(transparent)]
    Repository(#[from] RepoError),
    /// A shard refuses this engine, since a later one holds the run.
    #[error("run {run} was taken over by another engine: {error}")]
    FencedInShard {
        /// The run.
        run: RunId,
        /// What the shard said.
        error: String,
    },
    /// Shards failed where the run cannot do without them.
    #[error("{}", of_shards(failed))]
    Shards {
        /// Each with its error.
        failed: Vec<(ShardName, DriverError)>,
    },
    /// A step's task died.
    #[error("a step of run {run} ended without an answer: {what}")]
    LostStep {
        /// The run.
        run: RunId,
        /// What the runtime says.
        what: String,
    },
}

impl EngineError {
    /// What the operator can do.
    pub fn hint(&self) -> String {
        match self {
            Self::Refused { .. } => "run `muster plan` again, review it, and apply the new plan".to_owned(),
            Self::NoDriver { shard } => {
                format!(
                    "declare shard `{shard}` in the topology, or plan again without the sites that need it"
                )
            }
            Self::Schedule(_) => "run `muster plan` again".to_owned(),
            Self::Journal(error) => journal_hint(error),
            Self::Repository(error) => error.hint.clone(),
            Self::FencedInShard { run, .. } => {
                format!("nothing is lost: watch the other engine with `muster status {run}`")
            }
            Self::Shards { failed } => {
                let names: Vec<String> = failed.iter().map(|(shard, _)| format!("`{shard}`")).collect();
                format!("mend what is said of {} and run the command again", names.join(", "))
            }
            Self::LostStep { run, .. } => {
                format!("run `muster resume {run}`; if it happens again, report it")
            }
        }
    }
}

fn of_shards(failed: &[(ShardName, DriverError)]) -> String {
    let one = |(shard, error): &(ShardName, DriverError)| format!("shard `{shard}`: {error}");
    failed.iter().map(one).collect::<Vec<_>>().join("; ")
}

fn journal_hint(error: &JournalError) -> String {
    match error {
        JournalError::Fenced { run, .. } => format!(
            "nothing is lost: watch it with `muster status {run}`; if that engine is dead, `muster resume {run}`"
        ),
        JournalError::Exists { run } => {
            format!("`muster resume {run}` goes on with it; another name makes a new run")
        }
        JournalError::Abandoned { .. } => "plan the remaining sites again and apply that plan".to_owned(),
        JournalError::NoRun { .. } => "`muster runs` lists the runs of the repository".to_owned(),
        JournalError::Damaged { run, sequence, .. } => format!(
            "bring object `runs/{run}/journal/{sequence:020}.json` back from the bucket's versions or replica; or \
             release the stores with `muster abandon {run}` and plan again"
        ),
        JournalError::Illegal { run, .. } => {
            format!(
                "this is a defect of Muster: report it; `muster resume {run}` goes on from what is durable"
            )
        }
        JournalError::Repository(error) => error.hint.clone(),
    }
}

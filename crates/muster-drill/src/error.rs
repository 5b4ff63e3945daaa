//! Why there was no rehearsal.

use muster_engine::EngineError;
use muster_engine::driver::DriverError;
use muster_inspect::InspectError;
use muster_plan::PlanError;
use muster_repo::RepoError;
use muster_stores::sandbox::SandboxError;

/// Why there was no rehearsal.
#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    /// The drill file, the topology, or what they name.
    #[error("{0}")]
    Input(String),
    /// It would not be safe, or is not its time.
    #[error("{0}")]
    Refused(String),
    /// A sandbox cannot be used.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A made shard failed.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The repository.
    #[error(transparent)]
    Repository(#[from] RepoError),
    /// A site cannot be looked at.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// No plan can be made.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Nothing was rehearsed, and that is not in the history either.
    #[error("{error}; the history does not have it: {why}")]
    Unrecorded {
        /// Why there was no rehearsal.
        error: Box<DrillError>,
        /// Why it is not recorded.
        why: RepoError,
    },
}

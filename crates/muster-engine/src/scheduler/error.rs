//! Plans that cannot be scheduled.

use muster_types::plan::StepKey;

/// A plan that cannot be scheduled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// More than a pool holds, so that the step could never run.
    #[error(
        "step {step} needs {demand} of pool `{pool}`, which has {capacity}; raise the pool's capacity and plan again"
    )]
    DemandAboveCapacity {
        /// The step.
        step: StepKey,
        /// The pool.
        pool: String,
        /// What it needs.
        demand: u64,
        /// What there is.
        capacity: u64,
    },
    /// A pool without a capacity.
    #[error("step {step} needs pool `{pool}`, which the plan gives no capacity; plan again")]
    UnknownPool {
        /// The step.
        step: StepKey,
        /// The pool.
        pool: String,
    },
    /// An edge to a step that does not exist.
    #[error(
        "step {step} waits for step number {edge}, which the plan does not have; the plan is damaged, plan again"
    )]
    UnknownStep {
        /// The step.
        step: StepKey,
        /// The index.
        edge: u32,
    },
    /// Two steps with one key.
    #[error("step {step} stands in the plan twice; the plan is damaged, plan again")]
    Repeated {
        /// The step.
        step: StepKey,
    },
    /// Steps of one group that cannot hold one grant.
    #[error(
        "step {step} has another demand, wave or verb than others of its group; the plan is damaged, plan again"
    )]
    MixedGroup {
        /// One of them.
        step: StepKey,
    },
    /// Steps that wait for one another.
    #[error("step {step} waits for itself through other steps; the plan is damaged, plan again")]
    Cycle {
        /// One of them.
        step: StepKey,
    },
}

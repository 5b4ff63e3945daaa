//! The engine: takes a plan through, whatever crashes.
//!
//! | module | what |
//! |---|---|
//! | [`driver`] | [`driver::StoreDriver`]: what the engine asks of a store |
//! | [`scheduler`] | the pure state machine that says which step runs next |
//! | [`journal`] | what became durable, its one transition table, its writer |
//! | [`executor`] | [`Engine`]: scheduler, journal and drivers together, on tokio |
//! | [`events`] | what a running engine tells |
//! | [`mod@status`] | where a run stands, from its journal |
//! | [`mod@report`] | the report of a run, from plan and journal |
//! | [`fault`] | crash points, for tests |
//!
//! # Invariants
//! - Nothing is decided here that the plan does not say: the engine chooses when, never what.
//! - No effect starts before the record it rests on is durable.
//! - The engine knows no concrete store.
//!
//! # Errors
//! [`EngineError`], each with a hint that names the next command.

mod cancel;
pub mod clock;
pub mod driver;
mod error;
pub mod events;
pub mod executor;
pub mod fault;
pub mod journal;
pub mod report;
pub mod scheduler;
pub mod status;

pub use cancel::Cancel;
pub use clock::Clock;
pub use error::EngineError;
pub use events::{Event, Events, Work};
pub use executor::{Drivers, Engine, Options, RunSummary};
pub use journal::{JournalError, RunHistory, read_run};
pub use scheduler::RetryPolicy;
pub use status::{Status, status};

use muster_repo::Repository;
use muster_types::RunId;
use muster_types::report::Report;

/// The report of a run as its objects tell it now.
///
/// # Errors
/// [`JournalError`] when there is no such run or it cannot be read.
pub async fn load_report(repository: &Repository, run: &RunId) -> Result<Report, JournalError> {
    let history = read_run(repository, run).await?;
    Ok(report::of_state(run, &history.plan, &history.state))
}

/// The status of a run as its objects tell it now.
///
/// # Errors
/// As [`load_report`].
pub async fn load_status(
    repository: &Repository,
    run: &RunId,
    clock: &Clock,
) -> Result<Status, JournalError> {
    Ok(status(&read_run(repository, run).await?, clock.now()))
}

//! The journal of a run: what became durable, in order.
//!
//! - [`RunState`]: the state that records fold to; one transition table, used live and on replay.
//! - [`Journal`]: the one writer of an engine, with group commit.
//! - [`read_run`]: plan, entries and state of a run, as anyone may read them.
//!
//! # Invariants
//! - Entries are objects created if absent under consecutive numbers; one write is in flight per engine.
//! - A body once tried under a number is the only one ever sent there by this engine.
//! - An engine that finds another's entry under its number has lost the run and writes nothing more.
//!
//! # Errors
//! [`JournalError`]: fenced, damaged, or the repository's own.
//!
//! # Not here
//! Deciding what to record: the scheduler does.

mod read;
mod state;
mod writer;

pub use read::{RunHistory, read_run};
pub use state::{IllegalTransition, RunState, StepPhase, StepState};
pub use writer::{Durable, Journal, TakeOver, Writer};

use muster_repo::RepoError;
use muster_types::{Epoch, RunId};

/// Why the journal cannot be read or continued.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another engine holds the run.
    #[error("run {run} is held by {by} (epoch {epoch}) since {at}")]
    Fenced {
        /// The run.
        run: RunId,
        /// Host and process of the engine that holds it.
        by: String,
        /// Its epoch.
        epoch: Epoch,
        /// When it took the run.
        at: muster_types::Timestamp,
    },
    /// The journal says something that cannot be.
    #[error("entry {sequence} of the journal of run {run} is damaged: {what}")]
    Damaged {
        /// The run.
        run: RunId,
        /// The entry.
        sequence: u64,
        /// What is wrong.
        what: String,
    },
    /// There is no such run.
    #[error("there is no run {run} in the repository")]
    NoRun {
        /// The run.
        run: RunId,
    },
    /// A run of this name exists.
    #[error("run {run} exists already")]
    Exists {
        /// The run.
        run: RunId,
    },
    /// The run ended; nothing can follow.
    #[error("run {run} was abandoned")]
    Abandoned {
        /// The run.
        run: RunId,
    },
    /// The engine recorded what its own state does not allow.
    #[error("the engine of run {run} wanted to record what cannot be: {source}")]
    Illegal {
        /// The run.
        run: RunId,
        /// What.
        source: IllegalTransition,
    },
    /// The repository failed.
    #[error(transparent)]
    Repository(#[from] RepoError),
}

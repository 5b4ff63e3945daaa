//! Reading a run: anyone may, at any time.

use std::sync::Arc;

use muster_repo::{Repository, RunObjects};
use muster_types::RunId;
use muster_types::journal::{JournalEntry, Record};
use muster_types::plan::Plan;

use super::{JournalError, RunState};

/// A run as its objects tell it.
#[derive(Clone, Debug)]
pub struct RunHistory {
    /// The run.
    pub run: RunId,
    /// Its plan.
    pub plan: Arc<Plan>,
    /// Its journal.
    pub entries: Vec<JournalEntry>,
    /// What the journal folds to.
    pub state: RunState,
}

impl RunHistory {
    /// All records, in order.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.entries.iter().flat_map(|entry| &entry.records)
    }

    /// The number of the last entry; 0 without any.
    pub fn last_sequence(&self) -> u64 {
        self.entries.last().map_or(0, |entry| entry.sequence)
    }

    pub(super) fn push(&mut self, entry: JournalEntry) -> Result<(), JournalError> {
        apply_entry(&mut self.state, &entry)?;
        self.entries.push(entry);
        Ok(())
    }
}

/// Reads plan and journal of a run.
///
/// # Errors
/// [`JournalError::NoRun`], a damaged journal, or the repository's own error.
pub async fn read_run(repository: &Repository, run: &RunId) -> Result<RunHistory, JournalError> {
    let objects = RunObjects::new(repository, run.clone());
    let plan = objects.get_plan().await?.ok_or_else(|| JournalError::NoRun { run: run.clone() })?;
    let state = RunState::new(&plan.steps);
    let mut history = RunHistory { run: run.clone(), plan: Arc::new(plan), entries: Vec::new(), state };
    for entry in objects.journal(0).await? {
        history.push(entry)?;
    }
    Ok(history)
}

fn apply_entry(state: &mut RunState, entry: &JournalEntry) -> Result<(), JournalError> {
    let damaged =
        |what: String| JournalError::Damaged { run: entry.run.clone(), sequence: entry.sequence, what };
    for record in &entry.records {
        state.apply(record).map_err(|illegal| damaged(illegal.to_string()))?;
    }
    // Nothing is accepted from an engine that another has fenced.
    if state.epoch() != entry.epoch {
        return Err(damaged(format!(
            "it was written in epoch {}, and epoch {} held the run",
            entry.epoch,
            state.epoch()
        )));
    }
    Ok(())
}

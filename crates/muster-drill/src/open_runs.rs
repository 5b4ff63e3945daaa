//! Whether a real run is open: then no drill begins, and one that is under way stops.

use std::collections::BTreeSet;

use muster_engine::{JournalError, read_run};
use muster_repo::{Repository, RunObjects};
use muster_types::RunId;

use crate::error::DrillError;

/// Remembers the runs that have ended: those stay so, unless someone resumes one.
#[derive(Debug, Default)]
pub(crate) struct OpenRuns {
    ended: BTreeSet<RunId>,
}

impl OpenRuns {
    /// A run that is open and no drill's.
    pub(crate) async fn find(&mut self, repository: &Repository) -> Result<Option<RunId>, DrillError> {
        for run in RunObjects::list(repository).await? {
            if self.ended.contains(&run) {
                continue;
            }
            let history = match read_run(repository, &run).await {
                Ok(history) => history,
                // Its plan is there and its first record not yet.
                Err(JournalError::NoRun { .. }) => continue,
                Err(error) => return Err(DrillError::Engine(error.into())),
            };
            let over = history.state.finished().is_some() || history.state.abandoned().is_some();
            if !over && !history.plan.request.placement.sandbox {
                return Ok(Some(run));
            }
            self.ended.insert(run);
        }
        Ok(None)
    }
}

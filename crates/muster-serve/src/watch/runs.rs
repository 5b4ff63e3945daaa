//! Sites of runs that failed.

use std::collections::BTreeSet;

use muster_drill::RUN_PREFIX;
use muster_engine::{JournalError, RunHistory, read_run, status};
use muster_repo::{Repository, RunObjects};
use muster_types::alarm::{AlarmName, Condition};
use muster_types::report::RunStatus;
use muster_types::{RunId, Timestamp};

/// Remembers the runs of which nothing more is to be told.
#[derive(Debug)]
pub struct RunsWatch {
    repository: Repository,
    over: BTreeSet<RunId>,
}

impl RunsWatch {
    /// Nothing is read yet.
    pub fn new(repository: &Repository) -> Self {
        Self { repository: repository.clone(), over: BTreeSet::new() }
    }

    /// Reads the runs that are not over, and judges; one that cannot be read is told as failed. Those of drills are judged
    /// by their records.
    ///
    /// # Errors
    /// The object store cannot be reached.
    pub async fn look(&mut self, now: Timestamp) -> Result<Vec<Condition>, JournalError> {
        let mut conditions = Vec::new();
        for run in RunObjects::list(&self.repository).await? {
            if run.as_str().starts_with(RUN_PREFIX) || self.over.contains(&run) {
                continue;
            }
            let history = match read_run(&self.repository, &run).await {
                Ok(history) => history,
                // Its plan is there and its first record not yet.
                Err(JournalError::NoRun { .. }) => continue,
                Err(JournalError::Repository(error)) if !error.is_harm() => return Err(error.into()),
                Err(error) => {
                    conditions.push(unreadable(&run, &error, now));
                    continue;
                }
            };
            match condition(&history) {
                Standing::Over => drop(self.over.insert(run)),
                Standing::Well => {}
                Standing::Failed(condition) => conditions.push(condition),
            }
        }
        Ok(conditions)
    }
}

fn unreadable(run: &RunId, error: &JournalError, now: Timestamp) -> Condition {
    Condition {
        name: AlarmName::SiteFailed,
        subject: run.to_string(),
        since: now,
        text: format!("how its sites fare cannot be told: {error}"),
        way_out: "muster repo check names what is damaged; the stores that it published stay published, and a new plan finds \
                  them alive"
            .to_owned(),
    }
}

enum Standing {
    Over,
    Well,
    Failed(Condition),
}

fn condition(history: &RunHistory) -> Standing {
    // A failed run has no pace, so that any moment serves.
    let last = history.state.last_at().unwrap_or(Timestamp::EPOCH);
    let status = status(history, last);
    if matches!(status.status, RunStatus::Restored | RunStatus::Abandoned) {
        return Standing::Over;
    }
    let sites: BTreeSet<_> = status.failures.iter().filter_map(|failure| failure.step.site()).collect();
    let (Some(first), Some(site)) = (status.failures.first(), sites.first()) else { return Standing::Well };
    Standing::Failed(Condition {
        name: AlarmName::SiteFailed,
        subject: history.run.to_string(),
        since: last,
        text: format!("{} sites failed, {site} among them: {}: {}", sites.len(), first.step, first.error),
        way_out: format!(
            "muster report {0} lists them; mend what it names, then muster resume {0}",
            history.run
        ),
    })
}

//! Jobs that did not come to their end in time.

use muster_repo::{JobChain, RepoError, Repository};
use muster_types::Timestamp;
use muster_types::alarm::{AlarmName, Condition};

use crate::agenda::{Job, unsettled};

/// The chains of the jobs, as far as they are known.
#[derive(Debug)]
pub struct JobsWatch {
    jobs: Vec<(Job, u64, JobChain)>,
}

impl JobsWatch {
    /// Each job with the seconds after which it is overdue.
    pub fn new(repository: &Repository, jobs: impl IntoIterator<Item = (Job, u64)>) -> Self {
        let followed = jobs.into_iter().map(|(job, seconds_max)| {
            let chain = JobChain::new(repository, &job.name);
            (job, seconds_max, chain)
        });
        Self { jobs: followed.collect() }
    }

    /// Reads on, and judges.
    ///
    /// # Errors
    /// What the object store answers; a damaged or newer record.
    pub async fn look(&mut self, now: Timestamp) -> Result<Vec<Condition>, RepoError> {
        let mut conditions = Vec::new();
        for (job, seconds_max, chain) in &mut self.jobs {
            let last = chain.refresh().await?;
            let Some(due) = unsettled(job, last, now) else { continue };
            if now.seconds_since(due) > *seconds_max as f64 {
                conditions.push(Condition {
                    name: AlarmName::JobOverdue,
                    subject: job.name.clone(),
                    since: due,
                    text: format!("what was due at {due} has not come to its end within {seconds_max} s"),
                    way_out: "see what the servers say of it, and that one of them is able to run it"
                        .to_owned(),
                });
            }
        }
        Ok(conditions)
    }
}

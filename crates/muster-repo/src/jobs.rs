//! Chains of scheduled jobs, and signs of life of servers.
//!
//! # Invariants
//! - A record is created where none is: of servers that race for a slot one wins, and the others read what it wrote.
//! - A sign of life is written by its server alone.

use muster_types::Timestamp;
use muster_types::format::FORMAT;
use muster_types::jobs::JobRecord;
use serde::{Deserialize, Serialize};

use crate::document::{from_json, to_json};
use crate::error::RepoError;
use crate::keys;
use crate::objects::Creation;
use crate::repository::Repository;

/// The chain of one job, as far as it is known.
#[derive(Clone, Debug)]
pub struct JobChain {
    repository: Repository,
    job: String,
    last: Option<JobRecord>,
}

impl JobChain {
    /// Of the job with this name.
    pub fn new(repository: &Repository, job: &str) -> Self {
        Self { repository: repository.clone(), job: job.to_owned(), last: None }
    }

    /// The last record, as far as is known.
    pub fn last(&self) -> Option<&JobRecord> {
        self.last.as_ref()
    }

    /// Reads on: the last record there is.
    ///
    /// # Errors
    /// What the object store answers; a damaged or newer record.
    pub async fn refresh(&mut self) -> Result<Option<&JobRecord>, RepoError> {
        let behind = self.last.as_ref().map(|last| keys::job_record(&self.job, last.sequence));
        let found = self.repository.objects().list(&keys::job(&self.job), behind.as_deref()).await?;
        if let Some(newest) = found.last() {
            let body = self.repository.objects().get(&newest.key).await?;
            let body = body.ok_or_else(|| RepoError::not_found(&newest.key))?;
            self.last = Some(from_json(&newest.key, &body)?);
        }
        Ok(self.last.as_ref())
    }

    /// Puts a record into the slot behind the last one known; whether the slot was won. If not, the last one known is the
    /// winner's.
    ///
    /// # Errors
    /// What the object store answers. It is then unknown whether the record landed: only the same one may be sent again.
    pub async fn append(&mut self, record: JobRecord) -> Result<bool, RepoError> {
        let key = keys::job_record(&self.job, record.sequence);
        let (won, last) = match self.repository.objects().create(&key, to_json(&record)?).await? {
            Creation::Mine => (true, record),
            Creation::Other(theirs) => (false, from_json(&key, &theirs)?),
        };
        self.last = Some(last);
        Ok(won)
    }

    /// All records, in order.
    ///
    /// # Errors
    /// What the object store answers; a damaged or newer record.
    pub async fn records(repository: &Repository, job: &str) -> Result<Vec<JobRecord>, RepoError> {
        let mut records = Vec::new();
        for entry in repository.objects().list(&keys::job(job), None).await? {
            let body = repository.objects().get(&entry.key).await?;
            let body = body.ok_or_else(|| RepoError::not_found(&entry.key))?;
            records.push(from_json(&entry.key, &body)?);
        }
        Ok(records)
    }
}

/// What a server leaves as a sign of life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// Format version.
    pub format: u32,
    /// The server.
    pub server: String,
    /// Counts up.
    pub beat: u64,
    /// When, by that server's clock; for people.
    pub at: Timestamp,
}

/// Leaves a sign of life.
///
/// # Errors
/// What the object store answers.
pub async fn leave_beat(
    repository: &Repository,
    server: &str,
    beat: u64,
    at: Timestamp,
) -> Result<(), RepoError> {
    let left = Beat { format: FORMAT, server: server.to_owned(), beat, at };
    repository.objects().put(&keys::server(server), to_json(&left)?).await
}

/// The last sign of life of a server, if it left any.
///
/// # Errors
/// What the object store answers; a damaged one.
pub async fn read_beat(repository: &Repository, server: &str) -> Result<Option<u64>, RepoError> {
    let key = keys::server(server);
    let Some(body) = repository.objects().get(&key).await? else { return Ok(None) };
    from_json(&key, &body).map(|beat: Beat| Some(beat.beat))
}

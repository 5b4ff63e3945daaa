//! Chains of small records in which servers agree: of scheduled jobs, and of alarms.
//!
//! # Invariants
//! - A record is created where none is: of servers that race for a slot one wins, and the others read what it wrote.
//! - The last record says everything that the next one needs; those before it are history, and may be pruned.
//! - Before records are removed, the chain's floor is raised above them. In a versioned bucket a slot that was removed can
//!   be created again, so whoever wins one looks at the floor: below it, nothing was won.

use muster_types::alarm::AlarmRecord;
use muster_types::jobs::JobRecord;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::document::{from_json, to_json};
use crate::error::RepoError;
use crate::keys;
use crate::objects::Creation;
use crate::repository::Repository;

/// A record of a chain.
pub trait ChainedRecord: Clone + Serialize + DeserializeOwned + Send + Sync {
    /// Number in the chain, from 1.
    fn sequence(&self) -> u64;
}

impl ChainedRecord for JobRecord {
    fn sequence(&self) -> u64 {
        self.sequence
    }
}

impl ChainedRecord for AlarmRecord {
    fn sequence(&self) -> u64 {
        self.sequence
    }
}

/// A chain, as far as it is known.
#[derive(Clone, Debug)]
pub struct RecordChain<R> {
    repository: Repository,
    folder: String,
    last: Option<R>,
}

/// The chain of one job.
pub type JobChain = RecordChain<JobRecord>;

/// The chain of alarms.
pub type AlarmChain = RecordChain<AlarmRecord>;

impl JobChain {
    /// Of the job with this name.
    pub fn new(repository: &Repository, job: &str) -> Self {
        Self { repository: repository.clone(), folder: keys::job(job), last: None }
    }

    /// All records of a job, in order.
    ///
    /// # Errors
    /// What the object store answers; a damaged or newer record.
    pub async fn records(repository: &Repository, job: &str) -> Result<Vec<JobRecord>, RepoError> {
        Self::new(repository, job).all().await
    }
}

impl AlarmChain {
    /// Of a repository.
    pub fn of(repository: &Repository) -> Self {
        Self { repository: repository.clone(), folder: keys::ALARMS.to_owned(), last: None }
    }
}

impl<R: ChainedRecord> RecordChain<R> {
    /// The last record, as far as is known.
    pub fn last(&self) -> Option<&R> {
        self.last.as_ref()
    }

    /// Reads on: the last record there is.
    ///
    /// # Errors
    /// What the object store answers; a damaged or newer record.
    pub async fn refresh(&mut self) -> Result<Option<&R>, RepoError> {
        let behind = self.last.as_ref().map(|last| keys::record(&self.folder, last.sequence()));
        let found = self.repository.objects().list(&self.folder, behind.as_deref()).await?;
        if let Some(newest) = found.last() {
            self.last = Some(self.read(&newest.key).await?);
        }
        Ok(self.last.as_ref())
    }

    /// Puts a record into the slot behind the last one known; whether the slot was won. If not, the last one known is the
    /// winner's.
    ///
    /// # Errors
    /// What the object store answers. It is then unknown whether the record landed: only the same one may be sent again.
    pub async fn append(&mut self, record: R) -> Result<bool, RepoError> {
        let sequence = record.sequence();
        let key = keys::record(&self.folder, sequence);
        match self.repository.objects().create(&key, to_json(&record)?).await? {
            Creation::Mine if sequence < floor(&self.repository, &self.folder).await? => {
                // A slot of long ago, which was removed: what counts is what came behind it.
                self.last = None;
                self.refresh().await?;
                Ok(false)
            }
            Creation::Mine => {
                self.last = Some(record);
                Ok(true)
            }
            Creation::Other(theirs) => {
                self.last = Some(from_json(&key, &theirs)?);
                Ok(false)
            }
        }
    }

    /// All records, in order.
    ///
    /// # Errors
    /// What the object store answers; a damaged or newer record.
    pub async fn all(&self) -> Result<Vec<R>, RepoError> {
        let mut records = Vec::new();
        for entry in self.repository.objects().list(&self.folder, None).await? {
            records.push(self.read(&entry.key).await?);
        }
        Ok(records)
    }

    async fn read(&self, key: &str) -> Result<R, RepoError> {
        let body = self.repository.objects().get(key).await?.ok_or_else(|| RepoError::not_found(key))?;
        from_json(key, &body)
    }
}

/// The number below which nothing of a chain counts; 0 where nothing was ever pruned.
pub(crate) async fn floor(repository: &Repository, folder: &str) -> Result<u64, RepoError> {
    let floors = keys::record_floors(folder);
    let entries = repository.objects().list(&floors, None).await?;
    Ok(entries.last().and_then(|entry| keys::record_number(&floors, &entry.key)).unwrap_or(0))
}

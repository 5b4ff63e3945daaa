//! Chains of small records in which servers agree: of scheduled jobs, and of alarms.
//!
//! # Invariants
//! - A record is created where none is: of servers that race for a slot one wins, and the others read what it wrote.
//! - The last record says everything that the next one needs; those before it are history, and may be pruned.
//! - Before records are removed, the chain's floor is raised above them. In a versioned bucket a slot that was removed can
//!   be created again, so whoever wins one looks at the floor: below it, nothing was won.

use muster_types::Timestamp;
use muster_types::alarm::AlarmRecord;
use muster_types::format::FORMAT;
use muster_types::jobs::JobRecord;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

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

/// Records, and signs of life, whose successors are older than this are history that nobody asks for: a month and a little.
pub const DAYS_KEPT: i64 = 35;

/// Between the raising of a floor and the removal of what lies below it. A server that was stopped in between sees the floor
/// when it goes on.
const FLOOR_STANDS_DAYS: i64 = 1;

const DAY_MICROS: i64 = 86_400_000_000;

/// The document of a floor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RecordFloor {
    format: u32,
    raised_at: Timestamp,
}

/// Removes what chains of records and servers left long ago: raises floors, and removes what lies below those that have
/// stood for a day; how many objects went. The last record of a chain always stays.
///
/// # Errors
/// What the object store answers; a damaged or newer record.
pub async fn prune(repository: &Repository, now: Timestamp) -> Result<u64, RepoError> {
    let jobs = repository.objects().list_folders(keys::JOBS).await?;
    let mut folders: Vec<String> = jobs.iter().map(|job| keys::job(job)).collect();
    folders.push(keys::ALARMS.to_owned());
    let mut removed = 0;
    for folder in folders {
        removed += remove_below_floor(repository, &folder, now).await?;
        raise_floor(repository, &folder, now).await?;
    }
    Ok(removed + prune_beats(repository, now).await?)
}

/// Removes the records below the highest floor that has stood long enough, and the floors below it.
async fn remove_below_floor(repository: &Repository, folder: &str, now: Timestamp) -> Result<u64, RepoError> {
    let (objects, floors) = (repository.objects(), keys::record_floors(folder));
    let mut standing = None;
    let mut lower = Vec::new();
    for entry in objects.list(&floors, None).await? {
        let body = objects.get(&entry.key).await?.ok_or_else(|| RepoError::not_found(&entry.key))?;
        let floor: RecordFloor = from_json(&entry.key, &body)?;
        if floor.raised_at <= now.plus_micros(-FLOOR_STANDS_DAYS * DAY_MICROS) {
            lower.extend(standing.replace(entry.key));
        }
    }
    let Some(number) = standing.and_then(|key| keys::record_number(&floors, &key)) else { return Ok(0) };
    let mut removed = 0;
    for entry in objects.list(folder, None).await? {
        if keys::record_number(folder, &entry.key).is_some_and(|own| own < number) {
            objects.delete(&entry.key).await?;
            removed += 1;
        }
    }
    for key in lower {
        objects.delete(&key).await?;
    }
    Ok(removed)
}

/// Raises the floor to the first record that is not old, the last one at most.
async fn raise_floor(repository: &Repository, folder: &str, now: Timestamp) -> Result<(), RepoError> {
    let (objects, old) = (repository.objects(), now.plus_micros(-DAYS_KEPT * DAY_MICROS));
    let entries = objects.list(folder, None).await?;
    // Times ascend along a chain, but for clocks that differ: where they do, a little more or less stays.
    let (mut from, mut to) = (0, entries.len().saturating_sub(1));
    while from < to {
        let middle = from.midpoint(to);
        let key = &entries[middle].key;
        let body = objects.get(key).await?.ok_or_else(|| RepoError::not_found(key))?;
        let record: RecordTime = from_json(key, &body)?;
        if record.at < old { from = middle + 1 } else { to = middle }
    }
    let first = entries.get(from).and_then(|entry| keys::record_number(folder, &entry.key)).unwrap_or(0);
    if first <= floor(repository, folder).await? || first <= 1 {
        return Ok(());
    }
    let key = keys::record(&keys::record_floors(folder), first);
    objects.create(&key, to_json(&RecordFloor { format: FORMAT, raised_at: now })?).await.map(drop)
}

/// Removes the signs of life of servers that left none for long. Names of servers are never used again, and one that
/// lives leaves the next one anyway.
async fn prune_beats(repository: &Repository, now: Timestamp) -> Result<u64, RepoError> {
    let (objects, old) = (repository.objects(), now.plus_micros(-DAYS_KEPT * DAY_MICROS));
    let mut removed = 0;
    for entry in objects.list(keys::SERVERS, None).await? {
        let Some(body) = objects.get(&entry.key).await? else { continue };
        let beat: RecordTime = from_json(&entry.key, &body)?;
        if beat.at < old {
            objects.delete(&entry.key).await?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// When a record was written, whatever it says.
#[derive(Deserialize)]
struct RecordTime {
    at: Timestamp,
}

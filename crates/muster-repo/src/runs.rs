//! A run's objects: its plan and its journal.

use futures::{StreamExt, TryStreamExt};
use muster_types::RunId;
use muster_types::format;
use muster_types::journal::JournalEntry;
use muster_types::plan::Plan;

use crate::document::{from_json, from_json_zstd, to_json, to_json_zstd};
use crate::error::RepoError;
use crate::keys;
use crate::objects::Creation;
use crate::repository::Repository;

/// Entries read at once: they are small, and a run's journal has thousands.
const READS_AT_ONCE: usize = 16;

/// What became of an entry.
#[derive(Clone, Debug, PartialEq)]
pub enum Appended {
    /// It is durable.
    Mine,
    /// Another engine's entry has the slot.
    Other(Box<JournalEntry>),
}

/// The objects of one run.
#[derive(Clone, Debug)]
pub struct RunObjects {
    repository: Repository,
    run: RunId,
}

impl RunObjects {
    /// Those of `run`.
    pub fn new(repository: &Repository, run: RunId) -> Self {
        Self { repository: repository.clone(), run }
    }

    /// The run.
    pub fn run(&self) -> &RunId {
        &self.run
    }

    /// All runs of a repository, ascending by name.
    ///
    /// # Errors
    /// What the object store answers.
    pub async fn list(repository: &Repository) -> Result<Vec<RunId>, RepoError> {
        let names = repository.objects().list_folders(keys::RUNS).await?;
        Ok(names.into_iter().filter_map(|name| RunId::new(name).ok()).collect())
    }

    /// Stores the plan. Storing an equal one again is no error.
    ///
    /// # Errors
    /// A different plan under this run; what the object store answers.
    pub async fn put_plan(&self, plan: &Plan) -> Result<(), RepoError> {
        let key = keys::plan(&self.run);
        match self.repository.objects().create(&key, to_json_zstd(plan)?).await? {
            Creation::Mine => Ok(()),
            Creation::Other(theirs) if from_json_zstd::<Plan>(&key, &theirs)?.id == plan.id => Ok(()),
            Creation::Other(_) => Err(RepoError::new(
                crate::RepoErrorKind::Misuse,
                format!("run `{}` has another plan already", self.run),
                "give the run another name, or `muster resume` the one that is there",
            )),
        }
    }

    /// The plan, if the run exists.
    ///
    /// # Errors
    /// What the object store answers; a damaged or newer plan.
    pub async fn get_plan(&self) -> Result<Option<Plan>, RepoError> {
        let key = keys::plan(&self.run);
        let Some(body) = self.repository.objects().get(&key).await? else { return Ok(None) };
        let plan: Plan = from_json_zstd(&key, &body)?;
        if plan.content_id() != plan.id {
            return Err(RepoError::damaged(&key, "its content does not have the digest that is its id"));
        }
        Ok(Some(plan))
    }

    /// Puts another plan in the place of that of a run that has ended.
    ///
    /// # Errors
    /// What the object store answers.
    pub async fn replace_plan(&self, plan: &Plan) -> Result<(), RepoError> {
        let key = keys::plan(&self.run);
        self.repository.objects().put(&key, to_json_zstd(plan)?).await?;
        self.repository.objects().remove_older_versions(&key).await.map(drop)
    }

    /// Appends a journal entry to the slot of its sequence number. After an error it is unknown whether it landed:
    /// only the same entry may be sent again.
    ///
    /// # Errors
    /// What the object store answers.
    pub async fn append(&self, entry: &JournalEntry) -> Result<Appended, RepoError> {
        debug_assert_eq!(entry.format, format::FORMAT, "entries are written in the current format");
        let key = keys::journal_entry(&self.run, entry.sequence);
        match self.repository.objects().create(&key, to_json(entry)?).await? {
            Creation::Mine => Ok(Appended::Mine),
            Creation::Other(theirs) => Ok(Appended::Other(Box::new(from_json(&key, &theirs)?))),
        }
    }

    /// All journal entries behind number `after` (0: all), in order.
    ///
    /// # Errors
    /// A missing, damaged or newer entry; what the object store answers.
    pub async fn journal(&self, after: u64) -> Result<Vec<JournalEntry>, RepoError> {
        let folder = keys::journal(&self.run);
        let behind = (after > 0).then(|| keys::journal_entry(&self.run, after));
        let found = self.repository.objects().list(&folder, behind.as_deref()).await?;
        for (entry, sequence) in found.iter().zip(after + 1..) {
            let expected = keys::journal_entry(&self.run, sequence);
            if entry.key != expected {
                return Err(RepoError::not_found(&expected));
            }
        }
        let entries: Vec<JournalEntry> = futures::stream::iter(found)
            .map(|entry| async move {
                let body = self.repository.objects().get(&entry.key).await?;
                from_json(&entry.key, &body.ok_or_else(|| RepoError::not_found(&entry.key))?)
            })
            .buffered(READS_AT_ONCE)
            .try_collect()
            .await?;
        Ok(entries)
    }
}

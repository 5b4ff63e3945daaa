//! Opening and creating a repository, and the incarnations of its shards.

use std::fmt;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use muster_types::compacted::LogFloor;
use muster_types::format::FORMAT;
use muster_types::{Boundary, Incarnation, ShardName, Timestamp};
use serde::{Deserialize, Serialize};

use crate::document::{from_json, to_json};
use crate::error::{RepoError, RepoErrorKind};
use crate::keys;
use crate::objects::{Creation, Objects};

/// Small documents read at once.
const READS_AT_ONCE: usize = 16;

#[derive(Serialize, Deserialize)]
struct RepositoryDocument {
    format: u32,
    id: String,
    created_at: Timestamp,
}

/// The beginning of one unbroken history of a shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncarnationDocument {
    /// Format version.
    pub format: u32,
    /// The shard.
    pub shard: ShardName,
    /// Its name.
    pub incarnation: Incarnation,
    /// When it began, by capture's clock.
    pub began_at: Timestamp,
    /// Why.
    pub reason: String,
    /// The last recovery point of the incarnation before it.
    pub after: Option<Boundary>,
}

/// The end of a history that was meant to end: its database is captured no longer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseDocument {
    /// Format version.
    pub format: u32,
    /// The shard.
    pub shard: ShardName,
    /// The history.
    pub incarnation: Incarnation,
    /// When it was released, by the clock of whoever did.
    pub released_at: Timestamp,
}

/// A repository. Cheap to clone.
#[derive(Clone)]
pub struct Repository {
    id: Arc<str>,
    objects: Arc<dyn Objects>,
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Repository {
    /// Opens a repository that is there.
    ///
    /// # Errors
    /// [`RepoErrorKind::NotFound`] when there is none; what the object store answers.
    pub async fn open(objects: Arc<dyn Objects>) -> Result<Self, RepoError> {
        let Some(body) = objects.get(keys::REPOSITORY).await? else {
            return Err(RepoError::new(
                RepoErrorKind::NotFound { key: keys::REPOSITORY.to_owned() },
                "there is no repository at this bucket and prefix",
                "check bucket and prefix in the topology; `muster capture` creates a repository where there is none",
            ));
        };
        Self::from_body(objects, &body)
    }

    /// Opens a repository, or creates it if there is none.
    ///
    /// # Errors
    /// What the object store answers.
    pub async fn create(objects: Arc<dyn Objects>, now: Timestamp) -> Result<Self, RepoError> {
        if let Some(body) = objects.get(keys::REPOSITORY).await? {
            return Self::from_body(objects, &body);
        }
        let id = format!("{:016x}{:016x}", rand::random::<u64>(), rand::random::<u64>());
        let body = to_json(&RepositoryDocument { format: FORMAT, id, created_at: now })?;
        match objects.create(keys::REPOSITORY, body.clone()).await? {
            Creation::Mine => Self::from_body(objects, &body),
            Creation::Other(theirs) => Self::from_body(objects, &theirs),
        }
    }

    fn from_body(objects: Arc<dyn Objects>, body: &[u8]) -> Result<Self, RepoError> {
        let document: RepositoryDocument = from_json(keys::REPOSITORY, body)?;
        Ok(Self { id: document.id.into(), objects })
    }

    /// Its id: what plans refer to.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its objects.
    pub fn objects(&self) -> &Arc<dyn Objects> {
        &self.objects
    }

    /// The shards that it holds, ascending.
    ///
    /// # Errors
    /// What the object store answers.
    pub async fn shards(&self) -> Result<Vec<ShardName>, RepoError> {
        let names = self.objects.list_folders(keys::SHARDS).await?;
        // Folders that are no shard names are not Muster's.
        Ok(names.into_iter().filter_map(|name| ShardName::new(name).ok()).collect())
    }

    /// The incarnations of a shard, oldest first.
    ///
    /// # Errors
    /// What the object store answers; a damaged or newer document.
    pub async fn incarnations(&self, shard: &ShardName) -> Result<Vec<IncarnationDocument>, RepoError> {
        let entries = self.objects.list(&keys::incarnations(shard), None).await?;
        futures::stream::iter(entries)
            .map(|entry| async move {
                let body = self.objects.get(&entry.key).await?;
                from_json(&entry.key, &body.ok_or_else(|| RepoError::not_found(&entry.key))?)
            })
            .buffered(READS_AT_ONCE)
            .try_collect()
            .await
    }

    /// Notes that an incarnation's database is captured no longer. Repeatable; the first time stands.
    ///
    /// # Errors
    /// What the object store answers.
    pub async fn release(
        &self,
        shard: &ShardName,
        incarnation: &Incarnation,
        released_at: Timestamp,
    ) -> Result<(), RepoError> {
        let (shard, incarnation) = (shard.clone(), incarnation.clone());
        let key = keys::release(&shard, &incarnation);
        let document = ReleaseDocument { format: FORMAT, shard, incarnation, released_at };
        self.objects.create(&key, to_json(&document)?).await.map(drop)
    }

    /// The note that an incarnation's database was released, if it was.
    ///
    /// # Errors
    /// What the object store answers; a damaged or newer document.
    pub async fn released(
        &self,
        shard: &ShardName,
        incarnation: &Incarnation,
    ) -> Result<Option<ReleaseDocument>, RepoError> {
        let key = keys::release(shard, incarnation);
        let body = self.objects.get(&key).await?;
        body.map(|body| from_json(&key, &body)).transpose()
    }

    /// The first segment of an incarnation's log that was not given up: 1 unless it was pruned.
    ///
    /// # Errors
    /// What the object store answers; a damaged or newer document.
    pub async fn log_floor(&self, shard: &ShardName, incarnation: &Incarnation) -> Result<u64, RepoError> {
        let floors = self.objects.list(&keys::floors(shard, incarnation), None).await?;
        let Some(last) = floors.last() else { return Ok(1) };
        let body = self.objects.get(&last.key).await?.ok_or_else(|| RepoError::not_found(&last.key))?;
        let floor: LogFloor = from_json(&last.key, &body)?;
        Ok(floor.first)
    }

    /// Begins a new incarnation of a shard behind all that there are.
    ///
    /// # Errors
    /// What the object store answers.
    pub async fn begin_incarnation(
        &self,
        shard: &ShardName,
        began_at: Timestamp,
        reason: &str,
        after: Option<Boundary>,
    ) -> Result<IncarnationDocument, RepoError> {
        let last = self.incarnations(shard).await?.pop();
        let number = last.and_then(|last| incarnation_number(&last.incarnation)).unwrap_or(0) + 1;
        let name = format!("{number:04}-{:08x}", rand::random::<u32>());
        let incarnation = Incarnation::new(name)
            .map_err(|error| RepoError::misuse(format!("the name of an incarnation: {error}")))?;
        let document = IncarnationDocument {
            format: FORMAT,
            shard: shard.clone(),
            incarnation,
            began_at,
            reason: reason.to_owned(),
            after,
        };
        let key = keys::incarnation(shard, &document.incarnation);
        match self.objects.create(&key, to_json(&document)?).await? {
            Creation::Mine => Ok(document),
            Creation::Other(_) => Err(RepoError::misuse(format!("two random names were equal: `{key}`"))),
        }
    }
}

fn incarnation_number(incarnation: &Incarnation) -> Option<u64> {
    incarnation.as_str().split('-').next()?.parse().ok()
}

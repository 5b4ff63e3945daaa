//! What Muster asks of an object store.

use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::RepoError;

/// The outcome of a create-if-absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Creation {
    /// The object holds the body that was sent.
    Mine,
    /// The object was there, with this other body.
    Other(Bytes),
}

/// An object in a listing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectEntry {
    /// Its key.
    pub key: String,
    /// Its size.
    pub bytes: u64,
}

/// An object store. Keys are relative to the repository's prefix.
///
/// # Errors
/// Every method returns [`RepoError`] after bounded retries of its own; callers need not try again.
#[async_trait]
pub trait Objects: Send + Sync {
    /// Creates an object if it is absent, and knows its own: when the answer was lost, or says that the object
    /// exists, the object is read back, and an equal body is [`Creation::Mine`]. Bodies of slots that writers race
    /// for must differ between writers and attempts.
    ///
    /// After an error it is unknown whether the object exists: only the same body may be sent to that key again.
    async fn create(&self, key: &str, body: Bytes) -> Result<Creation, RepoError>;

    /// Writes an object. For keys that no one else writes.
    async fn put(&self, key: &str, body: Bytes) -> Result<(), RepoError>;

    /// Writes an object from a file, without holding it in memory.
    async fn put_file(&self, key: &str, path: &Path) -> Result<(), RepoError>;

    /// Reads an object whole; `None` if it is absent.
    async fn get(&self, key: &str) -> Result<Option<Bytes>, RepoError>;

    /// Reads exactly `bytes` bytes from `offset`, resuming where a broken answer ended.
    async fn get_range(&self, key: &str, offset: u64, bytes: u64) -> Result<Bytes, RepoError>;

    /// The size of an object; `None` if it is absent.
    async fn size(&self, key: &str) -> Result<Option<u64>, RepoError>;

    /// All objects whose keys begin with `prefix` and sort behind `after`, by ascending key.
    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<ObjectEntry>, RepoError>;

    /// [`Self::list`], of keys up to and with `upto` only: costs what lies between, not what lies behind.
    async fn list_between(
        &self,
        prefix: &str,
        after: &str,
        upto: &str,
    ) -> Result<Vec<ObjectEntry>, RepoError> {
        let mut entries = self.list(prefix, Some(after)).await?;
        entries.retain(|entry| entry.key.as_str() <= upto);
        Ok(entries)
    }

    /// Removes an object; one that is absent is no error. Only for keys that nobody creates again.
    async fn delete(&self, key: &str) -> Result<(), RepoError>;

    /// Removes the versions of an object that are not its newest, where the bucket keeps any; how many there were.
    async fn remove_older_versions(&self, _key: &str) -> Result<u64, RepoError> {
        Ok(0)
    }

    /// The names between `prefix`, which ends with `/`, and the next `/`, ascending.
    async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, RepoError>;
}

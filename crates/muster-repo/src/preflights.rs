//! Preflights that passed, by hash and time: what an acting side presents is looked up here.

use muster_types::preflight::Preflight;
use muster_types::{Digest, SiteId};

use crate::document::{from_json_zstd, to_json_zstd};
use crate::error::RepoError;
use crate::keys;
use crate::repository::Repository;

/// Keeps a preflight. The same list may be asked for many times: each is an object of its own.
///
/// # Errors
/// What the object store answers.
pub async fn put(repository: &Repository, preflight: &Preflight) -> Result<(), RepoError> {
    let key = keys::preflight(&preflight.hash, preflight.made_at);
    // Two of one hash and microsecond say the same.
    repository.objects().create(&key, to_json_zstd(preflight)?).await.map(drop)
}

/// The newest one with this hash, if there is any.
///
/// # Errors
/// What the object store answers; a damaged or newer one.
pub async fn newest(repository: &Repository, hash: &Digest) -> Result<Option<Preflight>, RepoError> {
    let found = repository.objects().list(&keys::preflights(hash), None).await?;
    let Some(entry) = found.last() else { return Ok(None) };
    let Some(body) = repository.objects().get(&entry.key).await? else { return Ok(None) };
    from_json_zstd(&entry.key, &body).map(Some)
}

/// Removes those that name a site; their keys.
///
/// # Errors
/// What the object store answers; a damaged or newer one.
pub async fn forget(repository: &Repository, site: &SiteId) -> Result<Vec<String>, RepoError> {
    let mut removed = Vec::new();
    for entry in repository.objects().list(keys::PREFLIGHTS, None).await? {
        let Some(body) = repository.objects().get(&entry.key).await? else { continue };
        let found: Preflight = from_json_zstd(&entry.key, &body)?;
        if found.subjects.iter().any(|subject| subject.site == *site) {
            repository.objects().delete(&entry.key).await?;
            // Versions under a delete marker are older ones.
            repository.objects().remove_older_versions(&entry.key).await?;
            removed.push(entry.key);
        }
    }
    Ok(removed)
}

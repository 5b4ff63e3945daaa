//! The topology, version by version, so that Muster starts from bucket and credentials alone.
//!
//! # Invariants
//! - Versions are numbered create-if-absent objects; the highest number is the newest. It is never removed.
//! - A text with a password in it is not stored.
//!
//! # Errors
//! What the object store answers; damaged or newer documents; [`RepoErrorKind::Misuse`] for a text with a password.

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt};
use muster_types::Timestamp;
use muster_types::topology::{TopologyVersion, secret_lines};

use crate::catalog::READS_AT_ONCE;
use crate::document::{from_json_zstd, to_json_zstd};
use crate::error::{RepoError, RepoErrorKind};
use crate::keys;
use crate::objects::Creation;
use crate::repository::Repository;

/// Writers that store at once: each loses at most once to each other one, and they are machines that begin to capture.
const TRIES_MAX: u32 = 16;

/// Stores a topology's text, with the lists of sites that it names, as the newest version, unless it is that already. The
/// version that holds it, and whether it was stored now.
///
/// # Errors
/// See the module.
pub async fn store(
    repository: &Repository,
    (text, site_lists): (&str, &BTreeMap<String, String>),
    (now, who): (Timestamp, &str),
) -> Result<(TopologyVersion, bool), RepoError> {
    refuse_secrets(text)?;
    let mut newest = newest(repository).await?;
    for _ in 0..TRIES_MAX {
        let number = newest.as_ref().map_or(0, |newest| newest.version) + 1;
        let mine = TopologyVersion::new(number, (now, who.to_owned()), text.to_owned(), site_lists.clone());
        if let Some(same) = newest.take().filter(|newest| newest.digest == mine.digest) {
            return Ok((same, false));
        }
        let key = keys::topology(number);
        match repository.objects().create(&key, to_json_zstd(&mine)?).await? {
            Creation::Mine => return Ok((mine, true)),
            Creation::Other(theirs) => newest = Some(whole(&key, &theirs)?),
        }
    }
    Err(RepoError::new(
        RepoErrorKind::Unavailable,
        format!("{TRIES_MAX} other versions of the topology were stored meanwhile"),
        "look who stores them with `muster repo topology list`, then run the command again",
    ))
}

/// The newest version, if there is any.
///
/// # Errors
/// See the module.
pub async fn newest(repository: &Repository) -> Result<Option<TopologyVersion>, RepoError> {
    let entries = repository.objects().list(keys::TOPOLOGIES, None).await?;
    match entries.iter().filter_map(|entry| keys::topology_version(&entry.key)).next_back() {
        Some(number) => version(repository, number).await,
        None => Ok(None),
    }
}

/// One version.
///
/// # Errors
/// See the module.
pub async fn version(repository: &Repository, number: u64) -> Result<Option<TopologyVersion>, RepoError> {
    let key = keys::topology(number);
    repository.objects().get(&key).await?.map(|body| whole(&key, &body)).transpose()
}

/// All versions, ascending.
///
/// # Errors
/// See the module.
pub async fn all(repository: &Repository) -> Result<Vec<TopologyVersion>, RepoError> {
    let entries = repository.objects().list(keys::TOPOLOGIES, None).await?;
    let numbers: Vec<u64> = entries.iter().filter_map(|entry| keys::topology_version(&entry.key)).collect();
    let read = futures::stream::iter(numbers).map(|number| version(repository, number));
    // One that is gone by now was pruned.
    read.buffered(READS_AT_ONCE).try_filter_map(|version| async { Ok(version) }).try_collect().await
}

fn whole(key: &str, body: &[u8]) -> Result<TopologyVersion, RepoError> {
    let version: TopologyVersion = from_json_zstd(key, body)?;
    if !version.is_whole() {
        return Err(RepoError::damaged(key, "its text does not have the digest that it names"));
    }
    Ok(version)
}

fn refuse_secrets(text: &str) -> Result<(), RepoError> {
    let lines = secret_lines(text);
    if lines.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = lines.iter().map(u64::to_string).collect();
    Err(RepoError::new(
        RepoErrorKind::Misuse,
        format!(
            "the topology has a password in line {}, and is not kept in the repository, where others could read it",
            lines.join(", ")
        ),
        "put the password into PGPASSWORD, a password file (PGPASSFILE) or a service file, which the connection may name",
    ))
}

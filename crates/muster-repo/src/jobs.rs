//! Signs of life of servers; the chains of their jobs are in [`records`](crate::records).
//!
//! # Invariants
//! - A sign of life is written by its server alone.

use muster_types::Timestamp;
use muster_types::format::FORMAT;
use serde::{Deserialize, Serialize};

use crate::document::{from_json, to_json};
use crate::error::RepoError;
use crate::keys;
pub use crate::records::JobChain;
use crate::repository::Repository;

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

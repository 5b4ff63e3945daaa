//! Compacting the logs of a shard.

use std::path::Path;

use muster_repo::compact::{self, Compaction};
use muster_repo::{RepoError, Repository};
use muster_types::ShardName;

/// Compacts the logs of all incarnations of `shard`, oldest first, as far as whole groups of segments reach. Packs are
/// spooled into the folder `dir`, one at a time.
///
/// # Errors
/// See [`muster_repo::compact`]. What was compacted before an error stays.
pub async fn compact_shard(
    repository: &Repository,
    shard: &ShardName,
    dir: &Path,
) -> Result<Compaction, RepoError> {
    let mut done = Compaction::default();
    for document in repository.incarnations(shard).await? {
        let one = compact::compact(repository, shard, &document.incarnation, dir).await?;
        done.merged.extend(one.merged);
        done.left += one.left;
    }
    Ok(done)
}

//! Where each object of a repository lies, relative to its prefix.

use muster_types::{Digest, DrillId, Incarnation, RunId, ShardName, SnapshotId, Timestamp};

/// The repository's own document.
pub const REPOSITORY: &str = "repository.json";

/// Folder of all shards.
pub const SHARDS: &str = "shards/";

/// Folder of all runs.
pub const RUNS: &str = "runs/";

/// Folder of a shard's incarnation documents.
pub fn incarnations(shard: &ShardName) -> String {
    format!("shards/{shard}/incarnations/")
}

/// An incarnation document.
pub fn incarnation(shard: &ShardName, incarnation: &Incarnation) -> String {
    format!("shards/{shard}/incarnations/{incarnation}.json")
}

/// The note that an incarnation's database was released. It is never deleted.
pub fn release(shard: &ShardName, incarnation: &Incarnation) -> String {
    format!("shards/{shard}/released/{incarnation}.json")
}

/// Folder of an incarnation's snapshots.
pub fn snapshots(shard: &ShardName, incarnation: &Incarnation) -> String {
    format!("shards/{shard}/{incarnation}/snapshots/")
}

/// Folder of one snapshot.
pub fn snapshot(shard: &ShardName, incarnation: &Incarnation, snapshot: &SnapshotId) -> String {
    format!("shards/{shard}/{incarnation}/snapshots/{snapshot}/")
}

/// Last part of the key of a snapshot's root.
pub const ROOT: &str = "root.json.zst";

/// Last part of the key of a pack.
pub fn pack_name(number: usize) -> String {
    format!("pack-{number:04}.zst")
}

/// Last part of the key of a manifest page.
pub fn page_name(number: usize) -> String {
    format!("page-{number:04}.json.zst")
}

/// Folder of an incarnation's change log.
pub fn log(shard: &ShardName, incarnation: &Incarnation) -> String {
    format!("shards/{shard}/{incarnation}/log/")
}

/// Index of a segment.
pub fn segment_index(shard: &ShardName, incarnation: &Incarnation, sequence: u64) -> String {
    format!("{}{sequence:020}.json.zst", log(shard, incarnation))
}

/// Data of a segment. Its digest in the key keeps racing writers apart.
pub fn segment_data(shard: &ShardName, incarnation: &Incarnation, sequence: u64, data: &Digest) -> String {
    format!("{}{sequence:020}-{}.zst", log(shard, incarnation), &data.to_string()[..16])
}

/// The sequence number in a key of the log folder, if the key is an index's.
pub(crate) fn index_sequence(log_folder: &str, key: &str) -> Option<u64> {
    let number = key.strip_prefix(log_folder)?.strip_suffix(".json.zst")?;
    (number.len() == 20).then(|| number.parse().ok())?
}

/// Folder of the preflights with one hash.
pub fn preflights(hash: &Digest) -> String {
    format!("preflights/{hash}/")
}

/// A preflight; keys ascend with time.
pub fn preflight(hash: &Digest, made_at: Timestamp) -> String {
    format!("{}{:020}.json.zst", preflights(hash), made_at.as_micros())
}

/// Folder of a job's chain.
pub fn job(job: &str) -> String {
    format!("jobs/{job}/")
}

/// A record of a job's chain.
pub fn job_record(name: &str, sequence: u64) -> String {
    format!("{}{sequence:020}.json", job(name))
}

/// The sign of life of a server.
pub fn server(server: &str) -> String {
    format!("servers/{server}.json")
}

/// Folder of all drills.
pub const DRILLS: &str = "drills/";

/// Folder of what says whose the things in sandboxes are.
pub const DRILLS_BEGUN: &str = "drills/begun/";

/// That a drill began.
pub fn drill_begun(drill: &DrillId) -> String {
    format!("{DRILLS_BEGUN}{drill}.json")
}

/// What came of a drill; `began` is when it began, in digits.
pub fn drill_record(began: &str, drill: &DrillId) -> String {
    format!("{DRILLS}{began}-{drill}.json")
}

/// A run's plan.
pub fn plan(run: &RunId) -> String {
    format!("runs/{run}/plan.json.zst")
}

/// Folder of a run's journal.
pub fn journal(run: &RunId) -> String {
    format!("runs/{run}/journal/")
}

/// An entry of a run's journal.
pub fn journal_entry(run: &RunId, sequence: u64) -> String {
    format!("runs/{run}/journal/{sequence:020}.json")
}

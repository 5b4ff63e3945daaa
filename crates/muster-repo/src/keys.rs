//! Where each object of a repository lies, relative to its prefix.

use muster_types::{Digest, DrillId, Incarnation, PlanId, RunId, ShardName, SnapshotId, Timestamp};

/// The repository's own document.
pub const REPOSITORY: &str = "repository.json";

/// Folder of all shards.
pub const SHARDS: &str = "shards/";

/// Folder of all runs.
pub const RUNS: &str = "runs/";

/// Folder of the versions of the topology.
pub const TOPOLOGIES: &str = "topology/";

/// A version of the topology.
pub fn topology(version: u64) -> String {
    format!("{TOPOLOGIES}{version:020}.json.zst")
}

/// The number in the key of a version of the topology.
pub(crate) fn topology_version(key: &str) -> Option<u64> {
    key.strip_prefix(TOPOLOGIES)?.strip_suffix(".json.zst")?.parse().ok()
}

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
    format!("{JOBS}{job}/")
}

/// Folder of the chain of alarms.
pub const ALARMS: &str = "alarms/";

/// Folder of all jobs' chains.
pub const JOBS: &str = "jobs/";

/// A record of a chain of records.
pub fn record(folder: &str, sequence: u64) -> String {
    format!("{folder}{sequence:020}.json")
}

/// Folder of the floors of a chain of records.
pub fn record_floors(folder: &str) -> String {
    format!("record-floors/{folder}")
}

/// The number in the key of a record, or of a floor.
pub(crate) fn record_number(folder: &str, key: &str) -> Option<u64> {
    key.strip_prefix(folder)?.strip_suffix(".json")?.parse().ok()
}

/// Folder of servers' signs of life.
pub const SERVERS: &str = "servers/";

/// The sign of life of a server.
pub fn server(server: &str) -> String {
    format!("{SERVERS}{server}.json")
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

/// Folder of an incarnation's compacted segments.
pub fn compacted(shard: &ShardName, incarnation: &Incarnation) -> String {
    format!("shards/{shard}/{incarnation}/compacted/")
}

/// Folder of the roots of one level of compacted segments. Roots stand apart from data, so that listing costs them only.
pub fn compacted_level(shard: &ShardName, incarnation: &Incarnation, level: u32) -> String {
    format!("{}level-{level:02}/", compacted(shard, incarnation))
}

/// What the keys of all roots of compacted segments begin with.
pub fn compacted_roots(shard: &ShardName, incarnation: &Incarnation) -> String {
    format!("{}level-", compacted(shard, incarnation))
}

/// Root of a compacted segment.
pub fn compacted_root(
    shard: &ShardName,
    incarnation: &Incarnation,
    level: u32,
    (first, last): (u64, u64),
) -> String {
    format!("{}{first:020}-{last:020}.json.zst", compacted_level(shard, incarnation, level))
}

/// Folder of packs and pages of a compacted segment. Each attempt has its own, so that what an earlier one left can be
/// removed while another writes.
pub fn compacted_data(
    shard: &ShardName,
    incarnation: &Incarnation,
    (level, first, attempt): (u32, u64, u32),
) -> String {
    format!("{}data/level-{level:02}/{first:020}-{attempt:08x}/", compacted(shard, incarnation))
}

/// The first and last sequence number in the key of a compacted segment's root.
pub(crate) fn compacted_range(level_folder: &str, key: &str) -> Option<(u64, u64)> {
    let (first, last) = key.strip_prefix(level_folder)?.strip_suffix(".json.zst")?.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?))
}

/// The level in the name of a folder of roots.
pub(crate) fn level_number(folder: &str) -> Option<u32> {
    folder.strip_prefix("level-")?.parse().ok()
}

/// Folder of the floors of an incarnation's log.
pub fn floors(shard: &ShardName, incarnation: &Incarnation) -> String {
    format!("shards/{shard}/{incarnation}/floors/")
}

/// A floor: nothing before segment `first` is there any more.
pub fn floor(shard: &ShardName, incarnation: &Incarnation, first: u64) -> String {
    format!("{}{first:020}.json", floors(shard, incarnation))
}

/// Folder of operators' holds.
pub const HOLDS: &str = "holds/";

/// An operator's hold.
pub fn hold(name: &str) -> String {
    format!("{HOLDS}{name}.json")
}

/// Folder of the holds of saved plans.
pub const PLANS: &str = "plans/";

/// The hold of a saved plan.
pub fn plan_hold(plan: &PlanId) -> String {
    format!("{PLANS}{plan}.json.zst")
}

/// Folder of lists of condemned objects.
pub const CONDEMNED: &str = "prune/condemned/";

/// A list of condemned objects.
pub fn condemned(name: &str) -> String {
    format!("{CONDEMNED}{name}.json.zst")
}

/// Folder of the notes that lists are being swept.
pub const SWEEPS: &str = "prune/sweeps/";

/// Folder of the notes that lists were swept to their ends.
pub const SWEPT: &str = "prune/swept/";

/// The note that a list was swept to its end.
pub fn swept(name: &str) -> String {
    format!("{SWEPT}{name}.json")
}

/// The note that a list is being swept.
pub fn sweep(name: &str) -> String {
    format!("{SWEEPS}{name}.json")
}

/// Folder of the notes that sites are being forgotten, or were.
pub const FORGETTINGS: &str = "forgotten/begun/";

/// The note that a site is being forgotten.
pub fn forgetting(name: &str) -> String {
    format!("{FORGETTINGS}{name}.json")
}

/// Folder of the receipts of what was forgotten.
pub const FORGET_RECEIPTS: &str = "forgotten/receipts/";

/// The receipt of what was forgotten.
pub fn forget_receipt(name: &str) -> String {
    format!("{FORGET_RECEIPTS}{name}.json.zst")
}

/// Folder of all preflights.
pub const PREFLIGHTS: &str = "preflights/";

/// Folder of the notes how far checks came.
pub const CHECKS: &str = "check/";

/// How far check number `number` came.
pub fn check(number: u64) -> String {
    format!("{CHECKS}{number:020}.json")
}

/// The number in the key of such a note.
pub(crate) fn check_number(key: &str) -> Option<u64> {
    key.strip_prefix(CHECKS)?.strip_suffix(".json")?.parse().ok()
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

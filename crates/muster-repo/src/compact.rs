//! Compaction of the change log: consecutive segments laid out anew, site by site.
//!
//! Sixteen segments become one of level 1, sixteen of level n one of level n + 1. Groups are aligned, so that every
//! compactor finds the same ones; each is merged as soon as it is whole. The chain is left as it is: what compaction
//! makes stands beside it, and readers prefer it ([`crate::catalog`]).
//!
//! # Invariants
//! - Every position, time, ordinal, commit and boundary of the covered segments can be told again from the result.
//! - A compacted segment exists when its root does. The root is created last, if absent, after packs and pages were
//!   written and read back; whatever ends a compaction early leaves objects that nothing names.
//! - Two compactors at once do the same work twice, and one result counts.
//! - Memory: one page of each of the sixteen sources, a window of 4 MiB of each, the runs of one site, one page. Disk:
//!   one pack.
//! - Packs end at the first stretch behind 256 MiB; groups that would hold more than [`GROUP_BYTES_MAX`] or
//!   [`GROUP_COMMITS_MAX`] are left as they are.
//!
//! # Errors
//! A covered index that is missing, damaged or not what its successor names; what disk and object store answer. Groups
//! before it are done then, and stay.

mod merge;
mod source;

use std::path::Path;
use std::sync::Arc;

use muster_types::{Digest, Incarnation, ShardName};
use tokio::runtime::Handle;

use crate::catalog::compacted::{self, Compacted};
use crate::catalog::{Sites, log};
use crate::error::RepoError;
use crate::forget::Forgotten;
use crate::offload::blocking;
use crate::repository::Repository;
use source::Source;

/// Segments, or compacted segments, that are merged into one: a log of N segments is rewritten log16(N) times, and any
/// stretch of it is read from at most 15 objects of each level.
pub const FAN_OUT: u64 = 16;

/// Compressed bytes beyond which a group is not merged: larger objects save no more requests worth mentioning, and
/// rewriting them costs hours.
pub const GROUP_BYTES_MAX: u64 = 16 << 30;

/// Commits beyond which a group is not merged: its root holds them all, some 20 bytes each after compression.
pub const GROUP_COMMITS_MAX: usize = 2_000_000;

/// A compacted segment that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// Its level.
    pub level: u32,
    /// First covered segment.
    pub first: u64,
    /// Last covered segment.
    pub last: u64,
    /// Bytes of its packs and pages.
    pub bytes: u64,
}

/// What a compaction did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compaction {
    /// Made, in order.
    pub merged: Vec<Merged>,
    /// Whole groups that were left since they are large enough.
    pub left: u64,
}

/// Compacts the log of an incarnation as far as whole groups reach. Packs are spooled into the folder `dir`.
///
/// Must be called within a tokio runtime.
///
/// # Errors
/// See the module.
pub async fn compact(
    repository: &Repository,
    shard: &ShardName,
    incarnation: &Incarnation,
    dir: &Path,
) -> Result<Compaction, RepoError> {
    let forgotten = Forgotten::read(repository).await?;
    let compactor = Compactor { repository, shard, incarnation, dir, forgotten };
    let mut done = Compaction::default();
    compactor.segments(&mut done).await?;
    let mut level = 2;
    while compactor.level(level, &mut done).await? {
        level += 1;
    }
    Ok(done)
}

struct Compactor<'a> {
    repository: &'a Repository,
    shard: &'a ShardName,
    incarnation: &'a Incarnation,
    dir: &'a Path,
    forgotten: Forgotten,
}

impl Compactor<'_> {
    /// Merges whole groups of segments.
    async fn segments(&self, done: &mut Compaction) -> Result<(), RepoError> {
        let cover = self.cover().await?;
        let sequences = log::sequences(self.repository, self.shard, self.incarnation, &cover.holes).await?;
        let mut start = 0;
        while let Some(&first) = sequences.get(start) {
            let (group_first, group_last) = group_of(first, FAN_OUT);
            let group: Vec<u64> =
                sequences[start..].iter().copied().take_while(|&s| s <= group_last).collect();
            start += group.len();
            // The index behind the last one names it, which is the proof of all of them.
            let whole = group.len() as u64 == FAN_OUT && first == group_first;
            if whole && sequences.get(start) == Some(&(group_last + 1)) {
                self.merge_segments(group_first, group_last, done).await?;
            }
        }
        Ok(())
    }

    async fn segment(&self, sequence: u64) -> Result<Source, RepoError> {
        source::segment(self.repository, self.shard, self.incarnation, sequence, &self.forgotten).await
    }

    async fn merge_segments(&self, first: u64, last: u64, done: &mut Compaction) -> Result<(), RepoError> {
        let mut sources = Vec::new();
        for sequence in first..=last {
            sources.push(self.segment(sequence).await?);
        }
        let next = self.segment(last + 1).await?;
        let ends = sources.last().map(|last| last.head);
        if next.predecessor != ends {
            return Err(source::broken(&next.key, ends, next.predecessor));
        }
        self.merge(1, sources, done).await
    }

    /// Merges whole groups of the level below; `false` when there is nothing to go on with.
    async fn level(&self, level: u32, done: &mut Compaction) -> Result<bool, RepoError> {
        let span = FAN_OUT.checked_pow(level).unwrap_or(u64::MAX);
        let below = |found: &Compacted| found.root.level == level - 1;
        let cover = self.cover().await?;
        let any = cover.compacted.iter().any(|found| found.root.level >= level);
        let mut candidates = cover.compacted.into_iter().filter(below).peekable();
        let mut merged = any;
        while let Some(first) = candidates.peek() {
            let (group_first, group_last) = group_of(first.root.first, span);
            let mut group = Vec::new();
            while let Some(found) = candidates.next_if(|found| found.root.last <= group_last) {
                group.push(found);
            }
            let whole = group.len() as u64 == FAN_OUT
                && group.first().is_some_and(|found| found.root.first == group_first);
            if !whole {
                continue;
            }
            let bytes: u64 = group.iter().flat_map(|found| &found.root.packs).map(|pack| pack.bytes).sum();
            let commits: usize =
                group.iter().flat_map(|found| found.root.segments.commits.values()).map(Vec::len).sum();
            if bytes > GROUP_BYTES_MAX || commits > GROUP_COMMITS_MAX {
                done.left += 1;
                continue;
            }
            let source = |found| source::compacted(self.repository, found, &self.forgotten);
            let sources = group.into_iter().map(source).collect();
            self.merge(level, sources, done).await?;
            merged = true;
        }
        Ok(merged)
    }

    async fn cover(&self) -> Result<compacted::Cover, RepoError> {
        // What is damaged here is made again from what lies below it, or is said by whoever reads the catalog.
        let mut damages = Vec::new();
        let none = Arc::new(Sites::Some([].into()));
        compacted::cover(self.repository, self.shard, self.incarnation, &none, &mut damages).await
    }

    async fn merge(&self, level: u32, sources: Vec<Source>, done: &mut Compaction) -> Result<(), RepoError> {
        source::check_links(&sources)?;
        let target = merge::Target {
            repository: self.repository.clone(),
            runtime: Handle::current(),
            shard: self.shard.clone(),
            incarnation: self.incarnation.clone(),
            level,
            dir: self.dir.to_owned(),
        };
        let merged = blocking(move || merge::merge(target, sources)).await?;
        tracing::debug!(shard = %self.shard, level, first = merged.first, last = merged.last, "compacted");
        done.merged.push(merged);
        Ok(())
    }
}

/// The aligned group of `span` sequence numbers that holds `sequence`.
fn group_of(sequence: u64, span: u64) -> (u64, u64) {
    let first = (sequence - 1) / span * span + 1;
    (first, first.saturating_add(span - 1))
}

/// A digest, or that there is none.
fn named(digest: Option<Digest>) -> String {
    digest.map_or("none".to_owned(), |digest| digest.short())
}

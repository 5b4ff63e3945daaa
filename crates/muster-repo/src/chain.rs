//! The chain of segments of one incarnation.
//!
//! # Invariants
//! - Segment n+1 names the digest of the stored bytes of segment n's index and continues from its boundary.
//! - A segment's data is durable before its index is created.
//! - Slots are created if absent: of two writers one wins, and the other is told ([`ChainError::Lost`]).
//!
//! # Errors
//! After any error of [`Chain::append`] the chain must be opened again: what became of the slot is read, not guessed.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use muster_types::format::FORMAT;
use muster_types::segment::{ChangeStamp, Commit, DATABASE_GONE, Segment};
use muster_types::{Boundary, Digest, Incarnation, ShardName};

use crate::catalog::{Sites, compacted};
use crate::document::{from_json_zstd, to_json_zstd};
use crate::error::RepoError;
use crate::keys;
use crate::objects::Creation;
use crate::repository::Repository;
use crate::segment::SpooledSegment;

/// The last segment of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainHead {
    /// Its number.
    pub sequence: u64,
    /// Digest of its index, as stored.
    pub digest: Digest,
    /// Where it ends.
    pub boundary: Boundary,
    /// Digest of its predecessor's index.
    pub predecessor: Option<Digest>,
    /// Its last change, if it has any.
    pub last_change: Option<ChangeStamp>,
    /// Its last commit, where the shard's log tells commits; it may have no change.
    pub last_commit: Option<Commit>,
    /// It notes that the shard's database is gone, and nothing else.
    pub gone: bool,
}

/// The last change of a segment.
fn last_change(segment: &Segment) -> Option<ChangeStamp> {
    let frames = segment.sites.values().flatten().chain(&segment.unowned);
    frames.filter_map(|frame| frame.span.map(|(_, last)| last)).max_by_key(|last| last.key)
}

fn head_of(segment: &Segment, digest: Digest) -> ChainHead {
    ChainHead {
        sequence: segment.sequence,
        digest,
        boundary: segment.boundary,
        predecessor: segment.predecessor,
        last_change: last_change(segment),
        last_commit: segment.commits.last().copied(),
        gone: segment.table_events.iter().any(|event| event.reason == DATABASE_GONE),
    }
}

/// Why a segment was not appended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Another writer has the slot: a second capture of this shard runs, or an earlier try of this one landed.
    #[error(
        "segment {sequence} of shard `{shard}` was written by `{writer}`; another `muster capture` follows this \
         shard: stop one of them"
    )]
    Lost {
        /// The shard.
        shard: ShardName,
        /// The slot.
        sequence: u64,
        /// Who has it.
        writer: String,
    },
    /// Anything else.
    #[error(transparent)]
    Repo(#[from] RepoError),
}

/// The chain of one incarnation, at its head.
#[derive(Debug)]
pub struct Chain {
    repository: Repository,
    shard: ShardName,
    incarnation: Incarnation,
    head: Option<ChainHead>,
    /// An append ended in an error: the head may be another by now.
    stale: bool,
    /// When the head was last known to be the head.
    seen: SystemTime,
}

/// A writer that knows its head this long must look whether it still is: pruning leaves slots alone for far longer,
/// and always leaves the last ones.
const SLEPT: Duration = Duration::from_secs(3600);

impl Chain {
    /// Finds the head. Lists the whole log; [`Self::open_from`] lists only its end.
    ///
    /// # Errors
    /// What the object store answers; a missing or damaged segment at the end of the chain.
    pub async fn open(
        repository: &Repository,
        shard: &ShardName,
        incarnation: &Incarnation,
    ) -> Result<Self, RepoError> {
        Self::open_from(repository, shard, incarnation, 1).await
    }

    /// Finds the head, knowing that segment `known` exists if any does.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_from(
        repository: &Repository,
        shard: &ShardName,
        incarnation: &Incarnation,
        known: u64,
    ) -> Result<Self, RepoError> {
        let mut chain = Self {
            repository: repository.clone(),
            shard: shard.clone(),
            incarnation: incarnation.clone(),
            head: None,
            stale: false,
            seen: SystemTime::now(),
        };
        // From the predecessor on, to verify the link.
        let first = known.saturating_sub(1).max(1);
        let sequences = chain.sequences(first).await?;
        let Some(&last) = sequences.last() else { return Ok(chain) };
        let unbroken = (first..=last).rev().zip(sequences.iter().rev());
        let begins = last + 1 - unbroken.take_while(|&(expected, &found)| expected == found).count() as u64;
        // What was pruned before it is given up, or lies in compacted segments.
        if begins > first && !chain.is_pruned_before(begins).await? {
            return Err(RepoError::not_found(&keys::segment_index(shard, incarnation, begins - 1)));
        }
        let (segment, digest) = chain.read(last).await?;
        if last > 1 {
            chain.verify_link(&segment, last).await?;
        }
        chain.head = Some(head_of(&segment, digest));
        Ok(chain)
    }

    /// Nothing is missing before segment `first`: it is the first, or the floor or compacted segments reach it.
    async fn is_pruned_before(&self, first: u64) -> Result<bool, RepoError> {
        if first == 1 || self.repository.log_floor(&self.shard, &self.incarnation).await? >= first {
            return Ok(true);
        }
        let (none, mut damages) = (Arc::new(Sites::Some([].into())), Vec::new());
        let cover = compacted::cover(&self.repository, &self.shard, &self.incarnation, &none, &mut damages);
        Ok(cover.await?.compacted.last().is_some_and(|last| last.root.last + 1 >= first))
    }

    async fn sequences(&self, first: u64) -> Result<Vec<u64>, RepoError> {
        let folder = keys::log(&self.shard, &self.incarnation);
        let after = keys::segment_index(&self.shard, &self.incarnation, first - 1);
        let entries = self.repository.objects().list(&folder, Some(&after)).await?;
        Ok(entries.iter().filter_map(|entry| keys::index_sequence(&folder, &entry.key)).collect())
    }

    async fn read(&self, sequence: u64) -> Result<(Segment, Digest), RepoError> {
        let key = keys::segment_index(&self.shard, &self.incarnation, sequence);
        let body = self.repository.objects().get(&key).await?;
        let body = body.ok_or_else(|| RepoError::not_found(&key))?;
        Ok((from_json_zstd(&key, &body)?, Digest::of(&body)))
    }

    async fn verify_link(&self, segment: &Segment, sequence: u64) -> Result<(), RepoError> {
        let (_, predecessor) = self.read(sequence - 1).await?;
        if segment.predecessor == Some(predecessor) {
            return Ok(());
        }
        let key = keys::segment_index(&self.shard, &self.incarnation, sequence - 1);
        let named = segment.predecessor.map_or("none".to_owned(), |digest| digest.short());
        Err(RepoError::damaged(
            &key,
            format!(
                "its digest is {}, and segment {sequence} names {named} as its predecessor",
                predecessor.short()
            ),
        ))
    }

    /// The last segment, if there is one.
    pub fn head(&self) -> Option<ChainHead> {
        self.head
    }

    /// The shard.
    pub fn shard(&self) -> &ShardName {
        &self.shard
    }

    /// The incarnation.
    pub fn incarnation(&self) -> &Incarnation {
        &self.incarnation
    }

    /// Appends a segment: uploads its data, then creates its index. `after` is the boundary that it continues from:
    /// the head's, or a later one where history is missing, which readers take for a gap. `writer` must be unique
    /// to the process.
    ///
    /// # Errors
    /// [`ChainError::Lost`] when another writer has the slot; what disk and object store answer. The chain must be
    /// opened again then.
    pub async fn append(
        &mut self,
        spooled: SpooledSegment,
        after: Boundary,
        boundary: Boundary,
        clock_offset_micros: (i64, u64),
        writer: &str,
    ) -> Result<ChainHead, ChainError> {
        self.check_append(&spooled, after, boundary)?;
        self.stale = true;
        let sequence = self.head.map_or(1, |head| head.sequence + 1);
        let mut data = None;
        if let Some(file) = &spooled.data {
            let key = keys::segment_data(&self.shard, &self.incarnation, sequence, &file.digest);
            self.repository.objects().put_file(&key, file.path()).await?;
            data = Some(file.object(key));
        }
        let predecessor = self.head.map(|head| head.digest);
        let segment = Segment {
            format: FORMAT,
            shard: self.shard.clone(),
            incarnation: self.incarnation.clone(),
            sequence,
            predecessor,
            writer: writer.to_owned(),
            after,
            boundary,
            clock_offset_micros,
            data,
            tables: spooled.tables,
            marks: spooled.marks,
            sites: spooled.sites,
            unowned: spooled.unowned,
            table_events: spooled.table_events,
            commits: spooled.commits,
        };
        let asked = SystemTime::now();
        let digest = self.create_index(&segment).await?;
        let since = asked.min(self.seen);
        self.check_still_head(&segment, since).await?;
        self.seen = asked;
        let head = head_of(&segment, digest);
        self.head = Some(head);
        self.stale = false;
        Ok(head)
    }

    /// A slot that was pruned can be created again: a writer that slept looks whether the log went on without it.
    async fn check_still_head(&self, segment: &Segment, since: SystemTime) -> Result<(), ChainError> {
        // A clock that stepped back tells nothing: look.
        if since.elapsed().is_ok_and(|slept| slept < SLEPT) {
            return Ok(());
        }
        let later = self.sequences(segment.sequence + 1).await?;
        let Some(&sequence) = later.first() else { return Ok(()) };
        let (found, _) = self.read(sequence).await?;
        Err(ChainError::Lost { shard: self.shard.clone(), sequence, writer: found.writer })
    }

    async fn create_index(&self, segment: &Segment) -> Result<Digest, ChainError> {
        let key = keys::segment_index(&self.shard, &self.incarnation, segment.sequence);
        let body = to_json_zstd(segment)?;
        match self.repository.objects().create(&key, body.clone()).await? {
            Creation::Mine => Ok(Digest::of(&body)),
            Creation::Other(theirs) => {
                let theirs: Segment = from_json_zstd(&key, &theirs)?;
                let sequence = segment.sequence;
                Err(ChainError::Lost { shard: self.shard.clone(), sequence, writer: theirs.writer })
            }
        }
    }

    fn check_append(
        &self,
        spooled: &SpooledSegment,
        after: Boundary,
        boundary: Boundary,
    ) -> Result<(), RepoError> {
        if self.stale {
            return Err(RepoError::misuse("an append after a failed one, without opening the chain again"));
        }
        let head = self.head.map_or(after, |head| head.boundary);
        if after.position < head.position || boundary.position < after.position || boundary.at < after.at {
            return Err(RepoError::misuse(format!(
                "a segment from {after:?} to {boundary:?} does not continue the chain, which ends at {head:?}"
            )));
        }
        let outside = |frame: &&muster_types::segment::LogFrame| {
            frame.span.is_some_and(|(first, last)| {
                first.key.position <= after.position || last.key.position > boundary.position
            })
        };
        match spooled.frames().find(outside) {
            Some(frame) => Err(RepoError::misuse(format!(
                "changes {:?} lie outside their segment, which goes from {after:?} to {boundary:?}",
                frame.span
            ))),
            None => Ok(()),
        }
    }
}

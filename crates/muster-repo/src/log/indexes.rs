//! The indexes of a shard's newest chain, read from its head backwards and each held against its successor.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use muster_types::segment::Segment;
use muster_types::{Digest, Incarnation, Position, ShardName};

use crate::document::from_json_zstd;
use crate::error::RepoError;
use crate::keys;
use crate::offload::blocking;
use crate::repository::Repository;

/// Indexes kept whole: those of several minutes of capture, which is what a run asks about, at some tens of KiB each.
/// Of the others that were read a hundred bytes stay.
const INDEXES_KEPT: usize = 512;

/// What stays of an index.
#[derive(Clone, Copy, Debug)]
struct Place {
    after: Position,
    boundary: Position,
    digest: Digest,
    predecessor: Option<Digest>,
}

/// What is known of the chain: an unbroken stretch of it, up to the head as it was last looked at.
#[derive(Debug, Default)]
pub(super) struct Indexes {
    incarnation: Option<Incarnation>,
    places: BTreeMap<u64, Place>,
    kept: BTreeMap<u64, Arc<Segment>>,
}

impl Indexes {
    /// The numbers of the segments that cover `(after, upto]`, ascending; `None` while the log does not reach `upto`.
    pub(super) async fn covering(
        &mut self,
        repository: &Repository,
        shard: &ShardName,
        after: Position,
        upto: Position,
    ) -> Result<Option<RangeInclusive<u64>>, RepoError> {
        if !self.covers(upto) {
            self.extend(repository, shard, after).await?;
            if !self.covers(upto) {
                return Ok(None);
            }
        }
        while let Some((&first, place)) = self.places.first_key_value()
            && place.after > after
            && first > 1
        {
            self.load(repository, shard, first - 1).await?;
        }
        let overlaps = |place: &Place| place.after < upto && place.boundary > after;
        let mut numbers = self.places.iter().filter(|(_, place)| overlaps(place)).map(|(number, _)| *number);
        // An empty range where nothing overlaps.
        let Some(first) = numbers.next() else { return Ok(Some(RangeInclusive::new(1, 0))) };
        Ok(Some(first..=numbers.next_back().unwrap_or(first)))
    }

    /// One index of the stretch.
    pub(super) async fn get(
        &mut self,
        repository: &Repository,
        shard: &ShardName,
        sequence: u64,
    ) -> Result<Arc<Segment>, RepoError> {
        match self.kept.get(&sequence) {
            Some(kept) => Ok(Arc::clone(kept)),
            None => self.load(repository, shard, sequence).await,
        }
    }

    fn covers(&self, upto: Position) -> bool {
        self.reached() >= Some(upto)
    }

    /// Up to where the chain was found to reach.
    pub(super) fn reached(&self) -> Option<Position> {
        Some(self.places.values().next_back()?.boundary)
    }

    /// Reads the indexes that are new; of a log not seen before, from its head back to `after`.
    async fn extend(
        &mut self,
        repository: &Repository,
        shard: &ShardName,
        after: Position,
    ) -> Result<(), RepoError> {
        let Some(newest) = repository.incarnations(shard).await?.pop() else { return Ok(()) };
        if self.incarnation.as_ref() != Some(&newest.incarnation) {
            *self = Self { incarnation: Some(newest.incarnation.clone()), ..Self::default() };
        }
        let known = self.places.keys().next_back().copied().unwrap_or(0);
        let head = head(repository, shard, &newest.incarnation, known).await?;
        // A stretch that ended half way would look whole: it is taken in at once, or not at all.
        let mut found = Self { incarnation: self.incarnation.clone(), ..Self::default() };
        for sequence in (known + 1..=head).rev() {
            let begins_before = found.load(repository, shard, sequence).await?.after.position <= after;
            if known == 0 && begins_before {
                break;
            }
        }
        if let (Some(known), Some((&first, place))) =
            (self.places.get(&known), found.places.first_key_value())
        {
            let key = keys::segment_index(shard, &newest.incarnation, first - 1);
            continues(&key, known.digest, place.predecessor)?;
        }
        self.places.append(&mut found.places);
        self.kept.append(&mut found.kept);
        while self.kept.len() > INDEXES_KEPT {
            self.kept.pop_first();
        }
        Ok(())
    }

    /// Reads one index and holds it against its neighbours.
    async fn load(
        &mut self,
        repository: &Repository,
        shard: &ShardName,
        sequence: u64,
    ) -> Result<Arc<Segment>, RepoError> {
        let nothing = || RepoError::misuse(format!("shard {shard} has no log yet"));
        let incarnation = self.incarnation.as_ref().ok_or_else(nothing)?;
        let key = keys::segment_index(shard, incarnation, sequence);
        let body = repository.objects().get(&key).await?.ok_or_else(|| RepoError::not_found(&key))?;
        let digest = Digest::of(&body);
        let name = key.clone();
        let segment: Segment = blocking(move || from_json_zstd(&name, &body)).await?;
        if segment.sequence != sequence {
            return Err(RepoError::damaged(&key, format!("it says that it is segment {}", segment.sequence)));
        }
        if let Some(next) = self.places.get(&(sequence + 1)) {
            continues(&key, digest, next.predecessor)?;
        }
        if let Some(before) = sequence.checked_sub(1).and_then(|before| self.places.get(&before)) {
            continues(
                &keys::segment_index(shard, incarnation, sequence - 1),
                before.digest,
                segment.predecessor,
            )?;
        }
        let (after, boundary) = (segment.after.position, segment.boundary.position);
        self.places.insert(sequence, Place { after, boundary, digest, predecessor: segment.predecessor });
        let segment = Arc::new(segment);
        self.kept.insert(sequence, Arc::clone(&segment));
        if self.kept.len() > INDEXES_KEPT {
            // Whatever lies farthest from what is read now.
            let backwards = self.kept.first_key_value().is_some_and(|(first, _)| *first == sequence);
            if backwards {
                self.kept.pop_last()
            } else {
                self.kept.pop_first()
            };
        }
        Ok(segment)
    }
}

/// The index at `key` is what its successor was built on.
fn continues(key: &str, digest: Digest, named: Option<Digest>) -> Result<(), RepoError> {
    if named == Some(digest) {
        return Ok(());
    }
    let named = named.map_or("none".to_owned(), |named| named.short());
    let what = format!("its digest is {}, and the index behind it continues from {named}", digest.short());
    Err(RepoError::damaged(key, what))
}

async fn head(
    repository: &Repository,
    shard: &ShardName,
    incarnation: &Incarnation,
    known: u64,
) -> Result<u64, RepoError> {
    let folder = keys::log(shard, incarnation);
    let behind = keys::segment_index(shard, incarnation, known);
    let entries = repository.objects().list(&folder, Some(&behind)).await?;
    let sequences = entries.iter().filter_map(|entry| keys::index_sequence(&folder, &entry.key));
    Ok(sequences.max().unwrap_or(known))
}

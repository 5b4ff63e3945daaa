//! Ranged reads of many parts of few objects, coalesced.
//!
//! All that a run will read is known before it starts. Ranges that lie close together are fetched as one extent, once;
//! whoever comes first fetches, others wait for the same answer; the bytes stay until everyone who wants a part has
//! had it, or the byte budget needs their place.
//!
//! # Invariants
//! - Bytes kept are at most [`RangeLimits::cached_bytes`] and one extent for each fetch in flight.
//! - An extent that was evicted is not fetched whole again: what is still wanted of it is read by itself.
//! - An extent that cannot be read whole fails only those whose own ranges cannot be read.
//!
//! # Not here
//! Digests: [`crate::rows`] checks each chunk before it is used.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use muster_types::snapshot::{Chunk, ObjectInfo};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::error::RepoError;
use crate::objects::Objects;

/// Bounds of a [`RangeReader`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeLimits {
    /// Ranges this far apart are fetched together: at 100 MB/s, 64 KiB cost less than another request.
    pub gap_bytes: u64,
    /// Longest extent made of several ranges: a second at a modest 8 MB/s, so that a broken answer costs little.
    pub extent_bytes: u64,
    /// Most bytes kept for readers that have not come yet.
    pub cached_bytes: u64,
    /// Most extents fetched at once.
    pub fetches_in_flight: usize,
}

impl Default for RangeLimits {
    fn default() -> Self {
        Self {
            gap_bytes: 64 * 1024,
            extent_bytes: 8 * 1024 * 1024,
            cached_bytes: 256 * 1024 * 1024,
            fetches_in_flight: 16,
        }
    }
}

/// The bytes of an extent.
enum Slot {
    NotYet,
    Here(Bytes),
    /// Was here, or cannot be had whole: ranges are read by themselves.
    Gone,
    Failed(Instant, RepoError),
}

struct Extent {
    key: Arc<str>,
    offset: u64,
    bytes: u64,
    /// Held while it is fetched: that is the single flight.
    slot: tokio::sync::Mutex<Slot>,
    /// Reads that are still to come.
    wanted: AtomicU64,
}

struct Want {
    extent: Arc<Extent>,
    /// Reads of this range that are still to come.
    times: u64,
}

type RangeKey = (Arc<str>, u64, u64);

struct Inner {
    objects: Arc<dyn Objects>,
    limits: RangeLimits,
    fetches: Semaphore,
    wants: Mutex<HashMap<RangeKey, Want>>,
    /// Extents that are here, the oldest first.
    kept: Mutex<Kept>,
    requests: AtomicU64,
    bytes: AtomicU64,
}

#[derive(Default)]
struct Kept {
    bytes: u64,
    order: VecDeque<Arc<Extent>>,
}

/// Reads ranges of objects. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct RangeReader {
    inner: Arc<Inner>,
}

impl fmt::Debug for RangeReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RangeReader").field("limits", &self.inner.limits).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics between two changes that belong together.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RangeReader {
    /// A reader of the `wanted` ranges, (offset, bytes) each; a range that is going to be read twice is given twice.
    pub fn new(
        objects: Arc<dyn Objects>,
        wanted: Vec<(ObjectInfo, Vec<(u64, u64)>)>,
        limits: RangeLimits,
    ) -> Self {
        let mut by_key: BTreeMap<String, Vec<(u64, u64)>> = BTreeMap::new();
        for (object, ranges) in wanted {
            by_key.entry(object.key).or_default().extend(ranges);
        }
        let mut wants = HashMap::new();
        for (key, mut ranges) in by_key {
            ranges.sort_unstable();
            coalesce(&key.into(), &ranges, limits, &mut wants);
        }
        let inner = Inner {
            objects,
            limits,
            fetches: Semaphore::new(limits.fetches_in_flight.max(1)),
            wants: Mutex::new(wants),
            kept: Mutex::default(),
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Requests sent and bytes fetched so far.
    pub fn fetched(&self) -> (u64, u64) {
        (self.inner.requests.load(Ordering::Relaxed), self.inner.bytes.load(Ordering::Relaxed))
    }

    /// The compressed bytes of a chunk, unchecked.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn chunk(&self, object: &ObjectInfo, chunk: &Chunk) -> Result<Bytes, RepoError> {
        self.read(&object.key, chunk.offset, chunk.bytes).await
    }

    /// The same, asked of the object store anew and by itself: for bytes that came damaged, perhaps on their way only.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn chunk_again(&self, object: &ObjectInfo, chunk: &Chunk) -> Result<Bytes, RepoError> {
        self.inner.fetch(&object.key, chunk.offset, chunk.bytes).await
    }

    /// A range. One that was not announced is read by itself.
    ///
    /// # Errors
    /// What the object store answers; a missing or shortened object.
    pub async fn read(&self, key: &str, offset: u64, bytes: u64) -> Result<Bytes, RepoError> {
        let Some(extent) = self.inner.take_want(key, offset, bytes) else {
            return self.inner.fetch(key, offset, bytes).await;
        };
        let found = self.inner.read_extent(&extent, offset, bytes).await;
        if extent.wanted.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.inner.release(&extent).await;
        }
        found
    }
}

/// Makes extents of sorted ranges.
fn coalesce(key: &Arc<str>, ranges: &[(u64, u64)], limits: RangeLimits, wants: &mut HashMap<RangeKey, Want>) {
    let mut rest = ranges;
    while let Some(&(start, first_bytes)) = rest.first() {
        let mut end = start + first_bytes;
        let mut count = 1;
        for &(offset, bytes) in &rest[1..] {
            let joined = end.max(offset + bytes);
            // One long range is an extent whatever its length; what lies within it costs nothing.
            let fits = joined == end || joined - start <= limits.extent_bytes;
            if offset > end + limits.gap_bytes || !fits {
                break;
            }
            end = joined;
            count += 1;
        }
        let (these, others) = rest.split_at(count);
        let extent = Arc::new(Extent {
            key: Arc::clone(key),
            offset: start,
            bytes: end - start,
            slot: tokio::sync::Mutex::new(Slot::NotYet),
            wanted: AtomicU64::new(count as u64),
        });
        for &(offset, bytes) in these {
            let new = || Want { extent: Arc::clone(&extent), times: 0 };
            let want = wants.entry((Arc::clone(key), offset, bytes)).or_insert_with(new);
            if !Arc::ptr_eq(&want.extent, &extent) {
                // Equal ranges that fell into two extents: all are read from the first.
                extent.wanted.fetch_sub(1, Ordering::Relaxed);
                want.extent.wanted.fetch_add(1, Ordering::Relaxed);
            }
            want.times += 1;
        }
        rest = others;
    }
}

impl Inner {
    fn take_want(&self, key: &str, offset: u64, bytes: u64) -> Option<Arc<Extent>> {
        let mut wants = lock(&self.wants);
        let range = (Arc::from(key), offset, bytes);
        let want = wants.get_mut(&range)?;
        let extent = Arc::clone(&want.extent);
        want.times -= 1;
        if want.times == 0 {
            wants.remove(&range);
        }
        Some(extent)
    }

    async fn read_extent(&self, extent: &Arc<Extent>, offset: u64, bytes: u64) -> Result<Bytes, RepoError> {
        let came = Instant::now();
        let mut slot = extent.slot.lock().await;
        match &*slot {
            Slot::Here(whole) => return Ok(part(whole, extent, offset, bytes)),
            // The one before this reader in the queue has just met it; an outage is not waited for in turn.
            Slot::Failed(at, error) if *at >= came => return Err(error.clone()),
            Slot::Gone => {
                drop(slot);
                return self.fetch(&extent.key, offset, bytes).await;
            }
            Slot::NotYet | Slot::Failed(..) => {}
        }
        match self.fetch(&extent.key, extent.offset, extent.bytes).await {
            Ok(whole) => {
                let found = part(&whole, extent, offset, bytes);
                *slot = Slot::Here(whole);
                self.keep(extent);
                Ok(found)
            }
            Err(error) if error.is_transient() => {
                *slot = Slot::Failed(Instant::now(), error.clone());
                Err(error)
            }
            Err(_) => {
                *slot = Slot::Gone;
                drop(slot);
                self.fetch(&extent.key, offset, bytes).await
            }
        }
    }

    async fn fetch(&self, key: &str, offset: u64, bytes: u64) -> Result<Bytes, RepoError> {
        let closed = |_| RepoError::misuse("the range reader was closed while in use");
        let _permit = self.fetches.acquire().await.map_err(closed)?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let body = self.objects.get_range(key, offset, bytes).await?;
        if body.len() as u64 != bytes {
            let what = format!("{} bytes came", body.len());
            return Err(RepoError::damaged_range(key, offset, bytes, &what));
        }
        Ok(body)
    }

    /// Counts a new extent, and lets the oldest go where the budget is exceeded.
    fn keep(&self, extent: &Arc<Extent>) {
        let mut kept = lock(&self.kept);
        kept.bytes += extent.bytes;
        kept.order.push_back(Arc::clone(extent));
        for _ in 0..kept.order.len() {
            if kept.bytes <= self.limits.cached_bytes {
                return;
            }
            let Some(oldest) = kept.order.pop_front() else { return };
            // One that is locked is being read just now, or is the new one itself.
            match oldest.slot.try_lock() {
                Ok(mut slot) => {
                    *slot = Slot::Gone;
                    kept.bytes -= oldest.bytes;
                }
                Err(_) => kept.order.push_back(Arc::clone(&oldest)),
            };
        }
    }

    /// Lets an extent go that no one wants any more.
    async fn release(&self, extent: &Arc<Extent>) {
        let mut slot = extent.slot.lock().await;
        let was_here = matches!(*slot, Slot::Here(_));
        *slot = Slot::Gone;
        let mut kept = lock(&self.kept);
        if was_here {
            kept.bytes -= extent.bytes;
        }
        kept.order.retain(|other| !Arc::ptr_eq(other, extent));
    }
}

fn part(whole: &Bytes, extent: &Extent, offset: u64, bytes: u64) -> Bytes {
    // Extents are made of their ranges, and a fetch gives all of an extent or fails.
    let start = usize::try_from(offset - extent.offset).unwrap_or(usize::MAX);
    let end = usize::try_from(offset + bytes - extent.offset).unwrap_or(usize::MAX);
    whole.slice(start..end)
}

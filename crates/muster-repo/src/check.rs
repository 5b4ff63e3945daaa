//! Reading objects back and holding them against their digests, a share at a time.
//!
//! Objects are looked at in the order of their keys, round after round. Data is hashed whole and held against the digest
//! that its root or index names. Documents must be readable, in place, and name objects that are there; an index must be
//! the one that its successor names. Documents that are gone are told by what they left.
//!
//! # Invariants
//! - A check goes on behind the last key that the one before it looked at, and reads at least its share of all bytes: what
//!   is damaged is found within 1 / share checks.
//! - Memory: one document and 8 MiB.
//!
//! # Errors
//! What the object store answers. Damage is a finding, not an error.

mod lost;

use std::collections::{BTreeMap, BTreeSet};

use muster_types::check::CheckProgress;
use muster_types::compacted::CompactedRoot;
use muster_types::format::FORMAT;
use muster_types::segment::Segment;
use muster_types::snapshot::{ObjectInfo, SnapshotRoot};
use muster_types::{Digest, Timestamp};
use serde::de::DeserializeOwned;

use crate::catalog::note_damage;
use crate::document::{from_json, from_json_zstd, to_json};
use crate::error::RepoError;
use crate::forget;
use crate::keys;
use crate::objects::Objects;
use crate::offload::blocking;
use crate::repository::Repository;
use crate::retention;

/// Bytes read at once.
const WINDOW_BYTES: u64 = 8 * 1024 * 1024;

/// Damages that are noted for who asks later: enough to see how far it goes, and a small document.
const DAMAGES_KEPT: usize = 1_000;

/// What a check looked at and found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Objects.
    pub objects: u64,
    /// Bytes read and hashed.
    pub bytes: u64,
    /// Bytes of all objects.
    pub of_bytes: u64,
    /// What is missing or not what was written.
    pub damages: Vec<RepoError>,
    /// How far it came.
    pub progress: CheckProgress,
}

/// Checks a `share` of the repository, above 0 and up to 1, and notes how far it came.
///
/// # Errors
/// See the module.
pub async fn check(repository: &Repository, share: f64, now: Timestamp) -> Result<Checked, RepoError> {
    let objects = repository.objects();
    let entries = objects.list("", None).await?;
    let sizes: BTreeMap<String, u64> = entries
        .into_iter()
        .filter(|entry| !entry.key.starts_with(keys::CHECKS))
        .map(|entry| (entry.key, entry.bytes))
        .collect();
    let of_bytes: u64 = sizes.values().sum();
    let (number, before) = last(repository).await?;
    let mut progress = taken_up(before, &sizes, now);
    // As much as the share says, rounded up.
    let budget = (of_bytes as f64 * share.clamp(0.0, 1.0)).ceil() as u64;
    let from = progress.reached.take();
    let behind = sizes.keys().filter(|key| from.as_ref().is_none_or(|from| *key > from));
    let around = sizes.keys().filter(|key| from.as_ref().is_some_and(|from| *key <= from));
    let condemned: BTreeSet<String> =
        retention::condemned(repository).await?.into_iter().flat_map(|list| list.objects).collect();
    let mut checker = Checker {
        objects: &**objects,
        sizes: &sizes,
        owner: None,
        erased: forget::digests(repository).await?,
        condemned,
    };
    let mut checked = Checked { objects: 0, bytes: 0, of_bytes, damages: Vec::new(), progress };
    // Told by the listing alone, and so at once.
    for key in lost::lost(sizes.keys(), &checker.condemned) {
        let lost = RepoError::not_found(&key);
        checked.progress.damages.insert(key, lost.to_string());
        checked.damages.push(lost);
    }
    let (mut spent, mut rounded) = (0, from.is_none());
    for key in behind.chain(around) {
        if spent >= budget && spent > 0 {
            break;
        }
        if !rounded && from.as_ref().is_some_and(|from| key <= from) {
            rounded = true;
            checked.progress.rounds += 1;
            checked.progress.round_began_at = now;
        }
        // Listed size, so that a missing or odd object costs what it should.
        spent += sizes.get(key).copied().unwrap_or(0);
        checked.objects += 1;
        match checker.object(key).await {
            Ok(bytes) => {
                checked.bytes += bytes;
                checked.progress.damages.remove(key);
            }
            Err(error) => {
                let said = error.to_string();
                note_damage(&mut checked.damages, error)?;
                if checked.progress.damages.len() < DAMAGES_KEPT {
                    checked.progress.damages.insert(key.clone(), said);
                }
            }
        }
        checked.progress.reached = Some(key.clone());
    }
    if checked.progress.reached.as_ref() == sizes.keys().next_back() {
        checked.progress.reached = None;
        checked.progress.rounds += 1;
    }
    checked.progress.ended_at = now;
    note(repository, number, &checked.progress).await?;
    Ok(checked)
}

/// The progress that a check goes on from: that of the one before, or a first round's.
fn taken_up(before: Option<CheckProgress>, sizes: &BTreeMap<String, u64>, now: Timestamp) -> CheckProgress {
    let mut progress = before.unwrap_or(CheckProgress {
        format: FORMAT,
        ended_at: now,
        reached: None,
        round_began_at: now,
        rounds: 0,
        damages: BTreeMap::new(),
    });
    // What was removed is no damage any more.
    progress.damages.retain(|key, _| sizes.contains_key(key));
    if progress.reached.is_none() {
        progress.round_began_at = now;
    }
    progress
}

/// How far the last check came, and what it and those before it found.
///
/// # Errors
/// What the object store answers; a damaged or newer note.
pub async fn progress(repository: &Repository) -> Result<Option<CheckProgress>, RepoError> {
    Ok(last(repository).await?.1)
}

/// How far the last check came, with its number.
async fn last(repository: &Repository) -> Result<(u64, Option<CheckProgress>), RepoError> {
    let entries = repository.objects().list(keys::CHECKS, None).await?;
    let Some(last) = entries.last() else { return Ok((0, None)) };
    let body = repository.objects().get(&last.key).await?.ok_or_else(|| RepoError::not_found(&last.key))?;
    Ok((keys::check_number(&last.key).unwrap_or(0), Some(from_json(&last.key, &body)?)))
}

async fn note(repository: &Repository, number: u64, progress: &CheckProgress) -> Result<(), RepoError> {
    // Of two checks at once one notes how far it came; the other's share is looked at again.
    repository.objects().create(&keys::check(number + 1), to_json(progress)?).await?;
    match number {
        0 => Ok(()),
        _ => repository.objects().delete(&keys::check(number)).await,
    }
}

struct Checker<'a> {
    objects: &'a dyn Objects,
    sizes: &'a BTreeMap<String, u64>,
    /// The document looked at last that names data, and what it names.
    owner: Option<(String, Vec<ObjectInfo>)>,
    /// Digests that objects have since rows in them were overwritten.
    erased: BTreeMap<String, Digest>,
    /// Objects that may be half gone.
    condemned: BTreeSet<String>,
}

impl Checker<'_> {
    /// Checks one object; the bytes read.
    async fn object(&mut self, key: &str) -> Result<u64, RepoError> {
        match owner_of(key, self.sizes) {
            Some(owner) if owner == key => self.document(key).await,
            Some(owner) => self.data(key, &owner).await,
            None if key.ends_with(".json") => {
                let body = self.body(key).await?;
                from_json::<serde_json::Value>(key, &body)?;
                Ok(body.len() as u64)
            }
            None if key.ends_with(".json.zst") => {
                let (_, bytes) = self.read::<serde_json::Value>(key).await?;
                Ok(bytes)
            }
            // Nothing names it: left by a writer that ended.
            None => Ok(0),
        }
    }

    async fn body(&self, key: &str) -> Result<bytes::Bytes, RepoError> {
        self.objects.get(key).await?.ok_or_else(|| RepoError::not_found(key))
    }

    async fn read<T: DeserializeOwned + Send + 'static>(&self, key: &str) -> Result<(T, u64), RepoError> {
        let (body, name) = (self.body(key).await?, key.to_owned());
        let bytes = body.len() as u64;
        Ok((blocking(move || from_json_zstd::<T>(&name, &body)).await?, bytes))
    }

    /// What a document names.
    async fn named(&self, key: &str) -> Result<(Vec<ObjectInfo>, u64), RepoError> {
        if key.contains("/snapshots/") {
            let (root, bytes) = self.read::<SnapshotRoot>(key).await?;
            self.base_is_whole(&root)?;
            let pages = root.pages.into_iter().map(|page| page.object);
            return Ok((root.packs.into_iter().chain(pages).collect(), bytes));
        }
        if key.contains("/compacted/") {
            let (root, bytes) = self.read::<CompactedRoot>(key).await?;
            let pages = root.pages.into_iter().map(|page| page.object);
            return Ok((root.packs.into_iter().chain(pages).chain(root.unowned).collect(), bytes));
        }
        let (segment, bytes) = self.read::<Segment>(key).await?;
        self.is_successor(key, &segment).await?;
        Ok((segment.data.into_iter().collect(), bytes))
    }

    /// The snapshot that this one was folded from has its root, or was pruned with all that it had.
    fn base_is_whole(&self, root: &SnapshotRoot) -> Result<(), RepoError> {
        let Some(base) = &root.folded_from else { return Ok(()) };
        let folder = keys::snapshot(&root.shard, &root.incarnation, base);
        let base = format!("{folder}{}", keys::ROOT);
        let left = self.sizes.range(folder.clone()..).next().filter(|(key, _)| key.starts_with(&folder));
        match left {
            Some((key, _)) if !self.sizes.contains_key(&base) && !self.condemned.contains(key) => {
                Err(RepoError::not_found(&base))
            }
            _ => Ok(()),
        }
    }

    /// The index before this one, if it is there, is the one that this one names.
    async fn is_successor(&self, key: &str, segment: &Segment) -> Result<(), RepoError> {
        let before =
            keys::segment_index(&segment.shard, &segment.incarnation, segment.sequence.wrapping_sub(1));
        if !self.sizes.contains_key(&before) {
            return Ok(());
        }
        let found = self.objects.get(&before).await?.map(|body| Digest::of(&body));
        if found.is_none() || found == segment.predecessor {
            return Ok(());
        }
        Err(RepoError::damaged(&before, format!("it is not the index that `{key}` names as its predecessor")))
    }

    async fn document(&mut self, key: &str) -> Result<u64, RepoError> {
        let (named, bytes) = self.named(key).await?;
        for object in &named {
            match self.sizes.get(&object.key) {
                None => return Err(RepoError::not_found(&object.key)),
                Some(size) if *size != object.bytes => {
                    let what = format!("it has {size} bytes, and `{key}` says {}", object.bytes);
                    return Err(RepoError::damaged(&object.key, what));
                }
                Some(_) => {}
            }
        }
        self.owner = Some((key.to_owned(), named));
        Ok(bytes)
    }

    async fn data(&mut self, key: &str, owner: &str) -> Result<u64, RepoError> {
        if self.owner.as_ref().is_none_or(|(known, _)| known != owner) {
            match self.named(owner).await {
                Ok((named, _)) => self.owner = Some((owner.to_owned(), named)),
                // Said when that document's turn comes.
                Err(error) if error.is_harm() => return Ok(0),
                Err(error) => return Err(error),
            }
        }
        let named = self.owner.iter().flat_map(|(_, named)| named);
        let Some(object) = named.into_iter().find(|object| object.key == key) else { return Ok(0) };
        let (mut hasher, mut offset) = (blake3::Hasher::new(), 0);
        while offset < object.bytes {
            let bytes = self.objects.get_range(key, offset, WINDOW_BYTES.min(object.bytes - offset)).await?;
            hasher.update(&bytes);
            offset += bytes.len() as u64;
        }
        let found = Digest(*hasher.finalize().as_bytes());
        if found == object.digest || self.erased.get(key) == Some(&found) {
            return Ok(object.bytes);
        }
        Err(RepoError::damaged(key, format!("its digest is not the one that `{owner}` says")))
    }
}

/// The document that names `key`, which is its own where it names others.
fn owner_of(key: &str, sizes: &BTreeMap<String, u64>) -> Option<String> {
    let name = key.rsplit('/').next()?;
    if let Some((folder, rest)) = key.split_once("/snapshots/") {
        let (snapshot, _) = rest.split_once('/')?;
        let root = format!("{folder}/snapshots/{snapshot}/{}", keys::ROOT);
        return sizes.contains_key(&root).then_some(root);
    }
    if let Some((folder, rest)) = key.split_once("/compacted/") {
        let Some(data) = rest.strip_prefix("data/") else { return Some(key.to_owned()) };
        let (level, rest) = data.split_once('/')?;
        let prefix = format!("{folder}/compacted/{level}/{}-", rest.get(..20)?);
        let root = sizes.range(prefix.clone()..).next().filter(|(root, _)| root.starts_with(&prefix));
        return root.map(|(root, _)| root.clone());
    }
    if let Some((folder, _)) = key.split_once("/log/") {
        let index = format!("{folder}/log/{}.json.zst", name.get(..20)?);
        return sizes.contains_key(&index).then_some(index);
    }
    None
}

//! Sites that are forgotten: notes, receipts, and what readers do not see any more.
//!
//! # Invariants
//! - The note comes first: from then on no catalog has what the note covers, and compaction leaves it out.
//! - Chunks are overwritten in place by zstd skippable frames of the same length, so that offsets, the other chunks' digests and the
//!   chain of indexes stay what they were. The receipt has the new digests of the objects, which [`crate::check`] accepts.
//! - Everything can be done again: ended anywhere, it goes on under the same note.
//!
//! # Errors
//! What the object store answers; damaged or newer documents, since what a damaged one names cannot be told.

mod erase;
mod find;

use std::collections::{BTreeMap, BTreeSet};

use muster_types::catalog::Catalog;
use muster_types::forget::{ForgetReceipt, Forgetting};
use muster_types::{Digest, Incarnation, ShardName, SiteId};

use crate::document::{from_json, from_json_zstd, to_json, to_json_zstd};
use crate::error::RepoError;
use crate::keys;
use crate::objects::Creation;
use crate::repository::Repository;

pub use erase::{Erased, erase};
pub use find::{Found, find};

/// All that is, or is being, forgotten.
#[derive(Clone, Debug, Default)]
pub struct Forgotten {
    notes: Vec<Forgetting>,
    /// Keys of the notes that were read.
    read: BTreeSet<String>,
}

impl Forgotten {
    /// Reads the notes.
    ///
    /// # Errors
    /// See the module.
    pub async fn read(repository: &Repository) -> Result<Self, RepoError> {
        let mut forgotten = Self::default();
        match forgotten.read_on(repository).await?.into_iter().next() {
            Some(harmed) => Err(harmed),
            None => Ok(forgotten),
        }
    }

    /// Reads the notes that are new; those that are damaged.
    ///
    /// # Errors
    /// What the object store answers; newer documents.
    pub(crate) async fn read_on(&mut self, repository: &Repository) -> Result<Vec<RepoError>, RepoError> {
        let mut harmed = Vec::new();
        for entry in repository.objects().list(keys::FORGETTINGS, None).await? {
            if self.read.contains(&entry.key) {
                continue;
            }
            let Some(body) = repository.objects().get(&entry.key).await? else { continue };
            match from_json(&entry.key, &body) {
                Ok(note) => {
                    self.notes.push(note);
                    self.read.insert(entry.key);
                }
                Err(error) if error.is_harm() => harmed.push(error),
                Err(error) => return Err(error),
            }
        }
        Ok(harmed)
    }

    /// The notes of a site.
    pub fn of<'a>(&'a self, site: &'a SiteId) -> impl Iterator<Item = &'a Forgetting> + 'a {
        self.notes.iter().filter(move |note| note.site == *site)
    }

    /// All notes.
    pub fn all(&self) -> impl Iterator<Item = &Forgetting> {
        self.notes.iter()
    }

    /// The sites of which nothing up to segment `last` of a history is read any more.
    pub(crate) fn sites_upto(
        &self,
        shard: &ShardName,
        incarnation: &Incarnation,
        last: u64,
    ) -> BTreeSet<SiteId> {
        let covers = |note: &&Forgetting| {
            let mut histories = note.histories.iter();
            histories.any(|history| {
                history.shard == *shard && history.incarnation == *incarnation && last <= history.sequence
            })
        };
        self.notes.iter().filter(covers).map(|note| note.site.clone()).collect()
    }

    /// Takes out of a catalog what is forgotten.
    pub(crate) fn hide(&self, catalog: &mut Catalog) {
        for note in &self.notes {
            let Some(site) = catalog.sites.get_mut(&note.site) else { continue };
            for trace in &mut site.traces {
                let histories = catalog.shards.get(&trace.shard).map(|shard| &shard.incarnations);
                let Some(history) = histories.and_then(|all| all.get(trace.incarnation as usize)) else {
                    continue;
                };
                let covers = |covered: &&muster_types::forget::ForgottenHistory| {
                    covered.shard == trace.shard && covered.incarnation == history.incarnation
                };
                let Some(covered) = note.histories.iter().find(covers) else { continue };
                let position = |number: u32| {
                    history.snapshots.get(number as usize).map(|snapshot| snapshot.boundary.position)
                };
                trace.snapshots.retain(|number, _| position(*number) > Some(covered.position));
                let sequence =
                    |number: u32| history.segments.get(number as usize).map(|segment| segment.sequence);
                trace.segments.retain(|number, _| sequence(*number) > Some(covered.sequence));
            }
            site.traces.retain(|trace| !trace.snapshots.is_empty() || !trace.segments.is_empty());
            if site.traces.is_empty() {
                catalog.sites.remove(&note.site);
            }
        }
    }
}

/// Notes that a site is being forgotten. The note that was there of the same name counts.
///
/// # Errors
/// See the module.
pub async fn begin(repository: &Repository, note: &Forgetting) -> Result<Forgetting, RepoError> {
    let key = keys::forgetting(&note.name);
    match repository.objects().create(&key, to_json(note)?).await? {
        Creation::Mine => Ok(note.clone()),
        Creation::Other(theirs) => from_json(&key, &theirs),
    }
}

/// Writes the receipt. One that is there stays, and is returned.
///
/// # Errors
/// See the module.
pub async fn finish(repository: &Repository, receipt: &ForgetReceipt) -> Result<ForgetReceipt, RepoError> {
    let key = keys::forget_receipt(&receipt.forgetting.name);
    match repository.objects().create(&key, to_json_zstd(receipt)?).await? {
        Creation::Mine => Ok(receipt.clone()),
        Creation::Other(theirs) => from_json_zstd(&key, &theirs),
    }
}

/// All receipts, oldest first.
///
/// # Errors
/// See the module.
pub async fn receipts(repository: &Repository) -> Result<Vec<ForgetReceipt>, RepoError> {
    let mut receipts = Vec::new();
    for entry in repository.objects().list(keys::FORGET_RECEIPTS, None).await? {
        if let Some(body) = repository.objects().get(&entry.key).await? {
            receipts.push(from_json_zstd(&entry.key, &body)?);
        }
    }
    Ok(receipts)
}

/// The digests that objects have since rows in them were overwritten, by key.
///
/// # Errors
/// See the module.
pub async fn digests(repository: &Repository) -> Result<BTreeMap<String, Digest>, RepoError> {
    let receipts = receipts(repository).await?;
    let rewritten = receipts.into_iter().flat_map(|receipt| receipt.rewritten);
    Ok(rewritten.map(|object| (object.key, object.after)).collect())
}

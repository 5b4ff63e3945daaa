//! Where the rows of a site lie: in all snapshots, segments and compacted segments, whether readers use them or not.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use muster_types::SiteId;
use muster_types::compacted::{CompactedPage, CompactedRoot, Run};
use muster_types::forget::{Forgetting, ForgottenHistory};
use muster_types::segment::Segment;
use muster_types::snapshot::{Chunk, ManifestPage, ObjectInfo, PageRef, SnapshotRoot};
use serde::de::DeserializeOwned;

use crate::document::from_json_zstd;
use crate::error::RepoError;
use crate::keys;
use crate::offload::blocking;
use crate::repository::Repository;

/// What the repository has of a site.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Chunks that hold rows of it, by key of the object.
    pub chunks: BTreeMap<String, (ObjectInfo, Vec<Chunk>)>,
    /// Documents that name it, by sort.
    pub documents: BTreeMap<String, u64>,
    /// Data that no document names.
    pub unnamed: Vec<String>,
}

/// Finds what `note` covers.
///
/// # Errors
/// See [`crate::forget`].
pub async fn find(repository: &Repository, note: &Forgetting) -> Result<Found, RepoError> {
    let mut finder = Finder { repository, site: &note.site, found: Found::default(), named: BTreeSet::new() };
    for history in &note.histories {
        finder.snapshots(history).await?;
        finder.compacted(history).await?;
        finder.log(history).await?;
    }
    Ok(finder.found)
}

struct Finder<'a> {
    repository: &'a Repository,
    site: &'a SiteId,
    found: Found,
    /// Keys that documents of the history at hand name.
    named: BTreeSet<String>,
}

impl Finder<'_> {
    async fn read<T: DeserializeOwned + Send + 'static>(&self, key: &str) -> Result<T, RepoError> {
        let body: Bytes =
            self.repository.objects().get(key).await?.ok_or_else(|| RepoError::not_found(key))?;
        let name = key.to_owned();
        blocking(move || from_json_zstd(&name, &body)).await
    }

    async fn keys(&self, folder: &str) -> Result<Vec<String>, RepoError> {
        let entries = self.repository.objects().list(folder, None).await?;
        Ok(entries.into_iter().map(|entry| entry.key).collect())
    }

    fn add(&mut self, object: &ObjectInfo, chunks: &[Chunk]) {
        let new = || (object.clone(), Vec::new());
        let entry = self.found.chunks.entry(object.key.clone()).or_insert_with(new);
        entry.1.extend(chunks.iter().filter(|chunk| chunk.bytes > 0).cloned());
    }

    fn names(&mut self, sort: &str) {
        *self.found.documents.entry(sort.to_owned()).or_default() += 1;
    }

    fn wants(&self, page: &PageRef) -> bool {
        page.first <= *self.site && *self.site <= page.last
    }

    /// Objects of `keys` that nothing names are noted, and what was named is cleared.
    fn end(&mut self, keys: impl Iterator<Item = String>) {
        let named = std::mem::take(&mut self.named);
        self.found.unnamed.extend(keys.filter(|key| !named.contains(key)));
    }

    async fn snapshots(&mut self, history: &ForgottenHistory) -> Result<(), RepoError> {
        let keys = self.keys(&keys::snapshots(&history.shard, &history.incarnation)).await?;
        for key in keys.iter().filter(|key| key.ends_with(keys::ROOT)) {
            let root: SnapshotRoot = self.read(key).await?;
            self.named.insert(key.clone());
            let objects = root.packs.iter().chain(root.pages.iter().map(|page| &page.object));
            self.named.extend(objects.map(|object| object.key.clone()));
            if root.boundary.position > history.position {
                continue;
            }
            for page in root.pages.iter().filter(|page| self.wants(page)).cloned().collect::<Vec<_>>() {
                let found: ManifestPage = self.read(&page.object.key).await?;
                let Some(slices) = found.sites.get(self.site) else { continue };
                self.names("pages of snapshots");
                for slice in slices {
                    let pack = root.packs.get(slice.pack as usize).ok_or_else(|| lacks(key))?;
                    self.add(pack, &slice.chunks);
                }
            }
        }
        self.end(keys.into_iter());
        Ok(())
    }

    async fn compacted(&mut self, history: &ForgottenHistory) -> Result<(), RepoError> {
        let folder = keys::compacted(&history.shard, &history.incarnation);
        let keys = self.keys(&folder).await?;
        let is_root = |key: &&String| key.starts_with(&format!("{folder}level-"));
        for key in keys.iter().filter(is_root) {
            let root: CompactedRoot = self.read(key).await?;
            self.named.insert(key.clone());
            let pages = root.pages.iter().map(|page| &page.object).chain(&root.unowned);
            self.named.extend(root.packs.iter().chain(pages).map(|object| object.key.clone()));
            if root.first > history.sequence {
                continue;
            }
            let upto = history.sequence - root.first;
            for page in root.pages.iter().filter(|page| self.wants(page)).cloned().collect::<Vec<_>>() {
                let found: CompactedPage = self.read(&page.object.key).await?;
                let Some(runs) = found.sites.get(self.site) else { continue };
                self.names("pages of compacted segments");
                let before = |run: &&Run| run.parts.iter().all(|part| u64::from(part.segment) <= upto);
                for run in runs.iter().filter(before) {
                    let pack = root.packs.get(run.pack as usize).ok_or_else(|| lacks(key))?;
                    self.add(pack, &run.chunks);
                }
            }
        }
        self.end(keys.into_iter());
        Ok(())
    }

    async fn log(&mut self, history: &ForgottenHistory) -> Result<(), RepoError> {
        let folder = keys::log(&history.shard, &history.incarnation);
        let keys = self.keys(&folder).await?;
        let mut within = Vec::new();
        for key in keys {
            let number: Option<u64> = key
                .strip_prefix(&folder)
                .and_then(|name| name.get(..20))
                .and_then(|digits| digits.parse().ok());
            if number.is_some_and(|number| number <= history.sequence) {
                within.push(key);
            }
        }
        for key in within.iter().filter(|key| keys::index_sequence(&folder, key).is_some()) {
            let segment: Segment = self.read(key).await?;
            self.named.insert(key.clone());
            self.named.extend(segment.data.iter().map(|data| data.key.clone()));
            let Some(frames) = segment.sites.get(self.site) else { continue };
            self.names("indexes of segments");
            let data = segment.data.as_ref().ok_or_else(|| lacks(key))?;
            // Data under a covered segment may have been pruned, and its index not yet.
            if self.repository.objects().size(&data.key).await?.is_some() {
                frames.iter().for_each(|frame| self.add(data, &frame.chunks));
            }
        }
        self.end(within.into_iter());
        Ok(())
    }
}

fn lacks(key: &str) -> RepoError {
    RepoError::damaged(key, "it names data that it lacks")
}

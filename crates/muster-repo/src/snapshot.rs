//! Writing a snapshot: packs, then pages, then the root that makes them one.
//!
//! # Invariants
//! - Packs are site-major: rows without a site first, then by ascending site; a slice lies in one pack, whole.
//! - Memory is bounded by one chunk, one page of slices and the names of what is spooled.
//! - The root is written last and created if absent: a snapshot without a root is not one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use futures::{StreamExt, TryStreamExt};
use muster_rows::{Row, RowsDigest, encode_row};
use muster_types::format::FORMAT;
use muster_types::snapshot::{Beside, ManifestPage, PageRef, SnapshotRoot, TableSlice};
use muster_types::table::CapturedTable;
use muster_types::{Boundary, Digest, Incarnation, Position, ShardName, SiteId, SnapshotId};

use crate::chunk::{ChunkWriter, SpoolFile};
use crate::document::to_json_zstd;
use crate::error::RepoError;
use crate::keys;
use crate::objects::Creation;
use crate::repository::Repository;

/// Size at which the next slice goes into the next pack: a pack is uploaded and kept as one object.
const PACK_BYTES: u64 = 256 * 1024 * 1024;

/// Sites in a page: a page of 512 sites of ten tables is about 100 KiB, read in one request.
const PAGE_SITES: usize = 512;

/// Files uploaded at once.
const UPLOADS_AT_ONCE: usize = 4;

/// A new id for a snapshot of the state at about `position`.
pub fn new_snapshot_id(position: Position) -> SnapshotId {
    #[expect(clippy::expect_used, reason = "digits and hexadecimal digits are permitted")]
    SnapshotId::new(format!("{:020}-{:08x}", position.0, rand::random::<u32>())).expect("permitted")
}

struct Slice {
    site: Option<SiteId>,
    table: usize,
    digest: RowsDigest,
    chunks: Vec<muster_types::snapshot::Chunk>,
}

/// Writes one snapshot of a shard. Rows go to spool files in a folder of the caller, which must stay until
/// [`Self::finish`].
pub struct SnapshotWriter {
    dir: PathBuf,
    shard: ShardName,
    incarnation: Incarnation,
    snapshot: SnapshotId,
    session: BTreeMap<String, String>,
    tables: Vec<CapturedTable>,
    beside: Beside,
    folded_from: Option<SnapshotId>,
    pack: Option<ChunkWriter>,
    packs: Vec<SpoolFile>,
    slice: Option<Slice>,
    unowned: Vec<TableSlice>,
    page: BTreeMap<SiteId, Vec<TableSlice>>,
    pages: Vec<(PageRef, PathBuf)>,
    line: Vec<u8>,
    rows: u64,
}

impl SnapshotWriter {
    /// Starts a snapshot that spools into the empty folder `dir`.
    pub fn new(
        dir: &Path,
        shard: ShardName,
        incarnation: Incarnation,
        snapshot: SnapshotId,
        session: BTreeMap<String, String>,
    ) -> Self {
        Self {
            dir: dir.to_owned(),
            shard,
            incarnation,
            snapshot,
            session,
            tables: Vec::new(),
            beside: Beside::default(),
            folded_from: None,
            pack: None,
            packs: Vec::new(),
            slice: None,
            unowned: Vec::new(),
            page: BTreeMap::new(),
            pages: Vec::new(),
            line: Vec::new(),
            rows: 0,
        }
    }

    /// The tables; rows refer to them by index. Before the first row.
    pub fn tables(&mut self, tables: &[CapturedTable]) {
        self.tables = tables.to_vec();
    }

    /// What stands beside the tables.
    pub fn beside(&mut self, beside: &Beside) {
        self.beside = beside.clone();
    }

    /// Its rows are folded from `snapshot` and the log behind it.
    pub fn folded_from(&mut self, snapshot: SnapshotId) {
        self.folded_from = Some(snapshot);
    }

    /// Rows so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// One row. Rows without a site come first, then sites ascend; rows of one (site, table) come together.
    ///
    /// # Errors
    /// Rows out of order, an unknown table, a full or failing disk.
    pub fn row(&mut self, site: Option<&SiteId>, table: usize, row: &Row) -> Result<(), RepoError> {
        let same = |slice: &Slice| slice.site.as_ref() == site && slice.table == table;
        if !self.slice.as_ref().is_some_and(same) {
            self.begin_slice(site, table)?;
        }
        self.line.clear();
        encode_row(row, &mut self.line);
        let (Some(slice), Some(pack)) = (&mut self.slice, &mut self.pack) else {
            return Err(RepoError::misuse("a row without a slice"));
        };
        slice.chunks.extend(pack.line(&self.line)?);
        slice.digest.add(&self.tables[table].def.name, row);
        self.rows += 1;
        Ok(())
    }

    fn begin_slice(&mut self, site: Option<&SiteId>, table: usize) -> Result<(), RepoError> {
        self.end_slice()?;
        self.check_order(site, table)?;
        if self.pack.as_ref().is_some_and(|pack| pack.bytes() >= PACK_BYTES) {
            self.end_pack()?;
        }
        if self.pack.is_none() {
            self.pack = Some(ChunkWriter::create(self.dir.join(keys::pack_name(self.packs.len())))?);
        }
        let digest = RowsDigest::new();
        self.slice = Some(Slice { site: site.cloned(), table, digest, chunks: Vec::new() });
        Ok(())
    }

    fn check_order(&mut self, site: Option<&SiteId>, table: usize) -> Result<(), RepoError> {
        if table >= self.tables.len() {
            return Err(RepoError::misuse(format!(
                "a snapshot row of table number {table}, which is unknown"
            )));
        }
        let last = self.page.last_key_value().map(|(site, _)| site);
        let last = last.or_else(|| self.pages.last().map(|(page, _)| &page.last));
        if site < last {
            return Err(RepoError::misuse(format!(
                "snapshot rows of {site:?} come behind those of {last:?}"
            )));
        }
        let slices = site.map_or(Some(&self.unowned), |site| self.page.get(site));
        if slices.is_some_and(|slices| slices.iter().any(|slice| slice.table as usize == table)) {
            return Err(RepoError::misuse(format!(
                "snapshot rows of {site:?}, table {table} come in two parts"
            )));
        }
        // A page ends between sites only.
        let new_site = site.is_some_and(|site| !self.page.contains_key(site));
        if new_site && self.page.len() >= PAGE_SITES { self.end_page() } else { Ok(()) }
    }

    fn end_slice(&mut self) -> Result<(), RepoError> {
        let Some(mut slice) = self.slice.take() else { return Ok(()) };
        if let Some(pack) = &mut self.pack {
            slice.chunks.extend(pack.end()?);
        }
        let table = u32::try_from(slice.table).map_err(|_| RepoError::misuse("more than 2^32 tables"))?;
        let pack = u32::try_from(self.packs.len()).map_err(|_| RepoError::misuse("more than 2^32 packs"))?;
        let done = TableSlice { table, pack, chunks: slice.chunks, rows_digest: slice.digest.finish() };
        match slice.site {
            Some(site) => self.page.entry(site).or_default().push(done),
            None => self.unowned.push(done),
        }
        Ok(())
    }

    fn end_pack(&mut self) -> Result<(), RepoError> {
        if let Some(pack) = self.pack.take() {
            self.packs.push(pack.finish()?);
        }
        Ok(())
    }

    fn end_page(&mut self) -> Result<(), RepoError> {
        let sites = std::mem::take(&mut self.page);
        let (Some(first), Some(last)) = (sites.first_key_value(), sites.last_key_value()) else {
            return Ok(());
        };
        let (first, last) = (first.0.clone(), last.0.clone());
        let count = sites.len() as u64;
        let body = to_json_zstd(&ManifestPage { format: FORMAT, sites })?;
        let name = keys::page_name(self.pages.len());
        let path = self.dir.join(&name);
        std::fs::write(&path, &body).map_err(|error| RepoError::local(&path, "write", &error))?;
        let file = SpoolFile { path, bytes: body.len() as u64, digest: Digest::of(&body) };
        let object = file.object(self.folder() + &name);
        self.pages.push((PageRef { first, last, sites: count, object }, file.path));
        Ok(())
    }

    fn folder(&self) -> String {
        keys::snapshot(&self.shard, &self.incarnation, &self.snapshot)
    }

    /// Ends the files: what is left is to upload them. Blocks; call it where rows were written.
    ///
    /// # Errors
    /// A full or failing disk.
    pub fn seal(&mut self) -> Result<(), RepoError> {
        self.end_slice()?;
        self.end_pack()?;
        self.end_page()
    }

    /// Uploads everything and writes the root: the snapshot holds the state at `boundary`.
    ///
    /// # Errors
    /// What disk and object store answer; the snapshot does not exist then.
    pub async fn finish(
        mut self,
        repository: &Repository,
        boundary: Boundary,
    ) -> Result<SnapshotRoot, RepoError> {
        self.seal()?;
        let folder = self.folder();
        let packs: Vec<_> = self
            .packs
            .iter()
            .enumerate()
            .map(|(i, pack)| pack.object(folder.clone() + &keys::pack_name(i)))
            .collect();
        let pack_files =
            packs.iter().map(|pack| pack.key.as_str()).zip(self.packs.iter().map(SpoolFile::path));
        let page_files = self.pages.iter().map(|(page, path)| (page.object.key.as_str(), path.as_path()));
        let objects = repository.objects();
        futures::stream::iter(pack_files.chain(page_files).collect::<Vec<_>>())
            .map(|(key, path)| objects.put_file(key, path))
            .buffer_unordered(UPLOADS_AT_ONCE)
            .try_collect::<()>()
            .await?;
        let root = SnapshotRoot {
            format: FORMAT,
            shard: self.shard,
            incarnation: self.incarnation,
            snapshot: self.snapshot,
            boundary,
            session: self.session,
            tables: self.tables,
            packs,
            pages: self.pages.into_iter().map(|(page, _)| page).collect(),
            unowned: self.unowned,
            beside: self.beside,
            folded_from: self.folded_from,
        };
        let key = folder + keys::ROOT;
        match objects.create(&key, to_json_zstd(&root)?).await? {
            Creation::Mine => Ok(root),
            Creation::Other(_) => Err(RepoError::misuse(format!("another writer made snapshot `{key}`"))),
        }
    }
}

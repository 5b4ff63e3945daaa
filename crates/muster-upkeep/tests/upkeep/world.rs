//! A shard whose rows at every position are known, written into a repository in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_plan::index::CatalogIndex;
use muster_plan::inputs::store_inputs_indexed;
use muster_plan::recovery::{RecoveryPoint, Target, recover};
use muster_repo::catalog::{CatalogQuery, Sites};
use muster_repo::{
    Chain, MemoryObjects, Objects, RangeLimits, RangeReader, Repository, SegmentSpool, SnapshotWriter,
};
use muster_rows::{Change, Class, Op, Row, RowBuilder, RowsDigest};
use muster_types::catalog::Catalog;
use muster_types::segment::{ChangeStamp, Commit, Mark, TableEvent, TableEventKind};
use muster_types::snapshot::ObjectInfo;
use muster_types::table::{CapturedTable, ColumnDef, Owner, TableDef};
use muster_types::{
    Boundary, ChangeKey, Digest, Epoch, Incarnation, Kind, Position, RunId, ShardName, SiteId, SnapshotId,
    Timestamp,
};
use rand::{Rng, RngExt};

pub(crate) const SITES: u8 = 4;
const TABLES: usize = 2;

/// (site, table, key) to text.
pub(crate) type Rows = BTreeMap<(u8, usize, u8), String>;

/// By site and table: rows and their digest.
pub(crate) type Slices = BTreeMap<(SiteId, String), (u64, Digest)>;

struct Pending {
    site: u8,
    table: usize,
    mark: Option<Mark>,
    change: Change,
}

/// The shard, its past and its repository.
pub(crate) struct World {
    pub(crate) memory: Arc<MemoryObjects>,
    pub(crate) repository: Repository,
    pub(crate) shard: ShardName,
    pub(crate) incarnation: Incarnation,
    pub(crate) chain: Chain,
    /// The log tells transactions apart.
    commits: bool,
    /// After each position.
    past: BTreeMap<u64, Rows>,
    pending: Vec<Pending>,
    pending_commits: Vec<Commit>,
    pending_events: Vec<TableEvent>,
    position: u64,
    pub(crate) now: Timestamp,
    polled: Boundary,
    /// Recovery points of what was polled, in order of the log.
    points: Vec<Boundary>,
    /// Of segments.
    ends: Vec<Boundary>,
    /// Of segments without commits of their own.
    coarse: Vec<(Position, Position)>,
    /// Of snapshots, in order.
    pub(crate) snapshots: Vec<(SnapshotId, Boundary)>,
    mark: u32,
    dir: tempfile::TempDir,
}

pub(crate) fn site(number: u8) -> SiteId {
    SiteId::new(format!("s-{number:03}")).unwrap()
}

pub(crate) fn kind() -> Kind {
    "product:wiki".parse().unwrap()
}

fn tables() -> Vec<CapturedTable> {
    let column = |name: &str| ColumnDef {
        name: name.to_owned(),
        declared_type: String::new(),
        not_null: false,
        default_sql: None,
        generated: false,
    };
    let table = |number: usize| CapturedTable {
        kind: kind(),
        owner: Owner::Tenant { column: "site".to_owned() },
        def: TableDef {
            name: format!("table_{number}"),
            columns: vec![column("site"), column("id"), column("body")],
            key: vec!["site".to_owned(), "id".to_owned()],
            unique: Vec::new(),
            foreign_keys: Vec::new(),
            create_sql: Vec::new(),
        },
    };
    (0..TABLES).map(table).collect()
}

fn row(site: u8, key: u8, text: &str) -> Row {
    let mut builder = RowBuilder::new();
    let id = self::site(site);
    builder.push(Class::Text, id.as_str().as_bytes());
    builder.push(Class::Integer, key.to_string().as_bytes());
    builder.push(Class::Text, text.as_bytes()).take()
}

impl World {
    pub(crate) async fn new(commits: bool) -> Self {
        let memory = Arc::new(MemoryObjects::new());
        let objects: Arc<dyn Objects> = Arc::<MemoryObjects>::clone(&memory);
        let now = Timestamp::EPOCH.plus_micros(1_000_000_000_000_000);
        let repository = Repository::create(objects, now).await.unwrap();
        let shard = ShardName::new("shard-1").unwrap();
        let begun = repository.begin_incarnation(&shard, now, "first", None).await.unwrap();
        let chain = Chain::open(&repository, &shard, &begun.incarnation).await.unwrap();
        let mut world = Self {
            memory,
            repository,
            shard,
            incarnation: begun.incarnation,
            chain,
            commits,
            past: BTreeMap::from([(0, Rows::new())]),
            pending: Vec::new(),
            pending_commits: Vec::new(),
            pending_events: Vec::new(),
            position: 0,
            now,
            polled: Boundary { position: Position(0), at: now },
            points: Vec::new(),
            ends: Vec::new(),
            coarse: Vec::new(),
            snapshots: Vec::new(),
            mark: 0,
            dir: tempfile::tempdir().unwrap(),
        };
        world.snapshot().await;
        // No commit takes its time before it.
        world.pass(1_000_000);
        world
    }

    /// Capture begins again: the head is the one that it left.
    pub(crate) async fn reopen(&mut self) {
        let chain = Chain::open(&self.repository, &self.shard, &self.incarnation).await.unwrap();
        assert_eq!(chain.head(), self.chain.head());
        let known = chain.head().map_or(1, |head| head.sequence.saturating_sub(1).max(1));
        let again = Chain::open_from(&self.repository, &self.shard, &self.incarnation, known).await.unwrap();
        assert_eq!(again.head(), chain.head());
        self.chain = again;
    }

    fn rows(&self) -> &Rows {
        self.past.last_key_value().unwrap().1
    }

    pub(crate) fn pass(&mut self, micros: i64) {
        self.now = self.now.plus_micros(micros);
    }

    /// A transaction of some changes; without commits each change has a position of its own.
    pub(crate) fn write(&mut self, rng: &mut impl Rng) {
        self.pass(rng.random_range(1..2_000_000));
        let mark = rng.random_ratio(1, 6).then(|| {
            self.mark = if rng.random_ratio(1, 3) { self.mark + 1 } else { self.mark };
            Mark {
                run: RunId::new(format!("run-{}", self.mark)).unwrap(),
                step: "publish/x".to_owned(),
                epoch: Epoch(1),
            }
        });
        let mut rows = self.rows().clone();
        let changes = if self.commits { rng.random_range(1..5) } else { 1 };
        self.position += if self.commits { rng.random_range(1..9) } else { 1 };
        let at = self.now.plus_micros(if self.commits { rng.random_range(-900_000..1) } else { 0 });
        for ordinal in 0..changes {
            let (site, table) = (rng.random_range(0..SITES), rng.random_range(0..TABLES));
            let (key, text) = (rng.random_range(0..12u8), format!("text\t{}", rng.random_range(0..1000)));
            let old = rows.get(&(site, table, key)).cloned();
            let op = match (old, rng.random_ratio(1, 3)) {
                (None, _) => Op::Insert { new: row(site, key, &text) },
                (Some(old), true) => Op::Delete { old: row(site, key, &old) },
                (Some(old), false) => Op::Update { old: row(site, key, &old), new: row(site, key, &text) },
            };
            match op {
                Op::Delete { .. } => drop(rows.remove(&(site, table, key))),
                _ => drop(rows.insert((site, table, key), text)),
            }
            let key = ChangeKey { position: Position(self.position), ordinal };
            let change = Change { stamp: ChangeStamp { key, at }, op };
            self.pending.push(Pending { site, table, mark: mark.clone(), change });
        }
        if self.commits {
            self.pending_commits.push(Commit { position: Position(self.position), at });
        }
        self.past.insert(self.position, rows);
    }

    /// All rows of a table go at once.
    pub(crate) fn truncate(&mut self, rng: &mut impl Rng) {
        self.pass(1_000);
        self.position += 2;
        let table = rng.random_range(0..TABLES);
        let mut rows = self.rows().clone();
        rows.retain(|(_, of, _), _| *of != table);
        self.past.insert(self.position, rows);
        if self.commits {
            self.pending_commits.push(Commit { position: Position(self.position), at: self.now });
        }
        self.pending_events.push(TableEvent {
            table: tables()[table].def.name.clone(),
            kind: kind(),
            event: TableEventKind::Truncated,
            at: self.now,
            position: Some(Position(self.position - 1)),
            reason: "a test".to_owned(),
        });
    }

    /// Appends what came since the last poll; `reread` reads a table whole instead of its changes.
    pub(crate) async fn poll(&mut self, rng: &mut impl Rng, reread: bool) {
        self.pass(1);
        if self.commits {
            // Capture's own heartbeat.
            self.position += 1;
            self.pending_commits.push(Commit { position: Position(self.position), at: self.now });
            self.past.insert(self.position, self.rows().clone());
        }
        let boundary = Boundary { position: Position(self.position), at: self.now };
        let mut spool = SegmentSpool::new(&self.dir.path().join("segment"));
        let mut pending = std::mem::take(&mut self.pending);
        let commits = std::mem::take(&mut self.pending_commits);
        let events = std::mem::take(&mut self.pending_events);
        let table = (reread && events.is_empty()).then(|| rng.random_range(0..TABLES));
        pending.retain(|pending| Some(pending.table) != table);
        if !pending.is_empty() || table.is_some() || !events.is_empty() {
            for table in tables() {
                spool.table(&table);
            }
        }
        // Some groups come in two, whose keys overlap.
        let late: Vec<bool> = pending.iter().map(|_| rng.random_ratio(1, 4)).collect();
        for second in [false, true] {
            let group = pending.iter().zip(&late).filter(|(_, late)| **late == second).map(|(p, _)| p);
            let mut group: Vec<&Pending> = group.collect();
            group.sort_by_key(|p| (p.site, p.table, p.mark.clone(), p.change.stamp.key));
            for p in group {
                spool.change(Some(&site(p.site)), p.table, p.mark.as_ref(), &p.change).unwrap();
            }
        }
        if let Some(table) = table {
            self.reread(&mut spool, table, boundary);
        }
        if table.is_none() {
            let points = commits.iter().map(|commit| Boundary { position: commit.position, at: commit.at });
            self.points.extend(points);
        } else {
            self.coarse.push((self.polled.position, boundary.position));
        }
        self.points.push(boundary);
        self.ends.push(boundary);
        events.into_iter().for_each(|event| spool.table_event(event));
        commits.into_iter().for_each(|commit| spool.commit(commit));
        let clock = (rng.random_range(-5..5), 10);
        let spooled = spool.finish().unwrap();
        self.chain.append(spooled, self.polled, boundary, clock, "writer").await.unwrap();
        self.polled = boundary;
    }

    fn reread(&self, spool: &mut SegmentSpool, table: usize, boundary: Boundary) {
        for ((owner, of, key), text) in self.rows().iter().filter(|((_, of, _), _)| *of == table) {
            spool.reread_row(Some(&site(*owner)), *of, &row(*owner, *key, text)).unwrap();
        }
        spool.table_event(TableEvent {
            table: tables()[table].def.name.clone(),
            kind: kind(),
            event: TableEventKind::Reread,
            at: boundary.at,
            position: None,
            reason: "a test".to_owned(),
        });
    }

    /// A snapshot of the present state; it may lie inside the segment to come.
    pub(crate) async fn snapshot(&mut self) {
        self.snapshot_of(|_| {}).await;
    }

    /// [`Self::snapshot`], of what `lie` makes of the state.
    pub(crate) async fn snapshot_of(&mut self, lie: impl FnOnce(&mut Rows)) {
        self.pass(1);
        if self.commits && self.position % 2 == 1 {
            // Between two commits.
            self.position += 1;
        }
        let boundary = match self.commits {
            true => Boundary { position: Position(self.position), at: self.now },
            false => Boundary { at: self.polled.at, ..self.polled },
        };
        let dir = tempfile::tempdir().unwrap();
        let id = muster_repo::snapshot::new_snapshot_id(boundary.position);
        let mut writer = SnapshotWriter::new(
            dir.path(),
            self.shard.clone(),
            self.incarnation.clone(),
            id.clone(),
            BTreeMap::new(),
        );
        writer.tables(&tables());
        let mut rows = self.at(boundary.position.0).clone();
        lie(&mut rows);
        for ((owner, table, key), text) in &rows {
            writer.row(Some(&site(*owner)), *table, &row(*owner, *key, text)).unwrap();
        }
        self.snapshots.push((id.clone(), boundary));
        writer.finish(&self.repository, boundary).await.unwrap();
    }

    /// A snapshot that was made otherwise.
    pub(crate) fn has_snapshot(&mut self, id: SnapshotId, boundary: Boundary) {
        self.snapshots.push((id, boundary));
        self.snapshots.sort_by_key(|(_, boundary)| *boundary);
    }

    /// Rows and digest of each site and table after a position.
    pub(crate) fn slices_at(&self, position: Position) -> Slices {
        let mut digests: BTreeMap<(SiteId, String), (u64, RowsDigest)> = BTreeMap::new();
        for ((owner, table, key), text) in self.at(position.0) {
            let name = tables()[*table].def.name.clone();
            let slice = digests.entry((site(*owner), name.clone())).or_insert((0, RowsDigest::new()));
            slice.0 += 1;
            slice.1.add(&name, &row(*owner, *key, text));
        }
        digests.into_iter().map(|(key, (rows, digest))| (key, (rows, digest.finish()))).collect()
    }

    /// What a snapshot in the repository holds.
    pub(crate) async fn slices_of(&self, id: &SnapshotId) -> Slices {
        let catalog = self.catalog().await;
        let history = &catalog.shards[&self.shard].incarnations[0];
        let number = history.snapshots.iter().position(|snapshot| &snapshot.snapshot == id).unwrap();
        let mut slices = Slices::new();
        for (site, held) in &catalog.sites {
            for slice in
                held.traces.iter().filter_map(|trace| trace.snapshots.get(&(number as u32))).flatten()
            {
                let name = history.snapshots[number].tables[slice.table as usize].def.name.clone();
                let rows = slice.chunks.iter().map(|chunk| chunk.rows).sum();
                assert!(slices.insert((site.clone(), name), (rows, slice.rows_digest)).is_none());
            }
        }
        slices
    }

    /// Where a restore to `at` must come to: the longest prefix of the log without a later time.
    pub(crate) fn expected(&self, at: Timestamp) -> Option<Position> {
        // Snapshots are points of their own where the log has not come yet, or tells no commits.
        let alone = |boundary: &&Boundary| {
            let coarse = self.coarse.iter().any(|(after, end)| (after..=end).contains(&&boundary.position));
            let before = self.ends.first().is_none_or(|end| boundary.position.0 == 0 && end.at > boundary.at);
            coarse || before || boundary.position > self.polled.position
        };
        let alone = self.snapshots.iter().map(|(_, boundary)| boundary).filter(alone);
        let mut all: Vec<Boundary> = self.points.iter().chain(alone).copied().collect();
        all.sort();
        let mut latest = all.first()?.at;
        for point in all.iter_mut().filter(|_| self.commits) {
            latest = latest.max(point.at);
            point.at = latest;
        }
        all.iter().take_while(|point| point.at <= at).last().map(|point| point.position)
    }

    /// The position that segment `sequence` ends at.
    pub(crate) fn ends(&self) -> &[Boundary] {
        &self.ends
    }

    fn at(&self, position: u64) -> &Rows {
        self.past.range(..=position).next_back().unwrap().1
    }

    pub(crate) async fn catalog(&self) -> Catalog {
        self.catalog_for((0..SITES).map(site).collect()).await
    }

    pub(crate) async fn catalog_of(&self, number: u8) -> Catalog {
        self.catalog_for(BTreeSet::from([site(number)])).await
    }

    async fn catalog_for(&self, sites: BTreeSet<SiteId>) -> Catalog {
        let query = CatalogQuery { sites: Sites::Some(sites), shards: None };
        muster_repo::catalog::read(&self.repository, &query, self.now).await.unwrap()
    }

    /// What a restore of a site to `at` reads.
    pub(crate) fn objects_at(&self, catalog: &Catalog, site: u8, at: Timestamp) -> Vec<ObjectInfo> {
        let index = CatalogIndex::new(catalog);
        let point = recover(index.shard(&self.shard).unwrap(), Target::At(at)).unwrap();
        let id = self::site(site);
        let (incarnation, boundary) = (&point.incarnation, point.boundary);
        let inputs = store_inputs_indexed(&index, &id, &kind(), &self.shard, incarnation, boundary).unwrap();
        inputs.objects
    }

    /// Restores a site to `at` and compares it with the truth; where it came to, or why there is nothing.
    pub(crate) async fn judge(&self, catalog: &Catalog, site: u8, at: Timestamp) -> Result<Judged, String> {
        let index = CatalogIndex::new(catalog);
        let shard = index.shard(&self.shard).ok_or("no shard")?;
        let point = recover(shard, Target::At(at)).map_err(|error| error.to_string())?;
        let id = self::site(site);
        let inputs =
            store_inputs_indexed(&index, &id, &kind(), &self.shard, &point.incarnation, point.boundary)
                .map_err(|error| error.to_string())?;
        let objects: Arc<dyn Objects> = Arc::<MemoryObjects>::clone(&self.memory);
        let mut found = Rows::new();
        for (input, table) in inputs.inputs.iter().zip(inputs.tables.iter()) {
            let ranges = Vec::new();
            let reader = RangeReader::new(Arc::clone(&objects), ranges, RangeLimits::default());
            let mut stream = muster_repo::rows::open(&reader, table, input, &inputs.objects, 1 << 20);
            while let Some(batch) = stream.next().await {
                for row in batch {
                    let (table, key, text) = parts(table, &row);
                    assert!(found.insert((site, table, key), text).is_none(), "a row twice");
                }
            }
            let done = stream.finish().await.map_err(|error| error.to_string())?;
            assert_eq!(done.repeats, 0);
        }
        let mut truth = self.at(point.boundary.position.0).clone();
        truth.retain(|(owner, _, _), _| *owner == site);
        assert_eq!(found, truth, "{id} at {at}: {point:?}");
        Ok(Judged { point, objects: inputs.objects.len() })
    }
}

/// What a restore came to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Judged {
    pub(crate) point: RecoveryPoint,
    pub(crate) objects: usize,
}

fn parts(table: &CapturedTable, row: &Row) -> (usize, u8, String) {
    let number = tables().iter().position(|known| known.def.name == table.def.name).unwrap();
    let fields: Vec<String> =
        row.fields().map(|field| String::from_utf8(field.bytes.to_vec()).unwrap()).collect();
    (number, fields[1].parse().unwrap(), fields[2].clone())
}

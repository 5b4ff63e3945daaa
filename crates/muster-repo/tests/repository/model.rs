//! A shard so simple that its rows at any position can be looked up, captured into a repository.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use muster_repo::catalog::{CatalogQuery, Sites};
use muster_repo::{Chain, MemoryObjects, Objects, Repository, SegmentSpool, SnapshotWriter};
use muster_rows::{Change, Class, Op, Row, RowBuilder, RowsDigest};
use muster_types::catalog::Catalog;
use muster_types::plan::{BaseInput, ChangesInput, TableInput};
use muster_types::segment::{ChangeStamp, FrameKind, Mark, TableEvent, TableEventKind};
use muster_types::snapshot::ObjectInfo;
use muster_types::table::{CapturedTable, ColumnDef, Owner, TableDef};
use muster_types::{
    Boundary, ChangeKey, Digest, Epoch, Incarnation, Position, RunId, ShardName, SiteId, Timestamp,
};

/// (site, table, key) to text.
pub(crate) type Rows = BTreeMap<(String, usize, u16), Option<String>>;

/// What a writer does; keys are per site and table.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) site: u8,
    pub(crate) table: usize,
    pub(crate) key: u16,
    /// The new text, or none to delete.
    pub(crate) text: Option<Option<String>>,
    /// Gives the row this key instead.
    pub(crate) new_key: u16,
    pub(crate) marked: bool,
}

pub(crate) const TABLES: usize = 2;

pub(crate) fn at(position: u64) -> Boundary {
    let at = Timestamp::EPOCH.plus_micros(i64::try_from(position).unwrap() * 1_000);
    Boundary { position: Position(position), at }
}

pub(crate) fn site(number: u8) -> SiteId {
    SiteId::new(format!("s-{number:03}")).unwrap()
}

pub(crate) fn shard() -> ShardName {
    ShardName::new("shard-1").unwrap()
}

pub(crate) fn tables() -> Vec<CapturedTable> {
    let column = |name: &str| ColumnDef {
        name: name.to_owned(),
        declared_type: String::new(),
        not_null: false,
        default_sql: None,
        generated: false,
    };
    let table = |number: usize| CapturedTable {
        kind: "product:wiki".parse().unwrap(),
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

pub(crate) fn row(site: &str, key: u16, text: Option<&str>) -> Row {
    let mut builder = RowBuilder::new();
    builder.push(Class::Text, site.as_bytes()).push(Class::Integer, key.to_string().as_bytes());
    match text {
        Some(text) => builder.push(Class::Text, text.as_bytes()),
        None => builder.push(Class::Null, b""),
    };
    builder.take()
}

fn mark() -> Mark {
    Mark { run: RunId::new("run-1").unwrap(), step: "publish/x".to_owned(), epoch: Epoch(1) }
}

/// A shard with its whole past.
pub(crate) struct Shard {
    /// Rows after each position.
    pub(crate) past: Vec<Rows>,
    changes: Vec<(u8, usize, bool, Change)>,
}

impl Shard {
    pub(crate) fn new() -> Self {
        Self { past: vec![Rows::new()], changes: Vec::new() }
    }

    pub(crate) fn position(&self) -> u64 {
        self.past.len() as u64 - 1
    }

    /// One write; none if it would do nothing or hit a key that is taken.
    pub(crate) fn write(&mut self, write: &Write) {
        let mut rows = self.past.last().unwrap().clone();
        let name = site(write.site).as_str().to_owned();
        let key = (name.clone(), write.table, write.key);
        let new_key = (name.clone(), write.table, write.new_key);
        let before = rows.get(&key).cloned();
        let op = match (before, &write.text) {
            (None, None) => return,
            (None, Some(text)) => {
                rows.insert(key, text.clone());
                Op::Insert { new: row(&name, write.key, text.as_deref()) }
            }
            (Some(old), None) => {
                rows.remove(&key);
                Op::Delete { old: row(&name, write.key, old.as_deref()) }
            }
            (Some(old), Some(text)) => {
                if key != new_key && rows.contains_key(&new_key) {
                    return;
                }
                rows.remove(&key);
                rows.insert(new_key, text.clone());
                Op::Update {
                    old: row(&name, write.key, old.as_deref()),
                    new: row(&name, write.new_key, text.as_deref()),
                }
            }
        };
        self.past.push(rows);
        let boundary = at(self.position());
        let key = ChangeKey { position: boundary.position, ordinal: 0 };
        let stamp = ChangeStamp { key, at: boundary.at };
        self.changes.push((write.site, write.table, write.marked, Change { stamp, op }));
    }

    /// Rows of one (site, table) at a position, in order of their debug text.
    pub(crate) fn truth(&self, site: &SiteId, table: usize, position: u64) -> Vec<Row> {
        let rows = &self.past[usize::try_from(position).unwrap()];
        let own = rows.iter().filter(|((owner, number, _), _)| owner == site.as_str() && *number == table);
        sorted(own.map(|((owner, _, key), text)| row(owner, *key, text.as_deref())).collect())
    }

    /// Changes with positions in `(after, upto]`, ascending.
    pub(crate) fn changes_between(&self, after: u64, upto: u64, marked_only: bool) -> Vec<Change> {
        let inside = |change: &&(u8, usize, bool, Change)| {
            let position = change.3.stamp.key.position.0;
            position > after && position <= upto && (change.2 || !marked_only)
        };
        self.changes.iter().filter(inside).map(|(_, _, _, change)| change.clone()).collect()
    }

    pub(crate) async fn snapshot(&self, repository: &Repository, incarnation: &Incarnation, position: u64) {
        let dir = tempfile::tempdir().unwrap();
        let id = muster_repo::snapshot::new_snapshot_id(Position(position));
        let mut writer = SnapshotWriter::new(dir.path(), shard(), incarnation.clone(), id, BTreeMap::new());
        writer.tables(&tables());
        for ((owner, table, key), text) in &self.past[usize::try_from(position).unwrap()] {
            let owner_id = SiteId::new(owner.clone()).unwrap();
            writer.row(Some(&owner_id), *table, &row(owner, *key, text.as_deref())).unwrap();
        }
        writer.finish(repository, at(position)).await.unwrap();
    }

    /// Spools the changes behind `after` up to `upto`; re-reads `reread` whole, if given.
    pub(crate) fn spool(
        &self,
        dir: &Path,
        after: u64,
        upto: u64,
        reread: Option<usize>,
    ) -> muster_repo::SpooledSegment {
        let mut spool = SegmentSpool::new(&dir.join(format!("segment-{after}")));
        for table in tables() {
            spool.table(&table);
        }
        let inside = |change: &&(u8, usize, bool, Change)| {
            let position = change.3.stamp.key.position.0;
            position > after && position <= upto && Some(change.1) != reread
        };
        let mut changes: Vec<_> = self.changes.iter().filter(inside).collect();
        changes.sort_by_key(|(site, table, marked, change)| (*site, *table, *marked, change.stamp.key));
        for (number, table, marked, change) in changes {
            let mark = marked.then(mark);
            spool.change(Some(&site(*number)), *table, mark.as_ref(), change).unwrap();
        }
        if let Some(table) = reread {
            let rows = self.past[usize::try_from(upto).unwrap()].iter();
            for ((owner, _, key), text) in rows.filter(|((_, number, _), _)| *number == table) {
                let owner_id = SiteId::new(owner.clone()).unwrap();
                spool.reread_row(Some(&owner_id), table, &row(owner, *key, text.as_deref())).unwrap();
            }
            spool.table_event(TableEvent {
                position: None,
                table: tables()[table].def.name.clone(),
                kind: tables()[table].kind.clone(),
                event: TableEventKind::Reread,
                at: at(upto).at,
                reason: "a test".to_owned(),
            });
        }
        spool.finish().unwrap()
    }

    /// Appends one segment for each range between `bounds`, behind the chain's head.
    pub(crate) async fn log(&self, chain: &mut Chain, bounds: &[u64], reread: Option<(u64, usize)>) {
        let dir = tempfile::tempdir().unwrap();
        let mut after = bounds[0];
        for &upto in bounds {
            let table = reread.filter(|&(bound, _)| bound == upto).map(|(_, table)| table);
            let spooled = self.spool(dir.path(), after, upto, table);
            chain.append(spooled, at(after), at(upto), (0, 10), "writer-1").await.unwrap();
            after = upto;
        }
    }
}

pub(crate) fn sorted(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort_by_key(|row| format!("{row:?}"));
    rows
}

pub(crate) fn digest_of(table: usize, rows: &[Row]) -> Digest {
    let mut digest = RowsDigest::new();
    rows.iter().for_each(|row| digest.add(&tables()[table].def.name, row));
    digest.finish()
}

pub(crate) async fn repository() -> (Arc<MemoryObjects>, Repository, Incarnation) {
    let objects = Arc::new(MemoryObjects::new());
    let as_objects: Arc<dyn Objects> = Arc::<MemoryObjects>::clone(&objects);
    let repository = Repository::create(as_objects, Timestamp::EPOCH).await.unwrap();
    let begun = repository.begin_incarnation(&shard(), Timestamp::EPOCH, "first", None).await.unwrap();
    (objects, repository, begun.incarnation)
}

pub(crate) async fn read_catalog(repository: &Repository, sites: &[SiteId]) -> Catalog {
    let sites = Sites::Some(sites.iter().cloned().collect::<BTreeSet<_>>());
    let query = CatalogQuery { sites, shards: None };
    muster_repo::catalog::read(repository, &query, Timestamp::EPOCH).await.unwrap()
}

/// What to read for (site, table) at the position `upto` of incarnation 0, starting from the last snapshot or
/// re-read at or before it, or from nothing. Segments around either are cut.
pub(crate) fn input(
    catalog: &Catalog,
    site: &SiteId,
    table: usize,
    upto: u64,
) -> (TableInput, Vec<ObjectInfo>) {
    let history = &catalog.shards[&shard()].incarnations[0];
    let mut objects: Vec<ObjectInfo> = Vec::new();
    let mut add = |object: &ObjectInfo| {
        objects.push(object.clone());
        u32::try_from(objects.len() - 1).unwrap()
    };
    let trace = catalog.sites.get(site).and_then(|history| history.traces.first());
    let mut base = None;
    let mut from = 0;
    for (number, snapshot) in history.snapshots.iter().enumerate() {
        if snapshot.boundary.position.0 > upto {
            continue;
        }
        from = snapshot.boundary.position.0;
        let slices = trace.and_then(|trace| trace.snapshots.get(&u32::try_from(number).unwrap()));
        let slice = slices.into_iter().flatten().find(|slice| slice.table as usize == table);
        base = slice.map(|slice| BaseInput {
            object: add(&snapshot.packs[slice.pack as usize]),
            chunks: slice.chunks.clone(),
            rows_digest: slice.rows_digest,
        });
    }
    let mut changes = Vec::new();
    for (number, segment) in history.segments.iter().enumerate() {
        if segment.boundary.position.0 <= from || segment.after.position.0 >= upto {
            continue;
        }
        let name = &tables()[table].def.name;
        let whole = segment.boundary.position.0 <= upto;
        if whole && segment.table_events.iter().any(|event| &event.table == name) {
            base = None;
            changes.clear();
        }
        let frames = trace.and_then(|trace| trace.segments.get(&u32::try_from(number).unwrap()));
        for frame in frames.into_iter().flatten().filter(|frame| frame.table as usize == table) {
            let object = add(segment.data.as_ref().unwrap());
            let chunks = frame.chunks.clone();
            match frame.kind {
                FrameKind::Changes => changes.push(ChangesInput {
                    object,
                    chunks,
                    after: (segment.after.position.0 < from).then_some(Position(from)),
                    upto: (!whole).then_some(Position(upto)),
                }),
                FrameKind::Rows if !whole => {}
                FrameKind::Rows => {
                    base = Some(BaseInput { object, chunks, rows_digest: frame.rows_digest.unwrap() });
                }
            }
        }
    }
    // Objects are named once each, as in a plan.
    let (objects, renumbered) = dedup(&objects);
    if let Some(base) = &mut base {
        base.object = renumbered[base.object as usize];
    }
    changes.iter_mut().for_each(|changes| changes.object = renumbered[changes.object as usize]);
    (TableInput { table: 0, base, changes }, objects)
}

fn dedup(objects: &[ObjectInfo]) -> (Vec<ObjectInfo>, Vec<u32>) {
    let mut unique: Vec<ObjectInfo> = Vec::new();
    let numbers = objects.iter().map(|object| {
        let known = unique.iter().position(|known| known == object).unwrap_or_else(|| {
            unique.push(object.clone());
            unique.len() - 1
        });
        u32::try_from(known).unwrap()
    });
    let numbers = numbers.collect();
    (unique, numbers)
}

/// The ranges that an input reads, for a range reader.
pub(crate) fn ranges(input: &TableInput, objects: &[ObjectInfo]) -> Vec<(ObjectInfo, Vec<(u64, u64)>)> {
    let base = input.base.iter().map(|base| (base.object, &base.chunks));
    let changes = input.changes.iter().map(|changes| (changes.object, &changes.chunks));
    base.chain(changes)
        .map(|(object, chunks)| {
            let ranges = chunks.iter().map(|chunk| (chunk.offset, chunk.bytes)).collect();
            (objects[object as usize].clone(), ranges)
        })
        .collect()
}

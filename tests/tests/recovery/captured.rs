//! What Muster captured of one database, and the rows that it holds of any recovery point.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use muster_capture::ShardCapture;
use muster_plan::inputs::{StoreInputs, store_inputs};
use muster_repo::catalog::{self, CatalogQuery, Sites};
use muster_repo::{MemoryObjects, RangeLimits, RangeReader, RepoError, Repository, rows};
use muster_rows::Class;
use muster_stores::capture::CaptureSource;
use muster_stores::postgres::PostgresSource;
use muster_tests::{Row, Rows};
use muster_types::catalog::{Catalog, IncarnationHistory, SegmentInfo};
use muster_types::plan::TableInput;
use muster_types::snapshot::ObjectInfo;
use muster_types::table::{CapturedTable, Owner};
use muster_types::topology::Topology;
use muster_types::{Boundary, Kind, Position, ShardName, SiteId, Timestamp};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tokio::runtime::Runtime;

/// The only shard.
const SHARD: &str = "s";

/// Capture of a database into memory.
pub(crate) struct Captured {
    runtime: Runtime,
    repository: Repository,
    topology: Topology,
    capture: Option<ShardCapture>,
    follower: Option<(Arc<AtomicBool>, JoinHandle<ShardCapture>)>,
}

impl Captured {
    /// Installs capture and takes the first snapshot. `tables` is the topology's part about them.
    pub(crate) fn new(url: &str, kinds: &[&str], tables: &str) -> Self {
        let topology = topology(url, kinds, tables);
        let shard = ShardName::new(SHARD).unwrap();
        let declared = topology.shard_tables(&shard);
        let source = {
            let (url, shard) = (url.to_owned(), shard.clone());
            move || PostgresSource::new(shard.clone(), &url, declared.clone())
        };
        source().init().unwrap();
        let runtime = Runtime::new().unwrap();
        let objects = Arc::new(MemoryObjects::new());
        let repository = runtime.block_on(Repository::create(objects, Timestamp::EPOCH)).unwrap();
        let factory = Arc::new(move || Box::new(source()) as Box<dyn CaptureSource>);
        let capture = ShardCapture::new(repository.clone(), shard, factory, None, Arc::new(|_| {}));
        let mut captured = Self { runtime, repository, topology, capture: Some(capture), follower: None };
        captured.poll(false);
        captured
    }

    /// One cycle, with a recovery point at its end.
    pub(crate) fn poll(&mut self, snapshot: bool) {
        let capture = self.capture.as_mut().expect("nothing follows");
        self.runtime.block_on(capture.cycle(snapshot, true)).unwrap_or_else(|failure| panic!("{failure}"));
    }

    /// Polls on a thread of its own, with snapshots at random.
    pub(crate) fn follow(&mut self, seed: u64) {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, handle) = (Arc::clone(&stop), self.runtime.handle().clone());
        let mut capture = self.capture.take().expect("nothing follows");
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let (snapshot, watermark) = (random.random_bool(0.05), random.random_bool(0.2));
                match handle.block_on(capture.cycle(snapshot, watermark)) {
                    Ok(_) => {}
                    // As `capture --follow` does: a table was altered while capture looked at it, for instance.
                    Err(failure) if failure.is_transient() => println!("--   capture: {failure}"),
                    Err(failure) => panic!("capture: {failure}"),
                }
                std::thread::sleep(Duration::from_millis(random.random_range(0..150)));
            }
            capture
        });
        self.follower = Some((stop, thread));
    }

    /// Ends what [`Self::follow`] began, with a last recovery point.
    pub(crate) fn stop(&mut self) {
        let (stop, thread) = self.follower.take().expect("something follows");
        stop.store(true, Ordering::Relaxed);
        self.capture = Some(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        self.poll(false);
    }

    /// What the repository holds.
    pub(crate) fn catalog(&self) -> Catalog {
        let query = CatalogQuery { sites: Sites::All, shards: None };
        self.runtime.block_on(catalog::read(&self.repository, &query, Timestamp::EPOCH)).unwrap()
    }

    /// All rows that belong to a site at a recovery point. A generated column is PostgreSQL's own affair.
    pub(crate) fn rows_at(&self, catalog: &Catalog, sites: &[&str], boundary: Boundary) -> Rows {
        let incarnation = &history(catalog).incarnation;
        let shard = ShardName::new(SHARD).unwrap();
        let mut found = Rows::new();
        for site in sites {
            for kind in self.kinds() {
                let id = SiteId::new(*site).unwrap();
                let inputs = store_inputs(catalog, &id, &kind, &shard, incarnation, boundary);
                let inputs = inputs.unwrap_or_else(|error| panic!("{site}/{kind} at {boundary:?}: {error}"));
                for (table, rows) in self.store_rows(&inputs) {
                    if !rows.is_empty() {
                        found.insert(((*site).to_owned(), table), rows);
                    }
                }
            }
        }
        found
    }

    fn kinds(&self) -> Vec<Kind> {
        let shard = &self.topology.shards[&ShardName::new(SHARD).unwrap()];
        let declared = self.topology.shard_tables(&ShardName::new(SHARD).unwrap());
        let mut kinds: Vec<Kind> = declared.values().map(|table| table.kind.clone()).collect();
        assert!(!shard.kinds.is_empty());
        kinds.sort();
        kinds.dedup();
        kinds
    }

    fn store_rows(&self, inputs: &StoreInputs) -> BTreeMap<String, Vec<Row>> {
        let tables =
            inputs.tables.iter().zip(&inputs.inputs).filter(|(table, _)| table.owner != Owner::Reference);
        tables
            .map(|(table, input)| (table.def.name.clone(), self.table_rows(table, input, &inputs.objects)))
            .collect()
    }

    fn table_rows(&self, table: &CapturedTable, input: &TableInput, objects: &[ObjectInfo]) -> Vec<Row> {
        let mut wanted: BTreeMap<u32, Vec<(u64, u64)>> = BTreeMap::new();
        let base = input.base.iter().map(|base| (base.object, &base.chunks));
        let changes = input.changes.iter().map(|changes| (changes.object, &changes.chunks));
        for (object, chunks) in base.chain(changes) {
            wanted.entry(object).or_default().extend(chunks.iter().map(|chunk| (chunk.offset, chunk.bytes)));
        }
        let wanted =
            wanted.into_iter().map(|(object, ranges)| (objects[object as usize].clone(), ranges)).collect();
        let names: Vec<&str> = table.def.stored_columns().map(|column| column.name.as_str()).collect();
        let mut found = Vec::new();
        let emit = |batch: Vec<muster_rows::Row>| {
            found.extend(batch.iter().map(|row| by_name(&names, row)));
            std::future::ready(Ok::<(), RepoError>(()))
        };
        let read = async {
            let objects_of = self.repository.objects().clone();
            let reader = RangeReader::new(objects_of, wanted, RangeLimits::default());
            rows::table_rows(&reader, table, input, objects, 64 << 20, emit).await
        };
        self.runtime.block_on(read).unwrap_or_else(|error| panic!("{}: {error}", table.def.name));
        found.sort();
        found
    }
}

fn by_name(names: &[&str], row: &muster_rows::Row) -> Row {
    assert_eq!(names.len(), row.len(), "{row:?} of {names:?}");
    let value = |field: muster_rows::Field<'_>| match field.class {
        Class::Null => None,
        Class::Text => Some(String::from_utf8(field.bytes.to_vec()).unwrap()),
        other => panic!("a field of class {other:?} in {row:?} of {names:?}"),
    };
    names.iter().map(|name| (*name).to_owned()).zip(row.fields().map(value)).collect()
}

/// The history of the shard; the test does nothing that begins another one.
pub(crate) fn history(catalog: &Catalog) -> &IncarnationHistory {
    let incarnations = &catalog.shards[&ShardName::new(SHARD).unwrap()].incarnations;
    assert_eq!(incarnations.len(), 1, "capture lost its place: {:?}", incarnations[0].gaps);
    assert!(incarnations[0].gaps.is_empty(), "{:?}", incarnations[0].gaps);
    &incarnations[0]
}

/// The segment that tells what happened at `position`.
pub(crate) fn segment_at(history: &IncarnationHistory, position: Position) -> Option<&SegmentInfo> {
    let holds =
        |segment: &&SegmentInfo| segment.after.position < position && position <= segment.boundary.position;
    history.segments.iter().find(holds)
}

/// Only the end of the segment is a recovery point, since a table was altered and read again whole.
pub(crate) fn is_coarse(segment: &SegmentInfo) -> bool {
    segment.recovery_commits().is_empty()
}

fn topology(url: &str, kinds: &[&str], tables: &str) -> Topology {
    let declared: String = kinds.iter().map(|kind| format!("[kinds.\"{kind}\"]\nafter = []\n")).collect();
    let text = format!(
        "fleet = 'judged'\n[repository]\nbucket = 'judged'\nregion = 'here'\n\
         {declared}[tiers.only]\nrto_seconds = 60\nrpo_seconds = 60\n\
         [shards.{SHARD}]\ndriver = 'postgres'\nconnection = '{url}'\nregion = 'here'\nkinds = {kinds:?}\n{tables}"
    );
    Topology::parse(&text, "judged", Path::new(".")).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

//! What one site's restore reads as the log grows: objects and requests, not times.
//!
//! Days of capture at five-second segments are written through the repository's own writer into memory, and compacted
//! once a simulated day, after which the compacted part of the chain is dropped, as pruning does. Each figure is counted over a restore of one site from the snapshot before the first day: its
//! catalog read, and the rows folded and held against the truth.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use muster_plan::inputs::store_inputs;
use muster_plan::recovery::{Target, recovery_point};
use muster_repo::catalog::{CatalogQuery, Sites};
use muster_repo::compact::FAN_OUT;
use muster_repo::memory::Requests;
use muster_repo::{
    Chain, MemoryObjects, Objects, RangeLimits, RangeReader, Repository, SegmentSpool, SnapshotWriter, keys,
};
use muster_rows::{Change, Class, Op, Row, RowBuilder};
use muster_types::segment::ChangeStamp;
use muster_types::table::{CapturedTable, ColumnDef, Owner, TableDef};
use muster_types::{Boundary, ChangeKey, Kind, Position, ShardName, SiteId, Timestamp};

use crate::measure;

/// A segment every five seconds.
const SEGMENT_MICROS: i64 = 5_000_000;
const SEGMENTS_PER_DAY: u64 = 17_280;

/// Sites that write, one in each segment; the watched one is among them.
const SITES: u64 = 40;

struct Shard {
    memory: Arc<MemoryObjects>,
    repository: Repository,
    name: ShardName,
    chain: Chain,
    began: Timestamp,
    position: u64,
    /// Writes so far of each site, which is the text of its one row.
    writes: BTreeMap<u64, u64>,
    dir: tempfile::TempDir,
}

/// Days of the log, and what a restore of one site read then.
struct Figure {
    days: u64,
    segments: u64,
    compacted: Reads,
    /// Data objects that the restore would read, and indexes, without compaction.
    chain_objects: u64,
}

struct Reads {
    documents: u64,
    listings: u64,
    data_objects: u64,
    data_requests: u64,
}

/// Simulates the longest of `days` and prints a table with a row for each.
pub(crate) async fn run(days: &[u64]) -> Result<()> {
    let mut shard = Shard::new().await?;
    let mut figures = Vec::new();
    let last = days.iter().copied().max().unwrap_or(0);
    for day in 1..=last {
        for _ in 0..SEGMENTS_PER_DAY {
            shard.segment().await?;
        }
        muster_upkeep::compact::compact_shard(&shard.repository, &shard.name, shard.dir.path()).await?;
        shard.drop_compacted().await?;
        if days.contains(&day) {
            figures.push(shard.measure(day).await?);
        }
    }
    let header = [
        "days",
        "segments",
        "objects of the bare chain",
        "objects",
        "of them documents",
        "of them data",
        "ranged reads",
        "listings",
    ];
    let mut shown = measure::table(&header);
    for figure in &figures {
        shown.add_row(figure.row());
    }
    println!(
        "\n## log-growth: what one site's restore reads, segments of 5 s, one snapshot at the beginning\n"
    );
    println!("{shown}");
    Ok(())
}

impl Figure {
    fn row(&self) -> Vec<String> {
        let reads = &self.compacted;
        [
            self.days,
            self.segments,
            self.chain_objects,
            reads.documents + reads.data_objects,
            reads.documents,
            reads.data_objects,
            reads.data_requests,
            reads.listings,
        ]
        .map(|count| count.to_string())
        .to_vec()
    }
}

fn site(number: u64) -> Result<SiteId> {
    Ok(SiteId::new(format!("s-{number:03}"))?)
}

fn kind() -> Result<Kind> {
    Ok("product:wiki".parse()?)
}

fn table() -> Result<CapturedTable> {
    let column = |name: &str| ColumnDef {
        name: name.to_owned(),
        declared_type: String::new(),
        not_null: false,
        default_sql: None,
        generated: false,
    };
    Ok(CapturedTable {
        kind: kind()?,
        owner: Owner::Tenant { column: "site".to_owned() },
        def: TableDef {
            name: "pages".to_owned(),
            columns: vec![column("site"), column("body")],
            key: vec!["site".to_owned()],
            unique: Vec::new(),
            foreign_keys: Vec::new(),
            create_sql: Vec::new(),
        },
    })
}

fn row(site: &SiteId, text: u64) -> Row {
    let mut builder = RowBuilder::new();
    builder.push(Class::Text, site.as_str().as_bytes());
    builder.push(Class::Text, format!("text {text}").as_bytes()).take()
}

impl Shard {
    async fn new() -> Result<Self> {
        let memory = Arc::new(MemoryObjects::new());
        let objects: Arc<dyn Objects> = Arc::<MemoryObjects>::clone(&memory);
        let began = "2026-01-01T00:00:00Z".parse::<Timestamp>()?;
        let repository = Repository::create(objects, began).await?;
        let name = ShardName::new("shard-1")?;
        let incarnation = repository.begin_incarnation(&name, began, "simulated", None).await?.incarnation;
        let dir = tempfile::tempdir()?;
        let id = muster_repo::snapshot::new_snapshot_id(Position(0));
        let snapshots = dir.path().join("snapshot");
        std::fs::create_dir(&snapshots)?;
        let mut writer =
            SnapshotWriter::new(&snapshots, name.clone(), incarnation.clone(), id, BTreeMap::new());
        writer.tables(&[table()?]);
        for number in 0..SITES {
            writer.row(Some(&site(number)?), 0, &row(&site(number)?, 0))?;
        }
        writer.finish(&repository, Boundary { position: Position(0), at: began }).await?;
        let chain = Chain::open(&repository, &name, &incarnation).await?;
        let writes = (0..SITES).map(|number| (number, 0)).collect();
        Ok(Self { memory, repository, name, chain, began, position: 0, writes, dir })
    }

    fn boundary(&self, position: u64) -> Result<Boundary> {
        let at = self.began.plus_micros(i64::try_from(position)? * SEGMENT_MICROS);
        Ok(Boundary { position: Position(position), at })
    }

    /// Five seconds in which one site wrote.
    async fn segment(&mut self) -> Result<()> {
        let (before, after) = (self.boundary(self.position)?, self.boundary(self.position + 1)?);
        self.position += 1;
        let number = self.position * 7 % SITES;
        let writes = self.writes.entry(number).or_default();
        let id = site(number)?;
        let op = Op::Update { old: row(&id, *writes), new: row(&id, *writes + 1) };
        *writes += 1;
        let key = ChangeKey { position: after.position, ordinal: 0 };
        let mut spool = SegmentSpool::new(&self.dir.path().join("segment"));
        spool.table(&table()?);
        spool.change(Some(&id), 0, None, &Change { stamp: ChangeStamp { key, at: after.at }, op })?;
        self.chain.append(spool.finish()?, before, after, (0, 10), "simulation").await?;
        Ok(())
    }

    /// Removes the segments that compacted ones stand for, but for the last ones.
    async fn drop_compacted(&self) -> Result<()> {
        let folder = keys::log(&self.name, self.chain.incarnation());
        let whole = (self.position - 1) / FAN_OUT * FAN_OUT;
        let last = keys::segment_index(&self.name, self.chain.incarnation(), whole.saturating_sub(FAN_OUT));
        for entry in self.memory.list_between(&folder, &folder, &last).await? {
            self.memory.delete(&entry.key).await?;
        }
        Ok(())
    }

    /// Restores site 0 to the end of the log, counting.
    async fn measure(&self, days: u64) -> Result<Figure> {
        let before = self.memory.requests();
        let watched = site(0)?;
        let query = CatalogQuery { sites: Sites::Some(BTreeSet::from([watched.clone()])), shards: None };
        let end = self.boundary(self.position)?;
        let catalog = muster_repo::catalog::read(&self.repository, &query, end.at).await?;
        let read = self.memory.requests();
        let history = catalog.shards.get(&self.name).context("the shard is missing")?;
        let point = recovery_point(history, Target::At(end.at))?;
        ensure!(point.boundary == end, "the end of the log is not the recovery point");
        let inputs =
            store_inputs(&catalog, &watched, &kind()?, &self.name, &point.incarnation, point.boundary)?;
        let objects: Arc<dyn Objects> = Arc::<MemoryObjects>::clone(&self.memory);
        let mut wanted = Vec::new();
        for input in &inputs.inputs {
            let base = input.base.iter().map(|base| (base.object, &base.chunks));
            let changes = input.changes.iter().map(|changes| (changes.object, &changes.chunks));
            for (object, chunks) in base.chain(changes) {
                let ranges = chunks.iter().map(|chunk| (chunk.offset, chunk.bytes)).collect();
                wanted.push((inputs.objects[object as usize].clone(), ranges));
            }
        }
        let reader = RangeReader::new(objects, wanted, RangeLimits::default());
        let mut stream =
            muster_repo::rows::open(&reader, &inputs.tables[0], &inputs.inputs[0], &inputs.objects, 1 << 28);
        let mut rows = Vec::new();
        while let Some(batch) = stream.next().await {
            rows.extend(batch);
        }
        stream.finish().await?;
        ensure!(rows == [row(&watched, self.writes[&0])], "the rows are not those of the truth");
        let after = self.memory.requests();
        let with_data = self.writes[&0];
        Ok(Figure {
            days,
            segments: self.position,
            compacted: reads(&before, &read, &after, inputs.objects.len() as u64),
            chain_objects: self.position + with_data + 3,
        })
    }
}

fn reads(before: &Requests, read: &Requests, after: &Requests, data_objects: u64) -> Reads {
    Reads {
        documents: read.gets - before.gets,
        listings: read.lists - before.lists,
        data_objects,
        data_requests: after.ranges - read.ranges,
    }
}

//! A made-up fleet of any size, for benchmarks and tests: topology, catalog and the incident of losing all of it.
//!
//! Every site has six stores in one shard: metadata, identity, two products, an app and licences. Each shard has one
//! snapshot and a chain of segments a minute apart; each site was changed in some segments and deleted in one.
//!
//! # Invariants
//! - The same [`Fleet`] gives the same values.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_types::catalog::{Catalog, IncarnationHistory, SegmentInfo, ShardHistory, SiteFacts, SiteHistory};
use muster_types::catalog::{SiteTrace, SnapshotInfo};
use muster_types::incident::{BeforePosition, Incident, IncidentSite};
use muster_types::request::{PlanRequest, ProofLevel};
use muster_types::segment::{ChangeStamp, FrameKind, LogFrame};
use muster_types::snapshot::{Chunk, ObjectInfo, TableSlice};
use muster_types::table::{CapturedTable, ColumnDef, ForeignKey, Owner, TableDef};
use muster_types::topology::{
    CaptureConfig, Directory, DirectoryColumns, DriverConfig, KindConfig, KindMode, Licences,
    RepositoryConfig, RunLimits, ShardConfig, TableConfig, Tier, Topology,
};
use muster_types::{
    Boundary, ChangeKey, Digest, IdError, Incarnation, Kind, Position, ShardName, SiteId, SnapshotId,
    Timestamp,
};

/// How large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fleet {
    /// Sites.
    pub sites: u32,
    /// Shards that they are spread over.
    pub shards: u32,
    /// Segments of each shard's log.
    pub segments: u32,
}

/// The kinds, what each comes after, and its tables with their parents.
type KindRow = (&'static str, &'static [&'static str], &'static [(&'static str, &'static str)]);

const KINDS: &[KindRow] = &[
    ("metadata", &[], &[("sites", ""), ("settings", "sites")]),
    ("identity", &["metadata"], &[("users", ""), ("groups", ""), ("memberships", "groups")]),
    (
        "product:jira-software",
        &["identity"],
        &[("projects", ""), ("issues", "projects"), ("comments", "issues")],
    ),
    ("product:confluence", &["identity"], &[("spaces", ""), ("pages", "spaces")]),
    ("app:timesheets", &["product:jira-software"], &[("worklogs", "")]),
    (
        "licence",
        &["metadata", "identity", "product:jira-software", "product:confluence", "app:timesheets"],
        &[("licences", "")],
    ),
];

/// Microseconds between two recovery points.
const POLL_MICROS: i64 = 60_000_000;
/// Positions between two recovery points.
const POLL_POSITIONS: u64 = 1_000_000;

/// The time at which the snapshots were taken.
pub fn began_at() -> Timestamp {
    Timestamp::from_micros(1_649_116_800_000_000)
}

/// The topology of the fleet.
///
/// # Errors
/// None that can happen: the names are constants.
pub fn topology(fleet: Fleet) -> Result<Topology, IdError> {
    let (kinds, tables) = kinds_and_tables()?;
    let shards = shards(fleet, &kinds)?;
    Ok(Topology {
        references: vec![],
        digest: Digest::of(b"synthetic"),
        source: Default::default(),
        fleet: "synthetic".to_owned(),
        repository: repository(),
        capture: CaptureConfig {
            poll_interval_milliseconds: 1_000,
            watermark_interval_seconds: 60,
            snapshot_seconds_max: 3_600,
            wal_bytes_max: 64 << 30,
        },
        limits: RunLimits { s3_requests: 64, bytes_in_flight: 1 << 30, stage_slots: 16, attempts: 5 },
        directory: Directory {
            kind: "metadata".parse()?,
            table: "sites".to_owned(),
            columns: DirectoryColumns::default(),
        },
        ids: BTreeMap::new(),
        serve: Default::default(),
        jobs: BTreeMap::new(),
        licences: Some(Licences {
            kind: "licence".parse()?,
            table: "licences".to_owned(),
            product_column: "product".to_owned(),
            active_column: None,
        }),
        tiers: BTreeMap::from([
            ("gold".to_owned(), Tier { rto_seconds: 3_600, rpo_seconds: 300 }),
            ("free".to_owned(), Tier { rto_seconds: 86_400, rpo_seconds: 3_600 }),
        ]),
        kinds,
        shards,
        families: BTreeMap::new(),
        sandboxes: BTreeMap::new(),
        tables,
        site_tables: Vec::new(),
        database_tables: BTreeMap::new(),
        retention: None,
    })
}

type Kinds = BTreeMap<Kind, KindConfig>;
type Tables = BTreeMap<String, TableConfig>;

/// All kinds, each restored, and their tables.
fn kinds_and_tables() -> Result<(Kinds, Tables), IdError> {
    let mut kinds = BTreeMap::new();
    let mut tables = BTreeMap::new();
    for (name, after, owned) in KINDS {
        let kind: Kind = name.parse()?;
        let after = after.iter().map(|after| after.parse()).collect::<Result<Vec<Kind>, _>>()?;
        kinds.insert(
            kind.clone(),
            KindConfig { after, stage_waits: false, mode: KindMode::Restored, checks: vec![] },
        );
        for (table, parent) in *owned {
            tables.insert(
                (*table).to_owned(),
                TableConfig {
                    kind: kind.clone(),
                    owner: owner(parent),
                    migrations: vec![],
                    harmless_triggers: vec![],
                },
            );
        }
    }
    Ok((kinds, tables))
}

/// The shards, each of which hosts every kind.
fn shards(fleet: Fleet, kinds: &Kinds) -> Result<BTreeMap<ShardName, ShardConfig>, IdError> {
    let hosted: Vec<Kind> = kinds.keys().cloned().collect();
    let one = |number| {
        let config = ShardConfig {
            driver: DriverConfig::Sqlite { path: format!("shard-{number}.db").into() },
            region: region(number).to_owned(),
            kinds: hosted.clone(),
            stage_slots: 4,
            publish_slots: 1,
            writer_block_milliseconds_max: 2_000,
            stage_bytes_per_second_max: None,
            site: None,
            slots_max: None,
        };
        Ok((shard_name(number)?, config))
    };
    (0..fleet.shards).map(one).collect()
}

fn repository() -> RepositoryConfig {
    RepositoryConfig {
        bucket: "synthetic".to_owned(),
        prefix: String::new(),
        region: "eu-west-1".to_owned(),
        endpoint: None,
        path_style: true,
        embedded: None,
    }
}

fn region(shard: u32) -> &'static str {
    if shard.is_multiple_of(2) { "eu" } else { "us" }
}

fn owner(parent: &str) -> Owner {
    match parent {
        "" => Owner::Tenant { column: "site".to_owned() },
        parent => {
            Owner::Parent { column: "parent".to_owned(), table: parent.to_owned(), key: "id".to_owned() }
        }
    }
}

fn shard_name(number: u32) -> Result<ShardName, IdError> {
    format!("shard-{number}").parse()
}

/// The definition of a table of the fleet: an id, the column that its owner needs, a value.
pub fn captured_table(kind: Kind, name: &str, parent: &str) -> CapturedTable {
    let column = |name: &str| ColumnDef {
        name: name.to_owned(),
        declared_type: "TEXT".to_owned(),
        not_null: false,
        default_sql: None,
        generated: false,
    };
    let link = if parent.is_empty() { "site" } else { "parent" };
    let foreign = ForeignKey {
        columns: vec!["parent".to_owned()],
        parent_table: parent.to_owned(),
        parent_columns: vec!["id".to_owned()],
    };
    let def = TableDef {
        name: name.to_owned(),
        columns: vec![column("id"), column(link), column("value")],
        key: vec!["id".to_owned()],
        unique: Vec::new(),
        foreign_keys: if parent.is_empty() { Vec::new() } else { vec![foreign] },
        create_sql: vec![format!("CREATE TABLE {name} (id TEXT PRIMARY KEY, {link} TEXT, value TEXT)")],
    };
    CapturedTable { kind, owner: owner(parent), def }
}

/// All tables of the fleet, by kind.
///
/// # Errors
/// None that can happen: the names are constants.
pub fn captured_tables() -> Result<Vec<CapturedTable>, IdError> {
    let mut tables = Vec::new();
    for (kind, _, owned) in KINDS {
        for (table, parent) in *owned {
            tables.push(captured_table(kind.parse()?, table, parent));
        }
    }
    Ok(tables)
}

/// The catalog of the fleet.
///
/// # Errors
/// None that can happen: the names are made of digits.
pub fn catalog(fleet: Fleet) -> Result<Catalog, IdError> {
    let tables = captured_tables()?;
    let mut shards = BTreeMap::new();
    for number in 0..fleet.shards {
        shards.insert(shard_name(number)?, shard_history(number, fleet, &tables)?);
    }
    let mut sites = BTreeMap::new();
    for number in 0..fleet.sites {
        sites.insert(site_id(number)?, site_history(number, fleet, tables.len() as u32)?);
    }
    let read_at = began_at().plus_micros(POLL_MICROS * (i64::from(fleet.segments) + 1));
    Ok(Catalog { repository: "synthetic".to_owned(), read_at, shards, sites, unowned: Vec::new() })
}

fn site_id(number: u32) -> Result<SiteId, IdError> {
    SiteId::new(format!("s-{number:07}"))
}

fn boundary(poll: u32) -> Boundary {
    let at = began_at().plus_micros(POLL_MICROS * i64::from(poll));
    Boundary { position: Position(POLL_POSITIONS * u64::from(poll)), at }
}

fn object(key: String) -> ObjectInfo {
    let digest = Digest::of(key.as_bytes());
    ObjectInfo { key, bytes: 64 * 1024 * 1024, digest }
}

fn shard_history(number: u32, fleet: Fleet, tables: &[CapturedTable]) -> Result<ShardHistory, IdError> {
    let snapshot = SnapshotInfo {
        snapshot: SnapshotId::new(format!("{:020}-00000000", 0))?,
        boundary: boundary(0),
        tables: tables.to_vec(),
        packs: vec![object(format!("shards/shard-{number}/pack-0000.zst"))],
        beside: muster_types::snapshot::Beside::default(),
        folded_from: None,
    };
    let shared: Arc<[CapturedTable]> = tables.into();
    let segments = (1..=fleet.segments).map(|sequence| SegmentInfo {
        sequence: u64::from(sequence),
        after: boundary(sequence - 1),
        boundary: boundary(sequence),
        data: Some(object(format!("shards/shard-{number}/log/{sequence:020}.zst"))),
        tables: Arc::clone(&shared),
        marks: Vec::new(),
        table_events: Vec::new(),
        commits: Vec::new(),
        clock_offset_micros: (0, 500),
    });
    let incarnation = IncarnationHistory {
        incarnation: Incarnation::new("0001-00000000")?,
        snapshots: vec![snapshot],
        segments: segments.collect(),
        gaps: Vec::new(),
        snapshots_unread: Vec::new(),
    };
    Ok(ShardHistory { incarnations: vec![incarnation] })
}

/// A number that looks like any other, and is the same every time.
fn scatter(number: u32, salt: u32) -> u32 {
    let mut mixed = u64::from(number) << 32 | u64::from(salt);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed >> 33) as u32
}

/// Rows of a table: few mostly, now and then many.
fn rows(site: u32, table: u32) -> u64 {
    let size = scatter(site, table);
    match (table, size % 100) {
        (0, _) => 1,
        (_, 0) => 20_000,
        (_, share) => u64::from(share) + 1,
    }
}

fn chunk(site: u32, salt: u32, rows: u64) -> Chunk {
    let name = Digest([(scatter(site, salt) % 251) as u8; 32]);
    Chunk { offset: u64::from(site) * 4096, bytes: rows * 20 + 60, raw_bytes: rows * 80, rows, digest: name }
}

/// The segment (as a number from 0) in which a site was deleted.
fn deleted_in(site: u32, fleet: Fleet) -> u32 {
    let segments = fleet.segments.max(1);
    segments / 2 + scatter(site, 0) % (segments - segments / 2)
}

fn stamp(segment: u32, offset: u64) -> ChangeStamp {
    let start = boundary(segment);
    let key = ChangeKey { position: Position(start.position.0 + offset), ordinal: 0 };
    ChangeStamp { key, at: start.at.plus_micros(offset as i64) }
}

fn site_history(site: u32, fleet: Fleet, tables: u32) -> Result<SiteHistory, IdError> {
    let slices = (0..tables).map(|table| TableSlice {
        table,
        pack: 0,
        chunks: vec![chunk(site, table, rows(site, table))],
        rows_digest: Digest([7; 32]),
    });
    let deleted = deleted_in(site, fleet);
    let mut segments: BTreeMap<u32, Vec<LogFrame>> = BTreeMap::new();
    let touched: BTreeSet<u32> = (1..4).map(|salt| scatter(site, salt) % deleted.max(1)).collect();
    for segment in touched.into_iter().filter(|segment| *segment < deleted) {
        let table = scatter(site, segment) % tables;
        segments.entry(segment).or_default().push(frame(site, table, segment, (0, 3, 0)));
    }
    let last = segments.entry(deleted).or_default();
    last.extend((0..tables).map(|table| frame(site, table, deleted, (0, 0, rows(site, table)))));
    let trace = SiteTrace {
        shard: shard_name(site % fleet.shards.max(1))?,
        incarnation: 0,
        snapshots: BTreeMap::from([(0, slices.collect())]),
        segments,
        unread: BTreeSet::new(),
    };
    let facts = SiteFacts {
        name: Some(format!("Site {site}")),
        region: Some(region(site % fleet.shards.max(1)).to_owned()),
        tier: Some(if site.is_multiple_of(5) { "gold" } else { "free" }.to_owned()),
        customer: Some(format!("customer-{}", site / 3)),
        internal: site.is_multiple_of(7),
        users: u64::from(scatter(site, 9) % 500),
        licensed: Vec::new(),
    };
    Ok(SiteHistory { traces: vec![trace], facts: Some(facts), facts_unread: None })
}

fn frame(site: u32, table: u32, segment: u32, (inserts, updates, deletes): (u64, u64, u64)) -> LogFrame {
    let first = stamp(segment, u64::from(table) * 30_000 + 1);
    let last = stamp(segment, u64::from(table) * 30_000 + (inserts + updates + deletes).max(1));
    LogFrame {
        table,
        mark: None,
        kind: FrameKind::Changes,
        chunks: vec![chunk(site, segment + 100, inserts + updates * 2 + deletes)],
        inserts,
        updates,
        deletes,
        span: Some((first, last)),
        deletions: (deletes > 0).then_some((first, last)),
        rows_digest: None,
        place: None,
    }
}

/// The incident of losing every site: each store goes back to before its own first deletion.
///
/// # Errors
/// None that can happen: the names are made of digits.
pub fn request(fleet: Fleet) -> Result<PlanRequest, IdError> {
    let incarnation = Incarnation::new("0001-00000000")?;
    let mut sites = Vec::new();
    for number in 0..fleet.sites {
        let shard = shard_name(number % fleet.shards.max(1))?;
        let first = stamp(deleted_in(number, fleet), 1);
        let before = BeforePosition { shard, incarnation: incarnation.clone(), position: first.key.position };
        let kinds = KINDS.iter().map(|(kind, ..)| Ok((kind.parse()?, before.clone())));
        sites.push(IncidentSite {
            site: site_id(number)?,
            target: first.at.plus_micros(-1),
            outage_at: Some(first.at),
            before: kinds.collect::<Result<_, IdError>>()?,
            note: None,
        });
    }
    let incident = Incident {
        format: muster_types::format::FORMAT,
        title: "all of it".to_owned(),
        declared_at: boundary(fleet.segments).at,
        id_source: "synthetic".to_owned(),
        sites,
    };
    Ok(PlanRequest {
        incident,
        proof: ProofLevel::Marked,
        overwrite: BTreeSet::new(),
        accept_block: BTreeSet::new(),
        accept_gap: BTreeSet::new(),
        placement: muster_types::request::Placement::default(),
    })
}

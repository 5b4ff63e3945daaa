//! A small fleet: its snapshots in a repository, its shards without the victims, and plans to bring them back.

mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use muster_repo::catalog::{self, CatalogQuery, Sites};
use muster_repo::snapshot::SnapshotWriter;
use muster_repo::{IncarnationDocument, MemoryObjects, Objects, Repository, keys};
use muster_types::catalog::Catalog;
use muster_types::format::FORMAT;
use muster_types::table::{CapturedTable, ColumnDef, Owner, TableDef};
use muster_types::{
    Boundary, Incarnation, Kind, Position, ShardName, SiteId, SnapshotId, StoreId, Timestamp,
};

use crate::audit::Truth;
use crate::dice::Dice;
use crate::shard::row;
pub(crate) use plan::{PlanShape, plan};

/// Kinds of a site, each with its tables, in the order of their publishes; each depends on the one before.
const KINDS: [(&str, &[&str]); 4] = [
    ("metadata", &["sites"]),
    ("identity", &["groups", "users"]),
    ("product:jira", &["issues"]),
    ("media", &["files"]),
];

/// Neighbours in every shard: those who write while a run is at work.
const NEIGHBOURS: usize = 2;

/// How large a fleet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Sites to bring back.
    pub(crate) victims: usize,
    /// Kinds of each, 1 to 4.
    pub(crate) kinds: usize,
    /// Shards that the kinds are spread over.
    pub(crate) shards: usize,
    /// Rows of each table of a store.
    pub(crate) rows: usize,
}

impl Shape {
    /// Draws one: mostly small, now and then a bigger one.
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        let size = |dice: &mut Dice, most| usize::try_from(dice.between(1, most)).unwrap_or(1);
        let kinds = size(dice, 3) + 1;
        let most = if dice.chance(30_000) { 30 } else { 4 };
        Self { victims: size(dice, most), kinds, shards: size(dice, 2).min(kinds), rows: size(dice, 4) }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) shape: Shape,
    pub(crate) objects: Vec<(String, Bytes)>,
    pub(crate) catalog: Catalog,
    pub(crate) truth: BTreeMap<StoreId, Truth>,
    pub(crate) tables: Vec<CapturedTable>,
    /// Where each kind lives.
    pub(crate) home: BTreeMap<Kind, ShardName>,
}

pub(crate) fn victim(number: usize) -> Result<SiteId> {
    Ok(SiteId::new(format!("v{number:02}"))?)
}

pub(crate) fn neighbours() -> Result<Vec<SiteId>> {
    (0..NEIGHBOURS).map(|number| Ok(SiteId::new(format!("n{number}"))?)).collect()
}

pub(crate) fn time(seconds: i64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}

/// The shard of a drill for what lives in another.
pub(crate) fn sandbox(shard: &ShardName) -> Result<ShardName> {
    Ok(format!("muster_drill_{shard}").parse()?)
}

fn shard_name(number: usize) -> Result<ShardName> {
    Ok(format!("s{number}").parse()?)
}

fn captured(kind: &Kind, name: &str) -> CapturedTable {
    let column = |name: &str| ColumnDef {
        name: name.to_owned(),
        declared_type: "TEXT".to_owned(),
        not_null: true,
        default_sql: None,
        generated: false,
    };
    CapturedTable {
        kind: kind.clone(),
        owner: Owner::Tenant { column: "site".to_owned() },
        def: TableDef {
            name: name.to_owned(),
            columns: vec![column("id"), column("site")],
            key: vec!["id".to_owned()],
            unique: vec![],
            foreign_keys: vec![],
            create_sql: vec![],
        },
    }
}

impl Fleet {
    /// Makes one.
    pub(crate) async fn new(shape: Shape) -> Result<Self> {
        let memory = Arc::new(MemoryObjects::new());
        let objects: Arc<dyn Objects> = Arc::clone(&memory) as Arc<dyn Objects>;
        // With ids of its own: Muster draws them, and equal seeds must give equal runs.
        let document = serde_json::json!({ "format": FORMAT, "id": "simulated", "created_at": time(0) });
        objects.put(keys::REPOSITORY, document.to_string().into()).await?;
        let repository = Repository::open(Arc::clone(&objects)).await?;
        let mut fleet = Self {
            shape,
            objects: Vec::new(),
            catalog: catalog::read(&repository, &everything(), time(1)).await?,
            truth: BTreeMap::new(),
            tables: Vec::new(),
            home: BTreeMap::new(),
        };
        for (number, (kind, tables)) in KINDS.iter().take(shape.kinds).enumerate() {
            let kind: Kind = kind.parse()?;
            fleet.home.insert(kind.clone(), shard_name(number % shape.shards)?);
            fleet.tables.extend(tables.iter().map(|name| captured(&kind, name)));
        }
        for number in 0..shape.shards {
            fleet.snapshot(&repository, &shard_name(number)?).await?;
        }
        fleet.catalog = catalog::read(&repository, &everything(), time(1)).await?;
        for key in memory.keys() {
            let body = objects.get(&key).await?.with_context(|| format!("`{key}` is gone"))?;
            fleet.objects.push((key, body));
        }
        Ok(fleet)
    }

    /// Shards, ascending.
    pub(crate) fn shards(&self) -> BTreeSet<&ShardName> {
        self.home.values().collect()
    }

    /// Tables of a shard.
    pub(crate) fn tables_of(&self, shard: &ShardName) -> Vec<CapturedTable> {
        self.tables.iter().filter(|table| self.home.get(&table.kind) == Some(shard)).cloned().collect()
    }

    /// A history with the snapshot that restores need, and a later one.
    async fn snapshot(&mut self, repository: &Repository, shard: &ShardName) -> Result<()> {
        let incarnation = Incarnation::new("0001-simulated")?;
        let document = IncarnationDocument {
            format: FORMAT,
            shard: shard.clone(),
            incarnation: incarnation.clone(),
            began_at: time(0),
            reason: "simulated".to_owned(),
            after: None,
        };
        let body = serde_json::to_vec(&document)?;
        repository.objects().put(&keys::incarnation(shard, &incarnation), body.into()).await?;
        let tables = self.tables_of(shard);
        let dir = tempfile::tempdir()?;
        let id = SnapshotId::new("00000000000000000000-needed")?;
        let mut writer =
            SnapshotWriter::new(dir.path(), shard.clone(), incarnation.clone(), id, BTreeMap::new());
        writer.tables(&tables);
        for number in 0..self.shape.victims {
            let site = victim(number)?;
            for (index, table) in tables.iter().enumerate() {
                let store = StoreId { site: site.clone(), kind: table.kind.clone() };
                let truth = self.truth.entry(store).or_default();
                for nth in 0..self.shape.rows {
                    let id = format!("{site}-{}-{nth}", table.def.name);
                    writer.row(Some(&site), index, &row(&id, site.as_str()))?;
                    truth.insert((table.def.name.clone(), id));
                }
            }
        }
        writer.finish(repository, Boundary { position: Position(0), at: time(0) }).await?;
        // A later one, so that promised moments do not need the first: plans and runs alone do.
        let dir = tempfile::tempdir()?;
        let id = SnapshotId::new("00000000000000000001-later")?;
        let mut writer = SnapshotWriter::new(dir.path(), shard.clone(), incarnation, id, BTreeMap::new());
        writer.tables(&tables);
        writer.finish(repository, Boundary { position: Position(1), at: time(70) }).await?;
        Ok(())
    }
}

fn everything() -> CatalogQuery {
    CatalogQuery { sites: Sites::All, shards: None }
}

//! The topology: kinds and their dependencies, shards, tiers, limits, and the ownership of every table.
//!
//! - [`Topology::parse`] turns the TOML file into this validated form or into errors that name file, line and way out.
//! - [`Topology::check_shard`] compares it with the tables that a shard really has.
//! - [`TopologyVersion`] is its text as the repository keeps it; [`secret_lines`] says what keeps it out.
//! - [`Topology::kinds_in_order`], [`Topology::kind_depends`] and [`Topology::shard_tables`] answer the usual questions.
//!
//! # Invariants
//! - Every reference resolves: kinds, shards, tables, parents, directory, licences.
//! - Neither the kinds' `after` nor the tables' owners go round in a circle, and patterns are expanded.
//! - Restored kinds have a shard and tables; rebuilt and external ones have neither. Limits and targets are above zero.
//! - A table and its parent are in one shard.
//!
//! # Errors
//! [`TopologyErrors`] has as many as can be told at once. The sections are read first, each on its own; only if nothing
//! is wrong in them are they held against each other, so that one mistake is told once.
//!
//! # Not here
//! Reading the file and the shards.

mod check;
mod declare;
mod difference;
mod error;
mod family;
mod id_type;
mod kept;
mod kind_check;
mod live;
mod migration;
mod order;
mod parse;
mod raw;
mod reference;
mod sandbox;
mod secret;
mod serve;
mod tenancy;

pub use difference::differences;
pub use error::{TopologyError, TopologyErrors};
pub use family::{Family, SiteFiles};
pub use id_type::{IdType, SITE_ID_TYPE};
pub use kept::TopologyVersion;
pub use migration::{Migration, STAGED};
pub use sandbox::{MADE_PREFIX, NoSandbox, SandboxConfig, SandboxPlace, SandboxShard};
pub use secret::secret_lines;
pub use serve::{
    AlarmsConfig, DetectConfig, JobConfig, JobWhat, SecretSource, ServeConfig, WebhookAddress, WebhookConfig,
};
pub use tenancy::{DatabaseTable, Declared, Named, PLACEHOLDER, SiteTable, TablePattern};

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::catalog::SiteFacts;
use crate::digest::Digest;
use crate::ids::{Kind, ShardName, SiteId};
use crate::kind_check::KindCheck;
use crate::reference::Reference;
use crate::retention::Retention;
use crate::table::Owner;

/// A validated topology. Every reference in it resolves; the kinds' dependencies have no cycle.
#[derive(Clone, Debug, PartialEq)]
pub struct Topology {
    /// Digest of the text that it was parsed from, and of the files that list its sites.
    pub digest: Digest,
    /// Where its declarations stand, for messages.
    pub source: Source,
    /// The fleet's name.
    pub fleet: String,
    /// Where the repository is.
    pub repository: RepositoryConfig,
    /// Capture's intervals and limits.
    pub capture: CaptureConfig,
    /// What the repository keeps; nothing is pruned where it is absent.
    pub retention: Option<Retention>,
    /// Limits of a run.
    pub limits: RunLimits,
    /// Where a site's name, region, tier and customer stand.
    pub directory: Directory,
    /// Where a site's licensed products and apps stand, if anywhere.
    pub licences: Option<Licences>,
    /// The long-running service.
    pub serve: ServeConfig,
    /// Its scheduled jobs, by name.
    pub jobs: BTreeMap<String, JobConfig>,
    /// Types of ids other than sites', by the word before the colon.
    pub ids: BTreeMap<String, IdType>,
    /// By name.
    pub tiers: BTreeMap<String, Tier>,
    /// By name, in dependency order when iterated through [`Topology::kinds_in_order`].
    pub kinds: BTreeMap<Kind, KindConfig>,
    /// References across stores, in the order of the file.
    pub references: Vec<Reference>,
    /// By name.
    pub shards: BTreeMap<ShardName, ShardConfig>,
    /// Sections of `shards` that stand for one shard of each of their sites, by name.
    pub families: BTreeMap<ShardName, Family>,
    /// Where drills make shards of their own, by name.
    pub sandboxes: BTreeMap<String, SandboxConfig>,
    /// Declared tables, by name; a name means the same in every shard that hosts the table's kind.
    pub tables: BTreeMap<String, TableConfig>,
    /// Declared tables of which each site has its own, in a schema of its own.
    pub site_tables: Vec<SiteTable>,
    /// Declared tables that stand in databases of single sites only, by name.
    pub database_tables: BTreeMap<String, DatabaseTable>,
}

/// Where declarations stand in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// The file, as it was named.
    pub file: String,
    /// Lines, counted from 1, by declaration: `kinds.KIND`, `shards.SHARD`, `tables.TABLE`.
    pub lines: BTreeMap<String, u64>,
}

/// The repository's bucket and how to reach it; credentials come from the environment as for any AWS client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepositoryConfig {
    /// Bucket.
    pub bucket: String,
    /// Key prefix within it, without slashes at the ends; may be empty.
    pub prefix: String,
    /// S3 region.
    pub region: String,
    /// Endpoint, for anything but AWS.
    pub endpoint: Option<String>,
    /// Address buckets in the path.
    pub path_style: bool,
    /// Folder of the embedded S3 server that serves `endpoint`; started by the first command that needs it.
    pub embedded: Option<PathBuf>,
}

/// Capture's intervals and limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptureConfig {
    /// Between two polls of a shard.
    pub poll_interval_milliseconds: u64,
    /// An idle shard gets a watermark this often.
    pub watermark_interval_seconds: u64,
    /// A snapshot's read transaction may last so long.
    pub snapshot_seconds_max: u64,
    /// A PostgreSQL shard's slot may hold back so many bytes of log; beyond, capture gives it up.
    pub wal_bytes_max: u64,
}

/// Limits of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunLimits {
    /// S3 requests in flight.
    pub s3_requests: u64,
    /// Bytes of rows and objects in flight.
    pub bytes_in_flight: u64,
    /// Stores staged at once, over all shards.
    pub stage_slots: u64,
    /// Attempts of one step.
    pub attempts: u32,
}

/// The directory: one row a site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// The kind that holds it.
    pub kind: Kind,
    /// The table; its tenant column is the site's id.
    pub table: String,
    /// Columns by what they say.
    pub columns: DirectoryColumns,
}

/// Names of the directory's columns; what has none is unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirectoryColumns {
    /// Display name.
    pub name: Option<String>,
    /// Region.
    pub region: Option<String>,
    /// Tier.
    pub tier: Option<String>,
    /// Customer.
    pub customer: Option<String>,
    /// Non-zero for the operator's own sites.
    pub internal: Option<String>,
    /// Number of users.
    pub users: Option<String>,
}

impl Topology {
    /// The column of the directory that holds the site's id.
    pub fn directory_tenant(&self) -> Option<&str> {
        match &self.tables.get(&self.directory.table)?.owner {
            Owner::Tenant { column } => Some(column),
            _ => None,
        }
    }
}

impl DirectoryColumns {
    /// What a row of the directory says; `text` gives a column's value as text, none where it is NULL.
    pub fn facts(&self, text: impl Fn(&str) -> Option<String>) -> SiteFacts {
        let text = |column: &Option<String>| column.as_deref().and_then(&text);
        SiteFacts {
            name: text(&self.name),
            region: text(&self.region),
            tier: text(&self.tier),
            customer: text(&self.customer),
            internal: text(&self.internal).is_some_and(|value| is_true(&value)),
            users: text(&self.users).and_then(|value| value.parse().ok()).unwrap_or(0),
            licensed: Vec::new(),
        }
    }

    /// The columns that have a name.
    pub fn names(&self) -> Vec<String> {
        let all = [&self.name, &self.region, &self.tier, &self.customer, &self.internal, &self.users];
        all.into_iter().flatten().cloned().collect()
    }
}

/// Whether a column holds true, as databases print it.
pub fn is_true(value: &str) -> bool {
    !matches!(value, "0" | "" | "f" | "false")
}

/// The licence table: one row per licensed product or app of a site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Licences {
    /// The kind that holds it.
    pub kind: Kind,
    /// The table.
    pub table: String,
    /// The column that names the kind, e.g. `product:confluence`.
    pub product_column: String,
    /// Non-zero where the licence is active; without it all are.
    pub active_column: Option<String>,
}

/// A tier and its targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tier {
    /// Recovery time target.
    pub rto_seconds: u64,
    /// Recovery point target.
    pub rpo_seconds: u64,
}

/// How a kind comes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KindMode {
    /// Muster holds its rows.
    Restored,
    /// The command re-creates it after its dependencies are published.
    Rebuilt {
        /// Program and arguments.
        command: Vec<String>,
    },
    /// The command is run and checked at hand-back.
    External {
        /// Program and arguments.
        command: Vec<String>,
    },
}

/// A kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KindConfig {
    /// Kinds of the same site that must be published first (those that the site has).
    pub after: Vec<Kind>,
    /// Staging, too, waits for `after`.
    pub stage_waits: bool,
    /// How it comes back.
    pub mode: KindMode,
    /// What is asked of each site's store of it before the site is handed back, in the order of the file.
    pub checks: Vec<KindCheck>,
}

/// A shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardConfig {
    /// Where it is and how to speak to it.
    pub driver: DriverConfig,
    /// Its region.
    pub region: String,
    /// Kinds it hosts.
    pub kinds: Vec<Kind>,
    /// Stores staged at once.
    pub stage_slots: u64,
    /// Publish transactions at once; SQLite has one writer.
    pub publish_slots: u64,
    /// A publish may block other writers so long.
    pub writer_block_milliseconds_max: u64,
    /// Bytes of rows loaded into it in a second, at most.
    pub stage_bytes_per_second_max: Option<u64>,
    /// The one site whose database it is.
    pub site: Option<SiteId>,
    /// Replication slots that its server may have, where it says so.
    pub slots_max: Option<u64>,
}

/// A driver and what it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DriverConfig {
    /// A SQLite file.
    Sqlite {
        /// The file.
        path: PathBuf,
    },
    /// A PostgreSQL database.
    Postgres {
        /// Where it is: a libpq URL, `key=value` pairs, or `service=NAME`. What is left out comes from the usual
        /// environment variables, service and password files; a password does not belong here.
        connection: String,
    },
}

impl DriverConfig {
    /// The driver's name in the topology.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sqlite { .. } => "sqlite",
            Self::Postgres { .. } => "postgres",
        }
    }
}

/// A declared table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableConfig {
    /// The kind that its rows are part of.
    pub kind: Kind,
    /// To whom they belong.
    pub owner: Owner,
    /// What brings rows of older definitions into today's shape, in the order in which they apply.
    pub migrations: Vec<Migration>,
    /// Triggers and rules that may act on Muster's own writes: they change no row of any table.
    pub harmless_triggers: Vec<String>,
}

//! The plan: an immutable value that leaves nothing to decide at run time.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::catalog::SiteFacts;
use crate::digest::Digest;
use crate::ids::{IdError, Incarnation, Kind, PlanId, ShardName, SiteId, SnapshotId, StoreId};
use crate::incident::BeforePosition;
use crate::kind_check::KindCheck;
use crate::position::{Boundary, Position};
use crate::reference::Reference;
use crate::request::PlanRequest;
use crate::snapshot::{Beside, Chunk, ObjectInfo};
use crate::table::{CapturedTable, TableDef};
use crate::time::Timestamp;

/// Every step, edge, input object, demand and recovery point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Format version.
    pub format: u32,
    /// Digest of everything else in here; [`Plan::seal`] sets it.
    pub id: PlanId,
    /// When it was made.
    pub created_at: Timestamp,
    /// Until when its objects are held against pruning.
    pub expires_at: Timestamp,
    /// What it answers.
    pub request: PlanRequest,
    /// The repository's id.
    pub repository: String,
    /// Digest of the topology text.
    pub topology: Digest,
    /// Objects read; ranges refer to them by index.
    pub objects: Vec<ObjectInfo>,
    /// Definitions at the recovery points; table inputs refer to them by index.
    pub tables: Vec<CapturedTable>,
    /// Sites, in order of execution.
    pub sites: Vec<SitePlan>,
    /// Touched shards.
    pub shards: BTreeMap<ShardName, ShardPlan>,
    /// Empty shards that are given definitions and reference rows before anything is loaded into them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub provisions: BTreeMap<ShardName, Provision>,
    /// Declared references across stores; sites name those that are counted for them by their place here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<Reference>,
    /// The operator's checks of the planned kinds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kind_checks: BTreeMap<Kind, Vec<KindCheck>>,
    /// Capacity of each pool.
    pub pools: BTreeMap<String, u64>,
    /// Steps; edges and journal refer to them by key.
    pub steps: Vec<PlanStep>,
    /// Findings of the checker.
    pub notes: Vec<Note>,
}

impl Plan {
    /// Computes the id from the content and sets it.
    #[must_use]
    pub fn seal(mut self) -> Self {
        self.id = self.content_id();
        self
    }

    /// The id that the content has: of everything but the id itself. The content is hashed as it is written, since a
    /// plan of a whole fleet takes gigabytes as text.
    pub fn content_id(&self) -> PlanId {
        let content = Content {
            format: self.format,
            created_at: self.created_at,
            expires_at: self.expires_at,
            request: &self.request,
            repository: &self.repository,
            topology: self.topology,
            objects: &self.objects,
            tables: &self.tables,
            sites: &self.sites,
            shards: &self.shards,
            provisions: &self.provisions,
            references: &self.references,
            kind_checks: &self.kind_checks,
            pools: &self.pools,
            steps: &self.steps,
            notes: &self.notes,
        };
        PlanId::new(Digest::of_json(&content).to_string()).unwrap_or_else(|_| Self::unsealed_id())
    }

    /// The id of a plan that is not sealed yet.
    pub fn unsealed_id() -> PlanId {
        #[expect(clippy::expect_used, reason = "a constant of permitted characters")]
        PlanId::new("unsealed").expect("permitted")
    }

    /// The worst severity among the notes.
    pub fn worst(&self) -> Option<Severity> {
        self.notes.iter().map(|note| note.severity).max()
    }

    /// The plan of one store.
    pub fn store(&self, store: &StoreId) -> Option<(&SitePlan, &StorePlan)> {
        let site = self.sites.iter().find(|site| site.site == store.site)?;
        site.stores.iter().find(|candidate| candidate.kind == store.kind).map(|found| (site, found))
    }
}

/// A plan without its id: what the id is the digest of.
#[derive(Serialize)]
struct Content<'a> {
    format: u32,
    created_at: Timestamp,
    expires_at: Timestamp,
    request: &'a PlanRequest,
    repository: &'a str,
    topology: Digest,
    objects: &'a [ObjectInfo],
    tables: &'a [CapturedTable],
    sites: &'a [SitePlan],
    shards: &'a BTreeMap<ShardName, ShardPlan>,
    #[serde(skip_serializing_if = "no_provisions")]
    provisions: &'a BTreeMap<ShardName, Provision>,
    #[serde(skip_serializing_if = "no_references")]
    references: &'a [Reference],
    #[serde(skip_serializing_if = "no_checks")]
    kind_checks: &'a BTreeMap<Kind, Vec<KindCheck>>,
    pools: &'a BTreeMap<String, u64>,
    steps: &'a [PlanStep],
    notes: &'a [Note],
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference to the field")]
fn no_provisions(provisions: &&BTreeMap<ShardName, Provision>) -> bool {
    provisions.is_empty()
}

fn no_references(references: &&[Reference]) -> bool {
    references.is_empty()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference to the field")]
fn no_checks(checks: &&BTreeMap<Kind, Vec<KindCheck>>) -> bool {
    checks.is_empty()
}

/// What an empty shard is given: what another one had at a recovery point.
///
/// Checks of stores that are published into such a shard read its rows whole: capture may not have begun there, so that no
/// log holds the marks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provision {
    /// The shard that had it.
    pub source: ShardName,
    /// The history that `boundary` is a place of.
    pub incarnation: Incarnation,
    /// The latest recovery point of the stores that go there.
    pub boundary: Boundary,
    /// All tables that sites share, parents first; rows are read of reference tables only.
    pub tables: Vec<TableInput>,
    /// What stood beside them at the last snapshot.
    pub beside: Beside,
    /// Roles that the place lacks: what they owned or were granted is left out.
    pub without_roles: Vec<String>,
    /// Reference rows, by the counts of the index.
    pub rows: u64,
    /// Compressed bytes to read.
    pub bytes: u64,
}

/// What a driver says of a shard that stores are to go to though they were elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardSurvey {
    /// Its tables, without Muster's own and without those of single sites; none in an empty shard.
    pub tables: Vec<TableDef>,
    /// Roles that the wanted definitions name and that are not there.
    pub missing_roles: Vec<String>,
}

/// One site's part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SitePlan {
    /// The site.
    pub site: SiteId,
    /// What was true of it at the target.
    pub facts: SiteFacts,
    /// The moment asked for.
    pub target: Timestamp,
    /// When it stopped working.
    pub outage_at: Option<Timestamp>,
    /// Wave, from 0.
    pub wave: u32,
    /// Recovery time target of its tier, in seconds.
    pub rto_seconds: u64,
    /// Recovery point target of its tier, in seconds.
    pub rpo_seconds: u64,
    /// Its stores.
    pub stores: Vec<StorePlan>,
    /// References that are counted for it: indexes into [`Plan::references`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<u32>,
    /// Its stores that references lead to or from and that live on as they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub beside: Vec<StoreBeside>,
}

/// A store that the run does not touch: what references ask of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreBeside {
    /// Its kind.
    pub kind: Kind,
    /// The shard that holds it now.
    pub shard: ShardName,
    /// Its tables: as they were at the target, or, of a store that was not there then, as they are at the end of the log.
    pub tables: Vec<TableInput>,
    /// It had no rows at the target: `tables` have nothing to read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub new: bool,
}

/// How a store's data comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Restoration {
    /// Rows that Muster holds.
    Restored,
    /// Derived: the command re-creates it.
    Rebuilt {
        /// Program and arguments; `{site}` stands for the bare site id.
        command: Vec<String>,
    },
    /// Outside: the command runs at hand-back and its exit code is the check.
    External {
        /// Program and arguments; `{site}` stands for the bare site id.
        command: Vec<String>,
    },
}

/// One store's part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StorePlan {
    /// Its kind.
    pub kind: Kind,
    /// How it comes back.
    pub restoration: Restoration,
    /// The shard that held it at the target.
    pub source: ShardName,
    /// The shard that gets it.
    pub shard: ShardName,
    /// The position asked for, where the target is one.
    pub before: Option<BeforePosition>,
    /// The history that `reached` is a place of.
    pub incarnation: Incarnation,
    /// The recovery point.
    pub reached: Boundary,
    /// Why `reached` is not the target, in words.
    pub reached_because: String,
    /// The snapshot under it, if it needs one.
    pub snapshot: Option<SnapshotId>,
    /// What to read, a table each; tables are in the order of insertion (parents first).
    pub tables: Vec<TableInput>,
    /// Rows expected: snapshot plus inserts minus deletes; an estimate where only a part of a frame counts.
    pub rows: u64,
    /// Compressed bytes to read.
    pub bytes: u64,
    /// Bytes of text to load.
    pub raw_bytes: u64,
    /// The live state of the store when the plan was made.
    pub live: LiveStore,
    /// Live rows may be replaced.
    pub overwrite: bool,
    /// Estimate of how long publishing blocks other writers, in milliseconds.
    pub publish_block_milliseconds: u64,
}

/// What to read for one (site, table).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableInput {
    /// Index into [`Plan::tables`].
    pub table: u32,
    /// The rows that the fold starts from, with their order-free digest; none if the table starts empty.
    pub base: Option<BaseInput>,
    /// Changes behind the base up to the recovery point, in order of position.
    pub changes: Vec<ChangesInput>,
}

/// Rows of a snapshot, or of a table read again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseInput {
    /// Index into [`Plan::objects`].
    pub object: u32,
    /// The rows.
    pub chunks: Vec<Chunk>,
    /// Their order-free digest.
    pub rows_digest: Digest,
}

/// Changes of one segment, and which of them count: those with a position behind `after` and not behind `upto`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangesInput {
    /// Index into [`Plan::objects`].
    pub object: u32,
    /// The changes.
    pub chunks: Vec<Chunk>,
    /// Changes up to here are part of the base, or were undone by a truncation; absent where all lie behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Position>,
    /// Changes behind this lie behind the recovery point; absent where none do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upto: Option<Position>,
}

impl ChangesInput {
    /// A change at `position` counts.
    pub fn holds(&self, position: Position) -> bool {
        self.after.is_none_or(|after| position > after) && self.upto.is_none_or(|upto| position <= upto)
    }
}

/// Begins a [difference](LiveStore::differences) that is a table which is gone and which the publish creates again.
pub const CREATED_AGAIN: &str = "created again: ";

/// What a driver says of a store that is live now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveStore {
    /// Live rows of the site in this store.
    pub rows: u64,
    /// Digest of the live definitions of the store's tables.
    pub definitions: Option<Digest>,
    /// Live definitions by table name differ from those at the recovery point: what that means, per table.
    pub differences: Vec<String>,
    /// The open run that claims the store, if any.
    pub claimed_by: Option<String>,
    /// The shard cannot take writes, in words.
    pub unwritable: Option<String>,
    /// What the shard lacks for the full form of the neighbour proof, as statements to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_proof_lacks: Option<String>,
}

/// One shard's part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardPlan {
    /// Its region.
    pub region: String,
    /// Its driver.
    pub driver: String,
    /// Bound on how long a publish may block other writers, in milliseconds.
    pub writer_block_milliseconds_max: u64,
    /// Bytes of rows loaded into it in a second, at most; absent where nothing bounds them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage_bytes_per_second_max: Option<u64>,
    /// Stores published into it.
    pub stores: u64,
    /// Rows published into it.
    pub rows: u64,
    /// Kinds of the tables that Muster captures in it.
    pub kinds: Vec<Kind>,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub enum StepKey {
    /// Give an empty shard its definitions and reference rows.
    Provision(ShardName),
    /// Load a store's rows at its recovery point beside the live data.
    Stage(StoreId),
    /// Prove the staged rows equal to what the repository holds.
    Verify(StoreId),
    /// Make them live in one transaction.
    Publish(StoreId),
    /// Read back what the publishes of a site did.
    Check(SiteId),
    /// Count rows of a site that refer to rows of other stores which are not there.
    References(SiteId),
    /// Run a check of the operator's on a store of a kind.
    KindCheck {
        /// The store.
        store: StoreId,
        /// The check, by its name in the topology.
        check: String,
    },
    /// Give the site back: release claims, remove staging.
    Handback(SiteId),
    /// Digest the neighbours of a shard before the first publish in it.
    DigestBefore(ShardName),
    /// Digest them after the last one, and explain the difference by the log.
    DigestAfter(ShardName),
}

crate::ids::written_as_text!(StepKey);

impl fmt::Display for StepKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Provision(shard) => write!(f, "provision/{shard}"),
            Self::Stage(store) => write!(f, "stage/{store}"),
            Self::Verify(store) => write!(f, "verify/{store}"),
            Self::Publish(store) => write!(f, "publish/{store}"),
            Self::Check(site) => write!(f, "check/{site}"),
            Self::References(site) => write!(f, "references/{site}"),
            Self::KindCheck { store, check } => write!(f, "kind-check/{store}/{check}"),
            Self::Handback(site) => write!(f, "handback/{site}"),
            Self::DigestBefore(shard) => write!(f, "digest-before/{shard}"),
            Self::DigestAfter(shard) => write!(f, "digest-after/{shard}"),
        }
    }
}

impl FromStr for StepKey {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let malformed = || IdError::Malformed { text: text.to_owned(), wanted: "step" };
        let (verb, subject) = text.split_once('/').ok_or_else(malformed)?;
        Ok(match verb {
            "provision" => Self::Provision(subject.parse()?),
            "stage" => Self::Stage(subject.parse()?),
            "verify" => Self::Verify(subject.parse()?),
            "publish" => Self::Publish(subject.parse()?),
            "check" => Self::Check(subject.parse()?),
            "references" => Self::References(subject.parse()?),
            "kind-check" => {
                // Neither kinds nor names of checks have a slash.
                let (store, check) = subject.rsplit_once('/').ok_or_else(malformed)?;
                Self::KindCheck { store: store.parse()?, check: check.to_owned() }
            }
            "handback" => Self::Handback(subject.parse()?),
            "digest-before" => Self::DigestBefore(subject.parse()?),
            "digest-after" => Self::DigestAfter(subject.parse()?),
            _ => return Err(malformed()),
        })
    }
}

impl TryFrom<String> for StepKey {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<StepKey> for String {
    fn from(key: StepKey) -> Self {
        key.to_string()
    }
}

impl StepKey {
    /// The site that the step works for, if it is one's.
    pub fn site(&self) -> Option<&SiteId> {
        match self {
            Self::Stage(store) | Self::Verify(store) | Self::Publish(store) => Some(&store.site),
            Self::KindCheck { store, .. } => Some(&store.site),
            Self::Check(site) | Self::References(site) | Self::Handback(site) => Some(site),
            Self::Provision(_) | Self::DigestBefore(_) | Self::DigestAfter(_) => None,
        }
    }

    /// The store that the step works on, if it is one's.
    pub fn store(&self) -> Option<&StoreId> {
        match self {
            Self::Stage(store) | Self::Verify(store) | Self::Publish(store) => Some(store),
            Self::KindCheck { store, .. } => Some(store),
            _ => None,
        }
    }
}

/// Units of pools, by ascending name of the pool; written as a map. A clone shares the list, since most steps of a plan
/// want the same of the same pools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demand(Arc<[(Arc<str>, u64)]>);

impl Demand {
    /// Pools and units, by ascending name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, u64)> {
        self.0.iter().map(|(pool, units)| (pool.as_ref(), *units))
    }

    /// The units of one pool.
    pub fn get(&self, pool: &str) -> Option<u64> {
        self.iter().find(|(name, _)| *name == pool).map(|(_, units)| units)
    }
}

impl<P: Into<Arc<str>>> FromIterator<(P, u64)> for Demand {
    fn from_iter<I: IntoIterator<Item = (P, u64)>>(pools: I) -> Self {
        let mut demand: Vec<(Arc<str>, u64)> =
            pools.into_iter().map(|(pool, units)| (pool.into(), units)).collect();
        demand.sort();
        demand.dedup_by(|next, kept| next.0 == kept.0);
        Self(demand.into())
    }
}

impl Serialize for Demand {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for Demand {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::<String, u64>::deserialize(deserializer).map(Self::from_iter)
    }
}

/// A step, its edges and what it needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanStep {
    /// Its key.
    pub key: StepKey,
    /// Steps that must have succeeded first: indexes into [`Plan::steps`].
    pub after: Vec<u32>,
    /// Steps that must have ended first, whatever their outcome: indexes into [`Plan::steps`].
    pub after_ended: Vec<u32>,
    /// Units of each pool held while it runs.
    pub demand: Demand,
    /// Expected duration in microseconds.
    pub estimate_micros: u64,
    /// Wave, from 0.
    pub wave: u32,
    /// Steps with one number here may run together: they do the same to small stores of one kind in one shard. They have
    /// one wave and one demand, which those that run together hold once. Absent where the step runs alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<u32>,
}

/// How serious a note is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Worth a decision.
    Warning,
    /// The subject cannot be restored as asked; the others can.
    Error,
    /// The plan as a whole cannot be applied.
    Fatal,
}

/// A finding of the checker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// How serious.
    pub severity: Severity,
    /// Stable name of the finding, e.g. `site-alive`.
    pub code: String,
    /// What it is about: a site, store, shard or the plan.
    pub subject: String,
    /// What was found.
    pub text: String,
    /// What to do about it.
    pub hint: String,
}

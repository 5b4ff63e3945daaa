//! What the engine asks of a store: the restore side of one shard.
//!
//! A driver never decides: what to read, where to publish and in which order stands in the plan. All calls are
//! idempotent under one (run, epoch): a step whose outcome was not recorded is simply run again.
//!
//! Small stores are worked on in groups. By default that is one store after the other; a driver that can do better keeps to
//! this: each answer is its store's own, and where a group cannot be told apart (its one transaction was undone, by whose
//! fault is not known) all of it have the same error. The engine splits such a group until the culprit stands alone.

pub mod one_by_one;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use muster_rows::{Change, Row};
use muster_types::journal::{Migrated, NeighbourDigest, Published, TableDigest};
use muster_types::plan::{LiveStore, ShardSurvey};
use muster_types::segment::Mark;
use muster_types::snapshot::Beside;
use muster_types::table::CapturedTable;
use muster_types::{Epoch, Position, RunId, SiteId, StoreId};
use serde::Serialize;
use tokio::sync::mpsc;

/// What the caller should do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// Trying again cannot help: the store fails, others go on.
    Permanent,
    /// Trying again may help.
    Transient,
    /// The other side asks for less: back off, not a failure.
    Throttled,
    /// The other side is not there: it restarts, recovers or fails over. Waiting helps, for minutes if need be.
    Unavailable,
    /// The repository does not answer, or asks for less: nothing is wrong with the shard.
    RepositoryAway,
    /// It is not known whether the effect took place: ask (fence, publish records) before trying again.
    Ambiguous,
    /// A higher epoch holds the run: this engine must stop.
    Fenced,
    /// What was staged is gone, as after a crash of the shard: stage the store again and prove it again, then go on.
    StagingLost,
}

/// An error of a driver.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}; {hint}")]
pub struct DriverError {
    /// What to do about it, mechanically.
    pub class: ErrorClass,
    /// What failed and why, naming shard, store and row.
    pub message: String,
    /// What the operator can do.
    pub hint: String,
}

impl DriverError {
    /// An error of `class`.
    pub fn new(class: ErrorClass, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { class, message: message.into(), hint: hint.into() }
    }
}

/// A store to look at before a run.
#[derive(Clone, Debug)]
pub struct StoreProbe {
    /// The store.
    pub store: StoreId,
    /// Its tables as they were at the recovery point, parents first.
    pub tables: Arc<Vec<CapturedTable>>,
}

/// A store to restore: everything that its steps need.
#[derive(Clone, Debug)]
pub struct StoreWork {
    /// The run.
    pub run: RunId,
    /// The engine's epoch.
    pub epoch: Epoch,
    /// The store.
    pub store: StoreId,
    /// Its tables as they were at the recovery point, parents first.
    pub tables: Arc<Vec<CapturedTable>>,
    /// The site's live rows in this store may be replaced.
    pub overwrite: bool,
    /// Digest of the live definitions that the plan was made for; a difference fails the publish.
    pub definitions: Option<muster_types::Digest>,
    /// Bound on the publish transaction, in milliseconds, unless accepted; a longer one is rolled back.
    pub writer_block_milliseconds_max: Option<u64>,
}

impl StoreWork {
    /// With its tables as migrations left them.
    #[must_use]
    pub fn migrated(mut self, migrated: Option<&Migrated>) -> Self {
        if let Some(migrated) = migrated {
            let mut tables = self.tables.to_vec();
            for table in &mut tables {
                if let Some(found) = migrated.tables.get(&table.def.name) {
                    table.def = found.def.clone();
                }
            }
            self.tables = Arc::new(tables);
        }
        self
    }

    /// The mark that the publish transaction leaves.
    pub fn mark(&self) -> Mark {
        Mark { run: self.run.clone(), step: format!("publish/{}", self.store), epoch: self.epoch }
    }
}

/// Rows of one table, in no particular order. Batches are bounded in bytes by the sender.
#[derive(Debug)]
pub struct RowBatch {
    /// Index into [`StoreWork::tables`].
    pub table: usize,
    /// The rows: the stored columns of the table's definition.
    pub rows: Vec<Row>,
}

/// What an empty shard is given.
#[derive(Clone, Debug)]
pub struct ProvisionWork {
    /// The run.
    pub run: RunId,
    /// The engine's epoch.
    pub epoch: Epoch,
    /// The tables that sites share, parents first.
    pub tables: Arc<Vec<CapturedTable>>,
    /// What stands beside them.
    pub beside: Beside,
    /// Statements about these roles are left out.
    pub without_roles: Vec<String>,
}

/// What a provision step delivers: reference rows, then what they must be. Without the latter nothing is kept.
#[derive(Debug)]
pub enum ReferenceRows {
    /// Rows of one table, by its index in [`ProvisionWork::tables`].
    Batch(RowBatch),
    /// All were sent.
    End(BTreeMap<String, TableDigest>),
}

/// What a group's stage step delivers.
#[derive(Debug)]
pub enum GroupRows {
    /// Rows of one of its stores. They come table by table, and in a table store by store.
    Batch {
        /// Index into the group.
        store: usize,
        /// The rows.
        batch: RowBatch,
    },
    /// A store whose rows cannot be read to their end: what came of it is void, and its answer means nothing.
    Withdrawn {
        /// Index into the group.
        store: usize,
    },
}

/// A store of a group that is to be published, with what [`StoreDriver::digest_staged`] gave of it.
#[derive(Clone, Debug)]
pub struct PublishWork {
    /// The store.
    pub work: StoreWork,
    /// Its staged rows by table.
    pub expected: BTreeMap<String, TableDigest>,
}

/// A claim that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimRefusal {
    /// The store.
    pub store: StoreId,
    /// The open run that holds it.
    pub held_by: RunId,
}

/// A publish that an earlier engine of the run already committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishRecord {
    /// The store.
    pub store: StoreId,
    /// What it did.
    pub published: Published,
}

/// A statement that only reads, asked for one site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadQuery {
    /// The statement; `$1` in it is the bare id of `site`.
    pub sql: String,
    /// The site.
    pub site: SiteId,
    /// It is stopped after so long.
    pub limit: Duration,
    /// Rows that are wanted at most.
    pub rows_max: usize,
}

/// Where a shard is, for programs that look at it themselves; without anything secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "driver", rename_all = "snake_case")]
pub enum ShardAddress {
    /// A SQLite file.
    Sqlite {
        /// The file.
        path: PathBuf,
    },
    /// A PostgreSQL database.
    Postgres {
        /// A host name, an address, or the folder of a socket.
        host: String,
        /// The port.
        port: u16,
        /// The database.
        database: String,
        /// The role that Muster uses.
        user: String,
    },
}

/// A change in the shard's own log, not yet taken away by capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedChange {
    /// The table.
    pub table: String,
    /// Names of the columns that the rows of the change have, in order.
    pub columns: Arc<[String]>,
    /// To whom the row belongs: before the change for its old, after it for its new image. A row that changes site
    /// appears as a delete and an insert.
    pub site: Option<SiteId>,
    /// Muster's mark, if Muster made the change.
    pub mark: Option<Mark>,
    /// The change.
    pub change: Change,
}

/// The restore side of one shard.
///
/// # Errors
/// Every method returns a [`DriverError`] whose class says what to do.
#[async_trait]
pub trait StoreDriver: Send + Sync {
    /// The live state of stores: rows, definitions, claims, whether the shard takes writes. Reads only.
    async fn probe(&self, stores: &[StoreProbe]) -> Result<Vec<LiveStore>, DriverError>;

    /// What a shard holds that stores are to go to though they were elsewhere; `wanted` are the definitions that they had
    /// there. A place that the driver makes itself, and that is not there yet, is an empty shard. Reads only.
    async fn survey(&self, _wanted: &[CapturedTable]) -> Result<ShardSurvey, DriverError> {
        Err(no_provision())
    }

    /// Makes the empty place of a shard, where that is the driver's to make and it is not there. Repeatable.
    async fn make_place(&self) -> Result<(), DriverError> {
        Ok(())
    }

    /// Gives an empty shard definitions and reference rows, in one transaction that also records that it happened.
    /// If this run has provisioned the shard already, does nothing. Refuses a shard that has tables.
    async fn provision(
        &self,
        _work: &ProvisionWork,
        _rows: mpsc::Receiver<ReferenceRows>,
    ) -> Result<(), DriverError> {
        Err(no_provision())
    }

    /// Streams the live rows of a store in the columns of `store`'s tables, one consistent state; a column that is gone
    /// is NULL. Batches refer to the tables of `store` by index. Reads only.
    async fn live_rows(&self, store: &StoreProbe, rows: mpsc::Sender<RowBatch>) -> Result<(), DriverError>;

    /// What the live tables lack of the tables of `store`: each in words. Reads only.
    async fn lacks(&self, _store: &StoreProbe) -> Result<Vec<String>, DriverError> {
        Err(no_queries())
    }

    /// The first rows of a statement, each field as text, none where it is NULL. In a transaction that cannot write.
    async fn query(&self, _query: &ReadQuery) -> Result<Vec<Vec<Option<String>>>, DriverError> {
        Err(no_queries())
    }

    /// Where the shard is.
    fn address(&self) -> Result<ShardAddress, DriverError> {
        Err(no_queries())
    }

    /// Raises the shard's epoch row of the run to `epoch`, which waits for open publish transactions and fences lower
    /// epochs, and returns what the run has published here so far. Fails as [`ErrorClass::Fenced`] when a higher epoch
    /// stands there.
    async fn fence(&self, run: &RunId, epoch: Epoch) -> Result<Vec<PublishRecord>, DriverError>;

    /// Claims stores for the run; those held by another open run are refused, the others claimed. Repeatable.
    async fn claim(
        &self,
        run: &RunId,
        epoch: Epoch,
        stores: &[StoreId],
    ) -> Result<Vec<ClaimRefusal>, DriverError>;

    /// Loads rows beside the live data, replacing what an earlier attempt left. Ends when `rows` closes; the caller
    /// then knows that all were sent, or drops the staging by calling again.
    async fn stage(&self, work: &StoreWork, rows: mpsc::Receiver<RowBatch>) -> Result<(), DriverError>;

    /// Reads the staged rows back: rows and digest by table, every table of the work present.
    async fn digest_staged(&self, work: &StoreWork) -> Result<BTreeMap<String, TableDigest>, DriverError>;

    /// Whether what is staged of a store are the very rows that the last [`Self::stage`] of it in this process was given. A
    /// driver may be able to tell that cheaper than their digests; `false` says nothing, and digests decide.
    async fn is_as_staged(&self, _work: &StoreWork) -> Result<bool, DriverError> {
        Ok(false)
    }

    /// Applies the declared migrations that the staged rows need, beside what is staged, in one transaction; none where
    /// none applies. Repeatable: it begins with what is staged. The publish gets what [`StoreWork::migrated`] makes of it.
    async fn migrate(&self, _work: &StoreWork) -> Result<Option<Migrated>, DriverError> {
        Ok(None)
    }

    /// Makes the staged rows live in one transaction that also checks epoch, claim, definitions, that the site is not
    /// alive and that no key is held by another site, and that records that it happened. If this run has published
    /// the store already, returns that record and does nothing.
    ///
    /// `expected` are the digests of what is staged, or of what [`Self::migrate`] made of it; the rows that really became live are compared with it before
    /// the commit.
    async fn publish(
        &self,
        work: &StoreWork,
        expected: &BTreeMap<String, TableDigest>,
    ) -> Result<Published, DriverError>;

    /// As [`Self::stage`] for stores of one kind. Ends when `rows` closes. The answers are in the order of `group`.
    ///
    /// By default all rows are gathered first; a group's are few.
    async fn stage_group(
        &self,
        group: &[StoreWork],
        rows: mpsc::Receiver<GroupRows>,
    ) -> Vec<Result<(), DriverError>> {
        one_by_one::stage(self, group, rows).await
    }

    /// As [`Self::digest_staged`] for stores of one kind, in the order of `group`.
    async fn digest_staged_group(
        &self,
        group: &[StoreWork],
    ) -> Vec<Result<BTreeMap<String, TableDigest>, DriverError>> {
        one_by_one::digest_staged(self, group).await
    }

    /// As [`Self::is_as_staged`] for stores of one kind, in the order of `group`.
    async fn is_as_staged_group(&self, group: &[StoreWork]) -> Vec<Result<bool, DriverError>> {
        one_by_one::is_as_staged(self, group).await
    }

    /// As [`Self::publish`] for stores of one kind, in the order of `group`: in one transaction, or in one each.
    async fn publish_group(&self, group: &[PublishWork]) -> Vec<Result<Published, DriverError>> {
        one_by_one::publish(self, group).await
    }

    /// Changes with positions in `(after, upto]` that are still in the shard's own log, by position, and the lowest
    /// position from which on that log is complete: what lies below was made durable in the repository.
    async fn logged_changes(
        &self,
        after: Position,
        upto: Position,
    ) -> Result<(Position, Vec<LoggedChange>), DriverError>;

    /// Digests every captured row of the shard that belongs to none of `excluded`, in one snapshot whose position is
    /// known.
    async fn neighbour_digest(&self, excluded: &BTreeSet<StoreId>) -> Result<NeighbourDigest, DriverError>;

    /// Releases claims of these stores and removes their staging, unless a later epoch was raised: they are that engine's
    /// then. Repeatable.
    async fn release(&self, run: &RunId, epoch: Epoch, stores: &[StoreId]) -> Result<(), DriverError>;
}

fn no_queries() -> DriverError {
    DriverError::new(
        ErrorClass::Permanent,
        "the driver of this shard answers no questions about what lives in it",
        "take checks of its kinds, and references to them, out of the topology and plan again",
    )
}

fn no_provision() -> DriverError {
    DriverError::new(
        ErrorClass::Permanent,
        "the driver of this shard cannot give it definitions",
        "restore into a shard that has its tables",
    )
}

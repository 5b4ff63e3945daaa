//! What capture asks of a shard. Calls block; run them on a thread for blocking work.

use std::collections::BTreeMap;

use muster_rows::{Change, Row};
use muster_types::segment::{Commit, Mark, TableEvent};
use muster_types::snapshot::Beside;
use muster_types::table::CapturedTable;
use muster_types::{Boundary, Digest, Incarnation, Position, SiteId, Timestamp};

/// An error of the capture side, with what the operator can do.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}; {hint}")]
pub struct CaptureError {
    /// What failed and why.
    pub message: String,
    /// What to do.
    pub hint: String,
    /// Trying again later may help (a busy shard, for instance).
    pub transient: bool,
    /// The shard, a database of one site, is not there.
    pub gone: bool,
}

impl CaptureError {
    /// An error that needs an operator.
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into(), transient: false, gone: false }
    }

    /// An error that may pass.
    pub fn transient(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into(), transient: true, gone: false }
    }
}

/// Receives a snapshot: slices come by ascending site, and within a site by table.
pub trait SnapshotSink {
    /// The tables; slices refer to them by index. Called once, first.
    ///
    /// # Errors
    /// What the sink meets.
    fn tables(&mut self, tables: &[CapturedTable]) -> Result<(), CaptureError>;

    /// What the shard has beside its tables. Called at most once, behind [`Self::tables`].
    ///
    /// # Errors
    /// What the sink meets.
    fn beside(&mut self, _beside: &Beside) -> Result<(), CaptureError> {
        Ok(())
    }

    /// One row of (site, table); `None` for reference tables and rows whose site cannot be told, which come first.
    /// Rows of one (site, table) come together.
    ///
    /// # Errors
    /// What the sink meets.
    fn row(&mut self, site: Option<&SiteId>, table: usize, row: &Row) -> Result<(), CaptureError>;
}

/// Receives what one poll found.
pub trait ChangeSink {
    /// A captured table; changes and rows refer to it by the number of calls made before. Called before its use.
    ///
    /// # Errors
    /// What the sink meets.
    fn table(&mut self, table: &CapturedTable) -> Result<(), CaptureError>;

    /// One change. Changes of one (site, table, mark) come together, by ascending key; a poll of much may bring them in
    /// several such parts, each with its own frame. A row that changes site comes as a delete of the old site and an
    /// insert of the new one, at one position with ordinals that follow one another.
    ///
    /// # Errors
    /// What the sink meets.
    fn change(
        &mut self,
        site: Option<&SiteId>,
        table: usize,
        mark: Option<&Mark>,
        change: Change,
    ) -> Result<(), CaptureError>;

    /// One row of a table that is read again whole; ordered like [`SnapshotSink::row`]. Comes after all changes.
    ///
    /// # Errors
    /// What the sink meets.
    fn reread_row(&mut self, site: Option<&SiteId>, table: usize, row: &Row) -> Result<(), CaptureError>;

    /// Something that concerns a whole table.
    ///
    /// # Errors
    /// What the sink meets.
    fn table_event(&mut self, event: TableEvent) -> Result<(), CaptureError>;

    /// A commit that is a recovery point of its own; positions ascend. A poll that reads a table again whole tells
    /// none: only its end is one.
    ///
    /// # Errors
    /// What the sink meets.
    fn commit(&mut self, commit: Commit) -> Result<(), CaptureError>;
}

/// Where capture stands in the shard, as the shard itself remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardState {
    /// The shard's history.
    pub incarnation: Incarnation,
    /// Everything up to here was acknowledged and may be gone from the shard's change table.
    pub acknowledged: Position,
    /// The segment that was acknowledged last: its sequence and the digest of its index.
    pub head: Option<(u64, Digest)>,
    /// The last position that the shard has given.
    pub last: Position,
    /// Why the incarnation cannot be gone on with, if the shard itself can tell: its log is gone, or is another's.
    pub broken: Option<String>,
}

/// What a poll found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Polled {
    /// The recovery point.
    pub boundary: Boundary,
    /// Changes found.
    pub changes: u64,
    /// Tables present and not declared.
    pub undeclared: Vec<String>,
    /// It ended early, where a table was altered for instance: the next one has something to read at once.
    pub more: bool,
}

/// What `init` did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// Tables captured.
    pub tables: Vec<String>,
    /// Triggers installed, now or before.
    pub triggers: u64,
    /// Nothing had to be changed.
    pub unchanged: bool,
    /// What could not be had, with what that costs.
    pub notes: Vec<String>,
}

/// The capture side of one shard.
///
/// # Errors
/// Every method returns a [`CaptureError`].
pub trait CaptureSource: Send {
    /// Installs what records changes. Repeatable.
    fn init(&mut self) -> Result<Installed, CaptureError>;

    /// Takes away everything that `init` and Muster's runs put into the shard.
    fn remove(&mut self) -> Result<(), CaptureError>;

    /// Where capture stands. Fails with a hint to run `muster capture init` where it has not been.
    fn state(&mut self) -> Result<ShardState, CaptureError>;

    /// Begins a new incarnation: after the shard was rewound, or lost its log.
    fn begin_incarnation(&mut self, incarnation: &Incarnation) -> Result<(), CaptureError>;

    /// Reads one consistent state whole.
    fn snapshot(
        &mut self,
        not_before: Boundary,
        sink: &mut dyn SnapshotSink,
    ) -> Result<Boundary, CaptureError>;

    /// Reads one consistent state's changes behind `after`; its stamp is not before `after`'s. With `watermark` the
    /// boundary is a new one also where nothing changed.
    fn poll(
        &mut self,
        after: Boundary,
        watermark: bool,
        sink: &mut dyn ChangeSink,
    ) -> Result<Polled, CaptureError>;

    /// The time of the change at `position`, while the shard still has it.
    fn change_at(&mut self, position: Position) -> Result<Option<Timestamp>, CaptureError>;

    /// Everything up to `upto` is durable in the segment `head`: it may be removed here.
    fn acknowledge(&mut self, upto: Position, head: (u64, Digest)) -> Result<(), CaptureError>;

    /// Settings that the text of fields depends on, for the manifest.
    fn session(&self) -> BTreeMap<String, String>;

    /// The shard's clock minus this machine's, and half the round trip of asking, in microseconds.
    fn clock_offset_micros(&mut self) -> Result<(i64, u64), CaptureError>;
}

//! The rows of one table at a recovery point: read, checked, folded.
//!
//! [`open`] gives batches of rows as they come; [`table_rows`] hands them to a closure. Fetching runs ahead of
//! decoding; decompression, fold and digests run on a thread for blocking work ([`crate::offload`]).
//!
//! # Invariants
//! - Every chunk has the digest that manifest or index says, and the base rows have theirs.
//! - The digest of the base plus that of inserted rows minus that of deleted ones is the digest of the rows given,
//!   where the log carries whole rows.
//! - Both are known only when all rows have been given: rows count when [`TableStream::finish`] says so.
//! - Memory: the budget for the fold, a few chunks ahead, one batch or two.
//!
//! # Errors
//! Damage names the object, the byte range and what differs.

mod changes;
mod pass;
mod source;

use std::future::Future;

use muster_rows::Row;
use muster_types::Digest;
use muster_types::plan::TableInput;
use muster_types::snapshot::ObjectInfo;
use muster_types::table::CapturedTable;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::error::RepoError;
use crate::offload;
use crate::range::RangeReader;

/// Batches between the thread that makes them and whoever takes them.
const BATCHES_AHEAD: usize = 2;

/// What was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableRows {
    /// Number of rows.
    pub rows: u64,
    /// Their order-free digest.
    pub digest: Digest,
    /// Changes folded.
    pub changes: u64,
    /// Changes dropped as repeats.
    pub repeats: u64,
    /// Compressed bytes read; more than once where the fold took several passes.
    pub bytes_read: u64,
    /// The digest was also derived from base and changes, and agreed. Not so where the log leaves columns out,
    /// truncates, or has repeats.
    pub derived: bool,
}

/// Batches of rows of one table.
#[derive(Debug)]
pub struct TableStream {
    batches: mpsc::Receiver<Vec<Row>>,
    worker: JoinHandle<Result<TableRows, RepoError>>,
}

/// Starts to read the rows of `table` that `input` describes. Ranges refer to `objects` by index. `budget_bytes`
/// bounds the fold; changes beyond it are folded in several passes.
///
/// Must be called within a tokio runtime.
pub fn open(
    reader: &RangeReader,
    table: &CapturedTable,
    input: &TableInput,
    objects: &[ObjectInfo],
    budget_bytes: u64,
) -> TableStream {
    let (sender, batches) = mpsc::channel(BATCHES_AHEAD);
    let task = pass::Task::new(reader, table, input, objects, budget_bytes, sender);
    let worker = offload::start(async move { task?.run().await });
    TableStream { batches, worker }
}

impl TableStream {
    /// The next rows; `None` when there are no more, or after an error, which [`Self::finish`] returns.
    pub async fn next(&mut self) -> Option<Vec<Row>> {
        self.batches.recv().await
    }

    /// [`Self::next`] for threads that may block.
    pub fn blocking_next(&mut self) -> Option<Vec<Row>> {
        self.batches.blocking_recv()
    }

    /// Says whether all rows were given and are what the repository holds.
    ///
    /// # Errors
    /// What was met while reading.
    pub async fn finish(mut self) -> Result<TableRows, RepoError> {
        self.batches.close();
        match self.worker.await {
            Ok(result) => result,
            Err(error) => Err(RepoError::misuse(format!("the task that reads rows ended early: {error}"))),
        }
    }
}

/// Reads the rows of a table and gives them to `emit`, batch by batch; see [`open`].
///
/// # Errors
/// What was met while reading, and what `emit` returns. What was emitted before is not to be used then.
pub async fn table_rows<E, F, Fut>(
    reader: &RangeReader,
    table: &CapturedTable,
    input: &TableInput,
    objects: &[ObjectInfo],
    budget_bytes: u64,
    mut emit: F,
) -> Result<TableRows, E>
where
    E: From<RepoError>,
    F: FnMut(Vec<Row>) -> Fut,
    Fut: Future<Output = Result<(), E>>,
{
    let mut stream = open(reader, table, input, objects, budget_bytes);
    while let Some(batch) = stream.next().await {
        emit(batch).await?;
    }
    Ok(stream.finish().await?)
}

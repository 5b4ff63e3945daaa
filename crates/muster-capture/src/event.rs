//! What capture does, told as it happens.

use std::sync::Arc;

use muster_types::{Boundary, Incarnation, ShardName, SnapshotId};

use crate::error::CaptureFailure;

/// Something that happened in one shard's capture.
#[derive(Clone, Debug)]
pub enum CaptureEvent {
    /// A new history begins.
    IncarnationBegun {
        /// The shard.
        shard: ShardName,
        /// Its name.
        incarnation: Incarnation,
        /// Why.
        reason: String,
        /// The last recovery point before; what lies between is lost.
        after: Option<Boundary>,
    },
    /// Segments that an earlier capture made durable were acknowledged after all.
    Resumed {
        /// The shard.
        shard: ShardName,
        /// Where the log ends.
        boundary: Boundary,
    },
    /// A snapshot is in the repository.
    Snapshot {
        /// The shard.
        shard: ShardName,
        /// Its id.
        snapshot: SnapshotId,
        /// Its state.
        boundary: Boundary,
        /// Rows in it.
        rows: u64,
        /// How long it took, uploads included.
        seconds: f64,
    },
    /// A segment is in the log: a new recovery point.
    Appended {
        /// The shard.
        shard: ShardName,
        /// Its number.
        sequence: u64,
        /// The recovery point.
        boundary: Boundary,
        /// Changes in it; none in a watermark.
        changes: u64,
        /// From the recovery point to the moment that it was durable.
        lag_seconds: f64,
    },
    /// An alarm: tables that are in the shard and not captured.
    Undeclared {
        /// The shard.
        shard: ShardName,
        /// Their names.
        tables: Vec<String>,
    },
    /// A database of one site was released: it is captured no longer. Told once.
    Released {
        /// The shard.
        shard: ShardName,
        /// Its last recovery point.
        boundary: Boundary,
        /// It has been dropped since.
        gone: bool,
    },
    /// A cycle failed; it is tried again after the pause.
    Failed {
        /// What happened.
        failure: CaptureFailure,
        /// The pause.
        retry_seconds: f64,
    },
    /// Another capture follows the shard: this one stands by.
    StandsBy {
        /// Who has it.
        failure: CaptureFailure,
    },
    /// Capture of the shard ended with an error.
    Stopped {
        /// What happened.
        failure: CaptureFailure,
    },
}

/// Is called with every event, from any thread; must not block.
pub type Events = Arc<dyn Fn(CaptureEvent) + Send + Sync>;

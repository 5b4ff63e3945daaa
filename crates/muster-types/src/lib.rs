//! What crosses a process, disk or version boundary in Muster.
//!
//! Identifiers, times and positions; the topology; what the repository holds; the catalog read from it; incident,
//! plan, journal, events and report. Everything here is a plain value: no I/O, no clock, no runtime.
//!
//! # Invariants
//! - Every persisted document carries a `format` number; [`mod@format`] says which are understood and refuses newer ones.
//! - Ids are typed: a [`SiteId`] is never built from an `app:` id.
//! - Collections that are serialised are ordered, so that equal values have equal bytes and digests.
//!
//! # Not here
//! Rows and changes (`muster-rows`), and any behaviour beyond parsing, printing and validating one value.

pub mod alarm;
pub mod catalog;
pub mod check;
pub mod compacted;
pub mod digest;
pub mod drill;
pub mod drill_history;
pub mod forget;
pub mod format;
pub mod ids;
pub mod incident;
pub mod jobs;
pub mod journal;
pub mod kind_check;
pub mod plan;
pub mod position;
pub mod preflight;
pub mod reference;
pub mod report;
pub mod request;
pub mod retention;
pub mod segment;
pub mod snapshot;
pub mod table;
pub mod time;
pub mod topology;

pub use digest::Digest;
pub use ids::{
    DrillId, Epoch, IdError, Incarnation, Kind, PlanId, RunId, ShardName, SiteId, SnapshotId, StoreId,
    TypedId,
};
pub use position::{Boundary, ChangeKey, Position};
pub use time::Timestamp;

//! Runs the drivers' capture sides into the repository.
//!
//! | module | what |
//! |---|---|
//! | [`install`] | puts capture into the shards of a topology and takes it away |
//! | [`mod@release`] | gives databases of single sites free |
//! | [`servers`] | what shards of one server share: slots, databases |
//! | [`runner`] | [`CaptureRunner`]: all shards, once or until told to stop |
//! | [`shard`] | [`ShardCapture`]: one shard, from its state to durable segments |
//! | [`event`] | what happened, for whoever prints it |
//! | [`error`] | [`CaptureFailure`] |
//!
//! # Invariants
//! - A change leaves the shard's change table only when the segment that holds it is durable. After a crash between
//!   the two the shard names an older head than the log has: it is acknowledged again, nothing is read twice.
//! - A shard that is behind the log, or names a head that the log does not have, was rewound: a new incarnation begins,
//!   with a snapshot. What lies between is a gap.
//! - Of two captures of one shard one loses the next slot of the log and stops.
//! - One shard's failure costs no other shard.
//!
//! # Not here
//! How changes are recorded (`muster-stores`), how they are laid out in S3 (`muster-repo`), printing.

pub mod error;
pub mod event;
mod gone;
pub mod install;
pub mod release;
pub mod runner;
pub mod servers;
pub mod shard;
mod sink;

pub use error::CaptureFailure;
pub use event::{CaptureEvent, Events};
pub use install::{Installer, ShardInstalled, check_shard, live_tables};
pub use release::{Released, databases_of, release};
pub use runner::{CaptureOptions, CaptureRunner, ShardOutcome};
pub use servers::{FamilyCoverage, check_families, check_slots};
pub use shard::{Recorded, ShardCapture, SourceFactory};

//! The restore side of a SQLite shard: [`SqliteDriver`], a [`StoreDriver`](muster_engine::driver::StoreDriver).
//!
//! Staging is a file of plain tables beside the shard, one for each store; publishing attaches it and is one
//! transaction of `INSERT … SELECT`. Calls block and run on threads for blocking work.
//!
//! # Invariants
//! - The application's triggers never fire for Muster's writes, nor do those of capture: what is published is logged
//!   by the publishing transaction itself, with its mark.
//! - What a publish really changed, seen row by row, equals what was staged, or it is rolled back.
//! - Neighbours keep writing: the shard's write lock is held for one publish transaction at a time, whose bound the
//!   work names.
//!
//! # Errors
//! [`DriverError`](muster_engine::driver::DriverError) with the class that says what to do.
//!
//! # Not here
//! Reading changes for the repository (`sqlite::capture`), and any decision: those stand in the plan.

mod ask;
mod changes;
mod compare;
mod conflict;
mod driver;
mod effects;
mod errors;
mod fault;
mod fence;
mod find;
mod live;
mod log;
mod look;
mod overwrite;
mod probe;
mod proof;
mod provision;
mod publish;
mod shard;
mod sql;
mod stage;
#[cfg(test)]
mod tests;

pub use driver::SqliteDriver;
#[cfg(any(test, feature = "fault-injection"))]
pub use fault::Fault;

//! The restore side of a PostgreSQL shard: [`PostgresDriver`], a [`StoreDriver`](muster_engine::driver::StoreDriver).
//!
//! Staging is a few unlogged tables in schema `muster`, shared by a run's stores; publishing is one transaction of
//! `INSERT … SELECT`, of one store or of a group of small ones.
//!
//! # Invariants
//! - The application's triggers do not act on Muster's writes, nor do its foreign keys: what they demand is checked by
//!   the publish itself.
//! - What a publish really changed equals what was staged, or it is rolled back.
//! - Neighbours keep writing: no DDL on live tables, and no wait for a lock beyond a few seconds.
//!
//! # Errors
//! [`DriverError`](muster_engine::driver::DriverError) with the class that says what to do.
//!
//! # Not here
//! Reading changes for the repository (`postgres::capture`), and any decision: those stand in the plan.

mod ask;
mod compare;
mod conflict;
mod copy;
mod driver;
mod effects;
mod errors;
mod fence;
mod find;
mod fitness;
mod group;
mod lines;
mod live;
mod look;
mod migrate;
mod overwrite;
mod owner;
mod privileges;
mod probe;
mod proof;
mod provision;
mod publish;
mod recreate;
mod references;
mod sequences;
mod shard;
mod stage;

pub use driver::PostgresDriver;
pub use fitness::Fitness;
pub(in crate::postgres) use probe::claims;

//! The harness of the whole-system tests: what a responder would do, done by the real binary.
//!
//! A [`World`] is a temporary folder with a generated fleet, its topology, and a running `muster s3 serve`; or its shards
//! are databases of the shared PostgreSQL, and its repository a bucket of the shared MinIO. Commands
//! run as a user runs them ([`World::muster`], answered by [`Ran`]) or are watched and killed ([`Engine`]). The judge is
//! the oracle of `muster-demo`, which shares no code with Muster; for [`Tenants`], it is `pg_dump`. A [`Folder`] is for shards and repositories that a test
//! brings along; a [`Series`] is one fleet with incident after incident; a [`Proxy`] stands between Muster and its store, and
//! harms what passes; [`transaction_ends`] is PostgreSQL's own word on the order of its commits.
//!
//! # Invariants
//! - Nothing here waits by time: [`until`] looks for a condition and fails at a deadline.
//! - Every world prints its seed with a line that reproduces; `MUSTER_SEED` sets it, `MUSTER_KEEP=1` keeps the folder.
//!
//! # Errors
//! A harness stops its test: everything panics with what was run and what it said.
//!
//! # Not here
//! What is tested: one file a subject in `tests/`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a harness stops its test by panicking")]
#![allow(clippy::print_stderr, reason = "cargo shows it with a failure")]

mod binary;
mod command;
mod engine;
mod folder;
mod harm;
mod incident;
mod page;
mod proxy;
mod rows;
mod saved;
mod seed;
mod series;
mod serve;
mod server;
mod services;
mod shard;
mod tenants;
mod wal;
mod watch;
mod world;

pub use binary::muster;
pub use command::Ran;
pub use engine::Engine;
pub use folder::Folder;
pub use harm::{Harmed, Mount};
pub use incident::{Incident, now};
pub use page::Page;
pub use proxy::{Asked, Fault, Proxy, Schedule, drawn};
pub use rows::{Owned, Row, Rows, connect, differences, rows, rows_of, without_added};
pub use saved::Saved;
pub use seed::{cases, fault_rounds, seed};
pub use series::Series;
pub use serve::ServeProcess;
pub use shard::{copy_shard, query, query_text, rows_of_site};
pub use tenants::{Tenants, assert_same_dump};
pub use wal::{TransactionEnd, lsn, position, transaction_ends};
pub use watch::Moment;
pub use world::{Size, World, until};

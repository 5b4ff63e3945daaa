//! A demo fleet, its writers, the deletion script and an independent oracle.
//!
//! [`Fleet::generate`] makes SQLite shards full of small sites, [`Fleet::generate_on`] PostgreSQL databases with the same
//! rows; [`Fleet::start_writers`] keeps them busy; [`Fleet::delete_victims`] is the bad script; [`Fleet::judge`] compares
//! what came back with every committed state that the victims had, and every neighbour's rows with what the writers did to
//! them.
//!
//! # Invariants
//! - Shares no code with Muster: it knows SQLite and PostgreSQL and nothing else.
//! - The judge reads live shards with its own queries and compares whole rows, storage classes included.
//!
//! # Errors
//! [`anyhow::Error`] for what cannot be read or written. A difference is not an error but part of the
//! [`Verdict`]; whoever asked must fail on it.
//!
//! # Not here
//! Muster's commands between deletion and judgement: the `muster demo` command runs them.

mod activity;
mod deletion;
mod fleet;
mod kind;
mod load;
mod oracle;
mod postgres;
mod record;
mod schema;
mod site;
mod topology;
mod words;
mod writers;

pub use deletion::{DeletedSite, DeletionLog};
pub use fleet::{Fleet, FleetConfig};
pub use kind::{Kind, Role};
pub use oracle::{Difference, Loss, Reached, Verdict};
pub use postgres::{Database, PostgresServer};
pub use record::Shard;
pub use schema::{Owner, Table, all_tables, tables};
pub use site::{REGIONS, Site};
pub use topology::{RepositoryPlace, TopologyOptions};
pub use writers::{WriterConfig, WriterSummary, Writers};

//! Shards as PostgreSQL databases, one each.
//!
//! The application keeps a *model* of each shard in SQLite: what it has committed, and nothing else. A writer's transaction
//! runs in PostgreSQL in the statements of its dialect; when its COMMIT has returned, the same transaction runs in the model and
//! goes into the ledger. The judge replays the ledger in SQLite as ever and compares with an export of the live tables.
//!
//! # Invariants
//! - Transactions of different sites overlap in a shard; only their COMMITs take turns, so that the ledger has the
//!   order of the log.
//! - The model is not changed by a restore: nobody writes to a deleted site again.

mod commit;
mod definitions;
mod export;
mod load;
mod schema;
mod server;
mod session;
mod translate;
mod value;

#[cfg(test)]
mod tests;

pub(crate) use commit::commit;
pub(crate) use export::export;
pub(crate) use load::fill;
pub use server::{Database, PostgresServer};
pub(crate) use session::Session;

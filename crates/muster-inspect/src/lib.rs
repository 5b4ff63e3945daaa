//! Looks at sites as they were, before anything is restored: rows, facts, differences, exports.
//!
//! - [`SiteAt`]: the stores of one site at a moment, and their rows, table by table.
//! - [`read_facts`]: what the directory and licence rows of many sites said at their targets.
//! - [`Difference`]: rows added, removed and changed between two states of a table.
//! - [`export`]: rows as text that `sqlite3` or `psql` loads.
//!
//! # Invariants
//! - Nothing here writes to a shard or to the repository.
//! - Rows are streamed; what is kept of them is bounded by the number of rows of one table, at a digest each.
//!
//! # Errors
//! [`InspectError`] passes on what the repository or the planner says.

mod difference;
mod error;
pub mod export;
mod facts;
mod site;

pub use difference::{Difference, TableImage};
pub use error::InspectError;
pub use facts::read_facts;
pub use site::{SiteAt, StoreAt};

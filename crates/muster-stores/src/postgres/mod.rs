//! PostgreSQL shards: one database with many sites' rows.
//!
//! - [`connect`]: connections and the settings that text depends on. [`schema`]: reading table definitions.
//! - [`system`]: the tables that Muster keeps in a shard.
//! - [`capture`]: the capture side, a [`CaptureSource`](crate::capture::CaptureSource).
//! - [`server`]: what databases of one server share.
//! - [`check()`]: whether a database is fit for both.
//! - [`restore`]: the restore side, a [`StoreDriver`](muster_engine::driver::StoreDriver).

pub mod capture;
mod check;
pub mod connect;
pub mod restore;
mod sandbox;
pub mod schema;
pub mod server;
pub mod system;

pub use capture::{PostgresSource, capture_notes};
pub use check::check;
pub use restore::{Fitness, PostgresDriver};
pub(crate) use sandbox::{Server, is_live};
pub use schema::live_tables;

/// For names that must not meet, also those that another process makes on the same server.
fn random_number() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // Every state is keyed at random.
    std::hash::RandomState::new().build_hasher().finish()
}

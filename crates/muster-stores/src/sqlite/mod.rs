//! SQLite shards: one file with many sites' rows.
//!
//! - [`schema`]: reading table definitions. [`value`]: SQLite values as fields and back.
//! - [`system`]: names and definitions of the `_muster_*` tables that Muster keeps in the shard.
//! - [`capture`]: the capture side, a [`CaptureSource`](crate::capture::CaptureSource).

pub mod capture;
mod definitions;
pub mod restore;
mod sandbox;
pub mod schema;
pub mod system;
pub mod value;

pub use definitions::live_definitions;
pub(crate) use sandbox::{Folder, is_live};

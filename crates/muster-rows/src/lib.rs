//! Rows as text fields, changes, the fold and order-free digests.
//!
//! - [`Row`]: the stored columns of one row as text, each with its storage [`Class`].
//! - [`Change`]: one row change with its place and time in a shard's history.
//!
//! # Not here
//! I/O. Where lines come from and go to is the repository's and the drivers' business.

mod change;
mod row;

pub use change::{Change, Op};
pub use row::{Class, Field, Row, RowBuilder};

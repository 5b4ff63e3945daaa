//! One PostgreSQL shard of many sites, with its repository on MinIO.
//!
//! | module | what |
//! |---|---|
//! | [`tables`] | its tables, made and filled in the server; deletion; digests of sites' rows |
//! | [`captured`] | capture on it, plans, restores |
//! | [`follow`] | capture that follows, in a process of its own |
//! | [`writers`] | connections that write short transactions |

pub(crate) mod captured;
pub(crate) mod follow;
pub(crate) mod tables;
pub(crate) mod writers;

pub(crate) use captured::Captured;
pub(crate) use tables::{Size, Tables};

/// Settings of every cluster that is measured. A database of its size has some memory; what autovacuum does at times of
/// its own would fall into one side's round or the other's.
pub(crate) const SETTINGS: [(&str, &str); 3] =
    [("shared_buffers", "512MB"), ("max_wal_size", "8GB"), ("autovacuum", "off")];

/// Runs what blocks, where the other tasks of the process go on.
pub(crate) fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

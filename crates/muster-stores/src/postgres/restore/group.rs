//! Small stores of one kind, worked on together: one COPY a table to load them, one query a table to read them back, one
//! transaction to publish them.
//!
//! # Invariants
//! - An answer is its store's own where the fault is known to be its own. Where it is not, the whole group has the same
//!   error and nothing of it was done.
//! - Stores that do not fit together (other tables, rows to replace, a table that is locked for a publish) are worked on one
//!   after the other.

mod publish;
mod stage;
mod stream;

use muster_engine::driver::{DriverError, StoreWork};

pub(super) use publish::publish;
pub(super) use stage::{digest_staged, is_as_sent, stage};

/// Whether they can share statements: one run, kind, bound, and the same tables.
fn fit_together<'w>(mut works: impl Iterator<Item = &'w StoreWork>) -> bool {
    let Some(first) = works.next() else { return false };
    let fits = |work: &StoreWork| {
        work.run == first.run
            && work.epoch == first.epoch
            && work.store.kind == first.store.kind
            && work.writer_block_milliseconds_max == first.writer_block_milliseconds_max
            && !work.overwrite
            && (std::sync::Arc::ptr_eq(&work.tables, &first.tables) || work.tables == first.tables)
    };
    !first.overwrite && works.all(fits)
}

/// The same error for each.
fn all<T>(count: usize, error: &DriverError) -> Vec<Result<T, DriverError>> {
    (0..count).map(|_| Err(error.clone())).collect()
}

//! Keeps a repository fit.
//!
//! - [`compact`]: the change logs of a shard compacted, so that reads grow with the logarithm of their length.
//! - [`fold`]: snapshots made in the repository, and compared with those that were read from the shard.
//! - [`forget`]: a site's rows overwritten wherever they lie, with a receipt.
//! - [`prune`]: what nothing needs any more removed, in two phases.
//!
//! # Invariants
//! - Everything here can run beside capture, plans and restores, on several machines at once, and may end at any point.
//! - Nothing reads a clock: times are arguments.
//!
//! # Errors
//! [`RepoError`](muster_repo::RepoError): what the object store answers, and damaged objects by name.

pub mod compact;
pub mod fold;
pub mod forget;
pub mod prune;

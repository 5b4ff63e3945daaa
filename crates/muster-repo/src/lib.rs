//! The repository in S3: packs, manifests, change log, run objects.
//!
//! | module | what |
//! |---|---|
//! | [`objects`] | the [`Objects`] trait: what Muster asks of an object store |
//! | [`create`] | create-if-absent that recognises its own write, for those who implement it |
//! | [`offload`] | where decoding is done |
//! | [`s3`] | [`S3Objects`]: that trait over `aws-sdk-s3` |
//! | [`memory`] | [`MemoryObjects`]: that trait in memory, and [`memory::Faulty`], a wrapper that injects faults |
//! | [`repository`] | [`Repository`]: open or create one; incarnations of shards |
//! | [`jobs`] | chains of scheduled jobs, signs of life of servers |
//! | [`scratch`] | folders for files on their way to the repository |
//! | [`keys`] | where each object lies |
//! | [`snapshot`] | [`SnapshotWriter`]: packs, pages and root of one snapshot |
//! | [`segment`] | [`SegmentSpool`]: the data and frames of one change-log segment |
//! | [`chain`] | [`Chain`]: the create-if-absent chain of segment indexes |
//! | [`check`] | objects held against their digests, a share at a time |
//! | [`compact`] | the log compacted: consecutive segments laid out anew, site by site |
//! | [`catalog`] | what can be restored, read for chosen sites |
//! | [`forget`] | sites that are forgotten |
//! | [`log`] | [`log::LogReader`]: the change log between two positions |
//! | [`preflights`] | preflights that passed |
//! | [`range`] | [`RangeReader`]: coalesced ranged reads, each fetched once |
//! | [`rows`] | the rows of one table at a recovery point |
//! | [`retention`] | holds, and lists of what is to be removed |
//! | [`topologies`] | the topology, version by version |
//! | [`runs`] | [`RunObjects`]: plan and journal of a run |
//!
//! # Invariants
//! - Only this crate names `aws-sdk-s3`.
//! - Every byte range that is read back is checked against a BLAKE3 digest before it is used.
//! - Every document says its format; a newer one is refused before anything else of it is read.
//! - Objects are written once. Data is durable before the object that names it.
//!
//! # Errors
//! [`RepoError`]: a kind by what the caller can do, a message naming the object, and a hint.
//!
//! # Not here
//! What to restore (`muster-plan`), where rows come from and go to (`muster-stores`).

pub mod catalog;
pub mod chain;
pub mod check;
mod chunk;
pub mod compact;
pub mod create;
mod document;
pub mod drills;
pub mod error;
pub mod forget;
pub mod jobs;
pub mod keys;
pub mod log;
pub mod memory;
pub mod objects;
pub mod offload;
pub mod preflights;
pub mod range;
pub mod records;
pub mod repository;
pub mod retention;
pub mod rows;
pub mod runs;
pub mod s3;
pub mod scratch;
pub mod segment;
pub mod snapshot;
pub mod topologies;

pub use chain::{Chain, ChainError, ChainHead};
pub use drills::DrillObjects;
pub use error::{RepoError, RepoErrorKind};
pub use memory::MemoryObjects;
pub use objects::{Creation, ObjectEntry, Objects};
pub use range::{RangeLimits, RangeReader};
pub use records::{AlarmChain, JobChain};
pub use repository::{IncarnationDocument, ReleaseDocument, Repository};
pub use rows::TableRows;
pub use runs::RunObjects;
pub use s3::{S3Config, S3Objects};
pub use segment::{SegmentSpool, SpooledSegment};
pub use snapshot::SnapshotWriter;

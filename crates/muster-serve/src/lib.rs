//! What is due, which server does it, and what came of it: the decisions of the long-running service.
//!
//! - [`schedule`]: when a job is due.
//! - [`agenda`]: what a server does next about a job, from the last record of the job's chain.
//! - [`liveness`]: which servers show signs of life.
//!
//! # Invariants
//! Pure: clock, records and signs of life are arguments. Any number of servers may share a repository: they agree through
//! the chain's create-if-absent slots alone.
//!
//! # Not here
//! Reading and writing the chain, the work of a job, pages and metrics.

pub mod agenda;
pub mod liveness;
pub mod schedule;

pub use agenda::{Job, Next, follows, next};
pub use liveness::Liveness;
pub use schedule::{Schedule, ScheduleError};

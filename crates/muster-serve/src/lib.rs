//! What is due, which server does it, and what came of it: the decisions of the long-running service.
//!
//! - [`schedule`]: when a job is due.
//! - [`agenda`]: what a server does next about a job, from the last record of the job's chain.
//! - [`liveness`]: which servers show signs of life.
//! - [`runner`]: runs what is due.
//! - [`alarms`]: what is wrong, and which edges of it are told; [`agreement`]: by whom; [`watch`]: how it is looked for; [`webhook`]: who is told.
//! - [`metrics`], [`http`]: what can be asked.
//!
//! # Invariants
//! Any number of servers may share a repository: they agree through the chain's create-if-absent slots alone. What is decided is
//! a pure function of clock, records and signs of life; only the runner and the pages have effects.
//!
//! # Not here
//! The work of a job.

pub mod agenda;
pub mod agreement;
pub mod alarms;
pub mod http;
pub mod liveness;
pub mod metrics;
pub mod runner;
pub mod schedule;
pub mod watch;
pub mod webhook;

pub use agenda::{Job, Next, follows, next};
pub use liveness::Liveness;
pub use metrics::Metrics;
pub use runner::{JobEvent, JobEvents, JobRunner, Work};
pub use schedule::{Schedule, ScheduleError};

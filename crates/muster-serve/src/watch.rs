//! Looks at the repository for what is wrong. Each keeps what it has read, and reads what is new.
//!
//! Everything is judged by what lies in the repository, not by what this server does, so that all servers of it come to
//! the same view, also of the work of those that died.

mod checks;
mod drills;
mod jobs;
mod log;
mod runs;

pub use checks::damages;
pub use drills::DrillsWatch;
pub use jobs::JobsWatch;
pub use log::{LogLook, LogWatch, LostSites};
pub use runs::RunsWatch;

use muster_types::Timestamp;

/// A moment so many seconds before another.
fn before(now: Timestamp, seconds: u64) -> Timestamp {
    let micros = i64::try_from(seconds.saturating_mul(1_000_000)).unwrap_or(i64::MAX);
    Timestamp::from_micros(now.as_micros().saturating_sub(micros))
}

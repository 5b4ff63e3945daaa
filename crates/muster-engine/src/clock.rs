//! Where the engine's times come from.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use muster_types::Timestamp;

/// A clock; tests give their own.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self::from_fn(|| {
            let micros = match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
                Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
                Err(before) => {
                    i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros)
                }
            };
            Timestamp::from_micros(micros)
        })
    }

    /// A clock that asks `now`.
    pub fn from_fn(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// A clock that asks this one once and counts from there on: whatever this one is set to meanwhile, pauses are as long
    /// as they should be, and nothing ends before it began.
    ///
    /// Counts with the runtime's own time.
    #[must_use]
    pub fn steady(&self) -> Self {
        let (began, since) = (self.now(), tokio::time::Instant::now());
        Self::from_fn(move || {
            began.plus_micros(i64::try_from(since.elapsed().as_micros()).unwrap_or(i64::MAX))
        })
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

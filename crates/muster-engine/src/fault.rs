//! Crash points: where tests let an engine die.
//!
//! A point that is reached when its time has come never returns; whoever planted it drops the engine, which is what
//! a crash leaves behind. Without the feature `fault` all of this is empty.

/// A place where an engine can die.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Point {
    /// Before a journal entry is written.
    BeforeEntry,
    /// After it is durable, before anyone knows.
    AfterEntry,
    /// After a step's start is durable, before it has effects.
    BeforeEffect,
    /// After its effects, before their record.
    AfterEffect,
}

#[cfg(any(test, feature = "fault"))]
mod planted {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::sync::Notify;

    use super::Point;

    /// The crash points of one engine.
    #[derive(Clone, Debug, Default)]
    pub struct Faults {
        planted: Option<Arc<Planted>>,
    }

    #[derive(Debug)]
    struct Planted {
        at: Point,
        left: AtomicU64,
        reached: Notify,
    }

    impl Faults {
        /// No crash.
        pub fn none() -> Self {
            Self::default()
        }

        /// Dies when `point` is reached for the `nth` time, counted from 1.
        pub fn at(point: Point, nth: u64) -> Self {
            let planted = Planted { at: point, left: AtomicU64::new(nth), reached: Notify::new() };
            Self { planted: Some(Arc::new(planted)) }
        }

        /// Waits until the crash point was reached.
        pub async fn crashed(&self) {
            match &self.planted {
                Some(planted) => planted.reached.notified().await,
                None => std::future::pending().await,
            }
        }

        pub(crate) async fn reach(&self, point: Point) {
            let Some(planted) = self.planted.as_ref().filter(|planted| planted.at == point) else { return };
            let left =
                planted.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            // Once it died, everything behind the point is dead too.
            if matches!(left, Ok(1) | Err(_)) {
                planted.reached.notify_one();
                std::future::pending::<()>().await;
            }
        }
    }
}

#[cfg(any(test, feature = "fault"))]
pub use planted::Faults;

/// The crash points of one engine: none.
#[cfg(not(any(test, feature = "fault")))]
#[derive(Clone, Debug, Default)]
pub struct Faults;

#[cfg(not(any(test, feature = "fault")))]
impl Faults {
    /// No crash.
    pub fn none() -> Self {
        Self
    }

    #[expect(clippy::unused_async, reason = "the feature `fault` waits here")]
    pub(crate) async fn reach(&self, _point: Point) {}
}

//! One process: an engine, a server, a pruning. It can die at any point at which it meets the world.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::Notify;

/// A process.
///
/// Points are counted: before each request, while it is under way, and behind its answer. Between two of them a process
/// has no effects, so that dying at each of them is dying anywhere.
#[derive(Debug)]
pub struct Life {
    name: String,
    points: AtomicU64,
    /// The point at which it dies, from 1; 0 for one that lives on.
    dies_at: u64,
    dead: AtomicBool,
    died: Notify,
    /// A point that somebody waits for, from 1; 0 for none.
    mark: u64,
    marked: Notify,
}

impl Life {
    /// A process that dies at its `dies_at`th point, if that is given.
    pub fn new(name: impl Into<String>, dies_at: Option<u64>) -> Self {
        Self {
            name: name.into(),
            points: AtomicU64::new(0),
            dies_at: dies_at.unwrap_or(0),
            dead: AtomicBool::new(false),
            died: Notify::new(),
            mark: 0,
            marked: Notify::new(),
        }
    }

    /// Tells when it comes by this point.
    #[must_use]
    pub fn with_mark(mut self, point: Option<u64>) -> Self {
        self.mark = point.unwrap_or(0);
        self
    }

    /// Waits until it comes by its mark; for ever if it has none.
    pub async fn marked(&self) {
        self.marked.notified().await;
    }

    /// Whether it is dead.
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Points so far.
    pub fn points(&self) -> u64 {
        self.points.load(Ordering::Relaxed)
    }

    /// A place where it can die; it never returns to the dead.
    pub async fn point(&self) {
        let nth = self.points.fetch_add(1, Ordering::Relaxed) + 1;
        if nth == self.mark {
            self.marked.notify_one();
        }
        if nth == self.dies_at {
            self.kill();
        }
        if self.dead.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }

    /// Kills it now.
    pub fn kill(&self) {
        self.dead.store(true, Ordering::Relaxed);
        self.died.notify_one();
    }

    /// Waits until it dies.
    pub async fn died(&self) {
        self.died.notified().await;
    }
}

//! The change log of a shard, for all steps of a run that wait for it.
//!
//! # Invariants
//! - However many wait, the repository is looked at as often as if one did; what one look finds is there for all.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use muster_repo::log::{LogFilter, LogReader, Stretch};
use muster_repo::{RepoError, Repository};
use muster_types::{Position, ShardName};
use tokio::time::Instant;

/// The pauses between two looks at the repository: behind one that found something, and what they grow to while none does.
/// A look costs a listing or two.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MOST: Duration = Duration::from_secs(2);

/// See the module.
pub(super) struct ShardLog {
    reader: LogReader,
    looks: Mutex<Looks>,
}

/// When the repository is looked at.
#[derive(Debug)]
struct Looks {
    /// None before the first look.
    next: Option<Instant>,
    pause: Duration,
}

impl ShardLog {
    pub(super) fn new(repository: &Repository, shard: &ShardName) -> Self {
        let looks = Mutex::new(Looks { next: None, pause: PAUSE_FIRST });
        Self { reader: LogReader::new(repository, shard), looks }
    }

    /// [`LogReader::stretch`]; also `None` where it is not yet time to look again.
    pub(super) async fn stretch<'a>(
        &'a self,
        after: Position,
        upto: Position,
        filter: LogFilter<'a>,
    ) -> Result<Option<Stretch<'a>>, RepoError> {
        let before = self.reader.reached().await;
        if before >= Some(upto) {
            return self.reader.stretch(after, upto, filter).await;
        }
        if !self.looks().take_turn(Instant::now()) {
            return Ok(None);
        }
        let found = self.reader.stretch(after, upto, filter).await;
        let is_longer = self.reader.reached().await > before;
        self.looks().looked(Instant::now(), is_longer);
        found
    }

    fn looks(&self) -> std::sync::MutexGuard<'_, Looks> {
        // Two fields that are right in any combination.
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Looks {
    /// Whether to look now, which keeps others from it meanwhile.
    fn take_turn(&mut self, now: Instant) -> bool {
        let is_time = self.next.is_none_or(|next| next <= now);
        if is_time {
            self.next = Some(now + self.pause);
        }
        is_time
    }

    /// The log was looked at, and was longer than before or not.
    fn looked(&mut self, now: Instant, is_longer: bool) {
        self.pause = if is_longer { PAUSE_FIRST } else { (self.pause * 2).min(PAUSE_MOST) };
        self.next = Some(now + self.pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_looks_for_all_and_less_often_while_nothing_comes() {
        let mut looks = Looks { next: None, pause: PAUSE_FIRST };
        let began = Instant::now();
        let at = |millis| began + Duration::from_millis(millis);
        assert!(looks.take_turn(at(0)));
        assert!(!looks.take_turn(at(1)), "another looks");
        looks.looked(at(10), false);
        assert!(!looks.take_turn(at(209)) && looks.take_turn(at(210)));
        looks.looked(at(220), false);
        assert!(!looks.take_turn(at(619)) && looks.take_turn(at(620)));
        looks.looked(at(630), true);
        assert!(!looks.take_turn(at(729)) && looks.take_turn(at(730)));
        for _ in 0..10 {
            looks.looked(at(1_000), false);
        }
        assert!(looks.take_turn(at(1_000) + PAUSE_MOST));
    }
}

//! Who is alive: servers leave a beat, and who has not left a new one for a while is taken for dead.
//!
//! A beat is judged by the observer's own monotonic clock, from the moment that it first saw it: clocks of two machines
//! are never compared.

use std::collections::BTreeMap;
use std::time::Duration;

/// What one observer knows of the beats of others.
#[derive(Clone, Debug)]
pub struct Liveness {
    lease: Duration,
    seen: BTreeMap<String, (u64, Duration)>,
}

impl Liveness {
    /// A server is taken for dead when its beat has not changed for `lease`.
    pub fn new(lease: Duration) -> Self {
        Self { lease, seen: BTreeMap::new() }
    }

    /// A server's beat as it was read; `now` counts from any fixed moment of the observer's.
    pub fn saw(&mut self, server: &str, beat: u64, now: Duration) {
        match self.seen.get_mut(server) {
            Some(known) if known.0 == beat => {}
            Some(known) => *known = (beat, now),
            None => {
                self.seen.insert(server.to_owned(), (beat, now));
            }
        }
    }

    /// Whether it shows signs of life. One that was never seen is given a lease from the first question on.
    pub fn is_alive(&mut self, server: &str, now: Duration) -> bool {
        let (_, since) = *self.seen.entry(server.to_owned()).or_insert((0, now));
        now.saturating_sub(since) < self.lease
    }
}

//! How fast rows are loaded into a shard, where the topology bounds it: so that a restore leaves its disk and network to
//! the living sites.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use muster_rows::Row;
use muster_types::ShardName;
use muster_types::plan::Plan;
use tokio::time::Instant;

/// The shards with a bound.
#[derive(Debug, Default)]
pub(super) struct Paces(HashMap<ShardName, Pace>);

#[derive(Debug)]
struct Pace {
    bytes_per_second: u64,
    /// When what was let through so far has taken its time.
    free_at: Mutex<Instant>,
}

impl Paces {
    /// Those that the plan says.
    pub(super) fn of(plan: &Plan) -> Self {
        let now = Instant::now();
        let pace = |bytes_per_second| Pace { bytes_per_second, free_at: Mutex::new(now) };
        let bounds = plan
            .shards
            .iter()
            .filter_map(|(shard, plan)| Some((shard.clone(), pace(plan.stage_bytes_per_second_max?))));
        Self(bounds.collect())
    }

    /// Waits until these rows may go to the shard. Batches go one after the other, whichever store they are of; the first
    /// does not wait.
    pub(super) async fn admit(&self, shard: &ShardName, rows: &[Row]) {
        let Some(pace) = self.0.get(shard) else { return };
        let bytes: usize = rows.iter().map(Row::heap_bytes).sum();
        tokio::time::sleep_until(pace.reserve(bytes as u64)).await;
    }
}

impl Pace {
    /// When `bytes` may go.
    fn reserve(&self, bytes: u64) -> Instant {
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second.max(1) as f64);
        // A time is whole after a panic.
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = (*free_at).max(Instant::now());
        *free_at = begins + takes;
        begins
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_goes_through_takes_its_time_and_idle_time_is_not_saved_up() {
        let began = Instant::now();
        let pace = Pace { bytes_per_second: 1_000, free_at: Mutex::new(began) };
        let after = |at: Instant| (at - began).as_millis();
        assert_eq!(after(pace.reserve(500)), 0);
        assert_eq!(after(pace.reserve(2_000)), 500);
        assert_eq!(after(pace.reserve(1)), 2_500);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(after(pace.reserve(1_000)), 10_000);
        assert_eq!(after(pace.reserve(1_000)), 11_000);
    }
}

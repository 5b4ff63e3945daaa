//! What goes wrong in a run, drawn from its seed.
//!
//! Rates are per million requests. Nothing goes wrong any more once the world is healed: what a run can still do then,
//! it has to do.

use std::time::Duration;

use crate::dice::Dice;

/// A stretch of virtual time since the beginning.
pub type Window = (Duration, Duration);

/// Faults of the object store.
#[derive(Clone, Debug, Default)]
pub struct StoreFaults {
    /// Shortest and longest way of a request or an answer.
    pub latency: (Duration, Duration),
    /// 503 SlowDown.
    pub throttled: u32,
    /// The connection is reset in the middle of a body.
    pub reset: u32,
    /// A body ends early and says nothing.
    pub short: u32,
    /// A bit of a body is another. Of data only: documents travel under checksums of the transport, and have no digest of
    /// their own.
    pub flipped: u32,
    /// A write that was not done, and no answer.
    pub lost_request: u32,
    /// A write that was done, and an error for an answer.
    pub lost_answer: u32,
    /// 409: another conditional write is said to be under way.
    pub conflict: u32,
    /// A listing of a run's journal lacks its newest entries.
    pub stale_list: u32,
    /// Nobody answers.
    pub away: Vec<Window>,
    /// No space left.
    pub full: Vec<Window>,
}

/// Faults of one shard.
#[derive(Clone, Debug, Default)]
pub struct ShardFaults {
    /// Shortest and longest way of a request or an answer.
    pub latency: (Duration, Duration),
    /// Fails, and trying again helps.
    pub transient: u32,
    /// Asks for less.
    pub throttled: u32,
    /// Did it, and the answer is lost.
    pub ambiguous: u32,
    /// What lies beside the live data is lost.
    pub staging_lost: u32,
    /// It is down; what lay beside the live data is gone afterwards.
    pub down: Vec<Window>,
    /// No space left.
    pub full: Vec<Window>,
}

/// All of a run's faults.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Of the object store.
    pub store: StoreFaults,
    /// Of each shard, by its number.
    pub shards: Vec<ShardFaults>,
    /// Clocks of machines are set: when, and by how many microseconds they are off then.
    pub clock: Vec<(Duration, i64)>,
}

const fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

impl Faults {
    /// A world where everything answers, after so short a time that it does not matter, and nothing fails.
    pub fn none(shards: usize) -> Self {
        let latency = (millis(1), millis(1));
        let store = StoreFaults { latency, ..StoreFaults::default() };
        let shard = ShardFaults { latency, ..ShardFaults::default() };
        Self { store, shards: vec![shard; shards], clock: Vec::new() }
    }

    /// Draws them. A third of the runs has no faults of its stores, so that crashes and rivals are met alone, too.
    pub fn draw(dice: &mut Dice, shards: usize) -> Self {
        let mut faults = Self::none(shards);
        faults.store.latency = (millis(2), millis(dice.between(3, 80)));
        for shard in &mut faults.shards {
            shard.latency = (millis(1), millis(dice.between(2, 60)));
        }
        if dice.chance(333_000) {
            return faults;
        }
        faults.draw_store(dice);
        for number in 0..shards {
            faults.draw_shard(dice, number);
        }
        for _ in 0..dice.between(0, 2) {
            // A clock that is set back by an hour, or forth.
            let offset = i64::try_from(dice.between(0, 7_200_000_000)).unwrap_or(0) - 3_600_000_000;
            faults.clock.push((dice.span(millis(0), millis(20_000)), offset));
        }
        faults.clock.sort_unstable();
        faults
    }

    fn draw_store(&mut self, dice: &mut Dice) {
        let store = &mut self.store;
        let rates = [
            &mut store.throttled,
            &mut store.reset,
            &mut store.short,
            &mut store.flipped,
            &mut store.lost_request,
            &mut store.lost_answer,
            &mut store.conflict,
            &mut store.stale_list,
        ];
        for rate in rates {
            *rate = rate_of(dice, 150_000);
        }
        // A flipped bit fails a site until the run is resumed: one in every request would leave nothing.
        store.flipped /= 10;
        store.away = windows(dice, millis(40_000));
        store.full = windows(dice, millis(5_000));
    }

    fn draw_shard(&mut self, dice: &mut Dice, number: usize) {
        let shard = &mut self.shards[number];
        for rate in
            [&mut shard.transient, &mut shard.throttled, &mut shard.ambiguous, &mut shard.staging_lost]
        {
            *rate = rate_of(dice, 150_000);
        }
        if dice.chance(200_000) {
            shard.latency = (millis(500), millis(5_000));
        }
        shard.down = windows(dice, millis(60_000));
        shard.full = windows(dice, millis(10_000));
    }
}

/// Mostly none, else up to `most`.
fn rate_of(dice: &mut Dice, most: u32) -> u32 {
    if !dice.chance(350_000) {
        return 0;
    }
    u32::try_from(dice.between(1_000, u64::from(most))).unwrap_or(most)
}

fn windows(dice: &mut Dice, longest: Duration) -> Vec<Window> {
    let count = if dice.chance(200_000) { dice.between(1, 2) } else { 0 };
    let window = |dice: &mut Dice| {
        let from = dice.span(millis(0), millis(10_000));
        (from, from + dice.span(millis(100), longest))
    };
    (0..count).map(|_| window(dice)).collect()
}

/// Whether a moment lies in one of these.
pub fn within(windows: &[Window], at: Duration) -> bool {
    windows.iter().any(|&(from, to)| from <= at && at < to)
}

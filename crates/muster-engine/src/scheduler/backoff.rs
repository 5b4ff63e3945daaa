//! When a failed step is tried again.

use crate::driver::ErrorClass;

/// Bounds of retrying. Delays are hashed from the seed, so that equal inputs give equal schedules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts of one step by one engine before its failure is final.
    pub attempts_max: u32,
    /// Attempts of one step by one engine that were asked to slow down, or met nobody, before its failure is final:
    /// neither is a failure of the step, but must not go on for ever.
    pub waits_max: u32,
    /// The first delay is at most this long.
    pub base_micros: i64,
    /// No delay is longer.
    pub cap_micros: i64,
    /// No delay is longer where the other side is not there: looking again costs it nothing, and every second that it
    /// is back unnoticed counts for the sites.
    pub unavailable_cap_micros: i64,
    /// Seed of the jitter.
    pub seed: u64,
}

impl Default for RetryPolicy {
    /// Five attempts at up to 0.2, 0.4, 0.8 and 1.6 s outlast a passing fault. A hundred throttled attempts at up to 30 s
    /// last most of an hour; a hundred at up to 5 s, about six minutes, outlast crash recovery and a failover: a shard that
    /// is down for longer is better resumed by the operator.
    fn default() -> Self {
        Self {
            attempts_max: 5,
            waits_max: 100,
            base_micros: 200_000,
            cap_micros: 30_000_000,
            unavailable_cap_micros: 5_000_000,
            seed: 0,
        }
    }
}

impl RetryPolicy {
    /// The delay after failure number `nth` (from 1): between half and all of an exponentially growing bound, so that
    /// steps that failed together do not return together.
    pub(super) fn delay_micros(&self, step: u32, nth: u32, class: ErrorClass) -> i64 {
        let doublings = nth.saturating_sub(1).min(30);
        let cap = match class {
            ErrorClass::Unavailable => self.unavailable_cap_micros,
            _ => self.cap_micros,
        };
        let bound = self.base_micros.saturating_mul(1 << doublings).min(cap).max(2);
        let hash = mix(self.seed ^ mix(u64::from(step) << 32 | u64::from(nth)));
        let half = bound / 2;
        half + i64::try_from(hash % half.unsigned_abs()).unwrap_or(0)
    }
}

/// The finaliser of SplitMix64: spreads neighbouring numbers over the whole range.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

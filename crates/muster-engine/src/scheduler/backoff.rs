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
    /// Five attempts at up to 0.3, 0.6, 1.2 and 2.4 s outlast a passing fault. A hundred and fifty throttled attempts at up
    /// to 30 s last most of an hour; as many at up to 5 s, about six minutes, outlast crash recovery and a failover: a shard
    /// that is down for longer is better resumed by the operator. The delays are half as long on average.
    fn default() -> Self {
        Self {
            attempts_max: 5,
            waits_max: 150,
            base_micros: 300_000,
            cap_micros: 30_000_000,
            unavailable_cap_micros: 5_000_000,
            seed: 0,
        }
    }
}

impl RetryPolicy {
    /// The delay after failure number `nth` (from 1): anything from nothing to an exponentially growing bound (full
    /// jitter), so that steps that failed together return spread evenly, which costs the other side least.
    pub(super) fn delay_micros(&self, step: u32, nth: u32, class: ErrorClass) -> i64 {
        let bound = self.bound_micros(nth, class).unsigned_abs();
        let hash = mix(self.seed ^ mix(u64::from(step) << 32 | u64::from(nth)));
        // The remainder is no larger than the bound, which is a positive i64.
        i64::try_from(hash % (bound + 1)).unwrap_or(i64::MAX)
    }

    /// The longest delay after failure number `nth`.
    fn bound_micros(&self, nth: u32, class: ErrorClass) -> i64 {
        let doublings = nth.saturating_sub(1).min(30);
        let cap = match class {
            ErrorClass::Unavailable => self.unavailable_cap_micros,
            _ => self.cap_micros,
        };
        self.base_micros.saturating_mul(1 << doublings).min(cap).max(0)
    }
}

/// The finaliser of SplitMix64: spreads neighbouring numbers over the whole range.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Of steps that failed together, each tenth of the time up to the bound gets about a tenth.
        #[test]
        fn delays_fill_the_whole_of_the_bound_evenly(seed: u64, nth in 1u32..200, away: bool) {
            const STEPS: u32 = 2_000;
            let class = if away { ErrorClass::Unavailable } else { ErrorClass::Transient };
            let policy = RetryPolicy { seed, ..RetryPolicy::default() };
            let bound = policy.bound_micros(nth, class);
            let cap = if away { policy.unavailable_cap_micros } else { policy.cap_micros };
            prop_assert!(bound <= cap);
            let mut tenths = [0u32; 10];
            for step in 0..STEPS {
                let delay = policy.delay_micros(step, nth, class);
                prop_assert!((0..=bound).contains(&delay), "{} of {}", delay, bound);
                prop_assert_eq!(delay, policy.delay_micros(step, nth, class));
                tenths[usize::try_from(delay * 10 / (bound + 1)).unwrap()] += 1;
            }
            // 200 expected with a deviation of 13.4: six of them on either side.
            prop_assert!(tenths.iter().all(|count| (120..=280).contains(count)), "{:?}", tenths);
        }
    }
}

//! Named pools of units that running steps hold.

use std::collections::BTreeMap;

use muster_types::plan::PlanStep;

use super::{PoolUse, ScheduleError};

/// A success gives a throttled pool back one part in so many of its capacity: slow enough that the other side shows
/// whether it can bear more, fast enough to be back at the full rate within some dozen steps.
const RECOVERY_PARTS: u64 = 32;

/// Units of one pool that a step holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Demand {
    pub(super) pool: u32,
    pub(super) units: u64,
}

/// Units that each step holds, without zeros, by ascending pool.
pub(super) type Demands = Vec<Box<[Demand]>>;

struct Pool {
    name: String,
    capacity: u64,
    limit: u64,
    used: u64,
}

pub(super) struct Pools {
    pools: Vec<Pool>,
    /// How often a limit has changed.
    changes: u64,
}

impl Pools {
    /// The pools, and each step's demand without zeros, by ascending pool.
    pub(super) fn new(
        steps: &[PlanStep],
        capacities: &BTreeMap<String, u64>,
    ) -> Result<(Self, Demands), ScheduleError> {
        let numbers: BTreeMap<&str, u32> = capacities.keys().map(String::as_str).zip(0u32..).collect();
        let demand = |step: &PlanStep| {
            let needed = step.demand.iter().filter(|(_, units)| *units > 0);
            needed.map(|(pool, units)| one_demand(step, pool, units, capacities, &numbers)).collect()
        };
        let demands = steps.iter().map(demand).collect::<Result<_, _>>()?;
        let pool = |(name, &capacity): (&String, &u64)| Pool {
            name: name.clone(),
            capacity,
            limit: capacity,
            used: 0,
        };
        Ok((Self { pools: capacities.iter().map(pool).collect(), changes: 0 }, demands))
    }

    pub(super) fn len(&self) -> usize {
        self.pools.len()
    }

    pub(super) fn capacities(&self) -> Vec<u64> {
        self.pools.iter().map(|pool| pool.capacity).collect()
    }

    /// Whether the units are free. One step may always hold a pool alone, however low its limit.
    pub(super) fn fits(&self, demand: Demand) -> bool {
        let pool = &self.pools[demand.pool as usize];
        pool.used == 0 || pool.used.saturating_add(demand.units) <= pool.limit
    }

    pub(super) fn acquire(&mut self, demands: &[Demand]) {
        for demand in demands {
            self.pools[demand.pool as usize].used += demand.units;
        }
    }

    pub(super) fn release(&mut self, demands: &[Demand]) {
        for demand in demands {
            self.pools[demand.pool as usize].used -= demand.units;
        }
    }

    /// Halves what may be held of these pools.
    pub(super) fn throttle(&mut self, demands: &[Demand]) {
        for demand in demands {
            self.set_limit(*demand, |pool| (pool.limit / 2).max(1));
        }
    }

    /// Gives a part of what throttling took back.
    pub(super) fn recover(&mut self, demands: &[Demand]) {
        for demand in demands {
            self.set_limit(*demand, |pool| {
                (pool.limit + (pool.capacity / RECOVERY_PARTS).max(1)).min(pool.capacity)
            });
        }
    }

    fn set_limit(&mut self, of: Demand, limit: impl Fn(&Pool) -> u64) {
        let pool = &mut self.pools[of.pool as usize];
        let limit = limit(pool);
        self.changes += u64::from(limit != pool.limit);
        pool.limit = limit;
    }

    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    pub(super) fn uses(&self) -> impl Iterator<Item = PoolUse<'_>> {
        self.pools.iter().map(|pool| PoolUse {
            pool: &pool.name,
            used: pool.used,
            limit: pool.limit,
            capacity: pool.capacity,
        })
    }
}

fn one_demand(
    step: &PlanStep,
    pool: &str,
    units: u64,
    capacities: &BTreeMap<String, u64>,
    numbers: &BTreeMap<&str, u32>,
) -> Result<Demand, ScheduleError> {
    let (Some(&capacity), Some(&number)) = (capacities.get(pool), numbers.get(pool)) else {
        return Err(ScheduleError::UnknownPool { step: step.key.clone(), pool: pool.to_owned() });
    };
    if units > capacity {
        let (step, pool) = (step.key.clone(), pool.to_owned());
        return Err(ScheduleError::DemandAboveCapacity { step, pool, demand: units, capacity });
    }
    Ok(Demand { pool: number, units })
}

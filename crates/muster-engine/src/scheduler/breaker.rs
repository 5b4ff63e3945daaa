//! Circuit breakers: one for each shard, one for the repository.
//!
//! A *gate* is what steps go through to such a side. While it answers, its breaker is closed and stops nothing. After
//! [`FAILURES_MAX`] failures in a row it opens: no step of that side starts until a pause is over, and then one goes alone, as
//! a *probe*. What answers a probe closes it; a probe that fails doubles the pause. Steps that are held back lose none of their
//! attempts; nor does a probe that met nobody.
//!
//! # Invariants
//! - While a breaker is not closed, at most one probe is under way.
//! - A breaker that is open has a time at which it wakes.
//! - After [`PROBES_MAX`] probes the side is given up: steps start again, each with a last attempt, until one is answered.
//!   So a run against a side that stays away ends.

use std::collections::BTreeSet;

use muster_types::journal::Pause;
use muster_types::{ShardName, Timestamp};

/// Failures in a row that open a breaker: more than the attempts of a step that fails by itself, so that one alone does not
/// stop its shard; few enough that hundreds of steps do not each find out.
const FAILURES_MAX: u32 = 8;

/// The first pause: about as long as a server takes to restart.
const PAUSE_MIN_MICROS: i64 = 1_000_000;

/// The longest pause. A probe costs next to nothing, and every second that the other side is back unnoticed counts for the
/// sites.
const PAUSE_MAX_MICROS: i64 = 5_000_000;

/// Failed probes after which a side is given up: about six minutes, which outlast crash recovery and a failover, as the waits
/// of a step do.
const PROBES_MAX: u32 = 75;

/// What a gate leads to, and which steps go through which.
#[derive(Clone, Debug, Default)]
pub(super) struct Gates {
    /// By gate: the shard; none of the repository.
    pub(super) shards: Vec<Option<ShardName>>,
    /// By step: its gates, ascending; steps behind the end have none.
    pub(super) of_step: Vec<Box<[u32]>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// With the failures in a row.
    Closed(u32),
    Open(Timestamp),
    /// The pause is over, and no step has come since.
    Due,
    /// By step.
    Probing(u32),
    GivenUp,
}

#[derive(Clone, Debug)]
struct Breaker {
    state: State,
    /// Since it opened.
    failed_probes: u32,
}

/// The breakers of a run, by gate.
#[derive(Debug)]
pub(super) struct Breakers {
    shards: Vec<Option<ShardName>>,
    breakers: Vec<Breaker>,
    wakes: BTreeSet<(Timestamp, u32)>,
    /// Gates that let steps through again: one, or all.
    freed: Vec<u32>,
    changes: u64,
}

impl Breakers {
    pub(super) fn new(shards: Vec<Option<ShardName>>) -> Self {
        let closed = Breaker { state: State::Closed(0), failed_probes: 0 };
        let breakers = vec![closed; shards.len()];
        Self { shards, breakers, wakes: BTreeSet::new(), freed: Vec::new(), changes: 0 }
    }

    /// The gate of the repository.
    pub(super) fn repository(&self) -> Option<u32> {
        (0u32..).zip(&self.shards).find(|(_, shard)| shard.is_none()).map(|(gate, _)| gate)
    }

    /// The only shard among `gates`: whose failure it is, if it is one of a shard.
    pub(super) fn sole_shard(&self, gates: &[u32]) -> Option<u32> {
        let mut shards = gates.iter().copied().filter(|&gate| self.shards[gate as usize].is_some());
        shards.next().filter(|_| shards.next().is_none())
    }

    /// A gate that lets no step through now.
    pub(super) fn shut(&self, gates: &[u32]) -> Option<u32> {
        let shut = |gate: &u32| matches!(self.state(*gate), State::Open(_) | State::Probing(_));
        gates.iter().copied().find(shut)
    }

    /// Whether a step that starts now would be a probe.
    pub(super) fn is_probe(&self, gates: &[u32]) -> bool {
        gates.iter().any(|&gate| self.state(gate) == State::Due)
    }

    /// Whether the side behind the gate was given up.
    pub(super) fn is_given_up(&self, gate: u32) -> bool {
        self.state(gate) == State::GivenUp
    }

    /// A step goes through open gates.
    pub(super) fn started(&mut self, gates: &[u32], step: u32) {
        for &gate in gates {
            if self.state(gate) == State::Due {
                self.enter(gate, State::Probing(step));
            }
        }
    }

    /// The other side answered a step.
    pub(super) fn answered(&mut self, gate: u32) {
        if self.state(gate) == State::Closed(0) {
            return;
        }
        self.breakers[gate as usize].failed_probes = 0;
        self.enter(gate, State::Closed(0));
    }

    /// The other side failed a step.
    pub(super) fn failed(&mut self, now: Timestamp, gate: u32, step: u32) {
        match self.state(gate) {
            State::Closed(failures) if failures + 1 < FAILURES_MAX => {
                self.enter(gate, State::Closed(failures + 1));
            }
            State::Closed(_) => self.open(now, gate),
            State::Probing(probe) if probe == step => {
                self.breakers[gate as usize].failed_probes += 1;
                self.open(now, gate);
            }
            // It began before the breaker opened, and says nothing new.
            State::Open(_) | State::Due | State::Probing(_) | State::GivenUp => {}
        }
    }

    /// A step ended without a word on the other side; the next one is the probe if this one was.
    pub(super) fn undecided(&mut self, gate: u32, step: u32) {
        if self.is_probed_by(gate, step) {
            self.enter(gate, State::Due);
        }
    }

    /// Whether `step` is the probe of the gate.
    pub(super) fn is_probed_by(&self, gate: u32, step: u32) -> bool {
        self.state(gate) == State::Probing(step)
    }

    /// A probe failed, though perhaps for another side.
    pub(super) fn failed_probe(&mut self, now: Timestamp, gate: u32, step: u32) {
        if self.is_probed_by(gate, step) {
            self.failed(now, gate, step);
        }
    }

    /// Pauses that are over let a probe through.
    pub(super) fn wake(&mut self, now: Timestamp) {
        while let Some(&(at, gate)) = self.wakes.first()
            && at <= now
        {
            self.enter(gate, State::Due);
        }
    }

    /// When the next pause is over.
    pub(super) fn next_wake(&self) -> Option<Timestamp> {
        self.wakes.first().map(|&(at, _)| at)
    }

    /// Gates that let steps through again since this was last asked.
    pub(super) fn take_freed(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.freed)
    }

    /// How often what [`Self::pauses`] says has changed.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// Breakers that are not closed.
    pub(super) fn pauses(&self) -> impl Iterator<Item = Pause> {
        let pause = |(breaker, shard): (&Breaker, &Option<ShardName>)| {
            let probe_at = match breaker.state {
                State::Closed(_) => return None,
                State::Open(until) => Some(until),
                State::Due | State::Probing(_) | State::GivenUp => None,
            };
            let given_up = breaker.state == State::GivenUp;
            Some(Pause { shard: shard.clone(), probe_at, failed_probes: breaker.failed_probes, given_up })
        };
        self.breakers.iter().zip(&self.shards).filter_map(pause)
    }

    fn state(&self, gate: u32) -> State {
        self.breakers[gate as usize].state
    }

    fn open(&mut self, now: Timestamp, gate: u32) {
        let failed_probes = self.breakers[gate as usize].failed_probes;
        if failed_probes >= PROBES_MAX {
            return self.enter(gate, State::GivenUp);
        }
        self.enter(gate, State::Open(now.plus_micros(pause_micros(failed_probes))));
    }

    fn enter(&mut self, gate: u32, state: State) {
        let before = std::mem::replace(&mut self.breakers[gate as usize].state, state);
        if let State::Open(at) = before {
            self.wakes.remove(&(at, gate));
        }
        let was_shut = matches!(before, State::Open(_) | State::Probing(_));
        match state {
            State::Open(at) => {
                self.wakes.insert((at, gate));
            }
            State::Closed(_) | State::Due | State::GivenUp if was_shut => self.freed.push(gate),
            _ => {}
        }
        let is_count = matches!((before, state), (State::Closed(_), State::Closed(_)));
        self.changes += u64::from(!is_count);
    }
}

fn pause_micros(failed_probes: u32) -> i64 {
    PAUSE_MIN_MICROS.saturating_mul(1 << failed_probes.min(30)).min(PAUSE_MAX_MICROS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    fn opened() -> Breakers {
        let mut breakers = Breakers::new(vec![None]);
        for step in 0..FAILURES_MAX {
            assert_eq!(breakers.shut(&[0]), None);
            breakers.failed(at(0), 0, step);
        }
        breakers
    }

    #[test]
    fn failed_probes_double_the_pause_up_to_the_bound_until_the_side_is_given_up() {
        let mut breakers = opened();
        let mut now = at(0);
        for probe in 0..PROBES_MAX {
            let wake = breakers.next_wake().unwrap();
            let seconds = [1, 2, 4].get(probe as usize).copied().unwrap_or(5);
            assert_eq!(wake, now.plus_micros(seconds * 1_000_000));
            now = wake;
            breakers.wake(now.plus_micros(-1));
            assert_eq!(breakers.shut(&[0]), Some(0));
            breakers.wake(now);
            assert!(breakers.is_probe(&[0]) && breakers.shut(&[0]).is_none());
            breakers.started(&[0], 7);
            assert_eq!(breakers.shut(&[0]), Some(0));
            // One that began before it opened says nothing of now.
            breakers.failed(now, 0, 3);
            breakers.failed(now, 0, 7);
        }
        assert_eq!((breakers.shut(&[0]), breakers.next_wake()), (None, None));
        assert!(breakers.is_given_up(0) && !breakers.is_probe(&[0]));
        assert!(now.seconds_since(at(0)) > 300.0, "crash recovery is outlasted");
        breakers.answered(0);
        assert!(!breakers.is_given_up(0) && breakers.pauses().count() == 0);
    }

    #[test]
    fn an_answer_closes_and_a_probe_without_a_word_is_followed_by_another() {
        let mut breakers = opened();
        breakers.wake(at(PAUSE_MIN_MICROS));
        breakers.started(&[0], 1);
        breakers.undecided(0, 2);
        assert_eq!(breakers.shut(&[0]), Some(0));
        breakers.undecided(0, 1);
        assert!(breakers.is_probe(&[0]));
        breakers.started(&[0], 2);
        breakers.answered(0);
        assert_eq!((breakers.shut(&[0]), breakers.pauses().count()), (None, 0));
        for step in 1..FAILURES_MAX {
            breakers.failed(at(0), 0, step);
        }
        assert_eq!(breakers.shut(&[0]), None, "failures are counted from the answer on");
    }
}

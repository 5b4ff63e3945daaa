//! `kill -9` of engines, of capture and of servers, round after round.

use std::collections::BTreeMap;
use std::time::Instant;

use muster_tests::{Engine, Moment, Series, fault_rounds, seed};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::{Stack, strike_and_plan};

const VICTIMS: usize = 4;

/// Whatever reads a log that is never compacted takes longer from round to round.
const COMPACT_EVERY: usize = 4;

/// What is killed; each comes back at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Harm {
    Engine,
    Capture,
    ObjectStore,
    Postgres,
}

impl Harm {
    /// What is killed beside engines, in turn.
    fn services(stack: Stack) -> &'static [Self] {
        match stack {
            Stack::Embedded => &[Self::ObjectStore, Self::Capture],
            Stack::Services => &[Self::Postgres, Self::ObjectStore, Self::Capture],
        }
    }
}

/// Rounds of an incident each, in which an engine and a service are killed: each ends equal to the oracle.
pub(crate) fn every_round_ends_as_the_oracle_says(stack: Stack, default_seed: u64) {
    let (rounds, began) = (fault_rounds(), Instant::now());
    let mut series = stack.series(seed(default_seed), rounds * VICTIMS);
    series.world.capture();
    let port = series.world.s3_addr().port();
    let mut done = BTreeMap::<Harm, usize>::new();
    for round in 0..rounds {
        series.world.serve_and_follow(port);
        if round > 0 && round % COMPACT_EVERY == 0 {
            series.world.muster(&["repo", "compact"]).ok();
        }
        let mut rng = ChaCha8Rng::seed_from_u64(series.world.seed.wrapping_add(round as u64));
        let services = Harm::services(stack);
        let mut harms = [Harm::Engine, services[round % services.len()]];
        if rng.random_bool(0.5) {
            harms.reverse();
        }
        let harmed = one(&mut series, round, harms, &mut rng);
        println!("round {round} after {:.0} s: {harmed:?}", began.elapsed().as_secs_f64());
        for (harm, _) in harmed {
            *done.entry(harm).or_default() += 1;
        }
    }
    println!("{stack:?}: {rounds} rounds in {:.0} s: {done:?}", began.elapsed().as_secs_f64());
    let total: usize = done.values().sum();
    assert!(total * 4 >= rounds * 2 * 3, "too many runs ended before they were harmed: {done:?}");
}

fn one(series: &mut Series, round: usize, harms: [Harm; 2], rng: &mut ChaCha8Rng) -> Vec<(Harm, Moment)> {
    let (writers, incident) = strike_and_plan(series, VICTIMS);
    let stores = series.stores(&incident);
    let moments = [
        Moment::Staged(rng.random_range(1..=stores / 3)),
        Moment::Published(rng.random_range(1..=stores / 2)),
    ];
    let run = format!("round-{round}");
    let mut harmed = Vec::new();
    let mut engine = Engine::start(&series.world, &run, &["apply", "plan.json", "--run", &run]);
    for (harm, moment) in harms.into_iter().zip(moments) {
        if !engine.wait_for(moment) {
            break;
        }
        harmed.push((harm, moment));
        match harm {
            Harm::Engine => {
                engine.kill();
                engine = Engine::start(&series.world, &run, &["resume", &run]);
            }
            Harm::Capture => {
                series.world.kill_following();
                series.world.follow();
            }
            Harm::ObjectStore => series.world.crash_object_store(),
            Harm::Postgres => series.world.crash_postgres(),
        }
    }
    let ended = engine.finish();
    assert_eq!(ended.code, Some(0), "seed {}, round {round}, {harmed:?}: {ended}", series.world.seed);
    writers.stop().unwrap();
    series.is_undone(&[&run]);
    harmed
}

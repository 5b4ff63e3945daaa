//! An object store behind a network that throttles, cuts, delays and corrupts.

use std::time::Instant;

use muster_tests::{Engine, Fault, Moment, Proxy, Ran, Series, drawn, fault_rounds, seed, until};
use muster_types::journal::Record;

use super::{Stack, strike, strike_and_plan};

/// Of 1000 requests so many meet each fault: enough for all kinds of faults in a short run, and few enough that what a
/// client does not ride out (a flipped bit) leaves most of a run alone.
const PER_THOUSAND: u64 = 12;

/// Whatever is asked again after a fault comes to its end within so many tries.
const TRIES_MAX: usize = 12;

/// Rounds that pass through the proxy: capture, finding, planning and a run whose engine is killed. Everything ends equal to
/// the oracle, whatever was injected.
pub(crate) fn a_faulty_store_costs_time_and_no_row(stack: Stack, default_seed: u64) {
    const VICTIMS: usize = 3;
    let rounds = (fault_rounds() / 5).max(2);
    let began = Instant::now();
    let mut series = stack.series(seed(default_seed), rounds * VICTIMS);
    let proxy = Proxy::start(series.world.s3_addr(), drawn(series.world.seed, PER_THOUSAND, &Fault::ALL));
    series.world.reach_repository_at(proxy.addr());
    series.world.capture();
    series.world.follow();
    let mut tries = 0;
    for round in 0..rounds {
        proxy.harm(true);
        let (writers, incident) = strike(&mut series, VICTIMS);
        tries += persist(&series, &["capture", "wait", "--covers", "now"]);
        let detect = ["detect", "--from", &incident.from, "--out", "incident.toml"];
        tries += persist(&series, &detect);
        tries += persist(
            &series,
            &["plan", "--incident", "incident.toml", "--out", "plan.json", "--proof", "full"],
        );
        let run = format!("round-{round}");
        let mut engine = Engine::start(&series.world, &run, &["apply", "plan.json", "--run", &run]);
        if engine.wait_for(Moment::Staged(1)) {
            engine.kill();
        } else {
            // It ended by a fault before anything was staged, perhaps before there was a run.
            let ended = engine.finish();
            let begun = !series.world.documents(&format!("runs/{run}/journal")).is_empty();
            if !begun {
                assert_ne!(ended.code, Some(0), "{ended}");
                tries += persist(&series, &["apply", "plan.json", "--run", &run]);
            }
        }
        tries += persist(&series, &["resume", &run]);
        proxy.harm(false);
        writers.stop().unwrap();
        series.is_undone(&[&run]);
        println!("round {round} after {:.0} s: {:?}", began.elapsed().as_secs_f64(), proxy.injected());
    }
    println!("{stack:?}: {rounds} rounds in {:.0} s, {tries} tries more", began.elapsed().as_secs_f64());
    proxy.has_injected(&Fault::ALL);
    series.world.kill_following();
}

/// Runs a command until it ends well; gives the number of tries that did not.
fn persist(series: &Series, args: &[&str]) -> usize {
    let mut said: Vec<Ran> = Vec::new();
    for tries in 0..TRIES_MAX {
        let ran = series.world.muster(args);
        match ran.code {
            Some(0) => return tries,
            // What a fault can do: the command, or some sites of it, did not come through. Never a refusal or a crash.
            Some(1..=3) => said.push(ran),
            _ => panic!("{ran}"),
        }
    }
    panic!("{said:?}")
}

/// Each write to the journal is carried out, or is lost, and its answer never comes, or says that it failed: the engine sends
/// it again and meets its own first try. It neither fences itself nor writes a record twice.
pub(crate) fn answers_that_are_lost_double_nothing(stack: Stack, default_seed: u64) {
    const VICTIMS: usize = 4;
    let mut series = stack.series(seed(default_seed), VICTIMS);
    let seed = series.world.seed;
    let kinds = [Fault::LandedRefused, Fault::LandedReset, Fault::Lost];
    let proxy = Proxy::start(
        series.world.s3_addr(),
        Box::new(move |asked| {
            let first = asked.method == "PUT" && asked.target.contains("/journal/") && asked.before == 0;
            let kind = usize::try_from(asked.draw(seed) % kinds.len() as u64).unwrap();
            first.then_some(kinds[kind])
        }),
    );
    series.world.reach_repository_at(proxy.addr());
    series.world.capture();
    series.world.follow();
    let (writers, _) = strike_and_plan(&mut series, VICTIMS);
    proxy.harm(true);
    series.world.muster(&["apply", "plan.json", "--run", "run"]).ok();
    proxy.harm(false);
    writers.stop().unwrap();
    series.is_undone(&["run"]);
    let journal = series.journal("run");
    let injected: usize = proxy.injected().values().sum();
    println!("{stack:?}: {} entries, {:?}", journal.len(), proxy.injected());
    assert_eq!(injected, journal.len(), "{:?}", proxy.injected());
    assert!(journal.iter().all(|entry| entry.epoch == journal[0].epoch), "it took the run from itself");
    let mut seen: Vec<&Record> = Vec::new();
    for record in journal.iter().flat_map(|entry| &entry.records) {
        assert!(!seen.contains(&record), "twice: {record:?}");
        seen.push(record);
    }
    series.world.kill_following();
}

/// A store that throttles everything for longer than a client's patience ends the command, which says how to go on.
pub(crate) fn a_store_that_only_throttles_ends_the_run_in_words(stack: Stack, default_seed: u64) {
    const VICTIMS: usize = 3;
    let mut series = stack.series(seed(default_seed), VICTIMS);
    let proxy = Proxy::start(series.world.s3_addr(), Box::new(|_| Some(Fault::SlowDown)));
    series.world.reach_repository_at(proxy.addr());
    series.world.capture();
    series.world.follow();
    let (writers, _) = strike_and_plan(&mut series, VICTIMS);
    let mut engine = Engine::start(&series.world, "run", &["apply", "plan.json", "--run", "run"]);
    assert!(engine.wait_for(Moment::Staged(1)), "it ended before it was throttled");
    engine.signal("STOP");
    proxy.harm(true);
    engine.signal("CONT");
    let ended = engine.finish();
    // Capture waits for better times.
    until("more throttling", || proxy.injected().values().sum::<usize>() > 20);
    proxy.harm(false);
    ended.code(1).says(&["SlowDown", "nothing is lost", "muster resume run"]);
    series.world.muster(&["resume", "run"]).ok();
    series.world.muster(&["capture", "wait", "--covers", "now"]).ok();
    writers.stop().unwrap();
    series.is_undone(&["run"]);
    series.world.kill_following();
}

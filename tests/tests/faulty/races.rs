//! Engines that want the same: one run, or the same sites by two runs. And one that was given up too early.

use muster_tests::{Engine, Incident, Moment, Ran, Series, fault_rounds, seed};

use super::{Stack, strike_and_detect, strike_and_plan};

/// So many races: 20 where 50 rounds are asked for.
fn races() -> usize {
    (fault_rounds() * 2 / 5).max(2)
}

/// Whatever reads a log that is never compacted takes longer from race to race.
fn compact(series: &Series, race: usize) {
    if race > 0 && race.is_multiple_of(4) {
        series.world.muster(&["repo", "compact"]).ok();
    }
}

/// Two `resume` of one run at once: one goes on, the other names it.
pub(crate) fn of_two_resumes_one_goes_on(stack: Stack, default_seed: u64) {
    const VICTIMS: usize = 3;
    let races = races();
    let mut series = stack.series(seed(default_seed), races * VICTIMS);
    series.world.capture();
    series.world.follow();
    let mut decided = 0;
    for race in 0..races {
        compact(&series, race);
        let (writers, _) = strike_and_plan(&mut series, VICTIMS);
        let run = format!("race-{race}");
        let mut first = Engine::start(&series.world, &run, &["apply", "plan.json", "--run", &run]);
        assert!(first.wait_for(Moment::Staged(1)), "race {race}: it ended before it was killed");
        first.kill();
        let resume: &[&str] = &["resume", &run];
        let rivals = [0, 1].map(|_| Engine::start(&series.world, &run, resume));
        let pids = [0, 1].map(|rival: usize| rivals[rival].pid());
        let ended: Vec<Ran> = rivals.into_iter().map(Engine::finish).collect();
        decided += usize::from(one_won(&run, pids, &ended));
        writers.stop().unwrap();
        series.is_undone(&[&run]);
    }
    println!("{stack:?}: {races} races for a run, {decided} with a loser that named the winner");
    // One that starts only when the other has ended has lost nothing.
    assert!(decided * 2 >= races, "{decided} of {races} were races at all");
}

/// Exactly one ended well and the other names its process; false if the second came when all was done.
#[track_caller]
fn one_won(run: &str, pids: [u32; 2], ended: &[Ran]) -> bool {
    let (first, second) = (&ended[0], &ended[1]);
    let (loser, winner) = match (first.code, second.code) {
        (Some(0), Some(0)) => return false,
        (Some(0), Some(4)) => (second, pids[0]),
        (Some(4), Some(0)) => (first, pids[1]),
        _ => panic!("{first}\n{second}"),
    };
    let status = format!("muster status {run}");
    loser.clone().says(&[
        &format!("run {run} is held by"),
        &format!(":{winner} "),
        "nothing is lost",
        &status,
    ]);
    true
}

/// Two runs for overlapping sites at once: each store has one winner, and all sites come back.
pub(crate) fn of_two_runs_each_store_has_one_winner(stack: Stack, default_seed: u64) {
    const VICTIMS: usize = 4;
    let races = races();
    let mut series = stack.series(seed(default_seed), races * VICTIMS);
    series.world.capture();
    series.world.follow();
    let mut contested = 0;
    for race in 0..races {
        compact(&series, race);
        let (writers, incident) = strike_and_detect(&mut series, VICTIMS);
        let runs = [format!("race-{race}-a"), format!("race-{race}-b")];
        // The first three sites of the incident, and the last three: two are wanted by both.
        for (name, sites) in [("a", 0..3), ("b", 1..4)] {
            plan_part(&series, name, sites);
        }
        let rivals = [("a.json", &runs[0]), ("b.json", &runs[1])]
            .map(|(plan, run)| Engine::start(&series.world, run, &["apply", plan, "--run", run]));
        let ended = rivals.map(Engine::finish);
        contested += usize::from(ended.iter().any(|ran| is_told_of_the_other(ran, &runs)));
        let runs = settle(&series, &incident, &runs, &ended);
        writers.stop().unwrap();
        series.is_undone(&runs.iter().map(String::as_str).collect::<Vec<_>>());
    }
    println!("{stack:?}: {races} races for sites, in {contested} of them a run met the other's claims");
    assert!(contested * 2 >= races, "{contested} of {races} were races at all");
}

/// A plan for some of the sites in `incident.toml`.
fn plan_part(series: &Series, name: &str, sites: std::ops::Range<usize>) {
    let world = &series.world;
    let text = std::fs::read_to_string(world.path("incident.toml")).unwrap();
    let mut incident: muster_types::incident::Incident = toml::from_str(&text).unwrap();
    incident.sites = incident.sites[sites].to_vec();
    let (file, plan) = (format!("{name}.toml"), format!("{name}.json"));
    std::fs::write(world.path(&file), toml::to_string(&incident).unwrap()).unwrap();
    world.muster(&["plan", "--incident", &file, "--out", &plan, "--proof", "full"]).ok();
}

/// A run that could not have a site says which run has it.
#[track_caller]
fn is_told_of_the_other(ran: &Ran, runs: &[String; 2]) -> bool {
    match ran.code {
        Some(0) => false,
        // In part; or refused as a whole, because the other was done with a site before it looked.
        Some(3) => {
            let named = runs.iter().any(|run| ran.stderr.contains(&format!("is claimed by run {run}")));
            assert!(named || ran.stderr.contains("live rows"), "it does not say what is in its way: {ran}");
            named
        }
        Some(4) => {
            ran.clone().says(&["the plan cannot be applied"]);
            false
        }
        _ => panic!("{ran}"),
    }
}

/// Brings back what neither run has, as an operator would: resume one, give the other up, plan what is left. Gives the runs
/// that restored something.
fn settle(series: &Series, incident: &Incident, runs: &[String; 2], ended: &[Ran; 2]) -> Vec<String> {
    let world = &series.world;
    let opened = |ran: &Ran| ran.code != Some(4);
    let mut found: Vec<String> =
        runs.iter().zip(ended).filter(|(_, ran)| opened(ran)).map(|(run, _)| run.clone()).collect();
    for (run, ran) in runs.iter().zip(ended) {
        if ran.code == Some(3) {
            let again = world.muster(&["resume", run]);
            if again.code != Some(0) {
                again.code(3).says(&[&format!("muster abandon {run}")]);
                world.muster(&["abandon", run]).ok();
            }
        }
    }
    let rest = format!("{}-rest", runs[0]);
    let planned = incident.plan(world, &["--proof", "full"]);
    // Refused where nothing is left.
    if planned.code == Some(0) || planned.code == Some(3) {
        let ran = world.muster(&["apply", "plan.json", "--run", &rest]);
        if ran.code == Some(4) {
            ran.says(&["leaves all of its"]);
        } else {
            assert!(matches!(ran.code, Some(0 | 3)), "{ran}");
            found.push(rest);
        }
    }
    found
}

/// A run is taken over on another machine, where there is nothing but the topology and credentials; the engine that was
/// thought dead wakes up and is told who has the run.
pub(crate) fn a_run_is_taken_over_on_another_machine(stack: Stack, default_seed: u64) {
    const VICTIMS: usize = 6;
    let mut series = stack.series(seed(default_seed), VICTIMS);
    series.world.capture();
    series.world.follow();
    let (writers, incident) = strike_and_plan(&mut series, VICTIMS);
    let stores = series.stores(&incident);
    let mut asleep = Engine::start(&series.world, "run", &["apply", "plan.json", "--run", "run"]);
    assert!(asleep.wait_for(Moment::Published(1)), "it ended before it was put to sleep");
    asleep.sleep_between_publishes(&series.world);
    assert!(!asleep.has_reached(Moment::Published(stores)), "it had done all before it was put to sleep");
    let elsewhere = tempfile::tempdir().unwrap();
    let successor = Engine::start_elsewhere(&series.world, elsewhere.path(), "run", &["resume", "run"]);
    let pid = successor.pid();
    successor.finish().ok();
    asleep.signal("CONT");
    let told = asleep.finish().code(4);
    told.says(&["run run is held by", &format!(":{pid} "), "nothing is lost", "muster status run"]);
    writers.stop().unwrap();
    series.is_undone(&["run"]);
}

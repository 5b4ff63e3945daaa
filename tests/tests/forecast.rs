//! Forecasts of real runs: how wrong they are over at least twenty runs of different shapes, and that they are told.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]

use std::fmt::Write as _;

use muster_demo::{REGIONS, WriterConfig};
use muster_tests::{Size, World, seed, until};
use muster_types::drill::{DrillRecord, Verdict};

const SIZE: Size = Size { sites: 24, rows_per_site: 300 };
const WRITERS: WriterConfig = WriterConfig { transactions_per_second: 150, threads: 2 };

/// Runs: of one site to all of them, so that none is like the one before.
const RUNS: usize = 22;

fn world(seed: u64) -> World {
    let world = World::captured(SIZE, seed);
    let mut text = std::fs::read_to_string(world.path("muster.toml")).unwrap();
    for region in REGIONS {
        writeln!(text, "\n[sandbox.{region}]\ndriver = \"sqlite\"\ndir = \"sandbox\"\nregion = \"{region}\"")
            .unwrap();
    }
    std::fs::write(world.path("muster.toml"), text).unwrap();
    let writers = world.fleet.start_writers(WRITERS);
    until("writers at work", || writers.committed() >= 200);
    writers.stop().unwrap();
    world.capture_once();
    world
}

#[test]
fn every_run_is_forecast_and_the_errors_are_summed_up() {
    let world = world(seed(61));
    for nth in 0..RUNS {
        let sites = 1 + nth * 7 % SIZE.sites;
        let text = format!(
            "format = 1\nname = \"d{sites}\"\nclass = \"many-sites\"\nsites = {sites}\nwindow_seconds = 3600\n\
             settle_seconds = 1\nseed = {}\n",
            world.seed + nth as u64
        );
        std::fs::write(world.path("drill.toml"), text).unwrap();
        let ran = world.muster(&["drill", "run", "drill.toml", "--json"]).ok();
        let record: DrillRecord = serde_json::from_value(ran.json()).unwrap();
        assert_eq!(record.verdict, Verdict::Passed, "{record:?}");
        let forecast = record.forecast.expect("a forecast");
        let (start, tenth) = (forecast.at_start, forecast.at_tenth.expect("a tenth was done"));
        println!(
            "{sites} sites in {:.2} s: off by {:+.0} % at the start ({} starts measured), {:+.0} % with a tenth done",
            record.run_seconds,
            start.error_share.unwrap() * 100.0,
            start.measured,
            tenth.error_share.unwrap() * 100.0
        );
        assert!(start.at < start.ends_at && start.earliest <= start.ends_at && start.ends_at <= start.latest);
        assert!(start.at <= tenth.at && tenth.earliest <= tenth.ends_at && tenth.ends_at <= tenth.latest);
        // The first rests on stated defaults, later ones on those before them.
        assert_eq!(start.measured > 0, nth > 0, "run {nth}");
        assert!(tenth.measured > start.measured, "run {nth}");
        assert!(forecast.ended_at.is_some());
    }
    let history = world.muster(&["drill", "history", "--json"]).ok().json();
    println!("{}", history["forecast"]);
    assert_eq!(history["forecast"]["at_tenth"]["runs"], RUNS, "{history}");
    world.muster(&["drill", "history"]).ok().says(&["forecasts at the start: 22 runs", "with a tenth done"]);
}

//! Real faults on PostgreSQL and MinIO; `make faults ROUNDS=50` runs them longer.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a failed test may say so by a panic, and a long one says how it stands"
)]

mod faulty;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use faulty::{Stack, crashes, races, signals, store, strike_and_plan};
use muster_tests::{Mount, World, seed};
use muster_types::SiteId;
use muster_types::plan::{Plan, SitePlan};

const STACK: Stack = Stack::Services;

#[test]
fn every_round_of_kills_ends_as_the_oracle_says() {
    crashes::every_round_ends_as_the_oracle_says(STACK, 111);
}

#[test]
fn of_two_resumes_one_goes_on() {
    races::of_two_resumes_one_goes_on(STACK, 112);
}

#[test]
fn of_two_runs_each_store_has_one_winner() {
    races::of_two_runs_each_store_has_one_winner(STACK, 113);
}

#[test]
fn a_run_is_taken_over_on_another_machine() {
    races::a_run_is_taken_over_on_another_machine(STACK, 114);
}

#[test]
fn an_engine_told_to_stop_says_how_to_go_on() {
    signals::an_engine_told_to_stop_says_how_to_go_on(STACK, 115);
}

#[test]
fn a_faulty_store_costs_time_and_no_row() {
    store::a_faulty_store_costs_time_and_no_row(STACK, 116);
}

#[test]
fn answers_that_are_lost_double_nothing() {
    store::answers_that_are_lost_double_nothing(STACK, 117);
}

#[test]
fn a_store_that_only_throttles_ends_the_run_in_words() {
    store::a_store_that_only_throttles_ends_the_run_in_words(STACK, 118);
}

#[test]
fn a_full_disk_under_a_shard_costs_its_own_sites() {
    const VICTIMS: usize = 8;
    let mut series = STACK.series(seed(119), VICTIMS);
    let shard = series.world.fleet.shards[0].name.clone();
    let disk = series.world.postgres().data_dir().with_file_name("small");
    let _room = Mount::small_disk(&disk, 64 * 1024);
    lies_there(&series.world, &shard, &disk);
    series.world.capture();
    series.world.follow();
    let (writers, _) = strike_and_plan(&mut series, VICTIMS);
    writers.stop().unwrap();
    let filler = disk.join("filler");
    let full = std::io::copy(&mut std::io::repeat(7), &mut std::fs::File::create(&filler).unwrap());
    assert_eq!(full.unwrap_err().kind(), std::io::ErrorKind::StorageFull);

    let ran = series.world.muster(&["apply", "plan.json", "--run", "run"]).code(3);
    ran.says(&[&shard, "free space", "muster resume run"]);
    let needs = |site: &SitePlan| site.stores.iter().any(|store| store.shard.as_str() == shard);
    let plan: Plan = serde_json::from_slice(&std::fs::read(series.world.path("plan.json")).unwrap()).unwrap();
    let wanted: BTreeSet<SiteId> =
        plan.sites.iter().filter(|site| needs(site)).map(|site| site.site.clone()).collect();
    assert!(!wanted.is_empty() && wanted.len() < VICTIMS, "choose another seed: {wanted:?}");
    let sites = series.world.report("run").sites;
    let failed =
        sites.into_iter().filter(|site| site.handed_back_at.is_none()).map(|site| site.site).collect();
    assert_eq!(wanted, failed);

    std::fs::remove_file(&filler).unwrap();
    series.world.muster(&["resume", "run"]).ok();
    series.is_undone(&["run"]);
}

/// Moves a database to a folder, as a server with several disks would.
fn lies_there(world: &World, database: &str, folder: &Path) {
    let server = world.postgres();
    let chown = Command::new("chown").arg("--reference").args([&server.data_dir(), folder]).status().unwrap();
    assert!(chown.success());
    server.psql("postgres", &format!("CREATE TABLESPACE small LOCATION '{}'", folder.display())).unwrap();
    server.psql("postgres", &format!("ALTER DATABASE \"{database}\" SET TABLESPACE small")).unwrap();
}

//! `muster simulate` as an operator runs it: the shipped scenario, the picture, wrong scenarios.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]

use std::path::{Path, PathBuf};
use std::process::Command;

use muster_tests::{Ran, muster};

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/atlassian-2022.toml")
}

fn simulate(dir: &Path, scenario: &Path, options: &[&str]) -> Ran {
    Ran::run(Command::new(muster()).current_dir(dir).arg("simulate").arg(scenario).args(options))
}

#[test]
fn the_shipped_scenario_runs_through_four_strategies_and_is_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let ran = simulate(dir.path(), &shipped(), &["--svg", "curve.svg"]).ok();
    ran.says(&["883 sites", "seed 883", "wrote curve.svg", "RTO counts from each site's own deletion"]);
    let first = simulate(dir.path(), &shipped(), &["--json"]).ok();
    assert_eq!(first.stdout, simulate(dir.path(), &shipped(), &["--json"]).ok().stdout);
    let found = first.json();
    let outcomes = found["outcomes"].as_array().unwrap();
    let named: Vec<&str> = outcomes.iter().map(|outcome| outcome["strategy"].as_str().unwrap()).collect();
    assert_eq!(named, ["sequential", "batches", "recreated_ids", "kept_ids"]);
    let makespans: Vec<f64> =
        outcomes.iter().map(|outcome| outcome["makespan_seconds"].as_f64().unwrap()).collect();
    assert!(makespans.is_sorted_by(|slower, faster| slower > faster), "{makespans:?}");
    for outcome in outcomes {
        let curve = outcome["curve"].as_array().unwrap();
        let shares: Vec<f64> = curve.iter().map(|point| point["sites_share"].as_f64().unwrap()).collect();
        assert!(shares.is_sorted() && shares.last() == Some(&1.0), "{outcome}");
    }
    let other = simulate(dir.path(), &shipped(), &["--json", "--seed", "7"]).ok().json();
    assert_ne!(other["outcomes"], found["outcomes"]);

    let picture = std::fs::read_to_string(dir.path().join("curve.svg")).unwrap();
    assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"));
    for text in ["sites back", "users back", "first customers", "the real course"] {
        assert!(picture.contains(text), "{text}");
    }
}

#[test]
fn wrong_scenarios_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    simulate(dir.path(), Path::new("nowhere.toml"), &[]).code(2).says(&["nowhere.toml"]);
    let text = std::fs::read_to_string(shipped()).unwrap();
    for (from, to, says) in [
        ("seed = 883", "sede = 883", "sede"),
        ("format = 1", "format = 99", "99"),
        ("sites = 883", "sites = 0", "sites"),
        ("rows_share = 0.5 ", "rows_share = 0.6 ", "rows_share"),
        ("after = [\"metadata\"]", "after = [\"nothing\"]", "nothing"),
    ] {
        assert!(text.contains(from), "{from}");
        std::fs::write(dir.path().join("wrong.toml"), text.replacen(from, to, 1)).unwrap();
        let ran = simulate(dir.path(), Path::new("wrong.toml"), &[]);
        ran.code(2).says(&["wrong.toml", says, "atlassian-2022.toml"]);
    }
    simulate(dir.path(), &shipped(), &["--svg", "no/such/dir.svg"])
        .code(1)
        .says(&["failed to write", "no/such/dir.svg"]);
}

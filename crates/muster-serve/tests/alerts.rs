//! The shipped alert rules and the unit of the service, judged by the tools that read them: promtool and systemd-analyze.
//! `tests/tools.sh` installs these.

#![allow(clippy::unwrap_used, reason = "a failed test may say so by a panic")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use muster_serve::{JobEvent, Metrics};
use muster_types::Timestamp;
use muster_types::alarm::{AlarmName, Condition};
use muster_types::jobs::{JobOutcome, Missed};

fn config(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config").join(name)
}

/// Runs a tool that must be there, and must be content.
fn content(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .current_dir(config(""))
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; tests/tools.sh installs it"));
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {said}");
    said
}

#[test]
fn promtool_passes_the_rules_and_their_tests() {
    let said = content("promtool", &["check", "rules", "alerts.yml"]);
    assert!(said.contains("8 rules found"), "{said}");
    content("promtool", &["test", "rules", "alerts_test.yml"]);
    // Every rule is tested.
    let (rules, tests) = (text("alerts.yml"), text("alerts_test.yml"));
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(tests.contains(&format!("alertname: {alert}\n")), "{alert} has no test");
    }
}

fn text(name: &str) -> String {
    std::fs::read_to_string(config(name)).unwrap()
}

/// What begins with `muster_`.
fn names(text: &str) -> BTreeSet<String> {
    let letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !letter(c)).filter(|word| word.starts_with("muster_"));
    words.map(str::to_owned).collect()
}

#[test]
fn every_metric_of_the_rules_is_exported() {
    let (metrics, now) = (Metrics::default(), Timestamp::from_micros(1_000_000));
    let job = || "nightly".to_owned();
    let missed = Missed { first: now, last: now, count: 1 };
    let outcome = JobOutcome::Succeeded { summary: String::new() };
    for event in [
        JobEvent::Missed { job: job(), missed },
        JobEvent::Started { job: job(), occurrence: now, attempt: 1 },
        JobEvent::Ended { job: job(), occurrence: now, outcome, milliseconds: 1 },
        JobEvent::Unreachable { job: None, error: String::new() },
    ] {
        metrics.job(&event, now);
    }
    metrics.recovery_point("a", now, 1.0);
    metrics.capture_failed("a");
    metrics.gap("a");
    metrics.undeclared("a", 1);
    metrics.lost_sites(1, 3);
    metrics.webhook("pager", "delivered");
    let (name, subject, text_) = (AlarmName::CaptureLag, "a".to_owned(), String::new());
    let condition = Condition { name, subject, since: now, text: text_.clone(), way_out: text_ };
    metrics.alarms([&condition].into_iter());
    let exported = metrics.text();
    assert!(exported.contains("muster_alarm{alarm=\"capture-lag\",subject=\"a\"} 1"), "{exported}");
    let samples: BTreeSet<String> =
        exported.lines().filter(|line| !line.starts_with('#')).flat_map(names).collect();
    let used = names(&text("alerts.yml"));
    assert!(used.len() >= 9, "{used:?}");
    let unknown: Vec<_> = used.difference(&samples).collect();
    assert!(unknown.is_empty(), "{unknown:?} are not among {samples:?}");
    // What has passed is not exported any more.
    metrics.alarms([].into_iter());
    assert!(!metrics.text().contains("muster_alarm{"), "{}", metrics.text());
}

#[test]
fn the_unit_of_the_service_is_one() {
    let unit = config("muster.service").display().to_string();
    let said = content("systemd-analyze", &["verify", "--man=no", &unit]);
    assert!(!said.contains("muster.service:"), "{said}");
}

//! The scenario that is shipped, and scenarios that are wrong.

#![allow(clippy::unwrap_used, reason = "a failed test may say so by a panic")]

use muster_forecast::simulate::{Outcome, Scenario, ScenarioError, Strategy, simulate};

const SHIPPED: &str = include_str!("../../../config/atlassian-2022.toml");

fn of(outcomes: &[Outcome], strategy: Strategy) -> &Outcome {
    outcomes.iter().find(|outcome| outcome.strategy == strategy).unwrap()
}

#[test]
fn the_shipped_scenario_tells_the_ways_apart() {
    let scenario = Scenario::parse(SHIPPED).unwrap();
    let simulated = simulate(&scenario, None).unwrap();
    assert_eq!(simulated, simulate(&scenario, Some(scenario.seed)).unwrap(), "equal seeds, equal course");
    assert_ne!(simulated, simulate(&scenario, Some(1)).unwrap());
    let outcomes = &simulated.outcomes;
    for outcome in outcomes {
        let last = outcome.curve.last().unwrap();
        assert_eq!((last.seconds, last.sites_share), (outcome.makespan_seconds, 1.0), "{outcome:?}");
        assert!((last.users_share - 1.0).abs() < 1e-9);
        assert!(outcome.curve.is_sorted_by(|a, b| a.seconds < b.seconds && a.users_share <= b.users_share));
        assert!(outcome.rto_mean_seconds <= outcome.makespan_seconds && outcome.misses <= 883);
    }
    let [kept, recreated, batches, sequential] =
        [Strategy::KeptIds, Strategy::RecreatedIds, Strategy::Batches, Strategy::Sequential]
            .map(|strategy| of(outcomes, strategy).makespan_seconds);
    assert!(kept < recreated && recreated < batches && batches < sequential, "{kept} {recreated} {batches}");
    // By hand in batches is what was done: all were back within 12 to 14 days.
    assert!((11.5..14.0).contains(&(batches / 86_400.0)), "{} days", batches / 86_400.0);
}

#[test]
fn batches_by_hand_take_what_the_way_says() {
    // One batch of exactly its size by each way.
    let text = SHIPPED
        .replace("sites = 883 ", "sites = 85 ")
        .replace("first_way_sites = 112", "first_way_sites = 25")
        .replace("crews = 2", "crews = 1");
    let scenario = Scenario::parse(&text).unwrap();
    let simulated = simulate(&scenario, None).unwrap();
    let curve = &of(&simulated.outcomes, Strategy::Batches).curve;
    let seconds: Vec<f64> = curve.iter().map(|point| point.seconds).collect();
    let began = scenario.incident.deletion_began_at;
    let hours =
        |way: &muster_forecast::simulate::Way| way.begins_at.seconds_since(began) + way.batch_hours * 3_600.0;
    assert_eq!(seconds, [hours(&scenario.by_hand.first), hours(&scenario.by_hand.second)]);
    assert!((curve[0].sites_share - 25.0 / 85.0).abs() < 1e-9);
}

#[test]
fn what_is_wrong_is_named() {
    let change = |from: &str, to: &str| {
        let text = SHIPPED.replacen(from, to, 1);
        assert_ne!(text, SHIPPED, "`{from}` does not stand there");
        Scenario::parse(&text).unwrap_err().to_string()
    };
    for (from, to, wanted) in [
        ("sites = 883 ", "sites = 0 ", "`incident.sites` is 0"),
        ("sites = 883 ", "sites = -3 ", "not a scenario"),
        ("batch_hours = 48 ", "batch_hours = -48 ", "`by_hand.first.batch_hours` is -48"),
        ("minutes_each = 15 ", "minutes_each = nan ", "`muster.validation.minutes_each` is NaN"),
        ("tail = 1.44", "tail = 0.0", "`sizes.tail` is 0"),
        ("stage_slots = 4 ", "stage_slots = 0 ", "`muster.stage_slots` is 0"),
        ("rto_seconds =", "rto_secs =", "unknown field `rto_secs`"),
        ("format = 1", "format = 2", "`format` is 2"),
        (
            "after = [\"metadata\"]",
            "after = [\"product:none\"]",
            "`stores.after of identity` is product:none",
        ),
        ("T08:01:00Z", "T07:01:00Z", "`incident.deletion_ended_at`"),
        ("first_way_sites = 112", "first_way_sites = 1112", "`batches.first_way_sites` is 1112"),
    ] {
        let error = change(from, to);
        assert!(error.contains(wanted), "{from} → {to}: {error}");
    }
    assert!(matches!(Scenario::parse("x = 1"), Err(ScenarioError::Malformed(_))));
}

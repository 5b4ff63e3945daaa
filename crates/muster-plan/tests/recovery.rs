//! Recovery points and inputs against a naive model that remembers every change.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a failed test may say so by a panic"
)]

mod support;

use std::collections::BTreeMap;

use muster_plan::inputs::InputError;
use muster_plan::{NoRecoveryPoint, RecoveryPoint, StoreInputs, Target, recovery_point, store_inputs};
use muster_types::segment::{Commit, Gap, TableEventKind};
use muster_types::snapshot::Chunk;
use muster_types::table::{CapturedTable, ForeignKey, Owner, UniqueKey};
use muster_types::{Boundary, Position};
use proptest::prelude::*;
use support::*;

/// What a script does next.
#[derive(Clone, Debug)]
enum Act {
    Insert(usize, usize, i64),
    Delete(usize, usize),
    Poll,
    Snapshot,
    Reread(usize),
    Drop(usize),
}

const SITES: [&str; 3] = ["a", "b", "c"];
const TABLES: [&str; 3] = ["users", "groups", "projects"];

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0..3usize, 0..3usize, 1..4i64).prop_map(|(site, table, rows)| Act::Insert(site, table, rows)),
        2 => (0..3usize, 0..3usize).prop_map(|(site, table)| Act::Delete(site, table)),
        4 => Just(Act::Poll),
        1 => Just(Act::Snapshot),
        1 => (0..3usize).prop_map(Act::Reread),
        1 => (0..3usize).prop_map(Act::Drop),
    ]
}

/// Runs the acts one second apart; the boundaries that can be recovered and the rows at each.
type Truth = Vec<(Boundary, BTreeMap<(usize, usize), i64>)>;

fn play(acts: &[Act]) -> (Script, Truth) {
    let mut script = Script::new("shard-0");
    let mut truth = Truth::new();
    let now = |script: &Script| {
        let rows = |site: usize, table: usize| {
            script.rows.get(&(site_id(site), TABLES[table].to_owned())).copied().unwrap_or(0)
        };
        (0..3).flat_map(|s| (0..3).map(move |t| (s, t))).map(|(s, t)| ((s, t), rows(s, t))).collect()
    };
    let first = script.snapshot(0.0);
    truth.push((first, now(&script)));
    for (number, act) in acts.iter().enumerate() {
        let seconds = number as f64 + 1.0;
        let boundary = match *act {
            Act::Insert(site, table, rows) => {
                script.change(SITES[site], TABLES[table], seconds, rows);
                continue;
            }
            Act::Delete(site, table) => {
                let held = script.rows.get(&(site_id(site), TABLES[table].to_owned())).copied().unwrap_or(0);
                script.change(SITES[site], TABLES[table], seconds, -held.min(2));
                continue;
            }
            Act::Poll => script.poll(seconds),
            Act::Snapshot => script.snapshot(seconds),
            // Capture reads a table again in a poll of its own: what came before stands in the log already.
            Act::Reread(table) => {
                script.unseen(SITES[table], TABLES[table], 1);
                script.poll_with(seconds, vec![(TABLES[table], TableEventKind::Reread)])
            }
            Act::Drop(table) => script.poll_with(seconds, vec![(TABLES[table], TableEventKind::Dropped)]),
        };
        truth.push((boundary, now(&script)));
    }
    (script, truth)
}

fn site_id(number: usize) -> muster_types::SiteId {
    site(SITES[number])
}

proptest! {
    #[test]
    fn the_last_boundary_at_or_before_a_time(acts in prop::collection::vec(act(), 0..40), tenths in 0..450i64) {
        let (script, truth) = play(&acts);
        let catalog = catalog(&[&script]);
        let target = at(tenths as f64 / 10.0);
        let point = recovery_point(&catalog.shards[&script.shard], Target::At(target)).unwrap();
        let expected = truth.iter().map(|(boundary, _)| *boundary).filter(|one| one.at <= target).max().unwrap();
        prop_assert_eq!(point.boundary, expected);
        let covered = truth.iter().any(|(boundary, _)| boundary.at >= target);
        prop_assert_eq!(point.covered, covered);
        prop_assert_eq!(point.gap, None);
    }

    #[test]
    fn the_last_boundary_below_a_position(acts in prop::collection::vec(act(), 0..40), position in 1..60u64) {
        let (script, truth) = play(&acts);
        let catalog = catalog(&[&script]);
        let target = before(&script, position);
        let point = recovery_point(&catalog.shards[&script.shard], Target::Before(&target)).unwrap();
        let below = truth.iter().map(|(boundary, _)| *boundary).filter(|one| one.position < Position(position));
        let expected = below.max().unwrap();
        prop_assert_eq!(point.boundary, expected);
        prop_assert_eq!(point.exact, expected.position.0 + 1 == position);
    }

    /// Base and changes hold every change of the table up to the point exactly once, and nothing behind it.
    #[test]
    fn inputs_hold_every_change_once(acts in prop::collection::vec(act(), 0..25)) {
        let (script, truth) = play(&acts);
        let catalog = catalog(&[&script]);
        for (boundary, rows) in &truth {
            for (site, name) in SITES.iter().enumerate() {
                for kind_name in ["identity", "product:jira-software"] {
                    let inputs = store_inputs(
                        &catalog, &support::site(name), &kind(kind_name), &script.shard,
                        &script.history.incarnation, *boundary,
                    );
                    let inputs = inputs.unwrap();
                    let mut cut = false;
                    for (definition, input) in inputs.tables.iter().zip(&inputs.inputs) {
                        let Some(table) = TABLES.iter().position(|table| *table == definition.def.name) else { continue };
                        let contents = |chunk: &Chunk| script.contents[&chunk.offset].clone();
                        let mut held: Vec<(u64, i64)> =
                            input.base.iter().flat_map(|base| &base.chunks).flat_map(contents).collect();
                        for changes in &input.changes {
                            cut |= changes.after.is_some() || changes.upto.is_some();
                            let all = changes.chunks.iter().flat_map(contents);
                            held.extend(all.filter(|(position, _)| changes.holds(Position(*position))));
                        }
                        let sum: i64 = held.iter().map(|(_, rows)| rows).sum();
                        prop_assert_eq!(sum, rows[&(site, table)], "{} {} at {:?}", name, TABLES[table], boundary);
                        prop_assert!(held.iter().all(|(position, _)| *position <= boundary.position.0));
                        let ascending = held.windows(2).all(|pair| pair[0].0 <= pair[1].0);
                        prop_assert!(ascending, "in order: {:?}", held);
                    }
                    let expected: i64 = inputs.tables.iter()
                        .filter_map(|table| TABLES.iter().position(|name| *name == table.def.name))
                        .map(|table| rows[&(site, table)]).sum();
                    prop_assert!(cut || inputs.rows as i64 == expected, "{} rows and not {}", inputs.rows, expected);
                }
            }
        }
    }
}

fn recover(scripts: &[&Script], seconds: f64) -> Result<RecoveryPoint, NoRecoveryPoint> {
    recovery_point(&catalog(scripts).shards[&scripts[0].shard], Target::At(at(seconds)))
}

#[test]
fn a_frame_around_a_snapshot_starts_from_an_earlier_one() {
    let mut script = Script::new("shard-0");
    script.snapshot(0.0);
    script.poll(0.5);
    script.change("a", "users", 1.0, 2);
    script.snapshot(2.0);
    script.change("a", "users", 3.0, 2).change("b", "users", 3.0, 1);
    let boundary = script.poll(4.0);
    let catalog = catalog(&[&script]);
    let incarnation = &script.history.incarnation;
    let inputs = |name: &str| {
        store_inputs(&catalog, &site(name), &kind("identity"), &script.shard, incarnation, boundary).unwrap()
    };
    assert_eq!(inputs("a").rows, 4, "the frame holds two rows of the snapshot, and counts once");
    assert_eq!(inputs("a").snapshot, None, "no slice of the first snapshot, which the site was not in");
    assert_eq!(inputs("b").rows, 1);
}

#[test]
fn a_later_incarnation_takes_over_from_its_first_boundary_on() {
    let mut first = Script::new("shard-0");
    first.snapshot(0.0);
    first.poll(10.0);
    let mut second = Script::incarnation("shard-0", 1, 20.0);
    second.snapshot(20.0);
    second.poll(30.0);
    let both = [&first, &second];
    assert_eq!(recover(&both, 10.0).unwrap().number, 0);
    let between = recover(&both, 15.0).unwrap();
    assert_eq!((between.number, between.boundary.at, between.gap.is_some()), (0, at(10.0), true));
    let later = recover(&both, 25.0).unwrap();
    assert_eq!((later.number, later.boundary.at, later.gap), (1, at(20.0), None));
}

#[test]
fn behind_a_gap_a_snapshot_is_needed() {
    let mut script = Script::new("shard-0");
    script.snapshot(0.0);
    script.change("a", "users", 1.0, 1);
    let after = script.poll(10.0);
    script.change("a", "users", 11.0, 1);
    script.poll(20.0);
    script.change("a", "users", 21.0, 1);
    let end = script.poll(30.0);
    script.snapshot(40.0);
    script.poll(50.0);
    // The segment that ended at 20 s is lost.
    script.history.segments.remove(1);
    script.history.gaps.push(Gap {
        after,
        before: Some(script.history.segments[1].boundary),
        reason: "lost".to_owned(),
    });
    let point = recover(&[&script], 35.0).unwrap();
    assert_eq!((point.boundary, point.gap.is_some()), (after, true), "{end:?} has no snapshot below it");
    assert_eq!(recover(&[&script], 45.0).unwrap().boundary.at, at(40.0));
    assert_eq!(recover(&[&script], 45.0).unwrap().gap, None);
}

#[test]
fn a_snapshot_inside_a_hole_can_be_restored() {
    let mut script = Script::new("shard-0");
    script.change("a", "users", 1.0, 1);
    let inside = script.snapshot(2.0);
    script.change("a", "users", 3.0, 3);
    // The log starts only here, behind changes that no segment holds.
    script.snapshot(6.0);
    script.poll(7.0);
    assert_eq!(recover(&[&script], 5.0).unwrap().boundary, inside);
}

#[test]
fn nothing_below_the_first_snapshot() {
    let mut script = Script::new("shard-0");
    let first = script.snapshot(10.0);
    assert_eq!(recover(&[&script], 5.0), Err(NoRecoveryPoint::MissingSnapshot { first: Some(first) }));
}

#[test]
fn reasons_are_told_apart() {
    let mut script = Script::new("shard-0");
    script.snapshot(0.0);
    script.poll(10.0);
    script.change("a", "users", 11.0, 1);
    script.poll(20.0);
    let because = |seconds| recover(&[&script], seconds).unwrap().because;
    assert!(because(10.0).contains("at the target itself"));
    assert!(because(5.0).contains("nothing changed"));
    assert!(because(15.0).contains("the next is"));
    assert!(because(25.0).contains("not covered yet"));
}

#[test]
fn a_new_definition_comes_with_the_rereading() {
    let mut script = Script::new("shard-0");
    script.change("a", "users", 0.0, 3);
    script.snapshot(0.0);
    let old = script.poll(5.0);
    script.define("identity", "users", "renamed");
    let new = script.poll_with(10.0, vec![("users", TableEventKind::Reread)]);
    let catalog = catalog(&[&script]);
    let column = |boundary| {
        let found = store_inputs(
            &catalog,
            &site("a"),
            &kind("identity"),
            &script.shard,
            &script.history.incarnation,
            boundary,
        );
        let found = found.unwrap();
        let users = found.tables.iter().find(|table| table.def.name == "users").unwrap();
        (users.def.columns[2].name.clone(), found.rows)
    };
    assert_eq!(column(old), ("value".to_owned(), 3));
    assert_eq!(column(new), ("renamed".to_owned(), 3));
}

#[test]
fn a_table_dropped_at_a_commit_has_its_rows_up_to_there() {
    let mut script = Script::new("shard-0");
    script.change("a", "users", 0.0, 3).change("a", "groups", 0.0, 2);
    script.snapshot(0.0);
    script.poll_with(10.0, vec![("users", TableEventKind::Dropped)]);
    let segment = script.history.segments.last_mut().unwrap();
    let commit = |offset: u64, seconds: f64| Commit {
        position: Position(segment.after.position.0 + offset),
        at: at(seconds),
    };
    let commits = [commit(10, 5.0), commit(20, 6.0), commit(30, 10.0)];
    segment.commits = commits.to_vec();
    segment.boundary.position = commits[2].position;
    (segment.table_events[0].at, segment.table_events[0].position) = (at(6.0), Some(commits[1].position));
    let catalog = catalog(&[&script]);
    let rows = |seconds: f64| {
        let point = recovery_point(&catalog.shards[&script.shard], Target::At(at(seconds))).unwrap().boundary;
        let (incarnation, identity) = (&script.history.incarnation, kind("identity"));
        let found = store_inputs(&catalog, &site("a"), &identity, &script.shard, incarnation, point).unwrap();
        (point.position, found.rows)
    };
    assert_eq!(rows(5.5), (commits[0].position, 5));
    assert_eq!(rows(6.5), (commits[1].position, 2));
    assert_eq!(rows(10.0), (commits[2].position, 2));
}

#[test]
fn a_definition_that_changes_unread_is_an_error() {
    let mut script = Script::new("shard-0");
    script.change("a", "users", 0.0, 3);
    script.snapshot(0.0);
    script.define("identity", "users", "renamed");
    let boundary = script.poll(10.0);
    let found = store_inputs(
        &catalog(&[&script]),
        &site("a"),
        &kind("identity"),
        &script.shard,
        &script.history.incarnation,
        boundary,
    );
    assert!(matches!(found, Err(InputError::DefinitionChanged { .. })), "{found:?}");
}

/// Site `a` has three rows, then `change` alters the definition, then `a` gets a fourth: what is read before and after.
fn around(change: impl FnOnce(&mut CapturedTable)) -> [Result<StoreInputs, InputError>; 2] {
    let mut script = Script::new("shard-0");
    script.change("a", "users", 0.0, 3);
    script.snapshot(0.0);
    let old = script.poll(5.0);
    change(script.tables.iter_mut().find(|table| table.def.name == "users").unwrap());
    script.change("a", "users", 9.0, 1);
    let new = script.poll(10.0);
    let catalog = catalog(&[&script]);
    let (users, incarnation) = (kind("identity"), &script.history.incarnation);
    [old, new]
        .map(|boundary| store_inputs(&catalog, &site("a"), &users, &script.shard, incarnation, boundary))
}

#[test]
fn a_definition_may_change_around_its_rows() {
    let changes: [fn(&mut CapturedTable); 5] = [
        |table| table.def.create_sql.push("CREATE INDEX later ON users (value)".to_owned()),
        |table| table.def.columns[2].default_sql = Some("'none'".to_owned()),
        |table| table.def.columns[2].not_null = true,
        |table| {
            let (name, columns) = ("later".to_owned(), vec!["value".to_owned()]);
            table.def.unique.push(UniqueKey { name, columns, predicate_sql: None });
        },
        |table| {
            let columns = || vec!["value".to_owned()];
            let parent_table = "sites".to_owned();
            let key = ForeignKey { columns: columns(), parent_table, parent_columns: columns() };
            table.def.foreign_keys.push(key);
        },
    ];
    for change in changes {
        let [old, new] = around(change).map(Result::unwrap);
        assert_eq!((old.rows, new.rows), (3, 4));
        let users = |inputs: &StoreInputs| {
            inputs.tables.iter().find(|table| table.def.name == "users").unwrap().clone()
        };
        let mut expected = users(&old);
        change(&mut expected);
        assert_ne!(users(&old), expected);
        assert_eq!(users(&new), expected, "each point has the definition of its time");
    }
}

#[test]
fn a_definition_that_changes_the_rows_is_an_error() {
    let changes: [fn(&mut CapturedTable); 5] = [
        |table| table.def.columns[2].name.push('2'),
        |table| table.def.columns[2].declared_type.push('2'),
        |table| table.def.columns[2].generated = true,
        |table| table.def.key.push("value".to_owned()),
        |table| table.owner = Owner::Tenant { column: "value".to_owned() },
    ];
    for change in changes {
        let [old, new] = around(change);
        assert_eq!(old.unwrap().rows, 3);
        assert!(matches!(new, Err(InputError::DefinitionChanged { .. })), "{new:?}");
    }
}

#[test]
fn parents_come_first() {
    let mut script = Script::new("shard-0");
    let boundary = script.snapshot(0.0);
    let found = store_inputs(
        &catalog(&[&script]),
        &site("a"),
        &kind("product:jira-software"),
        &script.shard,
        &script.history.incarnation,
        boundary,
    );
    let names: Vec<String> = found.unwrap().tables.iter().map(|table| table.def.name.clone()).collect();
    assert_eq!(names, ["projects", "issues", "comments"]);
}

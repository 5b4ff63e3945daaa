//! What `detect` makes of scripted histories.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a failed test may say so by a panic"
)]

mod support;

use muster_plan::{DetectOptions, DetectedStore, Detection, detect, history, select_stores};
use muster_types::segment::{ChangeStamp, Commit, TableEventKind};
use muster_types::{Boundary, ChangeKey, Position};
use proptest::prelude::*;
use support::*;

fn found(scripts: &[&Script], from: f64, to: f64) -> Detection {
    detect(&topology(), &catalog(scripts), at(from), at(to), &DetectOptions::default())
}

fn names(detection: &Detection) -> Vec<&str> {
    detection.lost.iter().map(|lost| lost.site.as_str()).collect()
}

/// Two sites, with a first snapshot at 0 s and a poll at 1 s.
fn two_sites() -> Script {
    let mut script = Script::new("shard-0");
    populate(&mut script, "a");
    populate(&mut script, "b");
    script.snapshot(0.0);
    script.poll(1.0);
    script
}

fn delete_site(script: &mut Script, name: &str, seconds: f64) {
    delete_marked(script, name, seconds, None);
}

fn delete_marked(script: &mut Script, name: &str, seconds: f64, mark: Option<&str>) {
    for table in script.tables.clone().into_iter().rev() {
        let held = script.rows.get(&(site(name), table.def.name.clone())).copied().unwrap_or(0);
        script.change_marked(name, &table.def.name, seconds, -held, mark);
    }
}

/// Gives the last segment these commits, `positions` behind its begin at the seconds given, and ends it behind them.
fn commits(script: &mut Script, commits: &[(u64, f64)]) -> Vec<Position> {
    let segment = script.history.segments.last_mut().unwrap();
    let begin = segment.after.position.0;
    let commit =
        |&(offset, seconds): &(u64, f64)| Commit { position: Position(begin + offset), at: at(seconds) };
    segment.commits = commits.iter().map(commit).collect();
    segment.boundary.position = segment.commits.last().unwrap().position;
    (script.position, script.last) = (segment.boundary.position.0, segment.boundary);
    segment.commits.iter().map(|commit| commit.position).collect()
}

/// Puts all changes of a site in the last segment into one commit.
fn into_one_commit(script: &mut Script, name: &str, position: Position) {
    let number = script.history.segments.len() as u32 - 1;
    let frames = script.traces.get_mut(&site(name)).unwrap().segments.get_mut(&number).unwrap();
    let mut ordinal = 0;
    for frame in frames {
        let moved =
            |stamp: ChangeStamp, ordinal| ChangeStamp { key: ChangeKey { position, ordinal }, ..stamp };
        let last = ordinal + frame.inserts + frame.deletes - 1;
        frame.span = frame.span.map(|(a, b)| (moved(a, ordinal), moved(b, last)));
        frame.deletions = frame.deletions.map(|(a, b)| (moved(a, ordinal), moved(b, last)));
        ordinal = last + 1;
    }
}

#[test]
fn a_site_deleted_in_one_commit_comes_back_to_the_commit_before() {
    let mut script = two_sites();
    delete_site(&mut script, "a", 10.5);
    script.poll(12.0);
    let positions = commits(&mut script, &[(500, 10.2), (900, 10.5), (905, 10.7), (2_000, 12.0)]);
    into_one_commit(&mut script, "a", positions[1]);
    let detection = found(&[&script], 5.0, 60.0);
    assert_eq!(names(&detection), ["a"]);
    for store in &detection.lost[0].stores {
        assert_eq!(store.before.as_ref().map(|before| before.position), Some(positions[1]));
        assert_eq!(store.reached, Some(Boundary { position: positions[0], at: at(10.2) }));
    }
    assert_eq!((detection.lost[0].rows_before, detection.lost[0].rows_after), (111, 0));
}

#[test]
fn rows_replaced_within_a_commit_are_neither_lost_nor_gained() {
    let mut script = two_sites();
    script.change("a", "issues", 10.5, 10).change("a", "issues", 10.5, -10);
    script.poll(12.0);
    let positions = commits(&mut script, &[(900, 10.5), (2_000, 12.0)]);
    into_one_commit(&mut script, "a", positions[0]);
    delete_site(&mut script, "a", 20.0);
    script.poll(21.0);
    let detection = found(&[&script], 5.0, 60.0);
    assert_eq!((detection.lost[0].rows_before, detection.lost[0].rows_after), (111, 0));
}

/// A site that gets its licences (two rows) and loses everything within one poll; positions of the commits.
fn brief_store(licensed_at: f64, deleted_at: f64) -> (Script, Vec<Position>) {
    let mut script = Script::new("shard-0");
    sized(&mut script, "a", &[("sites", 1), ("users", 30), ("projects", 5), ("issues", 50)]);
    script.snapshot(0.0);
    script.poll(1.0);
    let begin = script.position;
    script.change("a", "licences", licensed_at, 2);
    let came = script.position - begin;
    delete_site(&mut script, "a", deleted_at);
    let went = script.position - begin;
    script.poll(12.0);
    let all: Vec<(u64, f64)> =
        (1..=went).map(|offset| (offset, if offset <= came { licensed_at } else { deleted_at })).collect();
    let positions = commits(&mut script, &all);
    (script, positions)
}

#[test]
fn a_store_that_came_and_fell_with_its_site_in_one_poll_is_part_of_the_loss() {
    let (script, positions) = brief_store(10.2, 10.5);
    let detection = found(&[&script], 5.0, 60.0);
    assert_eq!(detection.lost[0].stores.len(), 4);
    let licences = store(&detection, "licence").expect("the store that came");
    let first = licences.before.as_ref().expect("a place").position;
    // Its first deletion: the commit before is the last at which it was whole.
    let stands = script.log.iter().find(|(_, _, table, rows)| table == "licences" && *rows < 0).unwrap().0;
    assert_eq!(first, Position(stands));
    assert!(positions.contains(&first));
    assert_eq!((licences.rows_before, licences.rows_after), (0, 0));
    assert_eq!(licences.reached.unwrap().position, Position(stands - 1));

    // The plan takes the place for one where rows may be, though the frame nets out.
    let incident = detection.incident("test", "test", at(100.0));
    let found = select_stores(&topology(), &catalog(&[&script]), &incident.sites).unwrap();
    let planned: Vec<String> = found.iter().map(|found| found.store.kind.to_string()).collect();
    assert!(planned.contains(&"licence".to_owned()), "{planned:?}");
}

/// The script's first deletion stands in one poll with an ordinary insertion into the same store: its poll nets out.
#[test]
fn a_first_deletion_that_an_insertion_hides_begins_the_fall() {
    for first_in_site in [true, false] {
        let mut script = two_sites();
        let reached = script.poll(9.0);
        if !first_in_site {
            script.change("a", "licences", 10.38, -10);
        }
        script.change("a", "issues", 10.3, 1).change("a", "issues", 10.4, -1);
        script.poll(10.45);
        delete_site(&mut script, "a", 10.5);
        script.poll(12.0);
        let detection = found(&[&script], 5.0, 60.0);
        let store = store(&detection, "product:jira-software").unwrap();
        assert_eq!((store.first_loss_at, store.reached), (at(10.4), Some(reached)), "{detection:?}");
    }
}

#[test]
fn a_store_that_came_in_an_earlier_poll_is_part_of_the_loss() {
    let mut script = Script::new("shard-0");
    sized(&mut script, "a", &[("sites", 1), ("users", 30), ("projects", 5), ("issues", 50)]);
    script.snapshot(0.0);
    script.poll(1.0);
    script.change("a", "licences", 10.2, 2);
    let reached = script.poll(10.3);
    delete_site(&mut script, "a", 10.5);
    script.poll(12.0);
    let detection = found(&[&script], 5.0, 60.0);
    assert_eq!(store(&detection, "licence").expect("the store that came").reached, Some(reached));
}

#[test]
fn a_store_that_came_and_went_long_before_its_site_fell_is_left_as_it_was() {
    let mut script = Script::new("shard-0");
    sized(&mut script, "a", &[("sites", 1), ("users", 30), ("projects", 5), ("issues", 50)]);
    script.snapshot(0.0);
    script.poll(1.0);
    script.change("a", "licences", 1_000.0, 8).change("a", "licences", 1_000.5, -8);
    script.poll(1_001.0);
    commits(&mut script, &[(8, 1_000.0), (16, 1_000.5), (20, 1_001.0)]);
    delete_site(&mut script, "a", 2_000.5);
    script.poll(2_001.0);
    let detection = found(&[&script], 5.0, 3_000.0);
    assert_eq!(names(&detection), ["a"]);
    assert!(store(&detection, "licence").is_none());
    assert_eq!(detection.lost[0].first_loss_at, at(2_000.5));
}

#[test]
fn a_store_that_comes_and_goes_all_the_time_does_not_move_the_onset() {
    let mut script = Script::new("shard-0");
    sized(&mut script, "a", &[("sites", 1), ("users", 30), ("projects", 5), ("issues", 50)]);
    script.snapshot(0.0);
    script.poll(1.0);
    for round in 0..10 {
        let began = 1_000.0 + 4.0 * f64::from(round);
        script.change("a", "licences", began, 8).change("a", "licences", began + 0.5, -8);
        script.poll(began + 1.0);
        commits(&mut script, &[(8, began), (16, began + 0.5), (20, began + 1.0)]);
    }
    delete_site(&mut script, "a", 1_040.5);
    script.poll(1_041.0);
    let detection = found(&[&script], 5.0, 3_000.0);
    // The last time may have been the script's; the nine before it were not.
    assert!(detection.lost[0].first_loss_at >= at(1_036.5), "{detection:?}");
}

#[test]
fn truncated_tables_are_losses_of_every_site_that_had_rows() {
    let mut script = two_sites();
    let tables: Vec<String> = script.tables.iter().map(|table| table.def.name.clone()).collect();
    let events = tables.iter().map(|table| (table.as_str(), TableEventKind::Truncated)).collect();
    script.poll_with(12.0, events);
    let positions = commits(&mut script, &[(500, 10.2), (900, 10.5), (2_000, 12.0)]);
    for event in &mut script.history.segments.last_mut().unwrap().table_events {
        (event.at, event.position) = (at(10.5), Some(positions[1]));
    }
    let detection = found(&[&script], 5.0, 60.0);
    assert_eq!(names(&detection), ["a", "b"]);
    assert_eq!(detection.table_losses.len(), tables.len());
    for store in detection.lost.iter().flat_map(|lost| &lost.stores) {
        assert_eq!((store.rows_after, store.first_loss_at), (0, at(10.5)));
        assert_eq!(store.before.as_ref().map(|before| before.position), Some(positions[1]));
        assert_eq!(store.reached.map(|reached| reached.position), Some(positions[0]));
    }
}

#[test]
fn a_deleted_site_is_found_with_its_position() {
    let mut script = two_sites();
    script.change("b", "issues", 8.0, 1);
    let boundary = script.poll(9.0);
    delete_site(&mut script, "a", 10.5);
    script.poll(11.0);
    let detection = found(&[&script], 5.0, 60.0);
    assert_eq!(names(&detection), ["a"]);
    let lost = &detection.lost[0];
    assert!(lost.directory_row);
    assert_eq!((lost.rows_before, lost.rows_after), (111, 0));
    assert_eq!((lost.first_loss_at, lost.last_loss_at), (at(10.5), at(10.5)));
    assert_eq!(lost.stores.len(), 6);
    assert!(lost.stores.iter().all(|store| store.reached == Some(boundary)));
    let incident = detection.incident("deleted", "detect", at(100.0));
    let asked = &incident.sites[0];
    assert_eq!((asked.target, asked.before.len()), (at(10.499_999), 6));
    assert!(asked.before.values().all(|before| before.position > boundary.position));
}

#[test]
fn deletions_before_and_after_the_window_do_not_count() {
    let mut script = two_sites();
    delete_site(&mut script, "a", 10.5);
    script.poll(11.0);
    delete_site(&mut script, "b", 30.5);
    script.poll(31.0);
    assert_eq!(names(&found(&[&script], 20.0, 60.0)), ["b"]);
    assert_eq!(names(&found(&[&script], 5.0, 20.0)), ["a"]);
    assert_eq!(names(&found(&[&script], 12.0, 20.0)), [""; 0]);
    assert_eq!(names(&found(&[&script], 5.0, 60.0)), ["a", "b"]);
}

#[test]
fn rows_that_come_back_are_not_lost() {
    let mut script = two_sites();
    script.change("a", "issues", 10.0, -10).change("a", "comments", 10.0, -10);
    script.poll(11.0);
    script.change("a", "issues", 12.0, 10).change("a", "comments", 12.0, 10);
    script.poll(13.0);
    delete_site(&mut script, "b", 14.0);
    script.change("b", "sites", 14.5, 1);
    script.poll(15.0);
    assert_eq!(names(&found(&[&script], 5.0, 60.0)), ["b"], "b lost the rest of its rows");
}

#[test]
fn half_is_not_most() {
    let mut script = Script::new("shard-0");
    script.change("a", "issues", 0.0, 20);
    script.snapshot(0.0);
    script.change("a", "issues", 10.0, -10);
    script.poll(11.0);
    assert_eq!(names(&found(&[&script], 5.0, 60.0)), [""; 0]);
    script.change("a", "issues", 12.0, -1);
    script.poll(13.0);
    assert_eq!(names(&found(&[&script], 5.0, 60.0)), ["a"]);
}

#[test]
fn a_row_that_changes_site_is_not_a_loss() {
    let mut script = two_sites();
    script.move_rows("a", "b", "issues", 10.0, 10).move_rows("a", "b", "comments", 10.0, 10);
    script.move_rows("a", "b", "users", 10.0, 10).move_rows("a", "b", "groups", 10.0, 10);
    script.move_rows("a", "b", "memberships", 10.0, 10).move_rows("a", "b", "pages", 10.0, 10);
    script.poll(11.0);
    assert_eq!(names(&found(&[&script], 5.0, 60.0)), [""; 0]);
}

#[test]
fn a_site_that_moves_between_shards_is_not_lost() {
    let mut old = two_sites();
    let mut new = Script::new("shard-2");
    new.snapshot(0.0);
    for table in new.tables.clone() {
        let rows = if table.def.name == "sites" { 1 } else { 10 };
        new.change("a", &table.def.name, 10.0, rows);
    }
    new.poll(11.0);
    delete_site(&mut old, "a", 12.0);
    old.poll(13.0);
    assert_eq!(names(&found(&[&old, &new], 5.0, 60.0)), [""; 0]);
}

#[test]
fn what_muster_removed_is_listed_apart() {
    let mut script = two_sites();
    delete_marked(&mut script, "a", 10.0, Some("publish/site:a/metadata"));
    script.poll(11.0);
    let detection = found(&[&script], 5.0, 60.0);
    assert_eq!(names(&detection), [""; 0]);
    assert_eq!(detection.marked.iter().map(|loss| loss.rows).sum::<u64>(), 111);
    assert!(detection.marked.iter().all(|loss| loss.site == site("a") && loss.first_at == at(10.0)));
}

#[test]
fn a_site_that_muster_brought_back_is_not_lost_any_more() {
    let mut script = two_sites();
    delete_site(&mut script, "a", 10.0);
    script.poll(11.0);
    for table in script.tables.clone() {
        let rows = if table.def.name == "sites" { 1 } else { 10 };
        script.change_marked("a", &table.def.name, 20.0, rows, Some("publish/site:a/metadata"));
    }
    script.poll(21.0);
    assert_eq!(names(&found(&[&script], 5.0, 15.0)), ["a"]);
    assert_eq!(names(&found(&[&script], 5.0, 60.0)), [""; 0]);
}

#[test]
fn an_ordinary_deletion_does_not_move_the_onset() {
    let mut script = two_sites();
    script.change("a", "issues", 5.0, 90);
    script.poll(6.0);
    script.change("a", "issues", 8.0, -1);
    script.poll(9.0);
    let boundary = script.poll(10.0);
    delete_site(&mut script, "a", 10.5);
    script.poll(11.0);
    let detection = found(&[&script], 2.0, 60.0);
    let jira =
        detection.lost[0].stores.iter().find(|store| store.kind == kind("product:jira-software")).unwrap();
    assert_eq!((jira.reached, jira.first_loss_at), (Some(boundary), at(10.5)));
}

#[test]
fn a_deletion_that_a_poll_cut_in_two_starts_with_its_first_part() {
    let mut script = two_sites();
    script.change("a", "issues", 5.0, 90);
    let boundary = script.poll(6.0);
    script.change("a", "issues", 10.95, -2);
    script.poll(11.0);
    delete_site(&mut script, "a", 11.05);
    script.poll(12.0);
    let detection = found(&[&script], 7.0, 60.0);
    let jira =
        detection.lost[0].stores.iter().find(|store| store.kind == kind("product:jira-software")).unwrap();
    assert_eq!(jira.reached, Some(boundary));
}

fn store<'d>(detection: &'d Detection, kind_name: &str) -> Option<&'d DetectedStore> {
    detection.lost[0].stores.iter().find(|store| store.kind == kind(kind_name))
}

/// Sets the rows that each table of a site has.
fn sized(script: &mut Script, name: &str, rows: &[(&str, i64)]) {
    for (table, rows) in rows {
        script.change(name, table, 0.0, *rows);
    }
}

/// A site of 91 rows, three of them in the app's store and two in the licences'.
fn small_site() -> Script {
    let mut script = Script::new("shard-0");
    let rows =
        [("sites", 1), ("users", 30), ("projects", 5), ("issues", 50), ("worklogs", 3), ("licences", 2)];
    sized(&mut script, "a", &rows);
    script.snapshot(0.0);
    script.poll(1.0);
    script
}

#[test]
fn an_ordinary_deletion_in_a_small_store_does_not_move_its_onset() {
    let mut script = small_site();
    script.change("a", "worklogs", 82.0, -1);
    script.poll(83.0);
    script.change("a", "issues", 90.0, 1);
    let boundary = script.poll(91.0);
    delete_site(&mut script, "a", 100.5);
    script.poll(101.0);
    let detection = found(&[&script], 60.0, 200.0);
    let reached: Vec<_> = detection.lost[0].stores.iter().map(|store| store.reached).collect();
    assert_eq!(reached, vec![Some(boundary); 5]);
    assert_eq!(detection.lost[0].first_loss_at, at(100.5));
}

#[test]
fn a_small_store_that_ordinary_work_emptied_before_stays_as_it_was() {
    let mut script = small_site();
    script.change("a", "licences", 82.0, -2);
    script.poll(83.0);
    delete_site(&mut script, "a", 100.5);
    script.poll(101.0);
    let detection = found(&[&script], 60.0, 200.0);
    assert_eq!(store(&detection, "licence"), None);
    assert_eq!((detection.lost[0].stores.len(), detection.lost[0].first_loss_at), (4, at(100.5)));
}

#[test]
fn a_site_deleted_product_by_product_with_pauses_is_found_whole() {
    let mut script = small_site();
    sized(&mut script, "a", &[("pages", 40)]);
    script.poll(2.0);
    let mut boundaries = Vec::new();
    for (number, tables) in
        [&["pages"][..], &["issues", "projects"], &["worklogs"], &["users", "licences", "sites"]]
            .iter()
            .enumerate()
    {
        let seconds = 100.0 + 30.0 * number as f64;
        boundaries.push(script.poll(seconds - 1.0));
        for table in *tables {
            let held = script.rows[&(site("a"), (*table).to_owned())];
            script.change("a", table, seconds, -held);
        }
        script.poll(seconds + 1.0);
        // People go on in what is still there.
        if number == 0 {
            script.change("a", "users", seconds + 10.0, -1).change("a", "issues", seconds + 10.0, 2);
            script.poll(seconds + 11.0);
        }
    }
    let detection = found(&[&script], 60.0, 300.0);
    let reached = |kind: &str| store(&detection, kind).unwrap().reached;
    assert_eq!(reached("product:confluence"), Some(boundaries[0]));
    assert_eq!(reached("product:jira-software"), Some(boundaries[1]));
    assert_eq!(reached("app:timesheets"), Some(boundaries[2]));
    for last in ["identity", "licence", "metadata"] {
        assert_eq!(reached(last), Some(boundaries[3]), "{last}");
    }
    assert_eq!(detection.lost[0].first_loss_at, at(100.0));
}

#[test]
fn ordinary_deletions_in_the_seconds_of_the_fall_belong_to_it() {
    let mut script = small_site();
    script.change("a", "users", 96.0, -1);
    let whole = script.poll(97.0);
    script.change("a", "issues", 100.5, -50).change("a", "projects", 100.5, -5);
    let half = script.poll(101.0);
    script.change("a", "worklogs", 101.5, -1);
    script.poll(102.0);
    delete_site(&mut script, "a", 103.5);
    script.poll(104.0);
    let detection = found(&[&script], 60.0, 200.0);
    assert_eq!(store(&detection, "product:jira-software").unwrap().reached, Some(whole));
    // Behind the onset of the site, the store's first loss counts, whoever did it.
    assert_eq!(store(&detection, "app:timesheets").unwrap().reached, Some(half));
    assert_eq!(store(&detection, "identity").unwrap().first_loss_at, at(103.5));
}

#[test]
fn a_site_of_one_store_falls_like_any_other() {
    let mut script = Script::new("shard-0");
    sized(&mut script, "a", &[("issues", 40), ("comments", 20)]);
    script.snapshot(0.0);
    script.poll(1.0);
    script.change("a", "comments", 82.0, -2);
    let boundary = script.poll(83.0);
    script.change("a", "comments", 100.5, -18).change("a", "issues", 100.6, -10);
    script.poll(101.0);
    script.change("a", "issues", 101.1, -30);
    script.poll(102.0);
    let detection = found(&[&script], 60.0, 200.0);
    let only = store(&detection, "product:jira-software").unwrap();
    assert_eq!((only.reached, only.first_loss_at, only.last_loss_at), (Some(boundary), at(100.5), at(101.1)));
}

#[test]
fn a_slow_deletion_is_found_from_its_first_row() {
    let mut script = Script::new("shard-0");
    sized(&mut script, "a", &[("sites", 1), ("issues", 120)]);
    script.snapshot(0.0);
    let boundary = script.poll(99.0);
    for number in 0..120 {
        script.change("a", "issues", 100.0 + 2.0 * f64::from(number), -1);
        script.poll(101.0 + 2.0 * f64::from(number));
    }
    let detection = found(&[&script], 60.0, 1_000.0);
    assert_eq!(detection.lost[0].stores.len(), 1);
    assert_eq!(detection.lost[0].stores[0].reached, Some(boundary));
}

#[test]
fn a_site_that_is_deleted_again_falls_from_the_second_time() {
    let mut script = small_site();
    delete_site(&mut script, "a", 100.5);
    script.poll(101.0);
    let rows =
        [("sites", 1), ("users", 30), ("projects", 5), ("issues", 50), ("worklogs", 3), ("licences", 2)];
    for (table, rows) in rows {
        script.change_marked("a", table, 200.0, rows, Some("publish/site:a/metadata"));
    }
    let back = script.poll(201.0);
    delete_site(&mut script, "a", 300.5);
    script.poll(301.0);
    let detection = found(&[&script], 60.0, 1_000.0);
    assert!(detection.lost[0].stores.iter().all(|store| store.reached == Some(back)));
    assert_eq!((detection.lost[0].stores.len(), detection.lost[0].first_loss_at), (5, at(300.5)));
}

#[test]
fn clocks_of_shards_that_differ_do_not_move_the_onset() {
    // The second shard's clock is a minute ahead: its ordinary deletion looks as if it followed the first shard's fall.
    let (mut first, mut second) = (Script::new("shard-0"), Script::new("shard-1"));
    second.clock_offset_micros = (60_000_000, 500);
    sized(&mut first, "a", &[("sites", 1), ("users", 50)]);
    sized(&mut second, "a", &[("worklogs", 3)]);
    for (script, ahead) in [(&mut first, 0.0), (&mut second, 60.0)] {
        script.snapshot(0.0);
        script.poll(1.0 + ahead);
    }
    second.change("a", "worklogs", 142.0, -1);
    let boundary = second.poll(143.0);
    delete_site(&mut first, "a", 100.5);
    first.poll(101.0);
    delete_site(&mut second, "a", 161.0);
    second.poll(162.0);
    let detection = found(&[&first, &second], 30.0, 300.0);
    assert_eq!(store(&detection, "app:timesheets").unwrap().reached, Some(boundary));
}

#[test]
fn a_dropped_table_takes_its_rows_with_it() {
    let mut script = Script::new("shard-0");
    script.change("a", "issues", 0.0, 30).change("a", "sites", 0.0, 1);
    script.snapshot(0.0);
    let boundary = script.poll(10.0);
    script.poll_with(20.0, vec![("issues", TableEventKind::Dropped)]);
    let detection = found(&[&script], 15.0, 60.0);
    assert_eq!(names(&detection), ["a"]);
    assert_eq!(detection.table_losses.len(), 1);
    let store = &detection.lost[0].stores[0];
    assert_eq!((store.before.clone(), store.reached), (None, Some(boundary)));
    assert_eq!(detection.lost[0].incident_site().target, boundary.at);
}

/// Gives the last segment's events these commits, and their times.
fn timed(script: &mut Script, places: &[(Position, f64)]) {
    for (event, place) in script.history.segments.last_mut().unwrap().table_events.iter_mut().zip(places) {
        (event.at, event.position) = (at(place.1), Some(place.0));
    }
}

#[test]
fn dropped_tables_are_losses_at_their_commits() {
    let mut script = two_sites();
    script.poll_with(12.0, vec![("issues", TableEventKind::Dropped), ("sites", TableEventKind::Dropped)]);
    let positions =
        commits(&mut script, &[(500, 10.2), (900, 10.5), (905, 10.7), (950, 11.0), (2_000, 12.0)]);
    timed(&mut script, &[(positions[1], 10.5), (positions[3], 11.0)]);
    let detection = found(&[&script], 5.0, 60.0);
    assert_eq!(names(&detection), ["a", "b"]);
    assert_eq!(detection.table_losses.iter().map(|loss| loss.at).collect::<Vec<_>>(), [at(10.5), at(11.0)]);
    let rows = |rows| [("a", rows), ("b", rows)].map(|(name, rows)| (site(name), rows)).into();
    assert_eq!(detection.table_losses[0].sites, rows(10));
    assert_eq!(detection.table_losses[1].sites, rows(1));
    let sites = store(&detection, "metadata").unwrap();
    assert_eq!(sites.before.as_ref().map(|before| before.position), Some(positions[3]));
    assert_eq!(sites.reached, Some(Boundary { position: positions[2], at: at(10.7) }));
    // The product lost a table, and not most of its rows.
    assert_eq!(store(&detection, "product:jira-software"), None);
}

#[test]
fn a_dropped_schema_takes_every_site_at_one_commit() {
    let mut script = two_sites();
    let tables: Vec<String> = script.tables.iter().map(|table| table.def.name.clone()).collect();
    let events = tables.iter().map(|table| (table.as_str(), TableEventKind::Dropped)).collect();
    script.poll_with(12.0, events);
    let positions = commits(&mut script, &[(500, 10.2), (900, 10.5), (2_000, 12.0)]);
    timed(&mut script, &vec![(positions[1], 10.5); tables.len()]);
    let detection = found(&[&script], 5.0, 60.0);
    assert_eq!(names(&detection), ["a", "b"]);
    assert_eq!(detection.table_losses.len(), tables.len());
    for lost in &detection.lost {
        assert!(lost.directory_row);
        assert_eq!((lost.rows_after, lost.first_loss_at, lost.last_loss_at), (0, at(10.5), at(10.5)));
        for store in &lost.stores {
            assert_eq!(store.reached, Some(Boundary { position: positions[0], at: at(10.2) }));
        }
        assert_eq!(lost.incident_site().before.len(), lost.stores.len());
    }
}

#[test]
fn a_dropped_table_counts_in_its_own_moment_only() {
    let mut script = two_sites();
    script.poll_with(12.0, vec![("issues", TableEventKind::Dropped), ("sites", TableEventKind::Dropped)]);
    let positions = commits(&mut script, &[(500, 10.2), (900, 10.5), (2_000, 12.0)]);
    timed(&mut script, &[(positions[1], 10.5), (positions[1], 10.5)]);
    assert_eq!(names(&found(&[&script], 5.0, 10.4)), Vec::<&str>::new());
    assert_eq!(names(&found(&[&script], 10.6, 60.0)), Vec::<&str>::new());
    assert_eq!(names(&found(&[&script], 10.5, 10.5)), ["a", "b"]);
}

#[test]
fn history_is_by_minute_and_table() {
    let mut script = two_sites();
    script.change("a", "issues", 61.0, 3);
    script.poll(62.0);
    script.change("a", "issues", 63.0, -1);
    script.poll(64.0);
    script.change_marked("a", "issues", 130.0, 1, Some("publish/site:a/metadata"));
    script.poll(131.0);
    let activity = history(&catalog(&[&script]), &site("a"));
    let lines: Vec<_> =
        activity.iter().map(|one| (one.minute, one.inserts, one.deletes, one.mark.is_some())).collect();
    assert_eq!(lines, [(at(60.0), 3, 1, false), (at(120.0), 1, 0, true)]);
}

proptest! {
    /// Many sites, some deleted whole at some time among ordinary work of all: exactly those are found, each with the
    /// boundary before its own deletion.
    #[test]
    fn exactly_the_deleted_sites_are_found(
        deletions in prop::collection::btree_map(0..8usize, 0..20usize, 0..8),
        work in prop::collection::vec((0..8usize, 0..20usize, any::<bool>()), 0..60),
    ) {
        let mut script = Script::new("shard-0");
        let name = |number: usize| format!("s{number}");
        for number in 0..8 {
            populate(&mut script, &name(number));
            script.change(&name(number), "issues", 0.0, 90);
        }
        script.snapshot(0.0);
        let mut boundaries = vec![script.poll(5.0)];
        for round in 0..20usize {
            // Ten seconds apart, so that ordinary deletions are not one action with what follows.
            let seconds = 10.0 + round as f64 * 10.0;
            for (number, _, insert) in work.iter().filter(|(_, when, _)| *when == round) {
                if deletions.get(number).is_none_or(|when| *when > round) {
                    script.change(&name(*number), "issues", seconds, if *insert { 2 } else { -1 });
                }
            }
            for (number, _) in deletions.iter().filter(|(_, when)| **when == round) {
                delete_site(&mut script, &name(*number), seconds + 1.0);
            }
            boundaries.push(script.poll(seconds + 2.0));
        }
        let detection = found(&[&script], 6.0, 1_000.0);
        let mut found: Vec<(String, Vec<_>)> = detection.lost.iter().map(|lost| {
            (lost.site.as_str().to_owned(), lost.stores.iter().map(|store| store.reached.unwrap()).collect())
        }).collect();
        found.sort();
        let expected: Vec<(String, Vec<_>)> =
            deletions.iter().map(|(number, round)| (name(*number), vec![boundaries[*round]; 6])).collect();
        prop_assert_eq!(found, expected);
    }
}

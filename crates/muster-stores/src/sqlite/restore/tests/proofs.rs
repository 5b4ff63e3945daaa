//! What the shard proves of a publish from outside: its log by mark, its neighbours by digest.

use std::collections::BTreeSet;

use muster_engine::driver::{LoggedChange, StoreDriver};
use muster_rows::{Op, RowsDigest};
use muster_types::Position;
use muster_types::journal::NeighbourDigest;

use super::super::Fault;
use super::fixture::{Fixture, digests, store};

/// `before` with the changes of neighbours added.
fn expected(before: &NeighbourDigest, changes: &[LoggedChange], excluded: &BTreeSet<&str>) -> RowsDigest {
    let mut digest = RowsDigest::from_hex(&before.state).unwrap();
    for change in changes {
        if change.site.as_ref().is_some_and(|site| excluded.contains(site.as_str())) {
            continue;
        }
        match &change.change.op {
            Op::Insert { new } => digest.add(&change.table, new),
            Op::Delete { old } => digest.remove(&change.table, old),
            Op::Update { old, new } => {
                digest.remove(&change.table, old);
                digest.add(&change.table, new);
            }
            Op::Truncate => panic!("SQLite logs no truncation"),
        }
    }
    digest
}

/// Restores site a's users; its neighbours before and after, and what was logged between.
async fn observed(fixture: &Fixture) -> (NeighbourDigest, NeighbourDigest, Vec<LoggedChange>) {
    let work = fixture.work("r1", 1, "site:a/identity");
    let rows = fixture.rows(&work);
    let excluded = BTreeSet::from([store("site:a/identity"), store("site:a/product:jira")]);
    fixture.delete("a");
    let before = fixture.driver.neighbour_digest(&excluded).await.unwrap();
    let published = fixture.restore(&work, &rows).await.unwrap();
    let after = fixture.driver.neighbour_digest(&excluded).await.unwrap();
    assert_eq!(published.positions, Some((Position(before.position.0 + 1), after.position)));
    let (from, changes) = fixture.driver.logged_changes(before.position, after.position).await.unwrap();
    assert_eq!(from, Position(1), "nothing was acknowledged yet");
    (before, after, changes)
}

#[tokio::test]
async fn a_publish_is_logged_whole_with_its_mark_and_leaves_neighbours_alone() {
    let fixture = Fixture::new();
    let (before, after, changes) = observed(&fixture).await;
    assert_eq!(expected(&before, &changes, &BTreeSet::from(["a"])).finish(), after.digest);
    assert_eq!((before.rows, after.rows), (34, 34));
    let work = fixture.work("r1", 1, "site:a/identity");
    assert!(
        changes
            .iter()
            .all(|change| change.mark == Some(work.mark()) && change.site == Some(work.store.site.clone()))
    );
    let rows = changes.iter().map(|change| match &change.change.op {
        Op::Insert { new } => (0, new.clone()),
        other => panic!("{other:?}"),
    });
    assert_eq!(digests(&work, &rows.collect()), digests(&work, &fixture.rows(&work)));
}

#[tokio::test]
async fn the_full_proof_sees_a_write_that_no_one_logged() {
    let sql = "UPDATE comments SET body = 'stray' WHERE id = 'b-1'";
    let fixture = Fixture::new().with_fault(Fault::HiddenStrayWrite { sql: sql.into() });
    let (before, after, changes) = observed(&fixture).await;
    assert_ne!(expected(&before, &changes, &BTreeSet::from(["a"])).finish(), after.digest);
}

#[tokio::test]
async fn the_marked_changes_show_a_write_to_another_site() {
    let sql = "DELETE FROM settings WHERE site = 'b' AND k = 'one';
               INSERT INTO _muster_change (at_ms, tbl, op, old_site, mark, v0, v1, v2, v3)
               SELECT 1, id, 'D', 'b', {mark}, 'b', 'one', 9e999, 'not a number' FROM _muster_table WHERE name = 'settings'";
    let fixture = Fixture::new().with_fault(Fault::HiddenStrayWrite { sql: sql.into() });
    let (_, _, changes) = observed(&fixture).await;
    let work = fixture.work("r1", 1, "site:a/identity");
    let strangers: Vec<_> = changes
        .iter()
        .filter(|change| change.mark == Some(work.mark()) && change.site != Some(work.store.site.clone()))
        .map(|change| (change.table.as_str(), change.site.as_ref().map(|site| site.as_str())))
        .collect();
    assert_eq!(strangers, [("settings", Some("b"))]);
}

#[tokio::test]
async fn probing_counts_rows_by_site_and_kind() {
    let fixture = Fixture::new();
    fixture.delete("c");
    let stores = ["site:a/identity", "site:a/product:jira", "site:c/product:jira", "site:none/identity"];
    let probes: Vec<_> = stores.iter().map(|store| fixture.probe_of(store)).collect();
    let live = fixture.driver.probe(&probes).await.unwrap();
    assert_eq!(live.iter().map(|one| one.rows).collect::<Vec<_>>(), [2, 12, 0, 0]);
    assert!(live.iter().all(|one| one.differences.is_empty() && one.unwritable.is_none()));
    assert_eq!(live[0].definitions, live[3].definitions);
    assert_ne!(live[0].definitions, live[1].definitions);
}

//! What is published is captured again: the log, replayed from a snapshot, gives the live rows at every poll.

use std::collections::BTreeMap;

use muster_engine::driver::StoreDriver;
use muster_rows::{Change, Op, Row};
use muster_types::segment::{Commit, Mark, TableEvent};
use muster_types::table::CapturedTable;
use muster_types::{Boundary, Position, SiteId, Timestamp};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::fixture::{Fixture, Rows};
use crate::capture::{CaptureError, CaptureSource, ChangeSink, SnapshotSink};

/// Every row by site, table and text, as capture tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Replica {
    tables: Vec<String>,
    rows: BTreeMap<(Option<SiteId>, String, String), Row>,
    /// Marks of changes by site.
    marks: Vec<(Option<SiteId>, Option<Mark>)>,
    /// Deletions of rows that were not there, and insertions of rows that were.
    contradictions: Vec<String>,
}

impl Replica {
    fn put(&mut self, site: Option<&SiteId>, table: usize, row: Row) {
        let key = (site.cloned(), self.tables[table].clone(), format!("{row:?}"));
        if self.rows.insert(key.clone(), row).is_some() {
            self.contradictions.push(format!("twice: {key:?}"));
        }
    }

    fn take(&mut self, site: Option<&SiteId>, table: usize, row: &Row) {
        let key = (site.cloned(), self.tables[table].clone(), format!("{row:?}"));
        if self.rows.remove(&key).is_none() {
            self.contradictions.push(format!("not there: {key:?}"));
        }
    }
}

impl SnapshotSink for Replica {
    fn tables(&mut self, tables: &[CapturedTable]) -> Result<(), CaptureError> {
        self.tables = tables.iter().map(|table| table.def.name.clone()).collect();
        Ok(())
    }

    fn row(&mut self, site: Option<&SiteId>, table: usize, row: &Row) -> Result<(), CaptureError> {
        self.put(site, table, row.clone());
        Ok(())
    }
}

/// Changes of one poll; they come grouped, and are replayed in history's order.
#[derive(Default)]
struct Poll {
    tables: Vec<String>,
    changes: Vec<(Option<SiteId>, usize, Option<Mark>, Change)>,
}

impl ChangeSink for Poll {
    fn table(&mut self, table: &CapturedTable) -> Result<(), CaptureError> {
        self.tables.push(table.def.name.clone());
        Ok(())
    }

    fn change(
        &mut self,
        site: Option<&SiteId>,
        table: usize,
        mark: Option<&Mark>,
        change: Change,
    ) -> Result<(), CaptureError> {
        self.changes.push((site.cloned(), table, mark.cloned(), change));
        Ok(())
    }

    fn reread_row(&mut self, _: Option<&SiteId>, table: usize, _: &Row) -> Result<(), CaptureError> {
        panic!("table {} was read again whole", self.tables[table]);
    }

    fn table_event(&mut self, event: TableEvent) -> Result<(), CaptureError> {
        panic!("{event:?}");
    }

    fn commit(&mut self, _commit: Commit) -> Result<(), CaptureError> {
        Ok(())
    }
}

impl Poll {
    fn replay(mut self, replica: &mut Replica) {
        self.changes.sort_by_key(|(.., change)| change.stamp.key);
        replica.tables = self.tables;
        for (site, table, mark, change) in self.changes {
            match change.op {
                Op::Insert { new } => replica.put(site.as_ref(), table, new),
                Op::Delete { old } => replica.take(site.as_ref(), table, &old),
                Op::Update { old, new } => {
                    replica.take(site.as_ref(), table, &old);
                    replica.put(site.as_ref(), table, new);
                }
                Op::Truncate => panic!("SQLite logs no truncation"),
            }
            replica.marks.push((site, mark));
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// The application writes.
    Write(u8, u8),
    /// A script deletes a site.
    Delete(u8),
    /// The site comes back as it was when it was last kept, over what is there.
    Restore(u8),
    /// The state of a site is kept for a later restore.
    Keep(u8),
    /// Capture polls.
    Poll,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..3u8, any::<u8>()).prop_map(|(site, what)| Step::Write(site, what)),
        2 => (0..3u8).prop_map(Step::Delete),
        3 => (0..3u8).prop_map(Step::Restore),
        1 => (0..3u8).prop_map(Step::Keep),
        2 => Just(Step::Poll),
    ];
    proptest::collection::vec(step, 1..24)
}

const SITES: [&str; 3] = ["a", "b", "c"];
const KINDS: [&str; 2] = ["identity", "product:jira"];

fn write(fixture: &Fixture, site: u8, what: u8) {
    let (name, base) = (SITES[usize::from(site)], 1000 * (i64::from(site) + 1));
    let number = base + i64::from(what / 8 % 4);
    let sql = match what % 8 {
        0 => format!(
            "INSERT OR REPLACE INTO users(id, site, email) VALUES ({number}, '{name}', 'n{what}@{name}')"
        ),
        1 => {
            format!("INSERT OR REPLACE INTO projects(id, site, name) VALUES ({number}, '{name}', 'n{what}')")
        }
        2 => format!(
            "INSERT OR REPLACE INTO issues(id, project_id, title, size) SELECT {number}, max(id), 't', {what} FROM projects \
             WHERE site = '{name}' HAVING max(id) IS NOT NULL"
        ),
        3 => format!("UPDATE issues SET title = 'u{what}' WHERE id = {number}"),
        4 => format!("INSERT OR REPLACE INTO settings VALUES ('{name}', 'one', {what}, NULL)"),
        5 => format!(
            "INSERT OR REPLACE INTO comments SELECT '{name}-' || {what}, id, x'00' FROM issues WHERE id = {number}"
        ),
        6 => format!("DELETE FROM comments WHERE issue_id = {number}"),
        _ => format!("UPDATE projects SET id = id + 10 WHERE id = {number}"),
    };
    // Some are refused by a foreign key, which is as good.
    let _ = fixture.app().execute_batch(&sql);
}

struct World {
    fixture: Fixture,
    kept: BTreeMap<(u8, usize), Rows>,
    runs: u64,
    restored: u64,
    replica: Replica,
    boundary: Boundary,
    source: crate::sqlite::capture::SqliteSource,
}

impl World {
    fn new() -> Self {
        let fixture = Fixture::new();
        let mut source = fixture.source();
        let mut replica = Replica::default();
        let start = Boundary { position: Position(0), at: Timestamp::EPOCH };
        source.begin_incarnation(&"0001-aaaaaaaa".parse().unwrap()).unwrap();
        // The installation asks for a first poll that delivers every table whole; the snapshot stands for it.
        fixture.app().execute_batch("UPDATE _muster_table SET pending = NULL").unwrap();
        let boundary = source.snapshot(start, &mut replica).unwrap();
        let mut world =
            Self { fixture, kept: BTreeMap::new(), runs: 0, restored: 0, replica, boundary, source };
        (0..3).for_each(|site| world.keep(site));
        world
    }

    fn keep(&mut self, site: u8) {
        for (index, kind) in KINDS.iter().enumerate() {
            let work = self.fixture.work("x", 1, &format!("site:{}/{kind}", SITES[usize::from(site)]));
            let rows = self.fixture.rows(&work);
            self.kept.insert((site, index), rows);
        }
    }

    async fn restore(&mut self, site: u8) {
        self.runs += 1;
        for (index, kind) in KINDS.iter().enumerate() {
            let store = format!("site:{}/{kind}", SITES[usize::from(site)]);
            let mut work = self.fixture.work(&format!("r{}", self.runs), 1, &store);
            work.overwrite = true;
            let rows = self.kept[&(site, index)].clone();
            let before = self.fixture.everything();
            match self.fixture.restore(&work, &rows).await {
                Ok(published) => {
                    assert_eq!(published.rows, rows.len() as u64);
                    self.restored += 1;
                    assert_eq!(sorted(self.fixture.rows(&work)), sorted(rows));
                }
                // Rows of the kind restored later may refer to users that would go, and a moved key may be taken.
                Err(error) => {
                    assert!(error.message.contains("refers") || error.message.contains("held by"), "{error}");
                    assert_eq!(self.fixture.everything(), before);
                }
            }
            self.fixture.driver.release(&work.run, work.epoch, &[work.store]).await.unwrap();
        }
    }

    /// The replica, brought up to date by the log, is what a snapshot sees.
    fn poll(&mut self) {
        let mut poll = Poll::default();
        let polled = self.source.poll(self.boundary, false, &mut poll).unwrap();
        poll.replay(&mut self.replica);
        self.boundary = polled.boundary;
        let mut now = Replica::default();
        self.source.snapshot(self.boundary, &mut now).unwrap();
        assert_eq!(self.replica.contradictions, Vec::<String>::new());
        let keys = |replica: &Replica| replica.rows.keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&self.replica), keys(&now));
    }
}

fn sorted(mut rows: Rows) -> Rows {
    rows.sort_by_key(|row| format!("{row:?}"));
    rows
}

#[test]
fn the_log_replays_to_the_live_rows_through_deletions_and_restores() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    // A failing case prints its steps; each case is some dozens of synced transactions.
    let mut runner = TestRunner::new(Config { cases: 16, failure_persistence: None, ..Config::default() });
    let restored = std::cell::Cell::new(0);
    let run = |steps: Vec<Step>| {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Write(site, what) => write(&world.fixture, site, what),
                Step::Delete(site) => world.fixture.delete(SITES[usize::from(site)]),
                Step::Restore(site) => runtime.block_on(world.restore(site)),
                Step::Keep(site) => world.keep(site),
                Step::Poll => world.poll(),
            }
        }
        world.poll();
        restored.set(restored.get() + world.restored);
        Ok(())
    };
    runner.run(&steps(), run).unwrap();
    assert!(restored.get() > 0, "no restore was ever accepted");
}

#[test]
fn restored_rows_carry_the_mark_and_deletions_of_a_script_do_not() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut world = World::new();
    world.fixture.delete("a");
    runtime.block_on(world.restore(0));
    world.poll();
    let a = "site:a".parse::<SiteId>().unwrap();
    let marks: Vec<_> =
        world.replica.marks.iter().map(|(site, mark)| (site.clone(), mark.is_some())).collect();
    let expected: Vec<_> = (0..28).map(|index| (Some(a.clone()), index >= 14)).collect();
    assert_eq!(marks, expected);
}

//! PostgreSQL is the judge: random work in a random schema is captured, and the rows that Muster holds of random commits
//! are compared with a physical recovery of the same cluster to the same commit, by a base backup and the archived log.
//!
//! `MUSTER_SEED=N` runs the life of that seed alone, `MUSTER_CASES=N` more or fewer lives. What the threads of one life do
//! in the same microsecond is not the seed's to say: a failure may need several runs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a failed test may say so by a panic"
)]

mod recovery;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use muster_plan::recovery::{Target as At, recovery_point};
use muster_tests::{
    Owned, Rows, TransactionEnd, cases, connect, differences, rows, transaction_ends, without_added,
};
use muster_types::catalog::{Catalog, IncarnationHistory, ShardHistory};
use muster_types::{Boundary, Position, Timestamp};
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use recovery::archived::{Archived, Target};
use recovery::captured::{Captured, history, is_coarse, segment_at};
use recovery::schema::{ADDED, KINDS, SITES, TABLES, declared};
use recovery::statements::Generator;
use recovery::work::Work;

/// Things that the sessions of one life do.
const STEPS: u32 = 3000;

/// Recoveries of one life: each copies the base backup and takes a second or two.
const RECOVERIES: usize = 6;

/// One life of a cluster, compared at several commits. Gives the number of rows compared.
fn life(seed: u64) -> usize {
    println!("MUSTER_SEED={seed} cargo test -p muster-tests --test postgres_recovery random_work");
    let mut generator = Generator::new(seed);
    let mut archived = Archived::new();
    let schema = generator.create();
    println!("{schema}");
    archived.cluster.psql(&archived.database, &schema).unwrap();
    let mut work = Work::new(&archived.url());
    work.run(&mut generator, STEPS / 10);
    archived.back_up();
    let mut captured = Captured::new(&archived.url(), &KINDS, &declared());
    captured.follow(seed);
    work.run(&mut generator, STEPS);
    captured.stop();
    assert!(work.committed > u64::from(STEPS / 10), "{} transactions say nothing", work.committed);

    let catalog = captured.catalog();
    let history = history(&catalog);
    let ends = transaction_ends(&archived.cluster, archived.backed_up);
    archived.archive_everything();
    let mut client = connect(&archived.url());
    let last = *history.boundaries().last().unwrap();
    let judge = Judge { captured: &captured, catalog: &catalog, seed };
    let mut compared = judge.compare("the end", last, &mut rows_of(&mut client));
    let (positions, mut exact) = (chosen(&mut generator, &archived, history, &ends), 0);
    for position in &positions {
        let (point, until) = point_for(history, &ends, *position);
        exact += usize::from(point.position == *position && until == *position);
        let recovered = archived.recover(Target::Lsn(until));
        let mut client = connect(&recovered.url(&archived.database));
        let what = format!("position {until} ({})", muster_tests::lsn(until));
        compared += judge.compare(&what, point, &mut rows_of(&mut client));
    }
    let coarse = history.segments.iter().filter(|segment| is_coarse(segment)).count();
    println!(
        "{} transactions, {} segments, {coarse} of them with a table read again; {compared} rows compared at {} \
         commits, {exact} of them recovery points of their own",
        work.committed,
        history.segments.len(),
        positions.len()
    );
    compared
}

fn rows_of(client: &mut postgres::Client) -> Rows {
    rows(client, &TABLES)
}

/// Commits to compare at, behind backup and first snapshot: most of them recovery points as they are, some in segments in
/// which a table was read again, some at the end of those in which something happened to a whole table.
fn chosen(
    generator: &mut Generator,
    archived: &Archived,
    history: &IncarnationHistory,
    ends: &[TransactionEnd],
) -> BTreeSet<Position> {
    let first = history.boundaries()[0].position.max(archived.backed_up);
    let last = history.boundaries().last().unwrap().position;
    let commits = ends.iter().filter(|end| end.committed && end.position > first && end.position <= last);
    let (coarse, fine): (Vec<Position>, Vec<Position>) = commits
        .map(|end| end.position)
        .partition(|position| segment_at(history, *position).is_some_and(is_coarse));
    let eventful = history.segments.iter().filter(|segment| !segment.table_events.is_empty());
    let eventful: Vec<Position> = eventful.map(|segment| segment.boundary.position).collect();
    assert!(!fine.is_empty(), "no commit at all is a recovery point:\n{}", events(history));
    let mut chosen: BTreeSet<Position> =
        [&coarse, &eventful].into_iter().filter_map(|some| generator.maybe_one_of(some)).collect();
    for _ in chosen.len()..RECOVERIES {
        chosen.insert(generator.one_of(&fine));
    }
    chosen
}

/// The recovery point that Muster has for a commit, and the commit that PostgreSQL has to recover to. These are the same
/// unless a table was read again in the segment: then only its end is a recovery point.
fn point_for(
    history: &IncarnationHistory,
    ends: &[TransactionEnd],
    wanted: Position,
) -> (Boundary, Position) {
    let points = history.boundaries();
    let point =
        *points.iter().rev().find(|point| point.position <= wanted).expect("behind the first snapshot");
    let coarse = segment_at(history, wanted).is_some_and(is_coarse);
    let until = if coarse { point.position } else { wanted };
    // The state of a snapshot stands between two commits.
    let commits = ends.iter().rev().filter(|end| end.committed);
    let last = commits.map(|end| end.position).find(|position| *position <= until);
    (point, last.expect("a commit behind the backup"))
}

/// What happened to whole tables, for whoever has to find out.
fn events(history: &IncarnationHistory) -> String {
    let mut text = String::new();
    for snapshot in &history.snapshots {
        text += &format!("snapshot at {}\n", snapshot.boundary.position);
    }
    for segment in &history.segments {
        for event in &segment.table_events {
            let at = event.position.map_or("?".to_owned(), |position| position.to_string());
            text += &format!(
                "segment {} ({}, {}]: {} {:?} at {at}: {}\n",
                segment.sequence,
                segment.after.position,
                segment.boundary.position,
                event.table,
                event.event,
                event.reason
            );
        }
    }
    text
}

struct Judge<'a> {
    captured: &'a Captured,
    catalog: &'a Catalog,
    seed: u64,
}

impl Judge<'_> {
    /// Fails unless Muster has at `point` what PostgreSQL has. Gives the number of rows.
    fn compare(&self, what: &str, point: Boundary, theirs: &mut Rows) -> usize {
        let ours = self.captured.rows_at(self.catalog, &SITES, point);
        let theirs = without_added(std::mem::take(theirs), &ours, ADDED);
        let difference = differences(&ours, &theirs);
        assert!(
            difference.is_empty(),
            "seed {}, {what}, Muster's point {point:?}:\n{difference}{}",
            self.seed,
            events(history(self.catalog))
        );
        theirs.values().map(Vec::len).sum()
    }
}

#[test]
fn random_work_is_what_postgresql_recovers() {
    if let Some(seed) = std::env::var("MUSTER_SEED").ok().and_then(|seed| seed.parse().ok()) {
        life(seed);
        return;
    }
    let lives = cases(2);
    let compared: usize = (1..=lives).map(life).sum();
    assert!(compared > 1000, "{compared} rows say nothing");
}

/// Sessions that commit as fast as they can.
const WRITERS: u64 = 12;

/// Commits with a time before that of an earlier one that a storm has to bring: a handful in ten thousand commits.
const INVERSIONS: usize = 3;

/// Until there are enough of them.
const STORMS_MAX: u32 = 40;

const COUNTERS: [Owned; 1] =
    [Owned { table: "counter", sql: "SELECT t.site AS owner, t.* FROM counter t", generated: &[] }];

/// Commits as fast as they can, until told to stop.
fn count(url: &str, number: u64, stop: &AtomicBool) {
    let mut client = connect(url);
    client.batch_execute("SET synchronous_commit = off").unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(number);
    while !stop.load(Ordering::Relaxed) {
        let (site, id) = (SITES[number as usize % SITES.len()], number * 10 + random.random_range(0..5));
        let sql = format!(
            "INSERT INTO counter VALUES ('{site}', {id}, 0) ON CONFLICT (site, id) DO UPDATE SET n = counter.n + 1"
        );
        client.batch_execute(&sql).unwrap();
    }
}

/// Commits until some of them are out of the order of their times, and gives these.
fn storm(archived: &Archived) -> Vec<TransactionEnd> {
    for _ in 0..STORMS_MAX {
        let (stop, failed) = (AtomicBool::new(false), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for number in 0..WRITERS {
                let (stop, failed, url) = (&stop, &failed, archived.url());
                scope.spawn(move || {
                    let counted = std::panic::catch_unwind(|| count(&url, number, stop));
                    failed.lock().unwrap().extend(counted.err());
                });
            }
            std::thread::sleep(Duration::from_millis(700));
            stop.store(true, Ordering::Relaxed);
        });
        assert!(failed.into_inner().unwrap().is_empty(), "a writer failed");
        let ends = transaction_ends(&archived.cluster, archived.backed_up);
        let late = late(&ends);
        println!("{} ends of transactions, {} out of the order of their times", ends.len(), late.len());
        if late.len() >= INVERSIONS {
            return late;
        }
    }
    panic!("no commits out of the order of their times in {STORMS_MAX} storms");
}

/// Commits whose time lies before that of an earlier one.
fn late(ends: &[TransactionEnd]) -> Vec<TransactionEnd> {
    let mut latest = Timestamp::from_micros(i64::MIN);
    let mut late = Vec::new();
    for end in ends.iter().filter(|end| end.committed) {
        if end.at < latest {
            late.push(end.clone());
        }
        latest = latest.max(end.at);
    }
    late
}

/// The longest prefix without a time behind `at`: its last end. What PostgreSQL does, over whatever ends it is given.
fn cut<'e>(ends: impl Iterator<Item = &'e TransactionEnd>, at: Timestamp) -> Option<Position> {
    ends.take_while(|end| end.at <= at).last().map(|end| end.position)
}

#[test]
fn the_cut_for_a_time_is_that_of_postgresql() {
    let seed = muster_tests::seed(1);
    let mut archived = Archived::new();
    let schema = "CREATE TABLE counter (site text, id bigint, n bigint, PRIMARY KEY (site, id))";
    archived.cluster.psql(&archived.database, schema).unwrap();
    archived.back_up();
    let tables = "[directory]\nkind = 'metadata'\ntable = 'counter'\n\
                  [tables.counter]\nkind = 'metadata'\ntenant = 'site'\n";
    let mut captured = Captured::new(&archived.url(), &["metadata"], tables);
    captured.follow(seed);
    let late = storm(&archived);
    captured.stop();

    let catalog = captured.catalog();
    let history = history(&catalog);
    let shard = ShardHistory { incarnations: vec![history.clone()] };
    let points: BTreeSet<Position> = history.boundaries().iter().map(|point| point.position).collect();
    let ends = transaction_ends(&archived.cluster, archived.backed_up);
    // Muster's own bookkeeping and roll-backs are no recovery points, and PostgreSQL counts them.
    let logged: Vec<TransactionEnd> =
        ends.iter().filter(|end| end.committed && points.contains(&end.position)).cloned().collect();
    assert!(
        logged.len() * 10 > ends.len() * 9,
        "{} of {} commits are recovery points",
        logged.len(),
        ends.len()
    );

    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let around = |end: &TransactionEnd| [-1, 0, 1].map(|micros| end.at.plus_micros(micros));
    let mut times: Vec<Timestamp> = late.iter().flat_map(around).collect();
    times.extend((0..300).flat_map(|_| around(logged.choose(&mut random).unwrap())));
    let (first, last) = (logged[0].at, logged.last().unwrap().at);
    for at in times.iter().filter(|at| **at >= first && **at < last) {
        let reached = recovery_point(&shard, At::At(*at)).unwrap_or_else(|error| panic!("{at}: {error}"));
        assert_eq!(
            Some(reached.boundary.position),
            cut(logged.iter(), *at),
            "seed {seed}, {at}: {reached:?}"
        );
    }

    archived.archive_everything();
    // Where nothing but recovery points decides, PostgreSQL has to stop at the same commit.
    let decided = late.iter().map(|end| end.at).filter(|at| {
        let theirs = cut(ends.iter(), *at);
        let next = ends.iter().find(|end| Some(end.position) > theirs);
        theirs.is_some() && next.is_some_and(|next| next.committed && points.contains(&next.position))
    });
    let mut judged = 0;
    for at in decided.take(INVERSIONS) {
        let reached = recovery_point(&shard, At::At(at)).unwrap().boundary;
        let recovered = archived.recover(Target::Time(at));
        let theirs = rows(&mut connect(&recovered.url(&archived.database)), &COUNTERS);
        let difference = differences(&captured.rows_at(&catalog, &SITES, reached), &theirs);
        assert!(difference.is_empty(), "seed {seed}, {at}, Muster's point {reached:?}:\n{difference}");
        judged += 1;
    }
    assert!(judged > 0, "every commit out of order was next to one that Muster does not record");
}

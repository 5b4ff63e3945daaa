//! Months in minutes: drills without end under a writing fleet, on both stacks, by two servers of which one is killed.
//!
//! `make test` runs a short one. `make soak` runs half an hour with a drill every minute and also judges what only a
//! longer run can show: memory and the repository's size do not grow. A day of retention lasts a minute here.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a failed test may say so by a panic, and a long one says how it stands"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use muster_demo::{REGIONS, WriterConfig};
use muster_services::Postgres;
use muster_tests::{ServeProcess, Size, World, seed, until};
use muster_types::Timestamp;
use muster_types::drill::{DrillRecord, Verdict};
use muster_types::jobs::{JobDecision, JobOutcome, JobRecord, Missed};
use serde_json::Value;

const SIZE: Size = Size { sites: 40, rows_per_site: 60 };
const WRITERS: WriterConfig = WriterConfig { transactions_per_second: 25, threads: 2 };

/// The newest moments are left to capture.
const SETTLE: Duration = Duration::from_secs(2);

/// The share by which the last third of a long run may use more than the second.
const GROWTH_MAX: f64 = 1.15;

/// How long a soak is.
struct Length {
    drills: usize,
    every: Duration,
    /// Long enough for memory and size to be judged.
    long: bool,
}

impl Length {
    /// `MUSTER_SOAK_MINUTES` of a drill every minute; else a few drills, one every ten seconds.
    fn asked() -> Self {
        match std::env::var("MUSTER_SOAK_MINUTES") {
            Ok(minutes) => {
                let minutes: usize = minutes.parse().expect("MUSTER_SOAK_MINUTES is a number of minutes");
                Self { drills: minutes, every: Duration::from_secs(60), long: minutes >= 20 }
            }
            Err(_) => Self { drills: 4, every: Duration::from_secs(10), long: false },
        }
    }

    fn cron(&self) -> &'static str {
        if self.every.as_secs() == 60 { "0 * * * * *" } else { "*/10 * * * * *" }
    }

    /// A drill may wait for the lease of a killed server, and a busy machine.
    fn time_limit(&self) -> Duration {
        self.every * u32::try_from(self.drills).unwrap() + Duration::from_secs(400)
    }
}

#[test]
fn drills_without_end_on_sqlite() {
    let world = World::new(SIZE, seed(91));
    let place = |region: &str| format!("driver = \"sqlite\"\ndir = \"sandbox\"\nregion = \"{region}\"");
    soak(&world, &Length::asked(), place);
    let left: Vec<_> =
        std::fs::read_dir(world.path("sandbox")).map(|dir| dir.flatten().collect()).unwrap_or_default();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn drills_without_end_on_postgres_and_minio() {
    let world = World::on_own_services(SIZE, seed(92));
    let url = world.postgres().url("postgres");
    let place =
        |region: &str| format!("driver = \"postgres\"\nconnection = \"{url}\"\nregion = \"{region}\"");
    soak(&world, &Length::asked(), place);
    let left = databases(world.postgres());
    assert_eq!(left, "");
}

fn databases(server: &Postgres) -> String {
    let sql = "SELECT datname FROM pg_database WHERE starts_with(datname, 'muster_drill_')";
    server.psql("postgres", sql).unwrap().trim().to_owned()
}

/// Two servers, writers, drills as often as asked; the first server is killed half-way.
fn soak(world: &World, length: &Length, sandbox: impl Fn(&str) -> String) {
    prepare(world, length, sandbox);
    let mut first = ServeProcess::start(world, "first");
    first.is_ready();
    let second = ServeProcess::start(world, "second");
    let writers = world.fleet.start_writers(WRITERS);
    let began = Instant::now();
    let mut samples = Vec::new();
    let mut killed = false;
    loop {
        let records = records(world);
        let done = ended(&records);
        let has_part = |server: &ServeProcess| {
            let name = server.name_part();
            records.iter().any(|record| {
                record.server.contains(&name) && matches!(record.decision, JobDecision::Done { .. })
            })
        };
        samples.push(Sample::take(world, [&first, &second]));
        eprintln!("{}", samples[samples.len() - 1].line(began.elapsed(), done));
        if done >= length.drills && killed && has_part(&second) {
            break;
        }
        if done >= length.drills / 2 && !killed && has_part(&first) {
            first.kill();
            killed = true;
        }
        assert!(began.elapsed() < length.time_limit(), "{done} of {} drills: {records:?}", length.drills);
        // A sample a drill; what is waited for is asked in the loop.
        std::thread::sleep(length.every.min(Duration::from_secs(20)));
    }
    assert!(killed);
    writers.stop().unwrap();
    second.stops();
    nothing_is_doubled_or_skipped(&records(world), length);
    every_drill_passed(world);
    // What the killed server's drill left is taken away by the next one of its sandbox, or by this.
    world.muster_with("second.toml", &["drill", "clean"]).ok();
    if length.long {
        is_flat("memory of the second server", &samples, |sample| sample.memory_bytes[1] as f64);
        is_flat("bytes of the repository", &samples, |sample| sample.bytes as f64);
        is_flat("objects of the repository", &samples, |sample| sample.objects as f64);
    }
}

fn prepare(world: &World, length: &Length, sandbox: impl Fn(&str) -> String) {
    let mut topology = std::fs::read_to_string(world.path("muster.toml")).unwrap();
    for region in REGIONS {
        let _ = write!(topology, "\n[sandbox.{region}]\n{}\n", sandbox(region));
    }
    let jobs = [
        ("drill", format!("what = \"drill\"\nfile = \"drill.toml\"\ncron = \"{}\"", length.cron())),
        ("snapshot", "what = \"snapshot\"\ncron = \"0 */2 * * * *\"".to_owned()),
        ("compact", "what = \"compact\"\ncron = \"20 * * * * *\"".to_owned()),
        ("prune", "what = \"prune\"\ncron = \"40 * * * * *\"".to_owned()),
        ("check", "what = \"check\"\ncron = \"50 * * * * *\"\nshare_percent = 10".to_owned()),
    ];
    for (name, job) in jobs {
        let _ = write!(topology, "\n[jobs.{name}]\n{job}\n");
    }
    topology += "\n[serve]\nlisten = \"LISTEN\"\nlease_seconds = 5\n\
                 \n[retention]\nevery_moment_days = 5\ngrace_hours = 48\nday_seconds = 60\n";
    // Watermarks come more often than a lease.
    topology = topology.replace("[capture]\n", "[capture]\nwatermark_interval_seconds = 1\n");
    std::fs::write(world.path("muster.toml"), topology.replace("LISTEN", "127.0.0.1:1")).unwrap();
    std::fs::write(
        world.path("drill.toml"),
        format!(
            "format = 1\nname = \"sample\"\nclass = \"many-sites\"\nsites = 3\nwindow_seconds = 240\nsettle_seconds = {}\n",
            SETTLE.as_secs()
        ),
    )
    .unwrap();
    world.muster(&["capture", "init"]).ok();
    world.capture_once();
    let captured = Instant::now();
    // The first drill may be due at once: a moment must be there that has settled.
    until("the first recovery points have settled", || captured.elapsed() > SETTLE + Duration::from_secs(1));
    std::fs::write(world.path("muster.toml"), topology).unwrap();
}

/// The chain of the drills.
fn records(world: &World) -> Vec<JobRecord> {
    let records = world.documents("jobs/drill");
    records.iter().filter_map(|bytes| serde_json::from_slice(bytes).ok()).collect()
}

/// Drills that came to an end.
fn ended(records: &[JobRecord]) -> usize {
    records.iter().filter(|record| matches!(record.decision, JobDecision::Done { .. })).count()
}

/// What two servers use at a moment.
struct Sample {
    /// Resident memory of each; none once it is gone.
    memory_bytes: [u64; 2],
    objects: u64,
    bytes: u64,
    parts: BTreeMap<String, u64>,
}

impl Sample {
    fn take(world: &World, servers: [&ServeProcess; 2]) -> Self {
        let stats = world.muster_with("second.toml", &["repo", "stats", "--json"]).ok().json();
        let mut sample = Self {
            memory_bytes: servers.map(ServeProcess::memory_bytes),
            objects: 0,
            bytes: 0,
            parts: BTreeMap::new(),
        };
        let number = |amount: &Value, key: &str| amount[key].as_u64().unwrap();
        for (owner, parts) in stats["shards"].as_object().unwrap() {
            for (part, amount) in parts.as_object().unwrap() {
                sample.objects += number(amount, "objects");
                sample.bytes += number(amount, "bytes");
                let name = if owner.starts_with('(') { owner } else { part };
                *sample.parts.entry(name.clone()).or_default() += number(amount, "objects");
            }
        }
        sample
    }

    fn line(&self, elapsed: Duration, drills: usize) -> String {
        let mib = |bytes: u64| bytes as f64 / f64::from(1u32 << 20);
        let [first, second] = self.memory_bytes;
        format!(
            "{:>5} s {drills:>3} drills, memory {:.1} and {:.1} MiB, {} objects, {:.2} MiB {:?}",
            elapsed.as_secs(),
            mib(first),
            mib(second),
            self.objects,
            mib(self.bytes),
            self.parts
        )
    }
}

/// The most of the last third of a run is about the most of the second.
fn is_flat(what: &str, samples: &[Sample], value: impl Fn(&Sample) -> f64) {
    let third = samples.len() / 3;
    let most = |samples: &[Sample]| samples.iter().map(&value).fold(0.0, f64::max);
    let (second, last) = (most(&samples[third..2 * third]), most(&samples[2 * third..]));
    eprintln!("{what}: at most {second:.0} in the second third, {last:.0} in the last");
    assert!(last <= second * GROWTH_MAX, "{what} grew from {second:.0} to {last:.0}");
}

/// Every time that was due has one end, or stands in the chain as missed, which only a takeover may bring.
fn nothing_is_doubled_or_skipped(records: &[JobRecord], length: &Length) {
    let period = i64::try_from(length.every.as_micros()).unwrap();
    let (mut ends, mut missed, mut servers) = (Vec::new(), Vec::new(), BTreeMap::new());
    for record in records {
        match &record.decision {
            JobDecision::Done { occurrence, outcome, .. } => {
                assert!(matches!(outcome, JobOutcome::Succeeded { .. }), "{record:?}");
                ends.push(*occurrence);
                *servers.entry(record.server.as_str()).or_insert(0) += 1;
            }
            JobDecision::Claimed { missed: Some(stretch), .. } => missed.push(*stretch),
            _ => {}
        }
    }
    assert!(ends.is_sorted_by(|a, b| a < b), "{ends:?}");
    let was_missed =
        |at: Timestamp| missed.iter().any(|Missed { first, last, .. }| *first <= at && at <= *last);
    for pair in ends.windows(2) {
        let mut due = pair[0].plus_micros(period);
        while due < pair[1] {
            assert!(was_missed(due), "nothing tells what came of {due}: {records:?}");
            due = due.plus_micros(period);
        }
    }
    let left_out: u64 = missed.iter().map(|missed| missed.count).sum();
    eprintln!(
        "{} drills ended, by server {servers:?}; {left_out} were due while one before still ran",
        ends.len()
    );
    assert!(servers.len() == 2, "one server did all of it: {servers:?}");
}

/// All of them but the one that the killed server had at work.
fn every_drill_passed(world: &World) {
    let documents = world.documents("drills");
    let records = documents.iter().filter_map(|bytes| serde_json::from_slice::<DrillRecord>(bytes).ok());
    let (passed, rest): (Vec<DrillRecord>, Vec<_>) =
        records.partition(|record| record.verdict == Verdict::Passed && record.left.is_empty());
    assert!(rest.is_empty(), "{rest:?}");
    let stores = passed.iter().flat_map(|record| &record.sites).flat_map(|site| &site.stores);
    assert!(stores.clone().all(|store| store.proven));
    eprintln!("{} drills recorded as passed, {} stores proven in them", passed.len(), stores.count());
}

//! Servers that share a repository, under virtual time: one is killed, one is stopped, and the repository fails now and then.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use muster_repo::jobs::JobChain;
use muster_repo::{MemoryObjects, Objects, Repository};
use muster_serve::{Job, JobEvent, JobRunner, Schedule, Work, follows};
use muster_types::Timestamp;
use muster_types::jobs::{JobDecision, JobOutcome, JobRecord};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

const LEASE: Duration = Duration::from_secs(30);

fn clock() -> impl Fn() -> Timestamp + Clone + Send + Sync + 'static {
    let (origin, began) = ("2026-03-29T00:00:10Z".parse::<Timestamp>().unwrap(), Instant::now());
    move || origin.plus_micros(i64::try_from(began.elapsed().as_micros()).unwrap())
}

/// Takes its time, and notes what was begun where.
struct Takes {
    seconds: u64,
    server: &'static str,
    begun: Arc<Mutex<Vec<(&'static str, Timestamp)>>>,
    at_work: Arc<AtomicU32>,
}

#[async_trait]
impl Work for Takes {
    async fn run(&self, occurrence: Timestamp) -> Result<String, String> {
        self.begun.lock().unwrap().push((self.server, occurrence));
        let others = self.at_work.fetch_add(1, Ordering::SeqCst);
        sleep(Duration::from_secs(self.seconds)).await;
        self.at_work.fetch_sub(1, Ordering::SeqCst);
        if others > 0 {
            return Err(format!("{others} others are at work"));
        }
        Ok(format!("done by {}", self.server))
    }
}

struct World {
    repository: Repository,
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    begun: Arc<Mutex<Vec<(&'static str, Timestamp)>>>,
    events: Arc<Mutex<Vec<JobEvent>>>,
    at_work: Arc<AtomicU32>,
}

impl World {
    async fn new() -> Self {
        let objects: Arc<dyn Objects> = Arc::new(MemoryObjects::default());
        let now = clock();
        let repository = Repository::create(objects, now()).await.unwrap();
        Self {
            repository,
            now: Arc::new(now),
            begun: Arc::default(),
            events: Arc::default(),
            at_work: Arc::default(),
        }
    }

    fn start(
        &self,
        server: &'static str,
        cron: &str,
        seconds: u64,
    ) -> (tokio::task::JoinHandle<()>, watch::Sender<bool>) {
        let (stop, stopping) = watch::channel(false);
        let (now, events) = (Arc::clone(&self.now), Arc::clone(&self.events));
        let told = Arc::new(move |event| events.lock().unwrap().push(event));
        let runner = JobRunner::new(&self.repository, server, LEASE, move || now(), told);
        let schedule = Schedule::parse(cron, "UTC", 0, (self.now)()).unwrap();
        let job = Job { name: "drill".into(), schedule };
        let work: Arc<dyn Work> = Arc::new(Takes {
            seconds,
            server,
            begun: Arc::clone(&self.begun),
            at_work: Arc::clone(&self.at_work),
        });
        (tokio::spawn(async move { runner.run(vec![(job, work)], stopping).await }), stop)
    }

    async fn chain(&self) -> Vec<JobRecord> {
        let chain = JobChain::records(&self.repository, "drill").await.unwrap();
        let mut last = None;
        for record in &chain {
            assert!(follows(last, record), "{record:?} behind {last:?}");
            last = Some(record);
        }
        chain
    }
}

/// Who brought each occurrence to its end.
fn done(chain: &[JobRecord]) -> BTreeMap<Timestamp, (String, u32)> {
    let mut done = BTreeMap::new();
    for record in chain {
        if let JobDecision::Done { occurrence, attempt, outcome } = &record.decision {
            assert!(matches!(outcome, JobOutcome::Succeeded { .. }), "{record:?}");
            assert_eq!(done.insert(*occurrence, (record.server.clone(), *attempt)), None, "{record:?} twice");
        }
    }
    done
}

fn minute(number: u32) -> Timestamp {
    format!("2026-03-29T00:{number:02}:00Z").parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn one_of_two_servers_is_killed_at_work_and_the_other_takes_over() {
    let world = World::new().await;
    let (first, _stop) = world.start("first", "* * * * *", 20);
    let (_second, stop) = world.start("second", "* * * * *", 20);
    // Until the first is at work, behind a few minutes of both.
    loop {
        sleep(Duration::from_secs(1)).await;
        let begun = world.begun.lock().unwrap();
        if begun.len() > 5 && begun.last().unwrap().0 == "first" {
            break;
        }
    }
    first.abort();
    // What it had begun dies with it.
    world.at_work.store(0, Ordering::SeqCst);
    let (_, killed_at) = *world.begun.lock().unwrap().last().unwrap();
    sleep(Duration::from_secs(600)).await;
    let chain = world.chain().await;
    stop.send(true).unwrap();

    let done = done(&chain);
    assert_eq!(done[&killed_at], ("second".into(), 2), "taken over");
    let last = *done.keys().last().unwrap();
    let all: Vec<Timestamp> = (1..60).map(minute).take_while(|at| *at <= last).collect();
    let missed: Vec<Timestamp> = chain
        .iter()
        .filter_map(|record| match &record.decision {
            JobDecision::Claimed { missed: Some(missed), .. } => Some((missed.first, missed.count)),
            _ => None,
        })
        .flat_map(|(first, count)| (0..count).map(move |n| first.plus_micros(n as i64 * 60_000_000)))
        .collect();
    let told: Vec<Timestamp> = all.iter().copied().filter(|at| !missed.contains(at)).collect();
    assert_eq!(done.keys().copied().collect::<Vec<_>>(), told);
    assert!(all.len() > 14 && missed.len() <= 1, "{} due, missed {missed:?}", all.len());
}

#[tokio::test(start_paused = true)]
async fn a_stopped_server_releases_its_work_at_once() {
    let world = World::new().await;
    let (first, stop_first) = world.start("first", "*/10 * * * *", 300);
    while world.begun.lock().unwrap().is_empty() {
        sleep(Duration::from_secs(1)).await;
    }
    let before = Instant::now();
    stop_first.send(true).unwrap();
    first.await.unwrap();
    assert_eq!(before.elapsed(), Duration::ZERO, "the work is dropped, not waited for");
    world.at_work.store(0, Ordering::SeqCst);
    let (_second, stop) = world.start("second", "*/10 * * * *", 5);
    sleep(Duration::from_secs(10)).await;
    stop.send(true).unwrap();
    assert_eq!(done(&world.chain().await)[&minute(10)], ("second".into(), 2));
}

#[tokio::test(start_paused = true)]
async fn work_that_outlasts_its_interval_is_not_doubled_and_what_it_hides_is_told() {
    let world = World::new().await;
    let (_first, stop) = world.start("first", "* * * * *", 150);
    let (_second, _stop) = world.start("second", "* * * * *", 150);
    sleep(Duration::from_secs(1_000)).await;
    stop.send(true).unwrap();
    assert!(done(&world.chain().await).len() >= 5);
    let events = world.events.lock().unwrap().clone();
    assert!(events.iter().any(|event| matches!(event, JobEvent::Missed { missed, .. } if missed.count >= 1)));
}

//! Chains of jobs beside their pruning: nothing due is doubled or left out, also by a server that slept through it.

#![allow(clippy::unwrap_used, reason = "a failed test may say so by a panic")]

use std::sync::Arc;

use muster_repo::{JobChain, MemoryObjects, Repository, records};
use muster_serve::{Job, Next, Schedule, follows, next};
use muster_types::Timestamp;
use muster_types::format::FORMAT;
use muster_types::jobs::{JobDecision, JobOutcome, JobRecord};
use proptest::prelude::*;

const DAY_MICROS: i64 = 86_400_000_000;

#[derive(Clone, Debug)]
enum Event {
    Pass {
        hours: i64,
    },
    /// A server reads the chain, and decides.
    Look {
        server: usize,
    },
    /// It writes what it decided then, however long ago that is.
    Write {
        server: usize,
    },
    Prune,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        3 => (1..40_i64).prop_map(|hours| Event::Pass { hours }),
        1 => (400..2_000_i64).prop_map(|hours| Event::Pass { hours }),
        6 => (0..2_usize).prop_map(|server| Event::Look { server }),
        5 => (0..2_usize).prop_map(|server| Event::Write { server }),
        4 => Just(Event::Prune),
    ];
    prop::collection::vec(event, 1..160)
}

struct Server {
    chain: JobChain,
    decided: Option<JobRecord>,
}

struct World {
    repository: Repository,
    memory: Arc<MemoryObjects>,
    job: Job,
    servers: Vec<Server>,
    now: Timestamp,
    /// What was won, in order.
    won: Vec<JobRecord>,
}

impl World {
    async fn new() -> Self {
        let memory = Arc::new(MemoryObjects::new());
        let now = Timestamp::from_micros(1_700_000_000_000_000);
        let repository = Repository::create(Arc::clone(&memory) as _, now).await.unwrap();
        let schedule = Schedule::parse("0 3 * * *", "UTC", 0, now).unwrap();
        let job = Job { name: "nightly".to_owned(), schedule };
        let server = || Server { chain: JobChain::new(&repository, "nightly"), decided: None };
        let servers = vec![server(), server()];
        Self { repository, memory, job, servers, now, won: vec![] }
    }

    async fn play(&mut self, event: &Event) {
        match *event {
            Event::Pass { hours } => self.now = self.now.plus_micros(hours * 3_600_000_000),
            Event::Look { server } => self.look(server).await,
            Event::Write { server } => self.write(server).await,
            Event::Prune => drop(records::prune(&self.repository, self.now).await.unwrap()),
        }
    }

    async fn look(&mut self, number: usize) {
        let (server, now) = (&mut self.servers[number], self.now);
        server.chain.refresh().await.unwrap();
        let name = number.to_string();
        let last = server.chain.last().cloned();
        // Its own claim it ends; the other's work is left alone.
        let own = last.as_ref().filter(|last| last.server == name).map(|last| last.decision.clone());
        let outcome = JobOutcome::Succeeded { summary: String::new() };
        let decided = match own {
            Some(JobDecision::Claimed { occurrence, attempt, .. }) => {
                Some((last.as_ref().unwrap().settled, JobDecision::Done { occurrence, attempt, outcome }))
            }
            _ => match next(&self.job, last.as_ref(), now, |_| true) {
                Next::Decide { settled, decision } => Some((settled, decision)),
                Next::Wait { .. } => None,
            },
        };
        let sequence = last.map_or(1, |last| last.sequence + 1);
        server.decided = decided.map(|(settled, decision)| JobRecord {
            format: FORMAT,
            sequence,
            server: name,
            at: now,
            settled,
            decision,
        });
    }

    async fn write(&mut self, number: usize) {
        let server = &mut self.servers[number];
        let Some(record) = server.decided.take() else { return };
        if server.chain.append(record.clone()).await.unwrap() {
            assert!(follows(self.won.last(), &record), "{record:?} behind {:?}", self.won.last());
            self.won.push(record);
        }
    }
}

fn run(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn nothing_due_is_doubled_or_left_out_beside_pruning(events in events()) {
        run(async {
            let mut world = World::new().await;
            for event in &events {
                world.play(event).await;
            }
            // The last record always stays, and is what the servers go on from.
            let kept = JobChain::records(&world.repository, "nightly").await.unwrap();
            if let Some(last) = world.won.last() {
                assert_eq!(kept.last(), Some(last));
                let mut late = JobChain::new(&world.repository, "nightly");
                assert_eq!(late.refresh().await.unwrap(), Some(last));
            }
        });
    }
}

#[test]
fn old_records_go_a_day_after_the_floor_and_a_slot_of_then_wins_nothing() {
    run(async {
        let mut world = World::new().await;
        world.look(0).await;
        world.write(0).await;
        // It decided on the first occurrence, and sleeps for half a year.
        world.now = world.now.plus_micros(DAY_MICROS);
        world.look(1).await;
        for _ in 0..180 {
            for _ in 0..2 {
                world.look(0).await;
                world.write(0).await;
            }
            world.now = world.now.plus_micros(DAY_MICROS);
        }
        let all = JobChain::records(&world.repository, "nightly").await.unwrap().len();
        assert!(all > 300, "{all}");
        assert_eq!(records::prune(&world.repository, world.now).await.unwrap(), 0, "the floor first");
        world.now = world.now.plus_micros(DAY_MICROS);
        let removed = records::prune(&world.repository, world.now).await.unwrap() as usize;
        let left = JobChain::records(&world.repository, "nightly").await.unwrap();
        assert_eq!(left.len() + removed, all);
        assert!((60..90).contains(&left.len()), "{} are left", left.len());
        assert_eq!(left.last(), world.won.last());
        let won = world.won.len();
        world.write(1).await;
        assert_eq!(world.won.len(), won, "a removed slot was won");
        // It goes on from what came behind.
        assert_eq!(world.servers[1].chain.last(), world.won.last());
        // What it left in the removed slot goes with the next pruning.
        assert_eq!(records::prune(&world.repository, world.now).await.unwrap(), 1);
        assert!(world.memory.keys().len() < 120);
    });
}

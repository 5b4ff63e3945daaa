//! Servers that crash, race, sleep and have wrong clocks share one chain: nothing due is run twice or left out in silence.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may say so by a panic")]

use std::collections::BTreeMap;

use muster_serve::agenda::ATTEMPTS_MAX;
use muster_serve::{Job, Next, Schedule, follows, next};
use muster_types::Timestamp;
use muster_types::jobs::{JobDecision, JobOutcome, JobRecord};
use proptest::prelude::*;

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn job(cron: &str, zone: &str, jitter_seconds: u64) -> Job {
    let schedule = Schedule::parse(cron, zone, jitter_seconds, time("2026-01-01T00:00:00Z")).unwrap();
    Job { name: "nightly".into(), schedule }
}

#[derive(Clone, Debug)]
enum Event {
    Pass {
        seconds: u16,
    },
    /// A server looks at the chain, and decides.
    Look {
        server: usize,
    },
    /// It writes what it decided when it looked.
    Write {
        server: usize,
    },
    /// It ends the work that it began.
    Finish {
        server: usize,
    },
    /// It stops before its work has come to its end.
    Release {
        server: usize,
    },
    /// It is gone; another process takes its place.
    Crash {
        server: usize,
    },
    StepClock {
        server: usize,
        seconds: i16,
    },
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let server = || 0..3_usize;
    let event = prop_oneof![
        4 => (1..400_u16).prop_map(|seconds| Event::Pass { seconds }),
        1 => (3_000..20_000_u16).prop_map(|seconds| Event::Pass { seconds }),
        6 => server().prop_map(|server| Event::Look { server }),
        6 => server().prop_map(|server| Event::Write { server }),
        3 => server().prop_map(|server| Event::Finish { server }),
        1 => server().prop_map(|server| Event::Release { server }),
        1 => server().prop_map(|server| Event::Crash { server }),
        1 => (server(), -900..900_i16).prop_map(|(server, seconds)| Event::StepClock { server, seconds }),
    ];
    prop::collection::vec(event, 0..250)
}

#[derive(Clone, Debug)]
struct Server {
    id: String,
    clock_off_seconds: i64,
    /// The number of records that it saw, and what it decided on them.
    decided: Option<(usize, Timestamp, JobDecision)>,
    at_work: Option<(Timestamp, u32)>,
}

struct World {
    job: Job,
    chain: Vec<JobRecord>,
    servers: Vec<Server>,
    now: Timestamp,
    lives: usize,
    /// Occurrences that a server began to work on.
    begun: BTreeMap<(Timestamp, u32), String>,
}

impl World {
    fn new(job: Job) -> Self {
        let server = |number: usize| Server {
            id: format!("server-{number}"),
            clock_off_seconds: 0,
            decided: None,
            at_work: None,
        };
        Self {
            job,
            chain: vec![],
            servers: (0..3).map(server).collect(),
            now: time("2026-03-29T00:30:00Z"),
            lives: 3,
            begun: BTreeMap::new(),
        }
    }

    fn clock(&self, server: usize) -> Timestamp {
        self.now.plus_micros(self.servers[server].clock_off_seconds * 1_000_000)
    }

    fn play(&mut self, event: &Event) {
        match *event {
            Event::Pass { seconds } => self.now = self.now.plus_micros(i64::from(seconds) * 1_000_000),
            Event::Look { server } => {
                let alive = |id: &str| self.servers.iter().any(|server| server.id == id);
                let looked = next(&self.job, self.chain.last(), self.clock(server), alive);
                self.servers[server].decided = match looked {
                    Next::Decide { settled, decision } => Some((self.chain.len(), settled, decision)),
                    Next::Wait { .. } => None,
                };
            }
            Event::Write { server } => {
                if let Some((seen, settled, decision)) = self.servers[server].decided.take() {
                    self.write(server, seen, settled, decision);
                }
            }
            Event::Finish { server } => {
                let outcome = JobOutcome::Succeeded { summary: String::new() };
                self.end(server, |occurrence, attempt| JobDecision::Done { occurrence, attempt, outcome });
            }
            Event::Release { server } => {
                self.end(server, |occurrence, attempt| JobDecision::Released { occurrence, attempt });
            }
            Event::Crash { server } => {
                self.servers[server] = Server {
                    id: format!("server-{}", self.lives),
                    decided: None,
                    at_work: None,
                    ..self.servers[server]
                };
                self.lives += 1;
            }
            Event::StepClock { server, seconds } => {
                self.servers[server].clock_off_seconds = i64::from(seconds);
            }
        }
    }

    /// The slot behind what it saw is free, or another has won it.
    fn write(&mut self, server: usize, seen: usize, settled: Timestamp, decision: JobDecision) {
        if seen != self.chain.len() {
            return;
        }
        let id = self.servers[server].id.clone();
        if let JobDecision::Claimed { occurrence, attempt, .. } = decision {
            // One server works on one thing at a time: a claim of its own that it forgot cannot be.
            assert_eq!(self.begun.insert((occurrence, attempt), id.clone()), None, "begun twice");
            self.servers[server].at_work = Some((occurrence, attempt));
        }
        let record = JobRecord {
            format: 1,
            sequence: seen as u64 + 1,
            server: id,
            at: self.clock(server),
            settled,
            decision,
        };
        assert!(follows(self.chain.last(), &record), "{record:?} behind {:?}", self.chain.last());
        self.chain.push(record);
    }

    fn end(&mut self, server: usize, decision: impl FnOnce(Timestamp, u32) -> JobDecision) {
        let Some((occurrence, attempt)) = self.servers[server].at_work.take() else { return };
        let last = self.chain.last().unwrap();
        let record = JobRecord {
            format: 1,
            sequence: last.sequence + 1,
            server: self.servers[server].id.clone(),
            at: self.clock(server),
            settled: last.settled,
            decision: decision(occurrence, attempt),
        };
        if follows(Some(last), &record) {
            self.chain.push(record);
        }
    }

    /// Every occurrence from the beginning to the last settled one is in the chain, once.
    fn judge(&self) {
        let Some(begun) = self.chain.first() else { return };
        let mut told: Vec<Timestamp> = vec![];
        let mut done: Vec<Timestamp> = vec![];
        for record in &self.chain {
            match &record.decision {
                JobDecision::Claimed { occurrence, attempt: 1, missed } => {
                    if let Some(missed) = missed {
                        let mut one = missed.first;
                        for _ in 0..missed.count {
                            told.push(one);
                            one = self.job.schedule.next_after(one).unwrap();
                        }
                        assert_eq!(told.last(), Some(&missed.last));
                    }
                    told.push(*occurrence);
                }
                JobDecision::Claimed { attempt, .. } => assert!(*attempt <= ATTEMPTS_MAX),
                JobDecision::Done { occurrence, .. } => done.push(*occurrence),
                JobDecision::Begun | JobDecision::Released { .. } => {}
            }
        }
        let mut wanted = vec![];
        let mut one = self.job.schedule.next_after(begun.settled).unwrap();
        while one <= self.chain.last().unwrap().settled {
            wanted.push(one);
            one = self.job.schedule.next_after(one).unwrap();
        }
        assert_eq!(told, wanted, "told in the chain, and due");
        let mut once = done.clone();
        once.dedup();
        assert_eq!(once, done, "an occurrence came to its end twice");
    }

    /// One server alone, with a right clock, brings everything up to date.
    fn settle(&mut self) {
        for server in 1..3 {
            self.play(&Event::Crash { server });
        }
        self.play(&Event::StepClock { server: 0, seconds: 0 });
        // Its clock may have been ahead: what it settled then comes before anything else is due.
        self.now = self.now.plus_micros(2 * 3_600 * 1_000_000);
        for _ in 0..20 {
            self.play(&Event::Finish { server: 0 });
            self.play(&Event::Look { server: 0 });
            self.play(&Event::Write { server: 0 });
        }
        self.play(&Event::Finish { server: 0 });
        self.judge();
        let last = self.chain.last().unwrap();
        assert!(
            matches!(last.decision, JobDecision::Begun | JobDecision::Done { .. }),
            "{last:?} is not at its end"
        );
        let due = self.job.schedule.next_after(last.settled).unwrap();
        assert!(self.job.schedule.starts_at("nightly", due) > self.now, "{due} is due and not settled");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn nothing_due_is_doubled_or_left_out(
        events in events(),
        cron in prop::sample::select(vec!["* * * * *", "*/15 * * * *", "30 2 * * *", "0 */1 * * *"]),
        zone in prop::sample::select(vec!["UTC", "Europe/Berlin"]),
        jitter_seconds in prop::sample::select(vec![0_u64, 20, 600]),
    ) {
        let mut world = World::new(job(cron, zone, jitter_seconds));
        for event in &events {
            world.play(event);
        }
        world.judge();
        world.settle();
    }

    #[test]
    fn occurrences_ascend_and_looking_back_finds_the_same(
        start in 1_700_000_000_i64..1_900_000_000,
        cron in prop::sample::select(vec!["* * * * *", "17 2 * * *", "0 3 * * SUN", "30 2 29 2 *", "0 0 1 */3 *"]),
        zone in prop::sample::select(vec!["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
        jitter_seconds in 0..4_000_u64,
    ) {
        let schedule = job(cron, zone, jitter_seconds).schedule;
        let mut one = Timestamp::from_micros(start * 1_000_000);
        for _ in 0..20 {
            let next = schedule.next_after(one).unwrap();
            prop_assert!(next > one);
            prop_assert_eq!(schedule.last_at(next), Some(next));
            let before = schedule.last_at(next.plus_micros(-1)).unwrap();
            prop_assert!(before <= one || schedule.next_after(before) == Some(next), "{} {} {}", one, before, next);
            let delay = schedule.starts_at("job", next).seconds_since(next);
            prop_assert!((0.0..=jitter_seconds as f64).contains(&delay));
            prop_assert_eq!(schedule.starts_at("job", next), schedule.starts_at("job", next));
            one = next;
        }
    }
}

#[test]
fn a_dead_servers_work_is_taken_over_and_given_up_after_three_attempts() {
    let mut world = World::new(job("0 * * * *", "UTC", 0));
    for event in [Event::Look { server: 0 }, Event::Write { server: 0 }, Event::Pass { seconds: 3_600 }] {
        world.play(&event);
    }
    for _ in 0..ATTEMPTS_MAX {
        for event in [Event::Look { server: 0 }, Event::Write { server: 0 }, Event::Crash { server: 0 }] {
            world.play(&event);
        }
    }
    for event in [Event::Look { server: 1 }, Event::Write { server: 1 }] {
        world.play(&event);
    }
    let occurrence = time("2026-03-29T01:00:00Z");
    let decisions: Vec<&JobDecision> = world.chain.iter().map(|record| &record.decision).collect();
    let claimed = |attempt| JobDecision::Claimed { occurrence, attempt, missed: None };
    let lost = JobDecision::Done { occurrence, attempt: 3, outcome: JobOutcome::Lost };
    assert_eq!(decisions, [&JobDecision::Begun, &claimed(1), &claimed(2), &claimed(3), &lost]);
}

#[test]
fn what_came_while_nobody_was_there_is_counted() {
    let mut world = World::new(job("0 * * * *", "UTC", 0));
    for event in [Event::Look { server: 0 }, Event::Write { server: 0 }] {
        world.play(&event);
    }
    world.now = time("2026-03-29T06:10:00Z");
    for event in [Event::Look { server: 0 }, Event::Write { server: 0 }] {
        world.play(&event);
    }
    let JobDecision::Claimed { occurrence, attempt: 1, missed: Some(missed) } = &world.chain[1].decision
    else {
        panic!("{:?}", world.chain)
    };
    assert_eq!(*occurrence, time("2026-03-29T06:00:00Z"));
    assert_eq!((missed.first, missed.last), (time("2026-03-29T01:00:00Z"), time("2026-03-29T05:00:00Z")));
    assert_eq!(missed.count, 5);
}

#[test]
fn wrong_schedules_say_what_is_wrong() {
    let now = time("2026-03-29T06:00:00Z");
    let wrong = |cron: &str, zone: &str| Schedule::parse(cron, zone, 0, now).unwrap_err().to_string();
    for cron in ["", "* * *", "61 * * * *", "every night", "* * * * * * *"] {
        let text = wrong(cron, "UTC");
        assert!(
            text.contains(&format!("`{cron}` is not a cron expression")) && text.contains("30 2 * * *"),
            "{text}"
        );
    }
    assert!(wrong("0 0 31 2 *", "UTC").contains("never comes"), "{}", wrong("0 0 31 2 *", "UTC"));
    assert!(wrong("0 0 * * *", "Europe/Atlantis").contains("`Europe/Atlantis` is not a time zone"));
}

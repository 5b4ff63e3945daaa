//! A run under virtual time: the scheduler that a real run has, and instead of an executor an ordered set of ends.

use std::collections::BTreeSet;

use muster_engine::driver::ErrorClass;
use muster_engine::scheduler::{Attempt, Command, Input, Scheduler};
use muster_types::Timestamp;
use muster_types::journal::Outcome;

/// What takes the place of effects.
pub trait Work {
    /// How long attempts take that were started together at `now`, in microseconds; they end together.
    fn micros(&self, now: Timestamp, attempts: &[Attempt]) -> u64;

    /// What becomes of an attempt at its end; `None`: it succeeds.
    fn failure(&self, attempt: Attempt) -> Option<ErrorClass> {
        let _ = attempt;
        None
    }
}

/// When each step ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Course {
    /// By step: the last start and end, of those that succeeded in this run.
    pub steps: Vec<Option<(Timestamp, Timestamp)>>,
    /// The end of the last attempt; the beginning where nothing ran.
    pub ended_at: Timestamp,
}

impl Course {
    /// When a step ended, if it succeeded in this run.
    pub fn end_of(&self, step: usize) -> Option<Timestamp> {
        self.steps.get(step).copied().flatten().map(|(_, end)| end)
    }
}

/// Takes `scheduler`, of `steps` steps, from `begin` ([`Input::Begin`] or [`Input::Restore`]) to its end.
///
/// Steps that fail for good, and those that they block, have no place in the course.
pub fn virtual_run(
    mut scheduler: Scheduler,
    steps: usize,
    begin: Input,
    now: Timestamp,
    work: &impl Work,
) -> Course {
    let course = Course { steps: vec![None; steps], ended_at: now };
    let mut run = Running { course, now, ends: BTreeSet::new(), wake: None, started: vec![None; steps] };
    let mut commands = scheduler.step(now, begin);
    loop {
        if run.obey(commands, work) {
            return run.course;
        }
        let Some(inputs) = run.next(work) else { return run.course };
        commands = scheduler.step_all(run.now, inputs);
    }
}

struct Running {
    course: Course,
    now: Timestamp,
    /// Attempts under way, by their ends.
    ends: BTreeSet<(Timestamp, u32, u32)>,
    wake: Option<Timestamp>,
    started: Vec<Option<Timestamp>>,
}

impl Running {
    /// Whether the run is done.
    fn obey(&mut self, commands: Vec<Command>, work: &impl Work) -> bool {
        let mut done = false;
        for command in commands {
            match command {
                Command::Start(attempts) => {
                    let micros = i64::try_from(work.micros(self.now, &attempts)).unwrap_or(i64::MAX);
                    let end = self.now.plus_micros(micros);
                    for Attempt { step, attempt } in attempts {
                        self.started[step as usize] = Some(self.now);
                        self.ends.insert((end, step, attempt));
                    }
                }
                Command::WakeAt(at) => self.wake = Some(at),
                Command::Record(_) => {}
                Command::Done { .. } => done = true,
            }
        }
        done
    }

    /// Lets time pass to what happens next; `None` where nothing will.
    fn next(&mut self, work: &impl Work) -> Option<Vec<Input>> {
        let first = self.ends.first().map(|&(end, ..)| end);
        let wake = self.wake.filter(|&wake| first.is_none_or(|end| wake < end));
        if let Some(wake) = wake {
            self.wake = None;
            self.now = self.now.max(wake);
            return Some(vec![Input::Tick]);
        }
        self.now = first?;
        let mut inputs = Vec::new();
        while let Some(&(end, step, attempt)) = self.ends.first()
            && end == self.now
        {
            self.ends.pop_first();
            inputs.push(self.end(step, attempt, work));
        }
        Some(inputs)
    }

    fn end(&mut self, step: u32, attempt: u32, work: &impl Work) -> Input {
        self.course.ended_at = self.now;
        if let Some(class) = work.failure(Attempt { step, attempt }) {
            return Input::Failed { step, class, error: String::new() };
        }
        let start = self.started[step as usize].unwrap_or(self.now);
        self.course.steps[step as usize] = Some((start, self.now));
        // The scheduler passes outcomes on to the journal, which is not kept here.
        Input::Finished { step, outcome: Outcome::HandedBack }
    }
}

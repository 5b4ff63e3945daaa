//! How long a plan is expected to take: list scheduling of its steps over its pools.
//!
//! Steps start in the order of the plan as soon as what they come after has ended and their pools have room. Steps
//! with equal demands wait in one line, and a line whose head found no room waits at the pool that had none, so that
//! the cost is that of a priority queue and not of a scan. At one pool, lines start in order: none overtakes.
//!
//! # Invariants
//! - A step that never fits, and what comes after it, is left out of the forecast; the checker names it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use muster_types::SiteId;
use muster_types::plan::{Plan, PlanStep, StepKey};

/// Demands in bytes differ from store to store; in steps of this size they make few lines.
const LINE_UNITS: u64 = 4 * 1024 * 1024;

fn rounded(units: u64) -> u64 {
    if units < LINE_UNITS { units } else { units.next_multiple_of(LINE_UNITS) }
}

/// Expected times, from the start of the run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forecast {
    /// Until the last step has ended, in microseconds.
    pub total_micros: u64,
    /// Sites in the order in which they are expected back.
    pub sites: Vec<SiteForecast>,
}

/// One site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteForecast {
    /// The site.
    pub site: SiteId,
    /// Until it is handed back, in microseconds.
    pub back_after_micros: u64,
}

/// The expected course of `plan`.
pub fn forecast(plan: &Plan) -> Forecast {
    Simulation::new(plan).run()
}

/// Steps that want the same of every pool, by ascending number.
struct Line {
    demand: Vec<(usize, u64)>,
    waiting: BTreeSet<u32>,
    /// The pool at which it waits, once its head found no room there.
    blocked_at: Option<usize>,
    /// Its demand is above a capacity.
    never: bool,
}

/// What comes after each step, in one list.
struct Followers {
    /// By step: where its followers start in `list`; they end where those of the next one start.
    starts: Vec<u32>,
    list: Vec<u32>,
}

impl Followers {
    fn new(steps: &[PlanStep]) -> Self {
        let before = |step: &PlanStep| step.after.len() + step.after_ended.len();
        let mut starts = vec![0; steps.len() + 1];
        for before in steps.iter().flat_map(|step| step.after.iter().chain(&step.after_ended)) {
            starts[*before as usize + 1] += 1;
        }
        for step in 0..steps.len() {
            starts[step + 1] += starts[step];
        }
        let mut free = starts.clone();
        let mut list = vec![0; steps.iter().map(before).sum()];
        for (number, step) in steps.iter().enumerate() {
            for before in step.after.iter().chain(&step.after_ended) {
                let place = &mut free[*before as usize];
                list[*place as usize] = number as u32;
                *place += 1;
            }
        }
        Self { starts, list }
    }

    fn places(&self, step: u32) -> std::ops::Range<usize> {
        self.starts[step as usize] as usize..self.starts[step as usize + 1] as usize
    }
}

struct Simulation<'a> {
    steps: &'a [PlanStep],
    free: Vec<u64>,
    lines: Vec<Line>,
    line_of: Vec<usize>,
    /// By step: how many of those it comes after have not ended.
    open: Vec<u32>,
    next: Followers,
    /// First of each line that may start, by number of the step.
    heads: BTreeSet<(u32, usize)>,
    /// By pool: first of each line that found no room there.
    blocked: Vec<BTreeSet<(u32, usize)>>,
    running: BinaryHeap<Reverse<(u64, u32)>>,
}

impl<'a> Simulation<'a> {
    fn new(plan: &'a Plan) -> Self {
        let names: BTreeMap<&str, usize> =
            plan.pools.keys().enumerate().map(|(i, pool)| (pool.as_str(), i)).collect();
        let mut by_demand: BTreeMap<Vec<(usize, u64)>, usize> = BTreeMap::new();
        let mut lines: Vec<Line> = Vec::new();
        let mut open = Vec::with_capacity(plan.steps.len());
        let mut line_of = Vec::with_capacity(plan.steps.len());
        let mut demand = Vec::new();
        for step in &plan.steps {
            // An unknown pool has no room: number `names.len()`.
            let pool = |name: &str| names.get(name).copied().unwrap_or(names.len());
            demand.clear();
            demand.extend(step.demand.iter().map(|(name, units)| (pool(name), rounded(units))));
            let line = by_demand.get(&demand).copied().unwrap_or_else(|| {
                by_demand.insert(demand.clone(), lines.len());
                let demand = demand.clone();
                lines.push(Line { demand, waiting: BTreeSet::new(), blocked_at: None, never: false });
                lines.len() - 1
            });
            line_of.push(line);
            open.push((step.after.len() + step.after_ended.len()) as u32);
        }
        let mut free: Vec<u64> = plan.pools.values().copied().collect();
        free.push(0);
        for line in &mut lines {
            line.never = line.demand.iter().any(|(pool, units)| free[*pool] < *units);
        }
        let blocked = vec![BTreeSet::new(); free.len()];
        let (heads, running) = (BTreeSet::new(), BinaryHeap::new());
        let next = Followers::new(&plan.steps);
        Self { steps: &plan.steps, free, lines, line_of, open, next, heads, blocked, running }
    }

    fn run(mut self) -> Forecast {
        let mut forecast = Forecast::default();
        for step in 0..self.steps.len() as u32 {
            if self.open[step as usize] == 0 {
                self.wait(step);
            }
        }
        self.start(0, BTreeSet::new());
        while let Some(Reverse((now, step))) = self.running.pop() {
            let mut freed = BTreeSet::new();
            self.end(step, now, &mut freed, &mut forecast);
            // Whatever else ends now gives back its pools before the next start.
            while self.running.peek().is_some_and(|Reverse((at, _))| *at == now) {
                let Some(Reverse((_, step))) = self.running.pop() else { break };
                self.end(step, now, &mut freed, &mut forecast);
            }
            self.start(now, freed);
        }
        forecast
    }

    /// The set in which the head of a line stands.
    fn place(&mut self, line: usize) -> &mut BTreeSet<(u32, usize)> {
        match self.lines[line].blocked_at {
            Some(pool) => &mut self.blocked[pool],
            None => &mut self.heads,
        }
    }

    fn wait(&mut self, step: u32) {
        let number = self.line_of[step as usize];
        if self.lines[number].never {
            return;
        }
        let head = self.lines[number].waiting.first().copied();
        self.lines[number].waiting.insert(step);
        if head.is_none_or(|head| step < head) {
            let place = self.place(number);
            if let Some(head) = head {
                place.remove(&(head, number));
            }
            place.insert((step, number));
        }
    }

    /// Starts whatever fits, earliest first, among the ready and those that waited at a pool in `freed`.
    fn start(&mut self, now: u64, mut freed: BTreeSet<usize>) {
        loop {
            let waiting = freed.iter().filter_map(|pool| self.blocked[*pool].first());
            let Some(&(step, number)) = waiting.chain(self.heads.first()).min() else { break };
            self.place(number).remove(&(step, number));
            let line = &mut self.lines[number];
            let short = line.demand.iter().find(|(pool, units)| self.free[*pool] < *units);
            if let Some((pool, _)) = short {
                line.blocked_at = Some(*pool);
                freed.remove(pool);
                self.blocked[*pool].insert((step, number));
                continue;
            }
            for (pool, units) in &line.demand {
                self.free[*pool] -= units;
            }
            line.waiting.remove(&step);
            line.blocked_at = None;
            self.heads.extend(line.waiting.first().map(|head| (*head, number)));
            self.running.push(Reverse((now + self.steps[step as usize].estimate_micros, step)));
        }
    }

    fn end(&mut self, step: u32, now: u64, freed: &mut BTreeSet<usize>, forecast: &mut Forecast) {
        let number = self.line_of[step as usize];
        for (pool, units) in &self.lines[number].demand {
            self.free[*pool] += units;
            freed.insert(*pool);
        }
        forecast.total_micros = forecast.total_micros.max(now);
        if let StepKey::Handback(site) = &self.steps[step as usize].key {
            forecast.sites.push(SiteForecast { site: site.clone(), back_after_micros: now });
        }
        for place in self.next.places(step) {
            let next = self.next.list[place];
            self.open[next as usize] -= 1;
            if self.open[next as usize] == 0 {
                self.wait(next);
            }
        }
    }
}

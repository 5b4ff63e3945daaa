//! Steps that run together.

use super::*;

/// Marks steps of one verb and kind as groups of so many sites; of one, they have none.
pub(super) fn grouped(mut steps: Vec<PlanStep>, size: usize) -> Vec<PlanStep> {
    if size < 2 {
        return steps;
    }
    let number_of = |site: &SiteId| site.as_str()[1..].parse::<usize>().unwrap();
    let mut numbers: BTreeMap<(String, usize), u32> = BTreeMap::new();
    for step in &mut steps {
        let Some(store) = step.key.store() else { continue };
        let verb = step.key.to_string().split('/').next().unwrap().to_owned();
        let next = u32::try_from(numbers.len()).unwrap();
        let common = (format!("{verb} {}", store.kind), number_of(&store.site) / size);
        step.group = Some(*numbers.entry(common).or_insert(next));
        if let StepKey::Stage(_) = step.key {
            let slot = step.demand.iter().map(|(pool, _)| pool).find(|pool| pool.starts_with("stage:"));
            step.demand = [("s3", 3), (slot.unwrap(), 1)].into_iter().collect();
        }
    }
    steps
}

impl Simulation<'_> {
    /// Every final failure is that of an attempt without company.
    pub(super) fn fails_for_good_only_alone(&self) {
        let mut size_of: BTreeMap<StepKey, usize> = BTreeMap::new();
        for command in &self.log {
            match command {
                Command::Start(attempts) => size_of.extend(
                    attempts
                        .iter()
                        .map(|attempt| (self.steps[attempt.step as usize].key.clone(), attempts.len())),
                ),
                Command::Record(Record::Failed { step, will_retry: false, .. }) => {
                    assert_eq!(size_of[step], 1, "{step}");
                }
                _ => {}
            }
        }
    }
}

/// Batches as they were started, each ended at once by one answer for all of it.
struct Together<'a> {
    steps: &'a [PlanStep],
    scheduler: Scheduler,
    state: RunState,
    now: i64,
    batches: Vec<Vec<StepKey>>,
}

impl<'a> Together<'a> {
    fn new(steps: &'a [PlanStep], pools: &BTreeMap<String, u64>) -> Self {
        let scheduler = Scheduler::new(steps, pools, &BTreeMap::new(), RetryPolicy::default()).unwrap();
        let state = Simulation::new(steps, RetryPolicy::default()).state;
        Self { steps, scheduler, state, now: 0, batches: Vec::new() }
    }

    /// Runs to the end; `fails` says whether a batch is undone whole.
    fn run(&mut self, fails: impl Fn(&[StepKey]) -> Option<ErrorClass>) {
        let mut commands = self.scheduler.step(at(0), Input::Begin);
        let mut open = std::collections::VecDeque::new();
        let mut wake = None;
        loop {
            for command in commands.drain(..) {
                match command {
                    Command::Record(record) => self.state.apply(&record).unwrap(),
                    Command::Start(attempts) => open.push_back(attempts),
                    Command::WakeAt(time) => wake = Some(time),
                    Command::Done { .. } => return,
                }
            }
            let Some(attempts) = open.pop_front() else {
                let time = wake.take().expect("stuck");
                self.now = time.as_micros();
                commands = self.scheduler.step(time, Input::Tick);
                continue;
            };
            let keys: Vec<StepKey> =
                attempts.iter().map(|attempt| self.steps[attempt.step as usize].key.clone()).collect();
            let failed = fails(&keys);
            let inputs = attempts.iter().zip(&keys).map(|(attempt, key)| match failed {
                Some(class) => Input::Failed { step: attempt.step, class, error: "undone".to_owned() },
                None => Input::Finished { step: attempt.step, outcome: outcome_of(key) },
            });
            self.now += 1;
            commands = self.scheduler.step_all(at(self.now), inputs.collect::<Vec<_>>());
            self.batches.push(keys);
        }
    }

    fn publishes(&self) -> impl Iterator<Item = &Vec<StepKey>> {
        self.batches.iter().filter(|keys| matches!(keys[0], StepKey::Publish(_)))
    }

    /// Publish steps that failed for good.
    fn failed(&self) -> BTreeSet<usize> {
        let failed = self.steps.iter().zip(self.state.steps());
        let failed = failed.filter(|(_, state)| state.phase == StepPhase::Failed);
        failed.map(|(step, _)| step.key.site().unwrap().as_str()[1..].parse().unwrap()).collect()
    }
}

fn holds(keys: &[StepKey], culprits: &BTreeSet<usize>) -> bool {
    keys.iter().any(|key| match key {
        StepKey::Publish(store) => culprits.contains(&store.site.as_str()[1..].parse().unwrap()),
        _ => false,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whoever is in a batch with a culprit is undone with it, and none but culprits fail.
    #[test]
    fn failures_split_until_each_culprit_stands_alone(
        sites in 1usize..70, size in 2usize..65, culprits in prop::collection::btree_set(0usize..70, 0..4)
    ) {
        let culprits: BTreeSet<usize> = culprits.into_iter().filter(|&site| site < sites).collect();
        let steps = grouped(fleet(sites, 1, |_, _| 10, false), size);
        let mut together = Together::new(&steps, &pools());
        together.run(|keys| holds(keys, &culprits).then_some(ErrorClass::Permanent));
        prop_assert_eq!(together.failed(), culprits.clone());
        let groups = sites.div_ceil(size);
        let halvings = size.ilog2() as usize + 1;
        let most = groups + culprits.len() * (2 * halvings + 1);
        let publishes = together.publishes().count();
        prop_assert!(publishes <= most, "{} publishes for {} culprits", publishes, culprits.len());
        prop_assert!(together.batches.iter().all(|batch| batch.len() <= size));
    }

    /// Where a lock is waited for, a batch waits once for it; then only those wait that need it.
    #[test]
    fn waits_do_not_add_up(sites in 2usize..65, culprit in 0usize..65) {
        let culprits = BTreeSet::from([culprit % sites]);
        let steps = grouped(fleet(sites, 1, |_, _| 10, false), 64);
        let mut together = Together::new(&steps, &pools());
        together.run(|keys| holds(keys, &culprits).then_some(ErrorClass::Transient));
        prop_assert_eq!(together.failed(), culprits.clone());
        let waited = together.publishes().filter(|keys| holds(keys, &culprits)).count();
        let alone = RetryPolicy::default().attempts_max as usize;
        prop_assert!(waited <= alone + 1, "{} waits", waited);
    }
}

#[test]
fn what_ends_together_goes_on_together() {
    let steps = grouped(fleet(30, 2, |_, _| 10, false), 10);
    let mut together = Together::new(&steps, &pools());
    together.run(|_| None);
    let of_stores = together.batches.iter().filter(|keys| keys[0].store().is_some());
    let sizes: Vec<usize> = of_stores.map(Vec::len).collect();
    assert_eq!(sizes, [10; 18], "three groups, two kinds, three verbs");
}

#[test]
fn a_group_overtakes_only_to_join_its_first() {
    // One slot for all: of those that wait for it, the first in order always goes next.
    let mut steps = grouped(fleet(24, 1, |_, _| 10, false), 4);
    for (number, step) in steps.iter_mut().enumerate() {
        let alone = number % 3 == 0;
        step.group = step.group.filter(|_| matches!(step.key, StepKey::Stage(_)) && !alone);
    }
    let mut narrow = pools();
    narrow.insert("stage:0".to_owned(), 1);
    let mut together = Together::new(&steps, &narrow);
    together.run(|_| None);
    let mut waiting: BTreeSet<usize> = (0..24).collect();
    for batch in together.batches.iter().filter(|batch| matches!(batch[0], StepKey::Stage(_))) {
        let sites: Vec<usize> =
            batch.iter().map(|key| key.site().unwrap().as_str()[1..].parse().unwrap()).collect();
        assert_eq!(waiting.first(), sites.first());
        sites.iter().for_each(|site| assert!(waiting.remove(site)));
    }
    assert!(waiting.is_empty());
}

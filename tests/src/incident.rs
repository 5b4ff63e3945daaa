//! An incident: what was deleted, how it was planned, what came back.

use std::time::Duration;

use muster_demo::{DeletionLog, Reached, Verdict};
use muster_types::report::Report;

use crate::command::Ran;
use crate::world::World;

/// The most by which a recovery point may lie before its last missing commit: a few polls, for a busy machine.
const POLL_MICROS_MAX: i64 = 2_000_000;

/// Victims of one world.
#[derive(Debug)]
pub struct Incident {
    /// What the bad script did.
    pub log: DeletionLog,
    /// When it was about to start, as `--from` takes it.
    pub from: String,
}

impl Incident {
    /// Deletes `victims` sites one after another.
    pub fn delete(world: &World, victims: usize, pace: Duration) -> Self {
        Self::delete_these(world, &world.fleet.pick_victims(victims), pace)
    }

    /// Deletes these sites, given by their index, one after another.
    pub fn delete_these(world: &World, victims: &[usize], pace: Duration) -> Self {
        let from = now();
        let log = world.fleet.delete_victims(victims, pace).expect("the bad script runs");
        Self { log, from }
    }

    /// Site ids of the victims, typed.
    pub fn sites(&self) -> Vec<String> {
        self.log.sites.iter().map(|site| format!("site:{}", site.site)).collect()
    }

    /// Finds the victims in the log and writes `incident.toml`.
    #[track_caller]
    pub fn detect(&self, world: &World) -> Ran {
        let ran = world.muster(&["detect", "--from", &self.from, "--out", "incident.toml"]).ok();
        ran.says(&[&format!("{} sites lost", self.log.sites.len())])
    }

    /// Plans what [`Self::detect`] found into `plan.json`.
    #[track_caller]
    pub fn plan(&self, world: &World, options: &[&str]) -> Ran {
        let mut args = vec!["plan", "--incident", "incident.toml", "--out", "plan.json"];
        args.extend(options);
        world.muster(&args)
    }

    /// The independent judgement of a run.
    pub fn judge(&self, world: &World, run: &str) -> Verdict {
        self.judge_all(world, &[run])
    }

    /// As [`Self::judge`], of several runs that restored a part each.
    fn judge_all(&self, world: &World, runs: &[&str]) -> Verdict {
        let mut reached = Reached::new();
        for site in runs.iter().flat_map(|run| report(world, run).sites) {
            for store in &site.stores {
                reached.insert(
                    (site.site.as_str().to_owned(), store.kind.to_string()),
                    store.reached.at.as_micros(),
                );
            }
        }
        world
            .fleet
            .judge(&self.log, &reached, world.poll_micros_max())
            .expect("the judge can read the shards")
    }

    /// Fails on any difference between the fleet and the truth.
    #[track_caller]
    pub fn is_undone(&self, world: &World, run: &str) {
        self.are_undone(world, &[run]);
    }

    /// As [`Self::is_undone`], by several runs together.
    #[track_caller]
    pub fn are_undone(&self, world: &World, runs: &[&str]) {
        let verdict = self.judge_all(world, runs);
        assert!(verdict.holds(), "seed {}:\n{verdict}", world.seed);
        assert_eq!(verdict.victims, self.log.sites.len());
    }
}

impl World {
    /// What the oracle allows between a recovery point and its last missing commit. PostgreSQL is exact to the commit.
    pub(crate) fn poll_micros_max(&self) -> i64 {
        if self.is_on_services() { 0 } else { POLL_MICROS_MAX }
    }

    /// The report of a run as its JSON says.
    #[track_caller]
    pub fn report(&self, run: &str) -> Report {
        report(self, run)
    }
}

#[track_caller]
fn report(world: &World, run: &str) -> Report {
    let ran = world.muster(&["report", run, "--json"]);
    serde_json::from_value(ran.json()).unwrap_or_else(|error| panic!("not a report: {error}: {ran}"))
}

/// This moment, as `--from` and `--to` take it.
pub fn now() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    muster_types::Timestamp::from_micros(i64::try_from(since.as_micros()).expect("before 294000")).to_string()
}

//! Faults that both stacks are given: an embedded repository beside SQLite, and MinIO beside PostgreSQL.

pub(crate) mod crashes;
pub(crate) mod races;
pub(crate) mod signals;
pub(crate) mod store;

use std::time::Duration;

use muster_demo::{WriterConfig, Writers};
use muster_tests::{Incident, Series, Size, World, until};

/// Few enough that a judgement of all that happened stays quick.
const WRITERS: WriterConfig = WriterConfig { transactions_per_second: 40, threads: 2 };

/// Neighbours that are never victims.
const NEIGHBOURS: usize = 12;

/// Which databases and which object store.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "each test file is for one of them")]
pub(crate) enum Stack {
    /// SQLite and the embedded S3 server.
    Embedded,
    /// PostgreSQL and MinIO, servers of the test's own.
    Services,
}

impl Stack {
    /// A fleet with so many victims to come.
    pub(crate) fn series(self, seed: u64, victims: usize) -> Series {
        let size = Size { sites: victims + NEIGHBOURS, rows_per_site: 40 };
        let world = match self {
            Self::Embedded => World::new(size, seed),
            Self::Services => World::on_own_services(size, seed),
        };
        Series::of(world, victims)
    }
}

/// Neighbours write, and the next victims are deleted.
pub(crate) fn strike(series: &mut Series, victims: usize) -> (Writers, Incident) {
    let writers = series.world.fleet.start_writers(WRITERS);
    until("writers at work", || writers.committed() >= 30);
    let incident = series.delete(victims, Duration::from_millis(20));
    (writers, incident)
}

/// As [`strike`], all of it is in the log, and there is an `incident.toml`.
pub(crate) fn strike_and_detect(series: &mut Series, victims: usize) -> (Writers, Incident) {
    let (writers, incident) = strike(series, victims);
    series.world.muster(&["capture", "wait", "--covers", "now"]).ok();
    incident.detect(&series.world);
    (writers, incident)
}

/// As [`strike_and_detect`], and there is a `plan.json`.
pub(crate) fn strike_and_plan(series: &mut Series, victims: usize) -> (Writers, Incident) {
    let (writers, incident) = strike_and_detect(series, victims);
    incident.plan(&series.world, &["--proof", "full"]).ok();
    (writers, incident)
}

//! When `muster serve` would have told of the demo's deletion: its own look, taken while the script runs.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use muster_demo::DeletionLog;
use muster_serve::watch::LogWatch;
use muster_types::Timestamp;
use muster_types::topology::DetectConfig;

use crate::context::{self, Context};
use crate::print;
use crate::topology_place::TopologyPlace;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// Capture and a look are behind the script by seconds; after so long something is broken.
const PATIENCE: Duration = Duration::from_secs(120);

/// The first alarm.
pub(crate) struct Told {
    at: Timestamp,
    sites: usize,
}

/// Looks as `muster serve` does, until it would tell an alarm.
pub(crate) async fn first_alarm(topology: PathBuf) -> Result<Told> {
    let mut context = Context::open(&TopologyPlace::File(topology)).await?;
    context.topology.serve.detect = Some(DetectConfig {
        every_seconds: EVERY.as_secs(),
        window_seconds: 1800,
        sites_max: 3,
        incident_dir: PathBuf::new(),
    });
    let mut watch = LogWatch::new(&context.repository, &context.topology);
    let looks = async {
        loop {
            let look = watch.look(&context.topology, context::now()).await?;
            if let Some(lost) = look.lost.filter(|lost| lost.is_alarm()) {
                return Ok(Told { at: context::now(), sites: lost.count() });
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    match tokio::time::timeout(PATIENCE, looks).await {
        Ok(told) => told,
        Err(_) => bail!("no alarm within {} s of the first deletion", PATIENCE.as_secs()),
    }
}

/// What the summary says of it.
pub(crate) fn sentence(told: &Told, started: Timestamp, log: &DeletionLog) -> String {
    let gone = log.sites.iter().filter(|site| site.ended_micros <= told.at.as_micros()).count();
    format!(
        "alarm after {}, when {gone} of {} were gone ({} of them seen; a look every second, more than 3 sites in half an hour)",
        print::seconds(told.at.seconds_since(started)),
        log.sites.len(),
        told.sites,
    )
}

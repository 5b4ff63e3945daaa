//! Looking for lost sites all the time: an alarm with a draft incident, whoever did the deleting.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use muster_plan::detect::{self, DetectOptions, Detection};
use muster_types::Timestamp;
use muster_types::topology::DetectConfig;
use tokio::sync::watch;

use super::serve::Health;
use crate::context::{self, Context};
use crate::print;

/// Looks at the log again and again.
pub(crate) struct Alarm {
    context: Arc<Context>,
    health: Arc<Health>,
}

impl Alarm {
    pub(crate) fn new(context: Arc<Context>, health: Arc<Health>) -> Self {
        Self { context, health }
    }

    /// Until told to stop; at once where the topology asks for no looks.
    pub(crate) async fn watch(&self, mut stop: watch::Receiver<bool>) {
        let Some(config) = &self.context.topology.serve.detect else { return };
        let mut lost_before = 0;
        let every = Duration::from_secs(config.every_seconds);
        // Without the sender the server is gone.
        while tokio::time::timeout(every, stop.wait_for(|stop| *stop)).await.is_err() {
            match self.look(config, lost_before).await {
                Ok(lost) => lost_before = lost,
                Err(error) => print::talk(format!("looking for lost sites: {error:#}; trying again")),
            }
        }
    }

    /// How many are lost. Tells it when there are more than before, and more than allowed.
    async fn look(&self, config: &DetectConfig, lost_before: usize) -> Result<usize> {
        let now = context::now();
        let window_micros =
            i64::try_from(config.window_seconds.saturating_mul(1_000_000)).unwrap_or(i64::MAX);
        let from = now.plus_micros(-window_micros);
        let catalog = self.context.catalog_of_all().await?;
        let found = detect::detect(&self.context.topology, &catalog, from, now, &DetectOptions::default());
        let lost = found.lost.len();
        self.health.metrics.lost_sites(lost, config.sites_max);
        if lost as u64 <= config.sites_max {
            self.health.alarm(None);
            return Ok(lost);
        }
        if lost > lost_before {
            let file = draft(config, &found, (from, now))?;
            let first = found.lost.iter().map(|site| site.first_loss_at).min().unwrap_or(now);
            let text = format!(
                "ALARM: {lost} sites lost since {first}, {} allowed; draft incident: {}; next: muster plan --incident {1}",
                config.sites_max,
                file.display()
            );
            print::talk(&text);
            self.health.alarm(Some(text));
        }
        Ok(lost)
    }
}

/// Writes the incident file, beside those of earlier looks.
fn draft(config: &DetectConfig, found: &Detection, (from, to): (Timestamp, Timestamp)) -> Result<PathBuf> {
    let incident = found.incident("sites lost", &format!("detect {from}..{to}"), to);
    let text = toml::to_string(&incident).context("failed to write the incident")?;
    std::fs::create_dir_all(&config.incident_dir)
        .with_context(|| format!("failed to make the folder `{}`", config.incident_dir.display()))?;
    let digits: String = to.to_string().chars().filter(char::is_ascii_digit).take(14).collect();
    let path = config.incident_dir.join(format!("draft-{digits}.toml"));
    std::fs::write(&path, text).with_context(|| format!("failed to write `{}`", path.display()))?;
    Ok(path)
}

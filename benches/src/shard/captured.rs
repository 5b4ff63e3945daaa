//! A shard that Muster captures, and its repository in a bucket of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use muster_capture::Installer;
use muster_plan::planner;
use muster_repo::{Repository, S3Config, S3Objects};
use muster_services::Minio;
use muster_types::plan::Plan;
use muster_types::topology::Topology;
use muster_types::{SiteId, Timestamp};

use super::follow::Follower;
use super::tables::{OWNED, Tables};
use crate::restore::{Restored, apply};
use crate::world::{REQUESTS, make_plan, now};

/// Stores staged at once: one reads and folds while another's COPY waits for the server.
const STAGE_SLOTS: usize = 4;
/// Capture polls so often where that is not what is measured; a run waits for it.
pub(crate) const POLL: Duration = Duration::from_millis(250);

/// See the module.
pub(crate) struct Captured {
    pub(crate) topology: Topology,
    pub(crate) repository: Repository,
    pub(crate) bucket: String,
    // Removes it in the end.
    folder: tempfile::TempDir,
}

impl Captured {
    /// Puts capture on a shard and takes its snapshot.
    pub(crate) async fn install(
        tables: &Tables,
        minio: &Minio,
        poll: Duration,
        publish_slots: usize,
    ) -> Result<Self> {
        let folder = tempfile::tempdir().context("failed to create a temporary folder")?;
        let bucket = minio.create_bucket("bench")?;
        let credentials = format!(
            "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
            minio.access_key(),
            minio.secret_key()
        );
        std::fs::write(folder.path().join("credentials"), credentials)?;
        let text = topology(tables, &bucket, minio, poll, publish_slots);
        std::fs::write(folder.path().join("muster.toml"), text)?;
        let topology = read_topology(folder.path())?;
        let objects = connect(folder.path(), &topology).await?;
        objects.ensure_bucket().await?;
        let repository = Repository::create(Arc::new(objects), now()).await?;
        for shard in super::blocking(|| Installer::new(&topology, None).init()) {
            shard.result?;
        }
        let captured = Self { topology, repository, bucket, folder };
        captured.poll().await?;
        Ok(captured)
    }

    /// Has those who open it from now on poll so often.
    pub(crate) fn poll_every(&self, poll: Duration) -> Result<()> {
        let file = self.folder.path().join("muster.toml");
        let set = |line: &str| match line.split_once(" = ") {
            Some((key @ "poll_interval_milliseconds", _)) => format!("{key} = {}\n", poll.as_millis()),
            _ => format!("{line}\n"),
        };
        let text: String = std::fs::read_to_string(&file)?.lines().map(set).collect();
        Ok(std::fs::write(&file, text)?)
    }

    /// What [`super::follow`] needs to open it.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Brings the log to where the shard is.
    pub(crate) async fn poll(&self) -> Result<()> {
        crate::world::capture(&self.repository, &self.topology).await
    }

    /// A plan for sites at a moment; all of them can be restored.
    pub(crate) async fn plan(&self, sites: &[String], target: Timestamp) -> Result<Plan> {
        let plan = self.plan_to_read(sites, target).await?;
        let held = planner::held_back(&plan.notes);
        ensure!(held.is_empty(), "{} sites cannot be restored: {:?}", held.len(), plan.notes.first());
        Ok(plan)
    }

    /// The same for sites that may be alive: what the plan would restore can be read.
    pub(crate) async fn plan_to_read(&self, sites: &[String], target: Timestamp) -> Result<Plan> {
        let ids = sites.iter().map(|site| format!("site:{site}").parse());
        let ids = ids.collect::<Result<Vec<SiteId>, _>>()?;
        make_plan(&self.repository, &self.topology, &ids, target).await
    }

    /// Applies a plan while capture follows in a process of its own, as a run needs it: what was published is read back
    /// from the log.
    pub(crate) async fn restore(&self, plan: &Plan, run: &str) -> Result<Restored> {
        let follower = super::blocking(|| Follower::start(self.folder()))?;
        let drivers = muster_stores::drivers(&self.topology);
        let restored = apply(&self.repository, drivers, &self.topology, plan, run).await?;
        super::blocking(|| follower.stop())?;
        Ok(restored)
    }
}

/// The topology in a folder.
pub(crate) fn read_topology(folder: &Path) -> Result<Topology> {
    let text = std::fs::read_to_string(folder.join("muster.toml"))?;
    Ok(Topology::parse(&text, "muster.toml", folder)?)
}

/// The bucket that a topology names, with the credentials that lie beside it.
pub(crate) async fn connect(folder: &Path, topology: &Topology) -> Result<S3Objects> {
    let credentials: PathBuf = folder.join("credentials");
    let config = S3Config {
        bucket: topology.repository.bucket.clone(),
        prefix: String::new(),
        region: Some("us-east-1".to_owned()),
        endpoint: topology.repository.endpoint.clone(),
        path_style: true,
        credentials_file: Some(credentials),
        requests_in_flight: REQUESTS,
    };
    Ok(S3Objects::connect(&config).await?)
}

fn topology(tables: &Tables, bucket: &str, minio: &Minio, poll: Duration, publish_slots: usize) -> String {
    let owned: String = OWNED
        .iter()
        .map(|owned| {
            let owner = match owned.table {
                "issue" => r#"parent = { column = "project_id", table = "project", key = "project_id" }"#,
                "comment" => r#"parent = { column = "issue_id", table = "issue", key = "issue_id" }"#,
                _ => r#"tenant = "site_id""#,
            };
            format!("\n[tables.{}]\nkind = \"{}\"\n{owner}\n", owned.table, owned.kind)
        })
        .collect();
    format!(
        "fleet = \"bench\"\n\
         \n[repository]\nbucket = \"{bucket}\"\nregion = \"us-east-1\"\nendpoint = \"{}\"\npath_style = true\n\
         \n[capture]\npoll_interval_milliseconds = {}\n\
         \n[limits]\nstage_slots = {STAGE_SLOTS}\n\
         \n[directory]\nkind = \"metadata\"\ntable = \"site\"\n\
         \n[directory.columns]\nname = \"name\"\nregion = \"region\"\ntier = \"tier\"\n\
         \n[tiers.standard]\nrto_seconds = 3600\nrpo_seconds = 60\n\
         \n[shards.{}]\ndriver = \"postgres\"\nconnection = \"{}\"\nregion = \"eu\"\n\
         kinds = [\"metadata\", \"identity\", \"product:tracker\"]\nstage_slots = {STAGE_SLOTS}\n\
         publish_slots = {publish_slots}\nwriter_block_milliseconds_max = 60000\n{owned}",
        minio.endpoint(),
        poll.as_millis(),
        tables.database.replace('_', "-"),
        tables.url,
    )
}

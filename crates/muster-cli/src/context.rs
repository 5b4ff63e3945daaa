//! What most commands start from: the topology, the repository, the drivers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use muster_engine::driver::StoreDriver;
use muster_inspect::{InspectError, SiteAt};
use muster_repo::catalog::{self, CatalogQuery, Sites};
use muster_repo::{Repository, S3Config, S3Objects};
use muster_s3_server::{Guard, ServerConfig};
use muster_types::catalog::Catalog;
use muster_types::topology::{RepositoryConfig, Topology};
use muster_types::{ShardName, SiteId, Timestamp};

use crate::{exit, print};

/// The present moment; the one place that reads the clock for commands.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// Reads and validates the topology.
pub(crate) fn topology(path: &Path) -> Result<Topology> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        exit::input(format!(
            "failed to read the topology `{}`: {error}; name it with --topology or MUSTER_TOPOLOGY, \
             or begin with config/embedded.toml",
            path.display()
        ))
    })?;
    let base = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let read = |file: PathBuf| {
        let text = std::fs::read_to_string(&file).map_err(|error| error.to_string());
        (file, text)
    };
    let files = Topology::site_files(&text, base).into_iter().map(read).collect();
    Topology::parse_with(&text, &path.display().to_string(), base, &files).map_err(exit::input)
}

/// Topology and repository together, with the embedded server kept alive while this lives.
pub(crate) struct Context {
    /// The topology.
    pub(crate) topology: Topology,
    /// The repository.
    pub(crate) repository: Repository,
    _guard: Option<Guard>,
}

impl Context {
    /// Opens an existing repository.
    pub(crate) async fn open(topology: &Path) -> Result<Self> {
        Self::connect(topology, false).await
    }

    /// Opens the repository, creating bucket and repository if they are not there.
    pub(crate) async fn open_or_create(topology: &Path) -> Result<Self> {
        Self::connect(topology, true).await
    }

    async fn connect(path: &Path, create: bool) -> Result<Self> {
        let topology = topology(path)?;
        let (guard, credentials) = embedded(&topology.repository).await?;
        let config = s3_config(&topology, credentials);
        let objects = S3Objects::connect(&config).await?;
        let repository = if create {
            objects.ensure_bucket().await?;
            Repository::create(Arc::new(objects), now()).await?
        } else {
            Repository::open(Arc::new(objects)).await.context("failed to open the repository")?
        };
        Ok(Self { topology, repository, _guard: guard })
    }

    /// What the repository holds of these sites.
    pub(crate) async fn catalog_of(&self, sites: impl IntoIterator<Item = SiteId>) -> Result<Catalog> {
        self.catalog(Sites::Some(sites.into_iter().collect())).await
    }

    /// What the repository holds of every site.
    pub(crate) async fn catalog_of_all(&self) -> Result<Catalog> {
        self.catalog(Sites::All).await
    }

    /// The catalog of what is whole; damaged objects are named, and what hangs on them is in the notes of a plan.
    async fn catalog(&self, sites: Sites) -> Result<Catalog> {
        let survey = catalog::survey(&self.repository, &CatalogQuery { sites, shards: None }, now()).await?;
        for damage in &survey.damages {
            print::talk(format!("warning: {damage}"));
        }
        Ok(survey.catalog)
    }

    /// A site as it was; one that the repository knows nothing of is a wrong input.
    pub(crate) fn site_at(&self, catalog: &Catalog, site: &SiteId, at: Timestamp) -> Result<SiteAt> {
        SiteAt::find(&self.topology, catalog, site, at).map_err(|error| match error {
            InspectError::Nothing { .. } => exit::input(error),
            _ => error.into(),
        })
    }

    /// The restore side of every shard.
    pub(crate) fn drivers(&self) -> BTreeMap<ShardName, Arc<dyn StoreDriver>> {
        muster_stores::drivers(&self.topology)
    }
}

/// Starts, or stands by for, the embedded server if the topology has one.
async fn embedded(config: &RepositoryConfig) -> Result<(Option<Guard>, Option<PathBuf>)> {
    let Some(dir) = &config.embedded else { return Ok((None, None)) };
    let endpoint = config.endpoint.as_deref().unwrap_or_default();
    let listen = endpoint.trim_start_matches("http://").trim_end_matches('/');
    let listen = listen.parse().map_err(|_| {
        exit::input(format!(
            "the endpoint `{endpoint}` of an embedded repository must be http://ADDRESS:PORT with a loopback address"
        ))
    })?;
    let credentials = muster_s3_server::ensure_credentials(dir)?;
    let guard = muster_s3_server::guard(ServerConfig { dir: dir.clone(), listen });
    guard.ready().await?;
    Ok((Some(guard), Some(credentials)))
}

fn s3_config(topology: &Topology, credentials_file: Option<PathBuf>) -> S3Config {
    let repository = &topology.repository;
    S3Config {
        bucket: repository.bucket.clone(),
        prefix: repository.prefix.clone(),
        region: Some(repository.region.clone()),
        endpoint: repository.endpoint.clone(),
        path_style: repository.path_style,
        credentials_file,
        requests_in_flight: usize::try_from(topology.limits.s3_requests).unwrap_or(usize::MAX),
    }
}

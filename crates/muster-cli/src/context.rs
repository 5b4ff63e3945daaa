//! What most commands start from: the topology, the repository, the drivers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use muster_engine::driver::StoreDriver;
use muster_inspect::{InspectError, SiteAt};
use muster_repo::catalog::{self, CatalogQuery, Sites};
use muster_repo::{Repository, S3Config, S3Objects, topologies};
use muster_s3_server::{Guard, ServerConfig};
use muster_types::catalog::Catalog;
use muster_types::topology::{RepositoryConfig, SiteFiles, Topology, TopologyVersion, differences};
use muster_types::{ShardName, SiteId, Timestamp};

use crate::commands::apply;
use crate::topology_place::TopologyPlace;
use crate::{exit, print};

/// The present moment; the one place that reads the clock for commands.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// A topology with what it was read from.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The topology.
    pub(crate) topology: Topology,
    /// The file.
    pub(crate) text: String,
    /// What is in the files that list its sites, by the names that the text has for them.
    pub(crate) site_lists: BTreeMap<String, String>,
}

/// Reads and validates the topology.
pub(crate) async fn topology(place: &TopologyPlace) -> Result<Topology> {
    Ok(load(place).await?.topology)
}

/// [`topology`], of a file.
pub(crate) fn topology_file(path: &Path) -> Result<Topology> {
    Ok(load_file(path)?.topology)
}

async fn load(place: &TopologyPlace) -> Result<Loaded> {
    match place {
        TopologyPlace::File(path) => load_file(path),
        TopologyPlace::Repository(config) => load_kept(config).await,
    }
}

/// Relative paths start at the file's folder.
fn load_file(path: &Path) -> Result<Loaded> {
    let base_dir = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let text = std::fs::read_to_string(path).map_err(|error| {
        exit::input(format!(
            "failed to read the topology `{}`: {error}; name it with --topology or MUSTER_TOPOLOGY, \
             begin with config/embedded.toml, or name a repository that keeps one, as s3://BUCKET/PREFIX",
            path.display()
        ))
    })?;
    let (mut files, mut site_lists) = (SiteFiles::new(), BTreeMap::new());
    for name in Topology::site_files(&text, Path::new("")) {
        let file = base_dir.join(&name);
        let list = std::fs::read_to_string(&file).map_err(|error| error.to_string());
        if let Ok(list) = &list {
            site_lists.insert(name.display().to_string(), list.clone());
        }
        files.insert(file, list);
    }
    let topology =
        Topology::parse_with(&text, &path.display().to_string(), base_dir, &files).map_err(exit::input)?;
    Ok(Loaded { topology, text, site_lists })
}

/// The newest version that a repository keeps; relative paths start at the current folder. The repository is where it was
/// found, whatever the text says.
async fn load_kept(config: &RepositoryConfig) -> Result<Loaded> {
    let requests = 1;
    let objects = S3Objects::connect(&s3_config(config, None, requests)).await?;
    let repository = Repository::open(Arc::new(objects)).await.context("failed to open the repository")?;
    let Some(kept) = topologies::newest(&repository).await? else {
        return Err(exit::input(
            "this repository keeps no topology; `muster capture` and `muster serve` store it, \
             and `muster repo topology store` does",
        ));
    };
    let name =
        format!("version {} of the topology in s3://{}/{}", kept.version, config.bucket, config.prefix);
    let mut topology = kept.parse(&name, Path::new(".")).map_err(exit::input)?;
    topology.repository = config.clone();
    Ok(Loaded { topology, text: kept.text, site_lists: kept.site_lists })
}

/// Topology and repository together, with the embedded server kept alive while this lives.
pub(crate) struct Context {
    /// The topology.
    pub(crate) topology: Topology,
    /// The repository.
    pub(crate) repository: Repository,
    text: String,
    site_lists: BTreeMap<String, String>,
    _guard: Option<Guard>,
}

impl Context {
    /// Opens an existing repository.
    pub(crate) async fn open(topology: &TopologyPlace) -> Result<Self> {
        Self::connect(topology, false).await
    }

    /// Opens the repository, creating bucket and repository if they are not there.
    pub(crate) async fn open_or_create(topology: &TopologyPlace) -> Result<Self> {
        Self::connect(topology, true).await
    }

    async fn connect(place: &TopologyPlace, create: bool) -> Result<Self> {
        let Loaded { topology, text, site_lists } = load(place).await?;
        let (guard, credentials) = embedded(&topology.repository).await?;
        let config = s3_config(&topology.repository, credentials, topology.limits.s3_requests);
        let objects = S3Objects::connect(&config).await?;
        let repository = if create {
            objects.ensure_bucket().await?;
            Repository::create(Arc::new(objects), now()).await?
        } else {
            Repository::open(Arc::new(objects)).await.context("failed to open the repository")?
        };
        Ok(Self { topology, repository, text, site_lists, _guard: guard })
    }

    /// Stores the topology as the newest version that the repository keeps, unless it is that already.
    pub(crate) async fn keep_topology(&self) -> Result<(TopologyVersion, bool)> {
        let what = (self.text.as_str(), &self.site_lists);
        Ok(topologies::store(&self.repository, what, (now(), &apply::operator())).await?)
    }

    /// [`Self::keep_topology`], where capture matters more: a failure is told, and no error.
    pub(crate) async fn keep_topology_or_tell(&self) {
        match self.keep_topology().await {
            Ok((kept, true)) => print::talk(format!("the topology is kept as version {}", kept.version)),
            Ok((_, false)) => {}
            Err(error) => print::talk(format!("warning: {error:#}")),
        }
    }

    /// How the newest version that the repository keeps differs from the topology, a line each; none where it keeps none.
    pub(crate) async fn kept_differences(&self) -> Result<Option<(TopologyVersion, Vec<String>)>> {
        let Some(kept) = topologies::newest(&self.repository).await? else { return Ok(None) };
        let mut lines = differences(&kept.text, &self.text);
        let names: BTreeSet<&String> = kept.site_lists.keys().chain(self.site_lists.keys()).collect();
        let differs = |name: &&&String| kept.site_lists.get(**name) != self.site_lists.get(**name);
        lines.extend(names.iter().filter(differs).map(|name| format!("the sites listed in {name}")));
        if lines.is_empty() && kept.text != self.text {
            lines.push("comments or layout only".to_owned());
        }
        Ok(Some((kept, lines)))
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

fn s3_config(repository: &RepositoryConfig, credentials_file: Option<PathBuf>, requests: u64) -> S3Config {
    S3Config {
        bucket: repository.bucket.clone(),
        prefix: repository.prefix.clone(),
        region: Some(repository.region.clone()),
        endpoint: repository.endpoint.clone(),
        path_style: repository.path_style,
        credentials_file,
        requests_in_flight: usize::try_from(requests).unwrap_or(usize::MAX),
    }
}

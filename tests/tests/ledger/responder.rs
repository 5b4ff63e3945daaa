//! What a responder does: looks at sites as they were, and brings them back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use futures::StreamExt as _;
use muster_inspect::{InspectError, SiteAt};
use muster_repo::catalog::{self, CatalogQuery, Sites};
use muster_repo::{Repository, S3Config, S3Objects};
use muster_rows::Class;
use muster_services::Minio;
use muster_tests::{Folder, Row, Rows};
use muster_types::catalog::Catalog;
use muster_types::format::FORMAT;
use muster_types::incident::{Incident, IncidentSite};
use muster_types::topology::Topology;
use muster_types::{SiteId, Timestamp};
use tokio::runtime::Runtime;

use super::bank::DECLARED;

/// Sites that are looked at at the same time.
const LOOKS_AT_ONCE: usize = 8;

/// The bank's topology, a folder to run commands in, and the repository.
pub(crate) struct Responder {
    pub(crate) folder: Folder,
    runtime: Runtime,
    repository: Option<Repository>,
    topology: Topology,
    minio: Minio,
}

impl Responder {
    /// For shards with these URLs; their repository is a new bucket of the shared MinIO.
    pub(crate) fn new(shards: &[String]) -> Self {
        let minio = Minio::shared().unwrap();
        let bucket = minio.create_bucket("ledger").unwrap();
        let mut text = format!(
            "fleet = 'bank'\n[repository]\nbucket = '{bucket}'\nregion = 'us-east-1'\nendpoint = '{}'\npath_style = true\n\
             [capture]\npoll_interval_milliseconds = 1000\nwatermark_interval_seconds = 2\n\
             [tiers.only]\nrto_seconds = 600\nrpo_seconds = 60\n{DECLARED}",
            minio.endpoint()
        );
        for (number, url) in shards.iter().enumerate() {
            text += &format!(
                "[shards.bank-{number}]\ndriver = 'postgres'\nconnection = '{url}'\nregion = 'here'\n\
                 kinds = ['metadata', 'product:ledger']\nstage_slots = 4\npublish_slots = 4\nwriter_block_milliseconds_max = 20000\n"
            );
        }
        let keys = [("AWS_ACCESS_KEY_ID", minio.access_key()), ("AWS_SECRET_ACCESS_KEY", minio.secret_key())];
        let folder = Folder::new(&text, keys.map(|(name, value)| (name, value.to_owned())).to_vec());
        let topology =
            Topology::parse(&text, "muster.toml", Path::new(".")).unwrap_or_else(|errors| panic!("{errors}"));
        Self { folder, runtime: Runtime::new().unwrap(), repository: None, topology, minio }
    }

    fn repository(&mut self) -> Repository {
        let file = self.folder.path("credentials");
        let (key, secret) = (self.minio.access_key(), self.minio.secret_key());
        let text = format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n");
        std::fs::write(&file, text).unwrap();
        let place = &self.topology.repository;
        let config = S3Config {
            bucket: place.bucket.clone(),
            prefix: place.prefix.clone(),
            region: Some(place.region.clone()),
            endpoint: place.endpoint.clone(),
            path_style: place.path_style,
            credentials_file: Some(file),
            requests_in_flight: 32,
        };
        let open = async {
            let objects = S3Objects::connect(&config).await.unwrap();
            Repository::open(Arc::new(objects)).await.unwrap()
        };
        let runtime = &self.runtime;
        self.repository.get_or_insert_with(|| runtime.block_on(open)).clone()
    }

    /// What the repository holds of these sites.
    pub(crate) fn catalog(&mut self, sites: impl Iterator<Item = String>) -> Catalog {
        let repository = self.repository();
        let sites: BTreeSet<SiteId> = sites.map(|site| SiteId::new(site).unwrap()).collect();
        let query = CatalogQuery { sites: Sites::Some(sites), shards: None };
        self.runtime.block_on(catalog::read(&repository, &query, Timestamp::EPOCH)).unwrap()
    }

    /// The rows of sites at moments, as the repository tells them.
    pub(crate) fn look(&mut self, catalog: &Catalog, wanted: &[(String, Timestamp)]) -> Vec<Rows> {
        let (repository, topology) = (self.repository(), &self.topology);
        let looks = wanted.iter().map(|(site, at)| look(topology, &repository, catalog, site, *at));
        self.runtime.block_on(futures::stream::iter(looks).buffered(LOOKS_AT_ONCE).collect())
    }

    /// Waits until capture has recorded everything up to now.
    pub(crate) fn wait(&self) {
        self.folder.muster(&["capture", "wait", "--covers", "now"]).ok();
    }

    /// Brings sites back, each to its own moment.
    pub(crate) fn restore(&self, run: &str, targets: &BTreeMap<String, Timestamp>) {
        let one = |(site, target): (&String, &Timestamp)| IncidentSite {
            site: SiteId::new(site.as_str()).unwrap(),
            target: *target,
            outage_at: None,
            before: BTreeMap::new(),
            note: None,
        };
        let incident = Incident {
            format: FORMAT,
            title: format!("round {run}"),
            declared_at: *targets.values().max().expect("a target"),
            id_source: "the test".to_owned(),
            sites: targets.iter().map(one).collect(),
        };
        std::fs::write(self.folder.path("incident.toml"), toml::to_string(&incident).unwrap()).unwrap();
        let planned = self.folder.muster(&["plan", "--incident", "incident.toml", "--out", "plan.json"]);
        planned.ok().says(&[&format!("{} sites", targets.len()), "next: muster apply plan.json"]);
        let applied = self.folder.muster(&["apply", "plan.json", "--run", run]);
        applied.ok().says(&[&format!("{} sites restored, 0 not", targets.len())]);
    }
}

async fn look(
    topology: &Topology,
    repository: &Repository,
    catalog: &Catalog,
    site: &str,
    at: Timestamp,
) -> Rows {
    let found = match SiteAt::find(topology, catalog, &SiteId::new(site).unwrap(), at) {
        Ok(found) => found,
        Err(InspectError::Nothing { .. }) => return Rows::new(),
        Err(error) => panic!("{site} at {at}: {error}"),
    };
    let mut rows = Rows::new();
    for (store, table) in found.tables() {
        let names: Vec<&str> = table.def.stored_columns().map(|column| column.name.as_str()).collect();
        let mut of_table: Vec<Row> = Vec::new();
        let emit =
            |batch: Vec<muster_rows::Row>| of_table.extend(batch.iter().map(|row| by_name(&names, row)));
        let read = store.rows(repository, &table.def.name, emit).await;
        read.unwrap_or_else(|error| panic!("{} of {site} at {at}: {error}", table.def.name));
        of_table.sort();
        if !of_table.is_empty() {
            rows.insert((site.to_owned(), table.def.name.clone()), of_table);
        }
    }
    rows
}

fn by_name(names: &[&str], row: &muster_rows::Row) -> Row {
    let value = |field: muster_rows::Field<'_>| match field.class {
        Class::Null => None,
        _ => Some(String::from_utf8(field.bytes.to_vec()).unwrap()),
    };
    names.iter().map(|name| (*name).to_owned()).zip(row.fields().map(value)).collect()
}

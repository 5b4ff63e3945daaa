//! What the directory and licence rows of sites said at their targets.

use std::collections::BTreeMap;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use muster_plan::stores::{StoreToProbe, select_stores};
use muster_repo::{RangeReader, Repository, rows};
use muster_rows::{Class, Row};
use muster_types::catalog::{Catalog, SiteFacts};
use muster_types::incident::IncidentSite;
use muster_types::table::CapturedTable;
use muster_types::topology::{Topology, is_true};
use muster_types::{Kind, SiteId};

use crate::error::InspectError;
use crate::site::{FOLD_BYTES_MAX, StoreAt, reader};

/// Tables read at once: enough to hide the latency of a request.
const TABLES_IN_FLIGHT: usize = 16;

/// Fills [`SiteHistory::facts`](muster_types::catalog::SiteHistory::facts) of every site of `sites` from the rows at
/// its target. Sites without a directory row keep what they had. Where an object with such rows is missing or damaged,
/// [`SiteHistory::facts_unread`](muster_types::catalog::SiteHistory::facts_unread) says so: it costs that site's facts
/// and no other's.
///
/// # Errors
/// [`InspectError`].
pub async fn read_facts(
    repository: &Repository,
    topology: &Topology,
    catalog: &mut Catalog,
    sites: &[IncidentSite],
) -> Result<(), InspectError> {
    let wanted = wanted(topology, catalog, sites)?;
    let reader = reader(
        repository,
        wanted.iter().filter_map(|(store, table)| Some((store.table(table)?.1, store.objects()))),
    );
    let read: Vec<(SiteId, Read)> = stream::iter(&wanted)
        .map(async |(store, table)| {
            Ok::<_, InspectError>((
                store.store.store.site.clone(),
                one_or_harm(&reader, topology, store, table).await?,
            ))
        })
        .buffer_unordered(TABLES_IN_FLIGHT)
        .try_collect()
        .await?;
    for (site, read) in read {
        let Some(history) = catalog.sites.get_mut(&site) else { continue };
        match read {
            Read::Facts(facts) => {
                let known = history.facts.get_or_insert_with(SiteFacts::default);
                facts.into_iter().for_each(|fact| fact.apply(known));
            }
            Read::Harmed(message) => history.facts_unread = Some(message),
        }
    }
    Ok(())
}

/// What came of reading one table of one site.
enum Read {
    Facts(Vec<Fact>),
    /// An object is missing or damaged: in words.
    Harmed(String),
}

async fn one_or_harm(
    reader: &RangeReader,
    topology: &Topology,
    store: &StoreAt,
    table: &str,
) -> Result<Read, InspectError> {
    match one(reader, topology, store, table).await {
        Ok(facts) => Ok(Read::Facts(facts)),
        Err(InspectError::Repository(error)) if error.is_harm() => Ok(Read::Harmed(error.message)),
        Err(error) => Err(error),
    }
}

/// The stores to read and the table of each.
fn wanted(
    topology: &Topology,
    catalog: &Catalog,
    sites: &[IncidentSite],
) -> Result<Vec<(StoreAt, String)>, InspectError> {
    let mut tables: BTreeMap<&Kind, Vec<&str>> = BTreeMap::new();
    tables.entry(&topology.directory.kind).or_default().push(&topology.directory.table);
    if let Some(licences) = &topology.licences {
        tables.entry(&licences.kind).or_default().push(&licences.table);
    }
    let mut wanted = Vec::new();
    for store in select_stores(topology, catalog, sites)? {
        for table in tables.get(&store.store.kind).into_iter().flatten() {
            wanted.push((store.clone(), (*table).to_owned()));
        }
    }
    let read = |(store, table): (StoreToProbe, String)| Ok((StoreAt::read(catalog, store)?, table));
    wanted.into_iter().map(read).collect()
}

async fn one(
    reader: &RangeReader,
    topology: &Topology,
    store: &StoreAt,
    name: &str,
) -> Result<Vec<Fact>, InspectError> {
    let mut facts = Vec::new();
    if let Some((table, input)) = store.table(name) {
        let sink = |rows: Vec<Row>| {
            facts.extend(rows.iter().flat_map(|row| facts_of(topology, table, row)));
            std::future::ready(Ok::<(), InspectError>(()))
        };
        rows::table_rows(reader, table, input, store.objects(), FOLD_BYTES_MAX, sink).await?;
    }
    Ok(facts)
}

/// One thing that a row says.
enum Fact {
    Directory(Box<SiteFacts>),
    Licensed(Kind),
}

impl Fact {
    fn apply(self, facts: &mut SiteFacts) {
        match self {
            Self::Directory(said) => {
                let licensed = std::mem::take(&mut facts.licensed);
                *facts = SiteFacts { licensed, ..*said };
            }
            Self::Licensed(kind) => {
                if let Err(place) = facts.licensed.binary_search(&kind) {
                    facts.licensed.insert(place, kind);
                }
            }
        }
    }
}

fn facts_of(topology: &Topology, table: &CapturedTable, row: &Row) -> Vec<Fact> {
    let mut facts = Vec::new();
    if table.def.name == topology.directory.table {
        let said = topology.directory.columns.facts(|column| text_of(table, row, column));
        facts.push(Fact::Directory(Box::new(said)));
    }
    if let Some(licences) = topology.licences.as_ref().filter(|licences| licences.table == table.def.name) {
        let active = licences
            .active_column
            .as_deref()
            .is_none_or(|column| text_of(table, row, column).is_some_and(|value| is_true(&value)));
        let kind = text_of(table, row, &licences.product_column).and_then(|kind| kind.parse().ok());
        facts.extend(kind.filter(|_| active).map(Fact::Licensed));
    }
    facts
}

fn text_of(table: &CapturedTable, row: &Row, column: &str) -> Option<String> {
    let number = table.def.stored_columns().position(|candidate| candidate.name == column)?;
    let field = row.get(number).filter(|field| field.class != Class::Null)?;
    Some(String::from_utf8_lossy(field.bytes).into_owned())
}

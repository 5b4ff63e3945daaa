//! `muster diff`: a site at two moments, or at one and live.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::Args;
use muster_engine::driver::StoreProbe;
use muster_inspect::{Difference, InspectError, SiteAt, StoreAt, TableImage};
use muster_types::catalog::Catalog;
use muster_types::table::CapturedTable;
use muster_types::{SiteId, Timestamp};
use tokio::sync::mpsc;

use crate::context::Context;
use crate::topology_place::TopologyPlace;
use crate::{exit, print, select};

/// Batches of live rows that wait to be compared.
const LIVE_BATCHES_MAX: usize = 4;

/// Arguments of `muster diff`.
#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// The site, as `site:ID`.
    site: String,
    /// The earlier moment: RFC 3339 or `5m ago`.
    #[arg(long, value_name = "TIME")]
    from: String,
    /// The later moment, or `live` for what stands in the shards now.
    #[arg(long, value_name = "TIME|live", default_value = "live")]
    to: String,
    /// Most keys listed per table.
    #[arg(long, default_value_t = 5)]
    limit: usize,
}

/// The later state.
enum Later {
    At(SiteAt),
    Live,
}

pub(crate) async fn run(topology: &TopologyPlace, args: DiffArgs) -> Result<ExitCode> {
    let site: SiteId = args.site.parse().map_err(exit::input)?;
    let from = select::moment(&args.from)?;
    let context = Context::open(topology).await?;
    let catalog = context.catalog_of([site.clone()]).await?;
    let earlier = at(&context, &catalog, &site, from)?;
    let later = match args.to.as_str() {
        "live" => Later::Live,
        text => Later::At(at(&context, &catalog, &site, select::moment(text)?)?),
    };
    let differences = compare(&context, &earlier, &later).await?;
    show(&earlier, &args, &differences);
    let equal = differences.values().all(Difference::is_empty);
    Ok(if equal { ExitCode::SUCCESS } else { ExitCode::from(exit::Exit::Partial as u8) })
}

/// The site at a moment; one without any store there is a state like others.
fn at(context: &Context, catalog: &Catalog, site: &SiteId, at: Timestamp) -> Result<SiteAt> {
    match SiteAt::find(&context.topology, catalog, site, at) {
        Err(InspectError::Nothing { .. }) => Ok(SiteAt { site: site.clone(), at, stores: Vec::new() }),
        found => Ok(found?),
    }
}

async fn compare(context: &Context, earlier: &SiteAt, later: &Later) -> Result<BTreeMap<String, Difference>> {
    let mut images: BTreeMap<String, TableImage> = BTreeMap::new();
    for (store, table) in earlier.tables() {
        let image = images.entry(table.def.name.clone()).or_default();
        store
            .rows(&context.repository, &table.def.name, |rows| {
                rows.iter().for_each(|row| image.add(table, row));
            })
            .await?;
    }
    let mut differences: BTreeMap<String, Difference> = BTreeMap::new();
    match later {
        Later::At(later) => {
            for (store, table) in later.tables() {
                let image = images.entry(table.def.name.clone()).or_default();
                let difference = differences.entry(table.def.name.clone()).or_default();
                let compare =
                    |rows: Vec<_>| rows.iter().for_each(|row| image.compare(table, row, difference));
                store.rows(&context.repository, &table.def.name, compare).await?;
            }
        }
        Later::Live => {
            for store in &earlier.stores {
                live(context, store, &mut images, &mut differences).await?;
            }
        }
    }
    for (name, image) in images {
        image.finish(differences.entry(name).or_default());
    }
    Ok(differences)
}

/// Compares with the live rows of the store's tables, in the columns that they had.
async fn live(
    context: &Context,
    store: &StoreAt,
    images: &mut BTreeMap<String, TableImage>,
    differences: &mut BTreeMap<String, Difference>,
) -> Result<()> {
    let shard = &store.store.shard;
    let drivers = context.drivers();
    let driver = drivers.get(shard).with_context(|| format!("the topology has no shard {shard}"))?.clone();
    let tables: Arc<Vec<CapturedTable>> = Arc::new(store.tables().cloned().collect());
    let probe = StoreProbe { store: store.store.store.clone(), tables: Arc::clone(&tables) };
    let (sender, mut batches) = mpsc::channel(LIVE_BATCHES_MAX);
    let reading = tokio::spawn(async move { driver.live_rows(&probe, sender).await });
    while let Some(batch) = batches.recv().await {
        let Some(table) = tables.get(batch.table) else { continue };
        let image = images.entry(table.def.name.clone()).or_default();
        let difference = differences.entry(table.def.name.clone()).or_default();
        batch.rows.iter().for_each(|row| image.compare(table, row, difference));
    }
    reading.await?.with_context(|| format!("failed to read shard {shard}"))
}

fn show(earlier: &SiteAt, args: &DiffArgs, differences: &BTreeMap<String, Difference>) {
    print::data(format!("{} from {} to {}", earlier.site, earlier.at, args.to));
    let (equal, different): (Vec<_>, Vec<_>) =
        differences.iter().partition(|(_, difference)| difference.is_empty());
    if !equal.is_empty() {
        let rows = equal.iter().map(|(_, difference)| difference.same).sum();
        print::data(format!("no difference in {} tables with {} rows", equal.len(), print::count(rows)));
    }
    if different.is_empty() {
        return;
    }
    let rows = different.iter().map(|(table, difference)| {
        let counts =
            [&difference.added, &difference.removed, &difference.changed].map(|keys| keys.len() as u64);
        let mut cells = vec![(*table).clone()];
        cells.extend(counts.map(print::count));
        cells.push(print::count(difference.same));
        cells
    });
    let header = ["table", "added", "removed", "changed", "same"];
    print::data(print::table(&header, &header[1..], rows));
    for (table, difference) in differences {
        let lists = [
            ("added", &difference.added),
            ("removed", &difference.removed),
            ("changed", &difference.changed),
        ];
        for (verb, keys) in lists.into_iter().filter(|(_, keys)| !keys.is_empty()) {
            let shown: BTreeSet<&str> = keys.iter().take(args.limit).map(String::as_str).collect();
            let more = keys.len().saturating_sub(args.limit);
            let tail = if more > 0 { format!(" … and {more} more") } else { String::new() };
            print::data(format!("{table} {verb}: {}{tail}", shown.into_iter().collect::<Vec<_>>().join(" ")));
        }
    }
}

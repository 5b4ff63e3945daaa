//! `muster repo stats`: what lies in the repository, and what it costs.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use muster_repo::keys;
use muster_types::SiteId;
use muster_types::catalog::Catalog;
use muster_types::snapshot::Chunk;
use serde::Serialize;

use crate::context::Context;
use crate::{exit, print};

/// Bytes of a gibibyte.
const GIB: f64 = (1u64 << 30) as f64;

/// Arguments of `muster repo stats`.
#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    /// Also what is held of this site; may be given more than once.
    #[arg(long, value_name = "SITE")]
    site: Vec<SiteId>,
    /// Price of a GiB a month, in any currency, for the cost of each shard.
    #[arg(long, value_name = "PRICE")]
    gib_month_price: Option<f64>,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

/// Objects and bytes.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Amount {
    objects: u64,
    bytes: u64,
}

/// By shard (or folder at the top), by part: objects and bytes.
type Amounts = BTreeMap<String, BTreeMap<&'static str, Amount>>;

pub(crate) async fn run(context: &Context, args: StatsArgs) -> Result<ExitCode> {
    if args.gib_month_price.is_some_and(|price| !price.is_finite() || price < 0.0) {
        return Err(exit::input("--gib-month-price is the price of a GiB a month, such as 0.023"));
    }
    let mut amounts = Amounts::new();
    for entry in context.repository.objects().list("", None).await? {
        let (owner, part) = place(&entry.key);
        let amount = amounts.entry(owner).or_default().entry(part).or_default();
        amount.objects += 1;
        amount.bytes += entry.bytes;
    }
    let sites = match args.site.is_empty() {
        true => BTreeMap::new(),
        false => of_sites(&context.catalog_of(args.site.iter().cloned()).await?, &args.site),
    };
    if args.json {
        print::data(serde_json::to_string_pretty(&serde_json::json!({ "shards": amounts, "sites": sites }))?);
        return Ok(ExitCode::SUCCESS);
    }
    show(&amounts, args.gib_month_price);
    for (site, bytes) in sites {
        print::data(format!("{site}: {} of rows and changes, compressed", print::bytes(bytes)));
    }
    Ok(ExitCode::SUCCESS)
}

/// To what an object belongs.
fn place(key: &str) -> (String, &'static str) {
    let Some((shard, rest)) = key.strip_prefix(keys::SHARDS).and_then(|rest| rest.split_once('/')) else {
        let folder = key.split_once('/').map_or("repository", |(folder, _)| folder);
        return (format!("({folder})"), "documents");
    };
    let part = match rest.split('/').nth(1) {
        Some("snapshots") => "snapshots",
        Some("log") => "log",
        Some("compacted") => "compacted",
        _ => "documents",
    };
    (shard.to_owned(), part)
}

/// Compressed bytes of the chunks that hold something of each site; chunks of compacted segments once.
fn of_sites(catalog: &Catalog, sites: &[SiteId]) -> BTreeMap<SiteId, u64> {
    let bytes = |site: &SiteId| {
        let traces = catalog.sites.get(site).map_or(&[][..], |site| &site.traces);
        let mut chunks = BTreeSet::new();
        let mut add = |object: &str, of: &[Chunk]| {
            chunks.extend(of.iter().map(|chunk| (object.to_owned(), chunk.offset, chunk.bytes)));
        };
        for trace in traces {
            let history = format!("{} {}", trace.shard, trace.incarnation);
            for (snapshot, slices) in &trace.snapshots {
                for slice in slices {
                    add(&format!("{history} snapshot {snapshot} pack {}", slice.pack), &slice.chunks);
                }
            }
            for (segment, frames) in &trace.segments {
                for frame in frames {
                    match &frame.place {
                        Some(place) => add(&place.object.key, &frame.chunks),
                        None => add(&format!("{history} segment {segment}"), &frame.chunks),
                    }
                }
            }
        }
        chunks.iter().map(|(_, _, bytes)| bytes).sum()
    };
    sites.iter().map(|site| (site.clone(), bytes(site))).collect()
}

fn show(amounts: &Amounts, price: Option<f64>) {
    let mut rows = Vec::new();
    let mut whole = Amount::default();
    for (owner, parts) in amounts {
        let of = |part| parts.get(part).map_or(0, |amount: &Amount| amount.bytes);
        let objects: u64 = parts.values().map(|amount| amount.objects).sum();
        let bytes: u64 = parts.values().map(|amount| amount.bytes).sum();
        whole = Amount { objects: whole.objects + objects, bytes: whole.bytes + bytes };
        rows.push(row(owner, objects, [of("snapshots"), of("log"), of("compacted"), bytes], price));
    }
    let part = |part| amounts.values().filter_map(|parts| parts.get(part)).map(|amount| amount.bytes).sum();
    rows.push(row(
        "all",
        whole.objects,
        [part("snapshots"), part("log"), part("compacted"), whole.bytes],
        price,
    ));
    let header = ["shard", "objects", "snapshots", "log", "compacted", "bytes", "a month"];
    let count = if price.is_some() { header.len() } else { header.len() - 1 };
    print::data(print::table(&header[..count], &header[1..], rows));
}

fn row(name: &str, objects: u64, bytes: [u64; 4], price: Option<f64>) -> Vec<String> {
    let mut row = vec![name.to_owned(), print::count(objects)];
    row.extend(bytes.iter().map(|bytes| print::bytes(*bytes)));
    row.extend(price.map(|price| format!("{:.2}", bytes[3] as f64 / GIB * price)));
    row
}

//! `muster show`: what a site was at a moment.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use muster_inspect::{SiteAt, StoreAt};
use muster_rows::{Class, Row};
use muster_types::SiteId;
use muster_types::table::CapturedTable;

use crate::context::Context;
use crate::topology_place::TopologyPlace;
use crate::{exit, print, select};

/// Most characters of a value that the terminal shows.
const VALUE_CHARACTERS_MAX: usize = 40;

/// Arguments of `muster show`.
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// The site, as `site:ID`.
    site: String,
    /// The moment: RFC 3339, `now`, or `5m ago`.
    #[arg(long, value_name = "TIME", default_value = "now")]
    at: String,
    /// Show the rows of this table.
    #[arg(long, value_name = "NAME")]
    table: Option<String>,
    /// Most rows shown.
    #[arg(long, default_value_t = 20)]
    limit: usize,
}

pub(crate) async fn run(topology: &TopologyPlace, args: ShowArgs) -> Result<ExitCode> {
    let site: SiteId = args.site.parse().map_err(exit::input)?;
    let at = select::moment(&args.at)?;
    let context = Context::open(topology).await?;
    let catalog = context.catalog_of([site.clone()]).await?;
    let found = context.site_at(&catalog, &site, at)?;
    match &args.table {
        Some(table) => show_table(&context, &found, table, args.limit).await?,
        None => show_stores(&context, &found).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn show_stores(context: &Context, site: &SiteAt) -> Result<()> {
    print::data(format!("{} at {}", site.site, site.at));
    for store in &site.stores {
        let point = &store.store.point;
        print::data("");
        print::data(format!(
            "{} in {} · state of {} ({})",
            store.store.store.kind, store.store.source, point.boundary.at, point.because
        ));
        let mut rows = Vec::new();
        for table in store.tables() {
            let read = store.rows(&context.repository, &table.def.name, drop).await?;
            rows.push(vec![table.def.name.clone(), print::count(read.rows), read.digest.short()]);
        }
        print::data(print::table(&["table", "rows", "digest"], &["rows"], rows));
    }
    print::talk(format!("rows of one table: muster show {} --at {} --table NAME", site.site, site.at));
    Ok(())
}

async fn show_table(context: &Context, site: &SiteAt, name: &str, limit: usize) -> Result<()> {
    let Some((store, table)) = site.tables().find(|(_, table)| table.def.name == name) else {
        let names: Vec<&str> = site.tables().map(|(_, table)| table.def.name.as_str()).collect();
        return Err(exit::input(format!(
            "{} had no table `{name}` at {}; it had {}",
            site.site,
            site.at,
            names.join(", ")
        )));
    };
    let (rows, total) = first_rows(context, store, table, limit).await?;
    let header: Vec<&str> = table.def.stored_columns().map(|column| column.name.as_str()).collect();
    print::data(print::table(&header, &[], rows.iter().map(cells)));
    print::talk(format!(
        "{} of {} rows, as of {}",
        rows.len(),
        print::count(total),
        store.store.point.boundary.at
    ));
    Ok(())
}

async fn first_rows(
    context: &Context,
    store: &StoreAt,
    table: &CapturedTable,
    limit: usize,
) -> Result<(Vec<Row>, u64)> {
    let mut kept = Vec::new();
    let keep = |rows: Vec<Row>| kept.extend(rows.into_iter().take(limit.saturating_sub(kept.len())));
    let read = store.rows(&context.repository, &table.def.name, keep).await?;
    Ok((kept, read.rows))
}

fn cells(row: &Row) -> Vec<String> {
    row.fields()
        .map(|field| match field.class {
            Class::Null => "NULL".to_owned(),
            Class::Blob => format!("x'…' ({} bytes)", field.bytes.len()),
            _ => cut(&String::from_utf8_lossy(field.bytes)),
        })
        .collect()
}

fn cut(text: &str) -> String {
    if text.chars().count() <= VALUE_CHARACTERS_MAX {
        return text.to_owned();
    }
    text.chars().take(VALUE_CHARACTERS_MAX - 1).chain(['…']).collect()
}

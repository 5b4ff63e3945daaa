//! `muster export`: a site as it was, in files that sqlite3 or psql load.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use muster_inspect::export::{self, Dialect};
use muster_inspect::{InspectError, StoreAt};
use muster_types::SiteId;
use muster_types::topology::DriverConfig;

use crate::context::Context;
use crate::topology_place::TopologyPlace;
use crate::{exit, print, select};

/// Arguments of `muster export`.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The site, as `site:ID`.
    site: String,
    /// The moment: RFC 3339, `now`, or `5m ago`.
    #[arg(long, value_name = "TIME")]
    at: String,
    /// The folder to write into, one file a store; files that are there are not overwritten.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What will load the files; without it, the client of each store's shard.
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Begin each file with the tables' definitions, for loading into an empty database. Types and functions that they use
    /// have to be there.
    #[arg(long)]
    with_definitions: bool,
}

/// What will load the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// `sqlite3 FILE < export.sql`
    Sqlite,
    /// `psql -f export.sql`
    Postgres,
}

pub(crate) async fn run(topology: &TopologyPlace, args: ExportArgs) -> Result<ExitCode> {
    let site: SiteId = args.site.parse().map_err(exit::input)?;
    let at = select::moment(&args.at)?;
    let context = Context::open(topology).await?;
    let catalog = context.catalog_of([site.clone()]).await?;
    let found = context.site_at(&catalog, &site, at)?;
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("failed to create `{}`", args.out.display()))?;
    for store in &found.stores {
        let dialect = dialect(&context, store, &args)?;
        let path = args.out.join(format!("{}.{}.sql", site.as_str(), store.store.store.kind.file_name()));
        let rows = write_store(&context, store, dialect, args.with_definitions, &path).await?;
        print::data(format!("{}\t{rows} rows\tas of {}", path.display(), store.store.point.boundary.at));
    }
    Ok(ExitCode::SUCCESS)
}

fn dialect(context: &Context, store: &StoreAt, args: &ExportArgs) -> Result<Dialect> {
    let shard = &store.store.shard;
    let native = match context.topology.shards[shard].driver {
        DriverConfig::Sqlite { .. } => Format::Sqlite,
        DriverConfig::Postgres { .. } => Format::Postgres,
    };
    let format = args.format.unwrap_or(native);
    if args.with_definitions && format != native {
        let native = native.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        return Err(exit::input(format!(
            "the definitions of shard `{shard}` can only be loaded by the client of its own kind: leave --with-definitions \
             out and make the tables first, or export with --format {native}"
        )));
    }
    Ok(match format {
        Format::Sqlite => Dialect::Sqlite,
        Format::Postgres => Dialect::Postgres,
    })
}

async fn write_store(
    context: &Context,
    store: &StoreAt,
    dialect: Dialect,
    with_definitions: bool,
    path: &Path,
) -> Result<u64> {
    let failed = || format!("failed to write `{}`", path.display());
    let mut out = BufWriter::new(File::create_new(path).with_context(failed)?);
    let mut rows = 0;
    export::begin(dialect, &mut out).with_context(failed)?;
    for table in store.tables() {
        export::begin_table(dialect, table, with_definitions, &mut out).with_context(failed)?;
        let mut written: Result<(), InspectError> = Ok(());
        let read = store
            .rows(&context.repository, &table.def.name, |batch| {
                for row in &batch {
                    if written.is_ok() {
                        written = export::row(dialect, table, row, &mut out);
                    }
                }
            })
            .await?;
        written.with_context(failed)?;
        rows += read.rows;
        export::end_table(dialect, &mut out).with_context(failed)?;
    }
    if with_definitions {
        let tables: Vec<_> = store.tables().collect();
        export::foreign_keys(&tables, &mut out).with_context(failed)?;
    }
    export::end(&mut out).with_context(failed)?;
    out.flush().with_context(failed)?;
    Ok(rows)
}

//! `muster drill history`: what drills have proven.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use muster_drill::history::{self, Fleet, Stretch};
use muster_repo::{DrillObjects, catalog};
use muster_types::Timestamp;
use muster_types::drill_history::{Coverage, DrillHistory, ForecastErrors};
use muster_types::topology::KindMode;

use crate::context::{self, Context};
use crate::topology_place::TopologyPlace;
use crate::{exit, print};

/// Names of what was never proven that the terminal shows; `--json` has all.
const NEVER_MAX: usize = 5;

/// Arguments of `muster drill history`.
#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Drills of the last so many days count as proof.
    #[arg(long, default_value_t = 30)]
    days: u32,
    /// A figure of a drill above so many times the median of those before it is an alarm.
    #[arg(long, default_value_t = 2.0)]
    factor: f64,
    /// Print everything as JSON.
    #[arg(long)]
    json: bool,
    /// Write the history as one self-contained HTML file, with pictures.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

pub(crate) async fn run(topology: &TopologyPlace, args: HistoryArgs) -> Result<ExitCode> {
    if !(args.factor.is_finite() && args.factor >= 1.0) {
        return Err(exit::input(format!("--factor {} is not a number of at least 1", args.factor)));
    }
    let context = Context::open(topology).await?;
    let records = DrillObjects::new(&context.repository).records(Timestamp::EPOCH).await?;
    let sites = catalog::list_sites(&context.repository, None).await?;
    let topology = &context.topology;
    let restored = topology.kinds.iter().filter(|(_, config)| config.mode == KindMode::Restored);
    let fleet = Fleet {
        sites: sites.into_keys().collect(),
        shards: topology.shards.keys().cloned().collect(),
        kinds: restored.map(|(kind, _)| kind.clone()).collect(),
    };
    let stretch = Stretch::last_days(args.days, context::now());
    let found = history::history(&records, &fleet, stretch, args.factor);
    if let Some(path) = &args.html {
        let page = muster_dashboard::drill_page(&found);
        std::fs::write(path, page).with_context(|| format!("failed to write `{}`", path.display()))?;
        print::talk(format!("wrote {}", path.display()));
    }
    if args.json {
        print::data(serde_json::to_string_pretty(&found)?);
    } else {
        show(&found, args.days);
    }
    if found.alarms.is_empty() {
        Ok(ExitCode::SUCCESS)
    } else {
        Ok(ExitCode::from(exit::Exit::Partial as u8))
    }
}

fn show(history: &DrillHistory, days: u32) {
    print::data(format!("proven in the last {days} days"));
    let rows = [row("sites", &history.sites), row("shards", &history.shards), row("kinds", &history.kinds)];
    print::data(print::table(
        &["", "proven", "of", "share", "never proven"],
        &["proven", "of", "share"],
        rows,
    ));
    match history.moments {
        Some((first, last)) => {
            let days = history.days.iter().filter(|day| day.moments > 0).count();
            print::data(format!("moments from {first} to {last}, of {days} of {} days", history.days.len()));
        }
        None => print::data("no moment"),
    }
    print::data("");
    let time = |at: Option<Timestamp>| at.map_or_else(|| "never".to_owned(), |at| at.to_string());
    let classes = history.classes.iter().map(|class| {
        vec![
            class.class.name().to_owned(),
            time(class.proven_at),
            time(class.failed_at),
            print::count(class.drills),
        ]
    });
    print::data(print::table(&["class", "last proven", "last failed", "drills"], &["drills"], classes));
    if !history.trends.is_empty() {
        print::data("");
        let figure = |of: Option<f64>| of.map(print::seconds).unwrap_or_default();
        let rate = |of: Option<f64>| of.map(|rate| format!("{rate:.0}")).unwrap_or_default();
        let rows = history.trends.iter().map(|trend| {
            vec![
                trend.name.clone(),
                figure(trend.rto_seconds),
                figure(trend.rto_median_seconds),
                figure(trend.rpo_seconds),
                figure(trend.rpo_median_seconds),
                rate(trend.rows_per_second),
                rate(trend.rows_per_second_median),
            ]
        });
        let header = ["drill", "RTO p95", "median", "RPO", "median of RPO", "rows/s", "median of rows/s"];
        print::data(print::table(&header, &header[1..], rows));
    }
    if let Some(forecast) = &history.forecast {
        show_forecast("at the start", &forecast.at_start);
        if let Some(tenth) = &forecast.at_tenth {
            show_forecast("with a tenth done", tenth);
        }
    }
    for alarm in &history.alarms {
        print::data(format!("ALARM {alarm}"));
    }
}

fn show_forecast(when: &str, errors: &ForecastErrors) {
    print::data(format!(
        "forecasts {when}: {} runs, off by {:.0} % (median) and {:.0} % (p95); {:.0} % within 15 %, {:.0} % within their range",
        errors.runs,
        errors.error_median * 100.0,
        errors.error_p95 * 100.0,
        errors.near_share * 100.0,
        errors.in_range_share * 100.0
    ));
}

fn row<T: ToString>(name: &str, coverage: &Coverage<T>) -> Vec<String> {
    let share = match coverage.all {
        0 => String::new(),
        all => format!("{:.0} %", coverage.proven as f64 * 100.0 / all as f64),
    };
    let mut never: Vec<String> = coverage.never.iter().take(NEVER_MAX).map(ToString::to_string).collect();
    let more = coverage.never.len().saturating_sub(NEVER_MAX);
    if more > 0 {
        never.push(format!("… and {more} more"));
    }
    vec![name.to_owned(), print::count(coverage.proven), print::count(coverage.all), share, never.join(", ")]
}

//! `muster simulate`: an incident of a given shape, run through four strategies under virtual time.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use muster_dashboard::{KnownPoint, RecoveryCurve, RecoveryPanel, recovery_svg};
use muster_forecast::simulate::{Point, Scenario, Simulated, simulate};

use crate::{exit, print};

/// Arguments of `muster simulate`.
#[derive(Debug, Args)]
pub(crate) struct SimulateArgs {
    /// The scenario, as in `config/atlassian-2022.toml`.
    scenario: PathBuf,
    /// Draw other sizes than those of the scenario's own seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Draw sites and users back over time, with what is known of the real course.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print the result as JSON, with all points of the curves.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &SimulateArgs) -> Result<ExitCode> {
    let scenario = read(&args.scenario)?;
    let simulated = simulate(&scenario, args.seed)?;
    if let Some(path) = &args.svg {
        std::fs::write(path, picture(&scenario, &simulated))
            .with_context(|| format!("failed to write `{}`", path.display()))?;
        print::talk(format!("wrote {}", path.display()));
    }
    if args.json {
        print::data(serde_json::to_string_pretty(&simulated)?);
    } else {
        show(&simulated, &args.scenario);
    }
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> Result<Scenario> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| exit::input(format!("failed to read the scenario `{}`: {error}", path.display())))?;
    Scenario::parse(&text).map_err(|error| {
        exit::input(format!(
            "scenario `{}`: {error}; `config/atlassian-2022.toml` explains each key",
            path.display()
        ))
    })
}

fn show(simulated: &Simulated, file: &Path) {
    print::data(format!("{} · {} sites · seed {}", simulated.title, simulated.sites, simulated.seed));
    let rows = simulated.outcomes.iter().map(|outcome| {
        vec![
            outcome.strategy.name().to_owned(),
            outcome.steps.map(print::count).unwrap_or_default(),
            long(outcome.makespan_seconds),
            long(outcome.rto_mean_seconds),
            long(outcome.rto_p95_seconds),
            print::count(outcome.misses),
        ]
    });
    let missed = format!("later than {}", print::seconds(simulated.rto_seconds as f64));
    let header = ["strategy", "steps", "all back after", "site RTO, mean", "p95", &missed];
    print::data(print::table(&header, &header[1..], rows));
    print::talk(format!(
        "what is fact, derived, measured or assumed stands in {}; RTO counts from each site's own deletion",
        file.display()
    ));
}

/// From three days on, in days.
fn long(seconds: f64) -> String {
    if seconds < 3.0 * 86_400.0 { print::seconds(seconds) } else { format!("{:.1} days", seconds / 86_400.0) }
}

fn picture(scenario: &Scenario, simulated: &Simulated) -> String {
    let began = scenario.incident.deletion_began_at;
    let panel = |title: &str, share: fn(&Point) -> f64, users: bool| RecoveryPanel {
        title: title.to_owned(),
        curves: simulated
            .outcomes
            .iter()
            .map(|outcome| RecoveryCurve {
                name: outcome.strategy.name().to_owned(),
                points: outcome.curve.iter().map(|point| (point.seconds, share(point))).collect(),
            })
            .collect(),
        known: scenario
            .known
            .iter()
            .map(|known| KnownPoint {
                seconds: known.at.seconds_since(began),
                // When all users are back, all sites are; between, only the users' share is known.
                share: known.users_share.filter(|&share| users || share == 1.0),
                label: known.label.clone().unwrap_or_default(),
            })
            .filter(|known| known.share.is_some() || !known.label.is_empty())
            .collect(),
    };
    let panels = [
        panel("sites back", |point| point.sites_share, false),
        panel("users back", |point| point.users_share, true),
    ];
    recovery_svg(&simulated.title, &panels, simulated.rto_seconds as f64)
}

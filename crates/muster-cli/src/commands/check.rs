//! `muster check`: the topology, the shards against it, and what the repository covers.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use muster_types::ShardName;
use muster_types::table::TableDef;
use muster_types::topology::Topology;

use crate::commands::families;
use crate::context::{self, Context};
use crate::topology_place::TopologyPlace;
use crate::{exit, print};

/// Arguments of `muster check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {}

pub(crate) async fn run(place: &TopologyPlace, _args: CheckArgs) -> Result<ExitCode> {
    let topology = context::topology(place).await?;
    let (mut problems, mut notes) = (Vec::new(), Vec::new());
    problems.extend(super::serve::schedules(&topology).err().map(|error| format!("{error:#}")));
    for shard in topology.shards.keys() {
        match look(&topology, shard) {
            Ok((found, noted)) => {
                problems.extend(found);
                notes.extend(noted.into_iter().map(|note| format!("shard {shard}: {note}")));
            }
            Err(error) => problems.push(format!("{error:#}")),
        }
    }
    let too_many = tokio::task::block_in_place(|| muster_capture::check_slots(&topology));
    problems.extend(too_many.iter().map(|(_, error)| error.to_string()));
    notes.extend(families::notes(&topology));
    notes.extend(kept(place).await);
    let kinds: Vec<String> = topology.kinds_in_order().iter().map(ToString::to_string).collect();
    print::data(format!(
        "{}: {} shards, {} tables; kinds in order: {}",
        topology.fleet,
        topology.shards.len(),
        topology.tables.len() + topology.site_tables.len() + topology.database_tables.len(),
        kinds.join(" → ")
    ));
    for note in &notes {
        print::data(format!("note: {note}"));
    }
    for problem in &problems {
        print::data(format!("problem: {problem}"));
    }
    if problems.is_empty() {
        print::data("the shards are as the topology says");
        return Ok(ExitCode::SUCCESS);
    }
    print::talk(format!("{} problems", problems.len()));
    Ok(ExitCode::from(exit::Exit::Input as u8))
}

/// Settings that differ, most of which nobody needs to see.
const DIFFERENCES_SHOWN: usize = 20;

/// What is to be said of the topology that the repository keeps.
async fn kept(place: &TopologyPlace) -> Vec<String> {
    let found = match Context::open(place).await {
        Ok(context) => context.kept_differences().await,
        Err(error) => Err(error),
    };
    let (kept, differing) = match found {
        Ok(Some((_, differing))) if differing.is_empty() => return Vec::new(),
        Ok(Some(found)) => found,
        Ok(None) => {
            return vec!["the repository keeps no topology yet; the next capture stores it".to_owned()];
        }
        Err(error) => {
            return vec![format!("whether the repository keeps this topology is not known: {error:#}")];
        }
    };
    let mut notes = vec![format!(
        "the repository keeps version {} of the topology, of {}, which differs; the next capture stores this one",
        kept.version, kept.stored_at
    )];
    notes.extend(differing.iter().take(DIFFERENCES_SHOWN).map(|line| format!("  kept → here: {line}")));
    if let Some(more) = differing.len().checked_sub(DIFFERENCES_SHOWN).filter(|more| *more > 0) {
        notes.push(format!("  … and {more} more settings"));
    }
    notes
}

/// Problems and notes of a shard: of its tables first, and of settings and rights once these are as declared.
fn look(topology: &Topology, shard: &ShardName) -> Result<(Vec<String>, Vec<String>)> {
    let problems = topology.check_shard(shard, &live_tables(topology, shard)?);
    if !problems.is_empty() {
        return Ok((problems.iter().map(ToString::to_string).collect(), Vec::new()));
    }
    let (found, notes) = tokio::task::block_in_place(|| muster_capture::check_shard(topology, shard))
        .with_context(|| format!("shard {shard}"))?;
    Ok((found.into_iter().map(|problem| format!("shard {shard}: {problem}")).collect(), notes))
}

/// The tables that a shard really has, without Muster's own.
pub(crate) fn live_tables(topology: &Topology, shard: &ShardName) -> Result<Vec<TableDef>> {
    let Some(config) = topology.shards.get(shard) else { return Ok(Vec::new()) };
    tokio::task::block_in_place(|| muster_capture::live_tables(&config.driver))
        .with_context(|| format!("shard {shard}"))
}

//! Which sites a drill restores, and to which moment.
//!
//! Sites of one sort (of equal strata) take turns: those that were never drilled first, then those whose last drill is longest
//! ago. Sorts take turns in the same way, so that a small sort is drilled as often as a large one. Among equals the seed decides.
//!
//! # Invariants
//! - Pure: one seed, one choice, whatever the order of the candidates.
//! - As many sites as asked for, or all there are; each once.

use std::collections::{BTreeMap, BTreeSet};

use muster_types::catalog::{Catalog, SiteHistory};
use muster_types::drill::Stratum;
use muster_types::{Digest, Kind, ShardName, SiteId, Timestamp};

/// A site that may be drilled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The site.
    pub site: SiteId,
    /// Its tier.
    pub tier: Option<String>,
    /// Shards that hold it.
    pub shards: BTreeSet<ShardName>,
    /// Rows, by its last slices in snapshots.
    pub rows: u64,
    /// Kinds that it is licensed for.
    pub products: BTreeSet<Kind>,
    /// When it was drilled last.
    pub drilled_at: Option<Timestamp>,
}

impl Candidate {
    /// Of a site in a catalog.
    pub fn of(site: &SiteId, history: &SiteHistory, drilled_at: Option<Timestamp>) -> Self {
        let facts = history.facts.clone().unwrap_or_default();
        let rows = history.traces.iter().filter_map(|trace| trace.snapshots.values().next_back());
        let chunks = rows.flatten().flat_map(|slice| &slice.chunks);
        Self {
            site: site.clone(),
            tier: facts.tier,
            shards: history.traces.iter().map(|trace| trace.shard.clone()).collect(),
            rows: chunks.map(|chunk| chunk.rows).sum(),
            products: facts.licensed.into_iter().collect(),
            drilled_at,
        }
    }

    fn sort(&self, strata: &[Stratum]) -> Vec<String> {
        let part = |stratum: &Stratum| match stratum {
            Stratum::Tier => self.tier.clone().unwrap_or_default(),
            Stratum::Shard => joined(&self.shards),
            Stratum::Size => self.rows.checked_ilog10().map_or(0, |magnitude| magnitude + 1).to_string(),
            Stratum::Products => joined(&self.products),
        };
        strata.iter().map(part).collect()
    }
}

fn joined<T: ToString>(parts: &BTreeSet<T>) -> String {
    parts.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// Decides among equals.
fn lot(seed: u64, of: &str) -> u64 {
    let text = Digest::of(format!("{seed} {of}").as_bytes()).to_string();
    let hex: String = text.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    u64::from_str_radix(&hex, 16).unwrap_or_default()
}

/// Up to `count` sites, in the order of their turn.
pub fn choose(candidates: &[Candidate], count: usize, strata: &[Stratum], seed: u64) -> Vec<SiteId> {
    type Turn<'a> = (Option<Timestamp>, u64, &'a SiteId);
    let mut sorts: BTreeMap<Vec<String>, BTreeSet<Turn<'_>>> = BTreeMap::new();
    for candidate in candidates {
        // None is less than any time: never drilled comes first.
        let turn = (candidate.drilled_at, lot(seed, candidate.site.as_str()), &candidate.site);
        sorts.entry(candidate.sort(strata)).or_default().insert(turn);
    }
    let mut order: Vec<(Option<Timestamp>, u64, Vec<String>)> = sorts
        .iter()
        .map(|(sort, sites)| {
            // A sort was drilled when any of its sites was.
            let last = sites.iter().filter_map(|(drilled_at, ..)| *drilled_at).max();
            (last, lot(seed, &sort.join("\n")), sort.clone())
        })
        .collect();
    order.sort();
    let mut chosen = Vec::new();
    let mut seen = BTreeSet::new();
    while chosen.len() < count && !sorts.is_empty() {
        for (_, _, sort) in &order {
            let Some(sites) = sorts.get_mut(sort).filter(|_| chosen.len() < count) else { continue };
            match sites.pop_first() {
                Some((_, _, site)) if seen.insert(site) => chosen.push(site.clone()),
                Some(_) => {}
                None => drop(sorts.remove(sort)),
            }
        }
    }
    chosen
}

/// A moment of the window, both ends in it; none where the window is empty.
pub fn moment(from: Timestamp, to: Timestamp, seed: u64) -> Option<Timestamp> {
    let width = u64::try_from(to.as_micros().checked_sub(from.as_micros())?).ok()?;
    let into = lot(seed, "moment") % width.saturating_add(1);
    Some(from.plus_micros(i64::try_from(into).ok()?))
}

/// The stretch of time in which every one of `shards` can be restored, as far as the repository reaches.
pub fn covered(catalog: &Catalog, shards: &BTreeSet<ShardName>) -> Option<(Timestamp, Timestamp)> {
    let of = |shard: &ShardName| {
        let incarnations = &catalog.shards.get(shard)?.incarnations;
        let first =
            incarnations.iter().flat_map(|one| &one.snapshots).map(|snapshot| snapshot.boundary.at).min()?;
        let last = incarnations.last()?.end()?.at;
        Some((first, last))
    };
    let spans: Option<Vec<_>> = shards.iter().map(of).collect();
    let spans = spans?;
    let from = spans.iter().map(|(first, _)| *first).max()?;
    let to = spans.iter().map(|(_, last)| *last).min()?;
    Some((from, to))
}

//! Documents that are gone, as the objects around them tell. Pure: only keys are looked at.
//!
//! What pruning took leaves a floor, a compacted segment in its place, or nothing at all; a lost document leaves its data, or a gap
//! where nothing was ever pruned. A stretch behind an operator's old hold that was pruned is not told from one whose indexes and
//! data are all lost: neither is named.

use std::collections::{BTreeMap, BTreeSet};

use muster_types::{Incarnation, ShardName};

use crate::keys;

/// A compacted segment of level n covers so many of level n - 1.
const FAN_OUT: u64 = 16;

/// One history, by its keys.
#[derive(Default)]
struct History<'a> {
    indexes: BTreeSet<u64>,
    /// Data of segments.
    data: BTreeMap<u64, &'a str>,
    /// What compacted segments cover.
    covered: Vec<(u64, u64)>,
    /// Level and first segment of data of compacted segments.
    attempts: BTreeSet<(u32, u64)>,
    floor: Option<u64>,
}

/// Keys of documents that must have been there. `keys` ascend; what is `condemned` may be half gone.
pub(super) fn lost<'a>(keys: impl Iterator<Item = &'a String>, condemned: &BTreeSet<String>) -> Vec<String> {
    let mut histories: BTreeMap<(ShardName, Incarnation), History<'a>> = BTreeMap::new();
    for key in keys.filter(|key| !condemned.contains(*key)) {
        let Some((shard, rest)) = key.strip_prefix(keys::SHARDS).and_then(|key| key.split_once('/')) else {
            continue;
        };
        let Some((incarnation, name)) = rest.split_once('/') else { continue };
        let (Ok(shard), Ok(incarnation)) = (ShardName::new(shard), Incarnation::new(incarnation)) else {
            continue;
        };
        histories.entry((shard, incarnation)).or_default().add(key, name);
    }
    histories.iter().flat_map(|((shard, incarnation), history)| history.lost(shard, incarnation)).collect()
}

impl<'a> History<'a> {
    fn add(&mut self, key: &'a str, name: &str) {
        if let Some(name) = name.strip_prefix("log/") {
            let Some(number) = name.get(..20).and_then(|digits| digits.parse().ok()) else { return };
            match name.get(20..) {
                Some(".json.zst") => drop(self.indexes.insert(number)),
                _ => drop(self.data.insert(number, key)),
            }
        } else if let Some(name) = name.strip_prefix("floors/") {
            let first = name.strip_suffix(".json").and_then(|number| number.parse().ok());
            self.floor = self.floor.max(first);
        } else if let Some(name) = name.strip_prefix("compacted/data/") {
            let found = name
                .split_once('/')
                .and_then(|(level, rest)| Some((keys::level_number(level)?, rest.get(..20)?.parse().ok()?)));
            self.attempts.extend(found);
        } else if let Some(name) = name.strip_prefix("compacted/") {
            let range = name.split_once('/').and_then(|(level, _)| {
                let folder = format!("{level}/");
                keys::compacted_range(&folder, name)
            });
            self.covered.extend(range);
        }
    }

    fn is_covered(&self, sequence: u64) -> bool {
        self.covered.iter().any(|(first, last)| (*first..=*last).contains(&sequence))
    }

    fn lost(&self, shard: &ShardName, incarnation: &Incarnation) -> Vec<String> {
        let from = self.floor.unwrap_or(1);
        let mut lost = Vec::new();
        // Compacted segments whose sources are gone.
        let mut orphaned: Vec<(u64, u64)> = Vec::new();
        let head = self.indexes.last().copied().unwrap_or(0);
        for (level, first) in self.attempts.iter().rev() {
            let last = FAN_OUT.checked_pow(*level).map_or(u64::MAX, |span| first + (span - 1));
            let gone = *first >= from && *first <= head && !self.indexes.contains(first);
            if gone
                && !self.is_covered(*first)
                && !orphaned.iter().any(|(from, to)| (from..=to).contains(&first))
            {
                orphaned.push((*first, last));
                lost.push(keys::compacted_root(shard, incarnation, *level, (*first, last)));
            }
        }
        let told = |sequence: u64| {
            sequence < from
                || self.is_covered(sequence)
                || orphaned.iter().any(|(first, last)| (*first..=*last).contains(&sequence))
        };
        let mut before = 0;
        for next in &self.indexes {
            let gap = before + 1..*next;
            before = *next;
            if gap.is_empty() {
                continue;
            }
            let with_data = self.data.range(gap.clone()).map(|(sequence, _)| *sequence);
            let mut missing: BTreeSet<u64> = with_data.filter(|sequence| !told(*sequence)).collect();
            // The index behind it names the last one.
            missing.extend(Some(gap.end - 1).filter(|last| self.floor.is_none() && !told(*last)));
            lost.extend(missing.into_iter().map(|number| keys::segment_index(shard, incarnation, number)));
        }
        lost
    }
}

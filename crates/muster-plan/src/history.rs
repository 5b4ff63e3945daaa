//! What happened to a site, minute by minute and table by table.
//!
//! # Invariants
//! - Granularity is that of the log's index: a frame counts in the minute of its first change.

use std::collections::BTreeMap;

use muster_types::catalog::Catalog;
use muster_types::segment::{FrameKind, Mark};
use muster_types::{Incarnation, Kind, ShardName, SiteId, Timestamp};

/// Microseconds of a minute.
const MINUTE_MICROS: i64 = 60_000_000;

/// Changes to one table of a site that began within one minute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activity {
    /// Start of the minute.
    pub minute: Timestamp,
    /// The shard.
    pub shard: ShardName,
    /// Its history.
    pub incarnation: Incarnation,
    /// The kind.
    pub kind: Kind,
    /// The table.
    pub table: String,
    /// Muster's mark, if Muster made the changes.
    pub mark: Option<Mark>,
    /// Rows inserted.
    pub inserts: u64,
    /// Rows updated.
    pub updates: u64,
    /// Rows deleted.
    pub deletes: u64,
    /// The table was read again whole in this minute: what changed until then is not in the log.
    pub reread: bool,
    /// First change.
    pub first_at: Timestamp,
    /// Last change.
    pub last_at: Timestamp,
}

/// All activity of `site`, by minute, then shard, table and mark.
pub fn history(catalog: &Catalog, site: &SiteId) -> Vec<Activity> {
    let mut minutes: BTreeMap<(i64, &ShardName, u32, &str, Option<&Mark>), Activity> = BTreeMap::new();
    for trace in catalog.sites.get(site).into_iter().flat_map(|site| &site.traces) {
        let shard = catalog.shards.get(&trace.shard);
        let Some(incarnation) = shard.and_then(|shard| shard.incarnations.get(trace.incarnation as usize))
        else {
            continue;
        };
        for (segment, frames) in &trace.segments {
            let Some(segment) = incarnation.segments.get(*segment as usize) else { continue };
            for frame in frames {
                let Some(table) = segment.tables.get(frame.table as usize) else { continue };
                let mark = frame.mark.and_then(|mark| segment.marks.get(mark as usize));
                let (first, last) = frame
                    .span
                    .map_or((segment.boundary.at, segment.boundary.at), |(first, last)| (first.at, last.at));
                let minute = first.as_micros().div_euclid(MINUTE_MICROS) * MINUTE_MICROS;
                let place = (minute, &trace.shard, trace.incarnation, table.def.name.as_str(), mark);
                let activity = minutes.entry(place).or_insert_with(|| Activity {
                    minute: Timestamp::from_micros(minute),
                    shard: trace.shard.clone(),
                    incarnation: incarnation.incarnation.clone(),
                    kind: table.kind.clone(),
                    table: table.def.name.clone(),
                    mark: mark.cloned(),
                    inserts: 0,
                    updates: 0,
                    deletes: 0,
                    reread: false,
                    first_at: first,
                    last_at: last,
                });
                if frame.kind == FrameKind::Rows {
                    activity.reread = true;
                } else {
                    activity.inserts += frame.inserts;
                    activity.updates += frame.updates;
                    activity.deletes += frame.deletes;
                }
                activity.first_at = activity.first_at.min(first);
                activity.last_at = activity.last_at.max(last);
            }
        }
    }
    minutes.into_values().collect()
}

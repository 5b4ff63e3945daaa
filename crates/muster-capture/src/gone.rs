//! A database of one site that is gone: its log says so, as if all of its tables had been dropped.
//!
//! # Invariants
//! - It is told once; what was recorded before it stays as it is, and restores.
//! - The place behind the last recovery point is taken: whoever makes the database again begins a new incarnation.

use std::collections::BTreeMap;

use muster_repo::SegmentSpool;
use muster_types::catalog::IncarnationHistory;
use muster_types::segment::{DATABASE_GONE, TableEvent, TableEventKind};
use muster_types::{Boundary, Kind, Position, Timestamp};

/// Tables that are there by the log.
pub(crate) fn tables_there(history: &IncarnationHistory) -> BTreeMap<String, Kind> {
    let mut there = BTreeMap::new();
    let last = history.snapshots.last();
    for table in last.into_iter().flat_map(|snapshot| &snapshot.tables) {
        there.insert(table.def.name.clone(), table.kind.clone());
    }
    let behind = |boundary: Boundary| last.is_none_or(|snapshot| boundary > snapshot.boundary);
    for segment in history.segments.iter().filter(|segment| behind(segment.boundary)) {
        for table in &*segment.tables {
            there.insert(table.def.name.clone(), table.kind.clone());
        }
        // One that was dropped and made anew is there.
        let last: BTreeMap<&String, TableEventKind> =
            segment.table_events.iter().map(|event| (&event.table, event.event)).collect();
        there.retain(|table, _| last.get(table) != Some(&TableEventKind::Dropped));
    }
    there
}

/// Notes that they are gone, and the place of that behind `base`.
pub(crate) fn note(
    spool: &mut SegmentSpool,
    tables: BTreeMap<String, Kind>,
    base: Boundary,
    at: Timestamp,
) -> Boundary {
    for (table, kind) in tables {
        spool.table_event(TableEvent {
            table,
            kind,
            event: TableEventKind::Dropped,
            at,
            position: None,
            reason: DATABASE_GONE.to_owned(),
        });
    }
    Boundary { position: Position(base.position.0 + 1), at: at.max(base.at) }
}

//! The repository's writers as sinks of the capture side.

use muster_repo::{SegmentSpool, SnapshotWriter};
use muster_rows::{Change, Row};
use muster_stores::capture::{CaptureError, ChangeSink, SnapshotSink};
use muster_types::SiteId;
use muster_types::segment::{Commit, Mark, TableEvent};
use muster_types::snapshot::Beside;
use muster_types::table::CapturedTable;

use crate::error::spool_error;

pub(crate) struct Snapshot(pub(crate) SnapshotWriter);

impl SnapshotSink for Snapshot {
    fn tables(&mut self, tables: &[CapturedTable]) -> Result<(), CaptureError> {
        self.0.tables(tables);
        Ok(())
    }

    fn beside(&mut self, beside: &Beside) -> Result<(), CaptureError> {
        self.0.beside(beside);
        Ok(())
    }

    fn row(&mut self, site: Option<&SiteId>, table: usize, row: &Row) -> Result<(), CaptureError> {
        self.0.row(site, table, row).map_err(|error| spool_error(&error))
    }
}

pub(crate) struct Segment(pub(crate) SegmentSpool);

impl ChangeSink for Segment {
    fn table(&mut self, table: &CapturedTable) -> Result<(), CaptureError> {
        self.0.table(table);
        Ok(())
    }

    fn change(
        &mut self,
        site: Option<&SiteId>,
        table: usize,
        mark: Option<&Mark>,
        change: Change,
    ) -> Result<(), CaptureError> {
        self.0.change(site, table, mark, &change).map_err(|error| spool_error(&error))
    }

    fn reread_row(&mut self, site: Option<&SiteId>, table: usize, row: &Row) -> Result<(), CaptureError> {
        self.0.reread_row(site, table, row).map_err(|error| spool_error(&error))
    }

    fn table_event(&mut self, event: TableEvent) -> Result<(), CaptureError> {
        self.0.table_event(event);
        Ok(())
    }

    fn commit(&mut self, commit: Commit) -> Result<(), CaptureError> {
        self.0.commit(commit);
        Ok(())
    }
}

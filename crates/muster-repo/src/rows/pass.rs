//! Passes over base and changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use muster_rows::{
    Class, Fold, FoldError, MovedKeys, Op, Overlay, Part, Row, RowReader, RowsDigest, parts_for_changes,
};
use muster_types::ChangeKey;
use muster_types::plan::TableInput;
use muster_types::snapshot::ObjectInfo;
use muster_types::table::CapturedTable;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::TableRows;
use super::changes::{Changes, object};
use super::source::{Chunks, Source};
use crate::error::RepoError;
use crate::range::RangeReader;

/// A batch ends at this many rows or bytes, whichever comes first.
const BATCH_ROWS: usize = 1024;
const BATCH_BYTES: usize = 1024 * 1024;

/// Everything that reading one table needs.
pub(super) struct Task {
    source: Source,
    table: CapturedTable,
    key_indexes: Vec<usize>,
    columns: usize,
    input: TableInput,
    objects: Vec<ObjectInfo>,
    budget_bytes: u64,
    sender: mpsc::Sender<Vec<Row>>,
}

/// What the passes have found so far.
struct Tally {
    /// Rows of the base that came through as they were.
    common: RowsDigest,
    /// Base rows that did not.
    base_only: RowsDigest,
    /// Rows given that are not base rows as they were.
    given_only: RowsDigest,
    /// What the changes say: inserted minus deleted.
    changed: RowsDigest,
    /// Whether `changed` says it all.
    derivable: bool,
    rows: u64,
    changes: u64,
    repeats: u64,
    batch: Vec<Row>,
    batch_bytes: usize,
}

impl Task {
    /// Takes what it needs out of a plan.
    pub(super) fn new(
        reader: &RangeReader,
        table: &CapturedTable,
        input: &TableInput,
        objects: &[ObjectInfo],
        budget_bytes: u64,
        sender: mpsc::Sender<Vec<Row>>,
    ) -> Result<Self, RepoError> {
        let bytes_read = Arc::new(AtomicU64::new(0));
        let source = Source { reader: reader.clone(), runtime: Handle::current(), bytes_read };
        let mut input = input.clone();
        // Of the plan's objects, which may be tens of thousands, only those that this table needs.
        let mut own: Vec<ObjectInfo> = Vec::new();
        let mut renumber = |number: &mut u32| -> Result<(), RepoError> {
            let wanted = object(objects, *number)?;
            if own.last() != Some(wanted) {
                own.push(wanted.clone());
            }
            *number = u32::try_from(own.len() - 1).unwrap_or(u32::MAX);
            Ok(())
        };
        if let Some(base) = &mut input.base {
            renumber(&mut base.object)?;
        }
        input.changes.iter_mut().try_for_each(|changes| renumber(&mut changes.object))?;
        let key_indexes = table.def.key_indexes();
        let columns = table.def.stored_columns().count();
        let table = table.clone();
        Ok(Self { source, table, key_indexes, columns, input, objects: own, budget_bytes, sender })
    }

    /// Reads, checks, folds and sends.
    pub(super) async fn run(self) -> Result<TableRows, RepoError> {
        let mut tally = Tally::new();
        let parts = self.parts();
        let moved = if parts > 1 { Some(Arc::new(self.scan_moved().await?)) } else { None };
        for part in Part::all(parts) {
            self.pass(part, moved.as_ref(), &mut tally).await?;
        }
        self.flush(&mut tally).await?;
        self.conclude(&tally)
    }

    fn parts(&self) -> u32 {
        let chunks = self.input.changes.iter().flat_map(|changes| &changes.chunks);
        let (bytes, lines) =
            chunks.fold((0, 0), |(bytes, lines), chunk| (bytes + chunk.raw_bytes, lines + chunk.rows));
        parts_for_changes(bytes, lines, self.budget_bytes)
    }

    fn changes(&self) -> Changes<'_> {
        Changes::new(&self.source, &self.objects, &self.input.changes, self.columns)
    }

    async fn scan_moved(&self) -> Result<MovedKeys, RepoError> {
        let mut moved = MovedKeys::new(self.key_indexes.clone(), self.columns);
        let mut changes = self.changes();
        while let Some(change) = changes.next().await? {
            moved.scan(change);
        }
        Ok(moved)
    }

    async fn pass(
        &self,
        part: Part,
        moved: Option<&Arc<MovedKeys>>,
        tally: &mut Tally,
    ) -> Result<(), RepoError> {
        let mut base = self.base_chunks()?;
        // The base is on its way while changes are folded.
        base.iter_mut().for_each(Chunks::prefetch);
        let overlay = self.fold_changes(part, moved, tally).await?;
        self.lay_over(overlay, base, part.index == 0, tally).await
    }

    fn base_chunks(&self) -> Result<Option<Chunks>, RepoError> {
        let Some(base) = &self.input.base else { return Ok(None) };
        Ok(Some(Chunks::new(&self.source, object(&self.objects, base.object)?, &base.chunks)))
    }

    async fn fold_changes(
        &self,
        part: Part,
        moved: Option<&Arc<MovedKeys>>,
        tally: &mut Tally,
    ) -> Result<Overlay, RepoError> {
        let mut fold = Fold::new(self.key_indexes.clone(), self.columns, part);
        if let Some(moved) = moved {
            fold = fold.with_moved_keys(Arc::clone(moved));
        }
        let mut changes = self.changes();
        let mut last: Option<ChangeKey> = None;
        while let Some(change) = changes.next().await? {
            let repeat = last.is_some_and(|last| change.stamp.key <= last);
            if part.index == 0 {
                tally.change(&self.table.def.name, &change.op, repeat);
            }
            last = last.max(Some(change.stamp.key));
            fold.change(change).map_err(|error| self.broken(&error))?;
        }
        if part.index == 0 {
            tally.repeats = fold.repeats();
        }
        fold.into_overlay().map_err(|error| self.broken(&error))
    }

    /// Gives what the overlay makes of the base, and what it adds. `first`: the base is digested in one pass only.
    async fn lay_over(
        &self,
        mut overlay: Overlay,
        base: Option<Chunks>,
        first: bool,
        tally: &mut Tally,
    ) -> Result<(), RepoError> {
        let name = &self.table.def.name;
        let mut reader = RowReader::new(self.columns);
        let mut base = base;
        while let Some(chunks) = &mut base {
            let Some((chunk, text)) = chunks.next_text().await? else { break };
            let key = &chunks.object().key;
            for row in reader.rows(&text) {
                let row = row.map_err(|error| {
                    RepoError::damaged_range(key, chunk.offset, chunk.bytes, &format!("{error}"))
                })?;
                if self.input.changes.is_empty() {
                    tally.common.add(name, &row);
                    self.give(row, tally).await?;
                    continue;
                }
                // A copy costs a tenth of a digest.
                let before = row.clone();
                match overlay.base_row(row).map_err(|error| self.broken(&error))? {
                    // In a later pass the row was counted as base already, so that `common` may not hold it.
                    Some(after) if first && after == before => {
                        tally.common.add(name, &before);
                        self.give(after, tally).await?;
                    }
                    after => {
                        if first {
                            tally.base_only.add(name, &before);
                        }
                        if let Some(after) = after {
                            tally.given_only.add(name, &after);
                            self.give(after, tally).await?;
                        }
                    }
                }
            }
        }
        for row in overlay.finish().map_err(|error| self.broken(&error))? {
            tally.given_only.add(name, &row);
            self.give(row, tally).await?;
        }
        Ok(())
    }

    async fn give(&self, row: Row, tally: &mut Tally) -> Result<(), RepoError> {
        tally.rows += 1;
        tally.batch_bytes += row.heap_bytes();
        tally.batch.push(row);
        if tally.batch.len() >= BATCH_ROWS || tally.batch_bytes >= BATCH_BYTES {
            self.flush(tally).await
        } else {
            Ok(())
        }
    }

    async fn flush(&self, tally: &mut Tally) -> Result<(), RepoError> {
        tally.batch_bytes = 0;
        let batch = std::mem::take(&mut tally.batch);
        if batch.is_empty() {
            return Ok(());
        }
        let gone = |_| RepoError::misuse("whoever takes the rows has gone before their end");
        self.sender.send(batch).await.map_err(gone)
    }

    fn conclude(&self, tally: &Tally) -> Result<TableRows, RepoError> {
        let mut base = tally.common.clone();
        base.merge(&tally.base_only);
        if let Some(input) = &self.input.base
            && base.finish() != input.rows_digest
        {
            let key = &object(&self.objects, input.object)?.key;
            let what = format!(
                "the rows of table `{}` have digest {} and not {} as the manifest says",
                self.table.def.name,
                base.finish().short(),
                input.rows_digest.short()
            );
            return Err(RepoError::damaged(key, what));
        }
        let mut given = tally.common.clone();
        given.merge(&tally.given_only);
        if tally.derivable {
            base.merge(&tally.changed);
            if base != given {
                let what = format!(
                    "table `{}`: its base and {} changes add up to digest {}, and the rows folded from them have {}",
                    self.table.def.name,
                    tally.changes,
                    base.finish().short(),
                    given.finish().short()
                );
                return Err(RepoError::damaged(self.any_key(), what));
            }
        }
        Ok(TableRows {
            rows: tally.rows,
            digest: given.finish(),
            changes: tally.changes,
            repeats: tally.repeats,
            bytes_read: self.source.bytes_read.load(Ordering::Relaxed),
            derived: tally.derivable,
        })
    }

    /// Snapshot and log do not fit together.
    fn broken(&self, error: &FoldError) -> RepoError {
        let objects: Vec<&str> = self.objects.iter().map(|object| object.key.as_str()).collect();
        let others = if objects.len() > 1 {
            format!(" (folded over {} objects)", objects.len())
        } else {
            String::new()
        };
        RepoError::damaged(self.any_key(), format!("table `{}`: {error}{others}", self.table.def.name))
    }

    /// The last object read, to name one: what it says does not fit to those before.
    fn any_key(&self) -> &str {
        self.objects.last().map_or("", |object| object.key.as_str())
    }
}

impl Tally {
    fn new() -> Self {
        Self {
            common: RowsDigest::new(),
            base_only: RowsDigest::new(),
            given_only: RowsDigest::new(),
            changed: RowsDigest::new(),
            derivable: true,
            rows: 0,
            changes: 0,
            repeats: 0,
            batch: Vec::new(),
            batch_bytes: 0,
        }
    }

    fn change(&mut self, table: &str, op: &Op, repeat: bool) {
        if repeat {
            return;
        }
        self.changes += 1;
        match op {
            Op::Insert { new } => self.add(table, new),
            Op::Delete { old } => self.remove(table, old),
            Op::Update { old, new } => {
                self.remove(table, old);
                self.add(table, new);
            }
            Op::Truncate => self.derivable = false,
        }
    }

    fn add(&mut self, table: &str, row: &Row) {
        self.derivable &= is_whole(row);
        if self.derivable {
            self.changed.add(table, row);
        }
    }

    fn remove(&mut self, table: &str, row: &Row) {
        self.derivable &= is_whole(row);
        if self.derivable {
            self.changed.remove(table, row);
        }
    }
}

fn is_whole(row: &Row) -> bool {
    row.fields().all(|field| field.class != Class::Unchanged)
}

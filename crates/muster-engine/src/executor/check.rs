//! The proof of the neighbours in its always-form: what the publishes of a site did, read back from the change log.
//!
//! Every row change that carries the mark of a publish must be an insertion of a row of the published store (or,
//! where live rows may be replaced, a deletion of one), and the inserted rows together must be the staged rows.
//!
//! Where capture read a table again whole meanwhile, the log lacks changes of it. Its live rows must be the staged ones
//! then; the outcome names it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_repo::log::LogFilter;
use muster_rows::{Class, Field, Op, Row, RowBuilder, RowsDigest};
use muster_types::journal::{Outcome, TableDigest};
use muster_types::segment::Mark;
use muster_types::table::TableDef;
use muster_types::{ShardName, StoreId};
use tokio::sync::mpsc;

use super::changes;
use super::context::{Context, StepError, StepResult};
use super::job::{CheckedStore, TableDigests, difference};
use crate::driver::{LoggedChange, RowBatch, StoreProbe};

/// Batches of live rows between the driver and the digest.
const BATCHES_AHEAD: usize = 4;

/// Checks the published stores of a site.
pub(super) async fn check(context: &Context, stores: &[CheckedStore]) -> StepResult {
    let (mut changes, mut compared_live, mut read_whole) = (0, Vec::new(), false);
    for store in stores {
        let plan = &context.plan;
        let made = plan.provisions.contains_key(&context.store(&store.store)?.shard);
        if made || plan.request.placement.sandbox {
            changes += read_back(context, store).await?;
            read_whole = true;
            continue;
        }
        let (marked, live) = check_store(context, store).await?;
        changes += marked;
        compared_live.extend(live);
    }
    Ok(Outcome::Checked { changes, compared_live, read_whole })
}

/// Of a store in a shard that the run itself made: its live rows, all of them, are the staged ones. Nothing may capture the
/// shard yet, so that no log is asked.
async fn read_back(context: &Context, checked: &CheckedStore) -> Result<u64, StepError> {
    let work = context.work(&checked.store)?.migrated(checked.migrated.as_deref());
    let shard = &context.store(&checked.store)?.shard;
    let names = work.tables.iter().map(|table| table.def.name.clone()).collect();
    let probe = StoreProbe { store: work.store.clone(), tables: Arc::clone(&work.tables) };
    let live = live_digests(context, shard, probe, &names).await?;
    match difference(&checked.staged, &live) {
        None => Ok(live.values().map(|table| table.rows).sum()),
        Some(difference) => Err(StepError::permanent(format!(
            "the live rows of {} in shard `{shard}` are not the staged ones: {difference}; keep the site closed and compare it \
             with `muster diff {} --to live`",
            checked.store, checked.store.site,
        ))),
    }
}

/// Marked changes, and the tables whose live rows were compared.
async fn check_store(context: &Context, checked: &CheckedStore) -> Result<(u64, Vec<String>), StepError> {
    let work = context.work(&checked.store)?.migrated(checked.migrated.as_deref());
    let shard = &context.store(&checked.store)?.shard;
    let names = |def: &TableDef| def.stored_columns().map(|column| column.name.clone()).collect();
    let tables = work.tables.iter().map(|table| (table.def.name.clone(), names(&table.def))).collect();
    let mut seen = Seen::new(&checked.store, work.mark(), tables);
    if let Some((first, last)) = checked.published.positions {
        let after = muster_types::Position(first.0.saturating_sub(1));
        let step = seen.mark.step.clone();
        let filter = LogFilter::Step { run: &context.run, step: &step };
        let mut reread =
            changes::visit(context, shard, (after, last), filter, |group| seen.take(group)).await?;
        reread.retain(|table| seen.tables.contains_key(table));
        seen.lack(&reread, &checked.staged);
    }
    let mut staged = checked.staged.clone();
    staged.retain(|table, _| !seen.lacking.contains(table));
    seen.judge(&staged, checked.published.replaced, work.overwrite).map_err(StepError::permanent)?;
    if !seen.lacking.is_empty() {
        let probe = StoreProbe { store: work.store.clone(), tables: Arc::clone(&work.tables) };
        let live = live_digests(context, shard, probe, &seen.lacking).await?;
        let mut staged = checked.staged.clone();
        staged.retain(|table, _| seen.lacking.contains(table));
        seen.judge_live(&staged, &live).map_err(StepError::permanent)?;
    }
    Ok((seen.changes, seen.lacking.into_iter().collect()))
}

/// The live rows of some tables of a store.
async fn live_digests(
    context: &Context,
    shard: &ShardName,
    probe: StoreProbe,
    wanted: &BTreeSet<String>,
) -> Result<TableDigests, StepError> {
    let driver = context.driver(shard)?;
    let (sender, mut batches) = mpsc::channel::<RowBatch>(BATCHES_AHEAD);
    let mut found: BTreeMap<&str, (u64, RowsDigest)> = BTreeMap::new();
    let read = async {
        while let Some(batch) = batches.recv().await {
            let Some(table) = probe.tables.get(batch.table) else { continue };
            let name = table.def.name.as_str();
            if wanted.contains(name) {
                let (rows, digest) = found.entry(name).or_default();
                *rows += batch.rows.len() as u64;
                batch.rows.iter().for_each(|row| digest.add(name, row));
            }
        }
    };
    let (sent, ()) = tokio::join!(driver.live_rows(&probe, sender), read);
    sent?;
    let digest = |(name, (rows, digest)): (&str, (u64, RowsDigest))| {
        (name.to_owned(), TableDigest { rows, digest: digest.finish() })
    };
    Ok(found.into_iter().map(digest).collect())
}

/// The row in other columns; one that it does not have is NULL.
fn projected(row: &Row, from: &[String], to: &[String]) -> Row {
    let mut builder = RowBuilder::new();
    for name in to {
        let found = from.iter().position(|column| column == name).and_then(|index| row.get(index));
        let field = found.unwrap_or(Field { class: Class::Null, bytes: &[] });
        builder.push(field.class, field.bytes);
    }
    builder.take()
}

/// What carries the mark.
struct Seen<'a> {
    store: &'a StoreId,
    mark: Mark,
    /// Columns at the recovery point: live rows may have more, filled by default.
    tables: BTreeMap<String, Vec<String>>,
    inserted: BTreeMap<String, (u64, RowsDigest)>,
    deleted: u64,
    changes: u64,
    /// Tables that were read again whole, and whose marked changes the log does not hold in full.
    lacking: BTreeSet<String>,
}

impl<'a> Seen<'a> {
    fn new(store: &'a StoreId, mark: Mark, tables: BTreeMap<String, Vec<String>>) -> Self {
        let (inserted, lacking) = (BTreeMap::new(), BTreeSet::new());
        Self { store, mark, tables, inserted, deleted: 0, changes: 0, lacking }
    }

    fn take(&mut self, group: &[LoggedChange]) -> Result<(), StepError> {
        group.iter().try_for_each(|logged| self.one(logged)).map_err(StepError::permanent)
    }

    fn one(&mut self, logged: &LoggedChange) -> Result<(), String> {
        // The same publish by any engine of the run: an earlier one may have done it.
        let ours = |mark: &Mark| mark.run == self.mark.run && mark.step == self.mark.step;
        if !logged.mark.as_ref().is_some_and(ours) {
            return Ok(());
        }
        self.changes += 1;
        let columns =
            self.tables.get(&logged.table).filter(|_| logged.site.as_ref() == Some(&self.store.site));
        match (&logged.change.op, columns) {
            (Op::Insert { new }, Some(columns)) => {
                let (rows, digest) = self.inserted.entry(logged.table.clone()).or_default();
                *rows += 1;
                if columns.as_slice() == &*logged.columns {
                    digest.add(&logged.table, new);
                } else {
                    digest.add(&logged.table, &projected(new, &logged.columns, columns));
                }
                Ok(())
            }
            (Op::Delete { .. }, Some(_)) => {
                self.deleted += 1;
                Ok(())
            }
            (op, _) => Err(self.stray(logged, op)),
        }
    }

    fn stray(&self, logged: &LoggedChange, op: &Op) -> String {
        let did = match op {
            Op::Insert { .. } => "inserted",
            Op::Update { .. } => "updated",
            Op::Delete { .. } => "deleted",
            Op::Truncate => "removed all of",
        };
        let owner = logged.site.as_ref().map_or_else(|| "no site".to_owned(), ToString::to_string);
        format!(
            "stray write: the publish of {} {did} a row of table `{}` that belongs to {owner} (change {}); look at it \
             with `muster history`, and undo it by hand before you hand the site back",
            self.store, logged.table, logged.change.stamp.key.position,
        )
    }

    /// What the log shows as inserted.
    fn inserted(&self) -> TableDigests {
        let digest = |(table, (rows, digest)): (&String, &(u64, RowsDigest))| {
            (table.clone(), TableDigest { rows: *rows, digest: digest.finish() })
        };
        self.inserted.iter().map(digest).collect()
    }

    /// Of the tables that were read again whole, those for which the log does not show the staged rows.
    fn lack(&mut self, reread: &BTreeSet<String>, staged: &TableDigests) {
        let inserted = self.inserted();
        let of = |tables: &TableDigests, table: &String| -> TableDigests {
            tables.get(table).map(|digest| (table.clone(), *digest)).into_iter().collect()
        };
        let lacks = |table: &&String| difference(&of(staged, table), &of(&inserted, table)).is_some();
        self.lacking = reread.iter().filter(lacks).cloned().collect();
    }

    fn judge_live(&self, staged: &TableDigests, live: &TableDigests) -> Result<(), String> {
        let Some(difference) = difference(staged, live) else { return Ok(()) };
        Err(format!(
            "capture read a table of {} again whole while it was published, and its live rows are not the staged ones: \
             {difference}; keep the site closed and compare it with `muster diff {} --to live`",
            self.store, self.store.site,
        ))
    }

    fn judge(&self, staged: &TableDigests, replaced: u64, overwrite: bool) -> Result<(), String> {
        let mut inserted = self.inserted();
        inserted.retain(|table, _| !self.lacking.contains(table));
        if let Some(difference) = difference(staged, &inserted) {
            return Err(format!(
                "the change log does not show the staged rows of {} becoming live: {difference}; keep the site \
                 closed and compare it with `muster diff {} --to live`",
                self.store, self.store.site,
            ));
        }
        // Deletions of a table that was read again are not in the log either.
        let told = if self.lacking.is_empty() { self.deleted == replaced } else { self.deleted <= replaced };
        if !told || (replaced > 0 && !overwrite) {
            return Err(format!(
                "the publish of {} says that it replaced {replaced} rows and the change log shows {} deletions; keep \
                 the site closed and look at it with `muster history {}`",
                self.store, self.deleted, self.store.site,
            ));
        }
        Ok(())
    }
}

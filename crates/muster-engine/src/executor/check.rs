//! The proof of the neighbours in its always-form: what the publishes of a site did, read back from the change log.
//!
//! Every row change that carries the mark of a publish must be an insertion of a row of the published store (or,
//! where live rows may be replaced, a deletion of one), and the inserted rows together must be the staged rows.

use std::collections::BTreeMap;

use muster_repo::log::LogFilter;
use muster_rows::{Class, Field, Op, Row, RowBuilder, RowsDigest};
use muster_types::StoreId;
use muster_types::journal::{Outcome, TableDigest};
use muster_types::segment::Mark;
use muster_types::table::TableDef;

use super::changes;
use super::context::{Context, StepError, StepResult};
use super::job::{CheckedStore, TableDigests, difference};
use crate::driver::LoggedChange;

/// Checks the published stores of a site.
pub(super) async fn check(context: &Context, stores: &[CheckedStore]) -> StepResult {
    let mut marked = 0;
    for store in stores {
        marked += check_store(context, store).await?;
    }
    Ok(Outcome::Checked { changes: marked })
}

async fn check_store(context: &Context, checked: &CheckedStore) -> Result<u64, StepError> {
    let work = context.work(&checked.store)?;
    let shard = &context.store(&checked.store)?.shard;
    let names = |def: &TableDef| def.stored_columns().map(|column| column.name.clone()).collect();
    let tables = work.tables.iter().map(|table| (table.def.name.clone(), names(&table.def))).collect();
    let mut seen = Seen::new(&checked.store, work.mark(), tables);
    if let Some((first, last)) = checked.published.positions {
        let after = muster_types::Position(first.0.saturating_sub(1));
        let step = seen.mark.step.clone();
        let filter = LogFilter::Step { run: &context.run, step: &step };
        changes::visit(context, shard, (after, last), filter, |group| seen.take(group)).await?;
    }
    seen.judge(checked, work.overwrite).map_err(StepError::permanent)?;
    Ok(seen.changes)
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
}

impl<'a> Seen<'a> {
    fn new(store: &'a StoreId, mark: Mark, tables: BTreeMap<String, Vec<String>>) -> Self {
        Self { store, mark, tables, inserted: BTreeMap::new(), deleted: 0, changes: 0 }
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

    fn judge(&self, checked: &CheckedStore, overwrite: bool) -> Result<(), String> {
        let digest = |(table, (rows, digest)): (&String, &(u64, RowsDigest))| {
            (table.clone(), TableDigest { rows: *rows, digest: digest.finish() })
        };
        let inserted: TableDigests = self.inserted.iter().map(digest).collect();
        if let Some(difference) = difference(&checked.staged, &inserted) {
            return Err(format!(
                "the change log does not show the staged rows of {} becoming live: {difference}; keep the site \
                 closed and compare it with `muster diff {} --to live`",
                self.store, self.store.site,
            ));
        }
        let replaced = checked.published.replaced;
        if self.deleted != replaced || (replaced > 0 && !overwrite) {
            return Err(format!(
                "the publish of {} says that it replaced {replaced} rows and the change log shows {} deletions; keep \
                 the site closed and look at it with `muster history {}`",
                self.store, self.deleted, self.store.site,
            ));
        }
        Ok(())
    }
}

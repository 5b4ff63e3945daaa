//! What a poll learns of tables as a whole from the DDL in the log.

use std::collections::{BTreeMap, BTreeSet};

use muster_types::Kind;
use muster_types::segment::{TableEvent, TableEventKind};
use muster_types::topology::Declared;

use super::{Poll, Transaction};
use crate::postgres::capture::ddl::Ddl;

/// What the log's DDL is held against.
#[derive(Default)]
pub(in crate::postgres::capture) struct Watch {
    /// Tables that are captured before the poll and not at its end, by oid.
    pub(in crate::postgres::capture) leaving: BTreeMap<u32, (String, Kind)>,
    /// Relations with rows of captured tables, before the poll or at its end.
    pub(in crate::postgres::capture) concerned: BTreeSet<u32>,
    /// Tables that may be captured once they are there.
    pub(in crate::postgres::capture) declared: Declared,
    /// Whoever reads the log ends the poll before a DDL behind which the layout does not fit.
    pub(in crate::postgres::capture) judged: bool,
    /// The layout is not that of the live tables: what is looked up there is held against them by whoever does so.
    pub(in crate::postgres::capture) pending: bool,
}

impl Poll<'_> {
    /// Tables that were dropped, and those that were emptied.
    pub(in crate::postgres::capture) fn whole_tables(&self) -> (&BTreeSet<usize>, &BTreeSet<usize>) {
        (&self.dropped, &self.truncated)
    }

    /// Partitions that came empty, so that the log has all of their rows.
    pub(in crate::postgres::capture) fn created(&self) -> &BTreeSet<u32> {
        &self.created
    }

    /// The log told when the table left.
    pub(in crate::postgres::capture) fn has_left(&self, name: &str) -> bool {
        self.left.contains(name)
    }

    /// Notes what a DDL did as a whole. Its message stands in its transaction behind what it did.
    pub(super) fn ddl(&mut self, transaction: &mut Transaction, ddl: &Ddl) {
        for gone in &ddl.dropped {
            self.leave(transaction, gone.oid, &ddl.tag);
        }
        for table in &ddl.tables {
            let name = table.topology_name();
            if self.watch.leaving.get(&table.oid).is_some_and(|(known, _)| *known != name) {
                self.leave(transaction, table.oid, &format!("it was renamed to `{name}`"));
            }
            // One that was there before may come with rows.
            if ddl.tag != "CREATE TABLE" {
                self.created.retain(|oid| !table.has_part(*oid));
            }
        }
        self.created.extend(ddl.new_partitions());
        let first = self.first == Some(transaction.position);
        if !self.watch.judged && !first && self.concerns(ddl) {
            self.coarse = true;
        }
    }

    fn concerns(&self, ddl: &Ddl) -> bool {
        ddl.failed.is_some()
            || ddl.relations().any(|oid| self.watch.concerned.contains(&oid))
            || ddl.tables.iter().any(|table| self.watch.declared.get(&table.topology_name()).is_some())
    }

    /// A captured table is gone with this transaction, which makes void what else it did to it.
    fn leave(&mut self, transaction: &mut Transaction, oid: u32, reason: &str) {
        let Some((table, kind)) = self.watch.leaving.remove(&oid) else { return };
        transaction.counts = true;
        if let Some(number) = self.layout.by_oid(oid) {
            self.buffer.forget(number, Some(transaction.position));
            self.dropped.insert(number);
        }
        self.left.insert(table.clone());
        self.events.push(TableEvent {
            table,
            kind,
            event: TableEventKind::Dropped,
            at: transaction.at,
            position: Some(transaction.position),
            reason: reason.to_owned(),
        });
    }
}

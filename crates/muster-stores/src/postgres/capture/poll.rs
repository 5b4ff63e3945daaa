//! One poll: items of the log in, changes by site out.
//!
//! # Invariants
//! - Transactions that were read before are passed over: a session that begins anew repeats nothing.
//! - A change of a table that has to be read again whole is not handed on: its rows at the boundary stand for it.

mod watch;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_rows::{Op, Row};
use muster_types::segment::{ChangeStamp, Commit, Mark, TableEvent, TableEventKind};
use muster_types::{Boundary, ChangeKey, Position, Timestamp};

use super::buffer::{self, Buffer, completed, reduced};
use super::ddl::{DDL, Ddl};
use super::layout::{Layout, RowOwner};
use super::owner::{Link, Node, Owners, link_of};
use super::pgoutput::{OldImage, Relation};
use super::stream::Item;
use crate::capture::{CaptureError, ChangeSink};
pub(super) use watch::Watch;

/// Commits that one segment lists: an index of some 100 MB before compression. A poll of more, after capture was away for
/// long, has its end as its only recovery point.
const COMMITS_MAX: usize = 2_000_000;

/// Changes in memory before they are handed on.
const BUFFER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Messages of Muster's own in the log.
pub(super) const HEARTBEAT: &str = "muster.heartbeat";
const MARK: &str = "muster.mark";

/// A transaction being read.
struct Transaction {
    position: Position,
    at: Timestamp,
    ordinal: u64,
    mark: Option<Arc<Mark>>,
    heartbeat: Option<String>,
    /// It changed captured tables.
    counts: bool,
    /// Some of its changes were handed on already.
    flushed: bool,
    /// It was read before.
    passed_over: bool,
}

/// The end of a transaction.
#[derive(Debug)]
pub(super) struct Committed {
    pub(super) heartbeat: Option<String>,
    pub(super) end: u64,
}

/// See the module.
pub(super) struct Poll<'a> {
    layout: &'a Layout,
    watch: Watch,
    sink: &'a mut dyn ChangeSink,
    numbers: Vec<Option<usize>>,
    tables_told: usize,
    pub(super) owners: Owners,
    buffer: Buffer,
    reread: BTreeMap<usize, String>,
    truncated: BTreeSet<usize>,
    events: Vec<TableEvent>,
    commits: Vec<Commit>,
    changes: u64,
    /// The first transaction that was not read before.
    first: Option<Position>,
    /// Partitions that came empty.
    created: BTreeSet<u32>,
    dropped: BTreeSet<usize>,
    /// Tables whose leaving has a place.
    left: BTreeSet<String>,
    /// Rows between the beginning and the end are not known of all tables.
    coarse: bool,
    /// The last transaction that was read, and the latest of all times up to it.
    reached: Boundary,
    transaction: Option<Transaction>,
}

impl<'a> Poll<'a> {
    pub(super) fn new(
        layout: &'a Layout,
        after: Boundary,
        watch: Watch,
        sink: &'a mut dyn ChangeSink,
    ) -> Self {
        Self {
            layout,
            watch,
            sink,
            numbers: vec![None; layout.tables.len()],
            tables_told: 0,
            owners: Owners::default(),
            buffer: Buffer::default(),
            reread: BTreeMap::new(),
            truncated: BTreeSet::new(),
            events: Vec::new(),
            commits: Vec::new(),
            changes: 0,
            first: None,
            created: BTreeSet::new(),
            dropped: BTreeSet::new(),
            left: BTreeSet::new(),
            coarse: false,
            reached: after,
            transaction: None,
        }
    }

    /// The last transaction that was read.
    pub(super) fn reached(&self) -> Boundary {
        self.reached
    }

    /// Whether a transaction begins that lies at or behind `position`.
    pub(super) fn is_at(&self, item: &Item, position: Position) -> bool {
        matches!(item, Item::Begin { position: found, .. } if *found >= position)
    }

    /// `table` and what it owns have to be read again whole.
    pub(super) fn read_again(&mut self, table: usize, reason: &str) {
        self.add_reread(table, reason);
        let because = format!("`{}`, which owns it, is read again", self.layout.tables[table].name());
        for below in self.layout.descendants(table) {
            self.add_reread(below, &because);
        }
    }

    fn add_reread(&mut self, table: usize, reason: &str) {
        if let Entry::Vacant(place) = self.reread.entry(table) {
            place.insert(reason.to_owned());
            self.buffer.forget(table, None);
        }
    }

    pub(super) fn rereads(&self) -> &BTreeMap<usize, String> {
        &self.reread
    }

    pub(super) fn was_truncated(&self, table: usize) -> bool {
        self.truncated.contains(&table)
    }

    /// Only the end is a recovery point.
    pub(super) fn be_coarse(&mut self) {
        self.coarse = true;
    }

    /// Between two transactions.
    pub(super) fn is_between(&self) -> bool {
        self.transaction.is_none()
    }

    pub(super) fn add_event(&mut self, event: TableEvent) {
        self.events.push(event);
    }

    /// Nothing was found.
    pub(super) fn is_empty(&self) -> bool {
        self.changes == 0
            && self.reread.is_empty()
            && self.events.is_empty()
            && self.buffer.entries().is_empty()
    }

    pub(super) fn is_over_budget(&self) -> bool {
        self.buffer.bytes() > BUFFER_BYTES_MAX
    }

    /// What is left after handing on would soon be handed on again.
    pub(super) fn is_half_full(&self) -> bool {
        self.buffer.bytes() > BUFFER_BYTES_MAX / 2
    }

    /// The live tables say so. Of a row that is not there nothing is known where the log did not tell of its end.
    pub(super) fn provide(&mut self, node: Node, link: Option<Link>) {
        if link.is_none() && self.is_doubtful(node.table) {
            let reason = format!(
                "rows of `{}`, which owns it, went without a word",
                self.layout.tables[node.table].name()
            );
            for below in self.layout.descendants(node.table) {
                self.add_reread(below, &reason);
            }
        }
        self.owners.provide(node, link);
    }

    /// Takes the next item of the log.
    pub(super) fn take(&mut self, item: Item) -> Result<Option<Committed>, CaptureError> {
        if let Item::Begin { position, at } = item {
            if position > self.reached.position {
                self.first.get_or_insert(position);
            }
            self.transaction = Some(Transaction {
                position,
                at,
                ordinal: 0,
                mark: None,
                heartbeat: None,
                counts: false,
                flushed: false,
                passed_over: position <= self.reached.position,
            });
            return Ok(None);
        }
        let Some(mut transaction) = self.transaction.take() else {
            return Err(CaptureError::transient(
                "the change log has a change outside of a transaction",
                "capture connects anew",
            ));
        };
        let committed = match item {
            Item::Commit { end } => return Ok(Some(self.commit(transaction, end))),
            _ if transaction.passed_over => Ok(()),
            Item::Message { prefix, content } if prefix == DDL => {
                self.ddl(&mut transaction, &Ddl::read(&content));
                Ok(())
            }
            Item::Message { prefix, content } => {
                message(&mut transaction, &prefix, &content);
                Ok(())
            }
            Item::Truncate { relations } => {
                relations.iter().for_each(|relation| self.truncate(&mut transaction, relation));
                Ok(())
            }
            Item::Insert { relation, new } => {
                self.change(&mut transaction, &relation, |poll, transaction, table| {
                    poll.insert(transaction, table, new)
                });
                Ok(())
            }
            Item::Update { relation, old, new } => {
                self.change(&mut transaction, &relation, |poll, transaction, table| {
                    poll.update(transaction, table, old, new)
                });
                Ok(())
            }
            Item::Delete { relation, old } => {
                self.change(&mut transaction, &relation, |poll, transaction, table| {
                    poll.delete(transaction, table, old)
                });
                Ok(())
            }
            Item::Begin { .. } => Ok(()),
        };
        self.transaction = Some(transaction);
        committed.map(|()| None)
    }

    fn commit(&mut self, transaction: Transaction, end: u64) -> Committed {
        if !transaction.passed_over {
            self.reached =
                Boundary { position: transaction.position, at: self.reached.at.max(transaction.at) };
            if transaction.counts || transaction.heartbeat.is_some() {
                if self.commits.len() < COMMITS_MAX {
                    self.commits.push(Commit { position: transaction.position, at: transaction.at });
                } else {
                    self.coarse = true;
                }
            }
        }
        Committed { heartbeat: transaction.heartbeat, end }
    }

    /// The captured table of a change, unless it is one that is read again anyway.
    fn change(
        &mut self,
        transaction: &mut Transaction,
        relation: &Relation,
        work: impl FnOnce(&mut Self, &mut Transaction, usize) -> Result<(), super::owner::Untold>,
    ) {
        let Some(table) = self.layout.by_relation(relation) else { return };
        transaction.counts = true;
        if self.reread.contains_key(&table) {
            return;
        }
        if !self.layout.tables[table].fits(relation) {
            self.read_again(table, "its columns changed");
        } else if !self.layout.tables[table].is_identified_by(relation) {
            self.read_again(table, "its replica identity was another for a time");
        } else if work(self, transaction, table).is_err() {
            self.read_again(table, "the log did not say to whom a row belongs");
        }
    }

    fn insert(
        &mut self,
        transaction: &mut Transaction,
        table: usize,
        new: Row,
    ) -> Result<(), super::owner::Untold> {
        let link = link_of(self.layout, table, &new)?;
        self.owners.note(self.layout, table, &new, &link);
        self.push(transaction, table, &link, None, Op::Insert { new });
        Ok(())
    }

    fn delete(
        &mut self,
        transaction: &mut Transaction,
        table: usize,
        old: OldImage,
    ) -> Result<(), super::owner::Untold> {
        let old = self.old_row(table, old);
        let link = link_of(self.layout, table, &old)?;
        self.owners.note(self.layout, table, &old, &link);
        self.push(transaction, table, &link, None, Op::Delete { old });
        Ok(())
    }

    fn update(
        &mut self,
        transaction: &mut Transaction,
        table: usize,
        old: Option<OldImage>,
        new: Row,
    ) -> Result<(), super::owner::Untold> {
        let full = old.as_ref().is_some_and(|old| self.is_whole(table, old));
        let old = match old {
            Some(old) => self.old_row(table, old),
            // Nothing of the replica identity changed.
            None => reduced(&new, &self.layout.tables[table].identity),
        };
        // Key and owner are never too large to be repeated, and others come with the whole old row.
        let new = if full { completed(&new, &old) } else { new };
        let (old_link, link) = (link_of(self.layout, table, &old)?, link_of(self.layout, table, &new)?);
        self.owners.note(self.layout, table, &old, &old_link);
        self.owners.note(self.layout, table, &new, &link);
        let moved = old_link != link;
        if moved && !self.layout.tables[table].referenced.is_empty() {
            self.owners.may_have_moved(table, old_link.clone(), link.clone());
        }
        self.push(transaction, table, &link, moved.then_some(&old_link), Op::Update { old, new });
        Ok(())
    }

    fn old_row(&self, table: usize, old: OldImage) -> Row {
        let row = &old.row;
        if self.is_whole(table, &old) { old.row } else { reduced(row, &self.layout.tables[table].identity) }
    }

    /// A partitioned table's changes come under its own replica identity with old rows as their partition's has them: the
    /// log may call whole what has only a key.
    fn is_whole(&self, table: usize, old: &OldImage) -> bool {
        let live = &self.layout.tables[table].live;
        old.full && (!live.partitioned || live.logs_full_rows())
    }

    fn push(
        &mut self,
        transaction: &mut Transaction,
        table: usize,
        link: &Link,
        old_link: Option<&Link>,
        op: Op,
    ) {
        let key = ChangeKey { position: transaction.position, ordinal: transaction.ordinal };
        let stamp = ChangeStamp { key, at: transaction.at };
        // A row that changes its site is two changes.
        transaction.ordinal += 1 + u64::from(old_link.is_some());
        // As it is known here: the same key may be another site's later.
        let (link, old_link) = (self.owners.follow(link), old_link.map(|link| self.owners.follow(link)));
        let mark = transaction.mark.clone();
        self.buffer.push(buffer::Entry { table, stamp, mark, link, old_link, op });
    }

    fn truncate(&mut self, transaction: &mut Transaction, relation: &Relation) {
        let Some(table) = self.layout.by_relation(relation) else { return };
        transaction.counts = true;
        self.truncated.insert(table);
        if self.reread.contains_key(&table) {
            return;
        }
        if transaction.flushed {
            return self.read_again(table, "a large transaction changed and then truncated it");
        }
        // What the transaction did to the table before is void; so the table is empty as the transaction begins.
        self.buffer.forget(table, Some(transaction.position));
        let captured = &self.layout.tables[table];
        self.events.push(TableEvent {
            table: captured.name().to_owned(),
            kind: captured.table.kind.clone(),
            event: TableEventKind::Truncated,
            at: transaction.at,
            position: Some(Position(transaction.position.0 - 1)),
            reason: "TRUNCATE".to_owned(),
        });
    }

    /// Holds what was looked up against an item that lies behind the poll's end.
    pub(super) fn verify(&mut self, item: &Item) {
        let (relation, old) = match item {
            Item::Update { relation, old: Some(old), .. } | Item::Delete { relation, old } => (relation, old),
            Item::Truncate { relations } => {
                let unclear = relations.iter().any(|relation| self.is_looked_up(relation.id));
                return self.owners.doubt_if(unclear);
            }
            Item::Message { prefix, content } if prefix == DDL && !self.watch.pending => {
                let unclear = Ddl::read(content).relations().any(|oid| self.is_looked_up(oid));
                return self.owners.doubt_if(unclear);
            }
            _ => return,
        };
        let Some(table) = self.layout.by_relation(relation) else { return };
        if !self.layout.tables[table].begins(relation) {
            return self.owners.doubt_if(self.is_looked_up(relation.id));
        }
        let old = self.old_row(table, old.clone());
        match link_of(self.layout, table, &old) {
            Ok(link) => self.owners.verify(self.layout, table, &old, &link),
            Err(_) => self.owners.doubt_if(self.is_looked_up(relation.id)),
        }
    }

    /// Rows of this table own others.
    fn is_looked_up(&self, oid: u32) -> bool {
        self.layout.by_oid(oid).is_some_and(|table| !self.layout.tables[table].referenced.is_empty())
    }

    /// Parent rows that changes wait for.
    pub(super) fn wanted(&self) -> BTreeSet<Node> {
        let mut wanted = self.owners.wanted();
        for entry in self.buffer.entries() {
            wanted.extend(self.owners.unknown(&entry.link));
            wanted.extend(entry.old_link.as_ref().and_then(|link| self.owners.unknown(link)));
        }
        wanted
    }

    /// What was looked up cannot be held against the log: what hangs on it is read again.
    pub(super) fn distrust_look_ups(&mut self) {
        for table in 0..self.layout.tables.len() {
            if matches!(self.layout.tables[table].owner, RowOwner::Parent { .. }) {
                self.add_reread(
                    table,
                    "too much was written while the rows that own its rows were looked up",
                );
            }
        }
    }

    fn is_doubtful(&self, table: usize) -> bool {
        self.owners.has_forgotten() || self.truncated.contains(&table)
    }

    /// What the log cannot tell is read again: rows whose parents moved, rows that moved and did not come whole.
    pub(super) fn settle(&mut self) {
        self.settle_incomplete();
        for (table, reason) in self.owners.take_moved() {
            for below in self.layout.descendants(table) {
                self.add_reread(below, &reason);
            }
        }
    }

    /// Rows that changed their site come whole, or their table does.
    fn settle_incomplete(&mut self) {
        for table in self.buffer.incomplete(&self.owners) {
            self.read_again(table, "a row changed its site, and the log does not carry all of its columns");
        }
    }

    /// Hands on what is known.
    pub(super) fn flush(&mut self) -> Result<(), CaptureError> {
        self.settle_incomplete();
        self.owners.hand_on();
        if let Some(transaction) = &mut self.transaction {
            transaction.flushed = true;
        }
        let (layout, numbers, told, sink) =
            (self.layout, &mut self.numbers, &mut self.tables_told, &mut *self.sink);
        let changes = &mut self.changes;
        self.buffer.flush(&self.owners, |placed| {
            let number = number_of(layout, numbers, told, placed.table, sink)?;
            *changes += 1;
            sink.change(placed.site.as_ref(), number, placed.mark.as_deref(), placed.change)
        })
    }

    /// What waits for rows that are nowhere is read again.
    pub(super) fn give_up_waiting(&mut self) {
        let waiting: BTreeSet<usize> = self.buffer.entries().iter().map(|entry| entry.table).collect();
        for table in waiting {
            self.read_again(table, "too many of its rows belong to rows that cannot be found");
        }
    }

    /// Tells events and commits; rows of tables that are read again come behind.
    pub(super) fn finish(mut self, boundary: Boundary) -> Result<Finished<'a>, CaptureError> {
        self.flush()?;
        // What has a place of its own comes before what stands at the end.
        for event in self.events {
            self.sink.table_event(event)?;
        }
        let mut again = Vec::new();
        for (table, reason) in std::mem::take(&mut self.reread) {
            let captured = &self.layout.tables[table];
            again.push((
                table,
                number_of(self.layout, &mut self.numbers, &mut self.tables_told, table, self.sink)?,
            ));
            self.sink.table_event(TableEvent {
                table: captured.name().to_owned(),
                kind: captured.table.kind.clone(),
                event: TableEventKind::Reread,
                at: boundary.at,
                position: Some(boundary.position),
                reason,
            })?;
        }
        if again.is_empty() && !self.coarse {
            for commit in self.commits {
                self.sink.commit(commit)?;
            }
        }
        Ok(Finished { sink: self.sink, again, changes: self.changes })
    }
}

/// What is left to do at the end of a poll.
pub(super) struct Finished<'a> {
    pub(super) sink: &'a mut dyn ChangeSink,
    /// Tables to read again, with the sink's number of each.
    pub(super) again: Vec<(usize, usize)>,
    pub(super) changes: u64,
}

/// The sink's number of a table, which it is told of at its first use.
fn number_of(
    layout: &Layout,
    numbers: &mut [Option<usize>],
    told: &mut usize,
    table: usize,
    sink: &mut dyn ChangeSink,
) -> Result<usize, CaptureError> {
    if let Some(number) = numbers[table] {
        return Ok(number);
    }
    sink.table(&layout.tables[table].table)?;
    let number = *told;
    *told += 1;
    numbers[table] = Some(number);
    Ok(number)
}

fn message(transaction: &mut Transaction, prefix: &str, content: &[u8]) {
    match prefix {
        HEARTBEAT => transaction.heartbeat = Some(String::from_utf8_lossy(content).into_owned()),
        MARK => {
            // Any role may write such a message: one that is no mark must not stop capture.
            match serde_json::from_slice(content) {
                Ok(mark) => transaction.mark = Some(Arc::new(mark)),
                Err(error) => tracing::warn!(
                    "the mark of the transaction at position {} cannot be read and is passed over: {error}",
                    transaction.position
                ),
            }
        }
        _ => {}
    }
}

//! Changes of a poll in memory, until they are sorted and handed on.

use std::sync::Arc;

use muster_rows::{Change, Class, Op, Row, RowBuilder};
use muster_types::segment::{ChangeStamp, Mark};
use muster_types::{ChangeKey, Position, SiteId};

use super::owner::{Link, Owners};
use crate::capture::CaptureError;

/// A change whose site may not be known yet.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) table: usize,
    pub(super) stamp: ChangeStamp,
    pub(super) mark: Option<Arc<Mark>>,
    /// Of the row after the change, or before a deletion.
    pub(super) link: Link,
    /// Of the row before an update, where it differs.
    pub(super) old_link: Option<Link>,
    pub(super) op: Op,
}

/// A change with its site.
pub(super) struct Placed {
    pub(super) site: Option<SiteId>,
    pub(super) table: usize,
    pub(super) mark: Option<Arc<Mark>>,
    pub(super) change: Change,
}

impl Entry {
    fn bytes(&self) -> usize {
        let rows = match &self.op {
            Op::Insert { new } => new.heap_bytes(),
            Op::Update { old, new } => old.heap_bytes() + new.heap_bytes(),
            Op::Delete { old } => old.heap_bytes(),
            Op::Truncate => 0,
        };
        size_of::<Self>() + rows
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Buffer {
    entries: Vec<Entry>,
    bytes: usize,
}

impl Buffer {
    pub(super) fn push(&mut self, entry: Entry) {
        self.bytes += entry.bytes();
        self.entries.push(entry);
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Forgets the changes of `table`, or only those at `position`; gives their number.
    pub(super) fn forget(&mut self, table: usize, position: Option<Position>) -> usize {
        let before = self.entries.len();
        self.entries.retain(|entry| {
            entry.table != table || position.is_some_and(|position| entry.stamp.key.position != position)
        });
        self.bytes = self.entries.iter().map(Entry::bytes).sum();
        before - self.entries.len()
    }

    /// Tables with rows that changed their site and that the log does not carry whole.
    pub(super) fn incomplete(&self, owners: &Owners) -> Vec<usize> {
        let lacks = |entry: &&Entry| {
            let Op::Update { new, .. } = &entry.op else { return false };
            let moved =
                entry.old_link.as_ref().is_some_and(|old| owners.follow(old) != owners.follow(&entry.link));
            moved && new.fields().any(|field| field.class == Class::Unchanged)
        };
        let mut tables: Vec<usize> = self.entries.iter().filter(lacks).map(|entry| entry.table).collect();
        tables.sort_unstable();
        tables.dedup();
        tables
    }

    /// Hands on, sorted, the changes whose site is known. None may be of a table of [`Self::incomplete`].
    pub(super) fn flush(
        &mut self,
        owners: &Owners,
        mut emit: impl FnMut(Placed) -> Result<(), CaptureError>,
    ) -> Result<(), CaptureError> {
        let mut placed: Vec<Placed> = Vec::with_capacity(self.entries.len());
        let entries = std::mem::take(&mut self.entries);
        let kept: Vec<Entry> =
            entries.into_iter().filter_map(|entry| place(entry, owners, &mut placed)).collect();
        placed.sort_by(|one, other| {
            let key = |placed: &Placed| placed.change.stamp.key;
            (&one.site, one.table, &one.mark)
                .cmp(&(&other.site, other.table, &other.mark))
                .then_with(|| key(one).cmp(&key(other)))
        });
        self.bytes = kept.iter().map(Entry::bytes).sum();
        self.entries = kept;
        placed.into_iter().try_for_each(&mut emit)
    }
}

/// Gives the entry back when its site is not known.
fn place(entry: Entry, owners: &Owners, placed: &mut Vec<Placed>) -> Option<Entry> {
    let Link::Site(site) = owners.follow(&entry.link) else { return Some(entry) };
    let old_site = match entry.old_link.as_ref().map(|link| owners.follow(link)) {
        None => None,
        Some(Link::Site(old)) => Some(old).filter(|old| *old != site),
        Some(Link::Parent(_)) => return Some(entry),
    };
    let Entry { table, stamp, mark, op, .. } = entry;
    let one = |site, mark, stamp, op| Placed { site, table, mark, change: Change { stamp, op } };
    match (old_site, op) {
        (Some(old_site), Op::Update { old, new }) => {
            let behind = ChangeKey { ordinal: stamp.key.ordinal + 1, ..stamp.key };
            placed.push(one(old_site, mark.clone(), stamp, Op::Delete { old }));
            placed.push(one(site, mark, ChangeStamp { key: behind, ..stamp }, Op::Insert { new }));
        }
        (_, op) => placed.push(one(site, mark, stamp, op)),
    }
    None
}

/// `row` with the fields that it does not repeat taken from `before`.
pub(super) fn completed(row: &Row, before: &Row) -> Row {
    let mut builder = RowBuilder::new();
    for (field, old) in row.fields().zip(before.fields()) {
        let field = if field.class == Class::Unchanged { old } else { field };
        builder.push(field.class, field.bytes);
    }
    builder.take()
}

/// `row` reduced to the columns of the replica identity: nothing is known of the others.
pub(super) fn reduced(row: &Row, identity: &[usize]) -> Row {
    let mut builder = RowBuilder::new();
    for (column, field) in row.fields().enumerate() {
        let class = if identity.contains(&column) { field.class } else { Class::Unchanged };
        builder.push(class, field.bytes);
    }
    builder.take()
}

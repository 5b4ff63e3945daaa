//! Whose a changed row is.
//!
//! A row with a tenant column says it itself. Any other names a row of its parent table, and what the log says of that
//! row leads on: what it said up to here, or else the first thing that it says later. What the log does not touch is
//! read from the live tables after the poll's end, and held against what the log brings until then: its first word on a row
//! behind the end goes before the live table's.
//!
//! # Invariants
//! - A parent row that changed its site, or a key that passed from one site to another, is noticed: the tables below are
//!   read again whole, since the log does not repeat their rows.
//! - Memory is bounded: what is forgotten is looked up again, and what then cannot be told is read again whole.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use muster_rows::{Class, Row};
use muster_types::SiteId;

use super::layout::{Captured, Layout, RowOwner};

/// Rows of parent tables that are remembered in one poll: about 100 MB.
const KNOWN_MAX: usize = 500_000;

/// Moves that are looked into one by one; beyond, the tables below are read again.
const MOVES_MAX: usize = 50_000;

/// A row of a parent table, by a key that its children hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Node {
    pub(super) table: usize,
    pub(super) column: usize,
    pub(super) value: Box<[u8]>,
}

/// What a row says of its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Site(Option<SiteId>),
    Parent(Node),
}

/// The log did not carry the column that tells the owner.
#[derive(Clone, Copy, Debug)]
pub(super) struct Untold;

/// A site from the text of a tenant column, without the blanks that `char(n)` is filled up with.
pub(super) fn site_of(text: &[u8]) -> Option<SiteId> {
    let text = std::str::from_utf8(text).ok()?;
    SiteId::new(text).ok()
}

/// What `row` of `table` says of its owner.
pub(super) fn link_of(layout: &Layout, table: usize, row: &Row) -> Result<Link, Untold> {
    let (column, parent) = match layout.tables[table].owner {
        RowOwner::Nobody => return Ok(Link::Site(None)),
        RowOwner::Site(ref site) => return Ok(Link::Site(Some(site.clone()))),
        RowOwner::Tenant(column) => (column, None),
        RowOwner::Parent { column, table, key } => (column, Some((table, key))),
    };
    let field = row.get(column).ok_or(Untold)?;
    match (field.class, parent) {
        (Class::Null, _) => Ok(Link::Site(None)),
        (Class::Unchanged, _) => Err(Untold),
        (_, None) => Ok(Link::Site(site_of(unpadded(&layout.tables[table], column, field.bytes)))),
        (_, Some((table, column))) => Ok(Link::Parent(Node { table, column, value: field.bytes.into() })),
    }
}

fn unpadded<'t>(table: &Captured, column: usize, text: &'t [u8]) -> &'t [u8] {
    if !table.is_padded(column) {
        return text;
    }
    let end = text.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
    &text[..end]
}

struct Known {
    link: Link,
    /// Read from the live table, not from the log; with the number of times that changes were handed on before.
    live: Option<u32>,
}

/// What one poll has learnt of parent rows.
#[derive(Default)]
pub(super) struct Owners {
    known: HashMap<Node, Known>,
    /// (table, before, after) of rows that may have changed their site.
    moves: Vec<(usize, Link, Link)>,
    moved: BTreeSet<usize>,
    forgot: bool,
    handed_on: u32,
    /// Something was looked up that the log was not yet held against.
    pub(super) unverified: bool,
    /// Something was looked up.
    pub(super) looked_up: bool,
    /// The log cannot be held against what was looked up.
    pub(super) unclear: bool,
}

impl Owners {
    /// As far as it is known: a site, or the row of which nothing is known.
    pub(super) fn follow(&self, link: &Link) -> Link {
        let mut link = link;
        while let Link::Parent(node) = link {
            match self.known.get(node) {
                Some(known) => link = &known.link,
                None => break,
            }
        }
        link.clone()
    }

    /// The log says that `row` of `table` is there, or was.
    pub(super) fn note(&mut self, layout: &Layout, table: usize, row: &Row, link: &Link) {
        for node in nodes(layout, table, row) {
            if self.known.len() >= KNOWN_MAX {
                self.known.clear();
                self.forgot = true;
            }
            let before = self.known.insert(node, Known { link: link.clone(), live: None });
            if let Some(before) = before
                && before.link != *link
            {
                self.may_have_moved(table, before.link, link.clone());
            }
        }
    }

    /// A row of `table` went from `before` to `after`.
    pub(super) fn may_have_moved(&mut self, table: usize, before: Link, after: Link) {
        if self.moves.len() >= MOVES_MAX {
            self.moved.insert(table);
        } else {
            self.moves.push((table, before, after));
        }
    }

    /// Holds what was looked up against an old image that lies behind the poll's end. The first one of a row is what it
    /// was at the end, whatever the live table says since.
    pub(super) fn verify(&mut self, layout: &Layout, table: usize, row: &Row, link: &Link) {
        for node in nodes(layout, table, row) {
            let Some(known) = self.known.get_mut(&node) else { continue };
            let Some(looked_up) = known.live.take() else { continue };
            let before = std::mem::replace(&mut known.link, link.clone());
            // Changes were handed on with what the live table said.
            if before != *link && looked_up < self.handed_on {
                self.may_have_moved(table, before, link.clone());
            }
        }
    }

    /// Parent rows went or changed in a way that old images do not tell.
    pub(super) fn doubt_if(&mut self, unclear: bool) {
        self.unclear |= unclear;
    }

    /// Changes are handed on as it is known now.
    pub(super) fn hand_on(&mut self) {
        self.handed_on += 1;
    }

    /// Rows that moves hang on and of which nothing is known.
    pub(super) fn wanted(&self) -> BTreeSet<Node> {
        let links = self.moves.iter().flat_map(|(_, before, after)| [before, after]);
        links.filter_map(|link| self.unknown(link)).collect()
    }

    /// The row that `link` hangs on, if nothing is known of it.
    pub(super) fn unknown(&self, link: &Link) -> Option<Node> {
        match self.follow(link) {
            Link::Parent(node) => Some(node),
            Link::Site(_) => None,
        }
    }

    /// The live tables say so; a row that is not there belongs to nobody.
    pub(super) fn provide(&mut self, node: Node, link: Option<Link>) {
        (self.unverified, self.looked_up) = (true, true);
        let link = link.unwrap_or(Link::Site(None));
        self.known.entry(node).or_insert(Known { link, live: Some(self.handed_on) });
    }

    /// Something was forgotten: a row that is not live may have been known.
    pub(super) fn has_forgotten(&self) -> bool {
        self.forgot
    }

    /// Tables whose rows changed their site.
    pub(super) fn take_moved(&mut self) -> BTreeMap<usize, String> {
        let mut moved = std::mem::take(&mut self.moved);
        for (table, before, after) in std::mem::take(&mut self.moves) {
            let (before, after) = (self.follow(&before), self.follow(&after));
            // What cannot be followed to a site is taken to have moved, unless both ends meet.
            if before != after {
                moved.insert(table);
            }
        }
        moved
            .into_iter()
            .map(|table| (table, "rows of the table that owns it changed their site".to_owned()))
            .collect()
    }
}

/// The names that children have for this row.
fn nodes<'r>(layout: &'r Layout, table: usize, row: &'r Row) -> impl Iterator<Item = Node> + 'r {
    layout.tables[table].referenced.iter().filter_map(move |&column| {
        let field = row.get(column)?;
        (field.class == Class::Text).then(|| Node { table, column, value: field.bytes.into() })
    })
}

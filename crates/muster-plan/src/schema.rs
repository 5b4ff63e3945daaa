//! The tables of a shard from one recovery point on: those that all sites share, and those of single sites.
//!
//! # Invariants
//! Groups that did not change are shared between schemas: a schema a site makes a shard of thousands of tables, and each
//! of those that comes or goes a new [`Schema`].

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_types::table::{CapturedTable, Owner};
use muster_types::{Kind, SiteId};

use crate::index::{Numbered, TableRef};
use crate::order::parents_first;

/// Tables of one kind, parents first.
#[derive(Debug, Default)]
pub struct KindTables {
    /// Their definitions.
    pub tables: Arc<Vec<CapturedTable>>,
    /// Their numbers and versions, in the same order.
    pub refs: Vec<TableRef>,
    /// The site whose own tables are among them.
    pub site: Option<SiteId>,
    /// What they were made of.
    made_of: Vec<Numbered>,
}

impl KindTables {
    fn new(site: Option<&SiteId>, tables: &[(Numbered, &CapturedTable)]) -> Self {
        let refs = tables.iter().map(|(numbered, table)| (numbered.at, *table)).collect();
        let sorted = parents_first(refs);
        Self {
            refs: sorted.iter().map(|(at, _)| *at).collect(),
            tables: Arc::new(sorted.into_iter().map(|(_, table)| table.clone()).collect()),
            site: site.cloned(),
            made_of: tables.iter().map(|(numbered, _)| *numbered).collect(),
        }
    }

    /// With `own`, the tables of a site.
    fn and(&self, own: &Self) -> Self {
        let all =
            self.refs.iter().copied().zip(&*self.tables).chain(own.refs.iter().copied().zip(&*own.tables));
        let sorted = parents_first(all.collect());
        Self {
            refs: sorted.iter().map(|(at, _)| *at).collect(),
            tables: Arc::new(sorted.into_iter().map(|(_, table)| table.clone()).collect()),
            site: own.site.clone(),
            made_of: Vec::new(),
        }
    }
}

/// Tables of one kind, all shared or all of one site.
type Group<'t> = Vec<(Numbered, &'t CapturedTable)>;

/// The tables of a shard as they were from one recovery point on.
#[derive(Debug, Default)]
pub struct Schema {
    /// Number in the incarnation, from 0.
    pub number: u32,
    groups: BTreeMap<Kind, BTreeMap<Option<SiteId>, Arc<KindTables>>>,
}

impl Schema {
    /// Of the tables there are, by ascending number; what is as in `before` is shared with it.
    pub(crate) fn new<'t>(
        number: u32,
        tables: impl Iterator<Item = (Numbered, &'t CapturedTable)>,
        before: Option<&Self>,
    ) -> Self {
        let mut found: BTreeMap<(&Kind, Option<&SiteId>), Group<'t>> = BTreeMap::new();
        for (numbered, table) in tables {
            let site = match &table.owner {
                Owner::Site { site } => Some(site),
                _ => None,
            };
            found.entry((&table.kind, site)).or_default().push((numbered, table));
        }
        let mut schema = Self { number, groups: BTreeMap::new() };
        for ((kind, site), tables) in found {
            let known = before.and_then(|before| before.groups.get(kind)?.get(&site.cloned()));
            let same = |known: &&Arc<KindTables>| {
                known.made_of.iter().eq(tables.iter().map(|(numbered, _)| numbered))
            };
            let group =
                known.filter(same).map_or_else(|| Arc::new(KindTables::new(site, &tables)), Arc::clone);
            schema.groups.entry(kind.clone()).or_default().insert(site.cloned(), group);
        }
        schema
    }

    /// The tables of `kind` that can hold rows of `site`; none if there are none.
    pub fn tables(&self, kind: &Kind, site: &SiteId) -> Option<Arc<KindTables>> {
        let groups = self.groups.get(kind)?;
        match (groups.get(&None), groups.get(&Some(site.clone()))) {
            (Some(shared), Some(own)) => Some(Arc::new(shared.and(own))),
            (shared, own) => shared.or(own).map(Arc::clone),
        }
    }

    /// All tables, shared ones and those of single sites.
    pub(crate) fn all(&self) -> impl Iterator<Item = (TableRef, &CapturedTable)> {
        let groups = self.groups.values().flat_map(BTreeMap::values);
        groups.flat_map(|group| group.refs.iter().copied().zip(group.tables.iter()))
    }

    /// The kinds that have tables.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = &Kind> {
        self.groups.keys()
    }

    /// The tables that all sites share, by kind.
    pub(crate) fn shared(&self) -> impl Iterator<Item = &Arc<KindTables>> {
        self.groups.values().filter_map(|by_site| by_site.get(&None))
    }

    /// By kind, the tables that can hold rows of `site`.
    pub fn of_site<'s>(&'s self, site: &'s SiteId) -> impl Iterator<Item = (&'s Kind, Arc<KindTables>)> {
        self.groups.keys().filter_map(|kind| Some((kind, self.tables(kind, site)?)))
    }
}

//! The ends of a site's references: where their rows are, live and in the repository.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_rows::{Class, Row};
use muster_types::journal::Migrated;
use muster_types::plan::{Restoration, TableInput};
use muster_types::reference::{ColumnRef, Reference};
use muster_types::table::{CapturedTable, TableDef};
use muster_types::{ShardName, SiteId, StoreId};

use super::super::context::{Context, StepError};
use crate::driver::StoreProbe;

/// Characters of a value that a message shows.
const VALUE_CHARS_SHOWN: usize = 60;

/// Which end of a reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    From,
    To,
}

/// Columns of rows of one shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Columns {
    value: usize,
    /// Rows count whose fields have these texts.
    only: Vec<(usize, String)>,
}

impl Columns {
    fn of(def: &TableDef, end: &ColumnRef, only: &BTreeMap<String, String>) -> Option<Self> {
        let place = |name: &String| def.stored_columns().position(|column| column.name == *name);
        let only = only.iter().map(|(column, text)| Some((place(column)?, text.clone())));
        Some(Self { value: place(&end.column)?, only: only.collect::<Option<_>>()? })
    }

    /// What the row has there; none where it is NULL, or where the row does not count.
    pub(super) fn key<'r>(&self, row: &'r Row) -> Option<&'r [u8]> {
        let text =
            |place: usize| row.get(place).filter(|field| field.class != Class::Null).map(|field| field.bytes);
        let counts = self.only.iter().all(|(place, wanted)| text(*place) == Some(wanted.as_bytes()));
        text(self.value).filter(|_| counts)
    }
}

/// One end of one reference.
#[derive(Clone, Debug)]
pub(super) struct End {
    /// The pair that it is of.
    pub(super) number: usize,
    side: Side,
    /// The store, among [`Ends::stores`].
    store: usize,
    /// The table, among those of the store.
    pub(super) table: usize,
    column: String,
    /// In live rows.
    pub(super) live: Columns,
    /// In rows at the recovery point; none where there were none.
    pub(super) then: Option<Columns>,
}

/// A table that ends are in.
#[derive(Clone, Debug)]
pub(super) struct EndTable {
    /// Its live rows are read in the columns that ends need, and its key.
    live: CapturedTable,
    /// Its rows at the recovery point, in all columns.
    pub(super) then: Option<(CapturedTable, TableInput)>,
}

impl EndTable {
    /// A row that leads nowhere, in words.
    pub(super) fn example(&self, end: &End, row: &Row, text: &[u8]) -> String {
        let shown = |bytes: &[u8]| -> String {
            String::from_utf8_lossy(bytes).chars().take(VALUE_CHARS_SHOWN).collect()
        };
        let def = &self.live.def;
        let key = def.key.iter().zip(def.key_indexes()).map(|(name, place)| {
            let field = row.get(place).map(|field| shown(field.bytes)).unwrap_or_default();
            format!("{name} {field}")
        });
        let key: Vec<String> = key.collect();
        format!("`{}` with {} has {} `{}`", def.name, key.join(", "), end.column, shown(text))
    }
}

/// A store of the site that has ends.
#[derive(Clone, Debug)]
pub(super) struct EndStore {
    pub(super) id: StoreId,
    pub(super) shard: ShardName,
    pub(super) tables: Vec<EndTable>,
}

impl EndStore {
    /// The tables of some of its ends, each once, in order.
    pub(super) fn numbers_of(&self, ends: &[&End]) -> Vec<usize> {
        ends.iter().map(|end| end.table).collect::<BTreeSet<_>>().into_iter().collect()
    }

    pub(super) fn tables_of(&self, ends: &[&End]) -> Arc<Vec<CapturedTable>> {
        Arc::new(self.numbers_of(ends).into_iter().map(|number| self.tables[number].live.clone()).collect())
    }
}

/// A reference that is counted.
#[derive(Clone, Debug)]
pub(super) struct Pair<'p> {
    pub(super) reference: &'p Reference,
    /// The first pair with the same target.
    pub(super) target: usize,
}

/// Everything that a site's references need.
#[derive(Clone, Debug, Default)]
pub(super) struct Ends<'p> {
    pub(super) stores: Vec<EndStore>,
    ends: Vec<End>,
    pub(super) pairs: Vec<Pair<'p>>,
    /// References that cannot be counted, and why.
    pub(super) unchecked: Vec<(&'p Reference, String)>,
}

/// A store as the plan has it.
struct Planned {
    shard: ShardName,
    /// Live definitions, with what to read of the repository.
    tables: Vec<(CapturedTable, Option<(CapturedTable, TableInput)>)>,
    /// What its live tables lack.
    lacks: Vec<String>,
}

impl<'p> Ends<'p> {
    pub(super) async fn of(
        context: &'p Context,
        site: &SiteId,
        migrated: &BTreeMap<StoreId, Box<Migrated>>,
    ) -> Result<Self, StepError> {
        let planned = planned(context, site, migrated).await?;
        let mut ends = Self::default();
        for number in &context.site(site)?.references {
            let reference = context.plan.references.get(*number as usize).ok_or_else(|| {
                StepError::permanent(format!("the plan lacks a reference of {site}; plan again"))
            })?;
            if let Err(why) = ends.add(site, reference, &planned) {
                ends.unchecked.push((reference, why));
            }
        }
        ends.locate();
        Ok(ends)
    }

    fn add(
        &mut self,
        site: &SiteId,
        reference: &'p Reference,
        planned: &BTreeMap<StoreId, Planned>,
    ) -> Result<(), String> {
        let number = self.pairs.len();
        let [(from, from_where), (to, to_where)] = reference.ends();
        let found = [(Side::From, from, from_where), (Side::To, to, to_where)].map(|(side, end, only)| {
            let id = StoreId { site: site.clone(), kind: end.kind.clone() };
            let store = planned.get(&id).ok_or_else(|| format!("the plan lacks {id}"))?;
            let name = end.table_of(site);
            let lacking = store.lacks.iter().find(|lack| lack.starts_with(&format!("`{name}`")));
            if let Some(lack) = lacking {
                return Err(format!("shard `{}` has no {lack} now", store.shard));
            }
            let table = store.tables.iter().find(|(live, _)| live.def.name == name);
            let (live, then) = table.ok_or_else(|| format!("the plan lacks table `{name}` of {id}"))?;
            let columns = Columns::of(&live.def, end, only);
            let missing = || format!("table `{name}` of {id} has no column `{}`", end.column);
            columns.ok_or_else(missing)?;
            Ok((side, id, store.shard.clone(), end, only, live, then))
        });
        let [from, to] = found;
        for (side, id, shard, end, only, live, then) in [from?, to?] {
            let store = self.store(&id, &shard);
            let table = self.table(store, live, then.as_ref());
            let then = then.as_ref().and_then(|(def, _)| Columns::of(&def.def, end, only));
            // Where in the live columns it is follows once all columns are known.
            let live = Columns { value: 0, only: Vec::new() };
            let column = end.column.clone();
            self.ends.push(End { number, side, store, table, column, live, then });
        }
        let same = |pair: &Pair<'_>| {
            pair.reference.to == reference.to && pair.reference.to_where == reference.to_where
        };
        let target = self.pairs.iter().position(same).unwrap_or(number);
        self.pairs.push(Pair { reference, target });
        Ok(())
    }

    fn store(&mut self, id: &StoreId, shard: &ShardName) -> usize {
        let known = self.stores.iter().position(|store| store.id == *id);
        known.unwrap_or_else(|| {
            self.stores.push(EndStore { id: id.clone(), shard: shard.clone(), tables: Vec::new() });
            self.stores.len() - 1
        })
    }

    fn table(
        &mut self,
        store: usize,
        live: &CapturedTable,
        then: Option<&(CapturedTable, TableInput)>,
    ) -> usize {
        let tables = &mut self.stores[store].tables;
        let known = tables.iter().position(|table| table.live.def.name == live.def.name);
        known.unwrap_or_else(|| {
            tables.push(EndTable { live: live.clone(), then: then.cloned() });
            tables.len() - 1
        })
    }

    /// Finds the places of the ends in the live rows, of which only the columns that some end or the key needs are read.
    fn locate(&mut self) {
        let pairs = &self.pairs;
        let named = |end: &End| {
            let [from, to] = pairs[end.number].reference.ends();
            if end.side == Side::From { from } else { to }
        };
        for (number, store) in self.stores.iter_mut().enumerate() {
            for (place, table) in store.tables.iter_mut().enumerate() {
                let here = self.ends.iter().filter(|end| (end.store, end.table) == (number, place));
                let columns = |(end, only): (&'p ColumnRef, &'p BTreeMap<String, String>)| {
                    std::iter::once(&end.column).chain(only.keys()).cloned()
                };
                let mut wanted: BTreeSet<String> = here.map(named).flat_map(columns).collect();
                let def = &mut table.live.def;
                wanted.extend(def.key.iter().cloned());
                def.columns.retain(|column| wanted.contains(&column.name));
            }
        }
        for end in &mut self.ends {
            let (column, only) = named(end);
            let def = &self.stores[end.store].tables[end.table].live.def;
            if let Some(columns) = Columns::of(def, column, only) {
                end.live = columns;
            }
        }
    }

    /// The ends of one side that are in a store.
    pub(super) fn of_store(&self, store: usize, side: Side) -> Vec<&End> {
        self.ends.iter().filter(|end| end.store == store && end.side == side).collect()
    }
}

/// The stores of a site that the plan restores or that lie beside, with what is live of them.
async fn planned(
    context: &Context,
    site: &SiteId,
    migrated: &BTreeMap<StoreId, Box<Migrated>>,
) -> Result<BTreeMap<StoreId, Planned>, StepError> {
    let plan = context.site(site)?;
    let mut found = BTreeMap::new();
    for store in plan.stores.iter().filter(|store| store.restoration == Restoration::Restored) {
        let id = StoreId { site: site.clone(), kind: store.kind.clone() };
        let work = context.work(&id)?;
        let then = work.tables.iter().cloned().zip(store.tables.iter().cloned()).map(Some);
        let live = work.clone().migrated(migrated.get(&id).map(|migrated| &**migrated));
        let tables = live.tables.iter().cloned().zip(then.collect::<Vec<_>>()).collect();
        found.insert(id, Planned { shard: store.shard.clone(), tables, lacks: Vec::new() });
    }
    for store in &plan.beside {
        let id = StoreId { site: site.clone(), kind: store.kind.clone() };
        let tables = context.tables(&id, store.tables.iter().map(|input| input.table).collect())?;
        let probe = StoreProbe { store: id.clone(), tables: Arc::clone(&tables) };
        let lacks = context.driver(&store.shard)?.lacks(&probe).await?;
        let then = tables.iter().cloned().zip(store.tables.iter().cloned());
        let then: Vec<_> = then.map(|then| (!store.new).then_some(then)).collect();
        let tables = tables.iter().cloned().zip(then).collect();
        found.insert(id, Planned { shard: store.shard.clone(), tables, lacks });
    }
    Ok(found)
}

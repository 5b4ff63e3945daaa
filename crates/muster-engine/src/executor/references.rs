//! References across stores: live rows of a site that refer to rows of another store which are not there.
//!
//! Both ends are read live, in whatever shards they lie: a restored store's rows are the staged ones, those of another one are
//! what lives. Only where something leads nowhere are the rows at the recovery points read, too: what led nowhere then
//! is not held against the restore.
//!
//! # Invariants
//! - Keys are compared by the text of their columns; NULL refers to nothing.
//! - What cannot be counted is told with the counts, and never counted as nothing.

mod ends;
mod tally;

use std::collections::BTreeMap;

use muster_repo::rows;
use muster_rows::Row;
use muster_types::journal::{Migrated, Outcome, ReferenceCount};
use muster_types::{SiteId, StoreId};
use tokio::sync::mpsc;

use self::ends::{End, Ends, Side};
use self::tally::{Counts, KEYS_MAX, Key, Overflow, Part, Tally};
use super::context::{Context, StepError, StepResult};
use crate::driver::{RowBatch, StoreProbe};

/// Batches between a driver and the tally.
const BATCHES_AHEAD: usize = 4;

/// Examples of rows that lead nowhere, of each reference.
const EXAMPLES_MAX: usize = 5;

/// Counts the references of a site.
pub(super) async fn count(
    context: &Context,
    site: &SiteId,
    migrated: &BTreeMap<StoreId, Box<Migrated>>,
) -> StepResult {
    let ends = Ends::of(context, site, migrated).await?;
    let counting = Counting { context, ends: &ends };
    let mut counts = vec![Counts::default(); ends.pairs.len()];
    let mut examples = vec![Vec::new(); ends.pairs.len()];
    let mut open = vec![Part::WHOLE];
    while let Some(part) = open.pop() {
        match counting.part(part, &mut examples).await? {
            Some(tally) => {
                let of_part = (0..ends.pairs.len()).map(|number| tally.counts(number));
                counts.iter_mut().zip(of_part).for_each(|(sum, counts)| *sum += counts);
            }
            None => open.extend(part.halves()),
        }
    }
    conclude(context, site, &ends, &counts, &examples)
}

fn conclude(
    context: &Context,
    site: &SiteId,
    ends: &Ends<'_>,
    counts: &[Counts],
    examples: &[Vec<String>],
) -> StepResult {
    let broken = ends.pairs.iter().zip(counts).zip(examples).filter(|((_, counts), _)| counts.new > 0);
    let broken: Vec<String> = broken
        .map(|((pair, counts), examples)| {
            format!("{} by {}: {}", counts.new, pair.reference, examples.join(", "))
        })
        .collect();
    if !broken.is_empty() {
        return Err(StepError::permanent(format!(
            "live rows of {site} refer to rows that are not there, and did not before: {}; what is published stays, and the site \
             is not handed back: restore the other store, too, or mend these rows, then `muster resume {}` counts again",
            broken.join("; "),
            context.run,
        )));
    }
    let counted = ends.pairs.iter().zip(counts).map(|(pair, counts)| ReferenceCount {
        reference: pair.reference.to_string(),
        rows: counts.rows,
        orphans_before: counts.old,
        unchecked: None,
    });
    let unchecked = ends.unchecked.iter().map(|(reference, why)| ReferenceCount {
        reference: reference.to_string(),
        rows: 0,
        orphans_before: 0,
        unchecked: Some(why.clone()),
    });
    Ok(Outcome::ReferencesCounted { counts: counted.chain(unchecked).collect() })
}

struct Counting<'a> {
    context: &'a Context,
    ends: &'a Ends<'a>,
}

impl Counting<'_> {
    /// One part of the keys; none where they do not fit.
    async fn part(&self, part: Part, examples: &mut [Vec<String>]) -> Result<Option<Tally>, StepError> {
        let pairs = &self.ends.pairs;
        let mut tally = Tally::new(part, pairs.len(), pairs.len(), KEYS_MAX);
        let there = |tally: &mut Tally, number: usize, key: Key| match pairs[number].target {
            // Several references to one column share its keys.
            target if target == number => tally.is_there(target, key),
            _ => Ok(()),
        };
        if self.live(Side::To, &mut tally, there).await?.is_err() {
            return Ok(None);
        }
        let refers =
            |tally: &mut Tally, number: usize, key: Key| tally.refers(number, pairs[number].target, key);
        if self.live(Side::From, &mut tally, refers).await?.is_err() {
            return Ok(None);
        }
        if (0..pairs.len()).any(|number| tally.has_orphans(number)) {
            self.then(Side::From, &mut tally).await?;
            self.then(Side::To, &mut tally).await?;
        }
        if (0..pairs.len()).any(|number| tally.counts(number).new > 0) {
            self.find_examples(&tally, examples).await?;
        }
        Ok(Some(tally))
    }

    /// Reads the live rows of one side of all references, and ends with the first overflow.
    async fn live(
        &self,
        side: Side,
        tally: &mut Tally,
        mut take: impl FnMut(&mut Tally, usize, Key) -> Result<(), Overflow>,
    ) -> Result<Result<(), Overflow>, StepError> {
        for store in 0..self.ends.stores.len() {
            let ends = self.ends.of_store(store, side);
            let mut overflow = Ok(());
            self.live_rows(store, &ends, |end, row| {
                if let Some(text) = end.live.key(row) {
                    overflow = overflow.and_then(|()| take(tally, end.number, Key::of(text)));
                }
                overflow.is_ok()
            })
            .await?;
            if overflow.is_err() {
                return Ok(overflow);
            }
        }
        Ok(Ok(()))
    }

    /// Hands each live row of a store to the ends that are in its table, until one has enough.
    async fn live_rows(
        &self,
        store: usize,
        ends: &[&End],
        mut take: impl FnMut(&End, &Row) -> bool,
    ) -> Result<(), StepError> {
        if ends.is_empty() {
            return Ok(());
        }
        let store = &self.ends.stores[store];
        let driver = self.context.driver(&store.shard)?;
        let probe = StoreProbe { store: store.id.clone(), tables: store.tables_of(ends) };
        let numbers = store.numbers_of(ends);
        let (sender, mut batches) = mpsc::channel::<RowBatch>(BATCHES_AHEAD);
        let read = async move {
            while let Some(batch) = batches.recv().await {
                let Some(&table) = numbers.get(batch.table) else { continue };
                let of_table: Vec<&&End> = ends.iter().filter(|end| end.table == table).collect();
                for row in &batch.rows {
                    if !of_table.iter().all(|end| take(end, row)) {
                        return;
                    }
                }
            }
        };
        let (sent, ()) = tokio::join!(driver.live_rows(&probe, sender), read);
        Ok(sent?)
    }

    /// Reads one side at the recovery points, of the references that have rows which lead nowhere.
    async fn then(&self, side: Side, tally: &mut Tally) -> Result<(), StepError> {
        let reader = self.context.rows.reader_of_its_own();
        for (store, found) in self.ends.stores.iter().enumerate() {
            let ends = self.ends.of_store(store, side);
            let ends: Vec<&End> = ends.into_iter().filter(|end| tally.has_orphans(end.number)).collect();
            for (table, stored) in found.tables.iter().enumerate() {
                let of_table: Vec<&End> = ends.iter().copied().filter(|end| end.table == table).collect();
                let Some((definition, input)) = stored.then.as_ref().filter(|_| !of_table.is_empty()) else {
                    continue;
                };
                let (objects, budget) = (&self.context.plan.objects, self.context.options.fold_bytes);
                let mut stream = rows::open(&reader, definition, input, objects, budget);
                while let Some(rows) = stream.next().await {
                    for (row, end) in rows.iter().flat_map(|row| of_table.iter().map(move |end| (row, end))) {
                        let Some(text) = end.then.as_ref().and_then(|columns| columns.key(row)) else {
                            continue;
                        };
                        if let Some(orphan) = tally.orphan(end.number, Key::of(text)) {
                            match side {
                                Side::From => orphan.referred_then = true,
                                Side::To => orphan.there_then = true,
                            }
                        }
                    }
                }
                stream.finish().await?;
            }
        }
        Ok(())
    }

    /// Reads the live rows that refer once more, for the first of those that lead nowhere and did not before.
    async fn find_examples(&self, tally: &Tally, examples: &mut [Vec<String>]) -> Result<(), StepError> {
        for (number, store) in self.ends.stores.iter().enumerate() {
            let ends = self.ends.of_store(number, Side::From);
            let ends: Vec<&End> = ends.into_iter().filter(|end| tally.counts(end.number).new > 0).collect();
            self.live_rows(number, &ends, |end, row| {
                let found = &mut examples[end.number];
                let is_new = |text: &&[u8]| tally.is_new(end.number, Key::of(text));
                if found.len() < EXAMPLES_MAX
                    && let Some(text) = end.live.key(row).filter(is_new)
                {
                    found.push(store.tables[end.table].example(end, row, text));
                }
                true
            })
            .await?;
        }
        Ok(())
    }
}

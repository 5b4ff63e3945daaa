//! Judges one shard.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result};
use rusqlite::Connection;

use super::Reached;
use super::compare::{Comparison, Rows};
use super::verdict::{Difference, Part, StoreVerdict};
use crate::deletion::DeletionLog;
use crate::fleet::Fleet;
use crate::kind::Kind;
use crate::postgres;
use crate::record::{Entry, Shard};
use crate::schema::{self, Owner};

/// A stretch of commit numbers `[from, to)` at which a shard may have been cut.
type Cuts = Vec<(u64, u64)>;

/// The recovery point of a store that had no rows is not told; it lies within so many polls before the deletion, idle
/// polls and slow ones included.
const ABSENT_POLLS: i64 = 5;

/// Judges the shard at `place`.
pub(super) fn judge(
    fleet: &Fleet,
    place: usize,
    log: &DeletionLog,
    reached: &Reached,
    poll_interval_micros: i64,
) -> Result<Part> {
    let shard = &fleet.shards[place];
    let scratch = shard.first.with_extension("judged.db");
    std::fs::copy(&shard.first, &scratch).with_context(|| format!("cannot copy to {}", scratch.display()))?;
    let mut part = Part::new(&shard.name);
    let exported = shard.first.with_extension("live.db");
    {
        let live = live(shard, &exported, &mut part)?;
        let connection = open(&scratch, live)?;
        if shard.database.is_none() {
            schemas(&connection, &mut part)?;
        }
        if part.differences.is_empty() {
            let ledger = shard.ledger();
            let judge = Judge::new(fleet, shard, &connection, &ledger.entries, log, poll_interval_micros)?;
            judge.neighbours(&mut part)?;
            judge.victims(log, reached, &mut part)?;
        }
    }
    for made in [Some(&scratch), shard.database.as_ref().map(|_| &exported)].into_iter().flatten() {
        std::fs::remove_file(made).with_context(|| format!("cannot remove {}", made.display()))?;
    }
    Ok(part)
}

/// The file with the live rows: the shard itself, or an export of its database.
fn live<'a>(shard: &'a Shard, exported: &'a Path, part: &mut Part) -> Result<&'a Path> {
    let Some(database) = &shard.database else { return Ok(&shard.path) };
    if exported.exists() {
        // Of a judge that was interrupted.
        std::fs::remove_file(exported)?;
    }
    for name in postgres::export(database, shard.role, exported)? {
        part.differ(None, "schema", format!("the definition of {name} is not the one that was made"));
    }
    Ok(exported)
}

fn open(scratch: &Path, live: &Path) -> Result<Connection> {
    let connection = Connection::open(scratch)?;
    connection.set_prepared_statement_cache_capacity(256);
    connection.execute_batch(
        "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA foreign_keys = ON;
         PRAGMA temp_store = MEMORY; PRAGMA cache_size = -65536;
         CREATE TEMP TABLE victim (site TEXT PRIMARY KEY) WITHOUT ROWID;",
    )?;
    connection.execute("ATTACH ?1 AS live", [live.to_string_lossy()])?;
    connection.execute_batch("BEGIN")?;
    Ok(connection)
}

/// Tables, indexes and triggers of the application are the ones that were made.
fn schemas(connection: &Connection, part: &mut Part) -> Result<()> {
    let read = |db: &str| -> Result<BTreeSet<(String, String)>> {
        // Muster's own tables and triggers stand beside the application's while it captures.
        let sql = format!(
            "SELECT name, coalesce(sql, '') FROM {db}.sqlite_schema
             WHERE name NOT LIKE '\\_muster\\_%' ESCAPE '\\' AND tbl_name NOT LIKE '\\_muster\\_%' ESCAPE '\\'
             AND name <> 'sqlite_sequence' AND name NOT LIKE 'sqlite\\_stat%' ESCAPE '\\'"
        );
        let mut statement = connection.prepare(&sql)?;
        let all = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
        Ok(all)
    };
    let (must, is) = (read("main")?, read("live")?);
    for (name, _) in must.symmetric_difference(&is) {
        part.differ(None, "schema", format!("the definition of {name} is not the one that was made"));
    }
    Ok(())
}

struct Judge<'a> {
    shard: &'a Shard,
    connection: &'a Connection,
    poll_interval_micros: i64,
    comparisons: Vec<Comparison>,
    neighbours: Vec<&'a Entry>,
    /// By site and kind, in order.
    histories: BTreeMap<(usize, Kind), Vec<&'a Entry>>,
    victims: BTreeSet<usize>,
    fleet: &'a Fleet,
}

/// A store restored to a recovery point, and the cuts that its rows allow.
struct Candidate {
    store: StoreVerdict,
    /// By number of transactions in it: the cuts.
    states: Vec<(usize, (u64, u64))>,
}

impl<'a> Judge<'a> {
    fn new(
        fleet: &'a Fleet,
        shard: &'a Shard,
        connection: &'a Connection,
        entries: &'a [Entry],
        log: &DeletionLog,
        poll_interval_micros: i64,
    ) -> Result<Self> {
        let victims: BTreeSet<usize> = log.sites.iter().map(|site| site.index).collect();
        let (mut neighbours, mut histories) = (Vec::new(), BTreeMap::<_, Vec<_>>::new());
        for entry in entries {
            match entry.site {
                Some(site) if victims.contains(&site) => {
                    histories.entry((site, entry.kind)).or_default().push(entry);
                }
                _ => neighbours.push(entry),
            }
        }
        let mut insert = connection.prepare("INSERT INTO temp.victim VALUES (?1)")?;
        for site in &victims {
            insert.execute([&fleet.sites[*site].id])?;
        }
        let tables = schema::tables(shard.role).iter();
        let comparisons = tables.map(|table| Comparison::new(connection, table)).collect::<Result<_>>()?;
        Ok(Self {
            shard,
            connection,
            poll_interval_micros,
            comparisons,
            neighbours,
            histories,
            victims,
            fleet,
        })
    }

    fn neighbours(&self, part: &mut Part) -> Result<()> {
        for entry in &self.neighbours {
            self.apply(entry)?;
        }
        for comparison in &self.comparisons {
            let outcome = comparison.run(self.connection, Rows::Neighbours)?;
            part.neighbour_rows += outcome.rows;
            if !outcome.equal {
                part.neighbours_equal = false;
                for text in comparison.describe(self.connection, Rows::Neighbours)? {
                    part.differ(None, comparison.table.name, format!("a neighbour's {text}"));
                }
            }
        }
        Ok(())
    }

    fn victims(&self, log: &DeletionLog, reached: &Reached, part: &mut Part) -> Result<()> {
        let mut points: BTreeMap<i64, Vec<Candidate>> = BTreeMap::new();
        let here = log.sites.iter().filter(|site| self.fleet.sites[site.index].region == self.shard.region);
        for site in here {
            for kind in self.shard.role.kinds() {
                let at = reached.get(&(site.site.clone(), kind.name().to_owned())).copied();
                let store = StoreVerdict::new(site.index, kind, site.began_micros, at);
                match at {
                    Some(at) => {
                        let candidate = self.restored(store, at, part)?;
                        points.entry(at).or_default().extend(candidate);
                    }
                    None => self.absent(store, site.began_micros, part)?,
                }
            }
        }
        for (at, candidates) in points {
            self.one_cut(at, candidates, part);
        }
        Ok(())
    }

    /// Finds the states of its history that the restored rows equal, among those that `at` allows.
    fn restored(&self, mut store: StoreVerdict, at: i64, part: &mut Part) -> Result<Option<Candidate>> {
        let history = self.history(store.site, store.kind);
        let (first, last) = self.window(history, at, 1);
        for entry in &history[..first] {
            self.apply(entry)?;
        }
        let mut states = Vec::new();
        for count in first..=last {
            if self.equal(&mut store)? {
                let from = if count == 0 { 0 } else { history[count - 1].number };
                states.push((count, (from, history.get(count).map_or(u64::MAX, |entry| entry.number))));
            }
            if count < last {
                self.apply(history[count])?;
            }
        }
        store.transactions = history.iter().filter(|entry| !entry.deletion).count();
        if states.is_empty() {
            self.explain(&store, at, first..=last, part)?;
            part.stores.push(store);
            return Ok(None);
        }
        Ok(Some(Candidate { store, states }))
    }

    /// A store that did not come back must have had no rows, and have none.
    fn absent(&self, mut store: StoreVerdict, began_micros: i64, part: &mut Part) -> Result<()> {
        let history = self.history(store.site, store.kind);
        let (first, last) = self.window(history, began_micros, ABSENT_POLLS);
        let (mut empty_then, mut equal) = (false, false);
        for entry in &history[..first] {
            self.apply(entry)?;
        }
        // One state more than transactions in the window.
        let mut rest = history[first..last].iter();
        loop {
            if self.is_empty(&store, "main")? {
                empty_then = true;
                equal |= self.equal(&mut store)?;
            }
            let Some(entry) = rest.next() else { break };
            self.apply(entry)?;
        }
        if equal {
            return Ok(());
        }
        let text = match (empty_then, self.is_empty(&store, "live")?) {
            (false, true) => "was not restored (no recovery point), and must have had rows",
            (true, _) => "has rows, and must have had none",
            (false, false) => "has rows, and no recovery point is known for them",
        };
        part.differ(Some((store.site, store.kind)), "store", text.to_owned());
        part.stores.push(store);
        Ok(())
    }

    /// Fewest and most transactions that may be in a state reached at `at`.
    fn window(&self, history: &[&Entry], at: i64, polls: i64) -> (usize, usize) {
        let before = at.saturating_sub(self.poll_interval_micros.saturating_mul(polls));
        let surely = history.iter().take_while(|entry| entry.commit_done < before).count();
        let possibly = history.iter().take_while(|entry| entry.commit_started <= at).count();
        (surely.min(possibly), possibly)
    }

    fn history(&self, site: usize, kind: Kind) -> &[&'a Entry] {
        debug_assert!(self.victims.contains(&site));
        self.histories.get(&(site, kind)).map_or(&[], Vec::as_slice)
    }

    fn is_empty(&self, store: &StoreVerdict, db: &str) -> Result<bool> {
        let site = &self.fleet.sites[store.site].id;
        for comparison in self.tables_of(store.kind) {
            if comparison.any(self.connection, db, site)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn equal(&self, store: &mut StoreVerdict) -> Result<bool> {
        let site = Rows::Site(&self.fleet.sites[store.site].id);
        let mut rows = 0;
        for comparison in self.tables_of(store.kind) {
            let outcome = comparison.run(self.connection, site)?;
            if !outcome.equal {
                return Ok(false);
            }
            rows += outcome.rows;
        }
        store.rows = rows;
        Ok(true)
    }

    /// Tables with rows of single sites: reference tables are compared with the neighbours.
    fn tables_of(&self, kind: Kind) -> impl Iterator<Item = &Comparison> {
        self.comparisons.iter().filter(move |comparison| {
            comparison.table.kind == kind && comparison.table.owner != Owner::Reference
        })
    }

    /// Says how the live rows differ from the latest state that would have been right.
    fn explain(
        &self,
        store: &StoreVerdict,
        at: i64,
        window: std::ops::RangeInclusive<usize>,
        part: &mut Part,
    ) -> Result<()> {
        let site = Rows::Site(&self.fleet.sites[store.site].id);
        let subject = Some((store.site, store.kind));
        let (first, last) = (window.start(), window.end());
        for comparison in self.tables_of(store.kind) {
            for text in comparison.describe(self.connection, site)? {
                let states = format!(
                    "reached {at}, against {last} of its transactions ({first} to {last} would be right)"
                );
                part.differ(subject, comparison.table.name, format!("{text}; {states}"));
            }
        }
        Ok(())
    }

    /// All stores restored to one recovery point stem from one state of the shard.
    fn one_cut(&self, at: i64, candidates: Vec<Candidate>, part: &mut Part) {
        let mut cuts: Cuts = vec![(0, u64::MAX)];
        for candidate in &candidates {
            let both: Cuts = cuts
                .iter()
                .flat_map(|a| candidate.states.iter().map(move |(_, b)| (a.0.max(b.0), a.1.min(b.1))))
                .filter(|(from, to)| from < to)
                .collect();
            if both.is_empty() {
                let text =
                    format!("no single state of the shard gives it together with the others reached at {at}");
                part.differ(Some((candidate.store.site, candidate.store.kind)), "store", text);
            } else {
                cuts = both;
            }
        }
        let cut = cuts.iter().map(|(from, _)| *from).max().unwrap_or_default();
        for Candidate { mut store, states } in candidates {
            let chosen = states.iter().find(|(_, (from, to))| (*from..*to).contains(&cut));
            store.equal = chosen.is_some();
            let count = chosen.or(states.last()).map_or(0, |(count, _)| *count);
            let history = self.history(store.site, store.kind);
            store.lost = history[count..].iter().filter(|entry| !entry.deletion).count();
            if history[..count].iter().any(|entry| entry.deletion) {
                store.equal = false;
                part.differ(
                    Some((store.site, store.kind)),
                    "store",
                    "holds a part of its own deletion".to_owned(),
                );
            }
            part.stores.push(store);
        }
    }

    fn apply(&self, entry: &Entry) -> Result<()> {
        for statement in &entry.statements {
            statement.run(self.connection).with_context(|| format!("replaying {}", statement.sql))?;
        }
        Ok(())
    }
}

impl Part {
    fn differ(&mut self, store: Option<(usize, Kind)>, table: &str, text: String) {
        let difference = Difference {
            shard: self.shard.clone(),
            site: None,
            kind: store.map(|(_, kind)| kind.name().to_owned()),
            table: table.to_owned(),
            text,
        };
        self.differences.push((store.map(|(site, _)| site), difference));
    }
}

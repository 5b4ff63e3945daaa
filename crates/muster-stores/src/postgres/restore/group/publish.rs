//! The stores of a group become live in one transaction.
//!
//! What holds for a publish of one store holds here for each: the same checks, in the same order. Statements that concern
//! all stores are sent once; marks and insertions are each store's own, in one stream of statements that is not waited
//! for in between, so that a change of a row is behind the mark of its store, and a refused insertion tells whose it is.
//!
//! # Invariants
//! - Each store's mark stands before its own insertions and behind those of the one before: the change log attributes each
//!   row to its store's step.
//! - A store with a fault of its own is left out, and the others are published without it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use muster_engine::driver::{DriverError, PublishWork, StoreWork};
use muster_types::journal::{Published, TableDigest};
use muster_types::table::TableDef;
use muster_types::{Position, SiteId, Timestamp};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use super::super::effects::{self, Count, Counts};
use super::super::errors::is_out_of_time;
use super::super::fence::{await_others_of, check_epoch, insert_records, records_of, unclaimed};
use super::super::live::{self, KindTable, kind_tables};
use super::super::owner::column_list;
use super::super::publish::{begin, commit, lock_wait, micros};
use super::super::shard::{Catalog, Session, Shard};
use super::super::stage::{ATTEMPT, StagedRows, existing_all, lost, table_name};
use super::super::{copy, references, sequences};
use super::stage::nothing;
use super::stream::{Answer, Sent, in_one_stream};
use super::{all, fit_together};
use crate::postgres::system::MARK_PREFIX;

/// So often a group is published again without those whose fault was found. Each time may cost one wait for a lock; what is
/// left then has an error in common, and is split.
const ROUNDS_MAX: usize = 4;

/// Publishes a group; none where its stores do not fit together.
pub(in super::super) async fn publish(
    shard: &Shard,
    members: &[PublishWork],
) -> Option<Vec<Result<Published, DriverError>>> {
    if members.len() < 2 || !fit_together(members.iter().map(|member| &member.work)) {
        return None;
    }
    // A table of one site's own may have to be made, or hold its rows though the moment had none of it.
    if shard.tables().has_site_tables(&members.first()?.work.store.kind) {
        return None;
    }
    let mut answers: Vec<Option<Result<Published, DriverError>>> = members.iter().map(|_| None).collect();
    for round in 1..=ROUNDS_MAX {
        let open: Vec<usize> = (0..members.len()).filter(|&index| answers[index].is_none()).collect();
        let these: Vec<&PublishWork> = open.iter().map(|&index| &members[index]).collect();
        if these.is_empty() {
            break;
        }
        match attempt(shard, &these).await {
            Ok(published) => {
                open.iter()
                    .zip(published)
                    .for_each(|(&index, published)| answers[index] = Some(Ok(published)));
            }
            Err(Undone::Apart) => return None,
            Err(Undone::Faults(faults)) if round < ROUNDS_MAX => {
                faults.into_iter().for_each(|(index, error)| answers[open[index]] = Some(Err(error)));
            }
            Err(Undone::Faults(faults)) => {
                let shared = faults.last().map(|(_, error)| error.clone());
                faults.into_iter().for_each(|(index, error)| answers[open[index]] = Some(Err(error)));
                let rest = answers.iter_mut().filter(|answer| answer.is_none());
                rest.for_each(|answer| *answer = shared.clone().map(Err));
            }
            Err(Undone::Whole(error)) => {
                let errors = all(open.len(), &error);
                open.iter().zip(errors).for_each(|(&index, error)| answers[index] = Some(error));
            }
        }
    }
    let unheard = || shard.transient("a group's publish ended without an answer", "the step is tried again");
    Some(answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(unheard()))).collect())
}

/// Why nothing was done.
enum Undone {
    /// These stores have faults of their own, by index.
    Faults(Vec<(usize, DriverError)>),
    /// Whose fault it is is not known, or it is nobody's.
    Whole(DriverError),
    /// They are to be published one after the other.
    Apart,
}

impl From<DriverError> for Undone {
    fn from(error: DriverError) -> Self {
        Self::Whole(error)
    }
}

async fn attempt(shard: &Shard, members: &[&PublishWork]) -> Result<Vec<Published>, Undone> {
    let session = shard.session().await?;
    if shard.known().is_none() {
        live::look_ahead(shard, &session).await;
    }
    let works: Vec<&StoreWork> = members.iter().map(|member| &member.work).collect();
    let Some(first) = works.first() else { return Ok(Vec::new()) };
    let of = match works.len() {
        1 => first.store.to_string(),
        count => format!("{} and {} more", first.store, count - 1),
    };
    let bound = first.writer_block_milliseconds_max.map(Duration::from_millis);
    let transaction = Transaction { shard, client: &session, first, of, bound };
    begin(&session, bound).await.map_err(|error| {
        let standby = shard.standby_error(&format!("publish {}", transaction.of), &error);
        standby.unwrap_or_else(|| transaction.failed("begin", &error))
    })?;
    let since = Instant::now();
    match transaction.run(members, &works, since).await {
        Ok(published) => {
            session.keep();
            Ok(published)
        }
        Err(undone) => {
            roll_back(session).await;
            Err(undone)
        }
    }
}

/// A session that cannot be asked is dropped, and rolled back by the server.
async fn roll_back(session: Session<'_>) {
    if session.batch_execute("ROLLBACK").await.is_ok() {
        session.keep();
    }
}

struct Transaction<'a> {
    shard: &'a Shard,
    client: &'a Client,
    first: &'a StoreWork,
    /// The stores, in words.
    of: String,
    bound: Option<Duration>,
}

/// A store that is published now, with the attempt whose rows count.
pub(super) struct Member<'a> {
    /// Its place among the answers.
    index: usize,
    member: &'a PublishWork,
    attempt: i64,
}

impl Member<'_> {
    fn expected_rows(&self, table: &str) -> u64 {
        self.member.expected.get(table).map_or(0, |digest| digest.rows)
    }

    fn site(&self) -> &SiteId {
        &self.member.work.store.site
    }
}

impl Transaction<'_> {
    async fn run(
        &self,
        members: &[&PublishWork],
        works: &[&StoreWork],
        since: Instant,
    ) -> Result<Vec<Published>, Undone> {
        let (shard, client) = (self.shard, self.client);
        let failed = |error: Error| self.failed("read its records", &error);
        // Sent together and done in this order; of several errors the first is the cause.
        let (epoch, others, records, faults) = tokio::join!(
            check_epoch(shard, client, self.first),
            await_others_of(client, works),
            records_of(client, works),
            unclaimed(shard, client, works),
        );
        epoch?;
        others.map_err(|error| {
            shard.busy_error(&format!("publish {}: wait for earlier attempts", self.of), &error)
        })?;
        let mut records = records.map_err(failed)?;
        let new: Vec<usize> = (0..works.len()).filter(|&index| records[index].is_none()).collect();
        if new.is_empty() {
            self.client
                .batch_execute("ROLLBACK")
                .await
                .map_err(|error| self.failed("end the transaction", &error))?;
        } else {
            let faults: Vec<_> = faults?.into_iter().filter(|(index, _)| new.contains(index)).collect();
            none_of(faults)?;
            let catalog = live::hold(shard, client, self.first, lock_wait(self.bound)).await?;
            let tables = kind_tables(shard, &catalog, &self.first.store.kind, &self.first.tables, None);
            let here = self.prepared(members, &new, &catalog, &tables).await?;
            for (index, published) in self.make_live(&here, &catalog, &tables, since).await? {
                records[index] = Some(published);
            }
            self.commit(&mut records, &new, since).await?;
        }
        Ok(records.into_iter().flatten().collect())
    }

    /// The stores with what is staged of each, when nothing stands against any of them.
    async fn prepared<'m>(
        &self,
        members: &[&'m PublishWork],
        new: &[usize],
        catalog: &Catalog,
        tables: &[KindTable<'_>],
    ) -> Result<Vec<Member<'m>>, Undone> {
        // Such a table is locked against all writers: for one store's time, not for a group's.
        if tables.iter().any(|table| table.now.keys.iter().any(|key| key.deferrable)) {
            return Err(Undone::Apart);
        }
        let mut faults: Vec<(usize, DriverError)> = Vec::new();
        let first_fits = live::check(self.shard, catalog, self.first);
        for &index in new {
            let work = &members[index].work;
            // The check is about tables and definitions, which are mostly the same.
            let fits = match &first_fits {
                Ok(()) if work.definitions == self.first.definitions => Ok(()),
                _ => live::check(self.shard, catalog, work),
            };
            faults.extend(fits.err().map(|error| (index, error)));
        }
        let staged =
            existing_all(self.shard, self.client, new.iter().map(|&index| &members[index].work)).await?;
        let mut here = Vec::with_capacity(new.len());
        for (&index, staged) in new.iter().zip(staged) {
            match staged {
                Ok(staged) => here.push(Member { index, member: members[index], attempt: staged.attempt }),
                Err(error) => faults.push((index, error)),
            }
        }
        faults.extend(self.alive(&here, tables).await?);
        none_of(faults)?;
        Ok(here)
    }

    /// Stores that have live rows.
    async fn alive(
        &self,
        here: &[Member<'_>],
        tables: &[KindTable<'_>],
    ) -> Result<Vec<(usize, DriverError)>, DriverError> {
        let mut faults: BTreeMap<usize, DriverError> = BTreeMap::new();
        let looked_at = |oid: u32| tables.iter().any(|table| table.now.oid == oid && table.way.is_some());
        for table in tables {
            let Some(way) = &table.way else { continue };
            // Whose parent rows are of no store here has no rows of one either.
            if way.parent_oid().is_some_and(looked_at) {
                continue;
            }
            let sql = format!(
                "SELECT DISTINCT {tenant}::text FROM {live} t{joins} WHERE {comparable} = ANY ({sites})",
                tenant = way.tenant(),
                live = table.now.rows_of(),
                joins = way.joins(""),
                comparable = way.comparable_tenant(),
                sites = way.site_array(here.iter().map(Member::site)),
            );
            let found = self.client.query_typed(&sql, &[]).await;
            for row in found.map_err(|error| self.failed("look for live rows", &error))? {
                let site: &str = row.get(0);
                let Some(member) = here.iter().find(|member| member.site().as_str() == site) else {
                    continue;
                };
                let store = &member.member.work.store;
                let error = self.shard.permanent(
                    format!("{store} is alive: table `{}` holds rows of it", table.name()),
                    "look at them with `muster diff`; if they are to be replaced, plan with --overwrite for this site",
                );
                faults.entry(member.index).or_insert(error);
            }
        }
        Ok(faults.into_iter().collect())
    }

    /// Everything between the checks and the commit.
    async fn make_live(
        &self,
        here: &[Member<'_>],
        catalog: &Catalog,
        tables: &[KindTable<'_>],
        since: Instant,
    ) -> Result<Vec<(usize, Published)>, Undone> {
        let (shard, client) = (self.shard, self.client);
        let failed = |error: Error| self.failed("count what changed", &error);
        let before = effects::counts(client, catalog).await.map_err(failed)?;
        let sites: Vec<&SiteId> = here.iter().map(Member::site).collect();
        let attempts: Vec<i64> = here.iter().map(|member| member.attempt).collect();
        let staged = StagedRows { run: &self.first.run, sites: &sites, attempts: &attempts, of: &self.of };
        sequences::advance(shard, client, &staged, tables).await?;
        let rows = self.insert_all(here, tables).await?;
        references::check(shard, client, &staged, tables).await.map_err(|missing| {
            let whose = |member: &&Member<'_>| missing.attempt == Some(member.attempt);
            match here.iter().find(whose) {
                Some(member) => Undone::Faults(vec![(member.index, missing.error)]),
                None => Undone::Whole(missing.error),
            }
        })?;
        self.check_live(here, tables).await?;
        self.check_effects(here, catalog, &before).await?;
        if let Some(bound) = self.bound.filter(|bound| since.elapsed() > *bound) {
            return Err(self.too_long(bound).into());
        }
        Ok(self.record(here, rows, micros(since.elapsed())).await?)
    }

    /// Writes the records, last of all.
    async fn record(
        &self,
        here: &[Member<'_>],
        rows: Vec<u64>,
        blocked_micros: u64,
    ) -> Result<Vec<(usize, Published)>, DriverError> {
        let at = Timestamp::from_micros(0);
        let record = |rows| Published { rows, replaced: 0, positions: None, blocked_micros, at };
        let works = here.iter().map(|member| &member.member.work);
        let records: Vec<(&StoreWork, Published)> = works.zip(rows.into_iter().map(record)).collect();
        let noted = insert_records(self.client, &records).await;
        let (position, at) = noted.map_err(|error| self.failed("write its records", &error))?;
        let position = Position(position.into());
        let told = |(member, (_, published)): (&Member<'_>, (&StoreWork, Published))| {
            let positions = (published.rows > 0).then_some((position, position));
            (member.index, Published { at, positions, ..published })
        };
        Ok(here.iter().zip(records).map(told).collect())
    }

    /// Marks and inserts store by store; the rows inserted of each.
    async fn insert_all(&self, here: &[Member<'_>], tables: &[KindTable<'_>]) -> Result<Vec<u64>, Undone> {
        let client = self.client;
        let mark = client.prepare("SELECT pg_logical_emit_message(true, $1::text, $2::text)").await;
        let mark = mark.map_err(|error| self.failed("write its marks", &error))?;
        let mut inserts = Vec::new();
        for table in tables {
            let Some(then) = table.then.filter(|then| here.iter().any(|m| m.expected_rows(&then.name) > 0))
            else {
                continue;
            };
            let sql = format!(
                "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} s WHERE s.{ATTEMPT} = $1",
                table.now.qualified(),
                column_list("", table.restored_columns()),
                column_list("s", table.restored_columns()),
                table_name(&self.first.run, then),
            );
            let prepared = client.prepare(&sql).await;
            let prepared =
                prepared.map_err(|error| self.failed(&format!("insert into `{}`", table.name()), &error))?;
            inserts.push((table, then, prepared));
        }
        // A mark is texts and a number: JSON can hold it.
        let marks =
            here.iter().map(|member| serde_json::to_string(&member.member.work.mark()).unwrap_or_default());
        let marks: Vec<String> = marks.collect();
        let mut sent: Vec<Sent<'_>> = Vec::new();
        for (member, text) in here.iter().zip(&marks) {
            let emit = async { client.query_one(&mark, &[&MARK_PREFIX, text]).await.map(|_| 0) };
            sent.push(Sent { member, table: None, answer: Box::pin(emit) });
            for (table, then, insert) in &inserts {
                if member.expected_rows(&then.name) > 0 {
                    let run = async { client.execute(insert, &[&member.attempt]).await };
                    sent.push(Sent { member, table: Some(table), answer: Box::pin(run) });
                }
            }
        }
        self.inserted(here, in_one_stream(sent).await)
    }

    fn inserted(&self, here: &[Member<'_>], answers: Vec<Answer<'_>>) -> Result<Vec<u64>, Undone> {
        let mut rows: BTreeMap<usize, u64> = BTreeMap::new();
        let mut missing: Vec<(usize, DriverError)> = Vec::new();
        // The first that failed is why the others behind it did.
        for Answer { member, table, answer } in answers {
            let count = answer.map_err(|error| self.refused(member, table, &error))?;
            let Some(then) = table.and_then(|table| table.then) else { continue };
            *rows.entry(member.index).or_default() += count;
            let wanted = member.expected_rows(&then.name);
            if count < wanted {
                let what = format!("{count} of {wanted} staged rows of table `{}` are there", then.name);
                missing.push((member.index, lost(self.shard, &member.member.work, &what)));
            }
        }
        missing.dedup_by_key(|(index, _)| *index);
        none_of(missing)?;
        Ok(here.iter().map(|member| rows.get(&member.index).copied().unwrap_or(0)).collect())
    }

    /// A statement of one store alone was refused: which key is held, and by whom, is told when it is published alone.
    fn refused(&self, member: &Member<'_>, table: Option<&KindTable<'_>>, error: &Error) -> Undone {
        if error.code().is_none() || is_out_of_time(error) {
            return self.failed("insert", error).into();
        }
        let doing = match table {
            Some(table) => format!("insert into `{}`", table.name()),
            None => "write its mark".to_owned(),
        };
        let store = &member.member.work.store;
        let mut error_of_store = self.shard.error(&format!("publish {store}: {doing}"), error);
        hint_privilege(&mut error_of_store, error);
        Undone::Faults(vec![(member.index, error_of_store)])
    }

    /// The live rows of each site, read back, are those expected.
    async fn check_live(&self, here: &[Member<'_>], tables: &[KindTable<'_>]) -> Result<(), Undone> {
        let doing = format!("publish {}: read its rows back", self.of);
        let read: Vec<(&TableDef, String)> =
            tables.iter().filter_map(|table| Some((table.then?, Self::live_rows(here, table)?))).collect();
        let selects = read.iter().map(|(_, select)| select.clone());
        let mut queries = copy::Queries::send(self.shard, self.client, &doing, selects).await?;
        let mut unlike = Vec::new();
        for (then, select) in read {
            let mut found = queries.next().await?.lines_by().await?;
            let name = table_name(&self.first.run, then);
            let as_sent = |member: &Member<'_>| {
                let found = found.remove(member.site().as_str()).unwrap_or_default();
                let sent = self.shard.sent.of(&member.member.work.store, member.attempt, &name);
                found.lines() == member.expected_rows(&then.name) && sent == Some(found)
            };
            // They are as they were sent, and so was what is expected; or digests decide.
            if !here.iter().map(as_sent).fold(true, |all, as_sent| all & as_sent) {
                unlike.push((then, select));
            }
        }
        drop(queries);
        let mut faults: BTreeMap<usize, DriverError> = BTreeMap::new();
        for (then, select) in unlike {
            let mut found = copy::digest_by(self.shard, self.client, &doing, &then.name, &select).await?;
            for member in here {
                let is = found.remove(member.site().as_str()).unwrap_or_else(nothing);
                if let Some(error) = self.difference(member, then, is) {
                    faults.entry(member.index).or_insert(error);
                }
            }
        }
        // Of a table that is no site's, none may be expected.
        for table in tables.iter().filter(|table| table.way.is_none()) {
            let Some(then) = table.then else { continue };
            for member in here {
                if let Some(error) = self.difference(member, then, nothing()) {
                    faults.entry(member.index).or_insert(error);
                }
            }
        }
        none_of(faults.into_iter().collect())
    }

    /// The query of the stores' live rows of a table, with their sites.
    fn live_rows(here: &[Member<'_>], table: &KindTable<'_>) -> Option<String> {
        let way = table.way.as_ref()?;
        Some(format!(
            "SELECT {tenant}::text, {columns} FROM {live} t{joins} WHERE {comparable} = ANY ({sites})",
            tenant = way.tenant(),
            columns = column_list("t", table.restored_columns()),
            live = table.now.rows_of(),
            joins = way.joins(""),
            comparable = way.comparable_tenant(),
            sites = way.site_array(here.iter().map(Member::site)),
        ))
    }

    /// The error for live rows that are not those expected.
    fn difference(&self, member: &Member<'_>, then: &TableDef, is: TableDigest) -> Option<DriverError> {
        let wanted = member.member.expected.get(&then.name).copied().unwrap_or_else(nothing);
        let what = || {
            format!(
                "table `{}` would have {} rows of the site (digest {}) instead of {} (digest {})",
                then.name,
                is.rows,
                is.digest.short(),
                wanted.rows,
                wanted.digest.short(),
            )
        };
        (is != wanted).then(|| self.stray(&member.member.work.store.to_string(), &what()))
    }

    /// The transaction as a whole changed what the stores together were to change.
    async fn check_effects(
        &self,
        here: &[Member<'_>],
        catalog: &Catalog,
        before: &Counts,
    ) -> Result<(), DriverError> {
        let failed = |error: Error| self.failed("count what changed", &error);
        let Some(after) = effects::counted(self.client, catalog).await.map_err(failed)? else {
            return Ok(());
        };
        let mut wanted = Counts::new();
        let expected = here.iter().flat_map(|member| &member.member.expected);
        for (table, digest) in expected.filter(|(_, digest)| digest.rows > 0) {
            let count: &mut Count = wanted.entry(table.clone()).or_default();
            count.inserted += digest.rows.cast_signed();
        }
        match effects::difference(before, &after, &wanted) {
            None => Ok(()),
            Some(difference) => Err(self.stray(&self.of, &difference)),
        }
    }

    async fn commit(
        &self,
        records: &mut [Option<Published>],
        new: &[usize],
        since: Instant,
    ) -> Result<(), DriverError> {
        let doing = format!("commit the publish of {}", self.of);
        let end = commit(self.client).await.map_err(|error| self.shard.commit_error(&doing, &error))?;
        let blocked_micros = micros(since.elapsed());
        for &index in new {
            let Some(published) = &mut records[index] else { continue };
            published.blocked_micros = blocked_micros;
            if let Some((_, last)) = &mut published.positions {
                *last = end;
            }
        }
        Ok(())
    }

    fn stray(&self, of: &str, difference: &str) -> DriverError {
        self.shard.permanent(
            format!("stray write: publishing {of} was undone because {difference}"),
            "nothing was changed; look at the site with `muster diff`, then resume the run, and report this if it stays",
        )
    }

    fn too_long(&self, bound: Duration) -> DriverError {
        self.shard.permanent(
            format!(
                "publishing {} together was undone because it held its locks for longer than {} ms",
                self.of,
                bound.as_millis()
            ),
            "they are published in smaller groups",
        )
    }

    fn failed(&self, doing: &str, error: &Error) -> DriverError {
        if let Some(bound) = self.bound.filter(|_| is_out_of_time(error)) {
            return self.too_long(bound);
        }
        let mut failed = self.shard.error(&format!("publish {}: {doing}", self.of), error);
        hint_privilege(&mut failed, error);
        failed
    }
}

fn hint_privilege(failed: &mut DriverError, error: &Error) {
    if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
        failed.hint =
            "publishing needs the right to write to the tables, and to set session_replication_role".into();
    }
}

fn none_of(faults: Vec<(usize, DriverError)>) -> Result<(), Undone> {
    if faults.is_empty() { Ok(()) } else { Err(Undone::Faults(faults)) }
}

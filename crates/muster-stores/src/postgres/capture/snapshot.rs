//! One consistent state of tables, at a known place of the log.
//!
//! A temporary slot exports the state at its beginning; each table is read by `COPY` on a session of its own, ordered by
//! site on the server, and the sessions' rows are merged. Of many tables only the largest are read at once; the others
//! are read first, into temporary files. Tables of single sites are read when their site's turn comes, one by one.
//!
//! # Invariants
//! - Rows without a site come first, then sites ascend; within a site, tables come in the order of the list.
//! - A table that was altered, truncated or rewritten between the exported state and its lock is noticed: its rows would
//!   not be those of the state.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Seek, Write};
use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use muster_rows::{Row, RowBuilder};
use muster_types::snapshot::Beside;
use muster_types::{Boundary, SiteId, Timestamp};
use tokio_postgres::{Client, CopyOutStream};

use super::beside;
use super::copy::site_and_row;
use super::error::{explain, explain_replication};
use super::layout::{Layout, RowOwner, fingerprint};
use crate::capture::CaptureError;
use crate::postgres::connect::{ExportError, ExportedState, PostgresConfig};

/// Tables read at once, each on a connection of its own.
const COPIES_AT_ONCE: usize = 12;

/// Rows between two looks at the clock.
const ROWS_BETWEEN_LOOKS: u64 = 4096;

/// How long a table's lock is waited for: an ALTER TABLE of the application goes first.
const LOCK_WAIT: &str = "10s";

/// How long a slot waits for transactions that were open when it was asked for.
const SLOT_WAIT: Duration = Duration::from_secs(60);

/// A state that can be read until this value is dropped.
pub(super) struct Snapshot {
    /// The last place of the log that is in it.
    pub(super) boundary: Boundary,
    /// What the catalog was.
    pub(super) fingerprint: String,
    state: ExportedState,
    config: PostgresConfig,
    holder: Client,
    deadline: Option<Instant>,
}

impl Snapshot {
    /// Takes the state of now, with the tables of `layout` locked against changes of their definition.
    pub(super) async fn take(
        config: &PostgresConfig,
        layout: &Layout,
        publication: &str,
        limit: Option<Duration>,
    ) -> Result<Self, CaptureError> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let state = export(config, limit).await?;
        let failed = |error| explain(config, "read an exported state", &error);
        let holder = config.connect().await?;
        begin(&holder, &state.name, deadline).await.map_err(failed)?;
        // Not before any commit in it.
        let at = clock(&holder).await.map_err(failed)?;
        lock(&holder, layout)
            .await
            .map_err(|error| explain(config, "lock its tables for reading", &error))?;
        let then = fingerprint(&holder, publication).await.map_err(failed)?;
        let other = config.connect().await?;
        let now = fingerprint(&other, publication).await.map_err(failed)?;
        if then != now {
            return Err(CaptureError::transient(
                format!("{config}: its tables were altered while a state of them was to be read"),
                "capture tries again",
            ));
        }
        let boundary = Boundary { position: state.position, at };
        Ok(Self { boundary, fingerprint: then, state, config: config.clone(), holder, deadline })
    }

    /// What the database has beside its tables.
    pub(super) async fn beside(&self) -> Result<Beside, CaptureError> {
        let read = beside::read(&self.holder).await;
        read.map_err(|error| explain(&self.config, "read its sequences", &error))
    }

    /// Reads `tables` whole, by site.
    pub(super) async fn read(
        &self,
        layout: &Layout,
        tables: &[usize],
        mut emit: impl FnMut(Option<&SiteId>, usize, &Row) -> Result<(), CaptureError>,
    ) -> Result<u64, CaptureError> {
        let (shared, mut own) = by_owner(layout, tables);
        let mut sources = self.open(layout, tables, &shared).await?;
        let mut builder = RowBuilder::new();
        let mut heads: BTreeMap<usize, Head> = BTreeMap::new();
        for (number, source) in &mut sources {
            heads.insert(*number, self.head(layout, tables[*number], source, &mut builder).await?);
        }
        let (mut rows, mut session) = (0_u64, None);
        loop {
            let site = heads.values().flatten().map(|(site, _)| site.clone()).min();
            let site = site.into_iter().chain(own.keys().next().cloned().map(Some)).min();
            let Some(site) = site else { return Ok(rows) };
            let of_site = site.as_ref().and_then(|site| own.remove(site)).unwrap_or_default();
            for number in in_order(&shared, &of_site) {
                let mut head = heads.remove(&number).flatten();
                if of_site.contains(&number) {
                    let lines = self.copy_in(&mut session, layout, tables[number]).await?;
                    sources.insert(number, lines);
                    head = self.head_of(layout, tables, number, &mut sources, &mut builder).await?;
                }
                while let Some((_, row)) = head.take_if(|(of, _)| *of == site) {
                    emit(site.as_ref(), number, &row)?;
                    rows += 1;
                    if rows.is_multiple_of(ROWS_BETWEEN_LOOKS) {
                        self.check_time()?;
                    }
                    head = self.head_of(layout, tables, number, &mut sources, &mut builder).await?;
                }
                if of_site.contains(&number) {
                    sources.remove(&number);
                } else {
                    heads.insert(number, head);
                }
            }
        }
    }

    async fn head_of(
        &self,
        layout: &Layout,
        tables: &[usize],
        number: usize,
        sources: &mut BTreeMap<usize, Lines>,
        builder: &mut RowBuilder,
    ) -> Result<Head, CaptureError> {
        match sources.get_mut(&number) {
            Some(source) => self.head(layout, tables[number], source, builder).await,
            None => Ok(None),
        }
    }

    /// A table of one site, on a session that reads one such table after the other. Each in a transaction of its own, so
    /// that the session never holds the locks of thousands of tables and their indexes.
    async fn copy_in(
        &self,
        session: &mut Option<Client>,
        layout: &Layout,
        table: usize,
    ) -> Result<Lines, CaptureError> {
        let doing = format!("read table `{}`", layout.tables[table].name());
        let failed = |error| explain(&self.config, &doing, &error);
        let client = match session {
            Some(client) => {
                client.batch_execute("COMMIT").await.map_err(failed)?;
                client
            }
            None => session.insert(self.config.connect().await?),
        };
        begin(client, &self.state.name, self.deadline).await.map_err(failed)?;
        let stream = client.copy_out(&select(layout, table)).await.map_err(failed)?;
        Ok(Lines::Stream { stream: Box::pin(stream), rest: Vec::new(), _client: None })
    }

    /// The largest tables of many sites as streams, the others as files.
    async fn open(
        &self,
        layout: &Layout,
        tables: &[usize],
        shared: &[usize],
    ) -> Result<BTreeMap<usize, Lines>, CaptureError> {
        let mut by_size: Vec<(i64, usize)> = Vec::new();
        for &number in shared {
            by_size.push((self.size(layout, tables[number]).await?, number));
        }
        by_size.sort_unstable_by(|one, other| other.cmp(one));
        let streamed: Vec<usize> = by_size.iter().take(COPIES_AT_ONCE).map(|(_, number)| *number).collect();
        let mut sources = BTreeMap::new();
        for (_, number) in by_size.iter().skip(COPIES_AT_ONCE) {
            let mut lines = self.copy(layout, tables[*number]).await?;
            sources.insert(*number, self.spool(&mut lines).await?);
        }
        for number in streamed {
            sources.insert(number, self.copy(layout, tables[number]).await?);
        }
        Ok(sources)
    }

    async fn size(&self, layout: &Layout, table: usize) -> Result<i64, CaptureError> {
        let sql = "SELECT coalesce(sum(pg_table_size(relid)), 0)::bigint FROM pg_partition_tree($1::oid)";
        let oid = layout.tables[table].live.oid;
        let found = match layout.tables[table].live.partitioned {
            true => self.holder.query_one_scalar(sql, &[&oid]).await,
            false => self.holder.query_one_scalar("SELECT pg_table_size($1::oid)", &[&oid]).await,
        };
        found.map_err(|error| explain(&self.config, "measure its tables", &error))
    }

    async fn copy(&self, layout: &Layout, table: usize) -> Result<Lines, CaptureError> {
        let doing = format!("read table `{}`", layout.tables[table].name());
        let failed = |error| explain(&self.config, &doing, &error);
        let client = self.config.connect().await?;
        begin(&client, &self.state.name, self.deadline).await.map_err(failed)?;
        let stream = client.copy_out(&select(layout, table)).await.map_err(failed)?;
        Ok(Lines::Stream { stream: Box::pin(stream), rest: Vec::new(), _client: Some(Box::new(client)) })
    }

    async fn spool(&self, lines: &mut Lines) -> Result<Lines, CaptureError> {
        let failed = |error: std::io::Error| {
            CaptureError::transient(
                format!("cannot write a temporary file: {error}"),
                "free space in the folder for such (TMPDIR)",
            )
        };
        let mut file = std::io::BufWriter::new(tempfile::tempfile().map_err(failed)?);
        let mut count = 0_u64;
        while let Some(line) = lines.next(&self.config).await? {
            file.write_all(&line).map_err(failed)?;
            count += 1;
            if count.is_multiple_of(ROWS_BETWEEN_LOOKS) {
                self.check_time()?;
            }
        }
        let mut file = file.into_inner().map_err(|error| failed(error.into_error()))?;
        file.rewind().map_err(failed)?;
        Ok(Lines::File(BufReader::new(file)))
    }

    async fn head(
        &self,
        layout: &Layout,
        table: usize,
        source: &mut Lines,
        builder: &mut RowBuilder,
    ) -> Result<Head, CaptureError> {
        let Some(line) = source.next(&self.config).await? else { return Ok(None) };
        let captured = &layout.tables[table];
        let parsed = site_and_row(&line, builder).filter(|(_, row)| row.len() == captured.width());
        let Some((site, row)) = parsed else {
            return Err(CaptureError::transient(
                format!("{}: a row of `{}` cannot be read from COPY", self.config, captured.name()),
                "capture tries again; if that does not help, report it",
            ));
        };
        // The server gives NULL for what is no site's id.
        let site = site.and_then(|site| SiteId::new(String::from_utf8_lossy(&site)).ok());
        Ok(Some((site, row)))
    }

    fn check_time(&self) -> Result<(), CaptureError> {
        if self.deadline.is_none_or(|deadline| Instant::now() < deadline) {
            return Ok(());
        }
        Err(CaptureError::transient(
            format!("{}: reading its tables takes longer than it may, and holds vacuum back", self.config),
            "raise `snapshot_seconds_max` in [capture], or take snapshots when the shard is less busy",
        ))
    }
}

/// The next row of a table, with its site.
type Head = Option<(Option<SiteId>, Row)>;

/// Numbers in `tables` of those that sites share, and of the tables of single sites.
fn by_owner(layout: &Layout, tables: &[usize]) -> (Vec<usize>, BTreeMap<SiteId, Vec<usize>>) {
    let (mut shared, mut own) = (Vec::new(), BTreeMap::<SiteId, Vec<usize>>::new());
    for (number, table) in tables.iter().enumerate() {
        match &layout.tables[*table].owner {
            RowOwner::Site(site) => own.entry(site.clone()).or_default().push(number),
            _ => shared.push(number),
        }
    }
    (shared, own)
}

fn in_order(shared: &[usize], own: &[usize]) -> Vec<usize> {
    let mut all = [shared, own].concat();
    all.sort_unstable();
    all
}

/// Rows as COPY writes them.
enum Lines {
    Stream { stream: Pin<Box<CopyOutStream>>, rest: Vec<u8>, _client: Option<Box<Client>> },
    File(BufReader<std::fs::File>),
}

impl Lines {
    /// The next line, with its end.
    async fn next(&mut self, config: &PostgresConfig) -> Result<Option<Bytes>, CaptureError> {
        match self {
            Self::File(file) => {
                let mut line = Vec::new();
                let read = file.read_until(b'\n', &mut line).map_err(|error| {
                    CaptureError::transient(
                        format!("cannot read a temporary file: {error}"),
                        "capture tries again",
                    )
                })?;
                Ok((read > 0).then(|| line.into()))
            }
            Self::Stream { stream, rest, .. } => {
                // The server sends one row a message; the protocol does not promise it.
                while let Some(data) = stream.next().await {
                    let data = data.map_err(|error| explain(config, "read a table", &error))?;
                    if rest.is_empty() && data.ends_with(b"\n") && !data[..data.len() - 1].contains(&b'\n') {
                        return Ok(Some(data));
                    }
                    rest.extend_from_slice(&data);
                    if let Some(line) = first_line(rest) {
                        return Ok(Some(line));
                    }
                }
                Ok(first_line(rest))
            }
        }
    }
}

fn first_line(rest: &mut Vec<u8>) -> Option<Bytes> {
    let end = rest.iter().position(|&byte| byte == b'\n')? + 1;
    Some(rest.drain(..end).collect::<Vec<_>>().into())
}

/// Exports the state of now.
async fn export(config: &PostgresConfig, limit: Option<Duration>) -> Result<ExportedState, CaptureError> {
    let wait = limit.map_or(SLOT_WAIT, |limit| limit.min(SLOT_WAIT));
    ExportedState::take(config, wait).await.map_err(|error| match error {
        ExportError::Connect(error) => error.into(),
        ExportError::Waited(wait) => CaptureError::transient(
            format!(
                "{config}: a state of the log waits for a transaction that has been open for {} s and longer",
                wait.as_secs()
            ),
            "look for it in pg_stat_activity (xact_start) and end it; capture tries again",
        ),
        ExportError::Answer(error) => explain_replication(config, "export a state of the log", &error),
        ExportError::Unclear => CaptureError::new(
            format!("{config}: the server's answer to CREATE_REPLICATION_SLOT is not understood"),
            "check that it is PostgreSQL 15 or later",
        ),
    })
}

async fn begin(
    client: &Client,
    snapshot: &str,
    deadline: Option<Instant>,
) -> Result<(), tokio_postgres::Error> {
    let name = crate::postgres::schema::literal(snapshot);
    // The server, too, gives up: it sorts before it sends the first row.
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let left = left.map_or(0, |left| left.as_millis().clamp(1, i32::MAX as u128));
    client
        .batch_execute(&format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {name}; \
             SET LOCAL lock_timeout = '{LOCK_WAIT}'; SET LOCAL statement_timeout = {left}"
        ))
        .await
}

async fn lock(client: &Client, layout: &Layout) -> Result<(), tokio_postgres::Error> {
    for table in &layout.tables {
        client.batch_execute(&format!("LOCK TABLE {} IN ACCESS SHARE MODE", table.live.rows_of())).await?;
    }
    Ok(())
}

/// The server's clock.
pub(super) async fn clock(client: &Client) -> Result<Timestamp, tokio_postgres::Error> {
    let sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
    client.query_one_scalar(sql, &[]).await.map(Timestamp::from_micros)
}

/// All rows of a table with their site first, by site.
fn select(layout: &Layout, table: usize) -> String {
    let captured = &layout.tables[table];
    let columns: Vec<String> =
        (0..captured.width()).map(|column| format!("t0.{}", captured.column_sql(column))).collect();
    let mut joins = String::new();
    let (mut at, mut depth) = (captured, 0);
    let site = loop {
        match at.owner {
            RowOwner::Nobody => break None,
            // Written as a site's id is: it is one.
            RowOwner::Site(ref site) => {
                let site = crate::postgres::schema::literal(site.as_str());
                return format!(
                    "COPY (SELECT {site}::text, {} FROM {} t0) TO STDOUT",
                    columns.join(", "),
                    captured.live.rows_of()
                );
            }
            RowOwner::Tenant(column) => {
                break Some(format!("(t{depth}.{}::text COLLATE \"C\")", at.column_sql(column)));
            }
            RowOwner::Parent { column, table, key } => {
                let parent = &layout.tables[table];
                let next = depth + 1;
                joins.push_str(&format!(
                    " LEFT JOIN {} t{next} ON t{next}.{} = t{depth}.{}",
                    parent.live.rows_of(),
                    parent.column_sql(key),
                    at.column_sql(column)
                ));
                (at, depth) = (parent, next);
            }
        }
    };
    let list: String = columns.iter().map(|column| format!(", {column}")).collect();
    let from = format!("FROM {} t0{joins}", captured.live.rows_of());
    match site {
        None => format!("COPY (SELECT NULL::text{list} {from}) TO STDOUT"),
        // As the ids of sites are: what is none of them belongs to nobody.
        Some(site) => format!(
            "COPY (SELECT CASE WHEN {site} ~ '^[A-Za-z0-9._-]{{1,128}}$' AND {site} NOT IN ('.', '..') \
             THEN {site} END{list} {from} ORDER BY 1 NULLS FIRST) TO STDOUT"
        ),
    }
}

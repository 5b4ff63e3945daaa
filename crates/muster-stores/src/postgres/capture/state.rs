//! What capture remembers in the shard: schema `muster`, tables `capture` and `captured`.
//!
//! The layout of the tables is kept with the place of the log that it is known to hold at: what lies behind, up to the next
//! DDL, is read with it, also by the next capture after a crash.

use std::collections::BTreeMap;

use muster_types::format::FORMAT;
use muster_types::{Digest, Incarnation, Position};
use tokio_postgres::{Error, GenericClient};

use super::layout::{Layout, Signature};
use super::slot::Server;
use crate::capture::CaptureError;

/// The incarnation of a shard whose capture has not begun.
pub(super) const UNBEGUN: &str = "none";

/// `captured` has what the last acknowledged segment knew of each table, to notice what changed while nobody looked.
const TABLES: &str = "CREATE SCHEMA IF NOT EXISTS muster; \
    CREATE TABLE IF NOT EXISTS muster.capture (\
      id integer PRIMARY KEY CHECK (id = 1), format integer NOT NULL, incarnation text NOT NULL, \
      acknowledged bigint NOT NULL, head_sequence bigint, head_digest text, \
      slot text NOT NULL, publication text NOT NULL, system_identifier bigint, timeline bigint, lost text); \
    CREATE TABLE IF NOT EXISTS muster.captured (name text PRIMARY KEY, signature text NOT NULL);";

/// The one row of `muster.capture`.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) incarnation: Incarnation,
    pub(super) acknowledged: Position,
    pub(super) head: Option<(u64, Digest)>,
    /// Where the incarnation's log comes from.
    pub(super) server: Option<Server>,
    /// Why capture gave the slot up.
    pub(super) lost: Option<String>,
}

pub(super) async fn create(client: &impl GenericClient, slot: &str) -> Result<(), Error> {
    client.batch_execute(TABLES).await?;
    let sql = "INSERT INTO muster.capture (id, format, incarnation, acknowledged, slot, publication) \
        VALUES (1, $1, $2, 0, $3, $3) ON CONFLICT DO NOTHING";
    client.execute(sql, &[&i32::try_from(FORMAT).unwrap_or(i32::MAX), &UNBEGUN, &slot]).await?;
    Ok(())
}

/// Whether capture is installed.
pub(super) async fn exists(client: &impl GenericClient) -> Result<bool, Error> {
    Ok(client.query_one("SELECT to_regclass('muster.capture') IS NOT NULL", &[]).await?.get(0))
}

/// Why the state cannot be used, or the server's answer.
pub(super) enum Unreadable {
    Server(Error),
    Other(CaptureError),
}

impl From<Error> for Unreadable {
    fn from(error: Error) -> Self {
        Self::Server(error)
    }
}

pub(super) async fn read(client: &impl GenericClient, whose: &str) -> Result<State, Unreadable> {
    let other = |message: String, hint: &str| Unreadable::Other(CaptureError::new(message, hint));
    if !exists(client).await? {
        return Err(other(format!("{whose}: capture is not installed"), "run `muster capture init`"));
    }
    let sql = "SELECT format, incarnation, acknowledged, head_sequence, head_digest, system_identifier, timeline, lost \
        FROM muster.capture";
    let Some(row) = client.query_opt(sql, &[]).await? else {
        return Err(other(format!("{whose}: its capture state is gone"), "run `muster capture init`"));
    };
    let what = format!("the capture state of {whose}");
    let format: i32 = row.get(0);
    muster_types::format::accept(&what, format.unsigned_abs())
        .map_err(|error| other(error.to_string(), "upgrade this muster"))?;
    let damaged = |error: String| {
        other(
            format!("{what} is damaged: {error}"),
            "run `muster capture remove`, then `muster capture init`",
        )
    };
    let incarnation =
        Incarnation::new(row.get::<_, String>(1)).map_err(|error| damaged(error.to_string()))?;
    let head = match (row.get::<_, Option<i64>>(3), row.get::<_, Option<String>>(4)) {
        (Some(sequence), Some(digest)) => {
            let digest: Digest = digest.parse().map_err(|error| damaged(format!("{error}")))?;
            Some((sequence.cast_unsigned(), digest))
        }
        _ => None,
    };
    let server = row.get::<_, Option<i64>>(5).zip(row.get::<_, Option<i64>>(6));
    Ok(State {
        incarnation,
        acknowledged: Position(row.get::<_, i64>(2).cast_unsigned()),
        head,
        server: server.map(|(system, timeline)| Server { system, timeline }),
        lost: row.get(7),
    })
}

/// A new incarnation begins at `acknowledged`.
pub(super) async fn begin(
    client: &impl GenericClient,
    incarnation: &Incarnation,
    slot: &str,
    acknowledged: Position,
    server: Server,
) -> Result<(), Error> {
    let sql = "UPDATE muster.capture SET incarnation = $1, acknowledged = $2, head_sequence = NULL, head_digest = NULL, \
        slot = $3, publication = $3, system_identifier = $4, timeline = $5, lost = NULL";
    let at = acknowledged.0.cast_signed();
    client.execute(sql, &[&incarnation.as_str(), &at, &slot, &server.system, &server.timeline]).await?;
    client.execute("DELETE FROM muster.captured", &[]).await?;
    Ok(())
}

/// Of a shard that an older muster began.
const LAYOUT_COLUMNS: &str = "ALTER TABLE muster.capture ADD COLUMN IF NOT EXISTS layout text, ADD COLUMN IF NOT EXISTS layout_at bigint";

/// `layout`, as JSON, holds at `at`; without one, that which was written last still does.
pub(super) async fn write_layout(
    client: &impl GenericClient,
    at: Position,
    layout: Option<&str>,
) -> Result<(), Error> {
    if layout.is_some() {
        client.batch_execute(LAYOUT_COLUMNS).await?;
    }
    let sql = "UPDATE muster.capture SET layout = coalesce($1, layout), layout_at = $2";
    client.execute(sql, &[&layout, &at.0.cast_signed()]).await.map(drop)
}

/// The layout that is known to hold at `at`, if there is one.
pub(super) async fn read_layout(client: &impl GenericClient, at: Position) -> Result<Option<Layout>, Error> {
    let sql = "SELECT to_jsonb(c) ->> 'layout' FROM muster.capture c WHERE (to_jsonb(c) ->> 'layout_at')::bigint = $1";
    let row = client.query_opt(sql, &[&at.0.cast_signed()]).await?;
    let text = row.and_then(|row| row.get::<_, Option<String>>(0));
    // One that cannot be read is as none: the tables are looked at anew.
    Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
}

/// The slot is given up.
pub(super) async fn give_up(client: &impl GenericClient, reason: &str) -> Result<(), Error> {
    client.execute("UPDATE muster.capture SET lost = $1", &[&reason]).await.map(drop)
}

/// The layout that holds at what is acknowledged.
pub(super) enum KnownLayout<'t> {
    /// That which was written last.
    Same,
    /// Another one, as JSON.
    New(&'t str),
}

/// Everything up to `upto` is durable in the segment `head`, with tables as `known` says.
pub(super) async fn acknowledge(
    client: &mut tokio_postgres::Client,
    upto: Position,
    head: (u64, Digest),
    known: Option<&BTreeMap<String, Signature>>,
    layout: Option<KnownLayout<'_>>,
) -> Result<(), Error> {
    let transaction = client.transaction().await?;
    let sql = "UPDATE muster.capture SET acknowledged = greatest(acknowledged, $1), head_sequence = $2, head_digest = $3";
    let (at, sequence) = (upto.0.cast_signed(), head.0.cast_signed());
    transaction.execute(sql, &[&at, &sequence, &head.1.to_string()]).await?;
    if let Some(known) = known {
        write_known(&transaction, known).await?;
    }
    match layout {
        None => {}
        Some(KnownLayout::Same) => write_layout(&transaction, upto, None).await?,
        Some(KnownLayout::New(text)) => write_layout(&transaction, upto, Some(text)).await?,
    }
    transaction.commit().await
}

pub(super) async fn write_known(
    client: &impl GenericClient,
    known: &BTreeMap<String, Signature>,
) -> Result<(), Error> {
    client.execute("DELETE FROM muster.captured", &[]).await?;
    let names: Vec<&str> = known.keys().map(String::as_str).collect();
    // A struct of numbers and texts has no value that JSON cannot hold.
    let texts: Vec<String> =
        known.values().map(|known| serde_json::to_string(known).unwrap_or_default()).collect();
    let sql = "INSERT INTO muster.captured SELECT * FROM unnest($1::text[], $2::text[])";
    client.execute(sql, &[&names, &texts]).await.map(drop)
}

/// A signature that cannot be read is one that fits nothing: the table is read again.
pub(super) async fn read_known(client: &impl GenericClient) -> Result<BTreeMap<String, Signature>, Error> {
    let rows = client.query("SELECT name, signature FROM muster.captured", &[]).await?;
    let signature = |row: &tokio_postgres::Row| serde_json::from_str(row.get(1)).unwrap_or_default();
    Ok(rows.iter().map(|row| (row.get(0), signature(row))).collect())
}

pub(super) fn known_of(layout: &Layout) -> BTreeMap<String, Signature> {
    layout.present().map(|table| (table.name().to_owned(), table.signature.clone())).collect()
}

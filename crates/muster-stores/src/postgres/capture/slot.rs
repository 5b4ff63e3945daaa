//! The slot, and the server that it is on.

use std::time::Duration;

use muster_types::{Position, ShardName};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error, GenericClient};

/// Longest name of a slot that PostgreSQL takes.
const NAME_BYTES_MAX: usize = 63;

/// Which history of which cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) system: i64,
    pub(super) timeline: i64,
}

/// Server and log as they are.
#[derive(Clone, Debug)]
pub(super) struct Status {
    pub(super) server: Server,
    /// End of the log.
    pub(super) end: Position,
    pub(super) slot: Option<SlotStatus>,
    /// Names the database.
    pub(super) database: String,
}

/// The slot as it is.
#[derive(Clone, Debug)]
pub(super) struct SlotStatus {
    pub(super) database: Option<String>,
    /// `reserved`, `extended`, `unreserved` or `lost`; none while it is being made.
    pub(super) wal_status: Option<String>,
    /// Log that it holds back.
    pub(super) held_bytes: u64,
    /// What it will give begins here.
    pub(super) confirmed: Position,
    /// The process that streams from it.
    pub(super) active_pid: Option<i32>,
}

/// Name of slot and publication of a shard: lower-case letters, digits and `_`, and different for different shards.
pub(super) fn name_of(shard: &ShardName) -> String {
    let plain: String = shard
        .as_str()
        .chars()
        .map(|char| if char.is_ascii_alphanumeric() { char.to_ascii_lowercase() } else { '_' })
        .collect();
    if plain == shard.as_str() && plain.len() + "muster_".len() <= NAME_BYTES_MAX {
        return format!("muster_{plain}");
    }
    let digest = muster_types::Digest::of(shard.as_str().as_bytes()).to_string();
    let digest: String = digest.chars().filter(char::is_ascii_alphanumeric).rev().take(8).collect();
    let kept: String = plain.chars().take(NAME_BYTES_MAX - "muster__".len() - digest.len()).collect();
    format!("muster_{kept}_{digest}")
}

pub(super) async fn status(client: &impl GenericClient, slot: &str) -> Result<Status, Error> {
    let sql = "SELECT s.system_identifier, ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::bigint, \
        (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint, current_database()::text, \
        r.slot_name IS NOT NULL, r.database::text, r.wal_status, \
        coalesce((pg_current_wal_insert_lsn() - r.restart_lsn)::bigint, 0), \
        coalesce((r.confirmed_flush_lsn - '0/0'::pg_lsn)::bigint, 0), r.active_pid \
        FROM pg_control_system() s LEFT JOIN pg_replication_slots r ON r.slot_name = $1";
    let row = client.query_one(sql, &[&slot]).await?;
    let unsigned = |column: usize| row.get::<_, i64>(column).cast_unsigned();
    let found = row.get::<_, bool>(4).then(|| SlotStatus {
        database: row.get(5),
        wal_status: row.get(6),
        held_bytes: unsigned(7),
        confirmed: Position(unsigned(8)),
        active_pid: row.get(9),
    });
    let server = Server { system: row.get(0), timeline: row.get(1) };
    Ok(Status { server, end: Position(unsigned(2)), slot: found, database: row.get(3) })
}

/// Why the history of `acknowledged` cannot be gone on with.
pub(super) fn broken(
    status: &Status,
    begun_on: Option<Server>,
    slot: &str,
    acknowledged: Position,
) -> Option<String> {
    let Some(begun_on) = begun_on else {
        return Some("capture was installed and has not begun".to_owned());
    };
    if status.server.system != begun_on.system {
        return Some("the database is on another cluster than its capture began on".to_owned());
    }
    if status.server.timeline != begun_on.timeline {
        return Some(format!(
            "the server went from timeline {} to {}: it was promoted, or recovered to a point in time",
            begun_on.timeline, status.server.timeline
        ));
    }
    let Some(found) = &status.slot else { return Some(format!("slot `{slot}` is gone")) };
    if found.database.as_deref() != Some(status.database.as_str()) {
        return Some(format!("slot `{slot}` is that of another database: this one is a copy"));
    }
    if found.wal_status.as_deref() == Some("lost") {
        return Some(format!("slot `{slot}` was lost: the server removed log that it needs"));
    }
    if found.confirmed.0 > acknowledged.0 + 1 {
        return Some(format!("slot `{slot}` was moved on past what capture had acknowledged"));
    }
    None
}

/// Makes the slot anew and gives the place from which it streams; nothing if transactions stayed open for longer than
/// `wait`, and then there is no slot.
pub(super) async fn create(
    client: &mut Client,
    slot: &str,
    wait: Duration,
) -> Result<Option<Position>, Error> {
    let transaction = client.transaction().await?;
    let limit = wait.as_millis().clamp(1, i32::MAX as u128);
    transaction
        .batch_execute(&format!("SET LOCAL statement_timeout = {limit}; SET LOCAL lock_timeout = 0"))
        .await?;
    let sql = "SELECT (lsn - '0/0'::pg_lsn)::bigint FROM pg_create_logical_replication_slot($1, 'pgoutput')";
    match transaction.query_one(sql, &[&slot]).await {
        Ok(row) => {
            transaction.commit().await?;
            Ok(Some(Position(row.get::<_, i64>(0).cast_unsigned())))
        }
        Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) => {
            transaction.rollback().await?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The transaction with changes that has been open for longest, in words.
pub(super) async fn oldest_transaction(client: &impl GenericClient) -> Result<Option<String>, Error> {
    // Locks are everyone's to see; of foreign sessions a role without pg_monitor learns less.
    let sql = "SELECT l.pid, a.usename::text, to_char(a.xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'), \
        (SELECT gid FROM pg_prepared_xacts x WHERE x.transaction = l.transactionid) \
        FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid \
        WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted \
        AND l.pid IS DISTINCT FROM pg_backend_pid() ORDER BY age(l.transactionid) DESC LIMIT 1";
    let Some(row) = client.query_opt(sql, &[]).await? else { return Ok(None) };
    if let Some(prepared) = row.get::<_, Option<String>>(3) {
        return Ok(Some(format!("the prepared transaction `{prepared}`")));
    }
    let pid = row.get::<_, Option<i32>>(0).map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
    let user = row.get::<_, Option<String>>(1).unwrap_or_else(|| "unknown".to_owned());
    let since =
        row.get::<_, Option<String>>(2).map_or_else(String::new, |at| format!(", open since {at} UTC"));
    Ok(Some(format!("that of process {pid} of user `{user}`{since}")))
}

pub(super) async fn drop(client: &impl GenericClient, slot: &str) -> Result<(), Error> {
    let sql = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
        WHERE slot_name = $1 AND database = current_database()";
    client.query(sql, &[&slot]).await.map(std::mem::drop)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that meets an error fails")]

    use super::*;

    #[test]
    fn slot_names_are_permitted_and_differ() {
        let name = |shard: &str| name_of(&ShardName::new(shard).unwrap());
        assert_eq!(name("jira_1"), "muster_jira_1");
        let long = "x".repeat(100);
        let names = [name("jira-1"), name("jira.1"), name("Jira_1"), name(&long), name(&long[..99])];
        for (at, one) in names.iter().enumerate() {
            assert!(one.len() <= NAME_BYTES_MAX && !names[..at].contains(one), "{one}");
            assert!(
                one.chars().all(|char| char.is_ascii_lowercase() || char.is_ascii_digit() || char == '_')
            );
        }
    }
}

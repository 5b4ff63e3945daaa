//! Event triggers that write each DDL into the log, in its own transaction.
//!
//! # Invariants
//! - They never make a DDL fail, and need no right of whoever runs it.
//! - Where they may not be installed, capture goes by the catalog alone: [`LOST`] says what that costs.

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error, GenericClient};

use super::error::explain;
use super::state;
use crate::capture::CaptureError;
use crate::postgres::connect::{PostgresConfig, block_on};

/// Function `muster.note_ddl`.
const FUNCTION: &str = include_str!("note_ddl.sql");

/// DDL that may change which tables there are, or what their rows look like. Others are not worth a call.
const TAGS: &str = "'ALTER TABLE', 'CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'CREATE SCHEMA', 'ALTER SCHEMA', \
    'CREATE EXTENSION', 'ALTER EXTENSION'";

/// Name and statement. Whatever drops a table is told of by the second.
const TRIGGERS: [(&str, &str); 2] =
    [("muster_ddl", "ON ddl_command_end WHEN TAG IN (TAGS)"), ("muster_ddl_drop", "ON sql_drop")];

/// What is lost without them.
pub(super) const LOST: &str = "an altered or dropped table leaves no recovery point of the shard between the poll before \
    the change and the end of the poll that notices it";

/// Installs them; gives why they could not be, or whether something had to be done.
pub(super) async fn install(client: &mut Client) -> Result<Result<bool, String>, Error> {
    let missing = missing(client).await?;
    match create(client, &missing).await {
        Ok(()) => Ok(Ok(!missing.is_empty())),
        // Someone with more rights installed them before.
        Err(error) if is_refusal(&error) && missing.is_empty() => Ok(Ok(false)),
        Err(error) if is_refusal(&error) => Ok(Err(error
            .as_db_error()
            .map_or_else(|| error.to_string(), |answer| answer.message().to_owned()))),
        Err(error) => Err(error),
    }
}

fn is_refusal(error: &Error) -> bool {
    error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE)
}

async fn create(client: &mut Client, missing: &[&str]) -> Result<(), Error> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(FUNCTION).await?;
    for (name, when) in TRIGGERS.iter().filter(|(name, _)| missing.contains(name)) {
        let when = when.replace("TAGS", TAGS);
        // Also for sessions that replicate, such as a publish of Muster's.
        let sql = format!(
            "DROP EVENT TRIGGER IF EXISTS {name}; \
             CREATE EVENT TRIGGER {name} {when} EXECUTE FUNCTION muster.note_ddl(); \
             ALTER EVENT TRIGGER {name} ENABLE ALWAYS"
        );
        transaction.batch_execute(&sql).await?;
    }
    transaction.commit().await
}

/// Those that are not there, or do not fire for everybody.
pub(super) async fn missing(client: &impl GenericClient) -> Result<Vec<&'static str>, Error> {
    let rows = client.query("SELECT evtname::text FROM pg_event_trigger WHERE evtenabled = 'A'", &[]).await?;
    let there: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    Ok(TRIGGERS
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| !there.iter().any(|known| known == name))
        .collect())
}

/// Takes them away. The function goes with its schema.
pub(super) async fn remove(client: &impl GenericClient) -> Result<(), Error> {
    for (name, _) in TRIGGERS {
        client.batch_execute(&format!("DROP EVENT TRIGGER IF EXISTS {name}")).await?;
    }
    Ok(())
}

/// What an operator should know of a shard whose DDL is not told of.
pub(super) fn note(reason: &str) -> String {
    format!(
        "DDL is not written into the log, since {reason}: {LOST}; a superuser may run `muster capture init` to change that"
    )
}

/// What an operator should know of how a database is captured, or will be. Blocks.
///
/// # Errors
/// [`CaptureError`] when the database cannot be reached or read.
pub fn capture_notes(connection: &str) -> Result<Vec<String>, CaptureError> {
    let config = PostgresConfig::parse(connection)?;
    block_on(async {
        let client = config.connect().await?;
        let reason = obstacle(&client).await;
        let reason = reason.map_err(|error| explain(&config, "look at its event triggers", &error))?;
        Ok(reason.map(note).into_iter().collect())
    })?
}

/// Why DDL is not told of, or will not be.
async fn obstacle(client: &Client) -> Result<Option<&'static str>, Error> {
    if missing(client).await?.is_empty() {
        return Ok(None);
    }
    if state::exists(client).await? {
        return Ok(Some("event triggers of Muster's are missing or disabled"));
    }
    let sql = "SELECT rolsuper FROM pg_roles WHERE rolname = current_user";
    let superuser: bool = client.query_one(sql, &[]).await?.get(0);
    Ok((!superuser).then_some("the role is no superuser, and may not create event triggers"))
}

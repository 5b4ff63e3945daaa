//! What a database has beside its tables: the last numbers of sequences.
//!
//! Sequences are not in the log. Their numbers are those of the snapshot, and a restore brings them forward past the ids
//! that it loads.

use muster_types::snapshot::Beside;
use tokio_postgres::{Error, GenericClient};

use crate::postgres::schema::qualified;

/// Reads it. A sequence that the role may not read, or that gave no number yet, is left out.
///
/// # Errors
/// Those of the connection.
pub(super) async fn read(client: &impl GenericClient) -> Result<Beside, Error> {
    let sql = "SELECT schemaname::text, sequencename::text, last_value FROM pg_sequences \
        WHERE last_value IS NOT NULL AND schemaname <> 'muster' ORDER BY 1, 2";
    let rows = client.query(sql, &[]).await?;
    let sequences = rows.iter().map(|row| (qualified(row.get(0), row.get(1)), row.get(2))).collect();
    Ok(Beside { sequences, statements: Vec::new() })
}

//! Sequences never fall behind restored ids.
//!
//! # Invariants
//! A sequence is never brought back: where little is missing it is drawn from, like any user of it does; where much is
//! missing it is set, and an ordinary session would have to draw more than [`DRAWS_MAX`] numbers within that one
//! statement to be ahead of it.

use muster_engine::driver::DriverError;
use muster_types::table::ColumnDef;
use tokio_postgres::{Client, Error};

use super::live::KindTable;
use super::shard::Shard;
use super::stage::{StagedRows, of_attempts, table_name};
use crate::postgres::schema::{OwnedSequence, literal, qualified, quote};

/// Numbers drawn one by one at most.
const DRAWS_MAX: i64 = 10_000;

/// Brings forward the sequences that columns of the published tables own. Not undone by a rollback: a sequence that is
/// ahead harms nobody.
pub(super) async fn advance(
    shard: &Shard,
    client: &Client,
    rows: &StagedRows<'_>,
    tables: &[KindTable<'_>],
) -> Result<(), DriverError> {
    for table in tables {
        let Some(then) = table.then else { continue };
        let staged = table_name(rows.run, then);
        let failed = |of: &str, error: &Error| {
            shard.error(&format!("publish {}: bring sequence `{of}` forward", rows.of), error)
        };
        let drawn = drawn_from(client, table).await.map_err(|error| failed(&table.now.name, &error))?;
        for sequence in table.now.sequences.iter().chain(&drawn) {
            // A text may own the sequence that its default draws from; its values are no numbers.
            let counts = |column: &ColumnDef| {
                column.name == sequence.column
                    && ["smallint", "integer", "bigint", "numeric"]
                        .iter()
                        .any(|number| column.declared_type.starts_with(number))
            };
            if then.stored_columns().any(counts) {
                let done = one(client, sequence, &staged, rows.attempts).await;
                done.map_err(|error| failed(&sequence.name, &error))?;
            }
        }
    }
    Ok(())
}

/// Sequences that no column owns and that defaults of the table's columns draw from.
async fn drawn_from(client: &Client, table: &KindTable<'_>) -> Result<Vec<OwnedSequence>, Error> {
    let mut found = Vec::new();
    for column in &table.now.def.columns {
        let owned = table.now.sequences.iter().any(|sequence| sequence.column == column.name);
        let Some(name) = column.default_sql.as_deref().and_then(drawn).filter(|_| !owned) else { continue };
        let sql = "SELECT n.nspname::text, c.relname::text, s.seqincrement FROM pg_sequence s \
            JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
            WHERE s.seqrelid = to_regclass($1)";
        let row = client.query_opt(sql, &[&name]).await?;
        found.extend(row.map(|row| OwnedSequence {
            schema: row.get(0),
            name: row.get(1),
            column: column.name.clone(),
            of_identity: false,
            increment: row.get(2),
            options_sql: String::new(),
        }));
    }
    Ok(found)
}

/// The name in `nextval('NAME'::regclass)`.
fn drawn(default: &str) -> Option<String> {
    let name = default.strip_prefix("nextval('")?.strip_suffix("'::regclass)")?;
    Some(name.replace("''", "'"))
}

async fn one(client: &Client, sequence: &OwnedSequence, staged: &str, attempts: &[i64]) -> Result<(), Error> {
    let name = qualified(&sequence.schema, &sequence.name);
    let up = sequence.increment > 0;
    let (furthest, behind) = if up { ("max", "<") } else { ("min", ">") };
    // Ids outside of what the sequence can give need no care: it will never give them.
    let sql = format!(
        "SELECT w.id, (abs(w.id - q.last_value) + {step} - 1) / {step} + (NOT q.is_called)::int FROM {name} q CROSS JOIN LATERAL (SELECT \
         {furthest}(s.{column})::bigint AS id FROM {staged} s, pg_sequence g WHERE {rows} \
         AND g.seqrelid = {regclass}::regclass AND s.{column} BETWEEN g.seqmin AND g.seqmax) w \
         WHERE q.last_value {behind} w.id OR (q.last_value = w.id AND NOT q.is_called)",
        step = sequence.increment.unsigned_abs(),
        column = quote(&sequence.column),
        rows = of_attempts(attempts),
        regclass = literal(&name),
    );
    let Some(row) = client.query_typed_opt(&sql, &[]).await? else { return Ok(()) };
    let (id, draws): (i64, i64) = (row.get(0), row.get(1));
    let forward = if draws <= DRAWS_MAX {
        format!("SELECT max(nextval({}::regclass)) FROM generate_series(1, {draws})", literal(&name))
    } else {
        format!(
            "SELECT setval({}::regclass, {id}) FROM {name} WHERE last_value {behind} {id}",
            literal(&name)
        )
    };
    client.query_typed(&forward, &[]).await.map(drop)
}

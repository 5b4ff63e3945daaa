//! Rows by a key, for those who ask what an id names.

use muster_engine::driver::DriverError;
use tokio_postgres::Error;

use super::shard::{Catalog, Shard};
use crate::lookup::{FoundRow, Lookup};
use crate::postgres::schema::quote;

pub(super) async fn find(shard: &Shard, lookup: &Lookup) -> Result<Vec<FoundRow>, DriverError> {
    let session = shard.session().await?;
    let failed = |error: Error| shard.error(&format!("look for rows of `{}`", lookup.table), &error);
    let catalog = Catalog::read(&session).await.map_err(failed)?;
    let Some(table) = catalog.tables.get(&lookup.table) else { return Ok(Vec::new()) };
    let key = format!("t.{}::text", quote(&lookup.key));
    let columns: String =
        lookup.columns.iter().map(|column| format!(", t.{}::text", quote(column))).collect();
    let sql = format!(
        "SELECT {key}{columns} FROM {} t WHERE {key} COLLATE \"C\" = ANY($1::text[])",
        table.rows_of()
    );
    let rows = session.query(&sql, &[&lookup.values]).await.map_err(failed)?;
    let one = |row: tokio_postgres::Row| {
        let values =
            (1..=lookup.columns.len()).map(|column| row.try_get(column)).collect::<Result<_, _>>()?;
        Ok(FoundRow { key: row.try_get(0)?, values })
    };
    let found = rows.into_iter().map(one).collect::<Result<_, Error>>().map_err(failed)?;
    session.keep();
    Ok(found)
}

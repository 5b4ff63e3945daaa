//! What the role may not do that a publish does.

use std::collections::BTreeSet;

use tokio_postgres::{Client, Error};

use super::live::KindTable;
use crate::postgres::schema::{qualified, quote};

/// The statements that give the role what it lacks; none if it lacks nothing.
///
/// Replaced rows need DELETE besides, which only a publish under overwrite asks for.
pub(super) async fn missing(client: &Client, tables: &[KindTable<'_>]) -> Result<Option<String>, Error> {
    let mut needed: BTreeSet<(u32, &str)> = BTreeSet::new();
    for table in tables {
        needed.insert((table.now.oid, "SELECT"));
        if table.then.is_some() {
            needed.insert((table.now.oid, "INSERT"));
            if table.now.keys.iter().any(|key| key.deferrable) {
                // For the lock.
                needed.insert((table.now.oid, "UPDATE"));
            }
            for key in &table.now.foreign_keys {
                // FOR KEY SHARE takes the right to update, of any column.
                needed.extend([(key.parent_oid, "SELECT"), (key.parent_oid, "UPDATE")]);
            }
        }
    }
    let (oids, privileges): (Vec<u32>, Vec<&str>) = needed.into_iter().unzip();
    let rows = client
        .query(
            "SELECT n.nspname::text, c.relname::text, w.privilege, has_schema_privilege(n.oid, 'USAGE'), current_user::text \
             FROM unnest($1::oid[], $2::text[]) w(oid, privilege) JOIN pg_class c ON c.oid = w.oid \
             JOIN pg_namespace n ON n.oid = c.relnamespace WHERE NOT has_schema_privilege(n.oid, 'USAGE') \
             OR NOT CASE w.privilege WHEN 'UPDATE' THEN has_any_column_privilege(c.oid, 'UPDATE') \
             ELSE has_table_privilege(c.oid, w.privilege) END ORDER BY 1, 2, 3",
            &[&oids, &privileges],
        )
        .await?;
    let mut statements = BTreeSet::new();
    for row in &rows {
        let (schema, table, privilege, user): (&str, &str, &str, &str) =
            (row.get(0), row.get(1), row.get(2), row.get(4));
        statements.insert(match row.get(3) {
            true => format!("GRANT {privilege} ON {} TO {}", qualified(schema, table), quote(user)),
            false => format!("GRANT USAGE ON SCHEMA {} TO {}", quote(schema), quote(user)),
        });
    }
    let statements: Vec<String> = statements.into_iter().collect();
    Ok((!statements.is_empty())
        .then(|| format!("its role lacks privileges that a publish needs: {}", statements.join("; "))))
}

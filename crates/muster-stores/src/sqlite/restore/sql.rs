//! Pieces of SQL: column lists, and whose a row is.

use muster_types::table::Owner;

use crate::sqlite::schema::quote;
use crate::sqlite::system::{OwnerMap, belongs_sql};

/// `alias."a", alias."b"`; an empty alias leaves the dot away.
pub(super) fn column_list<'a>(alias: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    let dot = if alias.is_empty() { "" } else { "." };
    let one = |name: &str| format!("{alias}{dot}{}", quote(name));
    names.into_iter().map(one).collect::<Vec<_>>().join(", ")
}

/// The condition for rows `t` of the site bound as `?1`; none for reference tables.
pub(super) fn rows_of_site(owner: &Owner) -> Option<String> {
    (owner != &Owner::Reference).then(|| belongs_sql(owner, "t", "?1"))
}

/// Counts the rows of `table` for each site in `temp.probed`; none for reference tables.
pub(super) fn probed_rows(table: &str, owner: &Owner) -> Option<String> {
    let table_name = quote(table);
    let join = match owner {
        Owner::Tenant { column } => {
            let value = format!("t.{}", quote(column));
            // The first part finds rows by index, the second is exact under any affinity and collation.
            format!(
                "main.{table_name} t ON {value} = p.site AND CAST({value} AS TEXT) = p.site COLLATE BINARY"
            )
        }
        Owner::Parent { column, table, key } => {
            let map = OwnerMap { table: table.clone(), key: key.clone() };
            format!(
                "main.{} o ON o.site = p.site JOIN main.{table_name} t ON o.key = t.{}",
                quote(&map.name()),
                quote(column)
            )
        }
        Owner::Site { .. } | Owner::Reference => return None,
    };
    Some(format!("SELECT p.site, count(*) FROM temp.probed p JOIN {join} GROUP BY p.site"))
}

//! Live parent rows: whose they are.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::error::SqlState;
use tokio_postgres::{Error, GenericClient};

use super::layout::{Layout, RowOwner};
use super::owner::{Link, Node, site_of};

/// Keys asked for at once.
const KEYS_AT_ONCE: usize = 10_000;

/// What the live rows of `nodes` say of their owner; none for those that are not there.
pub(super) async fn links(
    client: &impl GenericClient,
    layout: &Layout,
    nodes: BTreeSet<Node>,
) -> Result<Vec<(Node, Option<Link>)>, Error> {
    let mut by_key: BTreeMap<(usize, usize), Vec<Node>> = BTreeMap::new();
    for node in nodes {
        by_key.entry((node.table, node.column)).or_default().push(node);
    }
    let mut found = Vec::new();
    for ((table, column), nodes) in by_key {
        for nodes in nodes.chunks(KEYS_AT_ONCE) {
            let keys: Vec<String> =
                nodes.iter().map(|node| String::from_utf8_lossy(&node.value).into_owned()).collect();
            let mut links = of_table(client, layout, table, column, &keys).await?;
            found.extend(nodes.iter().zip(&keys).map(|(node, key)| (node.clone(), links.remove(key))));
        }
    }
    Ok(found)
}

async fn of_table(
    client: &impl GenericClient,
    layout: &Layout,
    table: usize,
    column: usize,
    keys: &[String],
) -> Result<BTreeMap<String, Link>, Error> {
    let captured = &layout.tables[table];
    let (owner, parent) = match captured.owner {
        // Nothing is owned through a table of one site.
        RowOwner::Nobody | RowOwner::Site(_) => (None, None),
        RowOwner::Tenant(column) => (Some(column), None),
        RowOwner::Parent { column, table, key } => (Some(column), Some((table, key))),
    };
    let owner =
        owner.map_or_else(|| "NULL".to_owned(), |column| format!("p.{}", captured.column_sql(column)));
    let key = captured.column_sql(column);
    let from =
        format!("SELECT w.k, {owner}::text FROM unnest($1::text[]) w(k) JOIN {} p", captured.live.rows_of());
    let type_name =
        captured.table.def.stored_columns().nth(column).map(|column| column.declared_type.as_str());
    let typed = format!("{from} ON p.{key} = w.k::{}", type_name.unwrap_or("text"));
    let rows = match client.query(&typed, &[&keys]).await {
        // A child without a foreign key may hold what no parent can.
        Err(error) if error.code().is_some_and(is_no_value) => {
            client.query(&format!("{from} ON p.{key}::text = w.k"), &[&keys]).await?
        }
        other => other?,
    };
    let link = |text: Option<&str>| match (text, parent) {
        (None, _) => Link::Site(None),
        (Some(text), None) => Link::Site(site_of(text.as_bytes())),
        (Some(text), Some((table, column))) => {
            Link::Parent(Node { table, column, value: text.as_bytes().into() })
        }
    };
    Ok(rows.iter().map(|row| (row.get(0), link(row.get(1)))).collect())
}

fn is_no_value(code: &SqlState) -> bool {
    code.code().starts_with("22")
}

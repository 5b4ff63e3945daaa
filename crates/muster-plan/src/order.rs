//! The order in which tables are filled: parents before the tables that refer to them.

use std::collections::BTreeMap;

use muster_types::table::{CapturedTable, Owner};

/// Sorts tables so that each comes behind the tables that it refers to or is owned through.
///
/// Ties are in the order of names. A table that refers to itself, and one of each circle of references, stand where
/// their names put them: publishing defers foreign keys to its commit.
pub fn parents_first<T: Copy>(mut tables: Vec<(T, &CapturedTable)>) -> Vec<(T, &CapturedTable)> {
    tables.sort_by(|a, b| a.1.def.name.cmp(&b.1.def.name));
    let by_name: BTreeMap<&str, usize> =
        tables.iter().enumerate().map(|(i, (_, table))| (table.def.name.as_str(), i)).collect();
    let mut order = Vec::with_capacity(tables.len());
    let mut seen = vec![false; tables.len()];
    for start in 0..tables.len() {
        visit(start, &tables, &by_name, &mut seen, &mut order);
    }
    order.into_iter().map(|i| tables[i]).collect()
}

/// Depth first, without recursion: chains of tables may be as long as a schema is large.
fn visit<T>(
    start: usize,
    tables: &[(T, &CapturedTable)],
    by_name: &BTreeMap<&str, usize>,
    seen: &mut [bool],
    order: &mut Vec<usize>,
) {
    if std::mem::replace(&mut seen[start], true) {
        return;
    }
    let mut path = vec![(start, parents(tables[start].1, by_name))];
    while let Some((table, waiting)) = path.last_mut() {
        match waiting.pop() {
            Some(parent) if !seen[parent] => {
                seen[parent] = true;
                path.push((parent, parents(tables[parent].1, by_name)));
            }
            Some(_) => {}
            None => {
                order.push(*table);
                path.pop();
            }
        }
    }
}

/// Numbers of the tables that `table` refers to, descending, so that they are popped ascending.
fn parents(table: &CapturedTable, by_name: &BTreeMap<&str, usize>) -> Vec<usize> {
    let foreign = table.def.foreign_keys.iter().map(|key| key.parent_table.as_str());
    let owner = match &table.owner {
        Owner::Parent { table, .. } => Some(table.as_str()),
        Owner::Tenant { .. } | Owner::Site { .. } | Owner::Reference => None,
    };
    let mut parents: Vec<usize> =
        foreign.chain(owner).filter_map(|name| by_name.get(name).copied()).collect();
    parents.sort_unstable();
    parents.dedup();
    parents.reverse();
    parents
}

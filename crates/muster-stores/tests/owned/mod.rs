//! How a table is owned, in the fewest words.

use muster_types::table::Owner;
use muster_types::topology::TableConfig;

/// How a table is owned, in the fewest words.
#[derive(Clone, Debug)]
pub enum Own {
    /// Tenant column.
    T(&'static str),
    /// Column, table, key.
    P(&'static str, &'static str, &'static str),
    /// Reference.
    R,
}

pub fn config(own: &Own) -> TableConfig {
    let owner = match own {
        Own::T(column) => Owner::Tenant { column: (*column).to_owned() },
        Own::P(column, table, key) => {
            Owner::Parent { column: (*column).to_owned(), table: (*table).to_owned(), key: (*key).to_owned() }
        }
        Own::R => Owner::Reference,
    };
    TableConfig { kind: "metadata".parse().unwrap(), owner, migrations: vec![], harmless_triggers: vec![] }
}

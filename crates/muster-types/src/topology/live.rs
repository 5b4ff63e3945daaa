//! The declarations against the tables that a shard really has.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::declare::table_section;
use super::error::{TopologyError, suggestion};
use super::{DatabaseTable, Declared, Named, TableConfig, Topology};
use crate::ids::{Kind, ShardName};
use crate::reference::Reference;
use crate::table::{Owner, TableDef};

impl Topology {
    /// The section that declares `shard`: its own name, or its family's.
    pub fn section_of<'t>(&'t self, shard: &'t ShardName) -> &'t ShardName {
        let has = |family: &&ShardName| self.families[*family].shards.values().any(|member| member == shard);
        self.families.keys().find(has).unwrap_or(shard)
    }

    /// The tables that `shard` hosts and that are declared by their names.
    pub fn shard_tables(&self, shard: &ShardName) -> BTreeMap<String, TableConfig> {
        let kinds = self.shards.get(shard).map_or(&[][..], |shard| shard.kinds.as_slice());
        let hosted = self.tables.iter().filter(|(_, table)| kinds.contains(&table.kind));
        hosted.map(|(name, table)| (name.clone(), table.clone())).collect()
    }

    /// Everything that is declared for `shard`, by live names.
    pub fn declared(&self, shard: &ShardName) -> Declared {
        let config = self.shards.get(shard);
        let kinds = config.map_or(&[][..], |shard| shard.kinds.as_slice());
        if let Some(site) = config.and_then(|config| config.site.as_ref()) {
            let named =
                self.tables.iter().map(|(name, config)| (name.clone(), DatabaseTable::from(config.clone())));
            let ownerless = self.database_tables.iter().map(|(name, table)| (name.clone(), table.clone()));
            let hosted = named.chain(ownerless).filter(|(_, table)| kinds.contains(&table.kind));
            return Declared::of_database(site.clone(), hosted.collect());
        }
        let of_sites = self.site_tables.iter().filter(|table| kinds.contains(&table.kind));
        Declared::new(self.shard_tables(shard), of_sites.cloned().collect())
    }

    /// Everything in which the live tables of `shard` and the topology disagree; empty if they agree.
    ///
    /// SQLite's and Muster's own tables are left out. Declared tables that the shard does not have are no error: they
    /// are captured when they appear.
    pub fn check_shard(&self, shard: &ShardName, live: &[TableDef]) -> Vec<TopologyError> {
        let declared = self.declared(shard);
        let check = Check { topology: self, shard, tables: self.shard_tables(shard), live };
        let own = |table: &&TableDef| table.name.starts_with("_muster_") || table.name.starts_with("sqlite_");
        let mut errors = Vec::new();
        for table in live.iter().filter(|table| !own(table)) {
            let found = declared.get(&table.name);
            match found.as_deref() {
                None if declared.misnamed(&table.name).is_some() => {
                    errors.extend(declared.misnamed(&table.name).map(|why| check.misnamed(table, &why)));
                }
                None => errors.push(check.undeclared(table)),
                Some(TableConfig { owner: Owner::Tenant { column }, .. }) => {
                    errors.extend(check.column(table, column, "tenant column"));
                }
                Some(TableConfig { owner: Owner::Parent { column, table: parent, key }, .. }) => {
                    errors.extend(check.column(table, column, "parent column"));
                    errors.extend(check.parent_key(table, parent, key));
                }
                // In a schema of its own: nothing in it has to tell the site.
                Some(TableConfig { owner: Owner::Site { .. }, .. }) => {}
                Some(TableConfig { owner: Owner::Reference, .. }) => errors.extend(check.reference(table)),
            }
        }
        errors.extend(check.directory_columns());
        errors.extend(check.reference_columns(&declared));
        errors
    }
}

struct Check<'c> {
    topology: &'c Topology,
    shard: &'c ShardName,
    /// Those that the shard hosts.
    tables: BTreeMap<String, TableConfig>,
    live: &'c [TableDef],
}

impl Check<'_> {
    /// An error about a table, with the line of its declaration if it has one.
    fn error(&self, table: &str, what: &str, hint: impl Into<String>) -> TopologyError {
        self.error_at(&format!("tables.{table}"), what, hint)
    }

    fn error_at(&self, declaration: &str, what: &str, hint: impl Into<String>) -> TopologyError {
        let source = &self.topology.source;
        TopologyError {
            file: source.file.clone(),
            line: source.lines.get(declaration).copied(),
            what: format!("shard `{}`: {what}", self.shard),
            hint: hint.into(),
        }
    }

    fn live(&self, name: &str) -> Option<&TableDef> {
        self.live.iter().find(|table| table.name.eq_ignore_ascii_case(name))
    }

    /// The declaration of an owned table; SQLite does not mind the case of its name in a foreign key.
    fn owned(&self, name: &str) -> Option<(&String, &TableConfig)> {
        let declared = self.tables.iter().find(|(table, _)| table.eq_ignore_ascii_case(name));
        declared.filter(|(_, config)| config.owner != Owner::Reference)
    }

    fn is_of_site(&self, name: &str) -> bool {
        let declared = self.topology.declared(self.shard);
        declared.get(name).is_some_and(|config| matches!(config.owner, Owner::Site { .. }))
    }

    fn undeclared(&self, table: &TableDef) -> TopologyError {
        let name = &table.name;
        if let Some(kind) = self.declared_kind(name) {
            let what =
                format!("table `{name}` is declared for kind `{kind}`, which this shard does not host");
            let hint = format!(
                "add `{kind}` to the `kinds` of [shards.{}], or drop the table there",
                self.section()
            );
            return self.error(name, &what, hint);
        }
        let told = if self.is_single() { "kind" } else { "owner" };
        let hint = format!("add to the topology, if this is its {told}:\n{}", self.proposal(table));
        self.error_at(&format!("shards.{}", self.shard), &format!("nothing declares table `{name}`"), hint)
    }

    /// The kind of a table of this name, whichever shards host it.
    fn declared_kind(&self, name: &str) -> Option<Kind> {
        let topology = self.topology;
        // Only a database of one site takes tables without an owner.
        let ownerless = topology.database_tables.get(name).filter(|_| self.is_single());
        let everywhere = Declared::new(topology.tables.clone(), topology.site_tables.clone());
        ownerless
            .map(|table| table.kind.clone())
            .or_else(|| everywhere.get(name).map(|table| table.kind.clone()))
    }

    /// The shard is the database of one site.
    fn is_single(&self) -> bool {
        self.topology.shards.get(self.shard).is_some_and(|config| config.site.is_some())
    }

    /// The name of the shard's section.
    fn section(&self) -> &ShardName {
        self.topology.section_of(self.shard)
    }

    fn misnamed(&self, table: &TableDef, why: &str) -> TopologyError {
        let what = format!("table `{}` is of no site: {why}", table.name);
        let hint = "rename the schema to the site's id, or declare the table by its name";
        self.error_at(&format!("shards.{}", self.shard), &what, hint)
    }

    /// The declaration that the table's columns and foreign keys suggest.
    fn proposal(&self, table: &TableDef) -> String {
        if let Some(alike) = self
            .topology
            .site_tables
            .iter()
            .find_map(|other| Some((other.pattern.beside(&table.name)?, &other.kind)))
        {
            return format!("{}\nkind = {:?}", table_section(&alike.0.to_string()), alike.1.as_str());
        }
        if self.is_single() {
            let hosted = self.topology.shards.get(self.shard).and_then(|shard| shard.kinds.first());
            let kind = hosted.map_or("...", Kind::as_str);
            // Its site goes without saying.
            return format!("{}\nkind = {kind:?}", table_section(&table.name));
        }
        let has = |column: &str| table.columns.iter().any(|own| own.name == column);
        let tenant = self.topology.tables.values().find_map(|other| match &other.owner {
            Owner::Tenant { column } if has(column) => Some(column),
            _ => None,
        });
        let parent =
            table.foreign_keys.iter().find_map(|key| match (&key.columns[..], &key.parent_columns[..]) {
                ([column], [parent]) => self.owned(&key.parent_table).map(|owned| (column, owned, parent)),
                _ => None,
            });
        let (kind, owner) = match (tenant, parent) {
            (Some(column), _) => (None, format!("tenant = {column:?}")),
            (None, Some((column, (of, owned), key))) => (
                Some(&owned.kind),
                format!("parent = {{ column = {column:?}, table = {of:?}, key = {key:?} }}"),
            ),
            (None, None) => (None, "reference = true".to_owned()),
        };
        let hosted = self.topology.shards.get(self.shard).and_then(|shard| shard.kinds.first());
        let kind = kind.or(hosted).map_or("...", Kind::as_str);
        format!("{}\nkind = {kind:?}\n{owner}", table_section(&table.name))
    }

    fn column(&self, table: &TableDef, column: &str, what: &str) -> Option<TopologyError> {
        let names = || table.stored_columns().map(|column| column.name.as_str());
        if names().any(|name| name == column) {
            return None;
        }
        let hint = format!(
            "{}its columns are {}",
            suggestion(column, names()),
            names().collect::<Vec<_>>().join(", ")
        );
        let what = format!("table `{}` has no column `{column}`, its {what}", table.name);
        Some(self.error(&table.name, &what, hint))
    }

    fn parent_key(&self, child: &TableDef, parent: &str, key: &str) -> Option<TopologyError> {
        let name = &child.name;
        let Some(parent) = self.live.iter().find(|table| table.name == parent) else {
            let what = format!("table `{name}` is owned through `{parent}`, which is not there");
            return Some(self.error(name, &what, "create it, or declare the parent that the table has now"));
        };
        if let Some(mut error) = self.column(parent, key, "key for the tables that it owns") {
            error.line = self.topology.source.lines.get(&format!("tables.{name}")).copied();
            return Some(error);
        }
        let alone = |columns: &[String]| columns.len() == 1 && columns[0] == key;
        let unique =
            parent.unique.iter().any(|unique| alone(&unique.columns) && unique.predicate_sql.is_none());
        if unique || alone(&parent.key) {
            return None;
        }
        let what = format!("table `{name}` is owned through `{}.{key}`, which is not unique", parent.name);
        let hint = "name the parent's primary key, or a column with a unique index over all rows";
        Some(self.error(name, &what, hint))
    }

    /// Rows of a reference table must be able to stand without any site.
    fn reference(&self, table: &TableDef) -> Option<TopologyError> {
        let mut seen = BTreeSet::from([table.name.as_str()]);
        let mut open = VecDeque::from([vec![table]]);
        while let Some(path) = open.pop_front() {
            let keys = path.last().map_or(&[][..], |table| table.foreign_keys.as_slice());
            for key in keys {
                if self.owned(&key.parent_table).is_some() || self.is_of_site(&key.parent_table) {
                    let names = path.iter().map(|table| format!("`{}`", table.name));
                    let names: Vec<_> = names.chain([format!("`{}`", key.parent_table)]).collect();
                    let what = format!(
                        "reference table `{}` has a foreign-key path to an owned table: {}",
                        table.name,
                        names.join(" to ")
                    );
                    let hint =
                        "write `tenant` or `parent` in the place of `reference`, or drop the foreign key";
                    return Some(self.error(&table.name, &what, hint));
                }
                if let Some(next) = self.live(&key.parent_table).filter(|next| seen.insert(&next.name)) {
                    open.push_back(path.iter().copied().chain([next]).collect());
                }
            }
        }
        None
    }

    /// Columns that the directory, the licences and the types of ids name.
    fn directory_columns(&self) -> Vec<TopologyError> {
        let directory = &self.topology.directory;
        let columns = &directory.columns;
        let named = [
            &columns.name,
            &columns.region,
            &columns.tier,
            &columns.customer,
            &columns.internal,
            &columns.users,
        ];
        let mut errors = self.named_columns(&directory.table, named.into_iter().flatten(), "directory");
        if let Some(licences) = &self.topology.licences {
            let named = [Some(&licences.product_column), licences.active_column.as_ref()];
            errors.extend(self.named_columns(&licences.table, named.into_iter().flatten(), "licences"));
        }
        for (name, id_type) in &self.topology.ids {
            let named = [&id_type.column, &id_type.kind_column];
            errors.extend(self.named_columns(&id_type.table, named.into_iter(), &format!("ids.{name}")));
        }
        errors
    }

    /// Columns that [[references]] name.
    fn reference_columns(&self, declared: &Declared) -> Vec<TopologyError> {
        let mut errors = Vec::new();
        for (end, only) in self.topology.references.iter().flat_map(Reference::ends) {
            let is_meant = |table: &&TableDef| {
                let of_kind = declared.get(&table.name).is_some_and(|config| config.kind == end.kind);
                let by_pattern = self.topology.site_tables.iter().any(|known| {
                    known.pattern.to_string() == end.table
                        && matches!(known.pattern.named(&table.name), Some(Named::Site(_)))
                });
                of_kind && (table.name == end.table || by_pattern)
            };
            for table in self.live.iter().filter(is_meant) {
                let columns = std::iter::once(&end.column).chain(only.keys());
                errors.extend(
                    columns.filter_map(|column| self.column(table, column, "column by [[references]]")),
                );
            }
        }
        errors.dedup();
        errors
    }

    fn named_columns<'n>(
        &self,
        table: &str,
        named: impl Iterator<Item = &'n String>,
        section: &str,
    ) -> Vec<TopologyError> {
        let hosted = self.tables.contains_key(table);
        let Some(table) = self.live.iter().find(|live| hosted && live.name == table) else {
            return Vec::new();
        };
        named.filter_map(|column| self.column(table, column, &format!("column by [{section}]"))).collect()
    }
}

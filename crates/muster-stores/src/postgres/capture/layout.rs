//! The captured tables of a database: as declared, as they are, and how a row leads to its site.
//!
//! # Invariants
//! - A table is captured only if the log carries key and owner of every changed or deleted row, so that an application's
//!   UPDATE never fails for being published.
//! - A table's signature changes whenever its rows' text may have changed without a change of rows in the log: columns,
//!   files (a rewrite, or a partition that came, went or was emptied), membership of the publication.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use muster_types::SiteId;
use muster_types::table::{CapturedTable, Owner};
use muster_types::topology::{Declared, TableConfig};
use tokio_postgres::{Error, GenericClient};

use super::pgoutput::Relation;
use crate::postgres::schema::{self, LiveTable, ReplicaIdentity, quote};

/// A captured table.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Captured {
    pub(super) table: CapturedTable,
    pub(super) live: LiveTable,
    /// Whose its rows are.
    pub(super) owner: RowOwner,
    /// Stored columns that name rows of this table in its children.
    pub(super) referenced: Vec<usize>,
    /// Stored columns that the log carries of every old row.
    pub(super) identity: Vec<usize>,
    /// Types and names of its stored columns.
    columns: Vec<(String, u32, i32)>,
    /// What tells that it was changed as a whole.
    pub(super) signature: Signature,
}

/// See the module's invariants.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Signature {
    /// Number of the table in the catalog.
    oid: u32,
    /// Number of its membership of the publication; none outside.
    pub(super) published: Option<u32>,
    columns: Vec<String>,
    /// Tables and partitions that hold rows, with their files.
    files: Vec<(u32, u32)>,
    /// The log has told of a truncation since the files were read.
    #[serde(default)]
    emptied: bool,
    /// What else a plan takes for the shape of its rows: kind, owner, key, and types by their names.
    #[serde(default)]
    shape: String,
}

impl Signature {
    /// Number of the table in the catalog.
    pub(super) fn oid(&self) -> u32 {
        self.oid
    }

    /// The relations that hold its rows.
    pub(super) fn parts(&self) -> impl Iterator<Item = u32> {
        self.files.iter().map(|(oid, _)| *oid)
    }

    /// These are its files, unless a truncation gave it another one.
    pub(super) fn has_files(&self, files: impl Iterator<Item = (u32, u32)>, emptied: bool) -> bool {
        let files: Vec<(u32, u32)> = files.collect();
        let one = files.len() == 1 && (emptied || self.emptied);
        files == self.files || (one && files.iter().map(|(oid, _)| *oid).eq(self.parts()))
    }

    /// In words, what changed since `before`; `None` when nothing did. An emptied table has a new file. Partitions of
    /// `created` came empty, and the log has their rows.
    pub(super) fn change_since(
        &self,
        before: &Self,
        truncated: bool,
        created: &BTreeSet<u32>,
    ) -> Option<&'static str> {
        let truncated = truncated || before.emptied;
        let known: Vec<(u32, u32)> = self
            .files
            .iter()
            .copied()
            .filter(|(oid, _)| !created.contains(oid) || before.parts().any(|part| part == *oid))
            .collect();
        let parts = |files: &[(u32, u32)]| files.iter().map(|(oid, _)| *oid).collect::<Vec<_>>();
        if self.oid != before.oid {
            Some("it was dropped and made anew")
        } else if self.columns != before.columns {
            Some("its columns changed")
        } else if self.shape != before.shape && !before.shape.is_empty() {
            Some("its kind, its owner, its key or the name of a type changed")
        } else if self.published != before.published {
            Some("it was taken out of the publication for a time")
        } else if parts(&known) != parts(&before.files) {
            Some("its partitions changed")
        } else if known != before.files && (!truncated || self.files.len() > 1) {
            Some("it was rewritten, or a partition was emptied")
        } else {
            None
        }
    }
}

/// Whose the rows of a table are.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) enum RowOwner {
    /// Nobody's.
    Nobody,
    /// This site's, all of them.
    Site(SiteId),
    /// The stored column holds the site.
    Tenant(usize),
    /// The stored column `column` holds what the stored column `key` of table `table` holds.
    Parent { column: usize, table: usize, key: usize },
}

/// All captured tables, parents and children linked by number.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Layout {
    pub(super) tables: Vec<Captured>,
    /// Those that are there: the log has told that the others were dropped since.
    by_oid: HashMap<u32, usize>,
    by_name: HashMap<String, usize>,
    /// Tables that are there and not captured, with the reason.
    pub(super) refused: BTreeMap<String, String>,
    /// Statements that would let the refused ones in.
    pub(super) fixes: Vec<String>,
    /// Tables that nothing declares.
    pub(super) undeclared: Vec<String>,
    /// Of these, tables that are named like those of sites and are none, with the reason.
    pub(super) misnamed: BTreeMap<String, String>,
    /// Tables in the publication that must not be there.
    pub(super) misplaced: Vec<String>,
    /// What the catalog was when this was read.
    pub(super) fingerprint: String,
    /// What was declared then.
    pub(super) declared: String,
}

impl Layout {
    /// Every captured table that is there is in the publication, and no other.
    pub(super) fn is_published(&self) -> bool {
        let there = |table: &&Captured| self.by_oid.contains_key(&table.signature.oid);
        let published = |table: &Captured| table.signature.published.is_some();
        self.misplaced.is_empty() && self.tables.iter().filter(there).all(published)
    }

    pub(super) fn by_relation(&self, relation: &Relation) -> Option<usize> {
        self.by_oid(relation.id)
    }

    pub(super) fn by_oid(&self, oid: u32) -> Option<usize> {
        self.by_oid.get(&oid).copied()
    }

    /// Tables that are there.
    pub(super) fn present(&self) -> impl Iterator<Item = &Captured> {
        self.tables.iter().filter(|table| self.by_oid.contains_key(&table.live.oid))
    }

    /// Rows of a captured table lie in this relation.
    pub(super) fn has_part(&self, oid: u32) -> bool {
        self.root_of(oid).is_some()
    }

    /// The captured table whose rows lie in this relation.
    pub(super) fn root_of(&self, oid: u32) -> Option<u32> {
        let holds = |table: &&Captured| table.signature.parts().any(|part| part == oid);
        self.present().find(holds).map(|table| table.live.oid)
    }

    /// Differs from that of every layout that is another.
    pub(super) fn identity(&self) -> String {
        let emptied = |table: &&Captured| table.signature.emptied;
        let emptied: Vec<u32> = self.present().filter(emptied).map(|table| table.live.oid).collect();
        format!("{} {} {emptied:?}", self.fingerprint, self.by_oid.len())
    }

    /// What it is behind a stretch of the log in which these were `dropped` and those `emptied`.
    pub(super) fn behind(mut self, dropped: &BTreeSet<usize>, emptied: &BTreeSet<usize>) -> Self {
        self.by_oid.retain(|_, number| !dropped.contains(number));
        for &number in emptied {
            self.tables[number].signature.emptied = true;
        }
        self
    }

    /// Nothing that the log's rows depend on is other than in `before`, behind a stretch of the log in which these were
    /// `dropped` and those `emptied`.
    pub(super) fn continues(
        &self,
        before: &Self,
        dropped: &BTreeSet<usize>,
        emptied: &BTreeSet<usize>,
    ) -> bool {
        let mut there = before
            .present()
            .filter(|table| before.by_oid(table.live.oid).is_none_or(|number| !dropped.contains(&number)));
        let same = |(one, other): (&Captured, &Captured)| {
            let emptied = before.by_oid(other.live.oid).is_some_and(|number| emptied.contains(&number));
            one.reads_like(other, emptied)
        };
        let mut here = self.present();
        loop {
            match (here.next(), there.next()) {
                (None, None) => return true,
                (Some(one), Some(other)) if same((one, other)) => {}
                _ => return false,
            }
        }
    }

    /// Parent rows are found by the same columns as in `before`, and were not written anew as a whole, but for tables that
    /// were `emptied`.
    pub(super) fn looks_up_like(&self, before: &Self, emptied: &BTreeSet<usize>) -> bool {
        let same = |table: &Captured| {
            let now = self.by_oid(table.live.oid).map(|number| &self.tables[number]);
            let emptied = before.by_oid(table.live.oid).is_some_and(|number| emptied.contains(&number));
            now.is_some_and(|now| {
                now.name() == table.name()
                    && table.signature.has_files(now.signature.files.iter().copied(), emptied)
                    && table.lookup_columns().eq(now.lookup_columns())
            })
        };
        before.present().filter(|table| !table.referenced.is_empty()).all(same)
    }

    pub(super) fn by_name(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// Tables whose rows are found through `table`, at any depth.
    pub(super) fn descendants(&self, table: usize) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        let mut next = vec![table];
        while let Some(parent) = next.pop() {
            for (child, captured) in self.tables.iter().enumerate() {
                let is_child = matches!(captured.owner, RowOwner::Parent { table, .. } if table == parent);
                if is_child && found.insert(child) {
                    next.push(child);
                }
            }
        }
        found
    }
}

impl Captured {
    pub(super) fn name(&self) -> &str {
        &self.table.def.name
    }

    /// The log describes the table as it is known.
    pub(super) fn fits(&self, relation: &Relation) -> bool {
        self.has_columns(columns_of(relation))
    }

    /// As [`Self::fits`], also where columns were added since.
    pub(super) fn begins(&self, relation: &Relation) -> bool {
        self.has_columns(columns_of(relation).take(self.columns.len()))
    }

    /// These are its stored columns.
    pub(super) fn has_columns<'c>(&self, mut theirs: impl Iterator<Item = (&'c str, u32, i32)>) -> bool {
        let mut ours = self.columns.iter().map(|(name, oid, modifier)| (name.as_str(), *oid, *modifier));
        ours.all(|ours| theirs.next() == Some(ours)) && theirs.next().is_none()
    }

    /// Its rows in the log mean what they meant for `before`.
    fn reads_like(&self, before: &Self, emptied: bool) -> bool {
        self.name() == before.name()
            && (&self.table.kind, &self.table.owner) == (&before.table.kind, &before.table.owner)
            && self.signature.change_since(&before.signature, emptied, &BTreeSet::new()).is_none()
            && self.table.def.key == before.table.def.key
            && self.identity == before.identity
            && self.live.partitioned == before.live.partitioned
            && self.live.logs_full_rows() == before.live.logs_full_rows()
    }

    /// Name and type of the columns by which its rows are found, and that tell whose they are.
    fn lookup_columns(&self) -> impl Iterator<Item = (&str, u32)> {
        let owner = match self.owner {
            RowOwner::Nobody | RowOwner::Site(_) => None,
            RowOwner::Tenant(column) | RowOwner::Parent { column, .. } => Some(column),
        };
        let all = self.referenced.iter().copied().chain(owner);
        all.filter_map(|column| self.columns.get(column)).map(|(name, oid, _)| (name.as_str(), *oid))
    }

    /// The log's old rows have the columns that they are known to have. What it says of a partitioned table is not said of
    /// its partitions, which count.
    pub(super) fn is_identified_by(&self, relation: &Relation) -> bool {
        let logged = |column: &usize| relation.columns.get(*column).is_some_and(|column| column.identity);
        self.live.partitioned || self.identity.iter().all(logged)
    }

    /// Whether the server fills the column's text up with blanks, which mean nothing.
    pub(super) fn is_padded(&self, column: usize) -> bool {
        /// Number of the type `character(n)` in every catalog.
        const BPCHAR: u32 = 1042;
        self.columns.get(column).is_some_and(|(_, type_oid, _)| *type_oid == BPCHAR)
    }

    /// A stored column as SQL.
    pub(super) fn column_sql(&self, index: usize) -> String {
        quote(self.columns.get(index).map_or("", |(name, _, _)| name))
    }

    pub(super) fn width(&self) -> usize {
        self.columns.len()
    }
}

/// Tells declarations from others.
pub(super) fn declaration(declared: &Declared) -> String {
    muster_types::Digest::of(format!("{declared:?}").as_bytes()).to_string()
}

fn columns_of(relation: &Relation) -> impl Iterator<Item = (&str, u32, i32)> {
    relation.columns.iter().map(|column| (column.name.as_str(), column.type_oid, column.type_modifier))
}

/// One text that changes with every change of tables, columns, keys, files or of the publication; cheap to ask for.
pub(super) async fn fingerprint(client: &impl GenericClient, publication: &str) -> Result<String, Error> {
    let sql = "SELECT md5(coalesce(string_agg(x, ',' ORDER BY x), '')) FROM (\
        SELECT concat_ws(' ', c.oid, n.nspname, c.relname, c.relkind, c.relfilenode, c.relreplident, \
        (SELECT h.inhparent FROM pg_inherits h WHERE h.inhrelid = c.oid AND c.relispartition), c.relpersistence, \
        (SELECT string_agg(concat_ws(':', a.attnum, a.attname, a.atttypid, a.atttypmod, a.attnotnull, \
         a.attisdropped, a.attgenerated), ';' ORDER BY a.attnum) \
         FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0), \
        (SELECT string_agg(concat_ws(':', i.indexrelid, i.indisunique, i.indisprimary, i.indisreplident, \
         i.indisvalid, i.indkey), ';' ORDER BY i.indexrelid) FROM pg_index i WHERE i.indrelid = c.oid), \
        (SELECT r.oid FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid \
         WHERE r.prrelid = c.oid AND p.pubname = $1)) x \
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
        WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' \
        AND n.nspname NOT IN ('information_schema', 'muster')) s";
    Ok(client.query_one(sql, &[&publication]).await?.get(0))
}

/// Reads what there is, and links it.
pub(super) async fn read(
    client: &impl GenericClient,
    publication: &str,
    declared: &Declared,
) -> Result<Layout, Error> {
    let fingerprint = fingerprint(client, publication).await?;
    let live = schema::read(client).await?;
    let mut columns = columns(client).await?;
    let mut files = files(client).await?;
    let published = published(client, publication).await?;
    let declared_as = declaration(declared);
    let mut layout = Layout { fingerprint, declared: declared_as, ..Layout::default() };
    let mut chosen = Vec::new();
    for table in live {
        let name = table.def.name.clone();
        let Some(config) = declared.get(&name) else {
            if published.contains_key(&table.oid) {
                layout.misplaced.push(table.qualified());
            }
            layout.misnamed.extend(declared.misnamed(&name).map(|reason| (name.clone(), reason)));
            layout.undeclared.push(name);
            continue;
        };
        match obstacle(&table, &config, &referenced(declared.named(), &name)) {
            Some((reason, fix)) => {
                if published.contains_key(&table.oid) {
                    layout.misplaced.push(table.qualified());
                }
                layout.refused.insert(name, reason);
                layout.fixes.extend(fix);
            }
            None => chosen.push((table, config)),
        }
    }
    // A child goes with its parent.
    loop {
        let names: BTreeSet<String> = chosen.iter().map(|(table, _)| table.def.name.clone()).collect();
        let orphan = chosen.iter().position(
            |(_, config)| matches!(&config.owner, Owner::Parent { table, .. } if !names.contains(table)),
        );
        let Some(orphan) = orphan else { break };
        let (table, _) = chosen.remove(orphan);
        layout.refused.insert(table.def.name.clone(), "the table that owns it is not captured".to_owned());
    }
    let all: Vec<u32> = chosen.iter().map(|(table, _)| table.oid).collect();
    let mut around = schema::around(client, &all).await?;
    let numbers: HashMap<String, usize> =
        chosen.iter().enumerate().map(|(number, (table, _))| (table.def.name.clone(), number)).collect();
    for (mut table, config) in chosen {
        if let Some(around) = around.remove(&table.oid) {
            table.def.create_sql.splice(..0, around.before);
            table.def.create_sql.extend(around.behind);
        }
        let signature = Signature {
            oid: table.oid,
            published: published.get(&table.oid).copied(),
            columns: Vec::new(),
            files: files.remove(&table.oid).unwrap_or_default(),
            emptied: false,
            shape: String::new(),
        };
        let columns = columns.remove(&table.oid).unwrap_or_default();
        layout.by_oid.insert(table.oid, layout.tables.len());
        layout.by_name.insert(table.def.name.clone(), layout.tables.len());
        layout.tables.push(captured(table, &config, &numbers, columns, signature));
    }
    link(&mut layout.tables);
    Ok(layout)
}

fn captured(
    live: LiveTable,
    config: &TableConfig,
    numbers: &HashMap<String, usize>,
    columns: Vec<(String, u32, i32)>,
    mut signature: Signature,
) -> Captured {
    let at = |name: &str| columns.iter().position(|(column, ..)| column == name);
    let owner = match &config.owner {
        Owner::Tenant { column } => at(column).map(RowOwner::Tenant),
        // The key's place is filled in when all tables are known.
        Owner::Parent { column, table, .. } => at(column)
            .zip(numbers.get(table))
            .map(|(column, table)| RowOwner::Parent { column, table: *table, key: usize::MAX }),
        Owner::Site { site } => Some(RowOwner::Site(site.clone())),
        Owner::Reference => Some(RowOwner::Nobody),
    };
    let identity = live.logged_old_columns().iter().filter_map(|name| at(name)).collect();
    signature.columns =
        columns.iter().map(|(name, oid, modifier)| format!("{name} {oid} {modifier}")).collect();
    let types = live.def.stored_columns().map(|column| column.declared_type.as_str());
    let types: Vec<&str> = types.collect();
    signature.shape = format!("{} {:?} {:?} {types:?}", config.kind, config.owner, live.def.key);
    let table =
        CapturedTable { kind: config.kind.clone(), owner: config.owner.clone(), def: live.def.clone() };
    let owner = owner.unwrap_or(RowOwner::Nobody);
    Captured { table, live, owner, referenced: Vec::new(), identity, columns, signature }
}

fn link(tables: &mut [Captured]) {
    for child in 0..tables.len() {
        let RowOwner::Parent { column, table, .. } = tables[child].owner else { continue };
        let Owner::Parent { key: name, .. } = tables[child].table.owner.clone() else { continue };
        let place = tables[table].columns.iter().position(|(column, ..)| *column == name);
        // A key that is not stored cannot be looked for: the rows belong to nobody.
        tables[child].owner = match place {
            Some(key) => {
                if !tables[table].referenced.contains(&key) {
                    tables[table].referenced.push(key);
                }
                RowOwner::Parent { column, table, key }
            }
            None => RowOwner::Nobody,
        };
    }
}

/// Columns by which other tables name the rows of this one.
fn referenced<'d>(declared: &'d BTreeMap<String, TableConfig>, name: &str) -> BTreeSet<&'d String> {
    let key = |config: &'d TableConfig| match &config.owner {
        Owner::Parent { table, key, .. } if table == name => Some(key),
        _ => None,
    };
    declared.values().filter_map(key).collect()
}

/// Why a declared table cannot be captured, and the statements that change that.
fn obstacle(
    table: &LiveTable,
    config: &TableConfig,
    referenced: &BTreeSet<&String>,
) -> Option<(String, Vec<String>)> {
    let name = table.qualified();
    if table.unlogged || table.partitions.iter().any(|partition| partition.unlogged) {
        return Some((
            "it is unlogged: its changes are not in the log".to_owned(),
            vec![format!("ALTER TABLE {name} SET LOGGED;")],
        ));
    }
    if table.def.key.is_empty() {
        let fix = format!("ALTER TABLE {name} ADD PRIMARY KEY (…);");
        return Some(("it has no primary key, so that its rows cannot be told apart".to_owned(), vec![fix]));
    }
    let owner = match &config.owner {
        Owner::Tenant { column } | Owner::Parent { column, .. } => Some(column),
        Owner::Site { .. } | Owner::Reference => None,
    };
    if let Some(column) = owner
        && !table.def.stored_columns().any(|stored| stored.name == *column)
    {
        return Some((format!("it has no stored column `{column}`"), Vec::new()));
    }
    let logged = table.logged_old_columns();
    let needed: BTreeSet<&String> =
        table.def.key.iter().chain(owner).chain(referenced.iter().copied()).collect();
    let missing: Vec<&&String> = needed.iter().filter(|column| !logged.contains(**column)).collect();
    if missing.is_empty() {
        return None;
    }
    let names: Vec<String> = missing.iter().map(|column| format!("`{column}`")).collect();
    let reason = format!("a deletion in the log does not carry {}", names.join(", "));
    Some((reason, identity_fix(table, &needed)))
}

/// Statements that put key and owner into the replica identity.
fn identity_fix(table: &LiveTable, needed: &BTreeSet<&String>) -> Vec<String> {
    let more: Vec<&String> =
        needed.iter().copied().filter(|column| !table.def.key.contains(*column)).collect();
    let nullable =
        |name: &String| table.def.columns.iter().any(|column| column.name == *name && !column.not_null);
    let relations: Vec<String> = if table.partitioned {
        table.partitions.iter().map(|part| schema::qualified(&part.schema, &part.name)).collect()
    } else {
        vec![table.qualified()]
    };
    if table.partitioned || more.iter().copied().any(nullable) {
        return relations.iter().map(|name| format!("ALTER TABLE {name} REPLICA IDENTITY FULL;")).collect();
    }
    let name = table.qualified();
    if table.replica_identity != ReplicaIdentity::Default && more.is_empty() {
        return vec![format!("ALTER TABLE {name} REPLICA IDENTITY DEFAULT;")];
    }
    let mut columns: Vec<String> = table.def.key.iter().map(|column| quote(column)).collect();
    columns.extend(more.iter().map(|column| quote(column)));
    let index = quote(&format!("{}_identity", table.name));
    vec![
        format!("CREATE UNIQUE INDEX {index} ON {name} ({});", columns.join(", ")),
        format!("ALTER TABLE {name} REPLICA IDENTITY USING INDEX {index};"),
    ]
}

type Columns = Vec<(String, u32, i32)>;

/// Name, type and type modifier of stored columns, by table.
async fn columns(client: &impl GenericClient) -> Result<HashMap<u32, Columns>, Error> {
    let sql = "SELECT a.attrelid, a.attname::text, a.atttypid, a.atttypmod FROM pg_attribute a \
        JOIN pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p') \
        WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attrelid, a.attnum";
    let mut found: HashMap<u32, Columns> = HashMap::new();
    for row in client.query(sql, &[]).await? {
        found.entry(row.get(0)).or_default().push((row.get(1), row.get(2), row.get(3)));
    }
    Ok(found)
}

/// Tables and partitions that hold rows, with their files, by table or root.
async fn files(client: &impl GenericClient) -> Result<HashMap<u32, Vec<(u32, u32)>>, Error> {
    let sql = "SELECT coalesce(pg_partition_root(c.oid)::oid, c.oid), c.oid, c.relfilenode FROM pg_class c \
        WHERE c.relkind = 'r' AND c.relpersistence <> 't' ORDER BY 1, 2";
    let mut found: HashMap<u32, Vec<(u32, u32)>> = HashMap::new();
    for row in client.query(sql, &[]).await? {
        found.entry(row.get(0)).or_default().push((row.get(1), row.get(2)));
    }
    Ok(found)
}

/// Members of the publication.
async fn published(client: &impl GenericClient, publication: &str) -> Result<HashMap<u32, u32>, Error> {
    let sql = "SELECT r.prrelid, r.oid FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid \
        WHERE p.pubname = $1";
    let rows = client.query(sql, &[&publication]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

//! One query for each concept, over all tables.

use std::collections::{BTreeMap, HashMap};

use muster_types::table::{ColumnDef, ForeignKey, TableDef, UniqueKey};
use tokio_postgres::types::Type;
use tokio_postgres::{Error, GenericClient, Row};

use super::create::{Parts, create_sql};
use super::name::{qualified, quote, topology_name};
use super::table::{
    Firing, Identity, LiveForeignKey, LiveKey, LiveTable, LiveTrigger, OwnedSequence, Partition,
    ReplicaIdentity,
};

/// The tables that count: `ours`, by oid; all, or those with these numbers.
fn ours(only: Option<&[u32]>) -> String {
    let only = only.map_or_else(String::new, |oids| {
        // Of an empty list nothing would be left to write.
        let list: Vec<String> = oids.iter().chain(&[0]).map(u32::to_string).collect();
        format!(" AND c.oid IN ({})", list.join(", "))
    });
    format!(
        "WITH ours AS (SELECT c.*, n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' \
         AND n.nspname NOT IN ('information_schema', 'muster'){only}) "
    )
}

/// Everything of one table that is found beside it.
#[derive(Default)]
struct Found {
    columns: Vec<ColumnDef>,
    identity: BTreeMap<String, Identity>,
    equality: BTreeMap<String, String>,
    keys: Vec<LiveKey>,
    deferrable_others: Vec<String>,
    foreign_keys: Vec<LiveForeignKey>,
    triggers: Vec<LiveTrigger>,
    rules: Vec<LiveTrigger>,
    partitions: Vec<Partition>,
    sequences: Vec<OwnedSequence>,
    parts: Parts,
}

type ByTable = HashMap<u32, Found>;

/// Every table, by topology name; or those with these numbers, with their partitions.
pub(super) async fn read(client: &impl GenericClient, only: Option<&[u32]>) -> Result<Vec<LiveTable>, Error> {
    let ours = &match only {
        Some(oids) => ours(Some(&with_partitions(client, oids).await?)),
        None => ours(None),
    };
    let mut found = ByTable::new();
    columns(client, ours, &mut found).await?;
    equality(client, ours, &mut found).await?;
    keys(client, ours, &mut found).await?;
    constraints(client, ours, &mut found).await?;
    deferrable_others(client, ours, &mut found).await?;
    foreign_keys(client, ours, &mut found).await?;
    triggers(client, ours, &mut found).await?;
    rules(client, ours, &mut found).await?;
    partitions(client, ours, &mut found).await?;
    sequences(client, ours, &mut found).await?;
    let sql = format!(
        "{ours} SELECT c.oid, c.nspname::text, c.relname::text, c.relkind = 'p', c.relpersistence = 'u', \
         c.relrowsecurity, c.relreplident::text, {IDENTITY_INDEX}, \
         CASE c.relkind WHEN 'p' THEN pg_get_partkeydef(c.oid) END \
         FROM ours c WHERE NOT c.relispartition"
    );
    let rows = client.query(&sql, &[]).await?;
    let mut tables: Vec<LiveTable> =
        rows.iter().map(|row| table(row, found.remove(&row.get::<_, u32>(0)).unwrap_or_default())).collect();
    tables.sort_by(|one, other| one.def.name.cmp(&other.def.name));
    Ok(tables)
}

async fn with_partitions(client: &impl GenericClient, oids: &[u32]) -> Result<Vec<u32>, Error> {
    let sql = "SELECT DISTINCT coalesce(t.relid::oid, o.oid) FROM unnest($1::oid[]) o(oid) \
        LEFT JOIN LATERAL pg_partition_tree(o.oid) t ON true";
    Ok(client.query(sql, &[&oids]).await?.iter().map(|row| row.get(0)).collect())
}

/// Name and columns of the index that is the replica identity of `c`, in one array; NULL when there is none.
const IDENTITY_INDEX: &str = "(SELECT ARRAY[x.relname::text] || ARRAY(SELECT a.attname::text \
    FROM unnest(i.indkey[:i.indnkeyatts - 1]) WITH ORDINALITY k(attnum, place) \
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum ORDER BY k.place) \
    FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid WHERE i.indrelid = c.oid AND i.indisreplident)";

fn replica_identity(letter: &str, index: Option<Vec<String>>) -> ReplicaIdentity {
    match (letter, index) {
        ("f", _) => ReplicaIdentity::Full,
        ("i", Some(mut columns)) if !columns.is_empty() => {
            let name = columns.remove(0);
            ReplicaIdentity::Index { name, columns }
        }
        // An index that was dropped leaves nothing.
        ("n" | "i", _) => ReplicaIdentity::Nothing,
        _ => ReplicaIdentity::Default,
    }
}

fn table(row: &Row, mut found: Found) -> LiveTable {
    let (schema, name): (String, String) = (row.get(1), row.get(2));
    found.keys.sort_by(|one, other| other.primary.cmp(&one.primary).then_with(|| one.name.cmp(&other.name)));
    found.parts.partition_key = row.get(8);
    let key = found.keys.iter().find(|key| key.primary).map(named).and_then(|key| key.map(|key| key.columns));
    let def = TableDef {
        name: topology_name(&schema, &name),
        columns: found.columns,
        key: key.unwrap_or_default(),
        unique: found.keys.iter().filter(|key| !key.primary).filter_map(named).collect(),
        foreign_keys: found.foreign_keys.iter().map(portable).collect(),
        create_sql: Vec::new(),
    };
    let mut table = LiveTable {
        oid: row.get(0),
        schema,
        name,
        def,
        identity: found.identity,
        equality: found.equality,
        keys: found.keys,
        deferrable_others: found.deferrable_others,
        foreign_keys: found.foreign_keys,
        replica_identity: replica_identity(row.get(6), row.get(7)),
        triggers: found.triggers,
        rules: found.rules,
        partitioned: row.get(3),
        partitions: found.partitions,
        row_security: row.get(5),
        unlogged: row.get(4),
        sequences: found.sequences,
    };
    table.def.create_sql = create_sql(&table, &found.parts);
    table
}

/// A key over columns; one over expressions has no portable form.
fn named(key: &LiveKey) -> Option<UniqueKey> {
    let columns: Option<Vec<String>> = key.columns.iter().cloned().collect();
    Some(UniqueKey { name: key.name.clone(), columns: columns?, predicate_sql: key.predicate_sql.clone() })
}

fn portable(key: &LiveForeignKey) -> ForeignKey {
    ForeignKey {
        columns: key.columns.clone(),
        parent_table: key.parent_table.clone(),
        parent_columns: key.parent_columns.clone(),
    }
}

async fn columns(client: &impl GenericClient, ours: &str, found: &mut ByTable) -> Result<(), Error> {
    let sql = format!(
        "{ours} SELECT c.oid, a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull, \
         pg_get_expr(d.adbin, d.adrelid), a.attgenerated <> '', a.attidentity::text, \
         CASE WHEN a.attcollation <> t.typcollation THEN \
         (SELECT quote_ident(n.nspname) || '.' || quote_ident(l.collname) FROM pg_collation l \
         JOIN pg_namespace n ON n.oid = l.collnamespace WHERE l.oid = a.attcollation) END \
         FROM ours c JOIN pg_attribute a ON a.attrelid = c.oid JOIN pg_type t ON t.oid = a.atttypid \
         LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum \
         WHERE NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped ORDER BY c.oid, a.attnum"
    );
    for row in client.query(&sql, &[]).await? {
        let table = found.entry(row.get(0)).or_default();
        let name: String = row.get(1);
        match row.get::<_, &str>(6) {
            "a" => drop(table.identity.insert(name.clone(), Identity::Always)),
            "d" => drop(table.identity.insert(name.clone(), Identity::ByDefault)),
            _ => {}
        }
        if let Some(collation) = row.get::<_, Option<String>>(7) {
            table.parts.collations.push((name.clone(), collation));
        }
        table.columns.push(ColumnDef {
            name,
            declared_type: row.get(2),
            not_null: row.get(3),
            default_sql: row.get(4),
            generated: row.get(5),
        });
    }
    Ok(())
}

async fn equality(client: &impl GenericClient, ours: &str, found: &mut ByTable) -> Result<(), Error> {
    // Domains compare as what they are made of; the operator is that of the type's default B-tree order.
    let sql = format!(
        "{ours}, base AS (SELECT t.oid AS of, t.oid, t.typtype, t.typbasetype FROM pg_type t \
         UNION ALL SELECT b.of, t.oid, t.typtype, t.typbasetype FROM base b \
         JOIN pg_type t ON b.typtype = 'd' AND t.oid = b.typbasetype) \
         SELECT c.oid, a.attname::text, n.nspname::text, r.oprname::text \
         FROM ours c JOIN pg_attribute a ON a.attrelid = c.oid JOIN base b ON b.of = a.atttypid AND b.typtype <> 'd' \
         JOIN pg_opclass o ON o.opcintype = b.oid AND o.opcdefault \
         JOIN pg_am m ON m.oid = o.opcmethod AND m.amname = 'btree' \
         JOIN pg_amop p ON p.amopfamily = o.opcfamily AND p.amopstrategy = 3 AND p.amoplefttype = b.oid \
         AND p.amoprighttype = b.oid JOIN pg_operator r ON r.oid = p.amopopr \
         JOIN pg_namespace n ON n.oid = r.oprnamespace \
         WHERE NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped AND n.nspname <> 'pg_catalog'"
    )
    .replacen("WITH ours", "WITH RECURSIVE ours", 1);
    for row in client.query(&sql, &[]).await? {
        let operator = format!("OPERATOR({}.{})", quote(row.get(2)), row.get::<_, &str>(3));
        found.entry(row.get(0)).or_default().equality.insert(row.get(1), operator);
    }
    Ok(())
}

async fn keys(client: &impl GenericClient, ours: &str, found: &mut ByTable) -> Result<(), Error> {
    // A column number of 0 stands for an expression.
    let sql = format!(
        "{ours} SELECT c.oid, x.relname::text, i.indisprimary, i.indisunique, \
         ARRAY(SELECT a.attname::text FROM unnest(i.indkey[:i.indnkeyatts - 1]) WITH ORDINALITY k(attnum, place) \
         LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum AND k.attnum <> 0 \
         ORDER BY k.place), pg_get_expr(i.indpred, i.indrelid), \
         coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false), NOT i.indimmediate, \
         pg_get_indexdef(i.indexrelid), \
         EXISTS (SELECT FROM pg_constraint o WHERE o.conindid = i.indexrelid AND o.conrelid = c.oid) \
         FROM ours c JOIN pg_index i ON i.indrelid = c.oid JOIN pg_class x ON x.oid = i.indexrelid \
         WHERE NOT c.relispartition AND i.indislive ORDER BY c.oid, x.relname"
    );
    for row in client.query(&sql, &[]).await? {
        let table = found.entry(row.get(0)).or_default();
        if !row.get::<_, bool>(9) {
            table.parts.indexes.push(row.get(8));
        }
        if row.get(3) {
            table.keys.push(LiveKey {
                name: row.get(1),
                primary: row.get(2),
                columns: row.get(4),
                predicate_sql: row.get(5),
                nulls_not_distinct: row.get(6),
                deferrable: row.get(7),
            });
        }
    }
    Ok(())
}

async fn constraints(client: &impl GenericClient, ours: &str, found: &mut ByTable) -> Result<(), Error> {
    let sql = format!(
        "{ours} SELECT c.oid, o.conname::text, pg_get_constraintdef(o.oid) FROM ours c \
         JOIN pg_constraint o ON o.conrelid = c.oid \
         WHERE NOT c.relispartition AND o.contype IN ('p', 'u', 'x', 'c', 'f') AND o.conparentid = 0 \
         ORDER BY c.oid, o.contype <> 'p', o.conname"
    );
    for row in client.query(&sql, &[]).await? {
        found.entry(row.get(0)).or_default().parts.constraints.push((row.get(1), row.get(2)));
    }
    Ok(())
}

async fn foreign_keys(client: &impl GenericClient, ours: &str, found: &mut ByTable) -> Result<(), Error> {
    let names = |relation: &str, numbers: &str| {
        format!(
            "ARRAY(SELECT a.attname::text FROM unnest(o.{numbers}) WITH ORDINALITY k(attnum, place) \
             JOIN pg_attribute a ON a.attrelid = o.{relation} AND a.attnum = k.attnum ORDER BY k.place)"
        )
    };
    let operators = |list: &str| {
        format!(
            "ARRAY(SELECT format('OPERATOR(%I.%s)', m.nspname, r.oprname) FROM unnest(o.{list}) WITH ORDINALITY k(oid, place) \
             JOIN pg_operator r ON r.oid = k.oid JOIN pg_namespace m ON m.oid = r.oprnamespace ORDER BY k.place)"
        )
    };
    let sql = format!(
        "{ours} SELECT c.oid, o.conname::text, {here}, o.confrelid, n.nspname::text, p.relname::text, {there}, \
         o.confmatchtype = 'f', o.condeferrable, o.confdeltype NOT IN ('a', 'r'), {across}, {within} \
         FROM ours c JOIN pg_constraint o ON o.conrelid = c.oid AND o.contype = 'f' \
         JOIN pg_class p ON p.oid = o.confrelid JOIN pg_namespace n ON n.oid = p.relnamespace \
         WHERE NOT c.relispartition AND o.conparentid = 0 ORDER BY c.oid, o.conname",
        here = names("conrelid", "conkey"),
        there = names("confrelid", "confkey"),
        across = operators("conpfeqop"),
        within = operators("conppeqop"),
    );
    for row in client.query(&sql, &[]).await? {
        let (schema, name): (String, String) = (row.get(4), row.get(5));
        found.entry(row.get(0)).or_default().foreign_keys.push(LiveForeignKey {
            name: row.get(1),
            columns: row.get(2),
            parent_oid: row.get(3),
            parent_sql: qualified(&schema, &name),
            parent_table: topology_name(&schema, &name),
            parent_columns: row.get(6),
            match_full: row.get(7),
            deferrable: row.get(8),
            acts_on_delete: row.get(9),
            operators: row.get(10),
            parent_operators: row.get(11),
        });
    }
    Ok(())
}

/// The table that a relation's rows belong to.
const ROOT: &str = "CASE WHEN c.relispartition THEN pg_partition_root(c.oid)::oid ELSE c.oid END";

async fn deferrable_others(
    client: &impl GenericClient,
    ours: &str,
    found: &mut ByTable,
) -> Result<(), Error> {
    let sql = format!(
        "{ours} SELECT DISTINCT {ROOT}, o.conname::text FROM ours c JOIN pg_constraint o ON o.conrelid = c.oid \
         WHERE o.condeferrable AND (o.contype = 'x' OR (o.contype IN ('p', 'u') AND c.relispartition \
         AND o.conparentid = 0)) ORDER BY 1, 2"
    );
    for row in client.query(&sql, &[]).await? {
        found.entry(row.get(0)).or_default().deferrable_others.push(row.get(1));
    }
    Ok(())
}

async fn triggers(client: &impl GenericClient, ours: &str, found: &mut ByTable) -> Result<(), Error> {
    let sql = format!(
        "{ours} SELECT DISTINCT {ROOT}, g.tgname::text, g.tgenabled::text FROM ours c \
         JOIN pg_trigger g ON g.tgrelid = c.oid WHERE NOT g.tgisinternal ORDER BY 1, 2, 3"
    );
    for row in client.query(&sql, &[]).await? {
        let firing = Firing::from_letter(row.get(2));
        found.entry(row.get(0)).or_default().triggers.push(LiveTrigger { name: row.get(1), firing });
    }
    Ok(())
}

async fn rules(client: &impl GenericClient, ours: &str, found: &mut ByTable) -> Result<(), Error> {
    let sql = format!(
        "{ours} SELECT DISTINCT {ROOT}, r.rulename::text, r.ev_enabled::text FROM ours c \
         JOIN pg_rewrite r ON r.ev_class = c.oid ORDER BY 1, 2, 3"
    );
    for row in client.query(&sql, &[]).await? {
        let firing = Firing::from_letter(row.get(2));
        found.entry(row.get(0)).or_default().rules.push(LiveTrigger { name: row.get(1), firing });
    }
    Ok(())
}

async fn partitions(client: &impl GenericClient, ours: &str, found: &mut ByTable) -> Result<(), Error> {
    let sql = format!(
        "{ours} SELECT {ROOT}, c.oid, c.nspname::text, c.relname::text, c.relreplident::text, {IDENTITY_INDEX}, \
         c.relpersistence = 'u' FROM ours c WHERE c.relispartition AND c.relkind = 'r' ORDER BY 1, 3, 4"
    );
    for row in client.query(&sql, &[]).await? {
        found.entry(row.get(0)).or_default().partitions.push(Partition {
            oid: row.get(1),
            schema: row.get(2),
            name: row.get(3),
            replica_identity: replica_identity(row.get(4), row.get(5)),
            unlogged: row.get(6),
        });
    }
    Ok(())
}

async fn sequences(client: &impl GenericClient, ours: &str, found: &mut ByTable) -> Result<(), Error> {
    let sql = format!(
        "{ours} SELECT c.oid, n.nspname::text, s.relname::text, a.attname::text, d.deptype = 'i', q.seqincrement, \
         format('AS %s START %s INCREMENT %s MINVALUE %s MAXVALUE %s CACHE %s%s', format_type(q.seqtypid, NULL), \
         q.seqstart, q.seqincrement, q.seqmin, q.seqmax, q.seqcache, CASE WHEN q.seqcycle THEN ' CYCLE' ELSE '' END) \
         FROM ours c JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid \
         AND d.refobjsubid > 0 AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i') \
         JOIN pg_sequence q ON q.seqrelid = d.objid JOIN pg_class s ON s.oid = d.objid \
         JOIN pg_namespace n ON n.oid = s.relnamespace \
         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.refobjsubid \
         WHERE NOT c.relispartition ORDER BY c.oid, a.attnum, s.relname"
    );
    for row in client.query(&sql, &[]).await? {
        found.entry(row.get(0)).or_default().sequences.push(OwnedSequence {
            schema: row.get(1),
            name: row.get(2),
            column: row.get(3),
            of_identity: row.get(4),
            increment: row.get(5),
            options_sql: row.get(6),
        });
    }
    Ok(())
}

/// A row of the catalog that was written anew has another transaction number, however small the change.
pub(super) async fn version(client: &impl GenericClient, oids: &[u32]) -> Result<String, Error> {
    let part = |letter: &str, catalog: &str, of: &str, also: &str| {
        format!(
            "SELECT concat_ws('.', '{letter}', {of}, {also}, xmin) v FROM {catalog} WHERE {of} = ANY ($1)"
        )
    };
    let parts = [
        part("c", "pg_class", "oid", "relname"),
        part("a", "pg_attribute", "attrelid", "attnum"),
        part("d", "pg_attrdef", "adrelid", "oid"),
        part("o", "pg_constraint", "conrelid", "oid"),
        part("i", "pg_index", "indrelid", "indexrelid"),
        part("t", "pg_trigger", "tgrelid", "oid"),
        part("r", "pg_rewrite", "ev_class", "oid"),
        part("p", "pg_inherits", "inhparent", "inhrelid"),
    ];
    let sql = format!("SELECT md5(string_agg(v, ',' ORDER BY v)) FROM ({}) parts", parts.join(" UNION ALL "));
    let found = client.query_typed(&sql, &[(&oids, Type::OID_ARRAY)]).await?;
    Ok(found.first().and_then(|row| row.get::<_, Option<String>>(0)).unwrap_or_default())
}

//! What a table needs beside its own statements to come back into a schema, or a database, that is gone: types, functions
//! and extensions that it uses, triggers, policies, owner and privileges.
//!
//! # Invariants
//! - What may be shared is only made where it is not there: each such statement looks first.
//! - Statements say by their beginning when they are run, see [`Phase`](super::Phase).
//!
//! # Not here
//! Comments, storage parameters, statistics objects, views, and functions that only other functions call.

use std::collections::HashMap;

use tokio_postgres::{Error, GenericClient, Row};

use super::name::{literal, qualified, quote};
use super::phase::{LAST, SCHEMA};

/// Statements before and behind a table's own.
#[derive(Debug, Default)]
pub struct Around {
    /// Of the schema, then what the table needs.
    pub before: Vec<String>,
    /// What comes with the table.
    pub behind: Vec<String>,
}

type ByTable = HashMap<u32, Around>;

/// For the tables with these oids.
///
/// # Errors
/// Those of the connection.
pub async fn around(client: &impl GenericClient, oids: &[u32]) -> Result<HashMap<u32, Around>, Error> {
    let mut found = ByTable::new();
    if oids.is_empty() {
        return Ok(found);
    }
    schemas(client, oids, &mut found).await?;
    extensions(client, oids, &mut found).await?;
    types(client, oids, &mut found).await?;
    functions(client, oids, &mut found).await?;
    sequences(client, oids, &mut found).await?;
    triggers(client, oids, &mut found).await?;
    policies(client, oids, &mut found).await?;
    replica_identities(client, oids, &mut found).await?;
    owners(client, oids, &mut found).await?;
    privileges(client, oids, &mut found).await?;
    Ok(found)
}

/// Makes what is not there, and its schema.
fn unless_there(schema: &str, there: &str, sql: &str) -> String {
    let body = format!(
        "BEGIN IF to_regnamespace({name}) IS NULL THEN CREATE SCHEMA {schema}; END IF; \
         IF {there} IS NULL THEN EXECUTE {sql}; END IF; END",
        name = literal(&quote(schema)),
        schema = quote(schema),
        sql = literal(sql),
    );
    format!("DO {}", literal(&body))
}

async fn schemas(client: &impl GenericClient, oids: &[u32], found: &mut ByTable) -> Result<(), Error> {
    let sql = "SELECT c.oid, n.nspname::text, pg_get_userbyid(n.nspowner)::text, \
        ARRAY(SELECT concat(a.privilege_type, '|', a.is_grantable, '|', \
          CASE WHEN a.grantee <> 0 THEN pg_get_userbyid(a.grantee)::text END) \
          FROM aclexplode(n.nspacl) a WHERE a.grantee <> n.nspowner ORDER BY 1) \
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
        WHERE c.oid = ANY ($1) AND n.nspname <> 'public'";
    for row in client.query(sql, &[&oids]).await? {
        let (schema, owner): (String, String) = (row.get(1), row.get(2));
        let before = &mut found.entry(row.get(0)).or_default().before;
        for grant in row.get::<_, Vec<String>>(3) {
            before.extend(
                grant_sql(&grant, &format!("SCHEMA {}", quote(&schema))).map(|sql| format!("{SCHEMA}{sql}")),
            );
        }
        // With the owner given away, nothing more might be granted.
        before.push(format!("{SCHEMA}ALTER SCHEMA {} OWNER TO {}", quote(&schema), quote(&owner)));
    }
    Ok(())
}

/// From `PRIVILEGE|grantable|role`, where no role is everyone.
fn grant_sql(grant: &str, on: &str) -> Option<String> {
    let (privilege, rest) = grant.split_once('|')?;
    let (grantable, role) = rest.split_once('|')?;
    let role = if role.is_empty() { "PUBLIC".to_owned() } else { quote(role) };
    let option = if grantable == "t" { " WITH GRANT OPTION" } else { "" };
    Some(format!("GRANT {privilege} ON {on} TO {role}{option}"))
}

/// Types that columns of the tables are made of: `used (tab, typ)`. From 16384 on are the numbers of what the server did
/// not bring.
const USED_TYPES: &str = "used (tab, typ) AS (\
    SELECT a.attrelid, a.atttypid FROM pg_attribute a WHERE a.attrelid = ANY ($1) AND a.attnum > 0 \
    AND NOT a.attisdropped AND a.atttypid >= 16384 \
    UNION SELECT u.tab, x.typ FROM used u JOIN pg_type t ON t.oid = u.typ CROSS JOIN LATERAL (\
      SELECT t.typelem WHERE t.typcategory = 'A' UNION ALL SELECT t.typbasetype WHERE t.typtype = 'd' \
      UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE r.rngtypid = t.oid \
      UNION ALL SELECT r.rngtypid FROM pg_range r WHERE r.rngmultitypid = t.oid \
      UNION ALL SELECT a.atttypid FROM pg_attribute a WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 \
      AND NOT a.attisdropped) x(typ) WHERE x.typ >= 16384)";

/// Functions that defaults, checks, indexes, triggers and policies of the tables call: `called (tab, fun)`.
const CALLED: &str = "called (tab, fun) AS (\
    SELECT DISTINCT o.tab, d.refobjid FROM (\
      SELECT adrelid AS tab, 'pg_attrdef'::regclass AS class, oid FROM pg_attrdef WHERE adrelid = ANY ($1) \
      UNION ALL SELECT conrelid, 'pg_constraint'::regclass, oid FROM pg_constraint WHERE conrelid = ANY ($1) \
      UNION ALL SELECT indrelid, 'pg_class'::regclass, indexrelid FROM pg_index WHERE indrelid = ANY ($1) \
      UNION ALL SELECT tgrelid, 'pg_trigger'::regclass, oid FROM pg_trigger WHERE tgrelid = ANY ($1) AND NOT tgisinternal \
      UNION ALL SELECT polrelid, 'pg_policy'::regclass, oid FROM pg_policy WHERE polrelid = ANY ($1)) o \
    JOIN pg_depend d ON d.classid = o.class AND d.objid = o.oid AND d.refclassid = 'pg_proc'::regclass \
    WHERE d.refobjid >= 16384)";

async fn extensions(client: &impl GenericClient, oids: &[u32], found: &mut ByTable) -> Result<(), Error> {
    let sql = format!(
        "WITH RECURSIVE {USED_TYPES}, {CALLED} SELECT DISTINCT u.tab, e.extname::text, n.nspname::text FROM (\
         SELECT tab, 'pg_type'::regclass AS class, typ AS obj FROM used \
         UNION ALL SELECT tab, 'pg_proc'::regclass, fun FROM called) u \
         JOIN pg_depend d ON d.classid = u.class AND d.objid = u.obj AND d.deptype = 'e' \
         JOIN pg_extension e ON e.oid = d.refobjid JOIN pg_namespace n ON n.oid = e.extnamespace ORDER BY 1, 2"
    );
    for row in client.query(&sql, &[&oids]).await? {
        let (name, schema): (&str, &str) = (row.get(1), row.get(2));
        let there = format!("(SELECT oid FROM pg_extension WHERE extname = {})", literal(name));
        let create = format!("CREATE EXTENSION {} SCHEMA {}", quote(name), quote(schema));
        found.entry(row.get(0)).or_default().before.push(unless_there(schema, &there, &create));
    }
    Ok(())
}

async fn types(client: &impl GenericClient, oids: &[u32], found: &mut ByTable) -> Result<(), Error> {
    // A type is older than those that are made of it.
    let sql = format!(
        "WITH RECURSIVE {USED_TYPES} SELECT u.tab, n.nspname::text, t.typname::text, t.typtype::text, \
         CASE t.typtype \
         WHEN 'e' THEN (SELECT string_agg(quote_literal(l.enumlabel), ', ' ORDER BY l.enumsortorder) \
           FROM pg_enum l WHERE l.enumtypid = t.oid) \
         WHEN 'c' THEN (SELECT string_agg(quote_ident(a.attname) || ' ' || format_type(a.atttypid, a.atttypmod), ', ' \
           ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) \
         WHEN 'd' THEN concat_ws(' ', format_type(t.typbasetype, t.typtypmod), \
           'DEFAULT ' || t.typdefault, CASE WHEN t.typnotnull THEN 'NOT NULL' END, \
           (SELECT string_agg('CONSTRAINT ' || quote_ident(o.conname) || ' ' || pg_get_constraintdef(o.oid), ' ' \
            ORDER BY o.conname) FROM pg_constraint o WHERE o.contypid = t.oid AND o.contype = 'c')) \
         WHEN 'r' THEN (SELECT 'SUBTYPE = ' || format_type(r.rngsubtype, NULL) FROM pg_range r WHERE r.rngtypid = t.oid) \
         END \
         FROM (SELECT DISTINCT tab, typ FROM used) u JOIN pg_type t ON t.oid = u.typ \
         JOIN pg_namespace n ON n.oid = t.typnamespace LEFT JOIN pg_class c ON c.oid = t.typrelid \
         WHERE t.typtype IN ('e', 'd', 'c', 'r') AND coalesce(c.relkind, 'c') = 'c' \
         AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid \
         AND d.deptype = 'e') ORDER BY u.tab, t.oid"
    );
    for row in client.query(&sql, &[&oids]).await? {
        let name = qualified(row.get(1), row.get(2));
        let body: Option<String> = row.get(4);
        let body = body.unwrap_or_default();
        let create = match row.get::<_, &str>(3) {
            "e" => format!("CREATE TYPE {name} AS ENUM ({body})"),
            "c" => format!("CREATE TYPE {name} AS ({body})"),
            "r" => format!("CREATE TYPE {name} AS RANGE ({body})"),
            _ => format!("CREATE DOMAIN {name} AS {body}"),
        };
        let there = format!("to_regtype({})", literal(&name));
        found.entry(row.get(0)).or_default().before.push(unless_there(row.get(1), &there, &create));
    }
    Ok(())
}

async fn functions(client: &impl GenericClient, oids: &[u32], found: &mut ByTable) -> Result<(), Error> {
    let sql = format!(
        "WITH {CALLED} SELECT u.tab, n.nspname::text, p.oid::regprocedure::text, pg_get_functiondef(p.oid) \
         FROM called u JOIN pg_proc p ON p.oid = u.fun AND p.prokind = 'f' \
         JOIN pg_namespace n ON n.oid = p.pronamespace \
         WHERE NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid \
         AND d.deptype = 'e') ORDER BY u.tab, p.oid"
    );
    for row in client.query(&sql, &[&oids]).await? {
        let there = format!("to_regprocedure({})", literal(row.get(2)));
        found.entry(row.get(0)).or_default().before.push(unless_there(row.get(1), &there, row.get(3)));
    }
    Ok(())
}

/// Sequences that defaults draw from and that no column owns; behind the load they are brought forward to its ids.
async fn sequences(client: &impl GenericClient, oids: &[u32], found: &mut ByTable) -> Result<(), Error> {
    let sql = "SELECT t.oid, tn.nspname::text, t.relname::text, a.attname::text, n.nspname::text, s.relname::text, \
        format('AS %s START %s INCREMENT %s MINVALUE %s MAXVALUE %s CACHE %s%s', format_type(q.seqtypid, NULL), \
        q.seqstart, q.seqincrement, q.seqmin, q.seqmax, q.seqcache, CASE WHEN q.seqcycle THEN ' CYCLE' ELSE '' END), \
        a.atttypid::oid IN (20, 21, 23) AND q.seqincrement > 0 \
        FROM pg_attrdef f JOIN pg_class t ON t.oid = f.adrelid JOIN pg_namespace tn ON tn.oid = t.relnamespace \
        JOIN pg_attribute a ON a.attrelid = f.adrelid AND a.attnum = f.adnum \
        JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid AND d.refclassid = 'pg_class'::regclass \
        JOIN pg_class s ON s.oid = d.refobjid AND s.relkind = 'S' JOIN pg_namespace n ON n.oid = s.relnamespace \
        JOIN pg_sequence q ON q.seqrelid = s.oid \
        WHERE f.adrelid = ANY ($1) AND NOT EXISTS (SELECT FROM pg_depend o WHERE o.classid = 'pg_class'::regclass \
        AND o.objid = s.oid AND o.deptype IN ('a', 'i')) ORDER BY 1, 4";
    for row in client.query(sql, &[&oids]).await? {
        let (table, sequence) = (qualified(row.get(1), row.get(2)), qualified(row.get(4), row.get(5)));
        let regclass = literal(&sequence);
        let around = found.entry(row.get(0)).or_default();
        let create = format!("CREATE SEQUENCE {sequence} {}", row.get::<_, &str>(6));
        around.before.push(unless_there(row.get(4), &format!("to_regclass({regclass})"), &create));
        if row.get(7) {
            around.behind.push(format!(
                "SELECT setval({regclass}::regclass, w.id) FROM (SELECT max({})::bigint AS id FROM {table}) w, {sequence} q \
                 WHERE w.id > q.last_value OR (w.id = q.last_value AND NOT q.is_called)",
                quote(row.get(3)),
            ));
        }
    }
    Ok(())
}

async fn triggers(client: &impl GenericClient, oids: &[u32], found: &mut ByTable) -> Result<(), Error> {
    let sql = "SELECT g.tgrelid, n.nspname::text, c.relname::text, g.tgname::text, pg_get_triggerdef(g.oid), \
        g.tgenabled::text FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid \
        JOIN pg_namespace n ON n.oid = c.relnamespace \
        WHERE g.tgrelid = ANY ($1) AND NOT g.tgisinternal AND g.tgparentid = 0 ORDER BY 1, 4";
    for row in client.query(sql, &[&oids]).await? {
        let behind = &mut found.entry(row.get(0)).or_default().behind;
        behind.push(format!("{LAST}{}", row.get::<_, &str>(4)));
        let mode = match row.get::<_, &str>(5) {
            "A" => "ENABLE ALWAYS",
            "R" => "ENABLE REPLICA",
            "D" => "DISABLE",
            _ => continue,
        };
        let (table, name) = (qualified(row.get(1), row.get(2)), quote(row.get(3)));
        behind.push(format!("{LAST}ALTER TABLE {table} {mode} TRIGGER {name}"));
    }
    Ok(())
}

async fn policies(client: &impl GenericClient, oids: &[u32], found: &mut ByTable) -> Result<(), Error> {
    let sql = "SELECT c.oid, format('%I.%I', n.nspname, c.relname), c.relrowsecurity, c.relforcerowsecurity, \
        ARRAY(SELECT format('CREATE POLICY %I ON %I.%I AS %s FOR %s TO %s', p.polname, n.nspname, c.relname, \
          CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END, \
          CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' \
          ELSE 'ALL' END, (SELECT string_agg(CASE r.role WHEN 0 THEN 'PUBLIC' \
          ELSE quote_ident(pg_get_userbyid(r.role)) END, ', ') FROM unnest(p.polroles) r(role))) \
          || coalesce(' USING (' || pg_get_expr(p.polqual, p.polrelid) || ')', '') \
          || coalesce(' WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')', '') \
          FROM pg_policy p WHERE p.polrelid = c.oid ORDER BY p.polname) \
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY ($1)";
    for row in client.query(sql, &[&oids]).await? {
        let table: &str = row.get(1);
        let policies = row.get::<_, Vec<String>>(4).into_iter();
        let enable = row.get::<_, bool>(2).then(|| format!("ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"));
        let force = row.get::<_, bool>(3).then(|| format!("ALTER TABLE {table} FORCE ROW LEVEL SECURITY"));
        let statements = policies.chain(enable).chain(force).map(|sql| format!("{LAST}{sql}"));
        found.entry(row.get(0)).or_default().behind.extend(statements);
    }
    Ok(())
}

async fn replica_identities(
    client: &impl GenericClient,
    oids: &[u32],
    found: &mut ByTable,
) -> Result<(), Error> {
    let sql = "SELECT c.oid, n.nspname::text, c.relname::text, c.relreplident::text, \
        (SELECT x.relname::text FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid \
         WHERE i.indrelid = c.oid AND i.indisreplident) \
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
        WHERE c.oid = ANY ($1) AND c.relreplident <> 'd'";
    for row in client.query(sql, &[&oids]).await? {
        let identity = match (row.get::<_, &str>(3), row.get::<_, Option<String>>(4)) {
            ("f", _) => "FULL".to_owned(),
            ("i", Some(index)) => format!("USING INDEX {}", quote(&index)),
            _ => continue,
        };
        let statement =
            format!("{LAST}ALTER TABLE {} REPLICA IDENTITY {identity}", qualified(row.get(1), row.get(2)));
        found.entry(row.get(0)).or_default().behind.push(statement);
    }
    Ok(())
}

async fn owners(client: &impl GenericClient, oids: &[u32], found: &mut ByTable) -> Result<(), Error> {
    // Sequences that columns own go with their table.
    let sql = "SELECT c.oid, n.nspname::text, c.relname::text, pg_get_userbyid(c.relowner)::text \
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY ($1)";
    for row in client.query(sql, &[&oids]).await? {
        let (table, owner) = (qualified(row.get(1), row.get(2)), quote(row.get(3)));
        found
            .entry(row.get(0))
            .or_default()
            .behind
            .push(format!("{LAST}ALTER TABLE {table} OWNER TO {owner}"));
    }
    Ok(())
}

async fn privileges(client: &impl GenericClient, oids: &[u32], found: &mut ByTable) -> Result<(), Error> {
    let sql = "SELECT o.tab, o.kind, n.nspname::text, c.relname::text, \
        ARRAY(SELECT concat(a.privilege_type, '|', a.is_grantable, '|', \
          CASE WHEN a.grantee <> 0 THEN pg_get_userbyid(a.grantee)::text END) \
          FROM aclexplode(c.relacl) a WHERE a.grantee <> c.relowner ORDER BY 1) \
        FROM (SELECT u.oid AS tab, 'TABLE' AS kind, u.oid FROM unnest($1::oid[]) u(oid) \
          UNION ALL SELECT DISTINCT d.refobjid, 'SEQUENCE', d.objid FROM pg_depend d \
          WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = ANY ($1) AND d.classid = 'pg_class'::regclass \
          AND d.deptype IN ('a', 'i')) o \
        JOIN pg_class c ON c.oid = o.oid AND (o.kind = 'TABLE' OR c.relkind = 'S') AND c.relacl IS NOT NULL \
        JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY 1, 2 DESC, 4";
    for row in client.query(sql, &[&oids]).await? {
        let statements = grants(&row);
        found.entry(row.get(0)).or_default().behind.extend(statements);
    }
    Ok(())
}

fn grants(row: &Row) -> Vec<String> {
    let on = format!("{} {}", row.get::<_, &str>(1), qualified(row.get(2), row.get(3)));
    let all: Vec<String> = row.get(4);
    all.iter().filter_map(|grant| grant_sql(grant, &on)).map(|sql| format!("{LAST}{sql}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileges_are_granted_as_they_were() {
        let sql = |grant| grant_sql(grant, "TABLE \"a\".\"b\"");
        assert_eq!(sql("SELECT|f|app").as_deref(), Some("GRANT SELECT ON TABLE \"a\".\"b\" TO \"app\""));
        assert_eq!(
            sql("USAGE|t|").as_deref(),
            Some("GRANT USAGE ON TABLE \"a\".\"b\" TO PUBLIC WITH GRANT OPTION")
        );
    }
}

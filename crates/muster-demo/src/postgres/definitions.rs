//! Definitions in a database, as PostgreSQL itself words them.

use std::collections::BTreeSet;

use anyhow::Result;
use postgres::Client;

/// Everything in the schema `public` that makes the application's tables what they are: name and definition.
const DEFINITIONS: &str = "
SELECT 'table ' || c.relname,
       concat_ws(' ', c.relkind, c.relpersistence, c.relreplident, c.relrowsecurity, c.relforcerowsecurity,
                 pg_get_userbyid(c.relowner), c.relacl::text, c.reloptions::text)
  FROM pg_class AS c WHERE c.relnamespace = 'public'::regnamespace
UNION ALL
SELECT 'column ' || c.relname || '.' || a.attname,
       concat_ws(' ', a.attnum, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated,
                 a.attisdropped, a.attstorage, a.attcollation::regcollation, a.attacl::text,
                 pg_get_expr(d.adbin, d.adrelid))
  FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0
  LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
  WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
UNION ALL
SELECT 'constraint ' || conrelid::regclass || '.' || conname,
       concat_ws(' ', convalidated, pg_get_constraintdef(oid))
  FROM pg_constraint WHERE connamespace = 'public'::regnamespace
UNION ALL
SELECT 'index ' || i.indexrelid::regclass, concat_ws(' ', i.indisvalid, i.indisready, pg_get_indexdef(i.indexrelid))
  FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid WHERE c.relnamespace = 'public'::regnamespace
UNION ALL
SELECT 'trigger ' || t.tgrelid::regclass || '.' || CASE WHEN t.tgisinternal THEN 'of ' || k.conname || ' ' ||
       t.tgtype ELSE t.tgname END,
       concat_ws(' ', t.tgenabled, CASE WHEN NOT t.tgisinternal THEN pg_get_triggerdef(t.oid) END)
  FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid LEFT JOIN pg_constraint AS k ON k.oid = t.tgconstraint
  WHERE c.relnamespace = 'public'::regnamespace
UNION ALL
SELECT 'rule ' || c.relname || '.' || r.rulename, pg_get_ruledef(r.oid)
  FROM pg_rewrite AS r JOIN pg_class AS c ON c.oid = r.ev_class WHERE c.relnamespace = 'public'::regnamespace
UNION ALL
SELECT 'function ' || oid::regprocedure, pg_get_functiondef(oid)
  FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prokind = 'f'
UNION ALL
SELECT 'value ' || e.enumtypid::regtype || '.' || e.enumlabel, e.enumsortorder::text
  FROM pg_enum AS e JOIN pg_type AS t ON t.oid = e.enumtypid WHERE t.typnamespace = 'public'::regnamespace";

/// All definitions as they are now.
pub(super) fn read(client: &mut Client) -> Result<BTreeSet<(String, String)>> {
    let rows = client.query(DEFINITIONS, &[])?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

-- Writes what a DDL did to tables into the log, in its own transaction. It runs as whoever runs the DDL, needs no right but
-- to read the catalog, and must never make the DDL fail.
CREATE OR REPLACE FUNCTION muster.note_ddl() RETURNS event_trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
  touched oid[] := '{}';
  dropped jsonb := '[]';
  tables jsonb;
BEGIN
  IF TG_EVENT = 'sql_drop' THEN
    SELECT coalesce(jsonb_agg(jsonb_build_object('oid', o.objid::bigint, 'schema', o.schema_name, 'name', o.object_name)), '[]')
      INTO dropped FROM pg_event_trigger_dropped_objects() o
      WHERE o.classid = 'pg_class'::regclass AND o.object_type = 'table' AND o.objsubid = 0 AND NOT o.is_temporary
      AND o.schema_name <> 'muster';
    -- A column may go with its type. ALTER TABLE is told of at its end.
    IF TG_TAG <> 'ALTER TABLE' THEN
      touched := ARRAY(SELECT DISTINCT o.objid FROM pg_event_trigger_dropped_objects() o
        WHERE o.classid = 'pg_class'::regclass AND o.objsubid > 0);
    END IF;
  ELSE
    -- Whatever is no table, such as an index, is left out below; a renamed column stands for its table.
    touched := ARRAY(SELECT o.objid FROM pg_event_trigger_ddl_commands() o WHERE o.classid = 'pg_class'::regclass
      UNION SELECT c.oid FROM pg_event_trigger_ddl_commands() o JOIN pg_class c ON c.relnamespace = o.objid
      WHERE o.classid = 'pg_namespace'::regclass AND o.command_tag = 'ALTER SCHEMA');
  END IF;
  IF touched = '{}' AND dropped = '[]' THEN
    RETURN;
  END IF;
  SELECT jsonb_agg(jsonb_build_object(
      'oid', c.oid::bigint, 'schema', n.nspname, 'name', c.relname, 'persistence', c.relpersistence, 'touched',
      (SELECT jsonb_agg(t::bigint) FROM unnest(touched) t WHERE coalesce(pg_partition_root(t), t) = c.oid),
      'columns', (SELECT coalesce(jsonb_agg(jsonb_build_object('name', a.attname, 'type', format_type(a.atttypid, a.atttypmod),
          'type_oid', a.atttypid::bigint, 'type_modifier', a.atttypmod, 'not_null', a.attnotnull,
          'generated', a.attgenerated <> '', 'default_sql', pg_get_expr(d.adbin, d.adrelid)) ORDER BY a.attnum), '[]')
        FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
      'key', (SELECT coalesce(jsonb_agg(a.attname ORDER BY k.place), '[]') FROM pg_index i,
        unnest(i.indkey[:i.indnkeyatts - 1]) WITH ORDINALITY k(number, place), pg_attribute a
        WHERE i.indrelid = c.oid AND i.indisprimary AND a.attrelid = c.oid AND a.attnum = k.number),
      'constraints', (SELECT coalesce(jsonb_agg(jsonb_build_object('name', o.conname, 'sql', pg_get_constraintdef(o.oid))
        ORDER BY o.conname), '[]') FROM pg_constraint o WHERE o.conrelid = c.oid),
      'indexes', (SELECT coalesce(jsonb_agg(pg_get_indexdef(i.indexrelid) ORDER BY i.indexrelid), '[]')
        FROM pg_index i WHERE i.indrelid = c.oid),
      -- Whatever holds rows: the table itself, or its partitions. pg_partition_tree would lock them.
      'parts', (WITH RECURSIVE part(oid) AS (SELECT c.oid UNION ALL
          SELECT h.inhrelid FROM part p JOIN pg_inherits h ON h.inhparent = p.oid
          JOIN pg_class q ON q.oid = h.inhrelid AND q.relispartition)
        SELECT coalesce(jsonb_agg(jsonb_build_object('oid', q.oid::bigint, 'file', q.relfilenode::bigint,
          'replica_identity', q.relreplident, 'identity_columns', (SELECT jsonb_agg(a.attname ORDER BY k.place)
            FROM pg_index i, unnest(i.indkey[:i.indnkeyatts - 1]) WITH ORDINALITY k(number, place), pg_attribute a
            WHERE i.indrelid = q.oid AND i.indisreplident AND a.attrelid = q.oid AND a.attnum = k.number))
          ORDER BY q.oid), '[]')
        FROM part p JOIN pg_class q ON q.oid = p.oid AND q.relkind = 'r')))
    INTO tables FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid IN (SELECT coalesce(pg_partition_root(t), t) FROM unnest(touched) t)
    AND c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname <> 'muster' AND n.nspname !~ '^pg_';
  IF tables IS NOT NULL OR dropped <> '[]' THEN
    PERFORM pg_logical_emit_message(true, 'muster.ddl', jsonb_build_object('tag', TG_TAG, 'tables', coalesce(tables, '[]'),
      'dropped', dropped)::text);
  END IF;
EXCEPTION WHEN OTHERS THEN
  BEGIN
    PERFORM pg_logical_emit_message(true, 'muster.ddl', jsonb_build_object('tag', TG_TAG, 'failed', SQLERRM)::text);
  EXCEPTION WHEN OTHERS THEN
    -- Capture notices by the catalog that it was not told.
    RAISE DEBUG 'muster: % is not in the log: %', TG_TAG, SQLERRM;
  END;
END
$function$;

-- name: careful
-- Looking around must not queue behind somebody's ALTER TABLE, nor read for long.
SELECT set_config('lock_timeout', '1s', false), set_config('statement_timeout', '30s', false);

-- name: tables_with_documents
-- Tables of users that may hold documents: those with a column of type xml, json or jsonb, or of a text type (whose rows
-- are then sampled), domains over them included. Partitions are left to their parent, tables of extensions to these. A
-- schema with a dot in its name cannot be written in the configuration.
WITH RECURSIVE family(oid) AS (
    SELECT unnest('{xml,json,jsonb,text,varchar,bpchar}'::regtype[])::oid
    UNION
    SELECT t.oid FROM pg_catalog.pg_type t JOIN family f ON t.typbasetype = f.oid
)
SELECT n.nspname, c.relname, greatest(c.reltuples, 0)::bigint
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
   AND n.nspname NOT IN ('information_schema', 'docferry') AND n.nspname !~ '^pg_' AND strpos(n.nspname, '.') = 0
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                    WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
   AND EXISTS (SELECT FROM pg_catalog.pg_attribute a JOIN family f ON f.oid = a.atttypid
                WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
 ORDER BY n.nspname, c.relname;

-- name: sample
-- Values of a text column, from the first rows there are. {column} and {table} are identifiers. Bounded twice: a column
-- that is NULL throughout must not make this read the whole table, nor a few huge values fill the memory.
SELECT value
  FROM (SELECT {column}::text AS value FROM {table} LIMIT 1000) AS first_rows
 WHERE octet_length(value) BETWEEN 1 AND 262144
 LIMIT 100;

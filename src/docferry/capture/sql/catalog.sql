-- name: type
-- A type and what its text form is made of.
SELECT t.typname, n.nspname, t.typtype::text, t.typbasetype, t.typelem, t.typsubscript::oid::regproc::text, t.typrelid,
       t.typdelim::text, t.typlen
  FROM pg_catalog.pg_type t
  JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
 WHERE t.oid = %s;

-- name: range_element
-- The subtype of a range, or the range of a multirange.
SELECT CASE WHEN rngtypid = %(oid)s THEN rngsubtype ELSE rngtypid END
  FROM pg_catalog.pg_range
 WHERE rngtypid = %(oid)s OR rngmultitypid = %(oid)s;

-- name: composite_fields
-- Attributes of a composite type in order.
SELECT attname, atttypid
  FROM pg_catalog.pg_attribute
 WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped
 ORDER BY attnum;

-- name: table
-- A table with what decides whether it can be mirrored.
SELECT c.oid, n.nspname, c.relname, c.relkind::text, c.relpersistence::text, c.relreplident::text,
       pg_catalog.has_table_privilege(c.oid, 'SELECT'),
       pg_catalog.pg_has_role(c.relowner, 'USAGE'),
       c.relrowsecurity AND NOT pg_catalog.pg_has_role(c.relowner, 'USAGE')
         AND NOT (SELECT rolbypassrls OR rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user),
       c.relkind = 'r' AND EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhparent = c.oid),
       ARRAY(SELECT a.relid::oid FROM pg_catalog.pg_partition_ancestors(c.oid) a WHERE a.relid <> c.oid)
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %s AND c.relname = %s;

-- name: name_of
-- What a table is called now.
SELECT n.nspname || '.' || c.relname
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = %s;

-- name: columns
-- The columns of a table in order; generated ones are not in the replication stream.
SELECT a.attname, a.atttypid, a.attgenerated::text <> '', a.attnotnull,
       pg_catalog.quote_ident(tn.nspname) || '.' || pg_catalog.quote_ident(t.typname),
       pg_catalog.format_type(a.atttypid, a.atttypmod)
  FROM pg_catalog.pg_attribute a
  JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
  JOIN pg_catalog.pg_namespace tn ON tn.oid = t.typnamespace
 WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attnum;

-- name: layout
-- What rows and their text are made of. The files of partitions tell of a TRUNCATE of one, which is not published via the
-- root, as ATTACH and DETACH are not. The catalog is asked for them: pg_partition_tree() waits for whoever has locked one.
-- A collation is the order in which a table is paged; a type's own is not named, so that most tables look as they did to a
-- docferry that did not look at collations.
WITH RECURSIVE tree(oid, kind) AS (
    SELECT oid, relkind FROM pg_catalog.pg_class WHERE oid = %(oid)s AND relkind = 'p'
    UNION ALL
    SELECT c.oid, c.relkind
      FROM tree t
      JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid AND NOT i.inhdetachpending
      JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
), types(attnum, oid) AS (
    SELECT attnum, atttypid FROM pg_catalog.pg_attribute WHERE attrelid = %(oid)s AND attnum > 0 AND NOT attisdropped
    UNION
    SELECT x.attnum, p.oid
      FROM types x
      JOIN pg_catalog.pg_type t ON t.oid = x.oid
      CROSS JOIN LATERAL (
           SELECT unnest(ARRAY[t.typbasetype, t.typelem])
            UNION ALL
           SELECT a.atttypid FROM pg_catalog.pg_attribute a
            WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
           ) AS p(oid)
     WHERE p.oid <> 0
)
SELECT pg_catalog.md5(pg_catalog.string_agg(part, E'\n' ORDER BY part)) FROM (
    SELECT pg_catalog.concat_ws(' ', 'column', a.attnum, a.attname, a.atttypid, a.atttypmod, a.attgenerated,
                                CASE WHEN a.attcollation <> t.typcollation THEN 'collation ' || a.attcollation END)
      FROM pg_catalog.pg_attribute a
      JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
     WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT pg_catalog.concat_ws(' ', 'label', x.attnum, e.enumsortorder, e.enumlabel)
      FROM types x JOIN pg_catalog.pg_enum e ON e.enumtypid = x.oid
    UNION ALL
    SELECT pg_catalog.concat_ws(' ', 'field', x.attnum, x.oid, a.attnum, a.attname, a.atttypid, a.atttypmod)
      FROM types x
      JOIN pg_catalog.pg_type t ON t.oid = x.oid AND t.typtype = 'c'
      JOIN pg_catalog.pg_attribute a ON a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT pg_catalog.concat_ws(' ', 'partition', oid, pg_catalog.pg_relation_filenode(oid)) FROM tree WHERE kind <> 'p'
) AS parts(part);

-- name: foreign_key_types
-- Columns whose comparison operators are an extension's: their base type is not PostgreSQL's own.
WITH RECURSIVE base(attname, oid) AS (
    SELECT attname, atttypid FROM pg_catalog.pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped
    UNION
    SELECT b.attname, t.typbasetype FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.oid WHERE t.typtype = 'd'
)
SELECT b.attname
  FROM base b
  JOIN pg_catalog.pg_type t ON t.oid = b.oid
 WHERE t.typtype = 'b' AND t.typnamespace <> 'pg_catalog'::regnamespace;

-- name: unique_indexes
-- Unique, total, valid indexes on plain columns of these tables: table, name, primary?, immediate?, replica identity?,
-- columns in index order.
SELECT i.indrelid, pg_catalog.quote_ident(ic.relname), i.indisprimary, i.indimmediate, i.indisreplident,
       ARRAY(SELECT a.attname::text
               FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, ordinal)
               JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
              WHERE k.ordinal <= i.indnkeyatts
              ORDER BY k.ordinal)
  FROM pg_catalog.pg_index i
  JOIN pg_catalog.pg_class ic ON ic.oid = i.indexrelid
 WHERE i.indrelid = ANY (%s) AND i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL AND i.indisvalid
 ORDER BY i.indisprimary DESC, ic.relname;

-- name: leaves
-- The leaf partitions of a partitioned table with their replica identity: oid, name, setting. No lock is waited for, see
-- layout.
WITH RECURSIVE tree(oid) AS (
    SELECT %s::oid
    UNION ALL
    SELECT i.inhrelid FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid AND NOT i.inhdetachpending
)
SELECT c.oid, pg_catalog.format('%%I.%%I', n.nspname, c.relname), c.relreplident::text
  FROM tree t
  JOIN pg_catalog.pg_class c ON c.oid = t.oid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind <> 'p'
 ORDER BY 2;

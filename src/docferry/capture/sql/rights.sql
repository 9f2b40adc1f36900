-- name: whoami
-- Who asks, where, and whether this is RDS or Aurora, where a role stands for the attribute.
SELECT current_user::text, current_database()::text,
       EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'rds_replication');

-- name: role
-- What a role is; no row if there is none of that name.
SELECT rolsuper,
       rolreplication OR coalesce((SELECT pg_catalog.pg_has_role(r.oid, rds.oid, 'USAGE') FROM pg_catalog.pg_roles rds
                                    WHERE rds.rolname = 'rds_replication'), false),
       rolbypassrls,
       pg_catalog.has_database_privilege(r.oid, current_database(), 'CONNECT'),
       pg_catalog.has_database_privilege(r.oid, current_database(), 'CREATE'),
       coalesce((SELECT pg_catalog.pg_has_role(r.oid, m.oid, 'USAGE') FROM pg_catalog.pg_roles m
                  WHERE m.rolname = 'pg_monitor'), false),
       coalesce((SELECT pg_catalog.pg_has_role(r.oid, m.oid, 'MEMBER') FROM pg_catalog.pg_roles m
                  WHERE m.rolname = 'rds_iam'), true)
  FROM pg_catalog.pg_roles r
 WHERE rolname = %s;

-- name: tables
-- Those of the wanted tables that exist, with what the role may there. Every right is NULL for a role that is none.
SELECT wanted.shown, c.oid, pg_catalog.pg_get_userbyid(c.relowner)::text, c.relkind = 'p', c.relrowsecurity,
       pg_catalog.has_schema_privilege(%(role)s::name, n.oid, 'USAGE'),
       pg_catalog.has_table_privilege(%(role)s::name, c.oid, 'SELECT'),
       pg_catalog.has_table_privilege(%(role)s::name, c.oid, 'TRIGGER'),
       pg_catalog.pg_has_role(%(role)s::name, c.relowner, 'USAGE')
  FROM unnest(%(shown)s::text[], %(schemas)s::text[], %(names)s::text[]) AS wanted(shown, schema_name, table_name)
  JOIN pg_catalog.pg_namespace n ON n.nspname = wanted.schema_name
  JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.table_name
 ORDER BY wanted.shown;

-- name: partitions
-- A trigger of a partitioned table becomes one of each partition.
SELECT n.nspname, c.relname, pg_catalog.has_table_privilege(%(role)s::name, c.oid, 'TRIGGER')
  FROM pg_catalog.pg_partition_tree(%(oid)s) p
  JOIN pg_catalog.pg_class c ON c.oid = p.relid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE p.relid <> %(oid)s
 ORDER BY n.nspname, c.relname;

-- name: schema
-- Schema docferry, if it is there.
SELECT pg_catalog.has_schema_privilege(%(role)s::name, n.oid, 'USAGE'),
       pg_catalog.has_schema_privilege(%(role)s::name, n.oid, 'CREATE'),
       pg_catalog.pg_has_role(%(role)s::name, n.nspowner, 'USAGE')
  FROM pg_catalog.pg_namespace n
 WHERE n.nspname = 'docferry';

-- name: not_owned
-- What docferry made there and the role does not own.
SELECT 'TABLE', pg_catalog.format('docferry.%%I', c.relname)
  FROM pg_catalog.pg_class c
 WHERE c.relnamespace = pg_catalog.to_regnamespace('docferry') AND c.relkind = 'r'
   AND NOT coalesce(pg_catalog.pg_has_role(%(role)s::name, c.relowner, 'USAGE'), false)
UNION ALL
SELECT 'SEQUENCE', pg_catalog.format('docferry.%%I', c.relname)
  FROM pg_catalog.pg_class c
 WHERE c.relnamespace = pg_catalog.to_regnamespace('docferry') AND c.relkind = 'S'
   AND NOT coalesce(pg_catalog.pg_has_role(%(role)s::name, c.relowner, 'USAGE'), false)
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.objid = c.oid AND d.deptype = 'i')
UNION ALL
SELECT 'FUNCTION', p.oid::pg_catalog.regprocedure::text
  FROM pg_catalog.pg_proc p
 WHERE p.pronamespace = pg_catalog.to_regnamespace('docferry')
   AND NOT coalesce(pg_catalog.pg_has_role(%(role)s::name, p.proowner, 'USAGE'), false)
 ORDER BY 1 DESC, 2;

-- name: may_write
-- Whether a role may work with everything in schema docferry.
SELECT coalesce(bool_and(CASE c.relkind
           WHEN 'S' THEN pg_catalog.has_sequence_privilege(%(role)s::name, c.oid, 'USAGE')
                     AND pg_catalog.has_sequence_privilege(%(role)s::name, c.oid, 'SELECT')
                     AND pg_catalog.has_sequence_privilege(%(role)s::name, c.oid, 'UPDATE')
           ELSE pg_catalog.has_table_privilege(%(role)s::name, c.oid, 'SELECT')
                     AND pg_catalog.has_table_privilege(%(role)s::name, c.oid, 'INSERT')
                     AND pg_catalog.has_table_privilege(%(role)s::name, c.oid, 'UPDATE')
                     AND pg_catalog.has_table_privilege(%(role)s::name, c.oid, 'DELETE') END), true)
  FROM pg_catalog.pg_class c
 WHERE c.relnamespace = pg_catalog.to_regnamespace('docferry') AND c.relkind IN ('r', 'S');

-- name: publication
-- Whether there is one and a role may alter it, whether it publishes as docferry needs it, and its tables.
SELECT pg_catalog.pg_has_role(%(role)s::name, p.pubowner, 'USAGE'), p.puballtables,
       p.pubviaroot AND p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate,
       ARRAY(SELECT n.nspname || '.' || c.relname
               FROM pg_catalog.pg_publication_rel r
               JOIN pg_catalog.pg_class c ON c.oid = r.prrelid
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
              WHERE r.prpubid = p.oid)
  FROM pg_catalog.pg_publication p
 WHERE p.pubname = %(publication)s;

-- name: lambda
-- Whether aws_lambda is there, and a role may call it.
SELECT pg_catalog.has_schema_privilege(%(role)s::name, n.oid, 'USAGE')
       AND bool_and(pg_catalog.has_function_privilege(%(role)s::name, p.oid, 'EXECUTE'))
  FROM pg_catalog.pg_namespace n
  JOIN pg_catalog.pg_proc p ON p.pronamespace = n.oid AND p.proname = 'invoke'
 WHERE n.nspname = 'aws_lambda'
 GROUP BY n.oid;

-- name: role_state
-- Whether a role exists, and another one is a member of it.
SELECT (SELECT pg_catalog.pg_has_role(%(role)s::name, oid, 'MEMBER') FROM pg_catalog.pg_roles
         WHERE rolname = %(owner)s),
       EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = %(owner)s);

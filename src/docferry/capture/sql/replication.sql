-- name: server
-- What logical replication needs to know of the server and of the role.
SELECT current_setting('wal_level'), current_setting('server_version_num')::int, current_setting('server_version'),
       pg_catalog.pg_is_in_recovery(), current_user::text, current_database()::text,
       (SELECT rolreplication OR rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)
         OR coalesce((SELECT pg_catalog.pg_has_role(oid, 'USAGE') FROM pg_catalog.pg_roles
                       WHERE rolname = 'rds_replication'), false);

-- name: publication
-- Whether the publication exists and publishes as docferry needs it.
SELECT pubviaroot AND pubinsert AND pubupdate AND pubdelete AND pubtruncate, puballtables
  FROM pg_catalog.pg_publication
 WHERE pubname = %s;

-- name: owns_publication
-- Whether it is ours to alter and drop; no row if there is none.
SELECT pg_catalog.pg_has_role(pubowner, 'USAGE') FROM pg_catalog.pg_publication WHERE pubname = %s;

-- name: has_schema
-- Whether the ledger, beside which the publication is remembered, is there.
SELECT pg_catalog.to_regnamespace('docferry') IS NOT NULL;

-- name: keep_publication
-- Which publication the slot's stream began with. One of the same name that somebody made anew is another: what was
-- committed in between is not in the stream.
CREATE TABLE IF NOT EXISTS docferry.publication (name text PRIMARY KEY, oid oid NOT NULL);

-- name: remember_publication
-- The one that is there now.
INSERT INTO docferry.publication (name, oid) SELECT pubname, oid FROM pg_catalog.pg_publication WHERE pubname = %s
ON CONFLICT (name) DO UPDATE SET oid = excluded.oid;

-- name: keeps_publication
-- Whether it is remembered at all.
SELECT pg_catalog.to_regclass('docferry.publication') IS NOT NULL;

-- name: remembered_publication
-- A row when the one that is there is the remembered one.
SELECT 1 FROM docferry.publication k JOIN pg_catalog.pg_publication p ON p.pubname = k.name AND p.oid = k.oid
 WHERE k.name = %s;

-- name: replaced_publication
-- A row when the one that is there is not the remembered one.
SELECT 1 FROM docferry.publication k JOIN pg_catalog.pg_publication p ON p.pubname = k.name
 WHERE k.name = %s AND k.oid <> p.oid;

-- name: partly_published
-- Its tables with a row filter or a column list (PostgreSQL 15 and later know these).
SELECT n.nspname || '.' || c.relname
  FROM pg_catalog.pg_publication_rel r
  JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
  JOIN pg_catalog.pg_class c ON c.oid = r.prrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE p.pubname = %s
   AND (pg_catalog.to_jsonb(r) ->> 'prqual' IS NOT NULL OR pg_catalog.to_jsonb(r) ->> 'prattrs' IS NOT NULL)
 ORDER BY 1;

-- name: published_tables
-- Its tables.
SELECT n.nspname || '.' || c.relname
  FROM pg_catalog.pg_publication_rel r
  JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
  JOIN pg_catalog.pg_class c ON c.oid = r.prrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE p.pubname = %s
 ORDER BY 1;

-- name: uncaptured
-- Existing ones of these tables of which the publication leaves out anything. It forgets a table that is dropped, whatever
-- is created under its name afterwards; somebody may have narrowed what it publishes; and what happens in a partition of
-- another published table is published as that one's.
SELECT wanted.shown
  FROM unnest(%s::text[], %s::text[], %s::text[]) AS wanted(shown, schema_name, table_name)
  JOIN pg_catalog.pg_namespace n ON n.nspname = wanted.schema_name
  JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.table_name
 WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_publication_rel r
                     JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
                    WHERE p.pubname = %s AND r.prrelid = c.oid
                      AND p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate AND p.pubviaroot
                      -- PostgreSQL 15 and later know these.
                      AND pg_catalog.to_jsonb(r) ->> 'prqual' IS NULL
                      AND pg_catalog.to_jsonb(r) ->> 'prattrs' IS NULL)
    OR EXISTS (SELECT FROM pg_catalog.pg_partition_ancestors(c.oid) a
                 JOIN pg_catalog.pg_publication_rel r ON r.prrelid = a.relid AND a.relid <> c.oid
                 JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid AND p.pubname = %s)
 ORDER BY wanted.shown;

-- name: slot
-- The slot as the server sees it. `lost`: the server dropped WAL that it needs.
SELECT s.database::text, s.plugin::text, s.active,
       coalesce(s.wal_status, '') = 'lost' OR pg_catalog.to_jsonb(s) ->> 'invalidation_reason' IS NOT NULL,
       s.confirmed_flush_lsn - '0/0'::pg_lsn, s.restart_lsn - '0/0'::pg_lsn,
       CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
            ELSE pg_catalog.pg_current_wal_lsn() END - '0/0'::pg_lsn,
       s.wal_status,
       -- PostgreSQL 17 and later tell why, and let a slot follow to standbys.
       coalesce(pg_catalog.to_jsonb(s) ->> 'invalidation_reason', ''),
       (pg_catalog.to_jsonb(s) ->> 'failover')::boolean,
       s.safe_wal_size
  FROM pg_catalog.pg_replication_slots s
 WHERE s.slot_name = %s;

-- name: waiting
-- How many messages wait in the slot, and whether there is a row change among them: (D)elete, (I)nsert, (T)runcate,
-- (U)pdate.
SELECT count(*), coalesce(bool_or(get_byte(data, 0) IN (68, 73, 84, 85)), false)
  FROM pg_catalog.pg_logical_slot_peek_binary_changes(
           %s, NULL, %s, 'proto_version', '1', 'publication_names', pg_catalog.quote_ident(%s));

-- name: create_slot
-- A logical slot. Creation waits for every transaction in progress; from its position on nothing is missed.
SELECT lsn - '0/0'::pg_lsn FROM pg_catalog.pg_create_logical_replication_slot(%s, 'pgoutput');

-- name: create_failover_slot
-- The same on PostgreSQL 17 and later, where a slot can follow to a standby.
SELECT lsn - '0/0'::pg_lsn
  FROM pg_catalog.pg_create_logical_replication_slot(%s, 'pgoutput', failover => true);

-- name: drop_slot
-- Removes the slot, of this database; fails while a receiver is connected.
SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots
 WHERE slot_name = %s AND database = current_database();

-- name: mark
-- A transaction of our own: when its commit has been confirmed, everything committed before it has been, too.
SELECT pg_catalog.pg_logical_emit_message(true, 'docferry', 'wait') - '0/0'::pg_lsn;

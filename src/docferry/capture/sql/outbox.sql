-- name: schema
-- What the capture modes by triggers keep beside the ledger. Idempotent. `position` is unique and, for changes of one row,
-- in the order of row locks. `columns`: "type-oid name" of each, the oid alone for a generated one. `leads`: the first
-- change of a transaction; the others follow it into the same events.
CREATE SEQUENCE IF NOT EXISTS docferry.positions AS bigint CACHE 1;

-- How many transactions had a change that could not be recorded, ever: a sequence survives their rollback.
CREATE SEQUENCE IF NOT EXISTS docferry.missed AS bigint CACHE 1;

-- Failures of the function in a row, and the time (Unix, ms) before which it is not called again: the circuit breaker.
-- Sequences, because a row would be locked until the application's transaction ends.
CREATE SEQUENCE IF NOT EXISTS docferry.send_failures AS bigint CACHE 1;
CREATE SEQUENCE IF NOT EXISTS docferry.send_after AS bigint CACHE 1;

-- 2 while a drainer sleeps and wants to be woken, else 1.
CREATE SEQUENCE IF NOT EXISTS docferry.sleeping AS bigint CACHE 1;

-- Written by who wants the log on disk without asking for a position in it.
CREATE SEQUENCE IF NOT EXISTS docferry.flushes AS bigint CACHE 1;

CREATE TABLE IF NOT EXISTS docferry.outbox (
    position     bigint PRIMARY KEY,
    epoch        bigint NOT NULL,
    transaction  xid8 NOT NULL,
    op           text NOT NULL,
    table_name   text NOT NULL,
    relation_id  oid NOT NULL,
    columns      text[],
    key_names    text[] NOT NULL,
    new_row      text,
    old_row      text,
    key          text[],
    old_key      text[],
    leads        boolean NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (
    -- Rows come and go: dead ones are cleared early and without pauses, and documents stay beside their row.
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 20000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 20000, toast_tuple_target = 8160,
    toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 2000,
    toast.autovacuum_vacuum_cost_delay = 0
);

CREATE TABLE IF NOT EXISTS docferry.capture (
    only_one     boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    missed_known bigint NOT NULL DEFAULT 0
);
INSERT INTO docferry.capture DEFAULT VALUES ON CONFLICT DO NOTHING;

-- name: exists
-- Whether the outbox is there.
SELECT pg_catalog.to_regclass('docferry.outbox') IS NOT NULL;

-- name: server
-- What the trigger modes need to know of the server and of the role.
SELECT current_setting('server_version_num')::int, current_setting('server_version'), pg_catalog.pg_is_in_recovery(),
       current_user::text, pg_catalog.to_regnamespace('aws_lambda') IS NOT NULL,
       EXISTS (SELECT FROM pg_catalog.pg_available_extensions WHERE name = 'aws_lambda');

-- name: extension
-- The extension that calls Lambda, where the server offers it (Aurora and RDS).
CREATE EXTENSION IF NOT EXISTS aws_lambda CASCADE;

-- name: may_invoke
-- Whether a role may call Lambda.
SELECT pg_catalog.has_schema_privilege(%(role)s, n.oid, 'USAGE')
       AND bool_and(pg_catalog.has_function_privilege(%(role)s, p.oid, 'EXECUTE'))
  FROM pg_catalog.pg_namespace n
  JOIN pg_catalog.pg_proc p ON p.pronamespace = n.oid AND p.proname = 'invoke'
 WHERE n.nspname = 'aws_lambda'
 GROUP BY n.oid;

-- name: role_exists
-- Whether there is such a role.
SELECT pg_catalog.to_regrole(pg_catalog.quote_ident(%s)) IS NOT NULL;

-- name: system_identifier
-- Of the server; not every role may ask on every service.
SELECT system_identifier::text FROM pg_catalog.pg_control_system();

-- name: timeline
-- Of the server; a promotion changes it at once.
SELECT ('x' || substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8))::bit(32)::int;

-- name: current_epoch
-- The epoch in force.
SELECT coalesce(max(epoch), 0) FROM docferry.epochs;

-- name: missed
-- Transactions whose changes could not be recorded: ever, and when `apply` last saw to it.
SELECT CASE WHEN m.is_called THEN m.last_value ELSE 0 END, c.missed_known FROM docferry.missed m, docferry.capture c;

-- name: missed_is_known
-- `apply` makes up for them.
UPDATE docferry.capture SET missed_known = (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM docferry.missed);

-- name: triggers
-- docferry's triggers on tables of ours: table, trigger, its fingerprint, how it fires (one letter for each way, if copies on
-- partitions differ from it), and, where it has no fingerprint because only a table's owner may comment on its triggers, what
-- it is made of: kind, deferred or not, arguments.
WITH RECURSIVE ours AS (
    SELECT t.*
      FROM pg_catalog.pg_trigger t
      JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
      JOIN pg_catalog.pg_namespace pn ON pn.oid = p.pronamespace
     WHERE pn.nspname = 'docferry' AND p.proname = 'sync_to_dynamodb'
), family AS (
    SELECT oid AS original, oid, tgenabled FROM ours WHERE tgparentid = 0
    UNION ALL
    SELECT f.original, o.oid, o.tgenabled FROM ours o JOIN family f ON o.tgparentid = f.oid
), fires AS (
    SELECT original, string_agg(DISTINCT tgenabled::text, '') AS ways FROM family GROUP BY original
)
SELECT n.nspname || '.' || c.relname, t.tgname::text, coalesce(d.mark, ''), f.ways,
       t.tgtype::int, t.tgdeferrable,
       CASE WHEN d.mark IS NULL THEN t.tgargs END
  FROM fires f
  JOIN ours t ON t.oid = f.original
  CROSS JOIN LATERAL (SELECT pg_catalog.obj_description(t.oid, 'pg_trigger') AS mark) AS d
  JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 ORDER BY 1, 2;

-- name: trigger_arguments
-- Arguments as pg_trigger keeps them.
SELECT string_agg(pg_catalog.convert_to(a.argument, pg_catalog.getdatabaseencoding()) || '\x00'::bytea, ''::bytea
                  ORDER BY a.n)
  FROM unnest(%s::text[]) WITH ORDINALITY AS a(argument, n);

-- name: owns_table
-- Whether a table is ours to comment on its triggers, alter and drop them.
SELECT pg_catalog.pg_has_role(c.relowner, 'USAGE')
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %s AND c.relname = %s;

-- name: partition_owner
-- The owner of a partitioned table, if it is somebody else. Whoever attaches a partition makes the triggers of the parent
-- on it, and needs the right to the function for that.
SELECT pg_catalog.pg_get_userbyid(c.relowner)::text
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_proc p ON p.oid = 'docferry.sync_to_dynamodb()'::regprocedure
 WHERE n.nspname = %s AND c.relname = %s AND c.relkind = 'p'
   AND NOT pg_catalog.has_function_privilege(c.relowner, p.oid, 'EXECUTE');

-- name: functions
-- docferry's functions with their fingerprints and owners.
SELECT p.proname::text, coalesce(pg_catalog.obj_description(p.oid, 'pg_proc'), ''),
       pg_catalog.pg_get_userbyid(p.proowner)::text
  FROM pg_catalog.pg_proc p
  JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
 WHERE n.nspname = 'docferry' AND p.proname IN ('sync_to_dynamodb', 'send_to_lambda', 'send_event');

-- name: relabel
-- A table that was renamed: what its triggers wrote under the name that they were made with.
UPDATE docferry.outbox SET table_name = %(table)s
 WHERE table_name <> %(table)s
   AND relation_id IN (SELECT pg_catalog.to_regclass(%(quoted)s)::oid
                        UNION SELECT relid FROM pg_catalog.pg_partition_tree(pg_catalog.to_regclass(%(quoted)s)));

-- name: identifying
-- The columns of a table's primary key, and of the index chosen for its replica identity, as they are called now.
SELECT ARRAY(SELECT a.attname::text
               FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, ordinal)
               JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
              WHERE k.ordinal <= i.indnkeyatts
              ORDER BY k.ordinal)
  FROM pg_catalog.pg_index i
 WHERE i.indrelid = %s AND (i.indisreplident OR i.indisprimary)
 ORDER BY i.indisprimary DESC;

-- name: existing
-- Those of these tables that exist.
SELECT wanted.shown
  FROM unnest(%s::text[], %s::text[], %s::text[]) AS wanted(shown, schema_name, table_name)
  JOIN pg_catalog.pg_namespace n ON n.nspname = wanted.schema_name
  JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.table_name
 ORDER BY wanted.shown;

-- name: state
-- Where draining stands: the oldest change that waits (none: behind the last one), the last position, how many wait about,
-- their bytes on disk, whether somebody drains, the age of the oldest in seconds, whether the circuit breaker is open.
SELECT coalesce((SELECT min(position) FROM docferry.outbox), p.last_value + 1), p.last_value,
       (SELECT count(*) FROM (SELECT FROM docferry.outbox LIMIT 100000) AS waiting),
       pg_catalog.pg_table_size('docferry.outbox'),
       EXISTS (SELECT FROM pg_catalog.pg_locks l
                WHERE l.locktype = 'advisory' AND l.classid = 1685021542 AND l.objid = 6 AND l.granted
                  AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())),
       coalesce((SELECT extract(epoch FROM clock_timestamp() - recorded_at)::float8
                   FROM docferry.outbox ORDER BY position LIMIT 1), 0),
       (SELECT last_value FROM docferry.send_after) > extract(epoch FROM clock_timestamp()) * 1000
  FROM docferry.positions p;

-- name: idle
-- Whether no change waits.
SELECT NOT EXISTS (SELECT FROM docferry.outbox);

-- name: mark
-- A position above every change that is committed.
SELECT pg_catalog.nextval('docferry.positions');

-- name: draining
-- Says that somebody drains, for as long as the connection lives.
SELECT pg_catalog.pg_try_advisory_lock_shared(1685021542, 6);

-- name: may_notify
-- Whether writers may notify: whoever does cannot prepare his transaction.
SELECT current_setting('max_prepared_transactions') = '0';

-- name: claim
-- Changes that nobody else is at, oldest first. The rows stay locked until the claim ends, by deletion or by rollback.
SELECT position, epoch, op, table_name, relation_id, columns, key_names, new_row, old_row, key, old_key, recorded_at
  FROM docferry.outbox
 WHERE position <> ALL (%s)
 ORDER BY position
   FOR UPDATE SKIP LOCKED;

-- name: release
-- What is durable leaves the outbox.
DELETE FROM docferry.outbox WHERE position = ANY (%s);

-- name: release_unlocked
-- The same without the locks of a claim. What is locked is in somebody's claim: his to delete, and not to be waited for,
-- because he may wait for one of ours.
DELETE FROM docferry.outbox
 WHERE position = ANY (ARRAY(SELECT position FROM docferry.outbox WHERE position = ANY (%s) FOR UPDATE SKIP LOCKED));

-- name: going_to_sleep
-- From now on a writer wakes us.
SELECT pg_catalog.setval('docferry.sleeping', 2);

-- name: awake
-- Writers need not wake anybody.
SELECT pg_catalog.setval('docferry.sleeping', 1);

-- name: transaction_status
-- What became of a transaction: committed, aborted, in progress, or NULL when it is too old to be known.
SELECT pg_catalog.pg_xact_status(%s::text::xid8);

-- name: rolled_back
-- Those of these subtransactions that were rolled back.
SELECT given.number FROM unnest(%s::bigint[]) AS given(number)
 WHERE pg_catalog.pg_xact_status(given.number::text::xid8) = 'aborted';

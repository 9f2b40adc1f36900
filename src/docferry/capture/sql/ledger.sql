-- name: schema
-- Everything docferry remembers in the source. Idempotent. A schema that is there may have been made for a role that may
-- not make any: IF NOT EXISTS would ask for that right all the same.
DO $$ BEGIN IF pg_catalog.to_regnamespace('docferry') IS NULL THEN CREATE SCHEMA docferry; END IF; END $$;

CREATE TABLE IF NOT EXISTS docferry.epochs (
    epoch             bigint PRIMARY KEY,
    system_identifier text NOT NULL,
    timeline          integer NOT NULL,
    capture           text NOT NULL,
    started_at        timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS docferry.mirrors (
    table_name   text PRIMARY KEY,
    collection   text NOT NULL,
    fingerprint  text NOT NULL,
    attributes   text[] NOT NULL DEFAULT '{}',
    column_names text[] NOT NULL DEFAULT '{}',
    column_types text[] NOT NULL DEFAULT '{}',
    layout       text NOT NULL DEFAULT '',
    floor        numeric NOT NULL DEFAULT 0,
    created_at   timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS docferry.backfills (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_name    text NOT NULL REFERENCES docferry.mirrors ON DELETE CASCADE,
    state         text NOT NULL CHECK (state IN ('requested', 'running', 'done')),
    reason        text NOT NULL,
    version       numeric,
    done_key      text[],
    rows_done     bigint NOT NULL DEFAULT 0,
    rows_estimate bigint,
    requested_at  timestamptz NOT NULL DEFAULT now(),
    started_at    timestamptz,
    updated_at    timestamptz,
    finished_at   timestamptz
);

CREATE UNIQUE INDEX IF NOT EXISTS backfills_one_unfinished ON docferry.backfills (table_name) WHERE state <> 'done';

CREATE TABLE IF NOT EXISTS docferry.dead_letters (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_name text NOT NULL,
    key        jsonb NOT NULL,
    version    numeric NOT NULL,
    op         text NOT NULL,
    cause      text NOT NULL,
    problem    text NOT NULL,
    limit_text text NOT NULL DEFAULT '',
    remedy     text NOT NULL DEFAULT '',
    attempts   integer NOT NULL DEFAULT 1,
    first_at   timestamptz NOT NULL DEFAULT now(),
    last_at    timestamptz NOT NULL DEFAULT now()
);

-- A key may be longer than an index entry can be.
CREATE UNIQUE INDEX IF NOT EXISTS dead_letters_one_a_key ON docferry.dead_letters (table_name, md5(key::text));

-- What became of dead letters that are gone, and through whom.
CREATE TABLE IF NOT EXISTS docferry.dead_letter_audit (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         timestamptz NOT NULL DEFAULT now(),
    os_user    text NOT NULL,
    db_user    text NOT NULL DEFAULT session_user,
    action     text NOT NULL,
    outcome    text NOT NULL,
    letter_id  bigint NOT NULL,
    table_name text NOT NULL,
    key        jsonb NOT NULL,
    version    numeric NOT NULL,
    op         text NOT NULL,
    cause      text NOT NULL,
    attempts   integer NOT NULL,
    first_at   timestamptz NOT NULL
);

CREATE INDEX IF NOT EXISTS dead_letter_audit_at ON docferry.dead_letter_audit (at);

CREATE TABLE IF NOT EXISTS docferry.workers (
    name       text PRIMARY KEY,
    state      jsonb NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS docferry.verifications (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_name   text NOT NULL REFERENCES docferry.mirrors ON DELETE CASCADE,
    run          text NOT NULL,
    epoch        bigint NOT NULL,
    position     numeric NOT NULL,
    phase        text NOT NULL DEFAULT 'rows' CHECK (phase IN ('rows', 'items', 'done')),
    done_key     text[],
    counts       jsonb NOT NULL DEFAULT '{}',
    output       text,
    output_bytes bigint NOT NULL DEFAULT 0,
    clean        boolean,
    started_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    finished_at  timestamptz,
    grounds      text NOT NULL DEFAULT ''
);

-- Up to where docferry may have confirmed each slot: one that stands further ahead was moved by somebody else.
CREATE TABLE IF NOT EXISTS docferry.slots (
    slot_name   text PRIMARY KEY,
    upto        pg_lsn NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now()
);

-- name: exists
-- Whether `apply` has been run.
SELECT pg_catalog.to_regclass('docferry.mirrors') IS NOT NULL;

-- name: drop_schema
-- Everything docferry remembers, gone.
DROP SCHEMA IF EXISTS docferry CASCADE;

-- name: current_epoch
-- The epoch in force.
SELECT epoch, system_identifier, timeline, capture FROM docferry.epochs ORDER BY epoch DESC LIMIT 1;

-- name: begin_epoch
-- The next epoch.
INSERT INTO docferry.epochs (epoch, system_identifier, timeline, capture)
SELECT greatest(coalesce(max(epoch), 0) + 1, %s), %s, %s, %s FROM docferry.epochs
RETURNING epoch;

-- name: captures
-- The capture modes that were ever in force.
SELECT DISTINCT capture FROM docferry.epochs;

-- name: mirrors
-- All registered mirrors.
SELECT table_name, collection, fingerprint, attributes, column_names, column_types, layout, floor
  FROM docferry.mirrors ORDER BY table_name;

-- name: register_mirror
-- Insert or update; attribute names are only ever added, the floor stays.
INSERT INTO docferry.mirrors AS m (table_name, collection, fingerprint, attributes, column_names, column_types,
                                   layout)
VALUES (%s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (table_name) DO UPDATE
   SET collection = excluded.collection,
       fingerprint = excluded.fingerprint,
       attributes = ARRAY(SELECT DISTINCT unnest(m.attributes || excluded.attributes) ORDER BY 1),
       column_names = excluded.column_names,
       column_types = excluded.column_types,
       layout = excluded.layout;

-- name: remove_mirror
-- Forgets a mirror; its backfills go with it.
DELETE FROM docferry.mirrors WHERE table_name = %s;

-- name: remove_dead_letters_of
-- Forgets the dead letters of a mirror that is removed; the audit tells of them.
WITH gone AS (DELETE FROM docferry.dead_letters WHERE table_name = %(table)s RETURNING *)
INSERT INTO docferry.dead_letter_audit (os_user, action, outcome, letter_id, table_name, key, version, op, cause,
                                        attempts, first_at)
SELECT %(who)s, 'discarded', 'mirror-removed', id, table_name, key, version, op, cause, attempts, first_at FROM gone;

-- name: remember_columns
-- Records a schema change.
UPDATE docferry.mirrors
   SET column_names = %s,
       column_types = %s,
       layout = %s,
       attributes = ARRAY(SELECT DISTINCT unnest(attributes || %s::text[]) ORDER BY 1)
 WHERE table_name = %s
RETURNING attributes;

-- name: raise_floor
-- Records a TRUNCATE.
UPDATE docferry.mirrors SET floor = greatest(floor, %s) WHERE table_name = %s;

-- name: floor
-- The newest TRUNCATE.
SELECT floor FROM docferry.mirrors WHERE table_name = %s;

-- name: backfills
-- The newest backfill of each table.
SELECT DISTINCT ON (table_name) id, table_name, state, reason, version, done_key, rows_done, rows_estimate,
       requested_at, started_at, updated_at, finished_at
  FROM docferry.backfills
 ORDER BY table_name, id DESC;

-- name: unfinished_backfills
-- Backfills to be done, oldest first.
SELECT id, table_name, state, reason, version, done_key, rows_done, rows_estimate,
       requested_at, started_at, updated_at, finished_at
  FROM docferry.backfills
 WHERE state <> 'done'
 ORDER BY id;

-- name: request_backfill
-- One unfinished backfill a table.
INSERT INTO docferry.backfills (table_name, state, reason) VALUES (%s, 'requested', %s)
ON CONFLICT (table_name) WHERE state <> 'done' DO NOTHING;

-- name: restart_backfill
-- An unfinished backfill starts over under a new identity and reason: whoever runs the old one notices.
DELETE FROM docferry.backfills WHERE table_name = %s AND state <> 'done';

-- name: start_backfill
-- L0 has been taken.
UPDATE docferry.backfills
   SET state = 'running', version = %s, rows_estimate = %s, rows_done = 0, done_key = NULL,
       started_at = now(), updated_at = now()
 WHERE id = %s AND state <> 'done'
RETURNING id, table_name, state, reason, version, done_key, rows_done, rows_estimate,
          requested_at, started_at, updated_at, finished_at;

-- name: advance_backfill
-- A durable page.
UPDATE docferry.backfills SET done_key = %s, rows_done = %s, updated_at = now()
 WHERE id = %s AND state = 'running'
RETURNING id;

-- name: finish_backfill
-- All pages are durable.
UPDATE docferry.backfills SET state = 'done', rows_done = %s, updated_at = now(), finished_at = now()
 WHERE id = %s AND state = 'running'
RETURNING id;

-- name: start_position
-- A position above every earlier record and strictly below that of any later one. The record's own end is where the next
-- record may begin, so one less is below it.
SELECT pg_catalog.pg_logical_emit_message(false, 'docferry', 'backfill') - '0/0'::pg_lsn - 1;

-- name: start_position_by_triggers
-- The same where positions come from a sequence.
SELECT pg_catalog.nextval('docferry.positions');

-- name: flush_positions
-- A commit that writes to the log, which flushes it up to the sequence's own record.
SELECT pg_catalog.setval('docferry.flushes', 1);

-- name: in_progress
-- Those of the given transactions that have not ended visibly, with who holds them.
SELECT x.xid::text, coalesce(a.pid::text, ''), coalesce(p.gid, ''), coalesce(a.application_name, ''),
       coalesce(a.datname::text, p.database::text, ''), coalesce(a.xact_start, p.prepared)::text
  FROM unnest(%s::text[]::xid8[]) AS x(xid)
  LEFT JOIN pg_catalog.pg_stat_activity a ON a.backend_xid::text = (x.xid::text::numeric %% 4294967296)::text
  LEFT JOIN pg_catalog.pg_prepared_xacts p ON p.transaction::text = (x.xid::text::numeric %% 4294967296)::text
 WHERE NOT pg_catalog.pg_visible_in_snapshot(x.xid, pg_catalog.pg_current_snapshot())
   AND coalesce(a.datname::text, p.database::text, current_database()::text) = current_database()::text;

-- name: try_lock
-- An advisory lock of docferry's own class for as long as the connection lives.
SELECT pg_catalog.pg_try_advisory_lock(1685021542, %s);

-- name: lock_shared
-- The same, shared; waits.
SELECT pg_catalog.pg_advisory_lock_shared(1685021542, %s);

-- name: unlock
-- All of this session's.
SELECT pg_catalog.pg_advisory_unlock_all();

-- name: table_lock_number
-- A lock number for a table, away from the fixed ones.
SELECT 1000 + (pg_catalog.hashtext(%s) & 1073741823);

-- name: holder
-- Who holds a lock.
SELECT a.pid, a.application_name, coalesce(host(a.client_addr), 'local socket'), a.backend_start::text
  FROM pg_catalog.pg_locks l
  JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
 WHERE l.locktype = 'advisory' AND l.classid = 1685021542 AND l.objid = %s AND l.granted
   AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database());

-- name: session
-- Which of the server's sessions this is.
SELECT a.pid, a.backend_start::text FROM pg_catalog.pg_stat_activity a WHERE a.pid = pg_catalog.pg_backend_pid();

-- name: end_session
-- Have it end, if we may.
SELECT pg_catalog.pg_terminate_backend(a.pid)
  FROM pg_catalog.pg_stat_activity a
 WHERE a.pid = %s AND a.backend_start::text = %s;

-- name: heartbeat
-- What the worker says of itself. The commit also moves an idle slot (R7).
WITH moved AS (SELECT pg_catalog.pg_logical_emit_message(true, 'docferry', 'heartbeat'))
INSERT INTO docferry.workers (name, state) SELECT %s, %s FROM moved
ON CONFLICT (name) DO UPDATE SET state = excluded.state, updated_at = now(),
   started_at = CASE WHEN docferry.workers.state->>'run' IS DISTINCT FROM excluded.state->>'run'
                     THEN now() ELSE docferry.workers.started_at END;

-- name: heartbeat_by_triggers
-- The same without a position in the log; and workers that have been silent for a day are forgotten.
WITH old AS (DELETE FROM docferry.workers WHERE updated_at < now() - interval '1 day' AND name <> %(name)s)
INSERT INTO docferry.workers (name, state) VALUES (%(name)s, %(state)s)
ON CONFLICT (name) DO UPDATE SET state = excluded.state, updated_at = now(),
   started_at = CASE WHEN docferry.workers.state->>'run' IS DISTINCT FROM excluded.state->>'run'
                     THEN now() ELSE docferry.workers.started_at END;

-- name: workers
-- The workers' last words.
SELECT name, state, started_at, updated_at, extract(epoch FROM now() - updated_at)::float8 FROM docferry.workers
 ORDER BY updated_at DESC, name;

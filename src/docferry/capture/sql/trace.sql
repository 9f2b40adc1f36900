-- name: canonical
-- The text of a key as PostgreSQL writes it.
SELECT ARRAY[{values}];

-- name: last_change
-- Which transaction wrote the row as it is, when it committed where the server keeps that, and the next transaction to
-- be, which tells how the 32 bits of the first go on.
SELECT r.xmin::text::bigint,
       CASE WHEN current_setting('track_commit_timestamp')::boolean THEN pg_catalog.pg_xact_commit_timestamp(r.xmin) END,
       pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::bigint
  FROM {table} AS r
 WHERE ({key}) = ({values});

-- name: timestamps
-- Whether the server keeps the time of commits.
SELECT current_setting('track_commit_timestamp')::boolean;

-- name: is_behind
-- Whether a row's key comes after another one, in the order in which a backfill goes.
SELECT ({key}) > ({other}) FROM {table} AS r WHERE ({key}) = ({values});

-- name: patience
-- Give up after so long.
SELECT set_config('statement_timeout', %s, true);

-- name: in_outbox
-- Changes of a table that wait and may be about a key, oldest first. What may not: a row whose text has not this in it.
SELECT position, epoch, op, relation_id, columns, key_names, new_row, old_row, key, old_key, recorded_at
  FROM docferry.outbox
 WHERE table_name = %(table)s
   AND (%(needles)s::text[] IS NULL OR op = 'TRUNCATE'
        OR NOT EXISTS (SELECT FROM unnest(%(needles)s::text[]) AS n
                        WHERE strpos(concat_ws(' ', new_row, old_row, key::text, old_key::text), n) = 0))
 ORDER BY position
 LIMIT %(limit)s;

-- name: in_slot
-- What waits in a slot that nobody reads; it stays there.
SELECT data
  FROM pg_catalog.pg_logical_slot_peek_binary_changes(
           %(slot)s, NULL, %(limit)s, 'proto_version', '1',
           'publication_names', pg_catalog.quote_ident(%(publication)s));

-- name: by_index
-- Everything here finds its rows by the key's index. Statistics that are old or missing must not talk the planner into
-- reading the table for each page.
SELECT set_config('enable_seqscan', 'off', false), set_config('enable_hashjoin', 'off', false),
       set_config('enable_mergejoin', 'off', false), set_config('jit', 'off', false);

-- name: by_key
-- Current rows by key (R5), with the snapshot that they were read in and the end of the log then: one row for each row
-- found, or exactly one with found = NULL.
SELECT s.snapshot, s.log_end, t.*
  FROM (SELECT pg_catalog.pg_current_snapshot()::text AS snapshot,
               pg_catalog.pg_current_wal_insert_lsn() - '0/0'::pg_lsn AS log_end) AS s
  LEFT JOIN LATERAL (SELECT true AS found, {columns} FROM {table} AS r WHERE {match}) AS t ON true;

-- name: by_key_without_log
-- The same where the server does not tell positions in its log.
SELECT s.snapshot, s.log_end, t.*
  FROM (SELECT pg_catalog.pg_current_snapshot()::text AS snapshot, 0 AS log_end) AS s
  LEFT JOIN LATERAL (SELECT true AS found, {columns} FROM {table} AS r WHERE {match}) AS t ON true;

-- name: log_end
-- Where the log ends now.
SELECT pg_catalog.pg_current_wal_insert_lsn() - '0/0'::pg_lsn;

-- name: is_flushed
-- Whether the log is on disk up to there.
SELECT pg_catalog.pg_current_wal_flush_lsn() - '0/0'::pg_lsn >= %s;

-- name: flush
-- A commit of our own, which flushes the log up to it.
SELECT pg_catalog.pg_logical_emit_message(true, 'docferry', 'flush');

-- name: flush_without_log
-- The same, by a commit that writes to the log.
SELECT pg_catalog.setval('docferry.flushes', 1);

-- name: boundary
-- The key so many rows further on, from the key's index alone.
SELECT {key} FROM {table} AS r {after} ORDER BY {key} OFFSET %s LIMIT 1;

-- name: page
-- A page of rows in key order.
SELECT r.* FROM {table} AS r {range} ORDER BY {key};

-- name: sample
-- Keys from random places: all of some blocks, of which so many are taken.
SELECT {key} FROM {table} AS r TABLESAMPLE SYSTEM (%s) ORDER BY random() LIMIT %s;

-- name: estimate
-- The planner's idea of the number of rows; works for partitioned tables.
EXPLAIN (FORMAT JSON) SELECT FROM {table};

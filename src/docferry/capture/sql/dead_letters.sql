-- name: add
-- One dead letter a key: the newest version that failed.
INSERT INTO docferry.dead_letters AS d (table_name, key, version, op, cause, problem, limit_text, remedy)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (table_name, md5(key::text)) DO UPDATE
   SET version = excluded.version, op = excluded.op, cause = excluded.cause, problem = excluded.problem,
       limit_text = excluded.limit_text, remedy = excluded.remedy, attempts = d.attempts + 1, last_at = now()
 WHERE excluded.version >= d.version;

-- name: groups
-- Counted by table and cause.
SELECT table_name, cause, count(*), min(first_at), max(last_at),
       (array_agg(problem ORDER BY last_at DESC, id DESC))[1], (array_agg(remedy ORDER BY last_at DESC, id DESC))[1]
  FROM docferry.dead_letters
 GROUP BY table_name, cause
 ORDER BY count(*) DESC, table_name, cause;

-- name: find
-- Those that match.
SELECT id, table_name, key, version, op, cause, problem, limit_text, remedy, attempts, first_at, last_at
  FROM docferry.dead_letters
 WHERE (%(table)s::text IS NULL OR table_name = %(table)s)
   AND (%(cause)s::text IS NULL OR cause = %(cause)s)
   AND (%(ids)s::bigint[] IS NULL OR id = ANY(%(ids)s::bigint[]))
   AND (%(keys)s::text[] IS NULL
        OR md5(key::text) IN (SELECT md5(k::jsonb::text) FROM unnest(%(keys)s::text[]) AS k))
   AND id > %(after)s
 ORDER BY id
 LIMIT %(limit)s;

-- name: count
-- How many by table.
SELECT table_name, count(*) FROM docferry.dead_letters GROUP BY table_name;

-- name: remove
-- Those that have not failed again since, and in the same moment the audit's entries of them. How many went.
WITH given AS (
    SELECT * FROM unnest(%(ids)s::bigint[], %(attempts)s::integer[], %(outcomes)s::text[]) AS g(id, attempts, outcome)
), gone AS (
    DELETE FROM docferry.dead_letters d USING given g WHERE d.id = g.id AND d.attempts = g.attempts
    RETURNING d.*, g.outcome
), told AS (
    INSERT INTO docferry.dead_letter_audit (os_user, action, outcome, letter_id, table_name, key, version, op, cause,
                                            attempts, first_at)
    SELECT %(who)s, %(action)s, outcome, id, table_name, key, version, op, cause, attempts, first_at
      FROM gone ORDER BY id
), old AS (
    DELETE FROM docferry.dead_letter_audit WHERE at < now() - make_interval(secs => %(kept)s)
)
SELECT count(*) FROM gone;

-- name: tell
-- The audit's entry of a dead letter that is kept elsewhere.
INSERT INTO docferry.dead_letter_audit (os_user, action, outcome, letter_id, table_name, key, version, op, cause,
                                        attempts, first_at)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s);

-- name: forget
-- Entries of the audit that have stood long enough.
DELETE FROM docferry.dead_letter_audit WHERE at < now() - make_interval(secs => %s);

-- name: audit
-- The newest entries, from before an id.
SELECT id, at, os_user, db_user, action, outcome, letter_id, table_name, key, version, op, cause, attempts, first_at
  FROM docferry.dead_letter_audit
 WHERE (%(table)s::text IS NULL OR table_name = %(table)s)
   AND (%(before)s::bigint IS NULL OR id < %(before)s)
 ORDER BY id DESC
 LIMIT %(limit)s;

-- name: check
-- Whether we may add some, and whether the server is a standby, which takes none.
SELECT pg_catalog.has_table_privilege('docferry.dead_letters', 'INSERT')
         AND pg_catalog.has_table_privilege('docferry.dead_letters', 'UPDATE'),
       pg_catalog.pg_is_in_recovery();

-- name: exists
-- Whether the ledger knows of verifications: one that was set up by an earlier docferry does not.
SELECT pg_catalog.to_regclass('docferry.verifications') IS NOT NULL;

-- name: start
-- A new one takes the place of an unfinished one, of the worker or of people.
WITH old AS (DELETE FROM docferry.verifications
              WHERE table_name = %(table)s AND finished_at IS NULL AND (run = 'reconcile') = (%(run)s = 'reconcile'))
INSERT INTO docferry.verifications (table_name, run, epoch, position, output, grounds)
VALUES (%(table)s, %(run)s, %(epoch)s, %(position)s, %(output)s, %(grounds)s)
RETURNING id, table_name, run, epoch, position, phase, done_key, counts, output, output_bytes, clean, started_at,
          finished_at, grounds;

-- name: advance
-- So much has been compared.
UPDATE docferry.verifications
   SET phase = %(phase)s, done_key = %(done_key)s, counts = %(counts)s, output_bytes = %(output_bytes)s,
       updated_at = now()
 WHERE id = %(id)s;

-- name: finish
-- All has been compared. What came before is not asked for any more, except the last one that found everything identical.
WITH done AS (
    UPDATE docferry.verifications
       SET phase = 'done', done_key = NULL, counts = %(counts)s, clean = %(clean)s, updated_at = now(),
           finished_at = now()
     WHERE id = %(id)s
    RETURNING id, table_name, clean)
DELETE FROM docferry.verifications v
 USING done
 WHERE v.table_name = done.table_name AND v.id < done.id AND v.finished_at IS NOT NULL
   AND (done.clean OR v.id IS DISTINCT FROM (SELECT max(c.id) FROM docferry.verifications c
                                              WHERE c.table_name = done.table_name AND c.clean));

-- name: records
-- All that are kept, the newest of each table first.
SELECT id, table_name, run, epoch, position, phase, done_key, counts, output, output_bytes, clean, started_at, finished_at,
       grounds
  FROM docferry.verifications
 ORDER BY table_name, id DESC;

-- name: in_progress
-- Those of the given transactions of this database that have not ended visibly, and what they do: `standby`, they have
-- committed and wait for a synchronous standby; `idle`, they wait for their client; `hidden`, the server does not tell.
SELECT x.xid::text,
       CASE WHEN a.wait_event = 'SyncRep' THEN 'standby'
            WHEN p.gid IS NOT NULL
             AND EXISTS (SELECT FROM pg_catalog.pg_stat_activity s WHERE s.wait_event = 'SyncRep') THEN 'standby'
            WHEN a.state LIKE 'idle in transaction%%' THEN 'idle'
            WHEN a.state IS NULL AND p.gid IS NULL AND current_setting('synchronous_standby_names') <> '' THEN 'hidden'
            ELSE 'busy' END
  FROM unnest(%s::text[]::xid8[]) AS x(xid)
  LEFT JOIN pg_catalog.pg_stat_activity a ON a.backend_xid::text = (x.xid::text::numeric %% 4294967296)::text
  LEFT JOIN pg_catalog.pg_prepared_xacts p ON p.transaction::text = (x.xid::text::numeric %% 4294967296)::text
 WHERE NOT pg_catalog.pg_visible_in_snapshot(x.xid, pg_catalog.pg_current_snapshot())
   AND coalesce(a.datname::text, p.database::text, current_database()::text) = current_database()::text;

-- name: is_kept
-- Whether the ledger keeps limits of slots; one made by an earlier docferry does not.
SELECT pg_catalog.to_regclass('docferry.slots') IS NOT NULL;

-- name: limit
-- The position up to which docferry may have confirmed the slot.
SELECT upto - '0/0'::pg_lsn FROM docferry.slots WHERE slot_name = %s;

-- name: raise_limit
-- The same, raised, before anything beyond it is confirmed. Never lowered: a worker that has just lost the slot to another
-- one, and does not know it yet, would make the other's confirmations look like somebody's doing.
INSERT INTO docferry.slots AS s (slot_name, upto) VALUES (%s, '0/0'::pg_lsn + %s::numeric)
ON CONFLICT (slot_name) DO UPDATE SET upto = greatest(s.upto, excluded.upto), recorded_at = now();

-- name: lower_limit
-- To the exact position, if nobody else has recorded one since.
UPDATE docferry.slots SET upto = '0/0'::pg_lsn + %s::numeric, recorded_at = now()
 WHERE slot_name = %s AND upto = '0/0'::pg_lsn + %s::numeric;

-- name: forget_limit
-- The slot is about to be made anew.
DELETE FROM docferry.slots WHERE slot_name = %s;

-- name: local_commits
-- Of this session: on disk here, without waiting for a standby that is away. A limit guards against this server's crash.
SET synchronous_commit = local;

-- name: confirmed
-- Where the slot stands.
SELECT confirmed_flush_lsn - '0/0'::pg_lsn FROM pg_catalog.pg_replication_slots WHERE slot_name = %s;

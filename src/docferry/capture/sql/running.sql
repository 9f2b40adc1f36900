-- name: end_a_transaction
-- One with a number of its own, ended with this statement. It writes nothing to the log that anybody waits for.
SELECT pg_catalog.pg_current_xact_id();

-- name: snapshot
-- Transactions in progress: prepared ones too, and one whose commit is in the log already, until others see it.
SELECT pg_catalog.pg_current_snapshot()::text;

-- name: settings
-- What bounds the log that slots keep, as far as this version has it and the role may see it. Sizes in MB, -1 without
-- limit; times in seconds.
SELECT s.name, s.setting::text, coalesce(s.unit, '')
  FROM pg_catalog.pg_settings s
 WHERE s.name IN ('max_slot_wal_keep_size', 'wal_keep_size', 'idle_replication_slot_timeout',
                  'synchronized_standby_slots', 'data_directory');

-- name: slot
-- Of our slot: what the server may still write before it drops what the slot needs, and since when nobody has read it.
SELECT s.safe_wal_size, coalesce(s.wal_status, ''), s.active, (pg_catalog.to_jsonb(s) ->> 'failover')::boolean,
       extract(epoch FROM now() - (pg_catalog.to_jsonb(s) ->> 'inactive_since')::timestamptz)::float8,
       CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
            ELSE pg_catalog.pg_current_wal_lsn() END - s.restart_lsn
  FROM pg_catalog.pg_replication_slots s
 WHERE s.slot_name = %s;

-- name: wal_on_disk
-- Bytes of pg_wal; needs pg_monitor.
SELECT sum(size)::bigint FROM pg_catalog.pg_ls_waldir();

-- name: standbys
-- Receivers of the log that are no logical slot's: standbys, base backups aside.
SELECT count(*) FROM pg_catalog.pg_stat_replication r
 WHERE coalesce(r.application_name, '') <> 'pg_basebackup'
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots s
                    WHERE s.active_pid = r.pid AND s.slot_type = 'logical');

-- name: synchronising
-- Standbys that synchronise slots keep an ordinary connection for it, of this name or that of their receiver. NULL: the
-- role may not see other sessions' names.
SELECT CASE WHEN pg_catalog.pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')
            THEN (SELECT count(*) FROM pg_catalog.pg_stat_activity a
                   WHERE a.backend_type = 'client backend'
                     AND (a.application_name LIKE '%%slotsync worker'
                          OR a.application_name IN (SELECT r.application_name FROM pg_catalog.pg_stat_replication r
                                                     WHERE r.application_name <> ''))) END;

-- name: unready_standby_slots
-- Those of the slots that logical streams wait for which nobody reads.
SELECT wanted.name
  FROM unnest(%s::text[]) AS wanted(name)
 WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots s
                    WHERE s.slot_name = wanted.name AND s.slot_type = 'physical' AND s.active)
 ORDER BY 1;

-- name: addresses
-- Where the server is, seen from itself, and its process that serves us. NULL: over a local socket.
SELECT host(pg_catalog.inet_server_addr()), pg_catalog.pg_backend_pid();

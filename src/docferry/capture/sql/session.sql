-- name: text_form
-- One text form for every value (docs/types.md depends on it), and no limits or defaults of the server's or the role's.
SELECT set_config('datestyle', 'ISO, MDY', false),
       set_config('intervalstyle', 'iso_8601', false),
       set_config('timezone', 'UTC', false),
       set_config('extra_float_digits', '1', false),
       set_config('bytea_output', 'hex', false),
       set_config('lc_monetary', 'C', false),
       set_config('xmloption', 'content', false),
       set_config('search_path', 'pg_catalog', false),
       set_config('idle_in_transaction_session_timeout', '0', false),
       set_config('idle_session_timeout', '0', false),
       set_config('statement_timeout', '0', false),
       set_config('lock_timeout', '0', false),
       -- What was answered as committed must survive a crash, whatever the role's default is (R3).
       set_config('synchronous_commit', 'on', false),
       set_config('default_transaction_read_only', 'off', false),
       -- Who shares work with others must see what they have done.
       set_config('default_transaction_isolation', 'read committed', false),
       -- Since PostgreSQL 17; a setting that a server does not know cannot be set.
       CASE WHEN current_setting('transaction_timeout', true) IS NOT NULL
            THEN set_config('transaction_timeout', '0', false) END,
       -- A client that vanished must not hold its locks for hours.
       set_config('tcp_keepalives_idle', '30', false),
       set_config('tcp_keepalives_interval', '10', false),
       set_config('tcp_keepalives_count', '3', false),
       set_config('row_security', 'off', false);

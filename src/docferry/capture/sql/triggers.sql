-- name: sync
-- The trigger function of the capture modes by triggers: writes the change into the outbox, in the same transaction.
--
-- Arguments of the trigger: the table's configured name, then its key columns. Rows go as row literals: the exact text of
-- every column under the settings below (R9), written by format(), because a cast to text may be one that the table's owner
-- made. Any failure is caught (R7), at the price of one subtransaction for the first change of a transaction and for large
-- rows; once one change has been recorded, nothing that can fail is left but storage, which would fail the application's own
-- statement as well. What could not be recorded is counted in a sequence, which survives a rollback, and makes docferry
-- populate the collections again. A serialization failure is the application's to see: it has to repeat the transaction.
--
-- By its key alone, to be read again (R5), goes a row that is large, or in doubt: because of a nested statement, or because
-- the table has a layout that the transaction's snapshot does not show.
CREATE OR REPLACE FUNCTION docferry.sync_to_dynamodb() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET datestyle = 'ISO, MDY' SET intervalstyle = 'iso_8601' SET timezone = 'UTC' SET extra_float_digits = '1'
SET bytea_output = 'hex' SET lc_monetary = 'C'
AS $docferry$
DECLARE
    mine constant text := pg_current_xact_id()::text;
    known constant text := current_setting('docferry.recording', true);
    -- A key that changed says so through a trigger of its own, whose WHEN is cheap; only then the old row is needed.
    with_old constant boolean := TG_OP = 'DELETE' OR TG_NAME = 'sync_key_change_to_dynamodb';
    -- As stored, documents compressed.
    size bigint := 0;
    nested boolean := false;
    note text;
    unproven boolean := false;
    as_shown boolean;
    by_key boolean;
    key_of text;
    key_names text[] := TG_ARGV[1:];
    new_text text;
    old_text text;
    key_text text[];
    old_key_text text[];
BEGIN
    IF TG_LEVEL = 'ROW' THEN
        IF TG_NAME = 'sync_nested_to_dynamodb' THEN
            note := E'\n' || CASE WHEN TG_OP = 'DELETE' THEN '-' ELSE '+' END || TG_ARGV[0] || E'\n';
            IF strpos(concat(current_setting('docferry.nested', true)), note) = 0 THEN
                PERFORM set_config('docferry.nested', concat(current_setting('docferry.nested', true), note), true);
            END IF;
            RETURN NULL;
        END IF;
        -- A statement within a statement is recorded first, though its change is the later one. So once there was one, a
        -- version of a row that is replaced already (or locked, which looks the same), or a delete, may not be the last word;
        -- but what is nested and only deletes, as cascades do, brings no deleted row back.
        IF TG_OP = 'DELETE' THEN
            nested := strpos(concat(current_setting('docferry.nested', true)), E'\n+' || TG_ARGV[0] || E'\n') > 0;
        ELSIF NEW.xmax <> '0' THEN
            nested := strpos(concat(current_setting('docferry.nested', true)), E'\n+' || TG_ARGV[0] || E'\n') > 0
                   OR strpos(concat(current_setting('docferry.nested', true)), E'\n-' || TG_ARGV[0] || E'\n') > 0;
        END IF;
        IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable')
           AND strpos(concat(current_setting('docferry.layouts', true)), ' ' || TG_RELID || ' ') = 0 THEN
            unproven := true;
        END IF;
        IF TG_OP <> 'DELETE' THEN size := pg_column_size(NEW); END IF;
        IF with_old THEN size := size + pg_column_size(OLD); END IF;
    END IF;
    by_key := nested OR size > {large};
    IF known = mine THEN
        IF NOT by_key AND NOT unproven AND size <= {small} THEN
            IF TG_LEVEL = 'ROW' THEN
                IF TG_OP <> 'DELETE' THEN new_text := format('%s', NEW); END IF;
                IF with_old THEN old_text := format('%s', OLD); END IF;
            END IF;
            IF coalesce(octet_length(new_text), 0) + coalesce(octet_length(old_text), 0) <= {small} THEN
                INSERT INTO docferry.outbox (position, epoch, transaction, op, table_name, relation_id, columns,
                                             key_names, new_row, old_row, leads)
                SELECT nextval('docferry.positions'), {epoch}, mine::xid8, TG_OP, TG_ARGV[0], TG_RELID,
                       ARRAY(SELECT CASE WHEN a.attgenerated = '' THEN a.atttypid || ' ' || a.attname
                                         ELSE a.atttypid::text END
                             FROM pg_attribute a WHERE a.attrelid = TG_RELID AND a.attnum > 0 AND NOT a.attisdropped
                            ORDER BY a.attnum),
                       TG_ARGV[1:], new_text, old_text, {each_leads};
                RETURN NULL;
            END IF;
        END IF;
    ELSIF known = 'missed ' || mine THEN
        RETURN NULL;
    END IF;
    BEGIN
        IF unproven THEN
            -- The catalog is read under the transaction's snapshot, the row is of the table as it is now; the functions
            -- asked here know the present: the names, whether there is one more column, and the file, which is a new one
            -- after a change of type. Nobody can change the table any more before the transaction ends.
            SELECT coalesce(bool_and(a.attname = (pg_identify_object_as_address('pg_class'::regclass, TG_RELID,
                                                                                a.attnum)).object_names[3])
                            AND (pg_identify_object_as_address('pg_class'::regclass, TG_RELID,
                                                               max(a.attnum) + 1)).object_names IS NULL
                            AND (SELECT c.relfilenode FROM pg_class c WHERE c.oid = TG_RELID)
                                = coalesce(pg_relation_filenode(TG_RELID), 0), false)
              INTO as_shown FROM pg_attribute a WHERE a.attrelid = TG_RELID AND a.attnum > 0;
            IF as_shown THEN
                PERFORM set_config('docferry.layouts', concat(current_setting('docferry.layouts', true),
                                                              ' ', TG_RELID, ' '), true);
            ELSE
                by_key := true;
            END IF;
        END IF;
        IF TG_LEVEL = 'ROW' AND NOT by_key THEN
            IF size <= {small} THEN
                IF TG_OP <> 'DELETE' THEN new_text := format('%s', NEW); END IF;
                IF with_old THEN old_text := format('%s', OLD); END IF;
            ELSE
                BEGIN
                    IF TG_OP <> 'DELETE' THEN new_text := format('%s', NEW); END IF;
                    IF with_old THEN old_text := format('%s', OLD); END IF;
                EXCEPTION WHEN OTHERS THEN
                    by_key := true;  -- no text may be longer than 1 GB
                END;
            END IF;
            size := coalesce(octet_length(new_text), 0) + coalesce(octet_length(old_text), 0);
            IF size > {large} THEN
                by_key := true;
            ELSIF size > {small} THEN
                -- As JSON, a byte may become six.
                by_key := by_key OR coalesce(octet_length(to_json(new_text)::text), 0)
                                    + coalesce(octet_length(to_json(old_text)::text), 0) > {large};
            END IF;
        END IF;
        IF by_key THEN
            -- The trigger knows the key columns by the names they had when it was made. What they are called in the
            -- description of the columns, and what in the row, differs where the layout does.
            SELECT array_agg(a.attname::text ORDER BY k.n),
                   format('SELECT ARRAY[%s]',
                          string_agg(format('CASE WHEN num_nulls(($1).%1$I) = 0 THEN format(''%%s'', ($1).%1$I) END',
                                            (pg_identify_object_as_address('pg_class'::regclass, TG_RELID,
                                                                           a.attnum)).object_names[3]),
                                     ', ' ORDER BY k.n))
              INTO key_names, key_of
              FROM unnest(coalesce(
                       (SELECT array_agg(a.attnum ORDER BY k.n)
                          FROM unnest(TG_ARGV[1:]) WITH ORDINALITY AS k(name, n)
                          JOIN pg_attribute a ON a.attrelid = TG_RELID AND a.attname = k.name
                        HAVING count(*) = TG_NARGS - 1),
                       (SELECT (i.indkey::int2[])[0:i.indnkeyatts - 1] FROM pg_index i
                         WHERE i.indrelid = TG_RELID AND i.indisprimary AND i.indnkeyatts = TG_NARGS - 1)))
                   WITH ORDINALITY AS k(attnum, n)
              JOIN pg_attribute a ON a.attrelid = TG_RELID AND a.attnum = k.attnum;
            IF TG_OP <> 'DELETE' THEN EXECUTE key_of INTO key_text USING NEW; END IF;
            IF with_old THEN EXECUTE key_of INTO old_key_text USING OLD; END IF;
            IF TG_OP = 'DELETE' THEN
                key_text := old_key_text;
                old_key_text := NULL;
            END IF;
            new_text := NULL;
            old_text := NULL;
        END IF;
        {once}
        INSERT INTO docferry.outbox (position, epoch, transaction, op, table_name, relation_id, columns, key_names,
                                     new_row, old_row, key, old_key, leads)
        SELECT nextval('docferry.positions'), {epoch}, mine::xid8,
               -- Whether the row is gone, the reading tells.
               CASE WHEN nested THEN 'UPDATE' ELSE TG_OP END, TG_ARGV[0], TG_RELID,
               ARRAY(SELECT CASE WHEN a.attgenerated = '' THEN a.atttypid || ' ' || a.attname ELSE a.atttypid::text END
                     FROM pg_attribute a WHERE a.attrelid = TG_RELID AND a.attnum > 0 AND NOT a.attisdropped
                    ORDER BY a.attnum),
               key_names, new_text, old_text, key_text, old_key_text,
               {each_leads} OR {first_leads} AND known IS DISTINCT FROM mine;
        PERFORM set_config('docferry.recording', mine, true);
    EXCEPTION
    WHEN serialization_failure THEN
        RAISE;
    WHEN OTHERS THEN
        RAISE WARNING 'docferry could not record a change of %: %', TG_ARGV[0], SQLERRM
              USING HINT = 'Run `docferry apply`: it populates the collections again.';
        BEGIN
            PERFORM set_config('docferry.recording', 'missed ' || mine, true);
            PERFORM nextval('docferry.missed');
        EXCEPTION WHEN OTHERS THEN
            NULL;  -- not even that: whoever looks finds the schema or its rights missing
        END;
    END;
    RETURN NULL;
END
$docferry$;

-- name: once_outbox
-- Once a transaction: wake a drainer that sleeps. A payload, or a NOTIFY in every transaction, would cost the writers.
-- A transaction that has notified cannot be prepared: where that may be wanted, drainers do not sleep.
IF (SELECT last_value FROM docferry.sleeping) = 2 AND current_setting('max_prepared_transactions') = '0' THEN
            PERFORM pg_notify('docferry_outbox', '');
        END IF;

-- name: once_lambda
-- Once a transaction: the sending happens at its end, even if the application set all its constraints to immediate.
SET CONSTRAINTS docferry.send_to_lambda DEFERRED;

-- name: send_event
-- One invocation, guarded. True when the function has taken the event; then its changes leave the outbox. A failure counts
-- for the circuit breaker; the changes stay in the outbox, which commits with the application's transaction.
CREATE OR REPLACE FUNCTION docferry.send_event(event text, positions bigint[], milliseconds int) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $docferry$
DECLARE
    status int;
    failures bigint;
BEGIN
    PERFORM set_config('aws_lambda.connect_timeout_ms', greatest(milliseconds / 2, 1)::text, true),
            set_config('aws_lambda.request_timeout_ms', greatest(milliseconds / 2, 1)::text, true);
    SELECT i.status_code INTO status
      FROM aws_lambda.invoke({function}::text, event::json, {region}::text, 'Event'::text) AS i;
    IF status IS DISTINCT FROM 202 THEN
        RAISE EXCEPTION 'the function answered with status %', status;
    END IF;
    DELETE FROM docferry.outbox WHERE position = ANY (positions);
    IF (SELECT is_called FROM docferry.send_failures) THEN
        PERFORM setval('docferry.send_failures', 1, false);
    END IF;
    RETURN true;
EXCEPTION WHEN OTHERS THEN
    failures := nextval('docferry.send_failures');
    IF failures >= {breaker_failures} THEN
        PERFORM setval('docferry.send_after',
                       (extract(epoch FROM clock_timestamp()) * 1000)::bigint + {breaker_pause_ms});
    END IF;
    RAISE LOG 'docferry: invocation failed (% in a row), its changes stay in docferry.outbox: %', failures, SQLERRM;
    RETURN false;
END
$docferry$;

-- name: send
-- Fires once a transaction, behind the application's own deferred triggers: sends what the transaction recorded in as few
-- events as fit. Never takes longer than the configured bound for all invocations of a transaction; what is left, and
-- everything while the circuit breaker is open, stays in the outbox. When the breaker's pause is over, one session tries.
CREATE OR REPLACE FUNCTION docferry.send_to_lambda() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $docferry$
DECLARE
    mine constant xid8 := pg_current_xact_id();
    number constant bigint := mine::text::bigint;
    began constant timestamptz := clock_timestamp();
    -- Milliseconds that earlier events of this transaction took.
    spent constant int := coalesce(nullif(current_setting('docferry.sending', true), ''), '0')::int;
    taken int := spent;
    relations jsonb := '{{}}';
    layout jsonb;
    head text;
    entry text;
    entries text[] := '{{}}';
    positions bigint[] := '{{}}';
    size int := 0;
    going_on boolean := true;
    one record;
    described text;
BEGIN
    -- What later rounds of deferred triggers change gets a leader of its own.
    PERFORM set_config('docferry.recording', '', true);
    -- Reading and deleting in the newest part of the outbox, concurrent transactions would seem to depend on each other,
    -- and the server would refuse the commit of some. Draining takes what they leave in the outbox.
    IF current_setting('transaction_isolation') = 'serializable' THEN
        RETURN NULL;
    END IF;
    IF spent >= {timeout_ms} THEN
        RETURN NULL;
    END IF;
    IF (SELECT last_value >= {breaker_failures} AND is_called FROM docferry.send_failures)
       AND ((SELECT last_value FROM docferry.send_after) > extract(epoch FROM clock_timestamp()) * 1000
            OR NOT pg_try_advisory_xact_lock(1685021542, 5)) THEN
        RETURN NULL;
    END IF;
    IF spent = 0 AND current_setting('server_version_num')::int >= 170000 THEN
        -- After a crash the server would hand out again, and mean others by them, the transaction id and the positions that
        -- are in the event. Once they are in the log on disk it does not. Before PostgreSQL 17 nothing short of a commit
        -- does that, and where a service does not allow it, sending goes on all the same.
        BEGIN
            PERFORM pg_logical_emit_message(false, 'docferry', 'sending', true);
        EXCEPTION WHEN OTHERS THEN
            NULL;
        END;
    END IF;
    head := format('{{"docferry":1,"epoch":%s,"transaction":"%s","at":%s,"relations":', NEW.epoch, mine, to_json(began));
    FOR one IN
        SELECT o.position, o.epoch, o.op, o.table_name, o.relation_id, o.columns, o.key_names, o.new_row, o.old_row,
               o.key, o.old_key,
               -- The subtransaction that recorded it, as a number of 64 bits; NULL: none.
               nullif(number + (o.xmin::text::bigint - number & 4294967295), number) AS subtransaction
          FROM docferry.outbox o
         WHERE o.position >= NEW.position AND ({group} OR o.position <= NEW.position) AND o.transaction = mine
         ORDER BY o.position
    LOOP
        entry := json_strip_nulls(json_build_object(
            'TG_OP', one.op, 'table', one.table_name,
            'version', (one.epoch::numeric * 79228162514264337593543950336 + one.position::numeric * 4294967296)::text,
            'subtransaction', one.subtransaction::text,
            'NEW', one.new_row, 'OLD', one.old_row, 'key', one.key, 'old_key', one.old_key))::text;
        IF described IS DISTINCT FROM concat_ws(' ', one.relation_id, one.table_name, one.columns) THEN
            described := concat_ws(' ', one.relation_id, one.table_name, one.columns);
            -- Key columns that were renamed since the trigger was made.
            SELECT jsonb_build_object('oid', one.relation_id, 'key',
                                      CASE WHEN one.key_names <@ array_agg(substr(c.described, strpos(c.described, ' ') + 1))
                                           THEN one.key_names
                                           ELSE coalesce((SELECT array_agg(a.attname::text ORDER BY k.n)
                                                            FROM pg_index i, unnest(i.indkey) WITH ORDINALITY AS k(attnum, n)
                                                            JOIN pg_attribute a USING (attnum)
                                                           WHERE i.indrelid = one.relation_id AND i.indisprimary
                                                             AND k.n <= i.indnkeyatts AND a.attrelid = i.indrelid
                                                          HAVING count(*) = cardinality(one.key_names)), one.key_names)
                                      END,
                                      'columns', jsonb_agg(nullif(substr(c.described, strpos(c.described || ' ', ' ') + 1), '')
                                                           ORDER BY c.n),
                                      'types', jsonb_agg(split_part(c.described, ' ', 1)::bigint ORDER BY c.n))
              INTO layout FROM unnest(one.columns) WITH ORDINALITY AS c(described, n);
        END IF;
        IF positions <> '{{}}' AND (size + octet_length(entry) + 1 > {payload_limit}
              OR (relations ? one.table_name AND relations -> one.table_name <> layout)) THEN
            taken := spent + (extract(epoch FROM clock_timestamp() - began) * 1000)::int;
            going_on := taken < {timeout_ms} AND docferry.send_event(
                head || relations || ',"changes":[' || array_to_string(entries, ',') || ']}}', positions,
                {timeout_ms} - taken);
            EXIT WHEN NOT going_on;
            entries := '{{}}';
            positions := '{{}}';
            relations := '{{}}';
        END IF;
        IF positions = '{{}}' THEN
            size := octet_length(head) + 20;
        END IF;
        IF NOT relations ? one.table_name THEN
            relations := jsonb_set(relations, ARRAY[one.table_name], layout);
            size := size + octet_length(layout::text) + octet_length(one.table_name) + 8;
        END IF;
        entries := entries || entry;
        positions := positions || one.position;
        size := size + octet_length(entry) + 1;
    END LOOP;
    IF going_on AND positions <> '{{}}' THEN
        taken := spent + (extract(epoch FROM clock_timestamp() - began) * 1000)::int;
        going_on := taken < {timeout_ms} AND docferry.send_event(
            head || relations || ',"changes":[' || array_to_string(entries, ',') || ']}}', positions,
            {timeout_ms} - taken);
    END IF;
    -- Rounded up, so that whoever has sent anything has spent something.
    PERFORM set_config('docferry.sending', ceil(spent + extract(epoch FROM clock_timestamp() - began) * 1000)::int::text,
                       true);
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    RAISE LOG 'docferry: sending failed, the changes stay in docferry.outbox: %', SQLERRM;
    RETURN NULL;
END
$docferry$;

-- name: send_trigger
-- On the first change of each transaction.
CREATE CONSTRAINT TRIGGER send_to_lambda AFTER INSERT ON docferry.outbox DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW WHEN (NEW.leads) EXECUTE FUNCTION docferry.send_to_lambda();

-- name: has_send_trigger
-- Whether it is there.
SELECT EXISTS (SELECT FROM pg_catalog.pg_trigger
                WHERE tgname = 'send_to_lambda' AND tgrelid = pg_catalog.to_regclass('docferry.outbox'));

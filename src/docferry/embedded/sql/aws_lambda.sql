-- The stand-in for the extensions aws_commons and aws_lambda: their documented functions, for any PostgreSQL.
-- Run by a superuser, any number of times. The port of the gateway is put into aws_lambda.gateway_port() afterwards.

SET LOCAL client_min_messages = warning;

CREATE SCHEMA IF NOT EXISTS aws_commons;
GRANT USAGE ON SCHEMA aws_commons TO PUBLIC;
CREATE SCHEMA IF NOT EXISTS aws_lambda;

DO $$
BEGIN
    IF to_regtype('aws_commons._lambda_function_arn_1') IS NULL THEN
        CREATE TYPE aws_commons._lambda_function_arn_1 AS (function_name text, region text);
    END IF;
    IF NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'dblink') THEN
        CREATE SCHEMA IF NOT EXISTS aws_lambda_dblink;
        CREATE EXTENSION dblink SCHEMA aws_lambda_dblink;
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION aws_commons.create_lambda_function_arn(function_name text, region text)
RETURNS aws_commons._lambda_function_arn_1
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS 'SELECT ROW($1, $2)::aws_commons._lambda_function_arn_1';

CREATE OR REPLACE FUNCTION aws_lambda.gateway_port() RETURNS integer
LANGUAGE sql IMMUTABLE AS 'SELECT 0';

-- A timeout in milliseconds, from the setting of that name: the session's, the role's or the transaction's own.
CREATE OR REPLACE FUNCTION aws_lambda.timeout_ms(setting text, preset integer) RETURNS integer
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    -- A setting that was SET LOCAL reads as an empty string later in its session.
    given constant text := nullif(current_setting(setting, true), '');
BEGIN
    IF given IS NULL THEN
        RETURN preset;
    END IF;
    IF given !~ '^[0-9]{1,6}$' OR given::integer NOT BETWEEN 1 AND 900000 THEN
        RAISE EXCEPTION '"%" is no valid value of the parameter "%"', given, setting
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Give milliseconds, from 1 to 900000.';
    END IF;
    RETURN given::integer;
END
$$;

-- One call, through the gateway: a line of JSON and the payload go out, one row comes back. The row is waited for in
-- small steps instead of inside of libpq, so that a gateway that hangs is given up, and a session can be cancelled.
CREATE OR REPLACE FUNCTION aws_lambda.call_gateway(
    function_name text, region text, payload text, invocation_type text, log_type text, context text, qualifier text,
    OUT status_code integer, OUT answer text, OUT executed_version text, OUT log_result text
)
LANGUAGE plpgsql
AS $$
DECLARE
    link constant text := 'docferry aws_lambda ' || aws_lambda.gateway_port();
    connect_ms constant integer := aws_lambda.timeout_ms('aws_lambda.connect_timeout_ms', 1000);
    request_ms constant integer := aws_lambda.timeout_ms('aws_lambda.request_timeout_ms', 3000);
    -- The gateway keeps both timeouts; this is for one that does not, and leaves it time to say so.
    latest constant timestamptz := clock_timestamp() + (connect_ms + request_ms + 200) * interval '1 ms';
    function_error text;
    failure text;
    reason text;
BEGIN
    -- The composite of create_lambda_function_arn that came as a literal, as psql's :'variable' makes it.
    IF function_name LIKE '(%)' AND region IS NULL THEN
        SELECT arn.function_name, arn.region INTO function_name, region
        FROM (SELECT (function_name::aws_commons._lambda_function_arn_1).*) AS arn;
    END IF;
    IF function_name IS NULL OR function_name = '' THEN
        RAISE EXCEPTION 'invoke API failed' USING ERRCODE = 'external_routine_exception',
            DETAIL = 'AWS Lambda client returned ''Missing required field [FunctionName]''.';
    END IF;
    BEGIN
        -- Whether the connection is alive shows only when it is read from. What was not sent is safe to send anew.
        IF link = ANY (dblink_get_connections()) THEN
            PERFORM dblink_is_busy(link);
            IF dblink_error_message(link) <> 'OK' THEN
                PERFORM dblink_disconnect(link);
            END IF;
        END IF;
        IF (link = ANY (dblink_get_connections())) IS NOT TRUE THEN
            -- 2 s are libpq's least. dblink of version 16 and later waits without limit for a gateway that accepts
            -- and says nothing, which only a stopped process does; statement_timeout ends that wait.
            PERFORM dblink_connect(link, 'host=127.0.0.1 port=' || aws_lambda.gateway_port()
                || ' user=docferry dbname=aws_lambda connect_timeout=2 sslmode=disable gssencmode=disable');
        END IF;
        IF dblink_send_query(link, json_build_object(
                'function_name', function_name, 'region', region, 'invocation_type', invocation_type,
                'log_type', log_type, 'context', context, 'qualifier', qualifier,
                'connect_timeout_ms', connect_ms, 'request_timeout_ms', request_ms
            )::text || E'\n' || coalesce(payload, '')) = 0
        THEN
            RAISE EXCEPTION '%', dblink_error_message(link);
        END IF;
        WHILE dblink_is_busy(link) = 1 LOOP
            IF clock_timestamp() > latest THEN
                RAISE EXCEPTION 'Timeout was reached';
            END IF;
            PERFORM pg_sleep(0.001);
        END LOOP;
        SELECT row.* INTO STRICT status_code, answer, executed_version, log_result, function_error, failure
        FROM dblink_get_result(link) AS row (
            status_code integer, payload text, executed_version text, log_result text, function_error text, failure text
        );
        -- The end of the results, without which the connection takes no further query.
        PERFORM FROM dblink_get_result(link) AS row (nothing text);
    EXCEPTION
        WHEN query_canceled THEN
            IF link = ANY (dblink_get_connections()) THEN
                PERFORM dblink_disconnect(link);
            END IF;
            RAISE;
        WHEN OTHERS THEN
            GET STACKED DIAGNOSTICS reason = MESSAGE_TEXT;
            IF link = ANY (dblink_get_connections()) THEN
                PERFORM dblink_disconnect(link);
            END IF;
            failure := CASE SQLSTATE WHEN '08001' THEN 'Unable to connect to endpoint' ELSE reason END;
    END;
    IF failure IS NOT NULL THEN
        RAISE EXCEPTION 'invoke API failed' USING ERRCODE = 'external_routine_exception',
            DETAIL = format('AWS Lambda client returned ''%s''.', failure);
    END IF;
    IF function_error IS NOT NULL THEN
        RAISE EXCEPTION 'lambda invocation failed' USING ERRCODE = 'external_routine_exception',
            DETAIL = format('"%s" returned error "%s", details: "%s".', function_name, function_error, answer);
    END IF;
END
$$;

-- dblink may have been there before, in whatever schema.
DO $$
DECLARE
    home constant text := (
        SELECT namespace.nspname FROM pg_extension AS extension
        JOIN pg_namespace AS namespace ON namespace.oid = extension.extnamespace
        WHERE extension.extname = 'dblink'
    );
BEGIN
    EXECUTE format(
        'ALTER FUNCTION aws_lambda.call_gateway(text, text, text, text, text, text, text)'
        ' SET search_path = pg_catalog, %I, pg_temp', home
    );
END
$$;

-- SECURITY DEFINER, because dblink lets only a superuser connect without a password.
CREATE OR REPLACE FUNCTION aws_lambda.invoke(
    IN function_name text, IN payload json, IN region text DEFAULT NULL,
    IN invocation_type text DEFAULT 'RequestResponse', IN log_type text DEFAULT 'None', IN context json DEFAULT NULL,
    IN qualifier varchar(128) DEFAULT NULL,
    OUT status_code integer, OUT payload json, OUT executed_version text, OUT log_result text
)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
SELECT status_code, answer::json, executed_version, log_result
FROM aws_lambda.call_gateway($1, $3, $2::text, $4, $5, $6::text, $7)
$$;

CREATE OR REPLACE FUNCTION aws_lambda.invoke(
    IN function_name aws_commons._lambda_function_arn_1, IN payload json,
    IN invocation_type text DEFAULT 'RequestResponse', IN log_type text DEFAULT 'None', IN context json DEFAULT NULL,
    IN qualifier varchar(128) DEFAULT NULL,
    OUT status_code integer, OUT payload json, OUT executed_version text, OUT log_result text
)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
SELECT status_code, answer::json, executed_version, log_result
FROM aws_lambda.call_gateway(($1).function_name, ($1).region, $2::text, $3, $4, $5::text, $6)
$$;

CREATE OR REPLACE FUNCTION aws_lambda.invoke(
    IN function_name text, IN payload jsonb, IN region text DEFAULT NULL,
    IN invocation_type text DEFAULT 'RequestResponse', IN log_type text DEFAULT 'None', IN context jsonb DEFAULT NULL,
    IN qualifier varchar(128) DEFAULT NULL,
    OUT status_code integer, OUT payload jsonb, OUT executed_version text, OUT log_result text
)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
SELECT status_code, answer::jsonb, executed_version, log_result
FROM aws_lambda.call_gateway($1, $3, $2::text, $4, $5, $6::text, $7)
$$;

CREATE OR REPLACE FUNCTION aws_lambda.invoke(
    IN function_name aws_commons._lambda_function_arn_1, IN payload jsonb,
    IN invocation_type text DEFAULT 'RequestResponse', IN log_type text DEFAULT 'None', IN context jsonb DEFAULT NULL,
    IN qualifier varchar(128) DEFAULT NULL,
    OUT status_code integer, OUT payload jsonb, OUT executed_version text, OUT log_result text
)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
SELECT status_code, answer::jsonb, executed_version, log_result
FROM aws_lambda.call_gateway(($1).function_name, ($1).region, $2::text, $3, $4, $5::text, $6)
$$;

REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA aws_lambda FROM PUBLIC;

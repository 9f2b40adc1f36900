"""The stand-in for aws_lambda and aws_commons: what Aurora documents, on a plain PostgreSQL, with real functions."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from typing import Any

import boto3
import psycopg
import pytest
from botocore.credentials import Credentials

from docferry.embedded.aws_lambda import Fault, LambdaGateway, install_standin
from docferry.embedded.dynamodb import EmbeddedDynamoDB

from ..waiting import PATIENCE, until

FUNCTION = """
import boto3
def handler(event, context):
    print("seen", event)
    if event.get("fail"):
        raise ValueError("broken on purpose")
    if "id" in event:
        boto3.client("dynamodb").put_item(TableName="seen", Item={"id": {"S": event["id"]}})
    return {"echo": event, "function": context.function_name}
"""


@pytest.fixture(scope="module")
def aws() -> Iterator[EmbeddedDynamoDB]:
    services = ("dynamodb", "lambda", "iam", "sts", "logs")
    with EmbeddedDynamoDB(services=services, settings={"LAMBDA_ACCOUNT_CONCURRENCY": "4"}) as server:
        client(server, "dynamodb").create_table(
            TableName="seen",
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        create_function(server, "ferry")
        yield server


@pytest.fixture
def gateway(aws: EmbeddedDynamoDB) -> Iterator[LambdaGateway]:
    with LambdaGateway(aws.endpoint_url, aws.region) as gateway:
        yield gateway


@pytest.fixture
def session(database: str, gateway: LambdaGateway) -> Iterator[psycopg.Connection]:
    install(database, gateway)
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


def install(database: str, gateway: LambdaGateway) -> None:
    """As tests want it: patient unless a test says otherwise, and without the database's own settings in its way."""
    install_standin(database, gateway)
    with psycopg.connect(database, autocommit=True) as connection:
        for setting in ("connect_timeout_ms", "request_timeout_ms"):
            connection.execute(f"ALTER DATABASE {connection.info.dbname} SET aws_lambda.{setting} = 60000".encode())


def client(server: EmbeddedDynamoDB, service: str) -> Any:
    return boto3.client(service, **server.client_options())  # type: ignore[call-overload]


def create_function(server: EmbeddedDynamoDB, name: str) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("code.py", "")
        file.writestr("ferry.py", FUNCTION)
    client(server, "lambda").create_function(
        FunctionName=name,
        Runtime="python3.12",
        Role="arn:aws:iam::000000000000:role/ferry",
        Handler="ferry.handler",
        Code={"ZipFile": archive.getvalue()},
        Timeout=60,
    )


def seen(server: EmbeddedDynamoDB, name: str) -> bool:
    return "Item" in client(server, "dynamodb").get_item(TableName="seen", Key={"id": {"S": name}})


def detail(error: pytest.ExceptionInfo[psycopg.Error]) -> str:
    assert error.value.diag.message_primary in ("invoke API failed", "lambda invocation failed")
    return error.value.diag.message_detail or ""


# --- what is documented -------------------------------------------------------------------------------------------

NAME = "'ferry'"
ARN = "aws_commons.create_lambda_function_arn('ferry', 'us-east-1')"


@pytest.mark.parametrize("kind", ["json", "jsonb"])
@pytest.mark.parametrize("function", [NAME, ARN])
def test_every_signature_by_position_and_by_name(session: psycopg.Connection, function: str, kind: str) -> None:
    region = "'us-east-1'," if function == NAME else ""
    by_name = "region => 'us-east-1'," if function == NAME else ""
    payload = f"""'{{"n": 1}}'::{kind}"""
    calls = (
        f"{function}, {payload}",
        f"{function}, {payload}, {region} 'RequestResponse', 'None', '{{\"client\": 1}}', '$LATEST'",
        f"""function_name => {function}, payload => {payload}, {by_name} invocation_type => 'RequestResponse',
            log_type => 'None', context => '{{}}'::{kind}, qualifier => '$LATEST'""",
    )
    for arguments in calls:
        row = session.execute(
            f"SELECT status_code, payload, executed_version, log_result, pg_typeof(payload)::text"
            f" FROM aws_lambda.invoke({arguments})".encode()
        ).fetchone()
        assert row == (200, {"echo": {"n": 1}, "function": "ferry"}, "$LATEST", None, kind)


def test_a_function_is_named_by_name_arn_or_a_literal_of_the_composite(session: psycopg.Connection) -> None:
    arn = "arn:aws:lambda:us-east-1:000000000000:function:ferry"
    for name in ("ferry", "ferry:$LATEST", arn, f"{arn}:$LATEST", "(ferry,us-east-1)"):
        row = session.execute("SELECT * FROM aws_lambda.invoke(%s::text, '{}'::json)", [name]).fetchone()
        assert row is not None
        assert row[0] == 200, name
    with pytest.raises(psycopg.Error) as error:
        session.execute("SELECT aws_lambda.invoke(%s::text, '{}'::json, 'eu-west-1')", [arn])
    assert "eu-west-1" in detail(error)


def test_an_event_runs_the_function_later_and_says_202(session: psycopg.Connection, aws: EmbeddedDynamoDB) -> None:
    row = session.execute(
        """SELECT * FROM aws_lambda.invoke('ferry', '{"id": "event"}'::json, NULL, 'Event')"""
    ).fetchone()
    assert row == (202, None, "$LATEST", None)
    until(lambda: seen(aws, "event"), "the event")


def test_a_dry_run_does_nothing_and_says_204(session: psycopg.Connection, aws: EmbeddedDynamoDB) -> None:
    call = """SELECT * FROM aws_lambda.invoke('ferry', '{"id": "dry"}'::json, NULL, 'DryRun')"""
    row = session.execute(call.encode()).fetchone()
    assert row == (204, None, "$LATEST", None)
    session.execute("""SELECT aws_lambda.invoke('ferry', '{"id": "not dry"}'::json)""")
    assert seen(aws, "not dry")
    assert not seen(aws, "dry")


def test_the_tail_of_the_log_is_returned_in_base64(session: psycopg.Connection) -> None:
    row = session.execute("""SELECT log_result FROM aws_lambda.invoke('ferry', '{"n": 7}'::json, log_type => 'Tail')""")
    (log,) = row.fetchone() or ("",)
    assert "seen {'n': 7}" in base64.b64decode(log).decode()


def test_text_goes_to_the_function_and_back_unchanged(session: psycopg.Connection) -> None:
    document = {"text": "é ☃ 𝄞 \"quoted\" 'single' \\ back\nline", "long": "x" * 200_000}
    payload = json.dumps(document, ensure_ascii=False)
    row = session.execute("SELECT payload FROM aws_lambda.invoke('ferry', %s::json)", [payload]).fetchone()
    assert row is not None
    assert row[0]["echo"] == document


# --- outside the transaction --------------------------------------------------------------------------------------


def test_a_rollback_does_not_take_the_call_back(
    database: str, session: psycopg.Connection, aws: EmbeddedDynamoDB
) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("""SELECT aws_lambda.invoke('ferry', '{"id": "rolled back"}'::json, NULL, 'Event')""")
        connection.rollback()
    until(lambda: seen(aws, "rolled back"), "the event")


def test_it_can_be_called_when_a_transaction_commits(session: psycopg.Connection, aws: EmbeddedDynamoDB) -> None:
    session.execute(
        """
        CREATE TABLE orders (id text PRIMARY KEY);
        CREATE FUNCTION send() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM aws_lambda.invoke('ferry', json_build_object('id', NEW.id), NULL, 'Event');
            RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER send AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION send();
        """
    )
    session.execute("INSERT INTO orders VALUES ('committed')")
    until(lambda: seen(aws, "committed"), "the event")


# --- failures -----------------------------------------------------------------------------------------------------


def test_a_function_that_fails_is_an_error(session: psycopg.Connection) -> None:
    with pytest.raises(psycopg.Error, match="lambda invocation failed") as error:
        session.execute("""SELECT aws_lambda.invoke('ferry', '{"fail": true}'::json)""")
    assert '"ferry" returned error "Unhandled"' in detail(error)
    assert "broken on purpose" in detail(error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("'nowhere', '{}'::json, NULL, 'Event'", "ResourceNotFoundException: Function not found"),
        ("'ferry', '{}'::json, qualifier => '99'", "ResourceNotFoundException"),
        ("'ferry', '{}'::json, NULL, 'event'", "'invocationType'"),
        ("'ferry', '{}'::json, log_type => 'tail'", "'logType'"),
        ("NULL::text, '{}'::json", "FunctionName"),
        ("'ferry', to_json(repeat('x', 1048576)), NULL, 'Event'", "smaller than 1048576 bytes"),
    ],
)
def test_what_lambda_refuses_is_an_error(session: psycopg.Connection, arguments: str, message: str) -> None:
    with pytest.raises(psycopg.Error, match="invoke API failed") as error:
        session.execute(f"SELECT aws_lambda.invoke({arguments})".encode())
    assert message in detail(error)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("refuse", "Unable to connect to endpoint"),
        ("throttle", "TooManyRequestsException"),
        ("error", "ServiceException"),
        ("hang", "Timeout was reached"),
        ("lost", "Timeout was reached"),
        ("stuck", "Timeout was reached"),
    ],
)
def test_a_fault_is_an_error_that_leaves_the_session_usable(
    session: psycopg.Connection, gateway: LambdaGateway, aws: EmbeddedDynamoDB, fault: Fault, message: str
) -> None:
    session.execute("SET aws_lambda.connect_timeout_ms = 500; SET aws_lambda.request_timeout_ms = 1000")
    gateway.fail = fault
    call = f"""SELECT aws_lambda.invoke('ferry', '{{"id": "{fault}"}}'::json, NULL, 'Event')"""
    with pytest.raises(psycopg.Error, match="invoke API failed") as error:
        session.execute(call.encode())
    assert message in detail(error)
    gateway.fail = None
    session.execute("RESET aws_lambda.connect_timeout_ms; RESET aws_lambda.request_timeout_ms")
    session.execute("""SELECT aws_lambda.invoke('ferry', '{"n": 1}'::json)""")
    assert gateway.calls == 2
    until(lambda: gateway.failures == (0 if fault == "stuck" else 1), "the gateway has given up")
    if fault == "lost":
        until(lambda: seen(aws, fault), "the event")
    else:
        assert not seen(aws, fault)


def test_an_error_can_be_caught(session: psycopg.Connection, gateway: LambdaGateway) -> None:
    gateway.fail = "throttle"
    session.execute(
        """
        CREATE TABLE caught (detail text);
        DO $$
        DECLARE
            reason text;
        BEGIN
            PERFORM aws_lambda.invoke('ferry', '{}'::json, NULL, 'Event');
        EXCEPTION WHEN OTHERS THEN
            GET STACKED DIAGNOSTICS reason = PG_EXCEPTION_DETAIL;
            INSERT INTO caught VALUES (reason);
        END $$;
        """
    )
    (reason,) = session.execute("SELECT detail FROM caught").fetchone() or ("",)
    assert "TooManyRequestsException" in reason


def test_reserved_concurrency_exhausted_is_an_error(session: psycopg.Connection, aws: EmbeddedDynamoDB) -> None:
    create_function(aws, "full")
    client(aws, "lambda").put_function_concurrency(FunctionName="full", ReservedConcurrentExecutions=0)
    with pytest.raises(psycopg.Error) as error:
        session.execute("SELECT aws_lambda.invoke('full', '{}'::json)")
    assert "TooManyRequestsException" in detail(error)


# --- timeouts -----------------------------------------------------------------------------------------------------


def test_an_endpoint_that_nobody_listens_at(database: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with LambdaGateway(f"http://127.0.0.1:{port}") as gateway, psycopg.connect(database, autocommit=True) as session:
        install(database, gateway)
        with pytest.raises(psycopg.Error) as error:
            session.execute("SELECT aws_lambda.invoke('ferry', '{}'::json, NULL, 'Event')")
        assert "Unable to connect to endpoint" in detail(error)


def test_an_endpoint_that_accepts_and_never_answers(database: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with LambdaGateway(address) as gateway, psycopg.connect(database, autocommit=True) as session:
            install_standin(database, gateway)
            session.execute("SET aws_lambda.connect_timeout_ms = 60000; SET aws_lambda.request_timeout_ms = 300")
            started = time.monotonic()
            with pytest.raises(psycopg.Error) as error:
                session.execute("SELECT aws_lambda.invoke('ferry', '{}'::json, NULL, 'Event')")
            assert "Timeout was reached" in detail(error)
            assert 0.3 <= time.monotonic() - started < PATIENCE
            assert gateway.failures == 1  # it was the gateway that gave up, not the session


def test_a_timeout_holds_for_a_transaction_or_a_session(session: psycopg.Connection, gateway: LambdaGateway) -> None:
    gateway.fail = "hang"
    with session.transaction():
        session.execute("SET LOCAL aws_lambda.request_timeout_ms = 1")
        with pytest.raises(psycopg.Error, match="invoke API failed"), session.transaction():
            session.execute("SELECT aws_lambda.invoke('ferry', '{}'::json, NULL, 'Event')")
    gateway.fail = None
    # What was local is gone: one millisecond would not do.
    session.execute(
        "SELECT aws_lambda.timeout_ms('aws_lambda.request_timeout_ms', 3000) = 3000 OR error_in_test()"
        if False
        else "SELECT 1"
    )
    assert session.execute("SELECT aws_lambda.timeout_ms('aws_lambda.request_timeout_ms', 3000)").fetchone() == (60000,)
    for wrong in ("0", "-5", "soon", "900001"):
        session.execute("SELECT set_config('aws_lambda.connect_timeout_ms', %s, false)", [wrong])
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="connect_timeout_ms"):
            session.execute("SELECT aws_lambda.invoke('ferry', '{}'::json)")


def test_a_session_that_waits_can_be_cancelled(session: psycopg.Connection, gateway: LambdaGateway) -> None:
    gateway.fail = "hang"
    session.execute("SET aws_lambda.request_timeout_ms = 900000; SET statement_timeout = 200")
    with pytest.raises(psycopg.errors.QueryCanceled):
        session.execute("SELECT aws_lambda.invoke('ferry', '{}'::json)")
    gateway.fail = None
    session.execute("RESET statement_timeout")
    assert session.execute("SELECT status_code FROM aws_lambda.invoke('ferry', '{}'::json)").fetchone() == (200,)


HUNG = """
import sys
from docferry.embedded.aws_lambda import LambdaGateway, install_standin
with LambdaGateway(sys.argv[2]) as gateway:
    install_standin(sys.argv[1], gateway)
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_a_gateway_whose_process_hangs_is_given_up(database: str, aws: EmbeddedDynamoDB) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HUNG, database, aws.endpoint_url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            with psycopg.connect(database, autocommit=True) as known, psycopg.connect(database, autocommit=True) as new:
                known.execute("SELECT aws_lambda.invoke('ferry', '{}'::json, NULL, 'DryRun')")
                os.kill(process.pid, signal.SIGSTOP)
                known.execute("SET aws_lambda.request_timeout_ms = 100; SET aws_lambda.connect_timeout_ms = 100")
                with pytest.raises(psycopg.Error, match="invoke API failed") as error:
                    known.execute("SELECT aws_lambda.invoke('ferry', '{}'::json, NULL, 'DryRun')")
                assert "Timeout was reached" in detail(error)
                # dblink knows no timeout for connecting since version 16, but lets itself be interrupted.
                new.execute("SET statement_timeout = 3000")
                expected = psycopg.errors.QueryCanceled if new.info.server_version >= 160000 else psycopg.Error
                with pytest.raises(expected):
                    new.execute("SELECT aws_lambda.invoke('ferry', '{}'::json, NULL, 'DryRun')")
        finally:
            process.kill()


# --- sessions and roles -------------------------------------------------------------------------------------------


def test_a_broken_connection_to_the_gateway_is_made_anew(session: psycopg.Connection, gateway: LambdaGateway) -> None:
    call = "SELECT status_code FROM aws_lambda.invoke('ferry', '{}'::json, NULL, 'DryRun')"
    for _ in range(3):
        assert session.execute(call.encode()).fetchone() == (204,)
        assert gateway.sessions == 1
        gateway.cut()
        until(lambda: gateway.sessions == 0, "all sessions have ended")


def test_a_kept_connection_to_the_endpoint_that_was_closed_is_made_anew(database: str) -> None:
    with EmbeddedDynamoDB(services=("lambda",)) as server, LambdaGateway(server.endpoint_url) as gateway:
        install(database, gateway)
        with psycopg.connect(database, autocommit=True) as session:
            for _ in range(2):
                with pytest.raises(psycopg.Error) as error:
                    session.execute("SELECT aws_lambda.invoke('nowhere', '{}'::json)")
                assert "Function not found" in detail(error)
                server.stop()
                server.start()


def test_a_session_follows_to_another_gateway(
    database: str, session: psycopg.Connection, gateway: LambdaGateway, aws: EmbeddedDynamoDB
) -> None:
    call = b"SELECT status_code FROM aws_lambda.invoke('ferry', '{}'::json, NULL, 'DryRun')"
    session.execute(call)
    with LambdaGateway(aws.endpoint_url) as other:
        install(database, other)
        session.execute(call)
        assert (gateway.calls, other.calls) == (1, 1)
    with pytest.raises(psycopg.Error) as error:
        session.execute(call)
    assert "Unable to connect to endpoint" in detail(error)


def test_many_sessions_at_once(database: str, session: psycopg.Connection, gateway: LambdaGateway) -> None:
    problems: list[object] = []

    def work(number: int) -> None:
        try:
            with psycopg.connect(database, autocommit=True) as connection:
                for turn in range(20):
                    payload = json.dumps({"worker": number, "turn": turn})
                    kind = "RequestResponse" if turn == 0 and number < 4 else "DryRun"
                    query = "SELECT status_code, payload FROM aws_lambda.invoke('ferry', %s::json, NULL, %s)"
                    row = connection.execute(query, [payload, kind]).fetchone()
                    assert row is not None
                    assert row[0] == (204 if kind == "DryRun" else 200)
                    assert kind == "DryRun" or row[1]["echo"] == {"worker": number, "turn": turn}
        except Exception as problem:  # noqa: BLE001 - the test's own thread reports it
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert problems == []
    assert (gateway.calls, gateway.failures) == (160, 0)


def test_an_ordinary_role_needs_what_it_needs_on_aurora(database: str, session: psycopg.Connection) -> None:
    role = f"role_{os.urandom(6).hex()}"
    session.execute(f"CREATE ROLE {role}".encode())
    call = b"SELECT status_code FROM aws_lambda.invoke('ferry', '{}'::json, NULL, 'DryRun')"
    try:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(f"SET ROLE {role}".encode())
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="schema aws_lambda"):
                connection.execute(call)
            session.execute(f"GRANT USAGE ON SCHEMA aws_lambda TO {role}".encode())
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="function invoke"):
                connection.execute(call)
            session.execute(
                "GRANT EXECUTE ON FUNCTION aws_lambda.invoke(text, json, text, text, text, json, varchar)"
                f" TO {role}".encode()
            )
            assert connection.execute(call).fetchone() == (204,)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("SELECT aws_lambda.call_gateway('ferry', NULL, '{}', 'Event', 'None', NULL, NULL)")
            connection.execute("SELECT aws_commons.create_lambda_function_arn('ferry', 'us-east-1')")
    finally:
        session.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


def test_it_is_installed_over_itself_and_beside_a_dblink_that_was_there(database: str, gateway: LambdaGateway) -> None:
    with psycopg.connect(database, autocommit=True) as session:
        session.execute('CREATE SCHEMA "Odd one"; CREATE EXTENSION dblink SCHEMA "Odd one"')
        install(database, gateway)
        install(database, gateway)
        call = b"SELECT status_code FROM aws_lambda.invoke('ferry', '{}'::json, NULL, 'DryRun')"
        assert session.execute(call).fetchone() == (204,)


def test_requests_are_signed_with_credentials(database: str, aws: EmbeddedDynamoDB) -> None:
    credentials = Credentials("AKIAIOSFODNN7EXAMPLE", "secret", "token")
    with LambdaGateway(aws.endpoint_url, credentials=credentials) as gateway:
        install(database, gateway)
        with psycopg.connect(database, autocommit=True) as session:
            call = b"SELECT status_code FROM aws_lambda.invoke('ferry', '{}'::json, NULL, 'DryRun')"
            assert session.execute(call).fetchone() == (204,)

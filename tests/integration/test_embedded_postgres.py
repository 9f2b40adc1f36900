"""The embedded PostgreSQL: every other test with a database stands on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psycopg
import pytest

from docferry.embedded import postgres as module
from docferry.embedded.postgres import EmbeddedPostgres
from docferry.embedded.postgres_binaries import embedded_bin, server_identity
from docferry.errors import DocferryError

from ..waiting import until


def one(dsn: str, statement: str) -> object:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(statement.encode()).fetchone()
        assert row is not None
        return row[0]


def run(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement.encode())


def processes_about(text: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_text(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if text in command and str(os.getpid()) != entry.parent.name:
            found.append(command)
    return found


def test_has_xml_and_logical_wal(postgres: EmbeddedPostgres, database: str) -> None:
    assert one(database, "SELECT (xpath('/a/b/text()', '<a><b>ä</b></a>'))[1]::text") == "ä"
    assert one(database, "SHOW wal_level") == "logical"
    assert one(database, "SHOW timezone") == "UTC"
    assert one(database, "SHOW server_encoding") == "UTF8"
    assert str(postgres.port) in database


def test_programs_run_in_its_environment(postgres: EmbeddedPostgres) -> None:
    if not (postgres.bin_dir / "psql").exists():
        pytest.skip("these binaries have no psql")
    command = [str(postgres.bin_dir / "psql"), "-XAt", "-c", "SELECT 41 + 1", postgres.dsn()]
    outcome = subprocess.run(command, env=postgres.environment, capture_output=True, text=True, check=True)
    assert outcome.stdout.strip() == "42"


def test_databases_are_fresh_and_dropped_with_all_that_holds_them(database: str) -> None:
    # What this test leaves, a slot and a prepared transaction, is the fixture's to clear.
    assert one(database, "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace") == 0
    run(database, f"SELECT pg_create_logical_replication_slot('{database[-8:]}', 'pgoutput')")
    with psycopg.connect(database, autocommit=True) as connection:
        for statement in (b"BEGIN", b"CREATE TABLE t (a int)", b"PREPARE TRANSACTION 'left'"):
            connection.execute(statement)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_restart_keeps_port_and_data(postgres_server: EmbeddedPostgres, mode: module.StopMode) -> None:
    dsn = postgres_server.dsn()
    run(dsn, "CREATE TABLE t AS SELECT 7 AS a")
    postgres_server.restart(mode)
    assert postgres_server.dsn() == dsn
    assert one(dsn, "SELECT a FROM t") == 7


def test_recovers_after_a_kill(postgres_server: EmbeddedPostgres) -> None:
    dsn = postgres_server.dsn()
    run(dsn, "CREATE TABLE t AS SELECT 7 AS a")
    data = str(postgres_server.data_directory)
    postgres_server.kill()
    assert not postgres_server.running
    assert [line for line in processes_about(data) if "postgres" in line and "reaper" not in line] == []
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(dsn)
    postgres_server.start()
    assert one(dsn, "SELECT a FROM t") == 7
    assert "not properly shut down" in postgres_server.log_tail(200)


def test_a_kill_ends_a_busy_session_too(postgres_server: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres_server.dsn()) as connection:
        outcomes: list[psycopg.Error | None] = []

        def work() -> None:
            try:
                connection.execute(BUSY)
                outcomes.append(None)
            except psycopg.Error as error:
                outcomes.append(error)

        pid = connection.info.backend_pid
        busy = threading.Thread(target=work, daemon=True)
        busy.start()
        try:
            until(lambda: one(postgres_server.dsn(), f"{IS_BUSY} AND pid = {pid}") == 1, "the statement runs")
        finally:
            postgres_server.kill()
        busy.join(30)
        assert not busy.is_alive()
        assert isinstance(outcomes[0], psycopg.OperationalError)
        connection.close()
    postgres_server.start()


# Never ends by itself, and takes neither memory nor disk meanwhile.
BUSY = b"DO $$ BEGIN LOOP PERFORM 1; END LOOP; END $$"
IS_BUSY = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'DO%LOOP%'"


def test_alter_system_holds_after_a_restart(postgres_server: EmbeddedPostgres) -> None:
    run(postgres_server.dsn(), "ALTER SYSTEM SET wal_level = 'replica'")
    postgres_server.restart()
    assert one(postgres_server.dsn(), "SHOW wal_level") == "replica"


def test_start_and_stop_may_be_repeated(postgres_server: EmbeddedPostgres) -> None:
    postgres_server.start()
    postgres_server.stop()
    postgres_server.stop()
    postgres_server.kill()
    postgres_server.start()
    assert one(postgres_server.dsn(), "SELECT 1") == 1


def test_leaves_nothing_behind() -> None:
    with EmbeddedPostgres({"application_name": "it's quoted"}) as server:
        directory = server.data_directory.parent
        assert one(server.dsn(), "SELECT reset_val FROM pg_settings WHERE name = 'application_name'") is not None
        assert processes_about(str(directory))
        server.kill()
    assert not directory.exists()
    assert processes_about(str(directory)) == []
    assert server.log_tail() == ""
    server.close()


def test_a_setting_the_server_refuses_is_reported_with_its_log() -> None:
    server = EmbeddedPostgres({"wal_level": "nonsense"})
    with pytest.raises(DocferryError, match='invalid value for parameter "wal_level"'):
        server.start()
    assert not server.running
    with pytest.raises(DocferryError, match="not been started"):
        _ = server.data_directory


def test_takes_another_port_when_the_first_is_lost(postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    offers = iter([postgres.port, module._free_port()])
    monkeypatch.setattr(module, "_free_port", lambda: next(offers))
    with EmbeddedPostgres(version_bin=postgres.bin_dir if os.environ.get("DOCFERRY_TEST_POSTGRES_BIN") else None) as it:
        assert it.port != postgres.port
        assert one(it.dsn(), "SELECT 1") == 1


PARENT = """
import sys, time
from docferry.embedded.postgres import EmbeddedPostgres
server = EmbeddedPostgres()
server.start()
print(server.data_directory.parent, flush=True)
time.sleep(600)
"""


def test_goes_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        directory = parent.stdout.readline().strip()
        assert directory
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    until(lambda: not Path(directory).exists(), "the directory is gone")
    until(lambda: processes_about(directory) == [], "the processes are gone")


AS_NOBODY = """
import os, pwd, sys
import psycopg
from docferry.embedded.postgres import EmbeddedPostgres
# Everything is imported first: the interpreter itself may lie where only root may read.
nobody = pwd.getpwnam("nobody")
os.setgroups([])
os.setgid(nobody.pw_gid)
os.setuid(nobody.pw_uid)
sys.prefix = sys.base_prefix  # no virtual environment to share: the programs go below HOME
with EmbeddedPostgres() as server, psycopg.connect(server.dsn()) as connection:
    print(os.geteuid() != 0, connection.execute("SELECT '<a/>'::xml").fetchone())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which only root can")
def test_works_as_an_ordinary_user_with_a_home_of_its_own(open_checkout: None) -> None:
    with tempfile.TemporaryDirectory() as home:
        Path(home).chmod(0o777)
        outcome = subprocess.run(
            [sys.executable, "-W", "error", "-c", AS_NOBODY],
            env={"HOME": home, "PATH": os.environ["PATH"]},
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        assert outcome.stdout.strip() == "True ('<a/>',)", outcome.stderr
        assert list(Path(home).glob(".cache/docferry/postgresql-*/bin/postgres"))


def test_two_may_unpack_at_once_and_a_closed_directory_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with tempfile.TemporaryDirectory() as cache:
        Path(cache).chmod(0o755)
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o700)
        monkeypatch.setattr(sys, "prefix", str(closed) if os.geteuid() == 0 else sys.base_prefix)
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
        found: list[Path] = []
        threads = [threading.Thread(target=lambda: found.append(embedded_bin(server_identity()))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(found)) == 1
        assert found[0].is_relative_to(cache)
        assert (found[0] / "initdb").exists()
        assert len(list(Path(cache).glob("docferry/*"))) == 1
        assert list(Path(cache).glob("docferry/.unpacking-*")) == []

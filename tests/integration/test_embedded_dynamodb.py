"""The embedded DynamoDB as a process: start, stop, crash, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest

from docferry.embedded import dynamodb as embedded
from docferry.embedded.dynamodb import EmbeddedDynamoDB
from docferry.errors import DocferryError


@contextmanager
def client_of(server: EmbeddedDynamoDB) -> Iterator[Any]:
    client = boto3.client("dynamodb", **server.client_options())  # type: ignore[call-overload]
    try:
        yield client
    finally:
        client.close()


def add(server: EmbeddedDynamoDB, number: int) -> None:
    with client_of(server) as client:
        if not client.list_tables()["TableNames"]:
            client.create_table(
                TableName="kept",
                KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
                AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "N"}],
                BillingMode="PAY_PER_REQUEST",
            )
        client.put_item(TableName="kept", Item={"id": {"N": str(number)}, "data": {"B": b"\x00\xff"}})


def items(server: EmbeddedDynamoDB) -> list[int]:
    with client_of(server) as client:
        found = client.scan(TableName="kept")["Items"]
        assert all(item["data"] == {"B": b"\x00\xff"} for item in found)
        return sorted(int(item["id"]["N"]) for item in found)


def ended(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    for _ in range(200):
        if not status.exists() or "State:\tZ" in status.read_text():
            return True
        time.sleep(0.05)
    return False


def test_items_survive_a_stop_and_a_crash_loses_only_what_came_after() -> None:
    with EmbeddedDynamoDB() as server:
        address = server.endpoint_url
        add(server, 1)
        server.stop()
        server.stop()
        server.start()
        assert server.start() is server
        assert server.endpoint_url == address
        assert items(server) == [1]
        add(server, 2)
        server.kill()
        server.start()
        assert items(server) == [1]
    assert not server.directory.exists()


def test_a_given_directory_stays_and_can_be_used_again(tmp_path: Path) -> None:
    for run in (1, 2):
        with EmbeddedDynamoDB(tmp_path) as server:
            add(server, run)
            assert items(server) == list(range(1, run + 1))
    assert (tmp_path / "dynamodb.log").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_it_ends_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from docferry.embedded.dynamodb import EmbeddedDynamoDB\n"
        "server = EmbeddedDynamoDB(sys.argv[1]).start()\n"
        "print(server._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not Path(f"/proc/{pid}/status").read_text().count("State:\tZ")
        parent.kill()
    assert ended(pid)


def test_a_start_that_fails_shows_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_CHILD", "raise SystemExit('no room on the ark')")
    server = EmbeddedDynamoDB()
    with pytest.raises(DocferryError, match="no room on the ark"):
        server.__enter__()
    assert not server.directory.exists()


def test_a_taken_port_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedDynamoDB() as first:
        ports = iter([first.port, embedded._free_port()])
        monkeypatch.setattr(embedded, "_free_port", lambda: next(ports))
        with EmbeddedDynamoDB() as second:
            assert second.port != first.port
            add(second, 7)
            add(first, 1)
            assert (items(first), items(second)) == ([1], [7])

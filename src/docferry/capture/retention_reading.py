"""Asking the source, and where it is on this machine the disk, what bounds the log that a slot keeps."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import errors as pg

from docferry.capture.retention import NOT_VISIBLE, Retention
from docferry.source.session import connect, translated
from docferry.source.statements import load

__all__ = ["read_retention"]

_SQL: Final = load("retention.sql")
_MONITOR = f"{NOT_VISIBLE}: GRANT pg_monitor to the role to see it"
_UNITS: Final = {"": 1, "B": 1, "kB": 1 << 10, "8kB": 8 << 10, "MB": 1 << 20, "ms": 0.001, "s": 1, "min": 60}

_Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]


def read_retention(dsn: str, slot: str) -> Retention:
    """What is found now. What the role may not see is left out, and said. Raises SourceUnavailable, SourceRefused."""
    with connect(dsn, purpose="setup") as connection, translated():
        settings = {name: (value, unit) for name, value, unit in _all(connection, "settings")}
        found = connection.execute(_SQL["slot"].encode(), (slot,)).fetchone()
        safe, _, active, failover, idle, retained = found or (None, "", False, None, None, None)
        named = settings.get("synchronized_standby_slots", ("", ""))[0]
        waits_for = tuple(name for name in (part.strip(' "') for part in named.split(",")) if name)
        unready = connection.execute(_SQL["unready_standby_slots"].encode(), (list(waits_for),)).fetchall()
        pg_wal = _pg_wal(connection)
        free, why_not = _free(connection, settings.get("data_directory", ("", ""))[0])
        return Retention(
            keep_limit=_limit(settings, "max_slot_wal_keep_size", unlimited="-1"),
            keep_size=_limit(settings, "wal_keep_size") or 0,
            idle_limit=_limit(settings, "idle_replication_slot_timeout", unlimited="0"),
            exists=found is not None,
            active=bool(active),
            retained=max(int(retained or 0), 0),
            safe=None if safe is None else int(safe),
            idle=None if active or idle is None else max(float(idle), 0.0),
            pg_wal=pg_wal,
            pg_wal_seen="" if pg_wal is not None else _MONITOR,
            free=free,
            free_seen=why_not,
            failover=failover,
            standbys=int(_one(connection, "standbys")),
            synchronising=_one(connection, "synchronising"),
            waits_for=waits_for,
            unready=tuple(name for (name,) in unready),
        )


def _limit(settings: dict[str, tuple[str, str]], name: str, unlimited: str = "") -> int | None:
    value, unit = settings.get(name, (unlimited, ""))
    return None if value == unlimited else int(int(value) * _UNITS[unit])


def _pg_wal(connection: _Connection) -> int | None:
    try:
        return int(_one(connection, "wal_on_disk"))
    except pg.InsufficientPrivilege:
        return None


def _free(connection: _Connection, data_directory: str) -> tuple[int | None, str]:
    """Free bytes of the disk that holds the log, and otherwise why they cannot be seen."""
    address, process = connection.execute(_SQL["addresses"].encode()).fetchone() or (None, 0)
    if not _is_here(address, process):
        return None, f"{NOT_VISIBLE}: the server is on another machine"
    if not data_directory:
        return None, _MONITOR
    for directory in (Path(data_directory, "pg_wal"), Path(data_directory)):
        # The log may be a link to another disk, and the directory above it is closed to most users.
        try:
            disk = os.statvfs(directory)
        except OSError:
            continue
        return disk.f_bavail * disk.f_frsize, ""
    return None, f"{NOT_VISIBLE}: {data_directory} cannot be reached"


def _is_here(address: str | None, process: int) -> bool:
    """Whether the server is on this machine: by its address, and, because that may lead through a tunnel or into a
    container, by its process."""
    if address is not None and not ipaddress.ip_address(address).is_loopback:
        return False
    if Path("/proc/self").exists():
        try:
            return b"postgres" in Path(f"/proc/{process}/cmdline").read_bytes()
        except OSError:
            return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _all(connection: _Connection, name: str) -> list[tuple[Any, ...]]:
    return connection.execute(_SQL[name].encode()).fetchall()


def _one(connection: _Connection, name: str) -> Any:
    row = connection.execute(_SQL[name].encode(), ()).fetchone()
    assert row is not None
    return row[0]

"""From the file's text to a Config, section by section."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, NoReturn
from urllib.parse import urlsplit

from docferry.config.dsn import looks_like_dsn
from docferry.config.listen import EXPECTED_ADDRESS, parse_address
from docferry.config.mirrors import read_mirrors
from docferry.config.model import (
    CONTROL,
    Auth,
    Capture,
    Config,
    DeadLettersConfig,
    HealthConfig,
    RunConfig,
    SourceConfig,
    SslMode,
    TargetConfig,
)
from docferry.config.names import SLOT
from docferry.config.section import Section
from docferry.config.triggers import read_lambda, read_triggers
from docferry.errors import ConfigError

__all__ = ["DEFAULT_PATH", "load", "parse"]

DEFAULT_PATH: Final = Path("docferry.toml")

_DSN_FORM = 'Write it as "postgresql://user@host:5432/database" or "host=... dbname=...".'
_ARN = re.compile(r"arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:[0-9]{12}:secret:\S+")
_REGION = re.compile(r"[a-z0-9-]{1,64}")
_PREFIX = re.compile(r"[A-Za-z0-9_.-]{0,200}")
_QUEUE = re.compile(r"https?://[^\s/]+/\S+")
_AUTHS: Final[tuple[Auth, ...]] = ("password", "rds-iam")
_SSL_MODES: Final[tuple[SslMode, ...]] = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_CAPTURES: Final[tuple[Capture, ...]] = ("replication", "outbox", "lambda")
# Longer than the oldest event there can be: 6 hours in Lambda, 14 days in a queue of SQS, and some to replay it.
_OLDEST_EVENT = 14 * 86400 + 6 * 3600
_TRIGGERS_TOMBSTONE_LIFETIME = 16 * 86400.0
# Tests cannot wait for days.
_SHORT_LIVED = "DOCFERRY_SHORT_LIVED_TOMBSTONES"


def load(path: Path | str = DEFAULT_PATH, environ: Mapping[str, str] | None = None) -> Config:
    """Read and check a file. `environ` (default: the process's) may override what `parse` says.

    Raises ConfigError, naming the file, the key, what was found and what was expected.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        remedy = "Write one with `docferry init`, or name yours with --config."
        raise ConfigError(f"{path}: there is no such file", remedy=remedy) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: this is not UTF-8 text (byte {error.start})", remedy="Save it as UTF-8.") from None
    except (OSError, ValueError) as error:
        remedy = "Name a file that can be read with --config."
        raise ConfigError(f"{path}: cannot be read: {error}", remedy=remedy) from error
    return parse(text, path, environ)


def parse(
    text: str,
    path: Path | str = DEFAULT_PATH,
    environ: Mapping[str, str] | None = None,
    *,
    needs_source: bool = True,
) -> Config:
    """Check the text of a file. `path` is for messages only.

    DOCFERRY_SOURCE_DSN, DOCFERRY_SOURCE_SECRET, DOCFERRY_SOURCE_AUTH, DOCFERRY_SOURCE_SSLMODE,
    DOCFERRY_SOURCE_SSLROOTCERT, DOCFERRY_TARGET_REGION, DOCFERRY_TARGET_ENDPOINT_URL and DOCFERRY_DEAD_LETTERS_QUEUE
    win over the file when they are not empty.
    `needs_source`: the database is told of; without it, what the file says of it does not count either. Raises
    ConfigError.
    """
    path = Path(path)
    environ = os.environ if environ is None else environ
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        remedy = "Mend the file there: text stands in quotes, and each key and each table is named once."
        raise ConfigError(f"{path}: this is not TOML: {error}", remedy=remedy) from error
    top = Section(str(path), "", content)
    source = _read_source(top.section("source"), environ, needs_source=needs_source)
    target = _read_target(top.section("target"), environ, source.capture)
    run = _read_run(top.section("run"))
    mirrors = read_mirrors(top, target.table_prefix)
    if source.capture != "replication" and any(mirror.collection == CONTROL for mirror in mirrors):
        top.refuse(
            "mirrors",
            f"a collection is called `{CONTROL}`, where docferry keeps its own state when triggers capture",
            remedy="Give the mirror another `collection`.",
        )
    dead_letters = _read_dead_letters(top.section("dead_letters"), environ)
    health = _read_health(top.section("health"))
    top.finish()
    return Config(source, target, mirrors, run, path, dead_letters, health)


def _read_source(section: Section, environ: Mapping[str, str], *, needs_source: bool) -> SourceConfig:
    default = SourceConfig()
    dsn = section.secret("dsn")
    secret = section.secret("secret")
    if secret is not None and not _ARN.fullmatch(secret):
        # Not shown: somebody may have taken the key's name for an invitation to put the password here.
        section.refuse("secret", "expected the ARN of a secret in AWS Secrets Manager (what was found is not shown)")
    if dsn is not None and secret is not None:
        section.refuse("secret", "`dsn` and `secret` exclude each other", remedy="Keep one of the two.")
    sslmode, sslrootcert = _read_tls(section, with_dsn=dsn is not None)
    if dsn is not None and not looks_like_dsn(dsn):
        section.refuse("dsn", "this is not a PostgreSQL connection string", remedy=_DSN_FORM)
    if override := environ.get("DOCFERRY_SOURCE_DSN"):
        if not looks_like_dsn(override):
            raise ConfigError("DOCFERRY_SOURCE_DSN: this is not a PostgreSQL connection string", remedy=_DSN_FORM)
        dsn, secret = override, None
    if override := environ.get("DOCFERRY_SOURCE_SECRET"):
        if not _ARN.fullmatch(override):
            _refuse_variable("DOCFERRY_SOURCE_SECRET", "the ARN of a secret in AWS Secrets Manager")
        dsn, secret = None, override
    auth = _read_auth(section, environ, secret)
    if secret is None:
        sslmode = sslrootcert = None
    sslmode, sslrootcert = _override_tls(sslmode, sslrootcert, environ, with_dsn=needs_source and dsn is not None)
    if not needs_source:
        dsn = secret = None
    elif dsn is None and secret is None:
        section.refuse("dsn", "missing", remedy="Set it, or `secret`, or the environment variable DOCFERRY_SOURCE_DSN.")
    capture = section.choice("capture", _CAPTURES) or default.capture
    publication = section.text("publication") or default.publication
    if len(publication.encode()) > 63:
        section.unexpected("publication", "a name of at most 63 bytes")
    slot = section.text("slot", pattern=SLOT, expected="1 to 63 of the characters a-z, 0-9 and _")
    heartbeat = section.duration("heartbeat_interval", default.heartbeat_interval, least=1)
    triggers = read_triggers(section, capture)
    lambda_ = read_lambda(section, capture)
    failover = section.flag("failover", default.failover)
    section.finish()
    return SourceConfig(
        dsn,
        secret,
        capture,
        publication,
        slot or default.slot,
        heartbeat,
        triggers,
        lambda_,
        failover,
        auth,
        sslmode,
        sslrootcert,
    )


def _read_tls(section: Section, *, with_dsn: bool) -> tuple[SslMode | None, str | None]:
    sslmode: SslMode | None = section.choice("sslmode", _SSL_MODES)
    sslrootcert = section.text("sslrootcert")
    for key, value in (("sslmode", sslmode), ("sslrootcert", sslrootcert)):
        if with_dsn and value is not None:
            section.refuse(key, "it is for `secret`; `dsn` has its own", remedy=f"Write {key}=... into `dsn`.")
    return sslmode, sslrootcert


def _override_tls(
    sslmode: SslMode | None, sslrootcert: str | None, environ: Mapping[str, str], *, with_dsn: bool
) -> tuple[SslMode | None, str | None]:
    for name in ("SSLMODE", "SSLROOTCERT"):
        # Not silently: somebody counts on it.
        if with_dsn and environ.get(f"DOCFERRY_SOURCE_{name}"):
            raise ConfigError(
                f"DOCFERRY_SOURCE_{name}: it is for a secret, and the source is told by a connection string",
                remedy=f"Write {name.lower()}=... into the connection string.",
            )
    if override := environ.get("DOCFERRY_SOURCE_SSLMODE"):
        chosen = next((one for one in _SSL_MODES if one == override), None)
        if chosen is None:
            raise ConfigError(
                f"DOCFERRY_SOURCE_SSLMODE: expected one of {', '.join(_SSL_MODES)}",
                remedy="Set it to one of these, or take it out of the environment.",
            )
        sslmode = chosen
    return sslmode, environ.get("DOCFERRY_SOURCE_SSLROOTCERT") or sslrootcert


def _read_auth(section: Section, environ: Mapping[str, str], secret: str | None) -> Auth:
    auth: Auth = section.choice("auth", _AUTHS) or "password"
    if override := environ.get("DOCFERRY_SOURCE_AUTH"):
        chosen = next((one for one in _AUTHS if one == override), None)
        if chosen is None:
            _refuse_variable("DOCFERRY_SOURCE_AUTH", f"one of {', '.join(_AUTHS)}")
        auth = chosen
    if auth == "password" or secret is None:
        return auth
    if environ.get("DOCFERRY_SOURCE_SECRET"):
        return "password"
    return section.refuse("auth", "`secret` holds a password", remedy="Keep one of the two.")


def _read_dead_letters(section: Section, environ: Mapping[str, str]) -> DeadLettersConfig:
    default = DeadLettersConfig()
    expected = "the URL of an SQS queue"
    queue = section.text("queue", pattern=_QUEUE, expected=expected)
    limit = section.whole("limit", default.limit, 1, 10**9)
    payload = section.flag("payload", default.payload)
    retention = section.duration("audit_retention", default.audit_retention, least=86400)
    section.finish()
    if override := environ.get("DOCFERRY_DEAD_LETTERS_QUEUE"):
        if not _QUEUE.fullmatch(override):
            _refuse_variable("DOCFERRY_DEAD_LETTERS_QUEUE", expected)
        queue = override
    return DeadLettersConfig(queue, limit, payload, retention)


def _read_health(section: Section) -> HealthConfig:
    default = HealthConfig()
    health = HealthConfig(
        stuck_after=section.duration("stuck_after", default.stuck_after, least=1),
        silent_after=section.duration("silent_after", default.silent_after, least=30),
    )
    section.finish()
    return health


def _read_target(section: Section, environ: Mapping[str, str], capture: Capture) -> TargetConfig:
    default = TargetConfig()
    if capture != "replication":
        default = replace(default, tombstone_lifetime=_TRIGGERS_TOMBSTONE_LIFETIME)
    section.choice("kind", ("dynamodb",))
    region = section.text("region", pattern=_REGION, expected='a region, such as "us-east-2"')
    endpoint = section.text("endpoint_url")
    if endpoint is not None and not _is_http(endpoint):
        section.refuse("endpoint_url", 'expected a URL such as "http://127.0.0.1:4566"; leave it out on AWS')
    prefix = section.text(
        "table_prefix", pattern=_PREFIX, expected="at most 200 of A-Z, a-z, 0-9, _, - and .", empty=True
    )
    target = TargetConfig(
        region=region,
        endpoint_url=endpoint,
        profile=section.text("profile"),
        table_prefix=prefix or "",
        kms_key=section.text("kms_key"),
        tombstone_lifetime=section.duration("tombstone_lifetime", default.tombstone_lifetime, least=1),
    )
    if capture == "lambda" and target.tombstone_lifetime < _OLDEST_EVENT and not environ.get(_SHORT_LIVED):
        section.refuse(
            "tombstone_lifetime",
            'with capture = "lambda", an event may be 14 days and 6 hours old when it is replayed from a queue, and '
            "without its tombstone it would bring a deleted row back",
            remedy='Leave it out (the default is "16d"), or set 15 days or more.',
        )
    section.finish()
    return _override_target(target, environ)


def _override_target(target: TargetConfig, environ: Mapping[str, str]) -> TargetConfig:
    if region := environ.get("DOCFERRY_TARGET_REGION"):
        if not _REGION.fullmatch(region):
            _refuse_variable("DOCFERRY_TARGET_REGION", 'a region, such as "us-east-2"')
        target = replace(target, region=region)
    if endpoint := environ.get("DOCFERRY_TARGET_ENDPOINT_URL"):
        if not _is_http(endpoint):
            _refuse_variable("DOCFERRY_TARGET_ENDPOINT_URL", 'a URL such as "http://127.0.0.1:4566"')
        target = replace(target, endpoint_url=endpoint)
    return target


def _read_run(section: Section) -> RunConfig:
    default = RunConfig()
    run = RunConfig(
        workers=section.whole("workers", default.workers, 1, 256),
        batch_changes=section.whole("batch_changes", default.batch_changes, 1, 100_000),
        batch_bytes=section.size("batch_bytes", default.batch_bytes, least=1024),
        in_flight_bytes=section.size("in_flight_bytes", default.in_flight_bytes, least=1024),
        linger=section.duration("linger", default.linger, least=0),
        on_schema_change=section.choice("on_schema_change", ("backfill", "warn")) or default.on_schema_change,
        backfill_workers=section.whole("backfill_workers", default.backfill_workers, 1, 64),
        backfill_page=section.whole("backfill_page", default.backfill_page, 1, 100_000),
        stop_grace=section.duration("stop_grace", default.stop_grace, least=0),
        reconcile=section.choice("reconcile", ("off", "report", "repair")) or default.reconcile,
        reconcile_rate=section.whole("reconcile_rate", int(default.reconcile_rate), 1, 1_000_000),
        listen=section.text("listen", expected=EXPECTED_ADDRESS),
    )
    if run.listen is not None and parse_address(run.listen) is None:
        section.unexpected("listen", EXPECTED_ADDRESS)
    if run.in_flight_bytes < run.batch_bytes:
        key = "in_flight_bytes" if "in_flight_bytes" in section.keys() else "batch_bytes"  # noqa: SIM118 - not a dict
        section.refuse(key, f"in_flight_bytes ({run.in_flight_bytes}) is less than batch_bytes ({run.batch_bytes})")
    section.finish()
    return run


def _refuse_variable(name: str, expected: str) -> NoReturn:
    raise ConfigError(f"{name}: expected {expected}", remedy=f"Change {name}, or unset it: then the file counts.")


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False

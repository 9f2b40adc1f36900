"""The configuration as the rest of docferry sees it: complete, checked, immutable. Durations: seconds, sizes: bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias

from docferry.config.dsn import safe_dsn

__all__ = [
    "CONTROL",
    "Auth",
    "Capture",
    "Config",
    "DeadLettersConfig",
    "DocumentConfig",
    "HealthConfig",
    "ItemKeyAttribute",
    "LambdaConfig",
    "MirrorConfig",
    "Reconcile",
    "RunConfig",
    "SourceConfig",
    "SslMode",
    "TargetConfig",
    "TriggerConfig",
]

CONTROL: Final = "docferry"
"""The control collection, without the target's table_prefix."""

Format: TypeAlias = Literal["xml", "json", "yaml"]
Reconcile: TypeAlias = Literal["off", "report", "repair"]
Capture: TypeAlias = Literal["replication", "outbox", "lambda"]
Auth: TypeAlias = Literal["password", "rds-iam"]
SslMode: TypeAlias = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]


@dataclass(frozen=True, slots=True)
class TriggerConfig:
    """How the triggers of the capture modes `outbox` and `lambda` are made.

    `enable_always`: they fire for replicated rows as well (session_replication_role = replica). `deferred`: in mode
    `lambda`, the row trigger is a deferred constraint trigger. `owner`: the role whose rights the trigger functions
    have, None for the one that applies.
    """

    enable_always: bool = False
    deferred: bool = True
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class LambdaConfig:
    """How mode `lambda` invokes the function.

    `function`: name or ARN. `region`: None for the target's. `payload_limit`: bytes of one event. `timeout`: seconds
    that invocations may add to a transaction, all together. `group`: one event for as many changes of a transaction as
    fit, otherwise one a change. `breaker_failures`: so many failures in a row open the circuit breaker, for
    `breaker_pause` seconds. `patience`: seconds that the function waits for a transaction whose event came before its
    commit.
    """

    function: str = "docferry"
    region: str | None = None
    payload_limit: int = 1_000_000
    timeout: float = 1.0
    group: bool = True
    breaker_failures: int = 3
    breaker_pause: float = 30.0
    patience: float = 5.0


@dataclass(frozen=True, slots=True)
class DeadLettersConfig:
    """Where dead letters are kept beside the table in the source. `queue`: the URL of an SQS queue. `limit`: as many
    kept in the source count as full. `payload`: what docferry puts into the queue holds the change itself, where that
    is at hand. `audit_retention`: seconds that the audit tells of those that are gone."""

    queue: str | None = None
    limit: int = 100_000
    payload: bool = True
    audit_retention: float = 90 * 86400.0


@dataclass(frozen=True, slots=True, repr=False)
class SourceConfig:
    """Where rows come from. Exactly one of `dsn` and `secret` (an ARN of AWS Secrets Manager) is set. `failover`: the
    slot follows to standbys, where the server can do that. `auth`: where the password comes from; `rds-iam` makes a
    token for each connection. `sslmode`, `sslrootcert`: libpq's, for `secret`; `dsn` holds its own."""

    dsn: str | None = None
    secret: str | None = None
    capture: Capture = "replication"
    publication: str = "docferry"
    slot: str = "docferry"
    heartbeat_interval: float = 10.0
    triggers: TriggerConfig = field(default_factory=TriggerConfig)
    lambda_: LambdaConfig = field(default_factory=LambdaConfig)
    failover: bool = True
    auth: Auth = "password"
    sslmode: SslMode | None = None
    sslrootcert: str | None = None

    def __repr__(self) -> str:
        dsn = None if self.dsn is None else safe_dsn(self.dsn)
        return (
            f"SourceConfig(dsn={dsn!r}, secret={self.secret!r}, capture={self.capture!r}, "
            f"publication={self.publication!r}, slot={self.slot!r}, heartbeat_interval={self.heartbeat_interval!r}, "
            f"triggers={self.triggers!r}, lambda_={self.lambda_!r}, failover={self.failover!r}, auth={self.auth!r}, "
            f"sslmode={self.sslmode!r}, sslrootcert={self.sslrootcert!r})"
        )


@dataclass(frozen=True, slots=True)
class TargetConfig:
    """Where items go. What is None is left to boto3's own search (environment, profile, instance role)."""

    kind: Literal["dynamodb"] = "dynamodb"
    region: str | None = None
    endpoint_url: str | None = None
    profile: str | None = None
    table_prefix: str = ""
    kms_key: str | None = None
    tombstone_lifetime: float = 7 * 86400.0

    @property
    def control(self) -> str:
        """The name of the collection where the capture modes by triggers keep the floors that all processes share."""
        return f"{self.table_prefix}{CONTROL}"


@dataclass(frozen=True, slots=True)
class DocumentConfig:
    """How one document column is read."""

    format: Format
    lists: frozenset[str] = frozenset()
    numbers: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ItemKeyAttribute:
    """One attribute of an item's key, made from key columns by `template`, such as `ORDER#{id}`."""

    name: str
    template: str


@dataclass(frozen=True, slots=True)
class MirrorConfig:
    """One table and its collection.

    `table`: schema and name, unquoted, joined by the first dot. `collection`: without the target's table_prefix.
    `key`: None takes the primary key. `item_key`: one or two attributes, None makes the key columns the item's key.
    `include`: None carries every column that is not in `exclude`.
    """

    table: str
    collection: str
    key: tuple[str, ...] | None = None
    item_key: tuple[ItemKeyAttribute, ...] | None = None
    include: frozenset[str] | None = None
    exclude: frozenset[str] = frozenset()
    documents: Mapping[str, DocumentConfig] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HealthConfig:
    """When a worker is not well. `stuck_after`: seconds in which it got nothing done while the target answered errors.
    `silent_after`: seconds in which one of its loops made no turn."""

    stuck_after: float = 60.0
    silent_after: float = 300.0


@dataclass(frozen=True, slots=True)
class RunConfig:
    """How hard `run`, `backfill` and `verify` work. `reconcile`: whether `run` verifies all the time, and mends what it
    finds, at `reconcile_rate` rows a second. `listen`: where `run` answers for its health, such as ":9187"."""

    workers: int = 4
    batch_changes: int = 200
    batch_bytes: int = 2**20
    in_flight_bytes: int = 32 * 2**20
    linger: float = 0.002
    on_schema_change: Literal["backfill", "warn"] = "backfill"
    backfill_workers: int = 4
    backfill_page: int = 500
    stop_grace: float = 30.0
    reconcile: Reconcile = "off"
    reconcile_rate: float = 200.0
    listen: str | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """All of `docferry.toml`, environment applied. `path`: the file it came from."""

    source: SourceConfig
    target: TargetConfig
    mirrors: tuple[MirrorConfig, ...]
    run: RunConfig
    path: Path
    dead_letters: DeadLettersConfig = field(default_factory=DeadLettersConfig)
    health: HealthConfig = field(default_factory=HealthConfig)

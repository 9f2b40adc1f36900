"""Creating, checking and removing tables."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from docferry.document.model import Collection
from docferry.errors import TargetRefused, TargetUnavailable
from docferry.target.dynamodb_errors import NOT_FOUND, Fault
from docferry.target.dynamodb_items import EXPIRY, TYPE_LETTERS

if TYPE_CHECKING:
    from docferry.target.dynamodb_connection import Connection

__all__ = ["Tables"]


class Tables:
    """The tables behind collections. `kms_key`: encrypt with this key instead of the one that DynamoDB owns."""

    def __init__(self, connection: Connection, kms_key: str | None) -> None:
        self._connection = connection
        self._kms_key = kms_key

    def create(self, collection: Collection) -> bool:
        created = False
        if self.described(collection) is None:
            created = self._create(collection)
        self._wait_until_active(collection)
        self._expire_tombstones(collection)
        self._connection.seen(collection.name)
        return created

    def described(self, collection: Collection) -> dict[str, Any] | None:
        """DynamoDB's description, None without such a table. Raises TargetRefused if it has another key."""
        try:
            table = self._connection.call("describe_table", "Table", _on(collection), TableName=collection.name)
        except Fault:
            return None
        found, wanted = _key_of(table), _wanted_key(collection)
        if found != wanted:
            raise TargetRefused(
                f"table {collection.name} has the key {_shown(found)}, and the mirror needs {_shown(wanted)}",
                remedy="Give the mirror another collection name, or set its key to that of the table.",
            )
        return table

    def drop(self, collection: Collection) -> bool:
        dropped = False
        attempt = 0
        while self.described(collection) is not None:
            try:
                self._connection.call("delete_table", "TableDescription", _on(collection), TableName=collection.name)
                dropped = True
            except Fault as fault:
                # Not found: a lost answer, or somebody else was quicker.
                dropped = dropped or fault.code in NOT_FOUND
            attempt = self._pause(attempt, collection, "deleted")
        return dropped

    def _create(self, collection: Collection) -> bool:
        key = list(zip(collection.key, ("HASH", "RANGE"), strict=False))
        encryption = {"Enabled": True, "SSEType": "KMS", "KMSMasterKeyId": self._kms_key}
        try:
            self._connection.call(
                "create_table",
                "TableDescription",
                _on(collection),
                TableName=collection.name,
                BillingMode="PAY_PER_REQUEST",
                KeySchema=[{"AttributeName": part.name, "KeyType": role} for part, role in key],
                AttributeDefinitions=[
                    {"AttributeName": part.name, "AttributeType": TYPE_LETTERS[part.kind]} for part, _ in key
                ],
                **({"SSESpecification": encryption} if self._kms_key else {}),
            )
        except Fault:
            return False  # somebody else was quicker
        return True

    def _wait_until_active(self, collection: Collection) -> None:
        attempt = 0
        while True:
            table = self.described(collection)
            if table is not None and table["TableStatus"] in ("ACTIVE", "UPDATING"):
                return
            attempt = self._pause(attempt, collection, "created")

    def _expire_tombstones(self, collection: Collection) -> None:
        attempt = 0
        while not self._expires(collection):
            try:
                self._connection.call(
                    "update_time_to_live",
                    "TimeToLiveSpecification",
                    _on(collection),
                    TableName=collection.name,
                    TimeToLiveSpecification={"Enabled": True, "AttributeName": EXPIRY},
                )
            except (Fault, TargetRefused):
                # Refused where somebody else, or an attempt whose answer was lost, has switched it on already.
                if attempt and not self._expires(collection):
                    raise
            else:
                return
            attempt = self._pause(attempt, collection, "expiring tombstones")

    def _expires(self, collection: Collection) -> bool:
        setting = self._connection.call(
            "describe_time_to_live", "TimeToLiveDescription", _on(collection), TableName=collection.name
        )
        if setting.get("TimeToLiveStatus") not in ("ENABLED", "ENABLING"):
            return False
        if setting.get("AttributeName") != EXPIRY:
            raise TargetRefused(
                f"table {collection.name} expires items by its attribute {setting.get('AttributeName')}",
                remedy=f"docferry needs time to live on {EXPIRY}: switch the other one off, or use another table.",
            )
        return True

    def _pause(self, attempt: int, collection: Collection, state: str) -> int:
        # AWS takes some ten seconds for a table: this is progress, not a failed attempt of which a few are enough.
        patient = replace(self._connection.retry, attempts=None)
        attempt += 1
        patient.wait(attempt, Fault("Pending", f"not {state} yet", TargetUnavailable).as_error(_on(collection)))
        return attempt


def _on(collection: Collection) -> str:
    return f"table {collection.name}"


def _wanted_key(collection: Collection) -> list[tuple[str, str]]:
    if not 1 <= len(collection.key) <= 2:
        raise TargetRefused(
            f"collection {collection.name} has {len(collection.key)} key attributes",
            remedy='DynamoDB takes one or two: set the mirror\'s `key`, or a template such as "{tenant}#{id}".',
        )
    return [(part.name, TYPE_LETTERS[part.kind]) for part in collection.key]


def _key_of(table: dict[str, Any]) -> list[tuple[str, str]]:
    types = {definition["AttributeName"]: definition["AttributeType"] for definition in table["AttributeDefinitions"]}
    schema = sorted(table["KeySchema"], key=lambda part: str(part["KeyType"]))  # HASH before RANGE
    return [(part["AttributeName"], types[part["AttributeName"]]) for part in schema]


def _shown(key: list[tuple[str, str]]) -> str:
    return " + ".join(f"{name} ({letter})" for name, letter in key)

"""Removing items that still are what they were seen to be: TRUNCATE's and the sweeper's work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from docferry.document.model import Collection, Key
from docferry.errors import Verdict
from docferry.target.dynamodb_entry import BATCH_STATEMENTS
from docferry.target.dynamodb_errors import CONDITION_FAILED, Fault, fault_of_statement
from docferry.target.dynamodb_items import GONE, VERSION, key_text, key_texts, quoted
from docferry.target.dynamodb_statements import delete_at_version, delete_below

if TYPE_CHECKING:
    from docferry.target.dynamodb_connection import Connection

__all__ = ["Removal", "below", "remove", "tombstone"]

_DOING = "a removal"


@dataclass(frozen=True, slots=True)
class Removal:
    """One conditional removal, as a PartiQL statement and as DeleteItem."""

    statement: str
    native: str


def below(collection: Collection, key: Key, version: int) -> Removal:
    """Of an item whose version is below `version`."""
    parameter = f'{{"N":"{version}"}}'
    return Removal(
        f"{delete_below(collection)}{','.join(key_texts(collection, key))},{parameter}]}}",
        _native(collection, key, "#v < :v", f'"#v":"{VERSION}"', f'":v":{parameter}'),
    )


def tombstone(collection: Collection, key: Key, version: int) -> Removal:
    """Of a tombstone of exactly this version."""
    parameters = f'{{"N":"{version}"}}', '{"BOOL":true}'
    return Removal(
        f"{delete_at_version(collection)}{','.join([*key_texts(collection, key), *parameters])}]}}",
        _native(
            collection,
            key,
            "#v = :v AND #g = :g",
            f'"#v":"{VERSION}","#g":"{GONE}"',
            f'":v":{parameters[0]},":g":{parameters[1]}',
        ),
    )


def remove(connection: Connection, collection: Collection, removals: Iterable[Removal]) -> int:
    """Carry them out; returns how many were not held back by their condition."""
    waiting = list(removals)
    removed = attempt = 0
    while waiting:
        left: list[Removal] = []
        faults: list[Fault] = []
        for start in range(0, len(waiting), BATCH_STATEMENTS):
            batch = waiting[start : start + BATCH_STATEMENTS]
            try:
                removed += _batch(connection, collection, batch, left, faults)
            except Fault as fault:
                if fault.verdict is Verdict.DEAD_LETTER:
                    removed += sum(_singly(connection, collection, removal) for removal in batch)
                    continue
                left += batch
                faults.append(fault)
        for met in faults:
            connection.check(met, _DOING, collection.name)
        if len(left) < len(waiting):
            connection.observer.moved()
        if left:
            attempt = connection.wait(attempt, faults[0], _DOING, collection.name)
        waiting = left
    return removed


def _batch(
    connection: Connection, collection: Collection, batch: list[Removal], left: list[Removal], faults: list[Fault]
) -> int:
    text = '{"Statements":[' + ",".join([removal.statement for removal in batch]) + "]}"
    answers = connection.send("BatchExecuteStatement", text)["Responses"]
    connection.seen(collection.name)
    removed = 0
    for removal, answer in zip(batch, answers, strict=True):
        if "Error" not in answer:
            removed += 1
            continue
        fault = fault_of_statement(answer["Error"])
        if fault.code in CONDITION_FAILED:
            continue  # something newer came, or it is gone already
        if fault.verdict is Verdict.DEAD_LETTER:
            removed += _singly(connection, collection, removal)
            continue
        left.append(removal)
        faults.append(fault)
    return removed


def _singly(connection: Connection, collection: Collection, removal: Removal) -> bool:
    try:
        connection.send_until_answered("DeleteItem", removal.native, _DOING, collection.name, CONDITION_FAILED)
    except Fault:
        return False
    return True


def _native(collection: Collection, key: Key, condition: str, names: str, values: str) -> str:
    given = f',"ExpressionAttributeValues":{{{values}}}' if values else ""
    return (
        f'{{"TableName":{quoted(collection.name)},"Key":{key_text(collection, key)},'
        f'"ConditionExpression":"{condition}","ExpressionAttributeNames":{{{names}}}{given}}}'
    )

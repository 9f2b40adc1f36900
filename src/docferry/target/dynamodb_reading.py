"""Reading items, by key and by the page, as the client gives them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from docferry.document.model import Collection, Key
from docferry.errors import Interrupted, TargetUnavailable
from docferry.target.dynamodb_errors import Fault
from docferry.target.dynamodb_items import VERSION, decode_key, key_text, quoted

if TYPE_CHECKING:
    from docferry.target.dynamodb_connection import Connection

__all__ = ["read_items", "scan_items", "versions_below"]

KEYS_PER_REQUEST = 100
_DOING = "a read"
# DynamoDB ends a page at 1 MB by itself; what else speaks its language may not.
_PAGE = 1000

Attributes = dict[str, Any]


def read_items(
    connection: Connection, collection: Collection, keys: Sequence[Key], names: Sequence[str] = ()
) -> Iterator[Attributes]:
    """Those of the items that exist, in no order, consistently read. `names`: only these attributes, and the key.
    The keys must be distinct."""
    restriction = _projection(collection, names) if names else ""
    for start in range(0, len(keys), KEYS_PER_REQUEST):
        waiting = keys[start : start + KEYS_PER_REQUEST]
        attempt = 0
        while waiting:
            texts = ",".join([key_text(collection, key) for key in waiting])
            wanted = f'{{"Keys":[{texts}],"ConsistentRead":true{restriction}}}'
            request = f'{{"RequestItems":{{{quoted(collection.name)}:{wanted}}}}}'
            answer = connection.send_until_answered("BatchGetItem", request, _DOING, collection.name)
            yield from answer["Responses"].get(collection.name, ())
            left = answer.get("UnprocessedKeys", {}).get(collection.name, {}).get("Keys", ())
            if len(left) == len(waiting):
                fault = Fault("UnprocessedKeys", "", TargetUnavailable)
                attempt = connection.wait(attempt, fault, _DOING, collection.name)
            waiting = [decode_key(collection, key) for key in left]


def scan_items(connection: Connection, collection: Collection, segment: int, segments: int) -> Iterator[Attributes]:
    """Every item of a segment, consistently read page by page."""
    for page in _pages(connection, collection, f',"Limit":{_PAGE},"Segment":{segment},"TotalSegments":{segments}'):
        yield from page


def versions_below(connection: Connection, collection: Collection, version: int) -> Iterator[list[Attributes]]:
    """Pages of key and version of every item below `version`. What carries none is somebody else's."""
    names = "".join(f',"#k{i}":{quoted(part.name)}' for i, part in enumerate(collection.key))
    keys = "".join(f",#k{i}" for i in range(len(collection.key)))
    return _pages(
        connection,
        collection,
        f',"ProjectionExpression":"#v{keys}","FilterExpression":"#v < :v",'
        f'"ExpressionAttributeNames":{{"#v":"{VERSION}"{names}}},'
        f'"ExpressionAttributeValues":{{":v":{{"N":"{version}"}}}}',
    )


def _pages(connection: Connection, collection: Collection, restriction: str) -> Iterator[list[Attributes]]:
    start = ""
    while True:
        request = f'{{"TableName":{quoted(collection.name)},"ConsistentRead":true{restriction}{start}}}'
        answer = connection.send_until_answered("Scan", request, _DOING, collection.name)
        yield answer["Items"]
        last = answer.get("LastEvaluatedKey")
        if not last:
            return
        if connection.retry.stop.is_set():
            raise Interrupted(f"stopped while reading through {collection.name}")
        start = f',"ExclusiveStartKey":{key_text(collection, decode_key(collection, last))}'


def _projection(collection: Collection, names: Sequence[str]) -> str:
    wanted = [*(part.name for part in collection.key), *names]
    expression = ",".join(f"#n{i}" for i in range(len(wanted)))
    listed = ",".join(f'"#n{i}":{quoted(name)}' for i, name in enumerate(wanted))
    return f',"ProjectionExpression":"{expression}","ExpressionAttributeNames":{{{listed}}}'

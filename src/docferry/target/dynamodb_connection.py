"""The way to DynamoDB: boto3's client, given our own request text, with faults sorted and outages waited out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Container
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from docferry.errors import TargetRefused, TargetUnavailable, Verdict
from docferry.failpoints import failpoint
from docferry.retry import Retry
from docferry.target.contract import TargetObserver, Unobserved
from docferry.target.dynamodb_errors import BUSY, NOT_FOUND, THROTTLED, Fault, fault_of_exception

if TYPE_CHECKING:
    from botocore.client import BaseClient

__all__ = ["Connection", "new_client"]

_log = logging.getLogger("docferry.target")

CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 20.0


class _ByText(NamedTuple):
    """An operation sent as text. `parameters`: what the client wants to see before it chooses an endpoint. `member`:
    what a true answer holds."""

    method: str
    parameters: dict[str, Any]
    member: str


_BY_TEXT = {
    "BatchExecuteStatement": _ByText("batch_execute_statement", {"Statements": []}, "Responses"),
    "BatchGetItem": _ByText("batch_get_item", {"RequestItems": {}}, "Responses"),
    "DeleteItem": _ByText("delete_item", {}, ""),
    "PutItem": _ByText("put_item", {}, ""),
    "Scan": _ByText("scan", {}, "Items"),
}


def new_client(*, connections: int, **options: Any) -> BaseClient:
    """A boto3 client made for this: it retries nothing itself, checks no parameters, keeps a connection for each
    thread."""
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        max_pool_connections=connections,
        parameter_validation=False,
        retries={"mode": "standard", "total_max_attempts": 1},
        tcp_keepalive=True,
        user_agent_extra="docferry",
    )
    session = boto3.session.Session(profile_name=options.pop("profile_name", None))
    return cast("BaseClient", session.client("dynamodb", config=config, **options))


class Connection:
    """Sends requests. Signing, endpoints, credentials and parsing stay the client's; only its parameter serialiser,
    which takes most of the time of a write, is passed by: the request's text is put in its place before it is signed.
    """

    def __init__(self, client: BaseClient, retry: Retry, observer: TargetObserver | None = None) -> None:
        self._client = client
        self.retry = retry
        self.observer = observer or Unobserved()
        self._text = threading.local()
        self._seen: set[str] = set()
        for operation in _BY_TEXT:
            client.meta.events.register_first(
                f"before-call.dynamodb.{operation}", self._put_text, unique_id=f"docferry-{id(self)}-{operation}"
            )

    def send(self, operation: str, text: str) -> dict[str, Any]:
        """One attempt at a data operation whose request is `text`. Raises Fault."""
        method, parameters, member = _BY_TEXT[operation]
        self._text.body = text.encode()
        try:
            with failpoint("target.request"):
                return self._attempt(method, parameters, member)
        except (TargetRefused, TargetUnavailable) as error:
            raise Fault("Failpoint", str(error), type(error)) from error
        finally:
            self._text.body = None

    def send_until_answered(
        self, operation: str, text: str, doing: str, collection: str, answers: Container[str] = ()
    ) -> dict[str, Any]:
        """Like send(), outages waited out. What no patience helps is raised as TargetRefused, codes in `answers` as the
        Fault that they are."""
        attempt = 0
        while True:
            try:
                answer = self.send(operation, text)
            except Fault as fault:
                if fault.code in answers:
                    raise
                self.check(fault, doing, collection)
                attempt = self.wait(attempt, fault, doing, collection)
            else:
                self.seen(collection)
                self.observer.moved()
                return answer

    def call(self, method: str, member: str, doing: str, **parameters: Any) -> dict[str, Any]:
        """A control operation and the `member` of its answer, outages waited out. Raises Fault for an absent or a busy
        table, else TargetRefused."""
        attempt = 0
        while True:
            try:
                answer: dict[str, Any] = self._attempt(method, parameters, member)[member]
            except Fault as fault:
                if fault.code in NOT_FOUND or fault.code in BUSY:
                    raise
                self.check(fault, doing)
                attempt = self.wait(attempt, fault, doing, str(parameters.get("TableName", "")))
            else:
                self.observer.moved()
                return answer

    def check(self, fault: Fault, doing: str, collection: str | None = None) -> None:
        """Raises what another attempt does not help."""
        if fault.code in NOT_FOUND and collection not in self._seen:
            raise TargetRefused(f"collection {collection} does not exist", remedy="Run `docferry apply`.") from fault
        if fault.verdict is not Verdict.RETRY:
            raise fault.as_error(doing) from fault

    def wait(self, attempt: int, fault: Fault, doing: str, collection: str = "") -> int:
        """Sleep before the next attempt, and return its number."""
        attempt += 1
        if attempt == 3 or attempt % 20 == 0:
            _log.warning(
                "%s: DynamoDB does not take it (%s); attempt %d follows after a pause",
                doing,
                fault,
                attempt + 1,
                extra={"collection": collection, "cause": fault.code, "attempt": attempt},
            )
        self.observer.held_up(collection, str(fault), throttled=fault.code in THROTTLED)
        self.retry.wait(attempt, fault.as_error(doing))
        return attempt

    def seen(self, collection: str) -> None:
        """The collection has answered: should it be missing later, that is an outage, not a mistake."""
        self._seen.add(collection)

    def close(self) -> None:
        self._client.close()

    def _attempt(self, method: str, parameters: dict[str, Any], member: str) -> dict[str, Any]:
        try:
            answer = cast("dict[str, Any]", getattr(self._client, method)(**parameters))
        except (ClientError, BotoCoreError, ResponseParserError) as error:
            raise fault_of_exception(error, self._client.meta.endpoint_url) from error
        # The client takes half an answer, or the page of some proxy in between, for an empty answer.
        kind = answer["ResponseMetadata"]["HTTPHeaders"].get("content-type", "")
        if "amz-json" not in kind or (member and member not in answer):
            raise Fault("BadAnswer", f"{method} got an answer ({kind}) that is not DynamoDB's", TargetUnavailable)
        return answer

    def _put_text(self, params: dict[str, Any], **_: Any) -> None:
        body = getattr(self._text, "body", None)
        if body is not None:
            params["body"] = body

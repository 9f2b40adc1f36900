"""The call that `aws_lambda.invoke` makes: Lambda's Invoke, over one kept HTTP connection, within its timeouts."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import http.client
import json
import select
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:  # an optional dependency
    from botocore.credentials import Credentials

__all__ = ["UNREACHABLE", "Answer", "Call", "InvokeFailed", "LambdaConnection"]

EVENT_LIMIT = 1_048_576
"""Bytes of an asynchronous invocation's payload; Lambda refuses more."""
REQUEST_LIMIT = 6_291_556
"""Bytes of a synchronous invocation's payload."""

UNREACHABLE = "Unable to connect to endpoint"


class InvokeFailed(Exception):
    """The invocation was not accepted, as far as its caller can know; the text is what the AWS client would say."""


@dataclass(frozen=True, slots=True)
class Call:
    """One `aws_lambda.invoke`. Timeouts are in seconds; `context` is JSON text."""

    function: str
    region: str | None
    payload: bytes
    kind: str
    log_type: str
    context: str | None
    qualifier: str | None
    connect_timeout: float
    request_timeout: float

    def check(self) -> None:
        """Raises InvokeFailed for what Lambda itself would refuse and emulators let pass."""
        if self.kind not in ("RequestResponse", "Event", "DryRun"):
            raise InvokeFailed(f"Value '{self.kind}' at 'invocationType' is not one of RequestResponse, Event, DryRun")
        if self.log_type not in ("None", "Tail"):
            raise InvokeFailed(f"Value '{self.log_type}' at 'logType' is not one of None, Tail")
        limit = EVENT_LIMIT if self.kind == "Event" else REQUEST_LIMIT
        if len(self.payload) > limit:
            raise InvokeFailed(f"Request must be smaller than {limit} bytes for the InvokeFunction operation")
        if self.region and (named := _region_of(self.function)) and named != self.region:
            raise InvokeFailed(f"Region {self.region} is not that of {self.function}")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; `error` is the header X-Amz-Function-Error: the function ran and failed."""

    status: int
    payload: str | None = None
    version: str | None = None
    log: str | None = None
    error: str | None = None


class LambdaConnection:
    """A connection to a Lambda endpoint, opened when needed and kept. For one thread."""

    def __init__(self, endpoint_url: str, region: str, credentials: Credentials | None = None) -> None:
        parts = urlsplit(endpoint_url)
        self._endpoint = endpoint_url.rstrip("/")
        self._host = parts.hostname or "localhost"
        self._port = parts.port
        self._prefix = parts.path.rstrip("/")
        self._secure = parts.scheme == "https"
        self._region = region
        self._credentials = credentials
        self._kept: http.client.HTTPConnection | None = None

    def close(self) -> None:
        """Close the kept connection, if any."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.close()

    def invoke(self, call: Call) -> Answer:
        """Raises InvokeFailed when Lambda refuses, is not reached or does not answer in time."""
        path = f"{self._prefix}/2015-03-31/functions/{quote(call.function, safe='')}/invocations"
        if call.qualifier:
            path += f"?Qualifier={quote(call.qualifier, safe='')}"
        headers = self._headers(call, path)
        connection = self._open(call.connect_timeout)
        try:
            response, body = _exchange(connection, path, call.payload, headers, call.request_timeout)
        except TimeoutError:
            self.close()
            raise InvokeFailed("Timeout was reached") from None
        except (OSError, http.client.HTTPException) as error:
            # Not tried again: the request may have been carried out.
            self.close()
            raise InvokeFailed(f"Network connection: {error}") from None
        if response.will_close:
            self.close()
        return _answer(response, body)

    def _open(self, timeout: float) -> http.client.HTTPConnection:
        """The kept connection, unless the other end closed it, or a new one."""
        if self._kept is not None:
            if not _is_stale(self._kept):
                return self._kept
            self.close()
        make = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = make(self._host, self._port, timeout=timeout)
        try:
            connection.connect()
        except OSError:
            connection.close()
            raise InvokeFailed(UNREACHABLE) from None
        self._kept = connection
        return connection

    def _headers(self, call: Call, path: str) -> dict[str, str]:
        headers = {
            "Content-Type": "application/json",
            "X-Amz-Invocation-Type": call.kind,
            "X-Amz-Log-Type": call.log_type,
        }
        if call.context is not None:
            headers["X-Amz-Client-Context"] = base64.b64encode(call.context.encode()).decode()
        region = call.region or _region_of(call.function) or self._region
        if self._credentials is None:
            headers["Authorization"] = _unsigned(region)
            return headers
        return _signed(self._credentials, region, self._endpoint + path.removeprefix(self._prefix), call, headers)


def _exchange(
    connection: http.client.HTTPConnection, path: str, payload: bytes, headers: dict[str, str], timeout: float
) -> tuple[http.client.HTTPResponse, bytes]:
    """One request and its answer. Each step has what is left of `timeout` seconds."""
    deadline = time.monotonic() + timeout
    socket = connection.sock
    socket.settimeout(timeout)
    connection.request("POST", path, payload, headers)
    socket.settimeout(max(0.001, deadline - time.monotonic()))
    response = connection.getresponse()
    with contextlib.suppress(OSError):  # an answer that ends its connection has closed the socket
        socket.settimeout(max(0.001, deadline - time.monotonic()))
    return response, response.read()


def _answer(response: http.client.HTTPResponse, body: bytes) -> Answer:
    text = body.decode("utf-8", errors="replace")
    if response.status >= 300:
        raise InvokeFailed(_refusal(response, text))
    return Answer(
        status=response.status,
        payload=text or None,
        version=response.getheader("X-Amz-Executed-Version"),
        log=response.getheader("X-Amz-Log-Result"),
        error=response.getheader("X-Amz-Function-Error"),
    )


def _refusal(response: http.client.HTTPResponse, text: str) -> str:
    """The message of an error answer, with its code in front."""
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {}
    code = response.getheader("X-Amzn-ErrorType") or document.get("__type") or f"HTTP {response.status}"
    message = document.get("message") or document.get("Message") or text or response.reason
    return f"{str(code).partition(':')[0]}: {message}"


def _is_stale(connection: http.client.HTTPConnection) -> bool:
    """Whether the other end has closed it, or said something nobody asked for."""
    if connection.sock is None:
        return True
    readable, _, _ = select.select([connection.sock], [], [], 0)
    return bool(readable)


def _region_of(function: str) -> str | None:
    """The Region in a full ARN; None for a name or a partial ARN."""
    parts = function.split(":")
    return parts[3] if parts[0] == "arn" and len(parts) > 3 else None


def _unsigned(region: str) -> str:
    """Emulators check no signature, but read the Region from where it stands."""
    return (
        f"AWS4-HMAC-SHA256 Credential=test/{dt.datetime.now(dt.UTC):%Y%m%d}/{region}/lambda/aws4_request, "
        "SignedHeaders=host, Signature=0"
    )


def _signed(credentials: Credentials, region: str, url: str, call: Call, headers: dict[str, str]) -> dict[str, str]:
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest

    request: Any = AWSRequest(method="POST", url=url, data=call.payload, headers=headers)
    SigV4Auth(credentials, "lambda", region).add_auth(request)
    return dict(request.headers.items())

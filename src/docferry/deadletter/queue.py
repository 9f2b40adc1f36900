"""The way to one SQS queue: calls in batches of ten, outages waited out, refusals said with their remedy."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from docferry.errors import ConfigError, DocferryError, MissingExtra, TargetRefused, TargetUnavailable
from docferry.retry import Retry

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

__all__ = ["MAX_MESSAGE_BYTES", "Message", "Queue", "TooLong"]

_log = logging.getLogger("docferry.deadletter")
_T = TypeVar("_T")

MAX_MESSAGE_BYTES: Final = 1_048_576
"""Of a message, and of all messages of one request: 1 MiB, since August 2025; 262,144 before
(https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html)."""

_BATCH: Final = 10
_CONNECT_TIMEOUT: Final = 5.0
_READ_TIMEOUT: Final = 30.0  # longer than the longest poll
_PASSING: Final = frozenset(
    (
        "InternalError",
        "InternalFailure",
        "KmsThrottled",
        "OverLimit",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestTimeout",
        "ServiceUnavailable",
        "Throttling",
        "ThrottlingException",
    )
)
# Of the client, or of a class above: the service, or what gives credentials, cannot be reached or does not speak.
_UNREACHABLE: Final = frozenset(
    (
        "ChecksumError",
        "ConnectionError",
        "CredentialRetrievalError",
        "HTTPClientError",
        "IncompleteReadError",
        "MetadataRetrievalError",
        "ResponseParserError",
    )
)
_ABSENT: Final = frozenset(("NonExistentQueue", "QueueDoesNotExist"))
_DENIED: Final = frozenset(("AccessDenied", "AccessDeniedException", "KmsAccessDenied", "UnauthorizedOperation"))
_LOST: Final = frozenset(("ReceiptHandleIsInvalid", "MessageNotInflight", "InvalidParameterValue"))
_TOO_LONG: Final = frozenset(("BatchRequestTooLong", "InvalidParameterValue"))
_RIGHTS: Final = (
    "Allow sqs:ReceiveMessage, sqs:DeleteMessage, sqs:ChangeMessageVisibility, sqs:SendMessage and "
    "sqs:GetQueueAttributes on the queue, and where it is encrypted with a key of your own kms:Decrypt and "
    "kms:GenerateDataKey on that."
)
_CREDENTIALS: Final = "Give docferry valid AWS credentials: environment variables, a profile, or a role."
_CHECK_URL: Final = "Check [dead_letters] queue: it is the queue's URL, with region and account."
_UNANSWERED: Final = "Check that the queue's endpoint answers and that [dead_letters] queue and credentials are right."


class TooLong(Exception):
    """The queue takes only shorter messages."""


@dataclass(frozen=True, slots=True)
class Message:
    """A received message. `attributes`: its own, as text."""

    id: str
    receipt: str
    body: str
    attributes: dict[str, str]
    sent_at: datetime


class Queue:
    """One standard queue. `options`: for boto3's client (region_name, endpoint_url, profile_name, credentials ...).

    Every call is repeated through throttling and outages until the retry policy says stop, and raises TargetUnavailable
    then; TargetRefused for what no patience helps. Safe to call from several threads.
    """

    def __init__(self, url: str, options: Mapping[str, Any], retry: Retry) -> None:
        if url.endswith(".fifo"):
            raise ConfigError(
                f"the dead-letter queue {url} is a FIFO queue",
                remedy="Name a standard queue in [dead_letters] queue; Lambda can use no other either.",
            )
        self.url = url
        self._retry = retry
        self._client = _new_client(url, **options)

    def receive(self, *, visibility: int, wait: int) -> list[Message]:
        """Up to ten messages, invisible to others for `visibility` seconds; waits for the first up to `wait`. None
        while as many are in flight as SQS allows."""
        answer = self._call(
            "a receive",
            lambda: self._client.receive_message(
                QueueUrl=self.url,
                MaxNumberOfMessages=_BATCH,
                VisibilityTimeout=visibility,
                WaitTimeSeconds=wait,
                MessageSystemAttributeNames=["SentTimestamp"],
                MessageAttributeNames=["All"],
            ),
            instead={"OverLimit": {}},
        )
        return [_message(one) for one in answer.get("Messages", ())]

    def send(self, bodies: Sequence[str]) -> None:
        """All are in the queue when this returns. Raises TooLong, with some of them sent, when the queue takes only
        shorter ones."""
        for batch in _batches(bodies):
            left = [{"Id": str(number), "MessageBody": body} for number, body in enumerate(batch)]
            self._repeat(
                "a send",
                left,
                lambda entries: self._client.send_message_batch(QueueUrl=self.url, Entries=entries),
                TooLong,
                _TOO_LONG,
            )

    def delete(self, receipts: Sequence[str]) -> list[bool]:
        """Whether each message was deleted; False when it is not ours any more, because its time ran out."""
        return self._each(
            "a delete",
            receipts,
            {},
            lambda entries: self._client.delete_message_batch(QueueUrl=self.url, Entries=entries),
        )

    def set_visibility(self, receipts: Sequence[str], seconds: int) -> list[bool]:
        """Keep the messages invisible for so long from now; 0 gives them back. False for those that are not ours any
        more."""
        return self._each(
            "a change of visibility",
            receipts,
            {"VisibilityTimeout": seconds},
            lambda entries: self._client.change_message_visibility_batch(QueueUrl=self.url, Entries=entries),
        )

    def counts(self) -> tuple[int, int]:
        """About how many messages wait, and how many are received and not yet deleted. Raises TargetRefused where we
        may not ask."""
        answer = self._call(
            "a count",
            lambda: self._client.get_queue_attributes(
                QueueUrl=self.url,
                AttributeNames=["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"],
            ),
        )["Attributes"]
        return int(answer["ApproximateNumberOfMessages"]), int(answer["ApproximateNumberOfMessagesNotVisible"])

    def close(self) -> None:
        """Release connections."""
        self._client.close()

    def _each(
        self, doing: str, receipts: Sequence[str], extra: Mapping[str, Any], call: Callable[[Any], Any]
    ) -> list[bool]:
        done: list[bool] = []
        for start in range(0, len(receipts), _BATCH):
            batch = receipts[start : start + _BATCH]
            entries = [{"Id": str(number), "ReceiptHandle": one, **extra} for number, one in enumerate(batch)]
            lost = self._repeat(doing, entries, call, None, _LOST)
            done.extend(str(number) not in lost for number in range(len(batch)))
        return done

    def _repeat(
        self,
        doing: str,
        entries: list[dict[str, Any]],
        call: Callable[[Any], Any],
        final: type[Exception] | None,
        final_codes: frozenset[str],
    ) -> set[str]:
        """Send a batch until every entry has its answer; returns the Ids of those that failed with one of
        `final_codes`, or raises `final` for them."""
        given_up: set[str] = set()
        attempt = 0
        while entries:
            answer = self._call(doing, partial(call, entries))
            again: set[str] = set()
            for failed in answer.get("Failed", ()):
                code = _short(failed.get("Code", "?"))
                if code in final_codes and failed.get("SenderFault", True):
                    if final is not None:
                        raise final(failed.get("Message", code))
                    given_up.add(failed["Id"])
                elif failed.get("SenderFault") and code not in _PASSING:
                    raise self._refused(doing, code, failed.get("Message", ""))
                else:
                    again.add(failed["Id"])
            entries = [entry for entry in entries if entry["Id"] in again]
            if entries:
                attempt = self._wait(attempt, doing, f"{len(entries)} entries failed")
        return given_up

    def _call(self, doing: str, call: Callable[[], _T], instead: Mapping[str, Any] | None = None) -> _T:
        """`instead`: answers for codes that are none of this call's fault."""
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        attempt = 0
        while True:
            try:
                return call()
            except ClientError as error:
                code = _short(error.response.get("Error", {}).get("Code", "?"))
                status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
                message = error.response.get("Error", {}).get("Message", "")
                if instead and code in instead:
                    # Whoever gives `instead` gives answers of the call's own kind.
                    return instead[code]  # type: ignore[no-any-return]
                if code in _TOO_LONG and doing == "a send":
                    raise TooLong(message) from error
                if code not in _PASSING and status not in (408, 429) and status < 500:
                    raise self._refused(doing, code, message) from error
                attempt = self._wait(attempt, doing, f"{code}: {message}", error)
            except (BotoCoreError, ResponseParserError) as error:
                if _UNREACHABLE & {kind.__name__ for kind in type(error).__mro__}:
                    attempt = self._wait(attempt, doing, str(error), error)
                    continue
                raise TargetRefused(
                    f"dead-letter queue {self.url}: {doing} failed: {type(error).__name__}: {error}",
                    remedy=_CREDENTIALS if "Credential" in type(error).__name__ else _CHECK_URL,
                ) from error

    def _wait(self, attempt: int, doing: str, what: str, cause: Exception | None = None) -> int:
        attempt += 1
        text = f"dead-letter queue {self.url}: {doing} failed: {what}"
        if attempt == 3 or attempt % 20 == 0:
            _log.warning("%s; attempt %d follows after a pause", text, attempt + 1)
        error: DocferryError = TargetUnavailable(text, remedy=_UNANSWERED)
        error.__cause__ = cause
        self._retry.wait(attempt, error)
        return attempt

    def _refused(self, doing: str, code: str, message: str) -> TargetRefused:
        text = f"dead-letter queue {self.url}: {doing} was refused: {code}: {message}"
        if code in _ABSENT:
            return TargetRefused(f"dead-letter queue {self.url} does not exist", remedy=_CHECK_URL)
        remedy = _RIGHTS if code in _DENIED or code.startswith("Kms") else _CHECK_URL
        if "Token" in code or "Signature" in code:
            remedy = _CREDENTIALS
        return TargetRefused(text, remedy=remedy)


def _new_client(url: str, **options: Any) -> SQSClient:
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise MissingExtra(
            f"[dead_letters] queue needs boto3, which is not installed ({error})",
            remedy="Run `pip install 'docferry[dynamodb]'`.",
        ) from error
    config = Config(
        connect_timeout=_CONNECT_TIMEOUT,
        read_timeout=_READ_TIMEOUT,
        retries={"mode": "standard", "total_max_attempts": 1},
        tcp_keepalive=True,
        user_agent_extra="docferry",
    )
    session = boto3.session.Session(profile_name=options.pop("profile_name", None))
    own_region = re.search(r"//sqs\.([a-z0-9-]+)\.amazonaws\.com", url)
    if own_region is not None:
        options["region_name"] = own_region[1]  # the queue's, which need not be the target's
        options.pop("endpoint_url", None)
    elif "endpoint_url" not in options:
        options["endpoint_url"] = "/".join(url.split("/")[:3])
    return session.client("sqs", config=config, **options)


def _batches(bodies: Sequence[str]) -> Iterator[list[str]]:
    """At most ten, and together no longer than one request may be."""
    batch: list[str] = []
    size = 0
    for body in bodies:
        length = len(body.encode())
        if batch and (len(batch) == _BATCH or size + length > MAX_MESSAGE_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(body)
        size += length
    if batch:
        yield batch


def _message(received: Any) -> Message:
    attributes = {
        name: str(value.get("StringValue", "")) for name, value in received.get("MessageAttributes", {}).items()
    }
    sent = int(received.get("Attributes", {}).get("SentTimestamp", 0))
    return Message(
        received["MessageId"],
        received["ReceiptHandle"],
        received["Body"],
        attributes,
        datetime.fromtimestamp(sent / 1000, UTC),
    )


def _short(code: str) -> str:
    """AWS.SimpleQueueService.NonExistentQueue -> NonExistentQueue, KMS.AccessDeniedException as KmsAccessDenied."""
    if code.startswith("KMS."):
        return "KmsThrottled" if "Throttl" in code else "KmsAccessDenied"
    return code.rpartition(".")[2]

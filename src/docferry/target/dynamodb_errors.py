"""What DynamoDB and its client say, and what docferry makes of it: one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docferry.errors import DocferryError, TargetRefused, TargetUnavailable, Verdict, WriteRefused

__all__ = [
    "BUSY",
    "CONDITION_FAILED",
    "DUPLICATE",
    "KINDS",
    "NOT_FOUND",
    "THROTTLED",
    "Fault",
    "fault_of_exception",
    "fault_of_statement",
]

CONDITION_FAILED = frozenset(("ConditionalCheckFailed", "ConditionalCheckFailedException"))
DUPLICATE = frozenset(("DuplicateItem", "DuplicateItemException"))
BUSY = frozenset(("ResourceInUseException", "TableInUseException"))
NOT_FOUND = frozenset(("ResourceNotFound", "ResourceNotFoundException"))
# "UnprocessedKeys" is our own, for a read that was answered in part.
THROTTLED = frozenset(
    (
        "ThrottlingError",
        "ThrottlingException",
        "Throttling",
        "ProvisionedThroughputExceeded",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "UnprocessedKeys",
    )
)

# Of the client: there was no connection, or no answer over it.
_UNREACHED = frozenset(("ConnectionError", "HTTPClientError"))

Kind = type[DocferryError]

KINDS: dict[str, Kind] = {
    # Slow down, come again. The statement's short code first, the exception's name after it.
    "ThrottlingError": TargetUnavailable,
    "ThrottlingException": TargetUnavailable,
    "Throttling": TargetUnavailable,
    "ProvisionedThroughputExceeded": TargetUnavailable,
    "ProvisionedThroughputExceededException": TargetUnavailable,
    "RequestLimitExceeded": TargetUnavailable,
    "LimitExceededException": TargetUnavailable,
    "TransactionConflict": TargetUnavailable,
    "TransactionConflictException": TargetUnavailable,
    "ReplicatedWriteConflictException": TargetUnavailable,
    "InternalServerError": TargetUnavailable,
    "InternalServerErrorException": TargetUnavailable,
    "InternalFailure": TargetUnavailable,
    "ServiceUnavailable": TargetUnavailable,
    "ServiceUnavailableException": TargetUnavailable,
    "RequestTimeout": TargetUnavailable,
    "RequestTimeoutException": TargetUnavailable,
    "ResourceInUseException": TargetUnavailable,
    "TableInUseException": TargetUnavailable,
    "TableNotFoundException": TargetUnavailable,
    "ResourceNotFound": TargetUnavailable,
    "ResourceNotFoundException": TargetUnavailable,
    # This item can never be stored.
    "ValidationError": WriteRefused,
    "ValidationException": WriteRefused,
    "SerializationException": WriteRefused,
    "ItemCollectionSizeLimitExceeded": WriteRefused,
    "ItemCollectionSizeLimitExceededException": WriteRefused,
    # Nobody's row is at fault, and trying again does not help.
    "AccessDenied": TargetRefused,
    "AccessDeniedException": TargetRefused,
    "UnauthorizedOperation": TargetRefused,
    "UnrecognizedClientException": TargetRefused,
    "InvalidClientTokenId": TargetRefused,
    "InvalidSignatureException": TargetRefused,
    "SignatureDoesNotMatch": TargetRefused,
    "IncompleteSignature": TargetRefused,
    "IncompleteSignatureException": TargetRefused,
    "MissingAuthenticationToken": TargetRefused,
    "MissingAuthenticationTokenException": TargetRefused,
    "ExpiredToken": TargetRefused,
    "ExpiredTokenException": TargetRefused,
    "OptInRequired": TargetRefused,
    "UnknownOperationException": TargetRefused,
    # The client's own.
    "NoCredentialsError": TargetRefused,
    "PartialCredentialsError": TargetRefused,
    "NoAuthTokenError": TargetRefused,
    "UnauthorizedSSOTokenError": TargetRefused,
    "SSOTokenLoadError": TargetRefused,
    "TokenRetrievalError": TargetRefused,
    "InvalidProxiesConfigError": TargetRefused,
    "ProfileNotFound": TargetRefused,
    "CredentialRetrievalError": TargetUnavailable,
    "MetadataRetrievalError": TargetUnavailable,
    "HTTPClientError": TargetUnavailable,
    "ConnectionError": TargetUnavailable,
    "IncompleteReadError": TargetUnavailable,
    "ChecksumError": TargetUnavailable,
    "ResponseParserError": TargetUnavailable,
}

_NO_RIGHTS = (
    "Allow dynamodb:PartiQLInsert, dynamodb:PartiQLUpdate, dynamodb:PartiQLDelete, dynamodb:PutItem, "
    "dynamodb:DeleteItem, dynamodb:BatchGetItem, dynamodb:Scan and dynamodb:DescribeTable on the table; for `apply` "
    "and `destroy` also dynamodb:CreateTable, dynamodb:DescribeTimeToLive, dynamodb:UpdateTimeToLive and "
    "dynamodb:DeleteTable."
)
_NO_CREDENTIALS = "Give docferry valid AWS credentials: environment variables, a profile, or a role."
_STANDING: dict[Kind, str] = {
    TargetRefused: _NO_CREDENTIALS,
    WriteRefused: "Change the mirror's collection, key or target settings as the message says.",
}
_REMEDIES = {
    "AccessDenied": _NO_RIGHTS,
    "AccessDeniedException": _NO_RIGHTS,
    "UnauthorizedOperation": _NO_RIGHTS,
    "OptInRequired": "Enable this region for the AWS account, or choose another in [target].",
}


class Fault(Exception):
    """A request, or one statement of it, that failed. `kind`: the class of errors.py that it belongs to. `unreached`:
    the endpoint that did not answer, if that is it."""

    def __init__(self, code: str, message: str, kind: Kind, *, unreached: str = "") -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        self.kind = kind
        self.unreached = unreached

    @property
    def verdict(self) -> Verdict:
        return self.kind.verdict

    def as_error(self, doing: str) -> DocferryError:
        """What the operator reads when no row is to blame."""
        if self.unreached:
            return self.kind(f"DynamoDB cannot be reached at {self.unreached} ({doing}): {self}")
        text = f"DynamoDB refused {doing}: {self}"
        if self.verdict is Verdict.RETRY:
            return self.kind(text)
        return TargetRefused(text, remedy=_REMEDIES.get(self.code, _STANDING[self.kind]))


def fault_of_statement(error: Mapping[str, Any]) -> Fault:
    """The fault of one statement of a batch. An unknown code puts the row aside: that can be replayed, and stops
    nothing."""
    code = str(error.get("Code", "?"))
    return Fault(code, str(error.get("Message", "")), KINDS.get(code, WriteRefused))


def fault_of_exception(error: Exception, endpoint: str = "") -> Fault:
    """The fault of a whole request to `endpoint`, from what the client raised."""
    response = getattr(error, "response", None)
    if isinstance(response, dict) and "Error" in response:
        code = str(response["Error"].get("Code", "?"))
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return Fault(code, str(response["Error"].get("Message", "")), _kind_of(code, status))
    names = [cls.__name__ for cls in type(error).__mro__]
    kind = next((KINDS[name] for name in names if name in KINDS), TargetRefused)
    unreached = endpoint if _UNREACHED.intersection(names) else ""
    return Fault(type(error).__name__, str(error), kind, unreached=unreached)


def _kind_of(code: str, status: int) -> Kind:
    if status >= 500:
        return TargetUnavailable
    if code in KINDS:
        return KINDS[code]
    by_status: dict[int, Kind] = {408: TargetUnavailable, 413: WriteRefused, 429: TargetUnavailable}
    return by_status.get(status, TargetRefused)

"""The table of vendor codes."""

from __future__ import annotations

import boto3
import botocore.exceptions
import pytest
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError

from docferry.errors import DocferryError, TargetRefused, TargetUnavailable, Verdict, WriteRefused
from docferry.target.dynamodb_errors import (
    CONDITION_FAILED,
    DUPLICATE,
    KINDS,
    fault_of_exception,
    fault_of_statement,
)


def client_error(code: str, status: int = 400) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": "text"}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]
        "PutItem",
    )


def test_every_code_of_a_statement_is_known() -> None:
    client = boto3.client("dynamodb", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    shape = client.meta.service_model.shape_for("BatchStatementErrorCodeEnum")
    client.close()
    codes = set(shape.enum)  # type: ignore[attr-defined]
    assert len(codes) > 8
    assert codes <= KINDS.keys() | CONDITION_FAILED | DUPLICATE


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("ThrottlingError", TargetUnavailable),
        ("ProvisionedThroughputExceeded", TargetUnavailable),
        ("RequestLimitExceeded", TargetUnavailable),
        ("TransactionConflict", TargetUnavailable),
        ("InternalServerError", TargetUnavailable),
        ("ResourceNotFound", TargetUnavailable),
        ("ValidationError", WriteRefused),
        ("AccessDenied", TargetRefused),
        ("NeverHeardOf", WriteRefused),
    ],
)
def test_statements(code: str, kind: type[DocferryError]) -> None:
    assert fault_of_statement({"Code": code, "Message": "text"}).kind is kind


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (client_error("ThrottlingException"), TargetUnavailable),
        (client_error("ProvisionedThroughputExceededException"), TargetUnavailable),
        (client_error("ValidationException"), WriteRefused),
        (client_error("ExpiredTokenException"), TargetRefused),
        (client_error("UnrecognizedClientException"), TargetRefused),
        (client_error("AccessDeniedException"), TargetRefused),
        (client_error("NeverHeardOf", 503), TargetUnavailable),
        (client_error("ValidationException", 502), TargetUnavailable),
        (client_error("429", 429), TargetUnavailable),
        (client_error("413", 413), WriteRefused),
        (client_error("NeverHeardOf"), TargetRefused),
        (botocore.exceptions.EndpointConnectionError(endpoint_url="x"), TargetUnavailable),
        (botocore.exceptions.ConnectTimeoutError(endpoint_url="x"), TargetUnavailable),
        (botocore.exceptions.ReadTimeoutError(endpoint_url="x"), TargetUnavailable),
        (botocore.exceptions.ConnectionClosedError(endpoint_url="x"), TargetUnavailable),
        (botocore.exceptions.SSLError(endpoint_url="x", error=OSError("y")), TargetUnavailable),
        (botocore.exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2), TargetUnavailable),
        (botocore.exceptions.NoCredentialsError(), TargetRefused),
        (ResponseParserError("half an answer"), TargetUnavailable),
    ],
)
def test_requests(error: Exception, kind: type[DocferryError]) -> None:
    assert fault_of_exception(error).kind is kind


def test_an_endpoint_that_cannot_be_reached_is_named() -> None:
    for error in (
        botocore.exceptions.EndpointConnectionError(endpoint_url="http://x/"),
        botocore.exceptions.ReadTimeoutError(endpoint_url="http://x/"),
    ):
        told = fault_of_exception(error, "http://x").as_error("table orders")
        assert str(told).startswith("DynamoDB cannot be reached at http://x (table orders): ")
        assert "endpoint_url" in told.remedy
    refused = fault_of_exception(client_error("ThrottlingException"), "http://x").as_error("table orders")
    assert str(refused).startswith("DynamoDB refused table orders: ")


def test_what_stops_says_what_to_do() -> None:
    for code, kind in KINDS.items():
        fault = fault_of_statement({"Code": code, "Message": "text"})
        told = fault.as_error("a write")
        assert told.remedy, code
        assert code in str(told)
        assert (told.verdict is Verdict.RETRY) == (kind is TargetUnavailable)
    assert "PartiQLUpdate" in fault_of_statement({"Code": "AccessDenied"}).as_error("a write").remedy

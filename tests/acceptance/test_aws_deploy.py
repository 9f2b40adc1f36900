"""`docferry aws` as people run it, against an emulator of AWS."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from psycopg.conninfo import conninfo_to_dict

from docferry.aws.clients import Clients
from docferry.aws.deploy import Deployment
from docferry.embedded.dynamodb import EmbeddedDynamoDB

from ..scan.templates import CONFIGS
from .conftest import Ferry

_SERVICES = (
    "cloudformation",
    "cloudwatch",
    "dynamodb",
    "ec2",
    "events",
    "iam",
    "kms",
    "lambda",
    "logs",
    "monitoring",
    "rds",
    "s3",
    "secretsmanager",
    "sqs",
    "ssm",
    "sts",
)
# The emulator has no EC2 instances for CloudFormation, and no wheels have to be fetched to run in this environment.
_HERE = ("--without-dependencies", "-p", "Host=false")
_BUCKET = "docferry-000000000000-us-east-2"
_OUTPUTS = {
    "AuroraPrivateEndpointAddress",
    "AuroraPrivateEndpointPort",
    "DashboardConsoleLink",
    "DatabaseInvokeRoleArn",
    "DatabaseSecretArn",
    "DeadLetterQueueUrl",
    "DynamoDBTableConsoleLink",
    "FunctionArn",
    "LambdaConsoleLink",
}


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[EmbeddedDynamoDB]:
    with EmbeddedDynamoDB(tmp_path / "cloud", region="us-east-2", services=_SERVICES) as server:
        yield server


@pytest.fixture
def shop(database: str, cloud: EmbeddedDynamoDB, tmp_path: Path) -> Iterator[Ferry]:
    """docferry between a database with two tables and the emulator, by the outbox: that needs no extension."""
    folder = tmp_path / "shop"
    folder.mkdir()
    helper = Ferry(database, cloud, folder)
    helper.execute(
        "CREATE TABLE orders (id integer PRIMARY KEY, order_status text, order_data xml)",
        "CREATE TABLE order_lines (order_id integer, line text, PRIMARY KEY (order_id, line))",
    )
    _write(helper, "orders")
    yield helper
    for worker in helper._workers:
        worker.close()


def _write(shop: Ferry, *mirrors: str) -> None:
    shop.write_config(*mirrors)
    path = shop.directory / "docferry.toml"
    path.write_text(path.read_text().replace("[source]\n", '[source]\ncapture = "outbox"\n'))


def _client(shop: Ferry, service: str) -> Any:
    client: Any = boto3.client(service, **shop.dynamodb.client_options())  # type: ignore[call-overload]
    return client


def _deploy(shop: Ferry, *arguments: str) -> Any:
    done = shop.run("aws", "deploy", *_HERE, *arguments, "--json")
    return {**json.loads(done.stdout), "log": done.stderr}


def _status(shop: Ferry, stack: str = "docferry") -> str | None:
    try:
        found = _client(shop, "cloudformation").describe_stacks(StackName=stack)["Stacks"]
    except ClientError:
        return None
    return str(found[0]["StackStatus"])


def _resources(shop: Ferry) -> dict[str, str]:
    pages = _client(shop, "cloudformation").get_paginator("list_stack_resources").paginate(StackName="docferry")
    return {
        one["LogicalResourceId"]: one["PhysicalResourceId"] for page in pages for one in page["StackResourceSummaries"]
    }


def test_a_stack_from_its_creation_to_its_end(shop: Ferry) -> None:
    first = _deploy(shop)
    assert (first["action"], _status(shop)) == ("created", "CREATE_COMPLETE")
    assert first["outputs"].keys() >= _OUTPUTS
    assert "CREATE_COMPLETE      Cluster (AWS::RDS::DBCluster)" in first["log"]
    assert f"created bucket {_BUCKET}" in first["steps"]
    assert first["applied"], "the database can be reached from here"

    resources = _resources(shop)
    function = _client(shop, "lambda").get_function_configuration(FunctionName="docferry")
    assert function["Handler"] == "docferry.aws.handler.handler"
    variables = function["Environment"]["Variables"]
    assert variables["DOCFERRY_SOURCE_SECRET"].startswith("arn:aws:secretsmanager:")
    assert variables["DOCFERRY_DEAD_LETTERS_QUEUE"] == first["outputs"]["DeadLetterQueueUrl"]
    assert shop.dsn not in json.dumps(variables)
    events = _client(shop, "lambda").get_function_event_invoke_config(FunctionName="docferry", Qualifier="$LATEST")
    assert events["DestinationConfig"]["OnFailure"]["Destination"].endswith(
        resources["DeadLetterQueue"].rpartition("/")[2]
    )

    again = _deploy(shop)
    assert (again["action"], again["steps"], again["applied"]) == ("unchanged", [], [])
    assert "Nothing to do" in shop.run("aws", "deploy", *_HERE).stdout

    _write(shop, "orders", "order_lines")
    wider = _deploy(shop)
    assert (wider["action"], _status(shop)) == ("updated", "UPDATE_COMPLETE")
    table = shop.client().describe_table(TableName=shop.prefix + "order_lines")["Table"]
    assert [(part["AttributeName"], part["KeyType"]) for part in table["KeySchema"]] == [
        ("order_id", "HASH"),
        ("line", "RANGE"),
    ]
    assert sorted((one["AttributeName"], one["AttributeType"]) for one in table["AttributeDefinitions"]) == [
        ("line", "S"),
        ("order_id", "N"),
    ]
    assert set(shop.collections()) == {"orders", "order_lines", "docferry"}

    refused = shop.run("aws", "destroy", check=False)
    assert refused.returncode == 2
    assert "DynamoDB table" in refused.stderr
    key = wider["outputs"]["DatabaseKeyArn"]
    assert f"a final snapshot of it stays, and the KMS key {key}" in refused.stderr
    assert _status(shop) == "UPDATE_COMPLETE"
    gone = json.loads(shop.run("aws", "destroy", "--yes", "--json").stdout)
    assert "deleted stack docferry" in gone["steps"]
    assert any(key in step for step in gone["steps"])
    keys = _client(shop, "kms")
    assert keys.describe_key(KeyId=key)["KeyMetadata"]["KeyState"] == "Enabled"
    assert keys.describe_key(KeyId=resources["Key"])["KeyMetadata"]["KeyState"] == "PendingDeletion"
    assert _status(shop) is None
    assert shop.collections() == []
    assert _client(shop, "s3").list_buckets()["Buckets"] == []
    assert _client(shop, "rds").describe_db_clusters()["DBClusters"] == []
    assert "Nothing to do" in shop.run("aws", "destroy", "--yes").stdout


def test_parameters_keep_their_values(shop: Ferry) -> None:
    _deploy(shop, "-p", "FunctionMemory=1024", "--no-apply")
    _write(shop, "orders", "order_lines")
    assert _deploy(shop, "--no-apply")["applied"] is None
    assert _client(shop, "lambda").get_function_configuration(FunctionName="docferry")["MemorySize"] == 1024
    assert _deploy(shop, "--no-apply", "-p", "FunctionMemory=256")["action"] == "updated"
    assert _client(shop, "lambda").get_function_configuration(FunctionName="docferry")["MemorySize"] == 256


def test_an_existing_database_gets_a_function_and_no_cluster(shop: Ferry) -> None:
    where = conninfo_to_dict(shop.dsn)
    values = {"username": where["user"], "password": where.get("password") or "none", **where}
    secret = _client(shop, "secretsmanager").create_secret(Name="shop", SecretString=json.dumps(values))["ARN"]
    done = _deploy(shop, "-p", f"ExistingSecretArn={secret}")
    assert done["outputs"]["DatabaseSecretArn"] == secret
    assert done["outputs"].keys().isdisjoint({"AuroraPrivateEndpointAddress", "pgAdminURL"})
    assert (
        _resources(shop).keys().isdisjoint({"Vpc", "Cluster", "Writer", "FunctionVpcPolicy", "DatabaseSecurityGroup"})
    )
    function = _client(shop, "lambda").get_function_configuration(FunctionName="docferry")
    assert function["Environment"]["Variables"]["DOCFERRY_SOURCE_SECRET"] == secret

    shop.execute("INSERT INTO orders VALUES (1, 'new', '<order><total>5</total></order>')")
    answer = _client(shop, "lambda").invoke(FunctionName="docferry", Payload=b'{"docferry": "drain"}')
    assert "FunctionError" not in answer, answer["Payload"].read()
    assert shop.items("orders") == [{"id": 1, "order_status": "new", "order_data": {"order": {"total": "5"}}}]

    asked = shop.run("aws", "destroy", check=False).stderr
    assert "run `docferry destroy` there first" in asked


def test_destroying_takes_the_protection_off(shop: Ferry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulator deletes what is protected; AWS would not."""
    _deploy(shop)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, shop.environment[name])

    def protected() -> list[bool]:
        tables = [shop.client().describe_table(TableName=shop.prefix + name)["Table"] for name in shop.collections()]
        (cluster,) = _client(shop, "rds").describe_db_clusters()["DBClusters"]
        flags = [*(table["DeletionProtectionEnabled"] for table in tables), cluster["DeletionProtection"]]
        return [str(flag).lower() == "true" for flag in flags]

    assert protected() == [True, True, True]
    Deployment(Clients("us-east-2", shop.dynamodb.endpoint_url, None), "docferry")._unprotect()
    assert protected() == [False, False, False]


def test_a_failure_names_the_resource_and_leaves_a_way_on(shop: Ferry) -> None:
    ssm = _client(shop, "ssm")
    ssm.put_parameter(Name="docferry.docferry.toml", Value="somebody else's", Type="String")
    failed = shop.run("aws", "deploy", *_HERE, check=False)
    assert failed.returncode == 1
    assert "ConfigParameter (AWS::SSM::Parameter)" in failed.stderr.partition("error: ")[2]
    assert "docferry aws destroy" in failed.stderr
    ssm.delete_parameter(Name="docferry.docferry.toml")

    again = shop.run("aws", "deploy", *_HERE, check=False)
    assert again.returncode == 1
    assert "left over from a failure (ROLLBACK_COMPLETE)" in again.stderr
    shop.run("aws", "destroy", "--yes")
    assert _deploy(shop)["action"] == "created"


def test_ctrl_c_stops_the_waiting_and_not_the_stack(shop: Ferry) -> None:
    text, keys = CONFIGS["many"]
    (shop.directory / "docferry.toml").write_text(text.replace("http://127.0.0.1:4566", shop.dynamodb.endpoint_url))
    process = shop.dynamodb._process
    assert process is not None
    given = [argument for key in keys for argument in ("--key", key)]
    deploy = shop.start("aws", "deploy", *_HERE, "--no-apply", *given)
    deploy.wait_for("CREATE_IN_PROGRESS")
    # The emulator would be done before anybody could press a key.
    os.kill(process.pid, signal.SIGSTOP)
    try:
        deploy.process.send_signal(signal.SIGINT)
        assert deploy.wait() == 130
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert "aws cloudformation describe-stack-events --stack-name docferry --region us-east-2" in deploy.text
    shop.eventually(lambda: _status(shop) == "CREATE_COMPLETE", what="the stack")


def test_a_cluster_that_cannot_be_reached_leaves_apply_to_its_host(shop: Ferry) -> None:
    """Without a database in the file, the new cluster's secret leads to it; here to a name that nobody resolves."""
    path = shop.directory / "docferry.toml"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if "dsn" not in line))
    refused = shop.run("aws", "deploy", *_HERE, check=False)
    assert refused.returncode == 2
    assert "--key public.orders=id:N" in refused.stderr
    done = _deploy(shop, "--key", "orders=id:N")
    assert (done["action"], done["applied"]) == ("created", None)
    assert "the database cannot be reached from here" in done["log"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["-p", "Hosts=false"], "no such parameter"),
        (["-p", "CodeKey=x"], "sets it"),
        (["-p", "Host"], "expected Name=Value"),
        (["--key", "orders=id"], "--key orders=id"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_created(shop: Ferry, given: list[str], said: str) -> None:
    done = shop.run("aws", "deploy", "--without-dependencies", *given, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert _client(shop, "s3").list_buckets()["Buckets"] == []


def test_the_template_and_the_package_can_be_had_as_files(shop: Ferry) -> None:
    shop.run("aws", "template", "-o", "stack.yaml")
    text = (shop.directory / "stack.yaml").read_text()
    assert text == shop.run("aws", "template").stdout
    assert shop.json("aws", "template")["template"].rstrip("\n") == text.rstrip("\n")
    made = shop.json("aws", "package", "--without-dependencies", "-o", "function.zip")
    assert made["bytes"] == (shop.directory / "function.zip").stat().st_size


def test_a_bucket_of_ones_own_is_kept_and_remembered(shop: Ferry) -> None:
    s3 = _client(shop, "s3")
    s3.create_bucket(Bucket="our-artifacts", CreateBucketConfiguration={"LocationConstraint": "us-east-2"})
    s3.put_object(Bucket="our-artifacts", Key="other", Body=b"x")
    _deploy(shop, "--no-apply", "--bucket", "our-artifacts")
    assert _deploy(shop, "--no-apply")["action"] == "unchanged"
    assert [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]] == ["our-artifacts"]
    asked = shop.run("aws", "destroy", check=False).stderr
    assert "s3://our-artifacts/docferry" in asked
    shop.run("aws", "destroy", "--yes")
    assert [one["Key"] for one in s3.list_objects_v2(Bucket="our-artifacts")["Contents"]] == ["other"]

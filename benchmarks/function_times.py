"""How long the Lambda function takes: cold and warm, for one change and for a group. In ministack, which runs it as a
process on this machine; on AWS the figures depend on the memory that the function is given.

    python benchmarks/function_times.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import statistics
import time
from typing import Any

import boto3
import psycopg

from docferry.app import App
from docferry.aws.package import build
from docferry.change.model import make_version
from docferry.config import parse
from docferry.embedded.dynamodb import EmbeddedDynamoDB
from docferry.embedded.postgres import EmbeddedPostgres

CONFIG = """
[source]
capture = "outbox"
dsn = "{dsn}"
[target]
region = "us-east-1"
endpoint_url = "{url}"
[[mirrors]]
table = "public.orders"
"""
XML = "<order number=''A-1''>" + "<item sku=''CB-03'' quantity=''3''>text</item>" * 52 + "</order>"
SERVICES = ("dynamodb", "lambda", "logs", "iam", "sts", "sqs")


def event(position: int, changes: int, oid: int, transaction: str = "0") -> bytes:
    """`changes` inserts of 2.4 KB rows. `transaction`: one that has committed, as the function may ask."""
    row = XML.replace("''", '""')
    return json.dumps(
        {
            "docferry": 1,
            "epoch": 1,
            "transaction": transaction,
            "at": None,
            "relations": {
                "public.orders": {"oid": oid, "columns": ["id", "order_data"], "types": [23, 142], "key": ["id"]}
            },
            "changes": [
                {
                    "TG_OP": "INSERT",
                    "table": "public.orders",
                    "version": str(make_version(1, position + index)),
                    "NEW": f'({index},"{row}")',
                }
                for index in range(changes)
            ],
        }
    ).encode()


def measure(client: Any, environment: dict[str, str], payload: Any, rounds: int, *, cold: bool) -> list[float]:
    """Milliseconds that the runtime reports for the handler, and for a cold start what the caller waits."""
    times = []
    for index in range(rounds):
        if cold:
            variables = {**environment, "ROUND": str(index)}
            client.update_function_configuration(FunctionName="docferry", Environment={"Variables": variables})
        began = time.perf_counter()
        answer = client.invoke(FunctionName="docferry", Payload=payload(), LogType="Tail")
        waited = (time.perf_counter() - began) * 1000
        body = json.loads(answer["Payload"].read())
        if "errorMessage" in body:
            raise SystemExit(f"the function failed: {body}")
        log = base64.b64decode(answer.get("LogResult", "")).decode()
        found = re.search(r"Duration: ([0-9.]+) ms", log)
        times.append(waited if cold or found is None else float(found[1]))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    settings = {"LAMBDA_ACCOUNT_CONCURRENCY": "2"}
    with EmbeddedPostgres() as postgres, EmbeddedDynamoDB(services=SERVICES, settings=settings) as aws:
        options: dict[str, Any] = dict(aws.client_options())
        text = CONFIG.format(dsn=postgres.dsn(), url=aws.endpoint_url)
        with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
            connection.execute("CREATE TABLE orders (id int PRIMARY KEY, order_data xml)")
            (oid,) = connection.execute("SELECT 'orders'::regclass::oid::bigint").fetchone() or (0,)
            (transaction,) = connection.execute("SELECT pg_current_xact_id()::text").fetchone() or ("0",)
        os.environ["AWS_ACCESS_KEY_ID"] = options["aws_access_key_id"]
        os.environ["AWS_SECRET_ACCESS_KEY"] = options["aws_secret_access_key"]
        with App(parse(text, environ={})) as app:
            app.admin().apply()
        queue = boto3.client("sqs", **options).create_queue(QueueName="dead")["QueueUrl"]
        client = boto3.client("lambda", **options)
        client.create_function(
            FunctionName="docferry",
            Runtime="python3.13",
            Role="arn:aws:iam::000000000000:role/docferry",
            Handler="docferry.aws.handler.handler",
            Code={"ZipFile": build(dependencies=False).content},
            Timeout=60,
        )
        position = 0
        for source in (False, True):
            environment = {"DOCFERRY_CONFIG_TEXT": text, "POWERTOOLS_LOG_LEVEL": "WARNING"}
            if source:
                environment["DOCFERRY_SOURCE_DSN"] = postgres.dsn()
            else:
                environment["DOCFERRY_DEAD_LETTERS_QUEUE"] = queue

            def payload(changes: int) -> Any:
                def make() -> bytes:
                    nonlocal position
                    position += changes
                    return event(position, changes, oid, transaction)

                return make

            where = "with the database" if source else "without the database"
            cold = measure(client, environment, payload(1), rounds, cold=True)
            print(f"{where}: cold start, as the caller waits: median {statistics.median(cold):.0f} ms")
            for changes in (1, 25, 400):
                measure(client, environment, payload(changes), 1, cold=False)
                warm = measure(client, environment, payload(changes), rounds * 4, cold=False)
                print(f"{where}: warm, {changes} changes: median {statistics.median(warm):.1f} ms")


if __name__ == "__main__":
    main()

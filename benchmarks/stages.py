"""CPU per change of each stage, commit to DynamoDB request, beside the naive road, in one run.

    python benchmarks/stages.py [--changes 3000] [--rounds 5] [--json]

Rows hold a 2.4 KB XML document. "docferry" is the product's own code: the replication stream is decoded, converted and
written by `BatchExecuteStatement`, each statement with its own condition. The naive road is xmltodict, boto3's
TypeSerializer and `put_item` with the same condition. CPU is this process's own (user and system, all threads); the
servers run in other processes. Rounds are interleaved; medians and their ratios are printed. Budgets: 3.5 times for XML
text to item, 8 times in total.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import psycopg
import xmltodict
from boto3.dynamodb.types import TypeSerializer
from botocore.config import Config as ClientConfig
from botocore.exceptions import ClientError

from docferry.app import App
from docferry.capture.replication import Limits, ReplicationCapture, SystemIdentity
from docferry.change.model import Change
from docferry.config import load
from docferry.document import xml
from docferry.document.batch import coalesce, to_write
from docferry.document.model import Put
from docferry.embedded.dynamodb import EmbeddedDynamoDB
from docferry.embedded.postgres import EmbeddedPostgres
from docferry.target.dynamodb_items import attribute_text

THREADS = 8


def document(seed: int) -> str:
    """An order of about 2.4 KB: some 60 elements and attributes, seven repeated items."""
    r = random.Random(seed)
    items = "".join(
        f'<item sku="SKU-{r.randrange(10**6):06}"><name>Article number {r.randrange(10**4)}, stainless steel</name>'
        f'<quantity>{r.randrange(1, 9)}</quantity><price currency="USD">{r.randrange(10**5) / 100:.2f}</price>'
        f"<note>ships from warehouse {r.randrange(40)} within three working days, signature required on delivery; "
        "leave with a neighbour if nobody is in, call the customer first</note></item>"
        for _ in range(7)
    )
    return (
        f'<order id="{seed}" channel="web"><customer tier="gold"><name>Customer {seed}</name>'
        f"<email>customer{seed}@example.com</email><address><street>{r.randrange(999)} Main Street</street>"
        f"<city>Columbus</city><zip>{r.randrange(10**5):05}</zip></address></customer><items>{items}</items>"
        f'<total currency="USD">{r.randrange(10**6) / 100:.2f}</total></order>'
    )


def cpu(action: Callable[[], Any]) -> tuple[float, Any]:
    """(CPU seconds of this process, result)."""
    before = time.process_time()
    result = action()
    return time.process_time() - before, result


class Bench:
    """One pair of servers, one table, both roads."""

    def __init__(self, postgres: EmbeddedPostgres, dynamodb: EmbeddedDynamoDB, folder: Path, changes: int) -> None:
        self.changes = changes
        self.dsn = postgres.dsn()
        options: dict[str, Any] = dict(dynamodb.client_options())
        os.environ["AWS_ACCESS_KEY_ID"] = options["aws_access_key_id"]
        os.environ["AWS_SECRET_ACCESS_KEY"] = options["aws_secret_access_key"]
        path = folder / "docferry.toml"
        path.write_text(
            f'[source]\ndsn = "{self.dsn}"\n[target]\nkind = "dynamodb"\nregion = "{options["region_name"]}"\n'
            f'endpoint_url = "{options["endpoint_url"]}"\n[[mirrors]]\ntable = "public.orders"\n'
        )
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(
                "CREATE TABLE public.orders (id int PRIMARY KEY, order_status text, order_data xml, "
                "created_at timestamptz DEFAULT now(), updated_at timestamptz DEFAULT now())"
            )
        self.app = App(load(path), patient=True)
        self.app.admin().apply()
        self.mirror = self.app.mirror("public.orders")
        self.client = boto3.client(
            "dynamodb", **options, config=ClientConfig(max_pool_connections=THREADS, parameter_validation=False)
        )
        self.client.create_table(
            TableName="naive",
            BillingMode="PAY_PER_REQUEST",
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "N"}],
        )
        self.round = 0
        epoch = self.app.admin().check_applied()
        self.capture = ReplicationCapture(
            self.dsn, "docferry", "docferry", 1, SystemIdentity(epoch.system_identifier, epoch.timeline), Limits()
        )
        self.capture.open()

    def write_rows(self) -> list[str]:
        """Insert in the first round, update every row in the others; returns the documents."""
        texts = [document(self.round * self.changes + n) for n in range(self.changes)]
        with psycopg.connect(self.dsn, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO public.orders (id, order_status, order_data) VALUES (%s, 'new', %s) "
                "ON CONFLICT (id) DO UPDATE SET order_data = excluded.order_data, updated_at = now()",
                list(enumerate(texts)),
            )
        self.round += 1
        return texts

    def decode(self) -> list[list[Change]]:
        """Read all changes from the stream, as deliveries."""
        deliveries = []
        count = 0
        while count < self.changes:
            delivery = self.capture.read(5.0)
            if delivery.changes:
                deliveries.append(delivery.changes)
                count += len(delivery.changes)
            if delivery.position is not None:
                self.capture.confirm(delivery.position)
        return deliveries

    def convert(self, deliveries: list[list[Change]]) -> list[list[Put]]:
        """Coalesce and convert."""
        mirrors = {self.mirror.table: self.mirror}
        puts = []
        for changes in deliveries:
            pending, _ = coalesce(changes, mirrors)
            writes = [to_write(one) for one in pending]
            puts.append([write for write in writes if isinstance(write, Put)])
        return puts

    def write(self, puts: list[list[Put]]) -> None:
        """Encode and write, as many deliveries at once as `run` has workers."""
        with ThreadPoolExecutor(self.app.config.run.workers) as pool:
            for _ in pool.map(self.app.target.write, puts):
                pass

    @staticmethod
    def text_to_item(texts: list[bytes]) -> None:
        """XML text to the text of a DynamoDB attribute."""
        for text in texts:
            attribute_text(xml.parse_validated(text))

    @staticmethod
    def naive_text_to_item(texts: list[str]) -> None:
        """XML text to a DynamoDB attribute with xmltodict and boto3's TypeSerializer."""
        serialize = TypeSerializer().serialize
        for text in texts:
            serialize(xmltodict.parse(text))

    def naive_convert(self, texts: list[str]) -> list[dict[str, Any]]:
        """Rows to items with xmltodict and boto3's TypeSerializer."""
        serialize = TypeSerializer().serialize
        return [
            {
                "id": serialize(number),
                "order_status": serialize("new"),
                "order_data": serialize(xmltodict.parse(text)),
                "_v": serialize(self.round * 10**9 + number),
            }
            for number, text in enumerate(texts)
        ]

    def naive_write(self, items: list[dict[str, Any]]) -> None:
        """`put_item` with a condition, eight at once."""

        def put(item: dict[str, Any]) -> None:
            try:
                self.client.put_item(
                    TableName="naive",
                    Item=item,
                    ConditionExpression="attribute_not_exists(#v) OR #v < :v",
                    ExpressionAttributeNames={"#v": "_v"},
                    ExpressionAttributeValues={":v": item["_v"]},
                )
            except ClientError as error:
                if error.response["Error"]["Code"] != "ConditionalCheckFailedException":
                    raise

        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(put, items):
                pass

    def measure(self) -> dict[str, float]:
        """One round; microseconds of CPU a change."""
        texts = self.write_rows()
        figures = {}

        def note(name: str, seconds: float) -> None:
            figures[name] = seconds / self.changes * 1e6

        seconds, deliveries = cpu(self.decode)
        note("decode", seconds)
        seconds, puts = cpu(lambda: self.convert(deliveries))
        note("convert", seconds)
        seconds, _ = cpu(lambda: self.write(puts))
        note("write", seconds)
        seconds, items = cpu(lambda: self.naive_convert(texts))
        note("naive convert", seconds)
        seconds, _ = cpu(lambda: self.naive_write(items))
        note("naive write", seconds)
        raw = [text.encode() for text in texts]
        seconds, _ = cpu(lambda: self.text_to_item(raw))
        note("XML text to item", seconds)
        seconds, _ = cpu(lambda: self.naive_text_to_item(texts))
        note("naive XML text to item", seconds)
        return figures

    def close(self) -> None:
        """Hang up."""
        self.capture.close()
        self.app.__exit__()
        self.client.close()


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", type=int, default=3000, help="changes a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory() as folder, EmbeddedPostgres() as postgres, EmbeddedDynamoDB() as dynamodb:
        bench = Bench(postgres, dynamodb, Path(folder), arguments.changes)
        try:
            for number in range(arguments.rounds + 1):
                figures = bench.measure()
                if number:  # the first warms up
                    rounds.append(figures)
                    print(f"round {number} of {arguments.rounds} done", file=sys.stderr)
        finally:
            bench.close()
    median = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    total = [one["decode"] + one["convert"] + one["write"] for one in rounds]
    # The naive road has to read the changes as well; its decoding is taken to cost what ours does.
    naive = [one["decode"] + one["naive convert"] + one["naive write"] for one in rounds]
    ratios = {
        "XML text to item": statistics.median(
            one["naive XML text to item"] / one["XML text to item"] for one in rounds
        ),
        "total": statistics.median(theirs / ours for ours, theirs in zip(total, naive, strict=True)),
    }
    if arguments.json:
        print(json.dumps({"microseconds": median, "ratios": ratios, "rounds": rounds}, indent=2))
        return 0
    size = len(document(1))
    print(f"{size} bytes of XML a row, {arguments.changes} changes a round, median of {arguments.rounds} rounds")
    print(f"{'microseconds of CPU a change':34}{'docferry':>10}{'naive':>10}")
    for stage, ours, theirs in (
        ("decode the stream", median["decode"], median["decode"]),
        ("convert", median["convert"], median["naive convert"]),
        ("encode and write", median["write"], median["naive write"]),
        ("total", statistics.median(total), statistics.median(naive)),
    ):
        print(f"{stage:34}{ours:10.1f}{theirs:10.1f}")
    print(f"{'XML text to item alone':34}{median['XML text to item']:10.1f}{median['naive XML text to item']:10.1f}")
    print(f"ratio, XML text to item: {ratios['XML text to item']:.1f} (budget 3.5)")
    print(f"ratio, total: {ratios['total']:.1f} (budget 8, there with Debezium's decoding instead of ours)")
    return 0


if __name__ == "__main__":
    sys.exit(main())

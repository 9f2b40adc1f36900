"""docferry.toml: what it may say, and how mistakes in it are reported."""

from __future__ import annotations

import contextlib
import dataclasses
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docferry.config import (
    Config,
    DeadLettersConfig,
    DocumentConfig,
    HealthConfig,
    ItemKeyAttribute,
    LambdaConfig,
    MirrorConfig,
    RunConfig,
    SourceConfig,
    TargetConfig,
    TriggerConfig,
    load,
    parse,
    parse_duration,
    parse_size,
    safe_dsn,
    template_columns,
)
from docferry.errors import ConfigError

DSN = "postgresql://app@127.0.0.1:5432/shop"
ARN = "arn:aws:secretsmanager:us-east-2:123456789012:secret:shop-AbCdEf"
SOURCE = f'[source]\ndsn = "{DSN}"\n'
MIRROR = '[[mirrors]]\ntable = "public.orders"\n'
PATH = Path("some/docferry.toml")


def read(text: str, **environ: str) -> Config:
    return parse(text, PATH, environ)


def refusal(text: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text, **environ)
    assert caught.value.exit_code == 2
    assert caught.value.remedy
    return f"{caught.value} | {caught.value.remedy}"


class TestWhatItMaySay:
    def test_least(self) -> None:
        assert read(SOURCE + MIRROR) == Config(
            source=SourceConfig(dsn=DSN),
            target=TargetConfig(),
            mirrors=(MirrorConfig(table="public.orders", collection="orders"),),
            run=RunConfig(),
            path=PATH,
        )

    def test_defaults(self) -> None:
        config = read(SOURCE + MIRROR)
        assert (config.source.capture, config.source.slot, config.source.publication) == (
            "replication",
            "docferry",
            "docferry",
        )
        assert config.source.heartbeat_interval == 10
        assert config.target.tombstone_lifetime == 7 * 86400
        assert dataclasses.astuple(config.run) == (
            4,
            200,
            2**20,
            32 * 2**20,
            0.002,
            "backfill",
            4,
            500,
            30.0,
            "off",
            200,
            None,
        )

    def test_all(self) -> None:
        config = read("""
            [source]
            secret = "arn:aws:secretsmanager:us-east-2:123456789012:secret:shop-AbCdEf"
            capture = "replication"
            publication = "ferry"
            slot = "ferry_1"
            heartbeat_interval = "1m"
            [target]
            kind = "dynamodb"
            region = "us-east-2"
            endpoint_url = "http://127.0.0.1:4566"
            profile = "shop"
            table_prefix = "prod-"
            kms_key = "alias/shop"
            tombstone_lifetime = 3600
            [run]
            workers = 2
            batch_changes = 10
            batch_bytes = "64KiB"
            in_flight_bytes = 1000000
            linger = 0.5
            on_schema_change = "warn"
            backfill_workers = 1
            backfill_page = 50
            stop_grace = "10s"
            [[mirrors]]
            table = '"Big Shop".orders'
            collection = "orders"
            key = ["tenant", "id"]
            item_key = { sk = "ORDER#{id}", pk = "T#{tenant}" }
            exclude = ["notes"]
            [mirrors.documents.order_data]
            format = "xml"
            lists = ["item"]
            numbers = ["@price", "order/total"]
            [[mirrors]]
            table = "customers"
            include = ["id", "profile"]
            [mirrors.documents.profile]
            format = "yaml"
        """)
        assert config.source == SourceConfig(
            secret="arn:aws:secretsmanager:us-east-2:123456789012:secret:shop-AbCdEf",
            publication="ferry",
            slot="ferry_1",
            heartbeat_interval=60,
        )
        assert config.target == TargetConfig(
            "dynamodb", "us-east-2", "http://127.0.0.1:4566", "shop", "prod-", "alias/shop", 3600
        )
        assert config.run == RunConfig(2, 10, 65536, 1_000_000, 0.5, "warn", 1, 50, 10)
        first, second = config.mirrors
        assert first == MirrorConfig(
            table="Big Shop.orders",
            collection="orders",
            key=("tenant", "id"),
            # In the file's order: the first is the partition key.
            item_key=(ItemKeyAttribute("sk", "ORDER#{id}"), ItemKeyAttribute("pk", "T#{tenant}")),
            exclude=frozenset({"notes"}),
            documents={"order_data": DocumentConfig("xml", frozenset({"item"}), frozenset({"@price", "order/total"}))},
        )
        assert second.table == "public.customers"
        assert second.include == frozenset({"id", "profile"})

    def test_triggers(self) -> None:
        config = read(
            SOURCE
            + 'capture = "lambda"\ntriggers = { enable_always = true, deferred = false, owner = "ferry" }\n'
            + 'lambda = { function = "arn:aws:lambda:us-east-2:123456789012:function:ferry", region = "us-east-2", '
            + 'payload_limit = "256KB", timeout = "300ms", group = false, breaker_failures = 2, breaker_pause = "1m", '
            + "patience = 1 }\n"
            + MIRROR
            + '[dead_letters]\nqueue = "https://sqs.us-east-2.amazonaws.com/123456789012/dead"\n'
            + 'payload = false\naudit_retention = "30d"\n'
        )
        assert config.source.triggers == TriggerConfig(enable_always=True, deferred=False, owner="ferry")
        arn = "arn:aws:lambda:us-east-2:123456789012:function:ferry"
        assert config.source.lambda_ == LambdaConfig(
            arn, "us-east-2", 256_000, 0.3, group=False, breaker_failures=2, breaker_pause=60, patience=1
        )
        assert config.dead_letters.queue == "https://sqs.us-east-2.amazonaws.com/123456789012/dead"
        assert (config.dead_letters.payload, config.dead_letters.audit_retention) == (False, 30 * 86400)
        assert config.target.tombstone_lifetime == 16 * 86400

    def test_a_function_may_not_know_the_source(self) -> None:
        config = parse(SOURCE + MIRROR, environ={}, needs_source=False)
        assert (config.source.dsn, config.source.secret) == (None, None)
        arn = "arn:aws:secretsmanager:us-east-2:123456789012:secret:shop-AbCdEf"
        config = parse(SOURCE + MIRROR, environ={"DOCFERRY_SOURCE_SECRET": arn})
        assert (config.source.dsn, config.source.secret) == (None, arn)
        with pytest.raises(ConfigError, match="DOCFERRY_SOURCE_SECRET"):
            parse(SOURCE + MIRROR, environ={"DOCFERRY_SOURCE_SECRET": "password"})
        queue = "http://127.0.0.1:4566/000000000000/dead"
        assert parse(SOURCE + MIRROR, environ={"DOCFERRY_DEAD_LETTERS_QUEUE": queue}).dead_letters.queue == queue
        with pytest.raises(ConfigError, match="DOCFERRY_DEAD_LETTERS_QUEUE"):
            parse(SOURCE + MIRROR, environ={"DOCFERRY_DEAD_LETTERS_QUEUE": "dead"})

    def test_nothing_can_be_changed(self) -> None:
        config = read(SOURCE + MIRROR)
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.run.workers = 9  # type: ignore[misc]

    @pytest.mark.parametrize(
        ("text", "table", "collection"),
        [
            ("orders", "public.orders", "orders"),
            ("public.orders", "public.orders", "orders"),
            ("Sales.Orders", "Sales.Orders", "Orders"),
            ('"Orders"', "public.Orders", "Orders"),
            ('shop."my.orders"', "shop.my.orders", "my.orders"),
            ('"a schema".orders', "a schema.orders", "orders"),
            ("größe.bestellungen", "größe.bestellungen", "bestellungen"),
        ],
    )
    def test_tables(self, text: str, table: str, collection: str) -> None:
        mirror = read(f"{SOURCE}[[mirrors]]\ntable = '{text}'").mirrors[0]
        assert (mirror.table, mirror.collection) == (table, collection)


class TestEnvironment:
    def test_wins_over_the_file(self) -> None:
        config = read(
            SOURCE + '[target]\nregion = "us-east-2"\n' + MIRROR,
            DOCFERRY_SOURCE_DSN="host=other dbname=shop",
            DOCFERRY_TARGET_REGION="eu-west-1",
            DOCFERRY_TARGET_ENDPOINT_URL="http://localhost:8000",
        )
        assert config.source.dsn == "host=other dbname=shop"
        assert config.target.region == "eu-west-1"
        assert config.target.endpoint_url == "http://localhost:8000"

    def test_a_dsn_replaces_a_secret(self) -> None:
        text = '[source]\nsecret = "arn:aws:secretsmanager:us-east-2:123456789012:secret:a"\n' + MIRROR
        assert read(text, DOCFERRY_SOURCE_DSN=DSN).source == SourceConfig(dsn=DSN)

    def test_tls_of_a_secret(self) -> None:
        text = f'[source]\nsecret = "{ARN}"\nsslmode = "verify-full"\nsslrootcert = "/etc/ca.pem"\n' + MIRROR
        source = read(text).source
        assert (source.sslmode, source.sslrootcert) == ("verify-full", "/etc/ca.pem")
        other = {"DOCFERRY_SOURCE_SSLMODE": "verify-ca", "DOCFERRY_SOURCE_SSLROOTCERT": "/opt/ca.pem"}
        source = read(text, **other).source
        assert (source.sslmode, source.sslrootcert) == ("verify-ca", "/opt/ca.pem")
        source = read(SOURCE + MIRROR, DOCFERRY_SOURCE_SECRET=ARN, **other).source
        assert (source.secret, source.sslmode, source.sslrootcert) == (ARN, "verify-ca", "/opt/ca.pem")
        assert read(text, DOCFERRY_SOURCE_DSN=DSN).source == SourceConfig(dsn=DSN), "it replaces them all"
        assert "expected one of disable" in refusal(text, DOCFERRY_SOURCE_SSLMODE="full")
        for name in other:
            assert name in refusal(SOURCE + MIRROR, **{name: other[name]}), "a connection string has its own"
        assert parse(SOURCE + MIRROR, environ=other, needs_source=False).source.dsn is None

    def test_empty_is_unset(self) -> None:
        assert read(SOURCE + MIRROR, DOCFERRY_SOURCE_DSN="", DOCFERRY_TARGET_REGION="").source.dsn == DSN

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("DOCFERRY_SOURCE_DSN", "shop:s3cret"),
            ("DOCFERRY_TARGET_REGION", "us east"),
            ("DOCFERRY_TARGET_ENDPOINT_URL", "localhost:8000"),
        ],
    )
    def test_mistakes_are_named_for_the_variable(self, name: str, value: str) -> None:
        message = refusal(SOURCE + MIRROR, **{name: value})
        assert message.startswith(f"{name}: ")
        assert "s3cret" not in message

    def test_the_process_environment_is_the_default(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("DOCFERRY_SOURCE_DSN", "service=shop")
        file = tmp_path / "docferry.toml"
        file.write_text(MIRROR)
        assert load(file).source.dsn == "service=shop"


MISTAKES = [
    # what the file says, then what the message must hold
    ("", "some/docferry.toml: source.dsn: missing", "DOCFERRY_SOURCE_DSN"),
    ("a = \n", "this is not TOML", "line 1"),
    ("[source]\n\n[source]\n", "this is not TOML", "line 3", "named once"),
    (SOURCE, "mirrors: there is none", "[[mirrors]]"),
    (SOURCE + 'mirrors = "orders"', "source.mirrors: unknown key", "[source] may hold"),
    ('mirrors = "orders"\n' + SOURCE, 'mirrors: found "orders", expected tables [[mirrors]]'),
    ("mirrors = [1]\n" + SOURCE, "mirrors: found a list, expected tables [[mirrors]]"),
    ("source = 1\n" + MIRROR, "source: found 1, expected a table [source]"),
    ('[source]\ndns = "x"\n' + MIRROR, "source.dsn: missing"),
    (SOURCE + 'publicaton = "x"\n' + MIRROR, "source.publicaton: unknown key; did you mean `publication`?"),
    (SOURCE + MIRROR + 'Table = "x"', "mirrors[0].Table: unknown key; did you mean `table`?"),
    (SOURCE + MIRROR + "[runs]\nworkers = 1", "runs: unknown key; did you mean `run`?", "the file may hold"),
    (SOURCE + 'secret = "arn:aws:secretsmanager:us-east-2:123456789012:secret:a"\n' + MIRROR, "exclude each other"),
    (SOURCE + 'sslmode = "require"\n' + MIRROR, "source.sslmode: it is for `secret`"),
    (SOURCE + 'sslrootcert = "/etc/ca.pem"\n' + MIRROR, "source.sslrootcert: it is for `secret`"),
    (f'[source]\nsecret = "{ARN}"\nsslmode = "verify"\n' + MIRROR, "source.sslmode: found"),
    ('[source]\nsecret = "hunter2"\n' + MIRROR, "source.secret: expected the ARN of a secret"),
    (
        SOURCE + 'capture = "magic"\n' + MIRROR,
        'source.capture: found "magic", expected one of replication, outbox, lambda',
    ),
    (SOURCE + "triggers = {}\n" + MIRROR, 'source.triggers: capture = "replication" has no triggers'),
    (SOURCE + "lambda = {}\n" + MIRROR, 'source.lambda: it belongs to capture = "lambda"'),
    (
        SOURCE + 'capture = "outbox"\ntriggers = { deferred = true }\n' + MIRROR,
        'source.triggers.deferred: only the triggers of capture = "lambda" are deferred',
    ),
    (
        SOURCE + 'capture = "lambda"\nlambda = { function = "a b" }\n' + MIRROR,
        'source.lambda.function: found "a b", expected a function\'s name or ARN',
    ),
    (
        SOURCE + 'capture = "lambda"\nlambda = { payload_limit = "2MiB" }\n' + MIRROR,
        'source.lambda.payload_limit: found "2MiB", expected at most 1 MiB',
    ),
    (
        SOURCE + 'capture = "lambda"\nlambda = { group = 1 }\n' + MIRROR,
        "source.lambda.group: found 1, expected true or false",
    ),
    (
        SOURCE + 'capture = "lambda"\n[target]\ntombstone_lifetime = "7d"\n' + MIRROR,
        "target.tombstone_lifetime: with capture",
        "14 days and 6 hours",
    ),
    (
        SOURCE + 'capture = "outbox"\n' + MIRROR + 'collection = "docferry"\n',
        "mirrors: a collection is called `docferry`",
    ),
    (
        SOURCE + MIRROR + '[dead_letters]\naudit_retention = "1h"\n',
        "dead_letters.audit_retention",
        "",
    ),
    (SOURCE + MIRROR + '[dead_letters]\npayload = "no"\n', "dead_letters.payload", "true or false"),
    (SOURCE + MIRROR + '[dead_letters]\nqueue = "my-queue"\n', "dead_letters.queue", "the URL of an SQS queue"),
    (SOURCE + 'slot = "Ferry-1"\n' + MIRROR, 'source.slot: found "Ferry-1", expected 1 to 63'),
    (SOURCE + f'slot = "{"a" * 64}"\n' + MIRROR, "source.slot: found"),
    (SOURCE + f'publication = "{"ä" * 32}"\n' + MIRROR, "source.publication: found", "63 bytes"),
    (SOURCE + 'publication = ""\n' + MIRROR, 'source.publication: found "", expected text'),
    (SOURCE + "heartbeat_interval = 0\n" + MIRROR, "source.heartbeat_interval: found 0, expected a duration"),
    (SOURCE + "heartbeat_interval = true\n" + MIRROR, "source.heartbeat_interval: found true, expected a duration"),
    (SOURCE + 'heartbeat_interval = "soon"\n' + MIRROR, 'found "soon", expected a duration of at least 1 s'),
    (SOURCE + '[target]\nkind = "memory"\n' + MIRROR, 'target.kind: found "memory", expected dynamodb'),
    (SOURCE + '[target]\nkind = ["dynamodb"]\n' + MIRROR, "target.kind: found a list, expected dynamodb"),
    (SOURCE + "[target]\nregion = 1979-05-27\n" + MIRROR, "target.region: found a date, expected a region"),
    (SOURCE + '[target]\nendpoint_url = "localhost:4566"\n' + MIRROR, "target.endpoint_url: expected a URL"),
    (SOURCE + '[target]\nendpoint_url = "http://[::1"\n' + MIRROR, "target.endpoint_url: expected a URL"),
    (SOURCE + '[target]\nendpoint_url = "http://h:99999"\n' + MIRROR, "target.endpoint_url: expected a URL"),
    (SOURCE + '[target]\ntable_prefix = "a b"\n' + MIRROR, 'target.table_prefix: found "a b"'),
    (SOURCE + '[target]\ntombstone_lifetime = "-1d"\n' + MIRROR, 'target.tombstone_lifetime: found "-1d"'),
    (SOURCE + "[target]\ntombstone_lifetime = inf\n" + MIRROR, "target.tombstone_lifetime: found inf"),
    (SOURCE + "[run]\nworkers = 0\n" + MIRROR, "run.workers: found 0, expected a whole number from 1 to 256"),
    (SOURCE + "[run]\nworkers = 1.5\n" + MIRROR, "run.workers: found 1.5, expected a whole number"),
    (SOURCE + "[run]\nworkers = true\n" + MIRROR, "run.workers: found true, expected a whole number"),
    (SOURCE + f"[run]\nworkers = {10**400}\n" + MIRROR, "run.workers: found a very large number"),
    (SOURCE + f"[run]\nworkers = {'9' * 5000}\n" + MIRROR, "this is not TOML"),
    (SOURCE + '[run]\nbatch_bytes = "1MegaByte"\n' + MIRROR, 'run.batch_bytes: found "1MegaByte", expected a size'),
    (SOURCE + "[run]\nbatch_bytes = 1e6\n" + MIRROR, "run.batch_bytes: found 1000000.0, expected a size"),
    (SOURCE + '[run]\nin_flight_bytes = "1KiB"\n' + MIRROR, "run.in_flight_bytes: in_flight_bytes (1024) is less than"),
    (SOURCE + '[run]\nbatch_bytes = "64MiB"\n' + MIRROR, "run.batch_bytes: in_flight_bytes (33554432) is less than"),
    (
        SOURCE + '[run]\non_schema_change = "backfil"\n' + MIRROR,
        "one of backfill, warn; did you mean `backfill`?",
        'Write on_schema_change = "backfill".',
    ),
    (SOURCE + "[[mirrors]]\n", "mirrors[0].table: missing"),
    (SOURCE + '[[mirrors]]\ntable = "a.b.c"\n', 'mirrors[0].table: found "a.b.c", expected a table'),
    (SOURCE + '[[mirrors]]\ntable = ""\n', 'mirrors[0].table: found "", expected a table'),
    (SOURCE + "[[mirrors]]\ntable = '\"a'\n", "mirrors[0].table: found"),
    (SOURCE + "[[mirrors]]\ntable = 'a.'\n", "mirrors[0].table: found"),
    (SOURCE + f"[[mirrors]]\ntable = '{'a' * 64}'\n", "mirrors[0].table: found"),
    (SOURCE + "[[mirrors]]\ntable = '\"a.b\".c'\n", "mirrors[0].table: the schema `a.b` has a dot"),
    (SOURCE + "[[mirrors]]\ntable = '\"my orders\"'\n", "mirrors[0].collection", "Set `collection`"),
    (SOURCE + MIRROR + 'collection = "ab"\n', 'mirrors[0].collection: "ab" is not a name DynamoDB takes'),
    (SOURCE + MIRROR + MIRROR, "mirrors[1].table: public.orders is mirrored by mirrors[0] already"),
    (
        SOURCE + MIRROR + '[[mirrors]]\ntable = "old.orders"\n',
        "mirrors[1].collection: mirrors[0] goes into `orders` already",
        "a `collection` of its own",
    ),
    (SOURCE + MIRROR + 'include = ["a"]\nexclude = ["b"]\n', "mirrors[0].exclude: `include` and `exclude` exclude"),
    (SOURCE + MIRROR + "include = []\n", "mirrors[0].include: found a list, expected a list of names"),
    (SOURCE + MIRROR + "key = [1]\n", "mirrors[0].key: found a list, expected a list of names"),
    (SOURCE + MIRROR + 'key = "id"\n', 'mirrors[0].key: found "id", expected a list of names, such as ["id"]'),
    (SOURCE + MIRROR + 'key = ["id", "id"]\n', "mirrors[0].key: `id` is listed twice"),
    (SOURCE + MIRROR + 'key = ["_v"]\n', "mirrors[0].key: `_v` is a reserved attribute name", "Exclude or rename"),
    (SOURCE + MIRROR + 'include = ["id", "_ttl"]\n', "mirrors[0].include: `_ttl` is a reserved"),
    (SOURCE + MIRROR + 'key = ["a", "b", "c"]\n', "mirrors[0].key: 3 columns", "Add item_key"),
    (SOURCE + MIRROR + 'key = ["a"]\nexclude = ["a"]\n', "mirrors[0].key: `a` is a key column and is not carried"),
    (SOURCE + MIRROR + 'key = ["a"]\ninclude = ["b"]\n', "mirrors[0].key: `a` is a key column and is not carried"),
    (SOURCE + MIRROR + "item_key = {}\n", "mirrors[0].item_key: found 0 entries"),
    (SOURCE + MIRROR + 'item_key = { a = "{a}", b = "{b}", c = "{c}" }\n', "mirrors[0].item_key: found 3 entries"),
    (SOURCE + MIRROR + 'item_key = { _gone = "{id}" }\n', "mirrors[0].item_key._gone: `_gone` is a reserved"),
    (SOURCE + MIRROR + 'item_key = { " " = "{id}" }\n', 'mirrors[0].item_key." ": the attribute\'s name is empty'),
    (SOURCE + MIRROR + 'item_key = { pk = "A#{id" }\n', 'mirrors[0].item_key.pk: found "A#{id", expected a template'),
    (SOURCE + MIRROR + "item_key = { pk = 7 }\n", "mirrors[0].item_key.pk: found 7, expected a template"),
    (SOURCE + MIRROR + 'item_key = { pk = "ORDER" }\n', "mirrors[0].item_key: no column occurs in it"),
    (SOURCE + MIRROR + 'item_key = { id = "A#{id}" }\n', "mirrors[0].item_key.id: the attribute has the name of the"),
    (SOURCE + MIRROR + 'key = ["a"]\nitem_key = { pk = "{b}" }\n', "mirrors[0].item_key: `b` is not a key column"),
    (SOURCE + MIRROR + 'key = ["a", "b"]\nitem_key = { pk = "{a}" }\n', "the key column `b` does not occur", "{b}"),
    (SOURCE + MIRROR + "documents = 1\n", "mirrors[0].documents: found 1, expected a table [mirrors[0].documents]"),
    (
        SOURCE + MIRROR + '[mirrors.documents.order_data]\nformat = "xlm"\n',
        'mirrors[0].documents.order_data.format: found "xlm", expected one of xml, json, yaml; did you mean `xml`?',
    ),
    (SOURCE + MIRROR + "[mirrors.documents.d]\n", "mirrors[0].documents.d.format: missing, expected one of xml"),
    (SOURCE + MIRROR + '[mirrors.documents."a b"]\n', 'mirrors[0].documents."a b".format: missing'),
    (SOURCE + MIRROR + '[mirrors.documents.d]\nformat = "xml"\nlist = ["a"]\n', "did you mean `lists`?"),
    (SOURCE + MIRROR + '[mirrors.documents._h]\nformat = "xml"\n', "mirrors[0].documents._h: `_h` is a reserved"),
    (
        SOURCE + MIRROR + 'exclude = ["d"]\n[mirrors.documents.d]\nformat = "xml"\n',
        "mirrors[0].documents: `d` is described and is not carried",
    ),
    (
        SOURCE + MIRROR + 'key = ["d"]\n[mirrors.documents.d]\nformat = "xml"\n',
        "mirrors[0].key: `d` is a document column",
    ),
]


@pytest.mark.parametrize(("text", "parts"), [(text, parts) for text, *parts in MISTAKES])
def test_mistakes_are_refused_with_file_key_and_what_was_expected(text: str, parts: list[str]) -> None:
    message = refusal(text)
    assert message.startswith("some/docferry.toml: ")
    for part in parts:
        assert part in message


def test_a_reserved_name_may_be_excluded() -> None:
    assert read(SOURCE + MIRROR + 'exclude = ["_v"]\n').mirrors[0].exclude == {"_v"}


class TestFiles:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="there is no such file") as caught:
            load(tmp_path / "docferry.toml")
        assert "docferry init" in caught.value.remedy

    def test_a_directory(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot be read") as caught:
            load(tmp_path)
        assert "--config" in caught.value.remedy

    def test_an_impossible_name(self) -> None:
        with pytest.raises(ConfigError, match="cannot be read"):
            load("a\0b")

    def test_not_text(self, tmp_path: Path) -> None:
        file = tmp_path / "docferry.toml"
        file.write_bytes(b"a = '\xff'")
        with pytest.raises(ConfigError, match=r"not UTF-8 text \(byte 5\)"):
            load(file)

    def test_nested_beyond_reason(self) -> None:
        assert "this is not TOML" in refusal("a = " + "[" * 100_000)


class TestSecrets:
    @pytest.mark.parametrize(
        ("dsn", "shown"),
        [
            ("postgresql://app@h:5432/shop", "postgresql://app@h:5432/shop"),
            ("postgresql://app:s3cret@h:5432/shop", "postgresql://app:***@h:5432/shop"),
            ("postgresql://app:@h/shop", "postgresql://app:***@h/shop"),
            ("postgres://app:s3@cr/et?s3cret@h/shop", "postgres://app:***@h/shop"),
            ("postgresql://h/shop?password=s3cret&sslmode=require", "postgresql://h/shop?password=***&sslmode=require"),
            ("postgresql://h/shop?pass%77ord=s3cret", "postgresql://h/shop?pass%77ord=***"),
            ("postgresql://h/shop?sslpassword=s3cret", "postgresql://h/shop?sslpassword=***"),
            ("postgresql://h1:1,h2:2/shop", "postgresql://h1:1,h2:2/shop"),
            ("host=h password=s3cret dbname=shop", "host=h password=*** dbname=shop"),
            ("host=h PASSWORD = 's3 cr\\'et' dbname=shop", "host=h PASSWORD = *** dbname=shop"),
            ("password='s3cret", "password=***"),
            ("password=s3\\ cret user=a", "password=*** user=a"),
            ("sslpassword=s3cret", "sslpassword=***"),
            ("passfile=/a/b", "passfile=/a/b"),
        ],
    )
    def test_dsn(self, dsn: str, shown: str) -> None:
        assert safe_dsn(dsn) == shown

    @given(
        user=st.text(string.ascii_lowercase, min_size=1),
        password=st.text(st.characters(codec="utf-8"), min_size=1),
        form=st.sampled_from(["postgresql://{u}:{p}@host/db", "postgresql://{u}:{p}@host/db?sslmode=disable"]),
    )
    def test_no_password_in_a_uri_survives(self, user: str, password: str, form: str) -> None:
        marked = f"X{password}Y"
        assert safe_dsn(form.format(u=user, p=marked)) == form.format(u=user, p="***")

    @given(st.text())
    def test_any_text(self, text: str) -> None:
        safe_dsn(text)

    def test_repr(self) -> None:
        config = read('[source]\ndsn = "postgresql://app:s3cret@h/shop"\n' + MIRROR)
        assert "s3cret" not in repr(config)
        assert "app:***@h" in repr(config)

    @pytest.mark.parametrize(
        "value", ['["postgresql://app:s3cret@h"]', '"app:s3cret@h"', '""', "{ password = 's3cret' }"]
    )
    def test_a_wrong_dsn_is_not_shown(self, value: str) -> None:
        for key in ("dsn", "secret"):
            message = refusal(f"[source]\n{key} = {value}\n{MIRROR}")
            assert message.startswith(f"some/docferry.toml: source.{key}: ")
            assert "s3cret" not in message


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(0, 0), (1.5, 1.5), ("2ms", 0.002), ("30s", 30), ("5 m", 300), ("12h", 43200), ("7d", 604800), ("45", 45)],
)
def test_durations(value: object, seconds: float) -> None:
    assert parse_duration(value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", [-1, True, None, "", "s", "-1s", "1w", "1e3s", "99999d", float("nan"), [1], "1 2"])
def test_no_durations(value: object) -> None:
    assert parse_duration(value) is None


@pytest.mark.parametrize(
    ("value", "size"),
    [(0, 0), ("10", 10), ("10B", 10), ("1.5KiB", 1536), ("1MiB", 2**20), ("2GiB", 2**31), ("1MB", 10**6)],
)
def test_sizes(value: object, size: int) -> None:
    assert parse_size(value) == size


@pytest.mark.parametrize("value", [-1, 1.0, False, None, "1mib", "1TB", "MiB", 2**70, b"1"])
def test_no_sizes(value: object) -> None:
    assert parse_size(value) is None


class TestHealth:
    def test_all(self) -> None:
        config = read(
            SOURCE + MIRROR + '[run]\nlisten = "[::1]:9187"\n'
            '[health]\nstuck_after = "2m"\nsilent_after = 30\n[dead_letters]\nlimit = 5\n'
        )
        assert config.run.listen == "[::1]:9187"
        assert config.health == HealthConfig(120, 30)
        assert config.dead_letters.limit == 5
        assert read(SOURCE + MIRROR).health == HealthConfig(60, 300)
        assert read(SOURCE + MIRROR).dead_letters.limit == 100_000

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ('[run]\nlisten = "9187"', 'run.listen: found "9187", expected HOST:PORT'),
            ("[run]\nlisten = 9187", "run.listen: found 9187, expected HOST:PORT"),
            ("[health]\nstuck_after = 0", "health.stuck_after: found 0, expected a duration of at least 1 s"),
            ("[health]\nsilent_after = 5", "health.silent_after: found 5, expected a duration of at least 30 s"),
            ("[health]\nlimit = 5", "health.limit: unknown key"),
            ("[dead_letters]\nlimit = 0", "dead_letters.limit: found 0, expected a whole number from 1"),
        ],
    )
    def test_mistakes(self, text: str, said: str) -> None:
        assert said in refusal(SOURCE + MIRROR + text)


@pytest.mark.parametrize(
    ("template", "columns"),
    [
        ("ORDER#{id}", ("id",)),
        ("{a}#{b}", ("a", "b")),
        ("{{{a}}}", ("a",)),
        ("{{a}}", ()),
        ("{a}{b}", None),
        ("{a!r}", None),
        ("{a:>3}", None),
        ("META", ()),
        ("{my column}", ("my column",)),
        ("{}", None),
        ("{a", None),
        ("a}", None),
    ],
)
def test_templates(template: str, columns: tuple[str, ...] | None) -> None:
    assert template_columns(template) == columns


KINDS = (
    SourceConfig,
    TriggerConfig,
    LambdaConfig,
    TargetConfig,
    RunConfig,
    MirrorConfig,
    DocumentConfig,
    DeadLettersConfig,
    HealthConfig,
)
FIELDS = [field.name.rstrip("_") for kind in KINDS for field in dataclasses.fields(kind)]
KEYS = ["source", "target", "run", "mirrors", "dead_letters", "health", "_v", *FIELDS]
WORDS = st.sampled_from([DSN, "replication", "dynamodb", "public.orders", "id", "{id}", "xml", "7d", "1MiB", "", "\0"])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(), inner, max_size=4),
    max_leaves=12,
)


def toml(value: object) -> str:
    match value:
        case dict():
            return "{" + ", ".join(f"{toml(str(key))} = {toml(entry)}" for key, entry in value.items()) + "}"
        case list():
            return "[" + ", ".join(toml(entry) for entry in value) + "]"
        case str():
            return '"' + "".join(f"\\U{ord(letter):08X}" for letter in value) + '"'
        case bool() | None:
            return "true" if value else "false"
        case _:
            return str(value)


@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6))
def test_never_anything_but_a_config_or_a_config_error(content: dict[str, object]) -> None:
    text = "\n".join(f"{key} = {toml(value)}" for key, value in content.items())
    with contextlib.suppress(ConfigError):
        assert isinstance(read(text), Config)


@given(
    source=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3),
    target=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3),
    run=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3),
    mirrors=st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3), max_size=2),
)
def test_never_anything_else_behind_a_sound_beginning(
    source: dict[str, object], target: dict[str, object], run: dict[str, object], mirrors: list[dict[str, object]]
) -> None:
    whole = [{"table": f"public.orders_{index}", **mirror} for index, mirror in enumerate(mirrors)]
    text = (
        f"source = {toml({'dsn': DSN, **source})}\ntarget = {toml(target)}\nrun = {toml(run)}\nmirrors = {toml(whole)}"
    )
    with contextlib.suppress(ConfigError):
        assert "Config(" in repr(read(text))


@given(st.text() | st.binary().map(lambda raw: raw.decode("latin-1")))
def test_any_text_at_all(text: str) -> None:
    with pytest.raises(ConfigError):
        read(text)


def test_the_example_of_the_documentation() -> None:
    text = Path(__file__).parents[2].joinpath("docs", "configuration.md").read_text(encoding="utf-8")
    blocks = text.split("```toml\n")[1:]
    assert len(blocks) >= 1
    example = blocks[0].split("```")[0]
    assert isinstance(read(example), Config)


def test_every_key_is_documented() -> None:
    text = Path(__file__).parents[2].joinpath("docs", "configuration.md").read_text(encoding="utf-8")
    assert [name for name in FIELDS if f"`{name}`" not in text and f".{name}]`" not in text] == []

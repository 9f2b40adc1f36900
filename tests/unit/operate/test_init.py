"""The text of a first docferry.toml."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docferry.capture.findings import DocumentColumn, TableFinding
from docferry.config import ItemKeyAttribute, parse
from docferry.config.dsn import without_password
from docferry.config.names import quoted_table, split_table
from docferry.operate.init import propose

DSN = "postgresql://app@127.0.0.1:5432/shop"
ORDERS = TableFinding(
    schema="public",
    name="orders",
    key=("id",),
    columns=("id", "order_data", "notes"),
    documents=(DocumentColumn("order_data", "xml", "xml"), DocumentColumn("notes", "text", "json", sampled=100)),
    rows=120_000,
)
EVENTS = TableFinding(
    schema="public",
    name="events",
    key=(),
    columns=("payload",),
    documents=(DocumentColumn("payload", "jsonb", "json"),),
    problems=(("table public.events has no primary key", "ALTER TABLE public.events ADD PRIMARY KEY (...)."),),
)


def read(text: str) -> object:
    return parse(text, "docferry.toml", {})


def test_the_whole_file() -> None:
    proposal = propose(DSN, [ORDERS, EVENTS])
    assert proposal.mirrored == ("public.orders",)
    assert proposal.commented == ("public.events",)
    assert (
        proposal.text
        == """\
# docferry.toml, written by `docferry init`. docs/configuration.md describes every key.
# Next: `docferry plan` shows what would be created, `docferry apply` creates it, `docferry run` mirrors.

[source]
dsn = "postgresql://app@127.0.0.1:5432/shop"
capture = "replication"

[target]
kind = "dynamodb"
# region = "us-east-2"                      # default: what the AWS SDK finds (AWS_REGION, the profile)
# endpoint_url = "http://127.0.0.1:4566"    # an emulator; leave it out on AWS
# table_prefix = "prod-"

# public.orders: about 120,000 rows; key: id; documents: order_data xml, notes text
[[mirrors]]
table = "public.orders"
collection = "orders"

# All 100 sampled values of notes are JSON:
# [mirrors.documents.notes]
# format = "json"

# table public.events has no primary key.
# Remedy: ALTER TABLE public.events ADD PRIMARY KEY (...).
# public.events: no statistics yet; key: none; documents: payload jsonb
# [[mirrors]]
# table = "public.events"
# collection = "events"
"""
    )
    config = parse(proposal.text, "docferry.toml", {})
    assert [mirror.table for mirror in config.mirrors] == ["public.orders"]


def test_the_comment_signs_may_be_taken_away() -> None:
    text = propose(DSN, [ORDERS, EVENTS]).text
    for line in ("[[mirrors]]", "table = ", "collection = ", "[mirrors.documents", 'format = "json"'):
        text = text.replace(f"# {line}", line)
    config = parse(text, "docferry.toml", {})
    assert [mirror.table for mirror in config.mirrors] == ["public.orders", "public.events"]
    assert config.mirrors[0].documents["notes"].format == "json"


def test_a_table_whose_documents_are_only_supposed_is_commented_out() -> None:
    finding = TableFinding(
        "public", "mails", ("id",), ("id", "body"), (DocumentColumn("body", "text", "xml", sampled=3),)
    )
    proposal = propose(DSN, [ORDERS, finding])
    assert proposal.commented == ("public.mails",)
    assert "take the comment signs away" in proposal.text
    assert len(parse(proposal.text, "docferry.toml", {}).mirrors) == 1


def test_long_keys_get_a_template() -> None:
    documents = (DocumentColumn("d", "jsonb", "json"),)
    finding = TableFinding("public", "lines", ("a", "b", "c"), ("a", "b", "c", "d", "pk"), documents)
    mirror = parse(propose(DSN, [finding]).text, "docferry.toml", {}).mirrors[0]
    assert mirror.item_key == (ItemKeyAttribute("pk_", "{a}"), ItemKeyAttribute("sk", "{b}#{c}"))


def test_reserved_columns_are_excluded_or_the_table_is_commented_out() -> None:
    documents = (DocumentColumn("d", "jsonb", "json"),)
    column = TableFinding("public", "one", ("id",), ("id", "d", "_v"), documents)
    key = TableFinding("public", "two", ("_v",), ("_v", "d"), documents)
    proposal = propose(DSN, [column, key])
    assert proposal.commented == ("public.two",)
    assert parse(proposal.text, "docferry.toml", {}).mirrors[0].exclude == frozenset({"_v"})


def test_collections_do_not_collide() -> None:
    documents = (DocumentColumn("d", "jsonb", "json"),)
    tables = [
        ("a", "orders"),
        ("b", "orders"),
        ("a", "my orders"),
        ("a", "my-orders"),
        ("x", "t"),
        ("a", "a-my-orders"),
    ]
    findings = [TableFinding(schema, name, ("id",), ("id", "d"), documents) for schema, name in tables]
    mirrors = parse(propose(DSN, findings).text, "docferry.toml", {}).mirrors
    assert [mirror.collection for mirror in mirrors] == [
        "orders",
        "b-orders",
        "a-my-orders",
        "my-orders",
        "x-t",
        "a-a-my-orders",
    ]


@pytest.mark.parametrize(
    ("dsn", "written"),
    [
        (DSN, DSN),
        ("postgresql://app:s3cret@h/shop?sslmode=require", "postgresql://app@h/shop?sslmode=require"),
        ("postgresql://h/shop?password=s3cret", "postgresql://h/shop"),
        ("postgresql://h/shop?password=s3cret&sslmode=require", "postgresql://h/shop?sslmode=require"),
        ("host=h password=s3cret", "host=h"),
        ("password='s3 cret' host=h", "host=h"),
    ],
)
def test_no_password_is_written(dsn: str, written: str) -> None:
    assert without_password(dsn) == written
    text = propose(dsn, [ORDERS]).text
    assert "s3cret" not in text
    assert ("The password was left out" in text) is (dsn != written)
    assert parse(text, "docferry.toml", {}).source.dsn == written


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=15)
COLUMNS = st.lists(NAMES, min_size=1, max_size=4, unique=True)


@given(schema=NAMES.filter(lambda name: "." not in name), name=NAMES)
def test_tables_are_quoted_as_they_are_read(schema: str, name: str) -> None:
    assert split_table(quoted_table(schema, name)) == (schema, name)


@given(
    schema=NAMES.filter(lambda name: "." not in name),
    name=NAMES,
    key=COLUMNS,
    document=NAMES,
    sampled=st.sampled_from([0, 7]),
    problem=st.none() | NAMES,
    primary=st.booleans(),
)
def test_any_names_give_a_file_that_can_be_read(
    schema: str, name: str, key: list[str], document: str, sampled: int, problem: str | None, primary: bool
) -> None:
    finding = TableFinding(
        schema,
        name,
        tuple(key),
        (*key, document),
        (DocumentColumn(document, "text", "xml", sampled),),
        problems=() if problem is None else ((problem, problem),),
        key_is_primary=primary,
    )
    proposal = propose(DSN, [ORDERS, finding])
    mirrors = parse(proposal.text, "docferry.toml", {}).mirrors
    assert [mirror.table for mirror in mirrors] == list(proposal.mirrored)
    assert len(mirrors) == 1 + (f"{schema}.{name}" in proposal.mirrored)


def test_the_path_is_for_messages(tmp_path: Path) -> None:
    assert parse(propose(DSN, [ORDERS]).text, tmp_path, {}).path == tmp_path

"""The load generator's documents, mix and figures."""

from __future__ import annotations

from random import Random
from xml.etree import ElementTree as ET

import pytest

from docferry.errors import ConfigError
from docferry.operate.load import Mix, document
from docferry.operate.load_client import LoadError, Tally
from docferry.operate.load_table import LoadTable


@pytest.mark.parametrize("size", [200, 201, 350, 2400, 100_000])
def test_a_document_is_xml_of_exactly_that_size(size: int) -> None:
    for seed in range(20):
        text = document(Random(seed), size)
        assert len(text.encode()) == size
        assert ET.fromstring(text).tag == "order"


def test_the_same_seed_gives_the_same_documents() -> None:
    assert document(Random(7), 2400) == document(Random(7), 2400)
    assert document(Random(7), 2400) != document(Random(8), 2400)


def test_a_mix_must_be_able_to_go_on() -> None:
    assert Mix().counts == (100, 20, 200, 20)
    with pytest.raises(ConfigError, match=r"deletes more rows \(2\) than it inserts \(1\)"):
        Mix(1, 0, 0, 2)
    with pytest.raises(ConfigError, match="no statement at all"):
        Mix(0, 0, 0, 0)


def test_quantiles_are_exact_to_a_few_percent() -> None:
    tally = Tally()
    for milliseconds in range(1, 1001):
        tally.add(milliseconds * 1_000_000)
    assert tally.done == 1000
    for share in (0.5, 0.95, 0.99):
        assert tally.quantile(share) == pytest.approx(1000 * share, rel=0.03)
    assert Tally().quantile(0.5) is None


def test_tallies_add_up() -> None:
    one, other = Tally(failed=2), Tally(failed=3)
    one.add(1_000_000)
    other.add(1_000_000_000)
    total = Tally.of([one, other])
    assert (total.done, total.failed) == (2, 5)
    assert total.quantile(0.5) == pytest.approx(1, rel=0.03)
    assert total.quantile(1) == pytest.approx(1000, rel=0.03)


def test_errors_are_summed_by_sqlstate() -> None:
    found = LoadError.summed([LoadError("40001", 1, "a"), LoadError("57014", 5, "b"), LoadError("40001", 2, "c")])
    assert found == [LoadError("57014", 5, "b"), LoadError("40001", 3, "a")]


@pytest.mark.parametrize("name", ["", "a.b.c", 'x"y'])
def test_a_table_must_have_a_name(name: str) -> None:
    with pytest.raises(ConfigError, match="is not a table's name"):
        LoadTable("dbname=x", name, "docferry")


def test_names_are_quoted_in_statements() -> None:
    table = LoadTable("dbname=x", '"My shop".orders', "docferry")
    assert table.name == '"My shop".orders'
    assert table.statement("delete").endswith(b'DELETE FROM "My shop"."orders" WHERE id = $1')

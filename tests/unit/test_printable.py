"""What people are shown."""

from __future__ import annotations

import json
import logging

import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

from docferry.capture.rights import quoted
from docferry.cli.logs import _handler
from docferry.cli.session import Session
from docferry.printable import one_line, printable, printable_json


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 🙂 \\x1b", "plain é 🙂 \\x1b"),
        ("\x1b[31m\x07\x9b\x7f\r", "\\x1b[31m\\x07\\x9b\\x7f\\x0d"),
        ("\u202e\u2066\u200f\u2028\ud800", "\\u202e\\u2066\\u200f\\u2028\\ud800"),
        ("a\n\tb", "a\n\tb"),
    ],
)
def test_text(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert "\n" not in one_line(text)
    one_line(text).encode()


@given(st.text())
def test_json_stays_equal(text: str) -> None:
    for ascii_only in (True, False):
        shown = printable_json(json.dumps({text: [text]}, ensure_ascii=ascii_only))
        assert json.loads(shown) == {text: [text]}
        assert printable(shown) == shown


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
@example("b\u200fa\u061c\ufeff\t")
def test_an_identifier_is_shown_as_it_is(name: str) -> None:
    """Escaped once more, it would be another table's."""
    assert one_line(quoted(name)) == quoted(name)


def test_answers_and_logs() -> None:
    def say() -> None:
        Session().answer({}, "id=\x1b[2J")
        Session().note("id=\x1b[2J")
        _handler.emit(logging.LogRecord("docferry", logging.INFO, "", 0, "id=%s", ("\x1b[2J\nINFO forged",), None))

    runner = CliRunner()
    with runner.isolation() as (_, _, output):
        say()
        shown = output.getvalue().decode()
    assert shown.count("id=\\x1b[2J") == 3
    assert "\nINFO forged" not in shown

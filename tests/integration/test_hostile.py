"""Rows made to hurt, through the whole of docferry: each becomes the right item or a dead letter with its cause, and
the others never notice."""

from __future__ import annotations

import unicodedata
from typing import Any

from docferry.config import DocumentConfig
from docferry.deadletter.contract import DeadLetter

from .harness import BY_BOTH, Ferry

CAPTURES = BY_BOTH

KEYS = [
    "plain", "line\nbreak", "tab\tand\rreturn", "\x1b[31mred\x1b]0;title\x07", "quote ' \" ` \\ %s %(x)s {0} $1",
    "'; DROP TABLE hostile; --", unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é"), "\u202egnirts",
    "\x7f\x80\x9b", "x" * 2048, "🙂" * 512, " ", "NULL", "\\N", "{}", "(,)", "\ufeff",
]  # fmt: skip

GOOD: dict[str, tuple[str | None, str | None, str | None, tuple[Any, Any, Any]]] = {
    "numbers": ("<a>1</a>", "[1e1000000000, 1e-9]", "1e1000000000",
                ({"a": "1"}, None, "1e1000000000")),
    "zero": ("<a/>", '["\\u0000"]', '"\\0"', ({"a": None}, ["\0"], "\0")),
    "twice": ("<a><b/><b/></a>", '{"a": 1, "a": 2}', "x: no", ({"a": {"b": [None, None]}}, {"a": 2}, {"x": "no"})),
    "wide": ("<a>" + "<b/>" * 50_000 + "</a>", None, None, ({"a": {"b": [None] * 50_000}}, None, None)),
}  # fmt: skip

ALIASES = "a0: &a0 [x]\n" + "\n".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))
BAD = {
    "entity": ("x", '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>', "document-invalid"),
    "laughs": ("x", '<!DOCTYPE a [<!ENTITY x "y"><!ENTITY z "&x;&x;">]><a>&z;</a>', "document-invalid"),
    "unclosed": ("x", '<!DOCTYPE a SYSTEM "x"><a>' + "<![CDATA[" * 100_000, "document-invalid"),
    "deep xml": ("x", "<a>" * 100_000 + "</a>" * 100_000, "too-deep"),
    "long xml": ("x", "<a>" + " " * (9 << 20) + "</a>", "too-large"),
    "deep json": ("j", "[" * 5_000 + "]" * 5_000, "too-deep"),
    "surrogate": ("j", '["\\ud800"]', "document-invalid"),
    "aliases": ("y", ALIASES, "document-invalid"),
    "itself": ("y", "&a [*a]", "document-invalid"),
    "deep yaml": ("y", "- " * 100_000 + "x", "too-deep"),
}


def test_every_row_is_an_item_or_a_dead_letter(ferry: Ferry) -> None:
    ferry.execute("CREATE TABLE hostile (id text PRIMARY KEY, x text, j json, y text)")
    formats = {"x": DocumentConfig("xml"), "y": DocumentConfig("yaml")}
    ferry.mirror("public.hostile", documents=formats)
    before, beside = "", "beside "
    _insert_all(ferry, before)
    ferry.apply()
    ferry.start()
    _insert_all(ferry, beside)
    ferry.wait(120)

    found = {key: document for (key,), document in ferry.documents("hostile").items()}
    assert set(found) == {era + key for era in (before, beside) for key in (*_keys(era), *GOOD)}
    for key, (_, _, _, (x, _, y)) in GOOD.items():
        for era in (before, beside):
            assert (found[era + key]["x"], found[era + key]["y"]) == (x, y)
    assert found["numbers"]["j"] == ["1e1000000000", found["numbers"]["j"][1]]  # type: ignore[index]
    assert found["zero"]["j"] == ["\0"]
    assert found["twice"]["j"] == {"a": 2}

    with ferry.app() as app:
        letters = [stored.letter for stored in app.dead_letters.find(limit=100)]
    assert {letter.key["id"]: letter.cause for letter in letters} == {
        era + key: cause for era in (before, beside) for key, (_, _, cause) in BAD.items()
    }
    assert all(_is_modest(letter) for letter in letters)


def _keys(era: str) -> list[str]:
    """Those that stay short enough for a key."""
    return [key for key in KEYS if len((era + key).encode()) <= 2048]


def _insert_all(ferry: Ferry, era: str) -> None:
    rows: list[tuple[str | None, ...]] = [(key, None, None, None) for key in _keys(era)]
    rows += [(key, x, j, y) for key, (x, j, y, _) in GOOD.items()]
    for key, (column, text, _) in BAD.items():
        rows.append((key, *(text if name == column else None for name in "xjy")))
    with ferry.connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO hostile VALUES (%s, %s, %s, %s)", [(era + str(row[0]), *row[1:]) for row in rows]
        )


def _is_modest(letter: DeadLetter) -> bool:
    """It says what is wrong on one line, and does not quote the document at length."""
    return len(letter.problem) < 500 and "\n" not in letter.problem and bool(letter.remedy) and letter.payload is None

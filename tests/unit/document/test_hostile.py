"""Documents made to hurt: each is read or refused with its cause, soon, however clever it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from docferry.document import json, xml, yaml
from docferry.document.limits import MAX_BYTES, MAX_YAML_BYTES
from docferry.document.model import Value
from docferry.errors import RowRefused

PATIENCE = 30.0
"""Seconds. All take less than one; what grows with the square of its text takes minutes."""

LAUGHS = b"<!DOCTYPE a [<!ENTITY x0 'lol'>%s]><a>&x9;</a>" % b"".join(
    b"<!ENTITY x%d '%s'>" % (n, b"&x%d;" % (n - 1) * 10) for n in range(1, 10)
)
ALIASES = b"a0: &a0 [x]\n" + b"\n".join(
    b"a%d: &a%d [%s]" % (n, n, b",".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 12)
)
MERGES = b"a0: &a0 {x: 1}\n" + b"\n".join(
    b'a%d: &a%d {"<<": [%s]}' % (n, n, b",".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 12)
)
UNCLOSED = b'<!DOCTYPE a SYSTEM "x"><a>'

CASES: dict[str, tuple[Callable[[bytes], Value], bytes, str]] = {
    "xml external entity": (xml.parse, b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>', "invalid"),
    "xml external parameter entity": (
        xml.parse, b'<!DOCTYPE a [<!ENTITY % x SYSTEM "http://x/">%x;]><a/>', "invalid"),
    "xml billion laughs": (xml.parse, LAUGHS, "invalid"),
    "xml quadratic blow-up": (
        xml.parse, b"<!DOCTYPE a [<!ENTITY x '%s'>]><a>%s</a>" % (b"x" * 100_000, b"&x;" * 100_000), "invalid"),
    "xml unclosed CDATA": (xml.parse, UNCLOSED + b"<![CDATA[" * 100_000, "invalid"),
    "xml unclosed comments": (xml.parse, UNCLOSED + b"<!--" * 100_000, "invalid"),
    "xml unclosed instructions": (xml.parse, UNCLOSED + b"<?x" * 100_000, "invalid"),
    "xml depth": (xml.parse, b"<a>" * 100_000 + b"</a>" * 100_000, "too-deep"),
    "xml depth of content": (xml.parse_validated, b"<a>" * 100_000 + b"</a>" * 100_000, "too-deep"),
    "xml many attributes": (xml.parse, b"<a %s/>" % b" ".join(b'a%d="1"' % n for n in range(50_000)), ""),
    "xml one attribute twice": (xml.parse, b"<a %s/>" % (b'b="1" ' * 50_000), "invalid"),
    "xml huge attribute": (xml.parse, b'<a b="%s"/>' % (b"x" * (4 << 20)), ""),
    "xml huge mixed content": (xml.parse, b"<a>%s<b/></a>" % (b"x&amp;" * (1 << 20)), ""),
    "xml many elements": (xml.parse, b"<a>%s</a>" % (b"<b/>" * 200_000), ""),
    "xml attribute defaults": (
        xml.parse, b"<!DOCTYPE a [<!ATTLIST b c CDATA '%s'>]><a>%s</a>" % (b"x" * 10_000, b"<b/>" * 10_000), "invalid"),
    "xml encoding": (xml.parse, '<?xml version="1.0" encoding="UTF-16"?><a>é</a>'.encode("utf-16"), "invalid"),
    "xml not UTF-8": (xml.parse, b"<a>\xff\xfe</a>", "invalid"),
    "xml surrogate": (xml.parse, b"<a>\xed\xa0\x80</a>", "invalid"),
    "xml surrogate by reference": (xml.parse, b"<a>&#xD800;</a>", "invalid"),
    "xml zero by reference": (xml.parse, b"<a>&#0;</a>", "invalid"),
    "xml too long": (xml.parse, b"<a>%s</a>" % (b" " * MAX_BYTES), "too-large"),
    "xml content too long": (xml.parse_validated, b"<a>%s</a>" % (b" " * MAX_BYTES), "too-large"),
    "json depth of lists": (json.parse, b"[" * 100_000 + b"]" * 100_000, "too-deep"),
    "json depth of objects": (json.parse, b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "too-deep"),
    "json exponent": (json.parse, b"[1e1000000000, -1E-999999999999, 1e%s]" % (b"9" * 100_000), ""),
    "json digits": (json.parse, b"[%s, 0.%s1]" % (b"1" * 1_000_000, b"0" * 1_000_000), ""),
    "json duplicate keys": (json.parse, b"{%s}" % b",".join(b'"a":%d' % n for n in range(100_000)), ""),
    "json zero": (json.parse, b'["%s"]' % (rb"\u0000" * 100_000), ""),
    "json half a surrogate pair": (json.parse, rb'["\ud800"]', "invalid"),
    "json half a surrogate pair in a key": (json.parse, rb'{"\udfff": 1}', "invalid"),
    "json not UTF-8": (json.parse, b'["\xff"]', "invalid"),
    "json too long": (json.parse, b'["%s"]' % (b" " * MAX_BYTES), "too-large"),
    "yaml aliases": (yaml.parse, ALIASES, "invalid"),
    "yaml one alias often": (
        yaml.parse, b"a: &a %s\nb: [%s]" % (b"x" * 100_000, b",".join([b"*a"] * 10_000)), "invalid"),
    "yaml merge keys": (yaml.parse, MERGES, "invalid"),
    "yaml alias of itself": (yaml.parse, b"&a [*a]", "invalid"),
    "yaml depth of lists": (yaml.parse, b"[" * 100_000, "invalid"),
    "yaml depth of blocks": (yaml.parse, b"- " * 100_000, "too-deep"),
    "yaml depth of maps": (yaml.parse, b"{a: " * 100_000, "too-deep"),
    "yaml depth of keys": (yaml.parse, b"? " * 100_000, "invalid"),
    "yaml numbers": (yaml.parse, b"- 1e1000000000\n- %s\n- 0x%s" % (b"1" * 100_000, b"f" * 100_000), ""),
    "yaml objects": (yaml.parse, b"!!python/object/apply:os.system ['true']", ""),
    "yaml duplicate keys": (yaml.parse, b"a: 1\na: 2", "invalid"),
    "yaml surrogate": (yaml.parse, rb'"\ud800"', "invalid"),
    "yaml zero": (yaml.parse, rb'"\0"', ""),
    "yaml not UTF-8": (yaml.parse, b"a: \xff", "invalid"),
    "yaml UTF-16": (yaml.parse, "a: é".encode("utf-16"), "invalid"),
    "yaml many anchors": (yaml.parse, b"\n".join(b"- &a%d x" % n for n in range(20_000)), ""),
    "yaml unclosed quote": (yaml.parse, b'"' + b"x\n" * 100_000, "invalid"),
    "yaml too long": (yaml.parse, b"a: %s" % (b"x" * MAX_YAML_BYTES), "too-large"),
}  # fmt: skip


def _storable(value: Value) -> None:
    """Nothing in it but what a document may hold; text is UTF-8."""
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, dict):
            todo += one.values()
            todo += one
        elif isinstance(one, list):
            todo += one
        elif isinstance(one, str):
            one.encode()


@pytest.mark.parametrize("case", CASES)
def test_it_is_read_or_refused_quickly(case: str) -> None:
    parse, raw, cause = CASES[case]
    began = time.monotonic()
    found, said, remedy = "", "", "none"
    try:
        _storable(parse(raw))
    except RowRefused as error:
        found, said, remedy = error.cause, str(error), error.remedy
    assert len(said) < 500
    assert "\n" not in said
    assert remedy
    assert found == {"invalid": "document-invalid"}.get(cause, cause)
    assert time.monotonic() - began < PATIENCE


_XML = ["<a>", "</a>", "<a", "/>", ">", 'b="', '"', "'", "<!DOCTYPE a", " SYSTEM 'x'", "[", "]>", "<!ENTITY x 'y'>",
        "&x;", "<!ATTLIST a b CDATA 'c'>", "%x;", "<![CDATA[", "]]>", "<!--", "-->", "<?x", "?>", "&#0;", "&#xD800;",
        '<?xml version="1.0" encoding="EBCDIC"?>', "\ufeff", "\x00", "é", "xmlns:a='b' ", " ", "\n"]  # fmt: skip
_JSON = ["[", "]", "{", "}", '"', ":", ",", "1", "-", "e", "E999999999", ".", "NaN", "Infinity", "null", "true", "\\u",
         "d800", "\\u0000", "\\", "\ufeff", "\x00", "é", " ", '"a":']  # fmt: skip
_YAML = ["- ", "a: ", "? ", ": ", "[", "]", "{", "}", ",", "&a ", "*a", "!!binary ", "!x ", "!!python/name:os.system ",
         "|\n", ">\n", "---\n", "...\n", "%YAML 1.1\n", "%TAG ! x\n", "<<: ", "'", '"', "\\ud800", "\\x00", "0o9", "0x",
         "1e9999999", ".inf", "\t", "\n", "  ", "#", "\ufeff", "\x85", "é"]  # fmt: skip


@pytest.mark.parametrize(
    ("parse", "tokens"),
    [(xml.parse, _XML), (xml.parse_validated, _XML), (json.parse, _JSON), (yaml.parse, _YAML)],
    ids=["xml", "validated xml", "json", "yaml"],
)
def test_never_anything_but_a_document_or_a_refusal(parse: Callable[[bytes], Value], tokens: list[str]) -> None:
    @settings(max_examples=400, deadline=None)
    @given(st.lists(st.sampled_from(tokens), max_size=40).map("".join))
    def fuzz(text: str) -> None:
        with suppress(RowRefused):
            _storable(parse(text.encode()))

    fuzz()

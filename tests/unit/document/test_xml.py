"""xmltodict is the oracle for plain documents; docs/xml.md for the rest (its examples are run below)."""

from __future__ import annotations

import json
import re
import tracemalloc
from contextlib import suppress
from pathlib import Path
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

import pytest
import xmltodict
from hypothesis import given
from hypothesis import strategies as st

from docferry.document import xml
from docferry.document.limits import MAX_DEPTH
from docferry.document.model import Value
from docferry.errors import DocumentInvalid, DocumentTooDeep, RowRefused

DOCS = Path(__file__).parents[3] / "docs" / "xml.md"

# --- documents that xmltodict reads as we do --------------------------------------------------------------------------

_names = st.sampled_from(["a", "b", "item", "ns:item", "ü", "x-1", "_", "data.x"])
_attribute_names = st.sampled_from(["id", "xmlns", "xmlns:ns", "xml:lang", "xml:space", "a-b"])
_characters = st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff") | st.sampled_from(
    "\n\t "
)
_texts = st.text(_characters, max_size=12) | st.sampled_from(
    ["", " ", "a > b", "'", '"', "]]", "&", "<", "\u00a0", "x\r\ny"]
)
_spaces = st.sampled_from(["", " ", "\n  ", "\t", "\r\n"])


def _written(text: str, how: int) -> str:
    """Character data, written in one of several ways."""
    if how == 0 or not text:
        return escape(text)
    if how == 1 and "]]>" not in text:
        return f"<![CDATA[{text}]]>"
    if how == 2:
        return "".join(f"&#{ord(character)};" for character in text)
    return escape(text).replace("]]>", "]]&gt;") if how == 3 else escape(text)


@st.composite
def _start_tags(draw: st.DrawFn) -> tuple[str, str]:
    name = draw(_names)
    attributes = draw(st.dictionaries(_attribute_names, _texts, max_size=3))
    equals = draw(st.sampled_from(["=", " = ", "="]))
    gap = draw(st.sampled_from([" ", " ", "\n\t"]))
    quoted = "".join(gap + key + equals + quoteattr(value) for key, value in attributes.items())
    if draw(st.booleans()):
        quoted = quoted.replace("&#10;", "\n").replace("&#9;", "\t").replace("&gt;", ">")
    return name, name + quoted + draw(st.sampled_from(["", "", " "]))


@st.composite
def _elements(draw: st.DrawFn, children: st.SearchStrategy[str] | None = None) -> str:
    name, tag = draw(_start_tags())
    if children is None:
        text = draw(_texts)
        if not text and draw(st.booleans()):
            return f"<{tag}/>"
        return f"<{tag}>{_written(text, draw(st.integers(0, 3)))}</{name}>"
    inner = draw(st.lists(children, min_size=1, max_size=4))
    space = draw(_spaces)
    return f"<{tag}>{space}{space.join(inner)}{space}</{name}>"


_documents = st.recursive(_elements(), _elements, max_leaves=12)
_declarations = st.sampled_from(["", '<?xml version="1.0"?>\n', "<?xml version='1.0' encoding='utf-8'?>", "\n"])


@given(_declarations, _documents, _spaces)
def test_plain_documents_equal_xmltodict(declaration: str, document: str, end: str) -> None:
    text = declaration + document + end
    expected = xmltodict.parse(text)
    assert xml.parse(text.encode()) == expected
    assert xml.parse_validated(text.encode()) == expected
    assert xml._read_all(text.encode()) == expected, "the two readers must agree"


@given(st.lists(st.one_of(_documents, _texts.map(lambda text: _written(text, 0))), max_size=4).map("".join))
def test_validated_content_with_any_number_of_roots_reads_alike(text: str) -> None:
    assert xml.parse_validated(text.encode()) == xml.parse(text.encode())


_marks = st.sampled_from(
    [*"<>/ab =\"'&;![]-?x1\n\u00a0", "<a>", "</a>", "<!--", "-->", "<a/>", "<b x='", "<![CDATA[", "]]>"]
)


@given(st.lists(_marks, max_size=20).map("".join))
def test_no_text_crashes_and_both_readers_agree(text: str) -> None:
    try:
        value = _read_slowly(text.encode())
    except (RowRefused, expat.ExpatError):
        with pytest.raises(DocumentInvalid):
            xml.parse(text.encode())
        with suppress(RowRefused):
            xml.parse_validated(text.encode())  # a broken promise of the type may be read as something, not crash
    else:
        assert xml.parse(text.encode()) == value
        assert xml.parse_validated(text.encode()) == value


def _read_slowly(raw: bytes) -> Value:
    """Without the reader for plain documents."""
    try:
        return xml._read_all(raw)
    except expat.ExpatError:
        return xml._read_fragment(raw)


@given(st.binary(max_size=60))
def test_no_bytes_crash(raw: bytes) -> None:
    with suppress(RowRefused):
        xml.parse(raw)
    with suppress(RowRefused):
        xml.parse_validated(raw)


# --- the documented mapping -------------------------------------------------------------------------------------------

_EXAMPLE = re.compile(r"```xml\n(.*?)```\s+```json\n(.*?)```", re.DOTALL)


def _examples() -> list[tuple[str, str]]:
    return _EXAMPLE.findall(DOCS.read_text(encoding="utf-8"))


def test_the_page_has_examples() -> None:
    assert len(_examples()) >= 12


@pytest.mark.parametrize(("text", "value"), _examples())
def test_the_examples_of_the_page_are_true(text: str, value: str) -> None:
    assert xml.parse(text.removesuffix("\n").encode()) == json.loads(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<a><b/>t<c/></a>", {"a": {"#mixed": [{"b": None}, "t", {"c": None}]}}),
        ("<a> t <b/> u </a>", {"a": {"#mixed": [" t ", {"b": None}, " u "]}}),
        ('<a x="1">t<b/></a>', {"a": {"@x": "1", "#mixed": ["t", {"b": None}]}}),
        ("<a><b>1</b><c>2</c>&amp;</a>", {"a": {"#mixed": [{"b": "1"}, {"c": "2"}, "&"]}}),
        ("<a><b>1</b>t</a>", {"a": {"#mixed": [{"b": "1"}, "t"]}}),
        ("<a><b/><![CDATA[t]]></a>", {"a": {"#mixed": [{"b": None}, "t"]}}),
        ("<a>t<!-- c -->u<b/></a>", {"a": {"#mixed": ["t", {"#comment": " c "}, "u", {"b": None}]}}),
        ("<a>t<!-- c -->u</a>", {"a": {"#comment": "c", "#text": "tu"}}),
        ("<a><!--1--><!--2--></a>", {"a": {"#comment": ["1", "2"]}}),
        ("<?p?><a/>", {"?p": "", "a": None}),
        ("<a/>t", {"#mixed": [{"a": None}, "t"]}),
        ('<?xml version="1.0"?>text', "text"),
        ("\ufeff<a/>", {"a": None}),
        ("\ufefft", "t"),
        ("<a/><!DOCTYPE a>", DocumentInvalid),
        ("<a></a><a></a>", {"a": [None, None]}),
        ("<a x='1\n2\t3' y = \"'\" z='\"'></a>", {"a": {"@x": "1 2 3", "@y": "'", "@z": '"'}}),
        ('<a x="1\n2\t3">4</a>', {"a": {"@x": "1 2 3", "#text": "4"}}),
        ("<a><?p d?>4</a>", {"a": {"?p": "d", "#text": "4"}}),
        ("<a>></a>", {"a": ">"}),
        ("<a x='>'></a>", {"a": {"@x": ">"}}),
        ("<a x='1>2'>3</a>", {"a": {"@x": "1>2", "#text": "3"}}),
        ('<a x="&#10;&amp;amp;">&amp;lt;&#x41;&#32;</a>', {"a": {"@x": "\n&amp;", "#text": "&lt;A"}}),
        ('<!DOCTYPE a [<!ATTLIST a x CDATA "1">]><a/>', {"a": {"@x": "1"}}),
        ('<!DOCTYPE a SYSTEM "a.dtd"><a x="&amp;"><![CDATA[&b;]]></a>', {"a": {"@x": "&", "#text": "&b;"}}),
    ],
)
def test_mapping(text: str, value: object) -> None:
    if value is DocumentInvalid:
        with pytest.raises(DocumentInvalid):
            xml.parse(text.encode())
    else:
        assert xml.parse(text.encode()) == value


@pytest.mark.parametrize("encoding", ["ISO-8859-1", "UTF-16", "no-such-encoding", "windows-1252"])
def test_the_declared_encoding_is_not_believed(encoding: str) -> None:
    text = f'<?xml version="1.0" encoding="{encoding}"?><a>é€</a>'
    assert xml.parse(text.encode()) == {"a": "é€"}
    assert xml.parse(text.replace("<a>", "<a><!---->").encode()) == {"a": {"#comment": "", "#text": "é€"}}
    assert xml.parse(f'<?xml version="1.0" encoding="{encoding}"?>é<b/>'.encode()) == {"#mixed": ["é", {"b": None}]}


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "<a>",
        "<a></b>",
        "</a>",
        "<a><b></a></b>",
        "<a x='1' x='2'/>",
        "<a>&b;</a>",
        "a & b",
        "<a",
        "<1/>",
        "</_><_>",
        "\0",
    ],
)
def test_what_is_not_well_formed_says_where(text: str) -> None:
    with pytest.raises(DocumentInvalid, match=r"at line 1, column [1-9]"):
        xml.parse(text.encode())


def test_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(DocumentInvalid):
        xml.parse(b"<a>\xff</a>")


def _bomb(levels: int) -> str:
    entities = '<!ENTITY e0 "lol">' + "".join(
        f'<!ENTITY e{level} "{f"&e{level - 1};" * 10}">' for level in range(1, levels)
    )
    return f"<!DOCTYPE a [{entities}]><a>&e{levels - 1};</a>"


@pytest.mark.parametrize(
    "text",
    [
        _bomb(10),
        f'<!DOCTYPE a [<!ENTITY b "{"x" * 50_000}">]><a>{"&b;" * 10_000}</a>',
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>',
        '<!DOCTYPE a [<!ENTITY % x SYSTEM "http://127.0.0.1:1/x.dtd"> %x;]><a/>',
        "<!DOCTYPE a [<!ENTITY % x \"<!ENTITY y 'z'>\"> %x;]><a>&y;</a>",
        '<!DOCTYPE a SYSTEM "http://127.0.0.1:1/x.dtd"><a>caf&eacute;</a>',
        '<!DOCTYPE a SYSTEM "http://127.0.0.1:1/x.dtd"><a x="caf&eacute;"/>',
        "<!DOCTYPE a [%nowhere;]><a x='&lost;'/>",
    ],
    ids=["laughs", "quadratic", "file", "parameter", "indirect", "dtd-text", "dtd-attribute", "lost"],
)
def test_entities_are_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(DocumentInvalid, match=r"entity|entities") as refused:
        xml.parse(text.encode())
    assert "entity" in (refused.value.remedy or "")


def test_expat_itself_tells_of_skipped_entities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xml, "_FOREIGN_REFERENCE", re.compile(rb"(?!)"))
    with pytest.raises(DocumentInvalid, match="entity &eacute;"):
        xml.parse(b'<!DOCTYPE a SYSTEM "http://127.0.0.1:1/x.dtd"><a>caf&eacute;</a>')


def test_attribute_defaults_do_not_expand_beyond_measure() -> None:
    text = f'<!DOCTYPE r [<!ATTLIST a x CDATA "{"x" * 50_000}">]><r>{"<a/>" * 10_000}</r>'
    tracemalloc.start()
    try:
        with pytest.raises(DocumentInvalid, match="attribute defaults"):
            xml.parse(text.encode())
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("filler", ["", "<!---->", "text"])
@pytest.mark.parametrize("closed", [True, False])
def test_depth_bombs_do_not_crash(filler: str, closed: bool) -> None:
    text = ("<a>" + filler) * 100_000 + "</a>" * 100_000 * closed
    with pytest.raises((DocumentTooDeep, DocumentInvalid)):
        xml.parse(text.encode())


def test_as_deep_as_allowed() -> None:
    assert xml.parse(b"<a>" * MAX_DEPTH + b"</a>" * MAX_DEPTH)
    for filler in (b"", b"<!---->"):
        with pytest.raises(DocumentTooDeep):
            xml.parse((b"<a>" * (MAX_DEPTH + 2)) + filler + b"</a>" * (MAX_DEPTH + 2))


def test_remembered_tags_are_bounded() -> None:
    for number in range(10_000):
        xml.parse(f'<r><t{number}>x</t{number}><u{number} a="1"></u{number}></r>'.encode())
    assert len(xml._tags.plain) + len(xml._tags.single) <= 4096

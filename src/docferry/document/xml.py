"""XML text to a value, as xmltodict users expect it: docs/xml.md is the whole mapping.

Two readers give equal results where both apply; a property test holds them together and to xmltodict. `_read_plain`
splits the text at its tags, which is right for text that expat has found well-formed and that has no comments,
processing instructions, CDATA, DOCTYPE or mixed content: most documents. `_read_all` listens to expat's events and
reads everything. The first exists because an event costs a call into Python, and an element makes three of them.

Nothing outside the text is ever read: expat fetches no external entity by itself, and declaring an entity is refused,
which leaves no expansion to bound except that of attribute defaults.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, TypeAlias
from xml.parsers import expat

from docferry.document.limits import MAX_DEPTH, check_size, too_deep
from docferry.document.model import Value
from docferry.errors import DocumentInvalid

__all__ = ["parse", "parse_validated"]

_DECLARATION: Final = re.compile(rb"\A(?:\xef\xbb\xbf)?<\?xml\s[^>]*\?>")
_BYTE_ORDER_MARK: Final = "\ufeff"
_ATTRIBUTE: Final = re.compile(r"""([^\s=]+)\s*=\s*(?:"([^"]*)"|'([^']*)')""")
_REFERENCE: Final = re.compile(r"&(?:#x([0-9a-fA-F]+)|#([0-9]+)|([a-z]+));")
_FOREIGN_REFERENCE: Final = re.compile(rb"&(?!amp;|lt;|gt;|quot;|apos;|#)[^;\s]{1,80}")
_ASIDE: Final = re.compile(rb"<!\[CDATA\[|<!--|<\?")
_ASIDE_ENDS: Final = {b"<![CDATA[": b"]]>", b"<!--": b"-->", b"<?": b"?>"}
_PREDEFINED: Final = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}
_NOT_A_DOCUMENT: Final = frozenset(
    {
        expat.errors.codes[expat.errors.XML_ERROR_SYNTAX],
        expat.errors.codes[expat.errors.XML_ERROR_NO_ELEMENTS],
        expat.errors.codes[expat.errors.XML_ERROR_JUNK_AFTER_DOC_ELEMENT],
    }
)


class _Tags:
    """Start tags seen before, since a few shapes make most of a table's text. Only ever a shortcut, and bounded.

    `plain`: "white space<name" -> name. `single`: "white space<name attribute=" -> (name, @attribute).
    """

    __slots__ = ("plain", "single")

    def __init__(self) -> None:
        self.plain: dict[str, str] = {}
        self.single: dict[str, tuple[str, str]] = {}

    def remember(self, segment: str, name: str, attribute: str = "") -> None:
        """A full table is replaced, not emptied: another thread may be reading it."""
        if len(segment) > 200:
            return
        if len(self.plain) + len(self.single) >= 4096:
            self.plain = {}
            self.single = {}
        if attribute:
            self.single[segment] = (name, attribute)
        else:
            self.plain[segment] = name


_tags: Final = _Tags()


class _NotPlain(Exception):
    """The text needs `_read_all`."""


def parse(raw: bytes) -> Value:
    """The value of XML text in UTF-8, whatever encoding its declaration names (PostgreSQL has converted it).

    A document becomes a map with its root element as the single key; a fragment (PostgreSQL's CONTENT) becomes what an
    element with that content would become: a map of its elements, text, a `#mixed` map, or None when it is empty.
    Raises DocumentInvalid for what is not well-formed or not safe, DocumentTooDeep beyond MAX_DEPTH levels.
    """
    check_size(raw)
    if b"<!" not in raw:
        try:
            return _read_plain(raw)
        except _NotPlain:
            pass
        except UnicodeDecodeError:
            # Expat believes a mark of UTF-16, whatever it is told.
            raise DocumentInvalid("not well-formed XML: the text is not UTF-8") from None
    try:
        return _read_all(raw)
    except expat.ExpatError as error:
        reason = error
    try:
        return _read_fragment(raw)
    except expat.ExpatError as error:
        # Of a document that is nearly right, the first reading knows better where; of anything else, the second.
        raise _invalid(error, shift=3) if reason.code in _NOT_A_DOCUMENT else _invalid(reason) from None


def parse_validated(raw: bytes) -> Value:
    """Like `parse`, for the text of PostgreSQL's type xml, which is well-formed content: PostgreSQL has parsed it. The
    check for that is a fifth of the time. Text that is not what the type promises is read like any other."""
    check_size(raw)
    if b"<!" not in raw:
        try:
            return _read_plain(raw, validated=True)
        except (_NotPlain, LookupError, ValueError):
            pass
    return parse(raw)


def _invalid(error: expat.ExpatError, shift: int = 0) -> DocumentInvalid:
    column = error.offset + 1 - (shift if error.lineno == 1 else 0)
    reason = expat.errors.messages.get(error.code, "syntax error")
    return DocumentInvalid(f"not well-formed XML: {reason} at line {error.lineno}, column {max(column, 1)}")


def _read_fragment(raw: bytes) -> Value:
    """Content without a single root, read inside an element of ours. It cannot close that element and open another: a
    document has one root only, and expat says so. Raises ExpatError."""
    body = _DECLARATION.sub(b"", raw, count=1).removeprefix(b"\xef\xbb\xbf")
    value = _read_all(b"<_>" + body + b"</_>")
    assert isinstance(value, dict)
    return value["_"]


# --- plain documents --------------------------------------------------------------------------------------------------


def _read_plain(raw: bytes, *, validated: bool = False) -> Value:  # noqa: C901 - see below
    """A well-formed document of elements, attributes and text. Raises _NotPlain for anything else. `validated`: that it
    is well-formed content is known, but not that it has a single root.

    Written out where functions would be nicer: on this path a call costs as much as the work in it.
    """
    if not validated:
        try:
            expat.ParserCreate("utf-8").Parse(raw, True)  # noqa: FBT003 - no keyword
        except expat.ExpatError:
            raise _NotPlain from None  # a fragment, or wrong: the other reader finds out
    text = _body(raw)
    # Since the text is well-formed, each "<" begins a tag. With as many ">" each of those ends one, so that text and
    # attribute values hold neither.
    if text.count("<") != text.count(">") or "<?" in text:
        raise _NotPlain
    references = "&" in text
    known = _tags.plain
    stack: list[dict[str, Value]] = []
    here: dict[str, Value] = {}  # the open element
    value: Value
    child: dict[str, Value]
    # A chunk runs up to an end tag: the name in the last end tag, then "text<name attributes" for each start tag, then
    # the text before the next end tag.
    chunks = (">" + text).split("</")
    behind = chunks.pop()
    for chunk in chunks:
        segments = chunk.split(">")
        if len(segments) == 3:
            _, segment, content = segments
        elif len(segments) == 2:  # an end tag after an end tag
            if segments[1] and not segments[1].isspace():
                raise _NotPlain
            here = stack.pop()
            continue
        else:
            content = segments.pop()
            segment = segments.pop()
            del segments[0]
            for opening in segments:
                if opening in known:
                    name = known[opening]
                    value = child = {}
                    empty = False
                else:
                    name, child, empty = _start(opening, references)
                    value = (child or None) if empty else child
                if name not in here:
                    here[name] = value
                elif type(present := here[name]) is list:
                    present.append(value)
                else:
                    here[name] = [present, value]
                if not empty:
                    stack.append(here)
                    here = child
                    if len(stack) > MAX_DEPTH:
                        raise too_deep()
        value = content.strip() or None
        if references and value is not None and "&" in value:
            value = _REFERENCE.sub(_resolved, value).strip() or None
        if segment in known:
            name = known[segment]
        else:
            name, child, empty = _start(segment, references)
            if empty:  # the end tag at hand belongs to the element around it
                if value is not None:
                    raise _NotPlain
                _add(here, name, child or None)
                here = stack.pop()
                continue
            if child:
                if value is not None:
                    child["#text"] = value
                value = child
        if name in here:
            _add(here, name, value)
        else:
            here[name] = value
    if not here:
        raise _NotPlain  # the root is an empty-element tag: no end tag, no chunk
    if validated and (stack or not _is_single_root(here, behind)):
        raise _NotPlain
    return here


def _is_single_root(read: dict[str, Value], behind: str) -> bool:
    """Whether content had one root and nothing around it. `behind`: from the name in the last end tag on."""
    _, _, rest = behind.partition(">")
    return len(read) == 1 and type(next(iter(read.values()))) is not list and not rest.strip()


def _body(raw: bytes) -> str:
    """The text after the declaration, with line ends as XML defines them."""
    text = raw.decode().removeprefix(_BYTE_ORDER_MARK)
    if text.startswith("<?xml") and text[5:6].isspace():
        text = text[text.index("?>") + 2 :]
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text


def _start(segment: str, references: bool) -> tuple[str, dict[str, Value], bool]:
    """(name, attributes, is it an empty-element tag) of "white space<name attributes /"."""
    parts = segment.split('"')
    # One attribute and nothing behind it, the most frequent; a tab or line end in its value would be a blank.
    is_single = len(parts) == 3 and not parts[2] and parts[1].isprintable() and not (references and "&" in parts[1])
    if is_single and parts[0] in (single := _tags.single):
        name, attribute = single[parts[0]]
        return name, {attribute: parts[1]}, False
    tag = segment.strip()
    if tag[0] != "<":
        raise _NotPlain  # text before a start tag: mixed content
    if "=" not in tag:
        if tag[-1] == "/":
            return tag[1:-1].rstrip(), {}, True
        _tags.remember(segment, tag[1:])
        return tag[1:], {}, False
    words = parts[0].split()
    name = words[0][1:]
    if is_single and len(words) == 2 and words[1][-1] == "=":
        attribute = "@" + words[1][:-1]
        _tags.remember(parts[0], name, attribute)
        return name, {attribute: parts[1]}, False
    attributes: dict[str, Value] = {}
    for key, double, single_quoted in _ATTRIBUTE.findall(tag, len(words[0])):
        value = (double or single_quoted).replace("\n", " ").replace("\t", " ")
        if references and "&" in value:
            value = _REFERENCE.sub(_resolved, value)
        attributes["@" + key] = value
    return name, attributes, tag[-1] == "/"


def _resolved(match: re.Match[str]) -> str:
    hexadecimal, decimal, name = match.groups()
    if name:
        return _PREDEFINED[name]
    return chr(int(hexadecimal, 16) if hexadecimal else int(decimal))


def _add(parent: dict[str, Value], name: str, value: Value) -> None:
    """One more child. A list is made by the second of a name; a child's own value is never a list."""
    if name not in parent:
        parent[name] = value
        return
    present = parent[name]
    if type(present) is list:
        present.append(value)
    else:
        parent[name] = [present, value]


# --- everything else --------------------------------------------------------------------------------------------------


_Node: TypeAlias = "str | tuple[str, Value]"
"""What an element holds: text, or (key, value) of an element, a comment or an instruction."""


def _read_all(raw: bytes) -> Value:
    """Any document. Raises ExpatError when it is not well-formed."""
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.ordered_attributes = True
    stack: list[tuple[dict[str, Value], list[_Node]]] = []
    attributes: dict[str, Value] = {}
    nodes: list[_Node] = []  # of the open element

    def start(_name: str, pairs: list[str]) -> None:
        nonlocal attributes, nodes
        if len(stack) >= MAX_DEPTH:
            raise too_deep()
        stack.append((attributes, nodes))
        attributes = {"@" + pairs[at]: pairs[at + 1] for at in range(0, len(pairs), 2)} if pairs else {}
        nodes = []

    def end(name: str) -> None:
        nonlocal attributes, nodes
        value = _content(attributes, nodes)
        attributes, nodes = stack.pop()
        nodes.append((name, value))

    def text(data: str) -> None:
        nodes.append(data)

    def comment(data: str) -> None:
        nodes.append(("#comment", data))

    def instruction(target: str, data: str) -> None:
        nodes.append(("?" + target, data))

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text
    parser.CommentHandler = comment
    parser.ProcessingInstructionHandler = instruction
    if b"<!DOCTYPE" in raw:
        _guard(parser, raw, start)
    parser.Parse(raw, True)  # noqa: FBT003 - no keyword
    return _content({}, nodes)


def _content(attributes: dict[str, Value], nodes: list[_Node]) -> Value:
    """What an element becomes; `attributes` becomes part of it."""
    if len(nodes) == 1 and type(nodes[0]) is str:
        text = nodes[0].strip()
    else:
        text = "".join([node for node in nodes if type(node) is str]).strip()
        if text and any(type(node) is tuple and node[0][0] not in "#?" for node in nodes):
            attributes["#mixed"] = _mixed(nodes)
            return attributes
        for node in nodes:
            if type(node) is tuple:
                key, value = node
                if key == "#comment":
                    assert isinstance(value, str)
                    value = value.strip()
                _add(attributes, key, value)
    if not text:
        return attributes or None
    if not attributes:
        return text
    attributes["#text"] = text
    return attributes


def _mixed(nodes: list[_Node]) -> list[Value]:
    content: list[Value] = []
    parts: list[str] = []  # expat hands long text over in parts
    for node in nodes:
        if isinstance(node, str):
            parts.append(node)
            continue
        if parts:
            content.append("".join(parts))
            parts = []
        content.append({node[0]: node[1]})
    if parts:
        content.append("".join(parts))
    return content


# --- documents with a DOCTYPE -----------------------------------------------------------------------------------------


def _without_asides(raw: bytes) -> bytes:
    """The text without CDATA sections, comments and instructions. What is not closed ends it: the search for the end of
    each of many such would take time that grows with the square of the text."""
    kept = []
    at = 0
    while (opening := _ASIDE.search(raw, at)) is not None:
        kept.append(raw[at : opening.start()])
        end = _ASIDE_ENDS[opening.group()]
        closing = raw.find(end, opening.end())
        if closing < 0:
            return b"".join(kept)
        at = closing + len(end)
    kept.append(raw[at:])
    return b"".join(kept)


def _guard(parser: expat.XMLParserType, raw: bytes, start: Callable[[str, list[str]], None]) -> None:
    """Refuse what could expand without end or would lose text. `start`: the handler of start tags."""
    # The one expansion that is allowed is that of attribute defaults; this bounds what they may add.
    allowance = 100_000 + 4 * len(raw)

    def start_with_defaults(name: str, pairs: list[str]) -> None:
        nonlocal allowance
        allowance -= sum(map(len, pairs))
        if allowance < 0:
            raise DocumentInvalid(
                "its DOCTYPE expands attribute defaults beyond measure", limit="4 times the document's size + 100 kB"
            )
        start(name, pairs)

    def attribute(_element: str, _attribute: str, _kind: str, default: str | None, _required: bool) -> None:
        if default is not None:
            parser.StartElementHandler = start_with_defaults

    def doctype(_name: str, system_id: str | None, public_id: str | None, has_subset: int) -> None:
        # With declarations elsewhere, expat passes over entities it does not know; in attributes without a word.
        if system_id or public_id or has_subset:
            found = _FOREIGN_REFERENCE.search(_without_asides(raw))
            if found is not None:
                skipped(found.group()[1:].decode(errors="replace"), 0)

    def skipped(name: str, _is_parameter: int) -> None:
        raise DocumentInvalid(
            f"it uses the entity &{name}; of a DTD, and DTDs are not read",
            remedy="Write the character itself, or a numeric reference such as &#233;, in place of the entity.",
        )

    def entity(name: str, *_: object) -> None:
        raise DocumentInvalid(
            f'its DOCTYPE declares the entity "{name}"; entities are refused because they can expand without end',
            remedy="Replace the entity by its text and remove the declaration.",
        )

    parser.AttlistDeclHandler = attribute
    parser.StartDoctypeDeclHandler = doctype
    parser.SkippedEntityHandler = skipped
    parser.EntityDeclHandler = entity

"""What a verification has found, and where it is written down."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

from docferry.document.mirror import Mirror
from docferry.document.model import Collection, Key, KeyKind, KeyValue
from docferry.operate.compare import DIFFERENCES, Kind

__all__ = ["Counts", "Finding", "Findings", "Suspect"]


@dataclass(frozen=True, slots=True)
class Suspect:
    """A row or an item that is to be looked at again. `texts`: of the row's key columns, None where no row can have
    made the item. `key`: the item's, None where the row's cannot be one."""

    texts: tuple[str, ...] | None
    key: Key | None


@dataclass(frozen=True, slots=True)
class Finding:
    """A difference that was confirmed. `version`: of the item, None without one. `dead_letter`: there is one of the
    key. `problem`: why the row cannot be stored."""

    table: str
    suspect: Suspect
    kind: Kind
    version: int | None = None
    dead_letter: bool = False
    problem: str = ""

    def document(self, mirror: Mirror) -> dict[str, Any]:
        """As a JSON object. `key`: the text of each key column; `item`: the item's key; null where there is none."""
        texts, key = self.suspect.texts, self.suspect.key
        return {
            "table": self.table,
            "key": None if texts is None else mirror.key_by_name(texts),
            "item": None if key is None else _shown(mirror.collection, key),
            "kind": self.kind.value,
            "version": None if self.version is None else str(self.version),
            "dead_letter": self.dead_letter,
            "problem": self.problem,
        }

    @classmethod
    def of_document(cls, mirror: Mirror, document: Mapping[str, Any]) -> Finding:
        """Back from what `document` gave."""
        texts, item, version = document["key"], document["item"], document["version"]
        return cls(
            document["table"],
            Suspect(
                None if texts is None else tuple(texts[name] for name in mirror.spec.key),
                None if item is None else _read(mirror.collection, item),
            ),
            Kind(document["kind"]),
            None if version is None else int(version),
            document["dead_letter"],
            document["problem"],
        )


@dataclass(slots=True)
class Counts:
    """What was found in a mirror so far. `in_motion`: keys whose item changed at every look. `unsettled`: keys about
    which nothing could be said, and `why`. `unlettered`: of the refused rows those without a dead letter."""

    rows: int = 0
    items: int = 0
    missing: int = 0
    stale: int = 0
    different: int = 0
    orphaned: int = 0
    refused: int = 0
    unlettered: int = 0
    in_motion: int = 0
    unsettled: int = 0
    why: str = ""

    @property
    def differences(self) -> int:
        """How many are not as they should be; a refused row is in the dead letters' keeping, if it has one."""
        return sum(self.by_kind().values()) + self.unlettered

    def by_kind(self) -> Counter[Kind]:
        """Counted by kind of difference."""
        return Counter({kind: getattr(self, kind.value) for kind in DIFFERENCES})

    @property
    def noted(self) -> Counter[str]:
        """How many findings there are, by kind, those of refused rows too."""
        return Counter({kind.value: count for kind in Kind if (count := getattr(self, kind.value, 0))})

    def add_lost(self, counted: Counts, read: Counts) -> None:
        """Those that were counted and could not be read back are left as they were."""
        for name in (*(kind.value for kind in DIFFERENCES), "unlettered"):
            lost = getattr(counted, name) - getattr(read, name)
            setattr(self, name, getattr(self, name) + max(lost, 0))

    def note(self, finding: Finding) -> None:
        """Count one."""
        setattr(self, finding.kind.value, getattr(self, finding.kind.value) + 1)
        self.unlettered += finding.kind is Kind.REFUSED and not finding.dead_letter

    def as_dict(self) -> dict[str, Any]:
        """For the ledger and for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def of_dict(cls, found: Mapping[str, Any]) -> Counts:
        """Back; names of another docferry's are left out."""
        return cls(**{name: value for name, value in found.items() if name in cls.__slots__})


class Findings:
    """The file of a verification's findings, one JSON object a line, of all its tables. Used by one thread.

    `path`: None for one that goes with the object. `limit`: so many of each table, and as many that have a dead letter,
    are also kept in memory, to show.
    """

    def __init__(self, path: Path | None, limit: int) -> None:
        import tempfile

        self._limit = limit
        self.path = path
        self.shown: list[dict[str, Any]] = []
        self._shown_of: Counter[tuple[str, bool]] = Counter()
        self._file: IO[bytes] = tempfile.TemporaryFile() if path is None else path.open("a+b")  # noqa: SIM115 - `close`

    @property
    def size(self) -> int:
        """Bytes written, all of them on the way to the disk."""
        self._file.flush()
        return self._file.seek(0, 2)

    def cut(self, size: int) -> None:
        """Forget what was written behind `size` bytes."""
        self._file.truncate(size)
        self._file.seek(0, 2)

    def counted(self, size: int) -> dict[str, Counter[str]]:
        """How many of each kind the first `size` bytes hold, by table; under "" what is no finding."""
        found: dict[str, Counter[str]] = {}
        self._file.flush()
        self._file.seek(0)
        while self._file.tell() < size:
            try:
                document = json.loads(self._file.readline())
                table, kind = str(document["table"]), str(document["kind"])
            except (ValueError, KeyError, TypeError):
                table, kind = "", ""
            found.setdefault(table, Counter())[kind] += 1
        self._file.seek(0, 2)
        return found

    def add(self, mirror: Mirror, finding: Finding) -> None:
        """Write one down."""
        document = finding.document(mirror)
        self._file.write(json.dumps(document, ensure_ascii=False).encode() + b"\n")
        self._show(document)

    def of(self, mirror: Mirror) -> Iterator[Finding]:
        """Those of a mirror."""
        for document in self._documents():
            if document.get("table") == mirror.table:
                yield Finding.of_document(mirror, document)

    def remember(self, mirror: Mirror) -> None:
        """Show what was written before this object was made, too."""
        for document in self._documents():
            if document.get("table") == mirror.table:
                self._show(document)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _show(self, document: dict[str, Any]) -> None:
        # Rows in the dead letters' keeping must not take the place of what is not as it should be.
        which = (document["table"], document["kind"] == Kind.REFUSED and document["dead_letter"])
        if self._shown_of[which] < self._limit:
            self._shown_of[which] += 1
            self.shown.append(document)

    def _documents(self) -> Iterator[dict[str, Any]]:
        self._file.flush()
        position = 0
        while True:
            self._file.seek(position)
            line = self._file.readline()
            position = self._file.tell()
            self._file.seek(0, 2)
            if not line.endswith(b"\n"):
                return
            with suppress(ValueError):
                yield json.loads(line)


def _shown(collection: Collection, key: Key) -> dict[str, str]:
    return {
        part.name: base64.b64encode(value).decode() if isinstance(value, bytes) else format(value, "")
        for part, value in zip(collection.key, key, strict=True)
    }


def _read(collection: Collection, shown: Mapping[str, str]) -> Key:
    return tuple(_value(part.kind, shown[part.name]) for part in collection.key)


def _value(kind: KeyKind, text: str) -> KeyValue:
    match kind:
        case KeyKind.NUMBER:
            number = Decimal(text)
            return int(number) if number == number.to_integral_value() else number
        case KeyKind.BINARY:
            return base64.b64decode(text)
        case KeyKind.TEXT:
            return text

"""A mirror at work: its conversion, kept in step with the table's columns."""

from __future__ import annotations

from collections.abc import Collection as Names
from collections.abc import Mapping
from dataclasses import replace

from docferry.change.model import UNCHANGED, RawValue, Relation, Row
from docferry.document.convert import Converter
from docferry.document.model import Collection, MirrorSpec

__all__ = ["Mirror"]


class Mirror:
    """One source table and the target collection it is carried to. `oid` is the table's, so that a renamed table is
    noticed instead of missed."""

    def __init__(self, spec: MirrorSpec, oid: int) -> None:
        self.table = spec.table
        self.oid = oid
        self._adopt(spec)

    def _adopt(self, spec: MirrorSpec) -> None:
        self.spec = spec
        self.converter = Converter(spec)

    @property
    def collection(self) -> Collection:
        """Where the items go, with every attribute that older ones may carry."""
        return self.spec.collection

    def carried(self, names: Names[str]) -> frozenset[str]:
        """Those columns that items hold."""
        chosen = frozenset(names) - self.spec.exclude
        return chosen if self.spec.include is None else chosen & self.spec.include

    def remember_attributes(self, attributes: Names[str]) -> None:
        """From now on, writes remove those of these attributes that the row does not have."""
        self._adopt(replace(self.spec, collection=replace(self.spec.collection, retired=frozenset(attributes))))

    def key_texts(self, relation: Relation, row: Row) -> tuple[str, ...]:
        """The text of each key column, for reading the row again and for dead letters."""
        values = [row[index] for index in self.converter.key_indexes(relation)]
        return tuple(value.decode() if isinstance(value, bytes) else "" for value in values)

    def key_row(self, relation: Relation, texts: Mapping[str, str]) -> Row:
        """A row that carries nothing but key texts given by name."""
        row: list[RawValue] = [UNCHANGED] * len(relation.columns)
        for name, index in zip(self.spec.key, self.converter.key_indexes(relation), strict=True):
            row[index] = texts.get(name, "").encode()
        return tuple(row)

    def key_by_name(self, texts: tuple[str, ...]) -> dict[str, str]:
        """Key texts under the names of the key columns."""
        return dict(zip(self.spec.key, texts, strict=True))

"""The configured mirrors, held against the tables that the source has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from docferry.capture.catalog import TableInfo, Types, describe_table
from docferry.capture.eligibility import table_problems
from docferry.captures import by_triggers
from docferry.config import Config
from docferry.document.convert import Converter
from docferry.document.mirror import Mirror
from docferry.errors import ConfigError
from docferry.operate.admin import MirrorPlan
from docferry.source.session import connect
from docferry.specify import column_problems, fingerprint, mirror_spec

__all__ = ["hold_against_tables"]


def hold_against_tables(config: Config, dsn: str) -> tuple[list[MirrorPlan], list[tuple[str, str]]]:
    """The mirrors that can be, and (problem, remedy) of those that cannot. Raises SourceUnavailable, SourceRefused."""
    plans: list[MirrorPlan] = []
    problems: list[tuple[str, str]] = []
    known: dict[int, TableInfo] = {}
    with connect(dsn, purpose="setup") as connection:
        types = Types(connection)
        for mirror in config.mirrors:
            try:
                info = describe_table(connection, types, mirror.table)
                known[info.oid] = info
                key = mirror.key or info.primary_key
                found = [
                    *table_problems(info, key, by_triggers=by_triggers(config.source.capture)),
                    *column_problems(mirror, info),
                ]
                if found:
                    problems.extend(found)
                    continue
                spec = mirror_spec(mirror, info.relation, key, config.target.table_prefix)
                Converter(spec).key_indexes(info.relation)
            except ConfigError as error:
                problems.append((str(error), error.remedy))
                continue
            plans.append(MirrorPlan(Mirror(spec, info.oid), info.relation, fingerprint(spec), info.layout))
    problems.extend(_nested(known))
    return plans, problems


def _nested(known: Mapping[int, TableInfo]) -> Iterator[tuple[str, str]]:
    """Mirrored tables that are partitions of mirrored tables: what happens in them is captured as their root's."""
    for info in known.values():
        for root in info.ancestors & known.keys():
            yield (
                f"{info.table} is a partition of {known[root].table}, which is mirrored too",
                f"Remove one of the two from [[mirrors]]: {known[root].table} carries all of its partitions.",
            )

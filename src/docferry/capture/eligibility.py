"""Which tables can be mirrored, and what to do about those that cannot."""

from __future__ import annotations

from collections.abc import Sequence

from docferry.capture.catalog import TableInfo, UniqueIndex

__all__ = ["table_problems"]


def table_problems(info: TableInfo, key: Sequence[str], *, by_triggers: bool = False) -> list[tuple[str, str]]:
    """Why a table cannot be mirrored with this key: (problem, remedy) pairs, none if it can. `by_triggers`: its changes
    come from triggers, which see whole rows, whatever the replica identity.

    A published table without a usable replica identity would make the application's own UPDATE and DELETE fail, so such
    a table is never put into the publication (R7).
    """
    table = info.table
    problems: list[tuple[str, str]] = []
    if info.kind not in ("r", "p"):
        problems.append((f"{table} is not a table", "Name the table under it in [[mirrors]] table."))
        return problems
    if info.persistence != "p":
        problems.append((f"{table} is not logged, so it has no changes to read", f"ALTER TABLE {table} SET LOGGED."))
    if info.has_children:
        problems.append(
            (
                f"{table} has tables that inherit from it, whose rows are read with it but change on their own",
                "Mirror tables without children, or partition declaratively.",
            )
        )
    if not info.readable:
        problems.append((f"the role may not read {table}", f"GRANT SELECT ON {table} TO the role in [source] dsn."))
    if info.hidden_rows:
        problems.append(
            (
                f"row level security hides rows of {table} from the role",
                "ALTER ROLE ... BYPASSRLS for the role in [source] dsn.",
            )
        )
    if not key:
        problems.append(
            (
                f"table {table} has no primary key",
                (
                    f"ALTER TABLE {table} ADD PRIMARY KEY (...), or set key = [...] to the columns of a unique index "
                    f"over NOT NULL columns"
                    + ("." if by_triggers else f" and ALTER TABLE {table} REPLICA IDENTITY USING INDEX that index.")
                ),
            )
        )
        return problems
    problems.extend(_key_problems(info, key) or ([] if by_triggers else _identity_problems(info, key)))
    return problems


def _key_problems(info: TableInfo, key: Sequence[str]) -> list[tuple[str, str]]:
    table = info.table
    names = {column.name for column in info.relation.columns}
    missing = [name for name in key if name not in names]
    if missing:
        return [
            (
                f"key column {', '.join(missing)} of {table} does not exist",
                f"Choose from: {', '.join(sorted(names))}.",
            )
        ]
    shown = ", ".join(key)
    extended = [name for name in key if name in info.extension_columns]
    if extended:
        return [
            (
                f"key column {extended[0]} of {table} is of an extension's type, {info.type_names[extended[0]]}",
                "Choose other key columns: those of a unique index over types of PostgreSQL's own.",
            )
        ]
    unique = [index for index in info.indexes if set(index.columns) == set(key)]
    if not any(index.immediate for index in unique):
        if unique:
            return [
                (
                    f"the unique index over ({shown}) of {table} is deferrable",
                    "Make the constraint NOT DEFERRABLE, or choose another key.",
                )
            ]
        return [
            (
                f"no unique index of {table} is over exactly ({shown}), so two rows could share a key",
                f"CREATE UNIQUE INDEX CONCURRENTLY ON {table} ({shown}), or choose other key columns.",
            )
        ]
    nullable = [name for name in key if name not in info.not_null]
    if nullable:
        return [
            (
                f"key column {', '.join(nullable)} of {table} may be NULL",
                f"ALTER TABLE {table} ALTER COLUMN {nullable[0]} SET NOT NULL, or choose other key columns.",
            )
        ]
    return []


def _identity_problems(info: TableInfo, key: Sequence[str]) -> list[tuple[str, str]]:
    table, shown = info.table, ", ".join(key)
    problems = []
    if not set(key) <= info.identity_columns:
        problems.append(
            (
                f"the replica identity of {table} does not hold the key ({shown}), so deletes would come without it",
                _identify(table, info.indexes, key),
            )
        )
    # The leaves decide what the log carries, and whether the application may update at all: what is said of their root
    # does not reach them.
    problems.extend(
        (
            f"the replica identity of partition {leaf.table} of {table} does not hold the key ({shown})",
            _identify(leaf.table, leaf.indexes, key),
        )
        for leaf in info.leaves
        if not leaf.holds(key)
    )
    return problems


def _identify(table: str, indexes: Sequence[UniqueIndex], key: Sequence[str]) -> str:
    """The statement after which the replica identity holds the key."""
    over = [index for index in indexes if index.immediate and set(index.columns) == set(key)]
    if not over:  # a partition whose index is being rebuilt, say
        return f"ALTER TABLE {table} REPLICA IDENTITY FULL."
    identity = "DEFAULT" if over[0].primary else f"USING INDEX {over[0].name}"
    return f"ALTER TABLE {table} REPLICA IDENTITY {identity}."

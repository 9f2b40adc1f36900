"""The key attributes of each mirror's table: as given, by templates, or from the source's catalog."""

from __future__ import annotations

from collections.abc import Sequence

from docferry.app import App
from docferry.aws.blueprint import KeyAttributes, keys_from_config, parse_keys
from docferry.config import Config
from docferry.errors import ConfigError, DocferryError
from docferry.target.dynamodb_items import TYPE_LETTERS

__all__ = ["settle_keys"]


def settle_keys(config: Config, given: Sequence[str], *, reachable: bool) -> dict[str, KeyAttributes]:
    """The keys of all mirrors, by source table. The database is asked only if something is left to ask, and only when
    it is `reachable`. Raises ConfigError naming the tables whose keys nothing tells."""
    keys = {**keys_from_config(config), **parse_keys(given, config)}
    missing = [mirror.table for mirror in config.mirrors if mirror.table not in keys]
    if not missing:
        return keys
    why = "the configuration names no database"
    if reachable:
        try:
            with App(config) as app:
                found = {table: mirror.collection.key for table, mirror in app.mirrors.items()}
        except ConfigError:
            raise  # it answers, and something about a mirror is wrong
        except DocferryError as error:
            why = str(error)
        else:
            return {
                **{table: tuple((one.name, TYPE_LETTERS[one.kind]) for one in key) for table, key in found.items()},
                **keys,
            }
    names = {mirror.table: mirror.key or ("id",) for mirror in config.mirrors}
    shown = " ".join(f"--key {table}={','.join(f'{name}:N' for name in names[table])}" for table in missing)
    raise ConfigError(
        f"the types of the keys of {', '.join(missing)} are not known: {why}",
        remedy=f"Give them (S text, N number, B binary), such as {shown}, or let the database be reached.",
    )

"""The templates that cfn-lint and the security scanner look at. As a script: writes them into a directory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from docferry.aws.blueprint import blueprint
from docferry.aws.keys import settle_keys
from docferry.aws.template import template
from docferry.config import parse

__all__ = ["CONFIGS", "made"]

_ORDERS: Final = """
[source]
dsn = "postgresql://app:secret-password@127.0.0.1:5432/shop" # never leaves this machine
capture = "lambda"

[source.lambda]
function = "shop-ferry"

[target]
region = "us-east-2"
endpoint_url = "http://127.0.0.1:4566"

[[mirrors]]
table = "public.orders"

[mirrors.documents.order_data]
format = "xml"
lists = ["items/item"]
"""

_LINES: Final = """
[[mirrors]]
table = "public.order_lines"
key = ["order_id", "line"]

[[mirrors]]
table = "shop.order-lines"
collection = "order-lines"
item_key = { pk = "ORDER#{id}", "sort key" = "LINE#{line}" }
"""

CONFIGS: Final = {
    "one": (_ORDERS, ["orders=id:N"]),
    "composite": (_ORDERS + _LINES, ["orders=id:N", "order_lines=order_id:N,line:S"]),
    # So many that the configuration fits no longer into the function's environment, nor into a standard parameter.
    "many": (
        _ORDERS + "".join(f'\n[[mirrors]]\ntable = "public.a_table_with_a_rather_long_name_{n}"\n' for n in range(90)),
        ["orders=id:N", *(f"a_table_with_a_rather_long_name_{n}=id:N" for n in range(90))],
    ),
}
"""Name -> the configuration file and what --key says."""


def made(name: str) -> str:
    """The template of one of them."""
    text, keys = CONFIGS[name]
    config = parse(text, "docferry.toml", {})
    return template(blueprint(config, text, settle_keys(config, keys, reachable=False)))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    for one in CONFIGS:
        (folder / f"{one}.yaml").write_text(made(one), encoding="utf-8")

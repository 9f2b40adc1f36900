"""What `docferry.toml` says, checked: every mistake that can be seen without a network is refused here.

`load(path)` gives a `Config` or raises ConfigError. docs/configuration.md describes every key.
"""

from __future__ import annotations

from docferry.config.dsn import hide_secrets, safe_dsn
from docferry.config.listen import EXPECTED_ADDRESS, ListenAddress, parse_address
from docferry.config.load import DEFAULT_PATH, load, parse
from docferry.config.model import (
    Capture,
    Config,
    DeadLettersConfig,
    DocumentConfig,
    HealthConfig,
    ItemKeyAttribute,
    LambdaConfig,
    MirrorConfig,
    RunConfig,
    SourceConfig,
    TargetConfig,
    TriggerConfig,
)
from docferry.config.names import RESERVED, template_columns
from docferry.config.quantities import parse_duration, parse_size

__all__ = [
    "DEFAULT_PATH",
    "EXPECTED_ADDRESS",
    "RESERVED",
    "Capture",
    "Config",
    "DeadLettersConfig",
    "DocumentConfig",
    "HealthConfig",
    "ItemKeyAttribute",
    "LambdaConfig",
    "ListenAddress",
    "MirrorConfig",
    "RunConfig",
    "SourceConfig",
    "TargetConfig",
    "TriggerConfig",
    "hide_secrets",
    "load",
    "parse",
    "parse_address",
    "parse_duration",
    "parse_size",
    "safe_dsn",
    "template_columns",
]

"""The CloudFormation template: the fragments of aws/cloudformation, put together, with the tables of the mirrors.

It is text from the start, not a data structure written out, so that it keeps its comments, its order and its short
forms. `@marker@` in a fragment is filled in here.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Final

from docferry.aws.blueprint import Blueprint
from docferry.aws.dashboard import dashboard
from docferry.aws.tables import table_alarms, table_arns, table_outputs, table_resources
from docferry.errors import ConfigError

__all__ = ["INLINE_TEMPLATE", "RUNTIME", "template"]

INLINE_TEMPLATE: Final = 51_200
"""Bytes of a template that CloudFormation takes inline; a larger one has to lie in S3."""

RUNTIME: Final = "python3.13"

_FRAGMENTS: Final = (
    ("encryption", "Encryption and protection"),
    ("network", "Network"),
    ("database", "Database"),
    ("function", "Function"),
    ("tables", "Tables"),
    ("deadletters", "Dead letters"),
    ("host", "Host"),
    ("observability", "Alarms"),
)
_SECTIONS: Final = ("Parameters", "Rules", "Conditions", "Resources", "Outputs")
_SECTION = re.compile(r"^(\w+):$")
_BLOCK = re.compile(r"^( *)@([a-z-]+)@\n", re.MULTILINE)
_INLINE = re.compile(r"@([a-z-]+)@")

# Lambda allows 4 KB for all variables; the other ones need some of it.
_INLINE_CONFIG: Final = 3_000
# Of a parameter in the standard and the advanced tier.
_STANDARD_PARAMETER, _LARGEST_CONFIG = 4_096, 8_192


def template(plan: Blueprint) -> str:
    """The template's text, the same for the same mirrors and configuration. Raises ConfigError."""
    size = len(plan.config.encode())
    if size > _LARGEST_CONFIG:
        raise ConfigError(
            f"the configuration has {size:,} bytes without comments; a parameter of AWS holds {_LARGEST_CONFIG:,}",
            remedy="Divide the mirrors among several configurations, each with a stack and a function of its own.",
        )
    inline = size <= _INLINE_CONFIG
    blocks = {
        "config": plan.config,
        "dashboard": dashboard(plan),
        "function-config": (
            f"DOCFERRY_CONFIG_TEXT: |\n{_indented(plan.config, '  ')}"
            if inline
            else "DOCFERRY_CONFIG_PARAMETER: !Ref ConfigParameter"
        ),
        "ssm-endpoint": "" if inline else _fragment_text("ssm_endpoint"),
        "table-alarms": table_alarms(plan),
        "table-arns": table_arns(plan),
    }
    inline_values = {
        "config-tier": "Standard" if size <= _STANDARD_PARAMETER else "Advanced",
        "function-name": plan.function,
        "runtime": RUNTIME,
    }
    sections: dict[str, list[str]] = {name: [] for name in _SECTIONS}
    groups: list[str] = []
    for name, title in _FRAGMENTS:
        for section, body in _fragment(name, plan).items():
            sections[section].append(f"  # -- {title} --\n{body}")
            if section == "Parameters":
                groups.append(_group(title, body))
    text = (
        'AWSTemplateFormatVersion: "2010-09-09"\n'
        "Description: >-\n"
        "  docferry carries the rows of PostgreSQL tables to DynamoDB: Aurora PostgreSQL, deferred triggers, Lambda,\n"
        "  DynamoDB; failures to SQS. `docferry aws template` made it from docferry.toml; change that, not this.\n"
        "Metadata:\n"
        "  AWS::CloudFormation::Interface:\n"
        "    ParameterGroups:\n" + "".join(groups)
    )
    for section in _SECTIONS:
        text += f"\n{section}:\n" + "\n".join(sections[section])
    # Blocks last: what a configuration holds is no marker.
    text = _INLINE.sub(lambda match: inline_values.get(match[1], match[0]), text)
    return _BLOCK.sub(lambda match: _indented(blocks[match[2]], match[1]), text)


def _fragment(name: str, plan: Blueprint) -> dict[str, str]:
    """Section -> its lines."""
    if name == "tables":
        return {"Resources": table_resources(plan), "Outputs": table_outputs(plan)}
    sections: dict[str, str] = {}
    current = ""
    for line in _fragment_text(name).splitlines(keepends=True):
        if match := _SECTION.match(line):
            current = match[1]
            sections[current] = ""
        else:
            sections[current] += line
    return sections


@cache
def _fragment_text(name: str) -> str:
    return (files("docferry.aws") / "cloudformation" / f"{name}.yaml").read_text(encoding="utf-8")


def _group(title: str, parameters: str) -> str:
    names = ", ".join(re.findall(r"^  (\w+):$", parameters, re.MULTILINE))
    return f"      - Label: {{ default: {title} }}\n        Parameters: [{names}]\n"


def _indented(text: str, indent: str) -> str:
    return "".join(indent + line if line.strip() else line for line in text.splitlines(keepends=True)) + (
        "" if text.endswith("\n") or not text else "\n"
    )

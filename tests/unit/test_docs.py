"""What the pages say must be there: links, anchors, commands, dependencies."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from docferry.cli import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("**/*.md"))]

_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
_PATH = re.compile(r"`((?:capture|change|cli|deadletter|document|embedded|operate|source|target)/[\w/]+\.\w+|\w+\.py)`")


def _prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def _anchors(page: Path) -> set[str]:
    """As GitHub makes them."""
    plain = [heading.lower().replace("`", "") for heading in _HEADING.findall(_prose(page))]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_resolves(page: Path) -> None:
    broken = []
    for link in _LINK.findall(_prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_row_stands_outside_of_its_table(page: Path) -> None:
    """A blank line ends a table; what follows it is shown as text."""
    tables = re.findall(r"(?:^\|.*\n)+", _prose(page), re.MULTILINE)
    assert [table for table in tables if not re.match(r"\|.*\n\|[-:| ]+\|\n", table)] == []


def test_the_readme_leads_to_every_page() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in _LINK.findall(_prose(ROOT / "README.md"))}
    assert [page.name for page in PAGES if page.name != "README.md" and page.resolve() not in linked] == []


@pytest.mark.parametrize("page", [ROOT / "docs/architecture.md"], ids=lambda page: page.name)
def test_every_module_that_is_named_exists(page: Path) -> None:
    package = ROOT / "src/docferry"
    named = set(_PATH.findall(_prose(page)))
    assert named
    assert [name for name in sorted(named) if not any(package.rglob(name))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_is_named_exists(page: Path) -> None:
    """A test belongs to the file before it on its line, to any where none is named."""
    missing = []
    anywhere = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests").glob("*/**/*.py")))
    for line in _prose(page).splitlines():
        text = anywhere
        for name in re.findall(r"`(tests/[\w/]+\.py|test_\w+)`", line):
            if name.startswith("tests/"):
                path = ROOT / name
                text = path.read_text(encoding="utf-8") if path.exists() else ""
                missing += [] if path.exists() else [name]
            elif f"def {name}(" not in text:
                missing.append(name)
    assert missing == []


# The changelog also names what is planned.
@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_every_command_that_is_shown_exists(page: Path) -> None:
    shown = re.findall(r"(?:`|^\$ |&& )docferry ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(shown) - set(COMMANDS) == set()


def test_every_dependency_is_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    names = {re.split(r"[\[<>=]", one)[0] for one in asked} - {"docferry"}
    text = (ROOT / "docs/dependencies.md").read_text(encoding="utf-8")
    assert [name for name in sorted(names) if f"`{name}" not in text] == []

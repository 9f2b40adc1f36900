"""What `verify` says when it is stopped."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from docferry.cli.frame import Ferry
from docferry.errors import Interrupted
from docferry.operate.findings import Counts
from docferry.operate.verification import Checked

CONFIG = """
[source]
dsn = "postgresql://nobody@127.0.0.1:1/nowhere"
[target]
kind = "dynamodb"
[[mirrors]]
table = "public.orders"
collection = "orders"
"""


class Stopped:
    """An app whose verification is stopped by a signal: while it compares, or while it mends."""

    comparing = True

    def __init__(self, *_: object, **__: object) -> None:
        self.stopping = threading.Event()
        self.config = SimpleNamespace(source=SimpleNamespace(capture="outbox"))
        self.findings = SimpleNamespace(shown=[])
        mirror: Any = SimpleNamespace(table="public.orders", collection=SimpleNamespace(name="orders"))
        self.checked = [Checked(mirror, 1, Counts(rows=3, missing=1))]

    def __enter__(self) -> Stopped:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def stop_on(self, *_: object, **__: object) -> nullcontext[None]:
        return nullcontext()

    def verification(self, *_: object, **__: object) -> nullcontext[Stopped]:
        return nullcontext(self)

    def run(self) -> list[Checked]:
        if self.comparing:
            self._stop()
        return self.checked

    def repair(self, _on_mended: object) -> None:
        self._stop()

    def _stop(self) -> None:
        self.stopping.set()
        raise Interrupted("stopped")


@pytest.mark.parametrize("comparing", [True, False])
def test_what_the_same_command_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comparing: bool) -> None:
    monkeypatch.setattr("docferry.cli.verify.VerifyApp", Stopped)
    monkeypatch.setattr(Stopped, "comparing", comparing)
    path = tmp_path / "docferry.toml"
    path.write_text(CONFIG)
    root = Ferry("docferry", {"verify": "Verify."})
    result = CliRunner().invoke(root, ["verify", "-c", str(path), "--repair", "--yes"])
    assert result.exit_code == 130
    assert ("goes on from there" in result.output) is comparing
    assert ("compares anew" in result.output) is not comparing
    assert ("Not everything has been mended yet." in result.output) is not comparing

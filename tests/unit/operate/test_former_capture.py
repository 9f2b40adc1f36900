"""When the capture mode changes, what the former one kept in the source goes, and only that."""

from __future__ import annotations

from pathlib import Path

import pytest

from docferry.app import App
from docferry.capture.setup import ReplicationSetup
from docferry.capture.trigger_setup import TriggerSetup
from docferry.config import Capture, Config, RunConfig, SourceConfig, TargetConfig

NOWHERE = "postgresql://nobody@127.0.0.1:1/none"


def app(capture: Capture) -> App:
    return App(Config(SourceConfig(dsn=NOWHERE, capture=capture), TargetConfig(), (), RunConfig(), Path("x.toml")))


@pytest.mark.parametrize("now", ["outbox", "lambda"])
def test_the_modes_by_triggers_share_their_triggers(now: Capture) -> None:
    for former in ("outbox", "lambda"):
        assert app(now)._former_setup(former) is None, "removing the former's would remove what was just made"
    assert isinstance(app(now)._former_setup("replication"), ReplicationSetup)


def test_triggers_go_when_the_log_is_read_again() -> None:
    assert isinstance(app("replication")._former_setup("lambda"), TriggerSetup)
    assert app("replication")._former_setup("replication") is None

"""What the stack's host is asked to do, and what is said when it cannot be asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from docferry.aws.clients import Clients
from docferry.aws.deploy import Deployed
from docferry.aws.remote import bootstrap
from docferry.cli.aws_stage import Source, apply, report
from docferry.cli.session import Session
from docferry.config import parse
from docferry.errors import TargetRefused, TargetUnavailable

_HOST = "i-0123456789abcdef0"
# Nobody listens there.
_TEXT = """
[source]
dsn = "postgresql://app@127.0.0.1:1/shop"
capture = "outbox"

[target]
endpoint_url = "http://127.0.0.1:1"

[[mirrors]]
table = "public.orders"
"""


def _error(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "no"}}, "SendCommand")


@dataclass
class _Ssm:
    """Answers `found` one after the other; an exception is raised."""

    found: Sequence[Any] = ()
    refuses: ClientError | None = None
    sent: list[dict[str, Any]] = field(default_factory=list)
    asked: int = 0

    def send_command(self, **settings: Any) -> dict[str, Any]:
        if self.refuses is not None:
            raise self.refuses
        self.sent.append(settings)
        return {"Command": {"CommandId": "c-1"}}

    def get_command_invocation(self, **which: Any) -> dict[str, Any]:
        assert which == {"CommandId": "c-1", "InstanceId": _HOST}
        self.asked += 1
        answer = self.found[self.asked - 1]
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, dict)
        return answer


@dataclass(frozen=True)
class _Clients(Clients):
    ssm: _Ssm = field(default_factory=_Ssm)
    pause = 0.0

    def __call__(self, service: str) -> Any:
        assert service == "ssm"
        return self.ssm


def _clients(ssm: _Ssm) -> _Clients:
    return _Clients("us-east-2", None, None, ssm)


def _ended(text: str) -> dict[str, Any]:
    return {"Status": "Success", "StandardOutputContent": text}


def _done(action: Any, **outputs: str) -> Deployed:
    return Deployed("docferry", "us-east-2", action, [], outputs)


def _applied(done: Deployed, ssm: _Ssm) -> tuple[list[str] | None, str]:
    """The steps and the last line of the report."""
    source = Source(parse(_TEXT, "docferry.toml", {}), _TEXT, named=True)
    steps = apply(Session(), source, done, _clients(ssm))
    return steps, list(report(done, steps, asked=True))[-1]


def test_the_host_is_asked_and_waited_for() -> None:
    answer = json.dumps({"steps": ["created the triggers on public.lines"], "changed": True})
    ssm = _Ssm([_error("InvocationDoesNotExist"), {"Status": "Pending"}, {"Status": "InProgress"}, _ended(answer)])
    assert bootstrap(_clients(ssm), _HOST) == ["created the triggers on public.lines"]
    assert ssm.asked == 4
    (sent,) = ssm.sent
    assert (sent["InstanceIds"], sent["DocumentName"]) == ([_HOST], "AWS-RunShellScript")
    assert sent["Parameters"]["commands"][-1] == "docferry-bootstrap --json"


def test_an_answer_that_was_cut_off_is_shown_as_it_is() -> None:
    assert bootstrap(_clients(_Ssm([_ended('{\n  "steps": [\n')])), _HOST) == ["{", '  "steps": [']


@pytest.mark.parametrize("code", ["InvalidInstanceId", "AccessDeniedException", "ThrottlingException"])
def test_a_host_that_cannot_be_asked(code: str) -> None:
    with pytest.raises(TargetUnavailable, match=code):
        bootstrap(_clients(_Ssm(refuses=_error(code))), _HOST)


def test_a_failure_on_the_host_is_one_of_the_deployment() -> None:
    failed = {"Status": "Failed", "StandardErrorContent": "1\n2\n3\n4\n5\n6\nerror: table orders does not exist\n"}
    with pytest.raises(TargetRefused, match="table orders does not exist") as caught:
        bootstrap(_clients(_Ssm([failed])), _HOST)
    assert "\n  2" not in str(caught.value), "the last lines are enough"
    assert f"aws ssm start-session --target {_HOST}" in caught.value.remedy


@pytest.mark.parametrize("action", ["updated", "unchanged"])
def test_a_later_deployment_has_the_host_apply(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    ssm = _Ssm([_ended('{"steps": ["created the triggers on public.lines"]}')])
    steps, last = _applied(_done(action, HostInstanceId=_HOST), ssm)
    assert steps == ["created the triggers on public.lines"]
    assert "created the triggers on public.lines" in capsys.readouterr().err
    assert "has run" not in last


def test_a_new_host_has_done_it_already() -> None:
    ssm = _Ssm()
    assert _applied(_done("created", HostInstanceId=_HOST), ssm) == (None, "The host has run `apply`.")
    assert ssm.sent == []


def test_nobody_says_that_it_was_done_when_it_was_not(capsys: pytest.CaptureFixture[str]) -> None:
    refusing = _Ssm(refuses=_error("AccessDeniedException"))
    steps, last = _applied(_done("updated", HostInstanceId=_HOST), refusing)
    assert (steps, last) == (
        None,
        f"Next: `sudo docferry-bootstrap` on the host (`aws ssm start-session --target {_HOST}`).",
    )
    assert "cannot be asked" in capsys.readouterr().err
    assert "Next: `docferry apply`" in _applied(_done("updated"), refusing)[1]


def test_the_bootstrap_says_nothing_but_the_answer() -> None:
    """Otherwise the steps could not be read."""
    import docferry

    script = (Path(docferry.__file__).parent / "aws" / "host" / "bootstrap.sh").read_text()
    assert script.index("exec 3>&1 1>&2") < script.index("\n. ")
    assert script.rstrip().endswith('docferry apply "$@" >&3')

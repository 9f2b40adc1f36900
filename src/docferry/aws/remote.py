"""What `docferry aws deploy` has the stack's host do, by Systems Manager: the database may be out of our own reach."""

from __future__ import annotations

import json
import time
from typing import Any, Final

from docferry.aws.clients import Clients, saying
from docferry.errors import TargetRefused, TargetUnavailable

__all__ = ["bootstrap"]

# The agent's environment is not that of a login.
_COMMANDS: Final = ["export HOME=/root PATH=/usr/local/bin:$PATH", "docferry-bootstrap --json"]
# Seconds until the agent must have taken the command, and until the command must have ended.
_TAKEN, _ENDED = 120, 1800
_WAITING: Final = ("Pending", "InProgress", "Delayed", "Cancelling")
_LAST_LINES: Final = 5


def bootstrap(clients: Clients, instance: str) -> list[str]:
    """Run `docferry-bootstrap` on the host and wait for its end. Returns the steps of `apply`. Raises TargetUnavailable
    when the host cannot be asked, TargetRefused when it failed there."""
    ssm = clients("ssm")
    try:
        with saying(f"the host {instance} cannot be asked to run `docferry-bootstrap`"):
            sent = ssm.send_command(
                InstanceIds=[instance],
                DocumentName="AWS-RunShellScript",
                Comment="docferry aws deploy",
                TimeoutSeconds=_TAKEN,
                Parameters={"commands": _COMMANDS, "executionTimeout": [str(_ENDED)]},
            )
    except TargetRefused as error:
        # Stopped, without its agent, or not for us: for whoever deploys it is the same.
        raise TargetUnavailable(str(error), remedy=error.remedy) from error
    ended = _ended(clients, ssm, sent["Command"]["CommandId"], instance)
    if ended["Status"] != "Success":
        said = ended.get("StandardErrorContent", "").strip().splitlines()[-_LAST_LINES:]
        raise TargetRefused(
            f"`docferry-bootstrap` on the host {instance}: {ended.get('StatusDetails') or ended['Status']}"
            + "".join(f"\n  {line}" for line in said),
            remedy="Remove the cause, then deploy again; `aws ssm start-session --target "
            f"{instance}` opens a shell there.",
        )
    return _steps(ended.get("StandardOutputContent", ""))


def _ended(clients: Clients, ssm: Any, command: str, instance: str) -> dict[str, Any]:
    """The command's invocation, once it has ended; Systems Manager sees to it that it does."""
    from botocore.exceptions import ClientError

    while True:
        with saying(f"it cannot be seen what became of `docferry-bootstrap` on the host {instance}"):
            try:
                found: dict[str, Any] = ssm.get_command_invocation(CommandId=command, InstanceId=instance)
            except ClientError as error:
                # For a moment nobody knows of it.
                if error.response["Error"]["Code"] != "InvocationDoesNotExist":
                    raise
            else:
                if found["Status"] not in _WAITING:
                    return found
        time.sleep(clients.pause)


def _steps(text: str) -> list[str]:
    """Those of `docferry apply --json`; of a text that is cut off, or another one, its lines."""
    try:
        return [str(step) for step in json.loads(text)["steps"]]
    except (ValueError, KeyError, TypeError):
        return text.splitlines()

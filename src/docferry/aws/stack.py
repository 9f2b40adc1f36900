"""One CloudFormation stack: create or update it, follow its events, delete it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from docferry.aws.clients import Clients, saying
from docferry.errors import DocferryError, TargetRefused

__all__ = ["Stack", "StackEvent"]

_CAPABILITIES: Final = ["CAPABILITY_IAM"]
_NOTHING_TO_DO: Final = "No updates are to be performed"
_DONE: Final = ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS", "DELETE_COMPLETE")
# Reasons that only say that something else failed.
_CONSEQUENCES: Final = ("Resource creation cancelled", "Resource update cancelled", "The following resource(s)")


@dataclass(frozen=True)
class StackEvent:
    """What happened to one resource. `status`: such as CREATE_IN_PROGRESS; `reason`: empty unless AWS gives one."""

    at: datetime
    resource: str
    type: str
    status: str
    reason: str

    @property
    def failed(self) -> bool:
        return self.status.endswith("_FAILED")


class Stack:
    """`on_event` is called with each event of an operation, as it happens."""

    def __init__(self, clients: Clients, name: str, on_event: Callable[[StackEvent], None]) -> None:
        self._cloudformation = clients("cloudformation")
        self._pause = clients.pause
        self._on_event = on_event
        self.name = name

    def described(self) -> dict[str, Any] | None:
        """AWS's description; None when there is no such stack."""
        return self._described(self.name)

    def parameter(self, name: str) -> str:
        """A parameter's value; empty where it has none."""
        found = self.described() or {}
        values = {one["ParameterKey"]: one.get("ParameterValue", "") for one in found.get("Parameters", [])}
        return str(values.get(name, ""))

    def outputs(self) -> dict[str, str]:
        """Name -> value, by name."""
        found = self.described() or {}
        return {output["OutputKey"]: output["OutputValue"] for output in _by_key(found.get("Outputs", []))}

    def template(self) -> str:
        """The text that it was made from; empty when there is no such stack."""
        if self.described() is None:
            return ""
        with saying(f"the template of stack {self.name} cannot be read"):
            return str(self._cloudformation.get_template(StackName=self.name, TemplateStage="Original")["TemplateBody"])

    def resources(self, kind: str) -> list[str]:
        """The physical names of the resources of a type."""
        with saying(f"the resources of stack {self.name} cannot be listed"):
            pages = self._cloudformation.get_paginator("list_stack_resources").paginate(StackName=self.name)
            return [
                str(resource["PhysicalResourceId"])
                for page in pages
                for resource in page["StackResourceSummaries"]
                if resource["ResourceType"] == kind and resource.get("PhysicalResourceId")
            ]

    def deploy(
        self, template: Mapping[str, Any], parameters: Mapping[str, str], known: list[str]
    ) -> Literal["created", "updated", "unchanged"]:
        """Create the stack, or update it, and wait for the end. `template`: TemplateBody, TemplateURL or
        UsePreviousTemplate. `known`: the parameters of the template; those without a value keep the one of the last
        deployment, or have their default.

        Raises TargetRefused, naming the first resource that failed, and when the stack is in no state to be updated.
        """
        found = self.described()
        settings: dict[str, Any] = {
            "StackName": self.name,
            "Capabilities": _CAPABILITIES,
            "ClientRequestToken": str(uuid.uuid4()),
            "Tags": [{"Key": "docferry", "Value": self.name}],
            **template,
        }
        values: list[dict[str, Any]] = [
            {"ParameterKey": name, "ParameterValue": value} for name, value in parameters.items()
        ]
        if found is None:
            with saying(f"stack {self.name} cannot be created"):
                made = self._cloudformation.create_stack(Parameters=values, OnFailure="ROLLBACK", **settings)
            self._follow(made["StackId"], set(), "created")
            return "created"
        self._check_updatable(found)
        kept = [one["ParameterKey"] for one in found.get("Parameters", [])]
        kept = [name for name in kept if name in known and name not in parameters]
        values += [{"ParameterKey": name, "UsePreviousValue": True} for name in kept]
        seen = self._seen(found["StackId"])
        if not self._update(values, settings):
            return "unchanged"
        self._follow(found["StackId"], seen, "updated")
        return "updated"

    def delete(self) -> None:
        """Delete it and wait for the end. Raises TargetRefused, naming the first resource that could not go."""
        found = self.described()
        if found is None:
            return
        seen = self._seen(found["StackId"])
        with saying(f"stack {self.name} cannot be deleted"):
            self._cloudformation.delete_stack(StackName=self.name, ClientRequestToken=str(uuid.uuid4()))
        self._follow(found["StackId"], seen, "deleted")

    def _update(self, values: list[dict[str, Any]], settings: dict[str, Any]) -> bool:
        from botocore.exceptions import ClientError

        with saying(f"stack {self.name} cannot be updated"):
            try:
                self._cloudformation.update_stack(Parameters=values, **settings)
            except ClientError as error:
                if _NOTHING_TO_DO in str(error):
                    return False
                raise
        return True

    def _check_updatable(self, found: Mapping[str, Any]) -> None:
        status = found["StackStatus"]
        if status.endswith("_IN_PROGRESS") and status != "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS":
            raise TargetRefused(
                f"stack {self.name} is busy: {status}", remedy="Wait until that has ended, then deploy again."
            )
        if status in ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED"):
            raise TargetRefused(
                f"stack {self.name} cannot be updated: it is left over from a failure ({status})",
                remedy="Run `docferry aws destroy`, then deploy again.",
            )
        if status == "UPDATE_ROLLBACK_FAILED":
            raise TargetRefused(
                f"stack {self.name} could neither be updated nor put back ({status})",
                remedy=f"Mend the resource that its events name, then run `aws cloudformation continue-update-rollback "
                f"--stack-name {self.name}`.",
            )

    def _described(self, name: str) -> dict[str, Any] | None:
        from botocore.exceptions import ClientError

        with saying(f"stack {self.name} cannot be looked up"):
            try:
                stacks = self._cloudformation.describe_stacks(StackName=name)["Stacks"]
            except ClientError as error:
                if "does not exist" in str(error):
                    return None
                raise
        return dict(stacks[0]) if stacks and stacks[0]["StackStatus"] != "REVIEW_IN_PROGRESS" else None

    def _follow(self, stack_id: str, seen: set[str], what: str) -> None:
        """Report events until the operation has ended. Raises TargetRefused when it ended badly."""
        first: StackEvent | None = None
        while True:
            # The state first: events that come before it are then certain to be read.
            found = self._described(stack_id)
            for event in self._new_events(stack_id, seen):
                self._on_event(event)
                if first is None and event.failed and not event.reason.startswith(_CONSEQUENCES):
                    first = event
            status = "DELETE_COMPLETE" if found is None else str(found["StackStatus"])
            if status in _DONE:
                return
            if not status.endswith("_IN_PROGRESS"):
                raise self._failure(what, status, first, str((found or {}).get("StackStatusReason", "")))
            time.sleep(self._pause)

    def _failure(self, what: str, status: str, first: StackEvent | None, reason: str) -> DocferryError:
        why = f"{first.resource} ({first.type}): {first.reason}" if first else reason or "AWS gives no reason"
        remedy = {
            "created": "Remove the cause, run `docferry aws destroy` for what is left of the stack, then deploy again.",
            "updated": "Remove the cause and deploy again; the stack is as it was before."
            if status == "UPDATE_ROLLBACK_COMPLETE"
            else "See the stack's events in the console.",
            "deleted": "Remove what is in the way, then run `docferry aws destroy` again.",
        }[what]
        return TargetRefused(f"stack {self.name} was not {what} ({status}): {why}", remedy=remedy)

    def _seen(self, stack_id: str) -> set[str]:
        with saying(f"the events of stack {self.name} cannot be read"):
            answer = self._cloudformation.describe_stack_events(StackName=stack_id)
        return {event["EventId"] for event in answer["StackEvents"]}

    def _new_events(self, stack_id: str, seen: set[str]) -> list[StackEvent]:
        """Oldest first; `seen` grows by them."""
        from botocore.exceptions import ClientError

        fresh: list[dict[str, Any]] = []
        with saying(f"the events of stack {self.name} cannot be read"):
            try:
                for page in self._cloudformation.get_paginator("describe_stack_events").paginate(StackName=stack_id):
                    new = [event for event in page["StackEvents"] if event["EventId"] not in seen]
                    fresh += new
                    if len(new) < len(page["StackEvents"]):
                        break
            except ClientError as error:
                if "does not exist" not in str(error):
                    raise
        seen.update(event["EventId"] for event in fresh)
        return [
            StackEvent(
                event["Timestamp"],
                event["LogicalResourceId"],
                event["ResourceType"],
                event["ResourceStatus"],
                event.get("ResourceStatusReason", ""),
            )
            for event in reversed(fresh)
        ]


def _by_key(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(outputs, key=lambda output: str(output["OutputKey"]))

"""`docferry aws deploy` and `destroy`: the stack with all that belongs to it outside of CloudFormation."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal

from docferry.aws.bucket import Bucket
from docferry.aws.clients import Clients, saying
from docferry.aws.package import Package
from docferry.aws.stack import Stack, StackEvent
from docferry.aws.template import INLINE_TEMPLATE
from docferry.errors import ConfigError, TargetRefused

__all__ = ["Deployed", "Deployment", "parse_parameters", "secret_parameters"]

_LAMBDA: Final = "Lambda"
_SET_HERE: Final = ("Architecture", "CodeBucket", "CodeKey")


@dataclass(frozen=True)
class Deployed:
    """`action`: what became of the stack. `steps`: what was done besides. `outputs`: the stack's, by name."""

    stack: str
    region: str
    action: Literal["created", "updated", "unchanged"]
    steps: list[str] = field(default_factory=list)
    outputs: dict[str, str] = field(default_factory=dict)


class Deployment:
    """One stack in one region. `bucket`: None for docferry's own. `on_step`, `on_event`: called as things happen."""

    def __init__(
        self,
        clients: Clients,
        stack: str,
        *,
        bucket: str | None = None,
        on_step: Callable[[str], None] = lambda _: None,
        on_event: Callable[[StackEvent], None] = lambda _: None,
    ) -> None:
        self._clients = clients
        self._stack = Stack(clients, stack, on_event)
        self._bucket_name = bucket
        self._on_step = on_step
        self._steps: list[str] = []

    def deploy(self, template: str, package: Package, parameters: Mapping[str, str]) -> Deployed:
        """Create or update the stack. `parameters`: those given now. Raises ConfigError, TargetRefused,
        TargetUnavailable."""
        known = _parameters_of(template)
        for name in parameters:
            if name not in known:
                raise ConfigError(
                    f"--parameter {name}: the template has no such parameter",
                    remedy=f"Choose from: {', '.join(name for name in known if name not in _SET_HERE)}.",
                )
        bucket = self._bucket()
        if bucket.prepare():
            self._step(f"created bucket {bucket.name}")
        values = {
            **parameters,
            "Architecture": package.architecture,
            "CodeBucket": bucket.name,
            "CodeKey": bucket.put(self._stack.name, ".zip", package.content),
        }
        action = self._stack.deploy(self._template_source(template, bucket), values, known)
        self._let_existing_cluster_invoke()
        return Deployed(self._stack.name, self._clients.region, action, self._steps, self._stack.outputs())

    def _template_source(self, template: str, bucket: Bucket) -> dict[str, Any]:
        # A template with dynamic references, given anew, counts as a change even when it is the same.
        if self._stack.template().strip() == template.strip():
            return {"UsePreviousTemplate": True}
        body = template.encode()
        if len(body) <= INLINE_TEMPLATE:
            return {"TemplateBody": template}
        return {"TemplateURL": bucket.url(bucket.put(self._stack.name, ".yaml", body))}

    def removable(self) -> list[str]:
        """What `destroy` would remove; empty when nothing is there."""
        bucket = self._bucket()
        uploaded = [f"s3://{bucket.name}/{self._stack.name}"] if bucket.holds_any(self._stack.name) else []
        if self._stack.described() is None:
            return uploaded
        database = self._stack.parameter("ExistingSecretArn")
        tables = self._stack.resources("AWS::DynamoDB::Table")
        clusters = self._stack.resources("AWS::RDS::DBCluster")
        return [
            *(f"Aurora cluster {name} ({self._kept()})" for name in clusters),
            *(f"DynamoDB table {name} with its items" for name in tables),
            *(f"queue {url.rpartition('/')[2]} with its messages" for url in self._stack.resources("AWS::SQS::Queue")),
            f"stack {self._stack.name} with everything else in it",
            *uploaded,
            *(
                [f"not the triggers in the database of {database}: run `docferry destroy` there first"]
                if database
                else []
            ),
        ]

    def destroy(self) -> list[str]:
        """Remove the stack and what belongs to it. Returns the steps. Raises TargetRefused, TargetUnavailable."""
        bucket = self._bucket()
        if self._stack.described() is not None:
            self._forbid_existing_cluster_to_invoke()
            self._unprotect()
            kept = [f"of cluster {name}: {self._kept()}" for name in self._stack.resources("AWS::RDS::DBCluster")]
            self._stack.delete()
            self._step(f"deleted stack {self._stack.name}")
            for text in kept:
                self._step(text)
        for step in bucket.remove(self._stack.name):
            self._step(step)
        return self._steps

    def _kept(self) -> str:
        key = self._stack.outputs().get("DatabaseKeyArn", "of the cluster")
        return f"a final snapshot of it stays, and the KMS key {key}, without which it cannot be restored"

    def _bucket(self) -> Bucket:
        """The one that was asked for, or that the stack has had so far."""
        return Bucket(self._clients, self._bucket_name or self._stack.parameter("CodeBucket") or None)

    def _step(self, text: str) -> None:
        self._steps.append(text)
        self._on_step(text)

    def _unprotect(self) -> None:
        """Deletion protection was there against accidents; this was asked for."""
        rds, dynamodb = self._clients("rds"), self._clients("dynamodb")
        for cluster in self._stack.resources("AWS::RDS::DBCluster"):
            self._unless_gone(
                f"cluster {cluster} cannot be unprotected",
                partial(
                    rds.modify_db_cluster, DBClusterIdentifier=cluster, DeletionProtection=False, ApplyImmediately=True
                ),
            )
        for table in self._stack.resources("AWS::DynamoDB::Table"):
            self._unless_gone(
                f"table {table} cannot be unprotected",
                partial(dynamodb.update_table, TableName=table, DeletionProtectionEnabled=False),
            )

    @staticmethod
    def _unless_gone(problem: str, change: Callable[[], object]) -> None:
        from botocore.exceptions import ClientError

        with saying(problem):
            try:
                change()
            except ClientError as error:
                if error.response["Error"]["Code"] not in ("ResourceNotFoundException", "DBClusterNotFoundFault"):
                    raise

    # -- an existing cluster: CloudFormation can associate a role only with a cluster of its own ----------------------

    def _let_existing_cluster_invoke(self) -> None:
        cluster, role = self._stack.parameter("ExistingClusterIdentifier"), self._role()
        if not cluster or not role:
            return
        rds = self._clients("rds")
        others = [other for other in _invokers(rds, cluster) if other != role]
        if others:
            raise TargetRefused(
                f"cluster {cluster} invokes Lambda by the role {others[0]}, and it can have one such role only",
                remedy=f"Let that role invoke the function too, or remove it: aws rds remove-role-from-db-cluster "
                f"--db-cluster-identifier {cluster} --feature-name {_LAMBDA} --role-arn {others[0]}",
            )
        if role not in _invokers(rds, cluster):
            with saying(f"cluster {cluster} cannot be given the role {role}"):
                rds.add_role_to_db_cluster(DBClusterIdentifier=cluster, RoleArn=role, FeatureName=_LAMBDA)
            self._step(f"let cluster {cluster} invoke the function")

    def _forbid_existing_cluster_to_invoke(self) -> None:
        cluster, role = self._stack.parameter("ExistingClusterIdentifier"), self._role()
        if not cluster or not role:
            return
        rds = self._clients("rds")
        if role in _invokers(rds, cluster):
            with saying(f"the role {role} cannot be taken from cluster {cluster}"):
                rds.remove_role_from_db_cluster(DBClusterIdentifier=cluster, RoleArn=role, FeatureName=_LAMBDA)
            self._step(f"took the right to invoke the function from cluster {cluster}")

    def _role(self) -> str:
        return self._stack.outputs().get("DatabaseInvokeRoleArn", "")


def parse_parameters(given: Iterable[str]) -> dict[str, str]:
    """`Name=Value` each. Raises ConfigError."""
    parameters = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise ConfigError(f"--parameter {text}: expected Name=Value", remedy="Such as --parameter Host=false.")
        if name in _SET_HERE:
            raise ConfigError(f"--parameter {name}: `docferry aws deploy` sets it", remedy="See its options.")
        parameters[name] = value
    return parameters


def secret_parameters(template: str) -> list[str]:
    """Those whose values CloudFormation does not show."""
    return [name for name, settings in _parameters_with_settings(template).items() if "NoEcho: true" in settings]


def _parameters_of(template: str) -> list[str]:
    return list(_parameters_with_settings(template))


def _parameters_with_settings(template: str) -> dict[str, str]:
    section = re.search(r"^Parameters:\n((?:[ #].*\n|\n)*)", template, re.MULTILINE)
    assert section is not None
    return dict(re.findall(r"^  (\w+):\n((?:    .*\n)*)", section[1], re.MULTILINE))


def _invokers(rds: Any, cluster: str) -> list[str]:
    with saying(f"cluster {cluster} cannot be looked up"):
        found = rds.describe_db_clusters(DBClusterIdentifier=cluster)["DBClusters"][0]
    return [role["RoleArn"] for role in found.get("AssociatedRoles", []) if role.get("FeatureName") == _LAMBDA]

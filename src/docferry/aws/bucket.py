"""The bucket from which CloudFormation and Lambda take what is too large to be sent along."""

from __future__ import annotations

import hashlib
from typing import Any, Final

from docferry.aws.clients import Clients, saying

__all__ = ["Bucket"]

_OURS: Final = {"Key": "docferry", "Value": "artifacts"}


class Bucket:
    """`name`: None for one of docferry's own, `docferry-<account>-<region>`, which is created when it is needed."""

    def __init__(self, clients: Clients, name: str | None = None) -> None:
        self._s3 = clients("s3")
        self._region = clients.region
        own = f"docferry-{_account(clients)}-{clients.region}"
        self.name = name or own
        self._own = self.name == own

    def prepare(self) -> bool:
        """Create the bucket where it is docferry's own and missing: private, encrypted, versioned, TLS only. True when
        it was created."""
        if not self._own or self._exists():
            return False
        with saying(f"bucket {self.name} cannot be created"):
            where: dict[str, Any] = {}
            if self._region != "us-east-1":
                where["CreateBucketConfiguration"] = {"LocationConstraint": self._region}
            self._s3.create_bucket(Bucket=self.name, ObjectOwnership="BucketOwnerEnforced", **where)
            self._s3.put_public_access_block(
                Bucket=self.name,
                PublicAccessBlockConfiguration=dict.fromkeys(
                    ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True
                ),
            )
            self._s3.put_bucket_encryption(
                Bucket=self.name,
                ServerSideEncryptionConfiguration={
                    "Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]
                },
            )
            self._s3.put_bucket_versioning(Bucket=self.name, VersioningConfiguration={"Status": "Enabled"})
            self._s3.put_bucket_tagging(Bucket=self.name, Tagging={"TagSet": [_OURS]})
        return True

    def put(self, folder: str, suffix: str, content: bytes) -> str:
        """Store `content` under its own hash, unless it is there, and return the key."""
        key = f"{folder}/{hashlib.sha256(content).hexdigest()[:32]}{suffix}"
        with saying(f"s3://{self.name}/{key} cannot be written"):
            if not self._holds(key):
                self._s3.put_object(Bucket=self.name, Key=key, Body=content)
        return key

    def url(self, key: str) -> str:
        """Where CloudFormation finds it."""
        endpoint = self._s3.meta.endpoint_url
        if "amazonaws" in endpoint:
            return f"https://{self.name}.s3.{self._region}.amazonaws.com/{key}"
        return f"{endpoint}/{self.name}/{key}"

    def holds_any(self, folder: str) -> bool:
        """Whether something lies in a folder, in whatever version."""
        if not self._exists():
            return False
        with saying(f"bucket {self.name} cannot be read"):
            found = self._s3.list_object_versions(Bucket=self.name, Prefix=f"{folder}/", MaxKeys=1)
        return bool(found.get("Versions") or found.get("DeleteMarkers"))

    def remove(self, folder: str) -> list[str]:
        """Remove what lies in a folder, in all versions, and the bucket if it is docferry's own and empty then. Returns
        what was done."""
        if not self._exists():
            return []
        steps = []
        with saying(f"bucket {self.name} cannot be emptied"):
            if count := self._empty(f"{folder}/"):
                steps.append(f"removed {count} objects of s3://{self.name}/{folder}")
            left = self._s3.list_object_versions(Bucket=self.name, MaxKeys=1)
            if self._own and not left.get("Versions") and not left.get("DeleteMarkers"):
                self._s3.delete_bucket(Bucket=self.name)
                steps.append(f"removed bucket {self.name}")
        return steps

    def _empty(self, prefix: str) -> int:
        count = 0
        for page in self._s3.get_paginator("list_object_versions").paginate(Bucket=self.name, Prefix=prefix):
            entries = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
            if entries:
                objects = [{"Key": entry["Key"], "VersionId": entry["VersionId"]} for entry in entries]
                self._s3.delete_objects(Bucket=self.name, Delete={"Objects": objects, "Quiet": True})
                count += len(objects)
        return count

    def _exists(self) -> bool:
        return self._found(lambda: self._s3.head_bucket(Bucket=self.name), f"bucket {self.name} cannot be used")

    def _holds(self, key: str) -> bool:
        return self._found(lambda: self._s3.head_object(Bucket=self.name, Key=key), f"{key} cannot be looked up")

    @staticmethod
    def _found(look: Any, problem: str) -> bool:
        from botocore.exceptions import ClientError

        with saying(problem):
            try:
                look()
            except ClientError as error:
                if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404:
                    return False
                raise
        return True


def _account(clients: Clients) -> str:
    with saying("the account's number cannot be found out"):
        return str(clients("sts").get_caller_identity()["Account"])

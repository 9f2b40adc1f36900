"""Clients of AWS, all with the settings of [target], and their errors in our words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from docferry.config import TargetConfig
from docferry.errors import MissingExtra, TargetRefused, TargetUnavailable

__all__ = ["DEFAULT_REGION", "Clients", "saying"]

DEFAULT_REGION: Final = "us-east-2"

_PASSING: Final = ("Throttling", "ThrottlingException", "RequestLimitExceeded", "ServiceUnavailable", "InternalFailure")
_CREDENTIALS_REMEDY: Final = "Check that `aws sts get-caller-identity` works with the same profile and region."


@dataclass(frozen=True)
class Clients:
    """`endpoint_url`: of an emulator, for every service; None on AWS."""

    region: str
    endpoint_url: str | None
    profile: str | None

    @classmethod
    def of(cls, target: TargetConfig, region: str | None = None) -> Clients:
        """`region` wins over the configuration's."""
        return cls(region or target.region or DEFAULT_REGION, target.endpoint_url, target.profile)

    @property
    def pause(self) -> float:
        """Seconds between two looks at an operation that takes minutes on AWS, and a moment elsewhere."""
        return 4.0 if self.endpoint_url is None else 0.2

    def __call__(self, service: str) -> Any:
        """A client. Raises MissingExtra, TargetUnavailable."""
        try:
            import boto3
        except ImportError as error:
            raise MissingExtra(
                "`docferry aws` needs boto3, which is not installed", remedy="Run `pip install 'docferry[aws]'`."
            ) from error
        with saying(f"{service} cannot be used"):
            session: Any = boto3.Session(profile_name=self.profile, region_name=self.region)
            return session.client(service, endpoint_url=self.endpoint_url)


@contextmanager
def saying(what: str) -> Iterator[None]:
    """Turns boto3's errors into ours: `what` happened, and AWS's reason."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        answer = error.response.get("Error", {})
        code, message = str(answer.get("Code", "")), str(answer.get("Message", ""))
        if code in _PASSING:
            raise TargetUnavailable(f"{what}: {code}: {message}", remedy="Try again in a minute.") from error
        remedy = f"Grant it to the caller; {_CREDENTIALS_REMEDY}" if "AccessDenied" in code else _CREDENTIALS_REMEDY
        if code == "ValidationError":
            remedy = "Read AWS's message; `docferry aws template` shows the template."
        raise TargetRefused(f"{what}: {code}: {message}", remedy=remedy) from error
    except BotoCoreError as error:
        raise TargetUnavailable(f"{what}: {error}", remedy=_CREDENTIALS_REMEDY) from error

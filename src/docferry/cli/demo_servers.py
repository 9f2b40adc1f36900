"""The two servers that the demo plays on, and how people reach them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from docferry.embedded.dynamodb import EmbeddedDynamoDB
from docferry.embedded.postgres import EmbeddedPostgres

__all__ = ["Servers", "start_servers"]


class Servers:
    """A PostgreSQL and a DynamoDB that run. Commands are lines for a shell, with all that they need."""

    def __init__(self, postgres: EmbeddedPostgres, dynamodb: EmbeddedDynamoDB) -> None:
        self._psql = postgres.bin_dir / "psql"
        self.dsn = postgres.dsn()
        self.region = dynamodb.region
        self.endpoint_url = dynamodb.endpoint_url
        self.client_options = dynamodb.client_options()
        # In the server's own directory, so that it goes when that goes.
        self.config_path = dynamodb.directory / "docferry.toml"

    @property
    def psql(self) -> str:
        """The command that reaches the source."""
        return shlex.join([str(self._psql), self.dsn])

    def aws(self, *arguments: str) -> str:
        """A command of the AWS CLI, to the target."""
        command = ["aws", "--region", self.region, "--endpoint-url", self.endpoint_url, *arguments]
        return f"{self._credentials} {shlex.join(command)}"

    def docferry(self, *arguments: str) -> str:
        """A command of docferry's, on the same two."""
        return f"{self._credentials} {shlex.join(['docferry', *arguments, '--config', str(self.config_path)])}"

    @property
    def _credentials(self) -> str:
        key, secret = self.client_options["aws_access_key_id"], self.client_options["aws_secret_access_key"]
        return f"AWS_ACCESS_KEY_ID={key} AWS_SECRET_ACCESS_KEY={secret}"


@contextmanager
def start_servers(services: Sequence[str], settings: Mapping[str, str]) -> Iterator[Servers]:
    """Start both; `services` and `settings` are EmbeddedDynamoDB's. Leaving removes them and everything they kept."""
    with EmbeddedPostgres() as postgres, EmbeddedDynamoDB(services=services, settings=settings) as dynamodb:
        yield Servers(postgres, dynamodb)

"""What the demo plays on: two servers and what carries changes from one to the other, all gone when it ends."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

from docferry.cli.demo_carrier import Carrier
from docferry.cli.demo_check import Ends
from docferry.cli.demo_orders import COLLECTION, CREATE_TABLE, INSERT_ORDER, ORDERS, TABLE
from docferry.cli.demo_process import Signals, environment_of_its_own
from docferry.cli.demo_servers import Servers, start_servers
from docferry.config import parse
from docferry.errors import DocferryError, MissingExtra
from docferry.worker_app import WorkerApp

__all__ = ["Stage", "raise_stage", "require"]

_CONFIG: Final = """\
# The configuration of a running `docferry demo`.
[source]
dsn = "{dsn}"
capture = "{capture}"

[target]
kind = "dynamodb"
region = "{region}"
endpoint_url = "{endpoint_url}"

[[mirrors]]
table = "{table}"
collection = "{collection}"

[run]
stop_grace = "5s"
{more}"""


def require(modules: Sequence[str]) -> None:
    """Raises MissingExtra when one of these, which the demo needs, is not installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"the demo needs {', '.join(missing)}, which is not installed",
            remedy="Run `pip install 'docferry[demo]'`.",
        )


class Stage:
    """The two servers, filled and mirrored."""

    def __init__(self, servers: Servers, carrier: Carrier, signals: Signals) -> None:
        self.servers = servers
        self.carrier = carrier
        self._signals = signals
        self._failure: BaseException | None = None

    def fill(self, ends: Ends) -> None:
        """The article's table, with orders in it."""
        with ends.connection.transaction(), ends.connection.cursor() as cursor:
            cursor.execute(CREATE_TABLE.encode())
            cursor.executemany(INSERT_ORDER.encode(), ORDERS)

    @contextmanager
    def mirrored(self) -> Iterator[None]:
        """Apply, and mirror while inside."""
        path = self.servers.config_path
        text = _CONFIG.format(
            dsn=self.servers.dsn,
            capture=self.carrier.capture,
            region=self.servers.region,
            endpoint_url=self.servers.endpoint_url,
            table=TABLE,
            collection=COLLECTION,
            more=self.carrier.config,
        )
        path.write_text(text, encoding="utf-8")
        self.carrier.deploy(text)
        with WorkerApp(parse(text, path, environ={}), patient=True) as app:
            app.admin().apply()
            thread = threading.Thread(target=self._work, args=(app,), name="carrier")
            thread.start()
            try:
                yield
            finally:
                self._signals.clearing_up = True
                app.stopping.set()
                thread.join(10)
                app.retry.stop.set()
                thread.join()

    def _work(self, app: WorkerApp) -> None:
        try:
            self.carrier.work(app)
        except BaseException as error:  # noqa: BLE001 - `check` raises it where somebody listens
            self._failure = error

    def check(self) -> None:
        """Raises SystemExit once a signal came, and DocferryError when what works in the background failed."""
        self._signals.check()
        if self._failure is not None:
            raise DocferryError(f"mirroring stopped: {self._failure}") from self._failure

    def commands(self) -> list[tuple[str, Sequence[str]]]:
        """What people can try: headings with lines below."""
        return [
            ("Change rows with:", [self.servers.psql]),
            ("See the items with:", [self.scan]),
            ("Ask docferry with:", [self.servers.docferry("status")]),
            *self.carrier.more_commands(),
        ]

    @property
    def scan(self) -> str:
        """The command that shows the items."""
        return self.servers.aws("dynamodb", "scan", "--table-name", COLLECTION)


@contextmanager
def raise_stage(carrier: Carrier, signals: Signals) -> Iterator[Stage]:
    """Start everything. Leaving removes it, and whatever it kept."""
    with ExitStack() as stack:
        try:
            servers = stack.enter_context(start_servers(carrier.services, carrier.settings))
            signals.check()
            stack.enter_context(environment_of_its_own(servers.client_options))
            stack.enter_context(carrier.reaching(servers))
            signals.check()
            yield Stage(servers, carrier, signals)
        except DocferryError:
            # Ctrl-C in a terminal reaches the programs that we start as well; what breaks then is no failure.
            signals.check()
            raise
        finally:
            signals.clearing_up = True

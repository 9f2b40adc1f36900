"""The composition root: from configuration to objects. The only module that names concrete backends; it imports them
when they are asked for, so that their dependencies stay optional."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self

from docferry import failpoints
from docferry.applier import Applier, LetterBox
from docferry.capture.contract import BackfillRecord, PageReader
from docferry.capture.retention import NOT_VISIBLE
from docferry.captures import by_triggers, make_setup
from docferry.config import Config
from docferry.deadletter.contract import DeadLetters
from docferry.document.mirror import Mirror
from docferry.document.model import Collection
from docferry.errors import (
    ConfigError,
    DocferryError,
    Interrupted,
    SourceRefused,
    Verdict,
)
from docferry.metrics import Metrics
from docferry.operate.admin import Admin, MirrorPlan
from docferry.operate.backfill import Backfill, BackfillLimits, Progress
from docferry.operate.grounds import Grounds
from docferry.operate.plan import RowReport, examine_rows
from docferry.operate.standing import Status, StatusSetup
from docferry.operate.status import gather_status
from docferry.planning import hold_against_tables
from docferry.retry import Retry
from docferry.source.login import source_dsn
from docferry.target.contract import Target
from docferry.target.floors_shared import control_collection
from docferry.tracing import NO_TRACES, Tracer, tracer_of_environment
from docferry.verifying import LOOKS_WITHOUT_ORDER

if TYPE_CHECKING:
    from docferry.capture.ledger import PostgresLedger
    from docferry.capture.retention import Retention
    from docferry.capture.rights import Grants, RightsWanted, Stage
    from docferry.capture.snapshot import TableReader
    from docferry.capture.transactions import PostgresTransactions
    from docferry.capture.verifications import PostgresVerifications

__all__ = ["App"]

_ANEW = "Give the same command again; it works with what is in force now."
_ONE_SHOT_ATTEMPTS = 6
_DAY = 86400.0
_LOOK_AT_LEAST = 5.0


class App:
    """Everything that the commands need, built from one configuration. Use as a context manager.

    `patient`: the policy of a worker, which waits for outages without limit; otherwise a few attempts and an error.
    """

    def __init__(self, config: Config, *, patient: bool = False) -> None:
        failpoints.switch()
        self.config = config
        self.stopping = threading.Event()
        self.metrics = Metrics()
        beat = self.metrics.pulses.beat
        self.retry = Retry(on_wait=beat) if patient else Retry(longest=1.0, attempts=_ONE_SHOT_ATTEMPTS)
        self.tracer: Tracer = NO_TRACES
        self._open: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for resource in reversed(self._open):
            resource.close()
        self._open.clear()

    # -- the two ends -------------------------------------------------------------------------------------------------

    @cached_property
    def dsn(self) -> str:
        """The source's connection string. Raises ConfigError, TargetRefused."""
        return source_dsn(self.config)

    @cached_property
    def target(self) -> Target:
        """The target."""
        return self._target(self.retry)

    def _target(self, retry: Retry) -> Target:
        from docferry.target.dynamodb import DynamoDBTarget

        target = self.config.target
        made = DynamoDBTarget(
            self.aws_options,
            retry,
            connections=self.config.run.workers + self.config.run.backfill_workers + 2,
            kms_key=target.kms_key,
            control=self.control,
            tombstone_lifetime=target.tombstone_lifetime,
            observer=self.metrics,
        )
        self._open.append(made)
        return made

    @property
    def aws_options(self) -> dict[str, str]:
        """What clients of AWS are made with; what is not configured is left to boto3's own search."""
        target = self.config.target
        options = {"region_name": target.region, "endpoint_url": target.endpoint_url, "profile_name": target.profile}
        return {name: value for name, value in options.items() if value is not None}

    @property
    def by_triggers(self) -> bool:
        """Whether changes come from triggers."""
        return by_triggers(self.config.source.capture)

    @property
    def looks(self) -> int:
        """How often a verification looks at what differs, once the watermark has passed."""
        return LOOKS_WITHOUT_ORDER if self.config.source.capture == "lambda" else 1

    @property
    def control(self) -> Collection | None:
        """Where processes share the floors of TRUNCATE; a single one needs no such place."""
        return control_collection(self.config.target.control) if self.by_triggers else None

    @cached_property
    def setup(self) -> StatusSetup:
        """What the capture mode keeps in the source."""
        return make_setup(self.config, self.dsn, self._keys)

    def _former_setup(self, capture: str) -> StatusSetup | None:
        """What another capture mode kept there; None if it is what this one keeps."""
        if by_triggers(capture) == self.by_triggers:
            return None
        return make_setup(self.config, self.dsn, self._keys, capture)

    def _keys(self) -> dict[str, tuple[str, ...]]:
        return {table: mirror.spec.key for table, mirror in self.mirrors.items()}

    @cached_property
    def ledger(self) -> PostgresLedger:
        """The ledger, without an epoch: for everything but writing versions."""
        return self._ledger(0)

    def _ledger(self, epoch: int, *, local: bool = False) -> PostgresLedger:
        from docferry.capture.ledger import PostgresLedger

        ledger = PostgresLedger(
            self.dsn,
            self.retry,
            epoch=epoch,
            by_triggers=self.by_triggers,
            local=local,
            on_waiting=self.metrics.waits,
        )
        self._open.append(ledger)
        return ledger

    @cached_property
    def dead_letters(self) -> DeadLetters:
        """The dead letters: in the source, and in the queue where one is configured."""
        return self._dead_letters(queue=self.config.dead_letters.queue)

    @cached_property
    def queued_dead_letters(self) -> DeadLetters:
        """Those of the queue alone, where one is configured, else those in the source."""
        queue = self.config.dead_letters.queue
        return self._dead_letters(queue=queue, in_source=queue is None)

    def _dead_letters(self, *, queue: str | None, in_source: bool = True) -> DeadLetters:
        from docferry.deadletter.joined import open_dead_letters

        dsn = (lambda: self.dsn) if in_source else None
        kept = self.config.dead_letters
        letters = open_dead_letters(
            dsn, queue, self.aws_options, self.retry, payload=kept.payload, retention=kept.audit_retention
        )
        self._open.append(letters)
        return letters

    @cached_property
    def _dead_letters_in_source(self) -> DeadLetters:
        """Without the queue's: whoever looks into a queue hides it from others for a while."""
        return self._dead_letters(queue=None)

    def reader(self, purpose: str, mirror: Mirror | None = None, *, durable: bool = True) -> TableReader:
        """A reader with a connection of its own: by key, and of a mirror's table in pages."""
        from docferry.capture.snapshot import TableReader

        table, key = ("", ()) if mirror is None else (mirror.table, mirror.spec.key)
        return TableReader(
            self.dsn,
            self.retry,
            purpose=purpose,
            table=table,
            key=key,
            by_triggers=self.by_triggers,
            durable=durable,
            former=self._former_columns,
        )

    def _former_columns(self, table: str) -> frozenset[str]:
        mirror = self.mirrors.get(table)
        return frozenset() if mirror is None else mirror.spec.columns

    # -- the mirrors --------------------------------------------------------------------------------------------------

    @cached_property
    def plans(self) -> list[MirrorPlan]:
        """The configured mirrors, held against the tables. Raises ConfigError naming everything that is wrong."""
        plans, problems = self._held_against_tables
        if problems:
            raise ConfigError("; ".join(problem for problem, _ in problems), remedy=" ".join(r for _, r in problems))
        return plans

    @cached_property
    def _held_against_tables(self) -> tuple[list[MirrorPlan], list[tuple[str, str]]]:
        """The mirrors that can be, and (problem, remedy) of those that cannot."""
        return hold_against_tables(self.config, self.dsn)

    @property
    def mirrors(self) -> dict[str, Mirror]:
        """The mirrors by table."""
        return {plan.mirror.table: plan.mirror for plan in self.plans}

    def mirror(self, table: str) -> Mirror:
        """The mirror of a table, named with or without `public.`. Raises ConfigError."""
        name = table if "." in table else f"public.{table}"
        try:
            return self.mirrors[name]
        except KeyError:
            raise ConfigError(
                f"table {name} is not a mirror in {self.config.path}",
                remedy=f"Choose one of: {', '.join(self.mirrors)}.",
            ) from None

    # -- what the commands do -----------------------------------------------------------------------------------------

    def admin(self, on_step: Callable[[str], None] = lambda _: None) -> Admin:
        """For apply, destroy, plan, wait."""
        return self._admin(self.plans, on_step)

    def _admin(self, plans: list[MirrorPlan], on_step: Callable[[str], None] = lambda _: None) -> Admin:
        return Admin(
            self.setup,
            self.ledger,
            self.target,
            plans,
            self.config.source.capture,
            on_step,
            control=self.control,
            former_setup=self._former_setup,
        )

    def destroyer(self, on_step: Callable[[str], None] = lambda _: None) -> Admin:
        """For destroy: a mirror that cannot be any more, because its table is gone for example, does not hinder it."""
        plans, _ = self._held_against_tables
        return self._admin(plans, on_step)

    def planned_steps(self) -> list[str]:
        """What `apply` would do. Raises SourceRefused, ConfigError when it would be refused."""
        self.check_rights("plan")
        plans = self.plans
        self.setup.check()
        steps = self._admin(plans).steps()
        if steps:
            self.check_rights("apply")
        return steps

    def grants(self, role: str | None = None, apply_role: str | None = None) -> Grants:
        """The rights that a role needs to run, and one to apply, as statements. Raises SourceUnavailable."""
        from docferry.capture.rights import grants

        return grants(self.dsn, self._rights_wanted, role=role, apply_role=apply_role)

    def check_rights(self, stage: Stage | Literal["plan"]) -> None:
        """Raises SourceRefused, naming the missing GRANTs, when our role may not apply or run."""
        from docferry.capture.rights import check_rights

        check_rights(self.dsn, self._rights_wanted, stage)

    @property
    def _rights_wanted(self) -> RightsWanted:
        from docferry.capture.rights import RightsWanted

        source = self.config.source
        return RightsWanted(
            source.capture,
            [mirror.table for mirror in self.config.mirrors],
            source.publication,
            source.triggers.owner,
            source.triggers.enable_always,
            source.auth == "rds-iam",
        )

    def transport_warnings(self) -> list[tuple[str, str]]:
        """(problem, remedy) of connections to either end that can be overheard."""
        from docferry.source.transport import source_warnings, target_warnings

        return [*source_warnings(self.dsn), *target_warnings(self.config.target.endpoint_url)]

    def estimate(self, mirror: Mirror) -> int:
        """How many rows the planner believes a mirror's table has."""
        reader = self.reader("plan", mirror)
        try:
            return reader.estimate()
        finally:
            reader.close()

    def examine(self, mirror: Mirror, *, at_most: int | None, on_rows: Callable[[int], None]) -> RowReport:
        """What every row of a mirror's table would do at the target; nothing is written."""
        reader = self.reader("plan", mirror, durable=False)
        try:
            return examine_rows(mirror, reader, self.target, at_most=at_most, on_rows=on_rows)
        finally:
            reader.close()

    def check_target(self) -> None:
        """Raises TargetRefused or TargetUnavailable, after a few attempts, when the collections cannot be used."""
        target = self._target(Retry(longest=1.0, attempts=_ONE_SHOT_ATTEMPTS))
        for mirror in self.mirrors.values():
            if not target.exists(mirror.collection):
                raise SourceRefused(
                    f"collection {mirror.collection.name} does not exist at the target",
                    remedy="Run `docferry apply`: it creates the collection and has it populated.",
                )

    def status(self) -> Status:
        """How everything stands, without asking the target. Raises SourceUnavailable, SourceRefused."""
        # The tables may have changed since the last look.
        self.__dict__.pop("_held_against_tables", None)
        _, problems = self._held_against_tables
        prefix = self.config.target.table_prefix
        retention, retention_seen = self._retention_seen()
        return gather_status(
            self.setup,
            self.ledger,
            self._dead_letters_in_source,
            {mirror.table: prefix + mirror.collection for mirror in self.config.mirrors},
            capture=self.config.source.capture,
            heartbeat=self.config.source.heartbeat_interval,
            problems=[*problems, *self.transport_warnings()],
            verifications=self._verifications.records(),
            history=self._history_now(),
            retention=retention,
            retention_seen=retention_seen,
        )

    def retention(self) -> Retention | None:
        """What bounds the log that the source keeps for the slot; None where there is no slot to keep any. Raises
        SourceUnavailable, SourceRefused."""
        if self.by_triggers:
            return None
        from docferry.capture.retention_reading import read_retention

        return read_retention(self.dsn, self.config.source.slot)

    def _retention_seen(self) -> tuple[Retention | None, str]:
        """The same for whoever only shows it: and otherwise why it cannot be seen."""
        try:
            return self.retention(), ""
        except DocferryError as error:
            return None, f"{NOT_VISIBLE}: {error}"

    def _history_now(self) -> tuple[str, int] | None:
        """None where the role may not ask."""
        try:
            return self.setup.history()
        except SourceRefused:
            return None

    def wait(self, timeout: float, *, stop: threading.Event | None = None) -> float:
        """Wait until everything committed before the call is at the target; returns the seconds it took. Raises
        NotApplied, HistoryChanged, TimedOut, and Interrupted once `stop` is set."""
        admin = self.admin()
        admin.check_applied()
        return admin.wait(timeout, stop=stop)

    def wait_patiently(self) -> None:
        """Like `wait`, for as long as it takes, outages included. Raises Interrupted once `stopping` is set."""
        attempt = 0
        while True:
            try:
                self.wait(math.inf, stop=self.stopping)
            except DocferryError as error:
                if error.verdict is not Verdict.RETRY:
                    raise
                attempt += 1
                if self.stopping.wait(self.retry.delay(attempt)):
                    raise Interrupted("stopped while waiting") from error
            else:
                return

    def trace(self) -> None:
        """Trace what is done from now on, if the OTEL_* variables ask for it."""
        self.tracer = tracer_of_environment()
        self._open.append(self.tracer)

    def backfill(self, table: str, *, anew: bool, on_progress: Callable[[Progress], None]) -> None:
        """Request a backfill of a table, or go on with its unfinished one, and bring it to its end: here, or by
        following the process that is at it. Raises NotApplied, Interrupted, and what the ends refuse."""
        mirror = self.mirror(table)
        epoch = self.admin().check_applied()
        self.check_target()
        ledger = self._ledger(epoch.number)
        record = ledger.request_backfill(mirror.table, "asked for", anew=anew)
        grounds = self._grounds(ledger, epoch.number, "this backfill")
        backfill = self._backfill(record, self._applier(ledger), ledger, on_progress, grounds)
        assert backfill is not None
        backfill.run_or_follow(record)

    @contextmanager
    def stop_on(self, *signals: int, at_once: bool = False) -> Iterator[None]:
        """While inside, these signals ask for a graceful stop; a second one, with `at_once` the first, for an immediate
        one."""
        import signal

        def handle(_signal: int, _frame: object) -> None:
            if self.stopping.is_set() or at_once:
                self.retry.stop.set()
            self.stopping.set()

        before = {number: signal.signal(number, handle) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # -- pieces -------------------------------------------------------------------------------------------------------

    def _applier(
        self,
        ledger: PostgresLedger,
        letters: LetterBox | None = None,
        *,
        check: Callable[[set[str]], None] = lambda _: None,
        on_truncated: Callable[[Collection, int], None] = lambda *_: None,
        on_new_layout: Callable[[], None] = lambda: None,
    ) -> Applier:
        self._remember_attributes(ledger)
        reader = self.reader("reread")
        self._open.append(reader)
        return Applier(
            self.mirrors,
            reader,
            self.target,
            letters or self.dead_letters,
            ledger,
            self.metrics,
            self.retry,
            backfill_on_schema_change=self.config.run.on_schema_change == "backfill",
            trusted_age=self._trusted_age if self.by_triggers else None,
            tracer=self.tracer,
            check=check,
            on_truncated=on_truncated,
            on_new_layout=on_new_layout,
        )

    def _grounds(self, ledger: PostgresLedger, epoch: int, who: str, remedy: str = _ANEW) -> Grounds:
        return Grounds(ledger, epoch, {plan.mirror.table: plan.fingerprint for plan in self.plans}, who, remedy)

    @cached_property
    def _verifications(self) -> PostgresVerifications:
        from docferry.capture.verifications import PostgresVerifications

        verifications = PostgresVerifications(self.dsn, self.retry.stop)
        self._open.append(verifications)
        return verifications

    def _gate(self) -> PostgresTransactions:
        from docferry.capture.transactions import PostgresTransactions

        gate = PostgresTransactions(self.dsn)
        self._open.append(gate)
        return gate

    @property
    def _trusted_age(self) -> float:
        """Seconds after which a change of the triggers is believed no more without a look at its row (R4)."""
        return max(self.config.target.tombstone_lifetime - _DAY, 0.0)

    def _remember_attributes(self, ledger: PostgresLedger) -> None:
        """Whoever writes removes the attributes that older items may carry and the row does not have."""
        registered = ledger.mirrors()
        for table, mirror in self.mirrors.items():
            mirror.remember_attributes(registered[table].attributes)

    def _backfill(
        self,
        record: BackfillRecord,
        applier: Applier,
        ledger: PostgresLedger,
        on_progress: Callable[[Progress], None],
        grounds: Grounds,
    ) -> Backfill | None:
        mirror = self.mirrors.get(record.table)
        if mirror is None:
            return None

        def reader() -> PageReader:
            return self.reader("backfill", mirror)

        run = self.config.run
        return Backfill(
            mirror,
            reader,
            applier,
            self.target,
            ledger,
            self.retry,
            BackfillLimits(run.backfill_workers, run.backfill_page),
            on_progress=on_progress,
            check=lambda: grounds.check(record.table),
            on_trouble=lambda error: self.metrics.backfill_failed(record.table, str(error)),
            tracer=self.tracer,
        )

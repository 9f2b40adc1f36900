"""One schedule: an application writes, docferry mirrors, and everything that can go wrong does; then it is calm, and
the items have to equal the rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final, cast

from docferry.applier import Applier
from docferry.capture.contract import BackfillRecord, BackfillState, Capture, CaptureSetup, PageReader, RowReader
from docferry.change.model import make_version
from docferry.deadletter.contract import DeadLetters
from docferry.document.mirror import Mirror
from docferry.document.model import (
    Collection,
    DocumentFormat,
    DocumentSpec,
    KeyAttribute,
    KeyKind,
    MirrorSpec,
    Put,
)
from docferry.errors import AlreadyRunning, DocferryError, HistoryChanged, Interrupted, NotApplied, Verdict
from docferry.metrics import Metrics
from docferry.operate.admin import Admin, MirrorPlan
from docferry.operate.backfill import Backfill, BackfillLimits
from docferry.operate.grounds import Grounds, Lease
from docferry.operate.letters import Selection, replay
from docferry.operate.passing import Watermark
from docferry.operate.reconcile import Reconciler
from docferry.operate.reread import Replay
from docferry.operate.sweeper import Sweeper
from docferry.operate.verification import Verification
from docferry.operate.verify import TableAccess, VerifyLimits
from docferry.operate.worker import Worker, WorkerSettings
from docferry.pipeline import Pipeline, PipelineLimits
from docferry.target.contract import Item
from docferry.target.memory import MemoryStore, MemoryTarget
from docferry.verifying import Verifying

from .application import Application
from .checks import Checks, Violation
from .ledger import Ledger, Letters, Memory, Verifications
from .scheduler import Event, Process, Scheduler
from .seams import Outside, Pages, Rows, Setup, Stream, Table, Target, contents
from .source import TABLES, Place, Source, relation_of
from .weather import GRACE, Weather

__all__ = ["World", "simulate"]

MOST_SECONDS: Final = 1000.0
COLLECTIONS: Final = {table: Collection(table.split(".")[1], (KeyAttribute("id", KeyKind.NUMBER),)) for table in TABLES}
SETTINGS: Final = "settings"
_AT_REST: Final = 3.0


@dataclass(eq=False)
class Running:
    """A process, and what asks it to stop."""

    process: Process
    outside: Outside
    stopping: Event

    @property
    def alive(self) -> bool:
        return not self.process.dead and self.process.threads > 0


class World:
    """See the module. `lines`: what happened, when `trace` is asked for."""

    def __init__(self, seed: int, given: Mapping[str, float] | None = None, *, trace: bool = False) -> None:
        random = Random(seed)
        self.weather = Weather(random, given or {})
        self.scheduler = Scheduler(random)
        self.lines: list[str] | None = [] if trace else None
        self.source = Source(full_identity=bool(self.weather.full_identity))
        self.memory = Memory()
        self.store = MemoryStore()
        self.checks = Checks(self.source, self.memory)
        self.checks.tables = {collection.name: table for table, collection in COLLECTIONS.items()}
        self.application = Application(self.source, self.scheduler, self.weather, self.say)
        self.worker: Running | None = None
        self.sweeper: Sweeper | None = None
        self.tools: list[Running] = []
        self.must_apply = True
        self.finishing = False
        self._number = 0

    @property
    def random(self) -> Random:
        return self.scheduler.random

    def say(self, text: str) -> None:
        if self.lines is not None:
            self.lines.append(f"{self.scheduler.now:9.3f}  {text}")

    def run(self) -> None:
        """Let it all happen. Raises Violation, or what docferry raised and should not have."""
        with self.scheduler.in_place():
            self._leave_behind()
            self.application.begin()
            self._again("kills", self._kill)
            self._again("stops", self._stop)
            self._again("backfills", lambda: self._tool("backfill", self._backfill_table))
            self._again("replays", lambda: self._tool("replay", self._replay))
            self._again("verifies", lambda: self._tool("verify", self._verify))
            self._again("tampers", self._tamper)
            self._again("fails_over", self._fail_over)
            self._again("loses_slot", self._lose_slot)
            self._again("loses_locks", self._lose_lock)
            self.scheduler.at(0.0, self._supervise)
            self.scheduler.at(MOST_SECONDS, self._give_up)
            self.scheduler.run()

    # -- what people do, and what goes wrong --------------------------------------------------------------------------

    def _leave_behind(self) -> None:
        """Items of another setup, whose epoch was a later one than ours would be."""
        for table, collection in COLLECTIONS.items():
            if self.random.random() < 0.2:
                target = MemoryTarget(self.store)
                target.create(collection)
                for key in TABLES[table][:2]:
                    left = Put(collection, (key,), make_version(3, 70 + key), {"id": key, "name": "left behind"})
                    target.write([left])

    def _again(self, name: str, call: Callable[[], object]) -> None:
        """Every so many seconds, about, until it is calm."""

        def happen() -> None:
            if getattr(self.weather, name):
                call()
                self.scheduler.at(self.random.uniform(0.2, 1.8) * mean, happen)

        mean = getattr(self.weather, name)
        if mean:
            self.scheduler.at(self.random.uniform(0.0, 1.8) * mean, happen)

    def _supervise(self) -> None:
        """Starts what is not running, and says when everything has come to rest."""
        if self.worker is None or not self.worker.alive:
            if not self.must_apply:
                self.worker = self._start("worker", self._work)
            elif not any(tool.alive for tool in self.tools):
                self._tool("apply", self._apply)
        if self.application.has_ended and not self.source.open:
            self.weather.calm()
            if not self.finishing and self._is_at_rest():
                self.finishing = True
                self.scheduler.at(_AT_REST, self._finish)
        self.scheduler.at(self.random.uniform(0.5, 1.5) * self.weather.restarts_after, self._supervise)

    def _is_at_rest(self) -> bool:
        source = self.source
        return (
            not self.must_apply
            and self.worker is not None
            and self.worker.alive
            and not self.worker.stopping.is_set()
            and not any(tool.alive for tool in self.tools)
            and not self.checks.on_the_wire
            and all(one.state is BackfillState.DONE for one in self.memory.backfills)
            and source.slot is not None
            and not source.slot_is_lost
            and (not source.log or source.slot >= source.log[-1].end)
        )

    def _finish(self) -> None:
        """The dead letters are replayed, the last tombstones swept; then nothing is left to happen."""
        if not self._is_at_rest():
            self.scheduler.at(_AT_REST, self._finish)
            return
        if self.memory.letters:
            self._tool("replay", self._replay)
        self.scheduler.at(GRACE + 5.0, self._verify_at_last)

    def _verify_at_last(self) -> None:
        """Mends what somebody tampered with; where nobody did, there must be nothing to mend."""
        if self.checks.tampered or self.random.random() < 0.3:
            self.weather.repairs = 1.0
            self._tool("verify", self._verify)
        self.scheduler.at(_AT_REST, self._judge)

    def _judge(self) -> None:
        if not self._is_at_rest():
            self.scheduler.at(_AT_REST, self._judge)
            return
        self.checks.compare(contents(self.store, self.checks))
        self.say("items equal rows")
        self.scheduler.end()

    def _give_up(self) -> None:
        raise Violation(
            f"it does not come to rest: {self.memory.backfills} {self.checks.on_the_wire} {self.must_apply}"
        )

    def _start(self, name: str, call: Callable[[Running], None]) -> Running:
        self._number += 1
        process = Process(f"{name} {self._number}")
        outside = Outside(self.scheduler, process, self.weather, self.say)
        running = Running(process, outside, Event(self.scheduler))

        def run() -> None:
            try:
                call(running)
            except (HistoryChanged, NotApplied) as error:
                outside.say(f"ends: {error}")
                self.must_apply = True
            except (AlreadyRunning, Interrupted) as error:
                outside.say(f"ends: {error}")
            except DocferryError as error:
                outside.say(f"ends: {error}")
                if error.verdict is not Verdict.RETRY:
                    raise
            else:
                outside.say("ends")

        outside.say("starts")
        self.scheduler.start(process, run)
        return running

    def _tool(self, name: str, call: Callable[[Running], None]) -> None:
        if self.must_apply and name != "apply":
            return
        tool = self._start(name, call)
        self.tools = [*(one for one in self.tools if one.alive), tool]
        if self.random.random() < self.weather.tools_killed:
            self.scheduler.at(self.random.uniform(0.0, 2.0), lambda: self._end(tool))

    def _kill(self) -> None:
        # Two kills in a row around a TRUNCATE are more than is promised (docs/architecture.md).
        if self.worker is not None and not (self.sweeper and self.sweeper._floors and self.weather.lands_later):
            self._end(self.worker)

    def _end(self, running: Running) -> None:
        if running.alive:
            running.outside.say("is killed")
            self.scheduler.kill(running.process)
            self.memory.let_go(running.process)

    def _stop(self) -> None:
        if self.worker is not None and self.worker.alive:
            self.worker.outside.say("is asked to stop")
            self.worker.stopping.set()

    def _fail_over(self) -> None:
        if self.memory.epoch is None:
            return
        keeps = self.random.random() < self.weather.keeps_slot
        self.say(f"fails over, {'with' if keeps else 'without'} the slot")
        self.source.fail_over()
        if not keeps:
            self.source.slot = None
        for lock in list(self.memory.locks):
            self.memory.lose(lock)

    def _lose_slot(self) -> None:
        self.say("loses the slot")
        self.source.slot_is_lost = self.source.slot is not None

    def _lose_lock(self) -> None:
        # Not that of a sweep under way: what begins meanwhile reads rows whose deletes were seen long ago.
        locks = [one for one in self.memory.locks if one.name != "sweep" or one.shared]
        if locks:
            lock = self.random.choice(locks)
            self.say(f"{lock.process} loses its lock {lock.name}")
            self.memory.lose(lock)

    def _tamper(self) -> None:
        """Somebody else removes an item, changes it, or puts one where there is no row."""
        table = self.random.choice(list(TABLES))
        place = Place(table, self.random.choice(TABLES[table]))
        stored = self.store.collections.get(COLLECTIONS[table].name)
        if stored is None or self.must_apply:
            return
        key = (place.key,)
        item = stored.items.get(key)
        if item is not None and item.document is None:
            return
        self.say(f"somebody tampers with {place}")
        self.checks.tampers(place)
        if item is None or self.random.random() < 0.3:
            stored.items[key] = Item(key, -1, {"id": place.key, "name": "not ours"})
        elif self.random.random() < 0.5:
            del stored.items[key]
        else:
            ahead = self.random.choice((0, 1 << 40, 1 << 70))
            stored.items[key] = replace(item, version=item.version + ahead, document={**item.document, "name": "x"})  # type: ignore[dict-item]

    # -- docferry -----------------------------------------------------------------------------------------------------

    def _mirrors(self) -> dict[str, Mirror]:
        return {
            table: Mirror(
                MirrorSpec(table, ("id",), collection, documents={"doc": DocumentSpec(DocumentFormat.XML)}),
                relation_of(table).oid,
            )
            for table, collection in COLLECTIONS.items()
        }

    def _admin(self, running: Running) -> Admin:
        plans = [
            MirrorPlan(mirror, relation_of(table), SETTINGS, "as ever") for table, mirror in self._mirrors().items()
        ]
        setup = Setup(running.outside, self.source, self.checks.begins)
        target = Target(running.outside, self.store, self.checks)
        return Admin(cast("CaptureSetup", setup), self._ledger(running, 0), target, plans, "replication")

    def _ledger(self, running: Running, epoch: int) -> Ledger:
        outside = running.outside
        ledger = Ledger(self.memory, self.source, self.scheduler, running.process, outside.call, epoch=epoch)
        ledger.stop = outside.stop
        return ledger

    @staticmethod
    def _grounds(ledger: Ledger, epoch: int) -> Grounds:
        return Grounds(ledger, epoch, dict.fromkeys(COLLECTIONS, SETTINGS), "this process", "Begin again.")

    def _letters(self, running: Running) -> DeadLetters:
        return Letters(self.memory, self.source, self.scheduler, running.outside.call, self.checks.removed)

    def _apply(self, running: Running) -> None:
        self._admin(running).apply()
        self.must_apply = False

    def _applier(
        self,
        running: Running,
        target: Target,
        ledger: Ledger,
        mirrors: Mapping[str, Mirror],
        grounds: Grounds,
        on_truncated: Callable[[Collection, int], None] = lambda *_: None,
    ) -> Applier:
        registered = ledger.mirrors()
        for table, mirror in mirrors.items():
            mirror.remember_attributes(registered[table].attributes)
        rows = cast("RowReader", Rows(running.outside, self.source))
        letters, retry = self._letters(running), running.outside.retry
        check = Lease(grounds).check
        return Applier(mirrors, rows, target, letters, ledger, Metrics(), retry, check=check, on_truncated=on_truncated)

    def _work(self, running: Running) -> None:
        weather, outside = self.weather, running.outside
        admin = self._admin(running)
        epoch = admin.check_applied()
        mirrors = self._mirrors()
        target = Target(outside, self.store, self.checks)
        ledger = self._ledger(running, epoch.number)
        sweeper = self.sweeper = Sweeper(target, ledger, grace=GRACE)
        grounds = self._grounds(ledger, epoch.number)
        applier = self._applier(running, target, ledger, mirrors, grounds, sweeper.note_floor)
        pipeline = Pipeline(
            cast("Capture", Stream(outside, self.source, self.checks, cast("Any", epoch))),
            applier,
            outside.retry,
            PipelineLimits(workers=weather.workers, batch_changes=weather.batch, grace=5.0),
            stopping=cast("Any", running.stopping),
            on_confirmed=sweeper.note,
        )

        def backfill_of(record: BackfillRecord) -> Backfill:
            return self._backfill(running, mirrors[record.table], applier, target, ledger, grounds)

        Worker(
            pipeline,
            applier,
            backfill_of,
            sweeper,
            ledger,
            Metrics(),
            outside.retry,
            WorkerSettings(),
            only_one=ledger.working,
            stopping=cast("Any", running.stopping),
            check=admin.check_captured,
            reconciler=self._reconciler(running, grounds, target, ledger, mirrors),
        ).run()

    def _reconciler(
        self, running: Running, grounds: Grounds, target: Target, ledger: Ledger, mirrors: Mapping[str, Mirror]
    ) -> Reconciler | None:
        if not self.weather.reconciles:
            return None
        verifying = self._verifying(running, grounds, target, ledger)
        return Reconciler(
            [verifying.mirror(mirror) for mirror in mirrors.values()],
            verifying.verifications,
            verifying.watermark,
            Metrics(),
            grounds.epoch,
            mending=bool(self.weather.repairs),
        )

    def _verifying(self, running: Running, grounds: Grounds, target: Target, ledger: Ledger) -> Verifying:
        outside = running.outside
        verifications = Verifications(self.memory, self.source, self.scheduler, outside.call)
        letters = self._letters(running)
        return Verifying(
            target,
            ledger,
            verifications,
            verifications,
            Watermark(cast("CaptureSetup", Setup(outside, self.source, self.checks.begins))),
            grounds,
            lambda mirror: cast("TableAccess", Table(outside, self.source, mirror.table)),
            letters,
            letters,
            VerifyLimits(min(self.weather.workers, 2), self.weather.page),
            cast("Any", outside.stop),
            patience=20.0,
        )

    def _verify(self, running: Running) -> None:
        epoch = self._admin(running).check_applied()
        target = Target(running.outside, self.store, self.checks)
        ledger = self._ledger(running, epoch.number)
        verifying = self._verifying(running, self._grounds(ledger, epoch.number), target, ledger)
        parts = [verifying.mirror(mirror) for mirror in self._mirrors().values()]
        given = verifying.verifications, verifying.watermark, epoch.number
        with Verification(parts, *given, output=None, limit=20, anew=True) as verification:
            for checked in verification.run():
                running.outside.say(f"verified {checked.mirror.table}: {checked.counts.as_dict()}")
                self.checks.verified(checked.mirror.table, checked.counts)
            if self.weather.repairs:
                verification.repair()
                left = [(one.mirror.table, one.left.as_dict()) for one in verification.checked if not one.clean]
                running.outside.say(f"repaired, left: {left}")

    def _backfill(
        self, running: Running, mirror: Mirror, applier: Applier, target: Target, ledger: Ledger, grounds: Grounds
    ) -> Backfill:
        return Backfill(
            mirror,
            lambda: cast("PageReader", Pages(running.outside, self.source, mirror.table)),
            applier,
            target,
            ledger,
            running.outside.retry,
            BackfillLimits(workers=min(self.weather.workers, 2), page_rows=self.weather.page),
            check=lambda: grounds.check(mirror.table),
        )

    def _backfill_table(self, running: Running) -> None:
        epoch = self._admin(running).check_applied()
        mirrors = self._mirrors()
        mirror = mirrors[self.random.choice(list(mirrors))]
        target = Target(running.outside, self.store, self.checks)
        ledger = self._ledger(running, epoch.number)
        record = ledger.request_backfill(mirror.table, "asked for", anew=self.random.random() < 0.5)
        grounds = self._grounds(ledger, epoch.number)
        applier = self._applier(running, target, ledger, mirrors, grounds)
        self._backfill(running, mirror, applier, target, ledger, grounds).run_or_follow(record)

    def _replay(self, running: Running) -> None:
        epoch = self._admin(running).check_applied().number
        target = Target(running.outside, self.store, self.checks)
        rows = cast("RowReader", Rows(running.outside, self.source))
        ledger = self._ledger(running, 0)
        check = self._grounds(ledger, epoch).check
        replayer = Replay(self._mirrors(), rows, target, self._letters(running), ledger, check=check)
        outcomes = replay(replayer, Selection(), dry_run=self.random.random() < 0.1)
        running.outside.say(f"replayed: {outcomes.counts}")


@contextmanager
def _silence() -> Iterator[None]:
    """docferry's log is long."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def simulate(seed: int, given: Mapping[str, float] | None = None, *, trace: bool = False) -> World:
    """Run one schedule. What it raises has the world as `world`."""
    world = World(seed, given, trace=trace)
    try:
        with _silence():
            world.run()
    except BaseException as error:
        error.world = world  # type: ignore[attr-defined]
        raise
    return world

"""docferry dies, fails or hangs at each of its boundaries, under load: what it had confirmed by then was durable, and
once it runs again the items equal the rows."""

from __future__ import annotations

import itertools
import json
import signal
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest

from docferry.capture.ledger import PostgresLedger
from docferry.deadletter.sqs import SqsDeadLetters
from docferry.embedded.dynamodb import EmbeddedDynamoDB
from docferry.failpoints import PLACES, switch
from docferry.retry import Retry

from ..acceptance import conftest as acceptance
from ..acceptance.conftest import Ferry, WorkerProcess
from ..waiting import PATIENCE
from .journal import MIRRORS, Journal

KILLED = -signal.SIGKILL
_PAUSE = 0.01
"""Seconds between two transactions of the journal."""

BY_APPLY = ("apply.step", "ledger.begin_epoch", "ledger.register_mirror", "target.create")
BY_REPLAY = ("deadletters.remove", "replay.write")
BY_QUEUE = ("deadletters.delete", "deadletters.send")
BY_WORKER = [name for name in PLACES if name not in (*BY_APPLY, *BY_REPLAY, *BY_QUEUE)]
ONLY_IN = {"capture.": "replication", "confirm.": "replication", "target.sweep": "replication", "outbox.": "outbox"}
"""What the beginning of a name says of the capture mode that has it."""

KINDS = ("kill", "after:kill", "raise", "after", "raise:stop", "after:stop", "hang", "after:hang")
"""Those of the long tests, which pass each place with each of them."""

CAPTURES = ("replication", "outbox")


class Scene:
    """docferry applied to the tables of a journal, in one capture mode."""

    def __init__(self, ferry: Ferry, capture: str) -> None:
        self.ferry = ferry
        ferry.source["capture"] = capture
        ferry.environment["DOCFERRY_TOMBSTONE_GRACE"] = "0"
        self.journal = Journal(ferry)
        self.configure()

    def configure(self, **mirror: object) -> None:
        """Write the configuration, with more settings of each mirror."""
        self.ferry.write_config(
            *({**one, **mirror} for one in MIRRORS),
            run={"batch_changes": 20, "backfill_page": 60, "backfill_workers": 2},
        )

    def start(self, *faults: str) -> WorkerProcess:
        return self.ferry.start_worker(ready=False, DOCFERRY_FAILPOINTS=";".join(faults))

    def run(self, *arguments: str, fault: str = "") -> int:
        """Run a command in which something happens; its exit code. A command that hangs for ever is killed."""
        return suffer(self.ferry, arguments, fault)

    def strike(self, fault: str, *others: str, ends: bool = False) -> int:
        """Work until the fault has happened in a worker, and let that be its end; then nothing may be confirmed too
        early. `ends`: it ends by itself. Returns its exit code."""
        name = name_of(fault)
        provoke = self.provoked(name)
        worker = self.start(fault, *others)
        deadline = time.monotonic() + PATIENCE
        for number in itertools.count():
            if number % 40 == 0:
                provoke()
            self.journal.step()
            if worker.process.poll() is not None:
                break
            if f"failpoint {name}: " in worker.text and not ends and not is_deadly(fault):
                self.work(0.3)
                worker.kill()
                break
            if time.monotonic() > deadline:
                pytest.fail(f"{fault} did not happen:\n{worker.text[-4000:]}", pytrace=False)
            time.sleep(_PAUSE)
        code = worker.wait()
        assert f"failpoint {name}: " in worker.text, worker.text[-4000:]
        assert code in ((KILLED,) if is_deadly(fault) else (KILLED, 1)), worker.text[-4000:]
        self.journal.assert_nothing_confirmed_too_early()
        return code

    def work(self, seconds: float) -> None:
        """Go on for so long."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self.journal.step()
            time.sleep(_PAUSE)

    def provoked(self, name: str) -> Callable[[], object]:
        """What makes a worker pass a boundary which ordinary changes do not."""
        return {
            "applier.reread": self.journal.reread,
            "deadletters.add": self.journal.spoil,
            "ledger.raise_floor": self.journal.truncate,
            "target.truncate": self.journal.truncate,
            "ledger.remember_columns": self.journal.add_column,
            "ledger.request_backfill": self.journal.add_column,
            "target.sweep": self.journal.delete,
            "ledger.take_start_version": self.populate_again,
            "ledger.start_backfill": self.populate_again,
            "ledger.advance_backfill": self.populate_again,
            "ledger.finish_backfill": self.populate_again,
            "backfill.read": self.populate_again,
            "backfill.write": self.populate_again,
            "backfill.orphans": self.orphan,
        }.get(name, lambda: None)

    def populate_again(self) -> None:
        """Ask for a backfill of the archive, unless one is under way."""
        with closing(PostgresLedger(self.ferry.dsn, Retry())) as ledger:
            ledger.request_backfill("public.archive", "asked for")

    def orphan(self) -> None:
        """An item without a row, and a backfill that finds it."""
        item = {"id": {"N": "5000000"}, "_v": {"N": "7"}, "seq": {"N": "1"}}
        self.ferry.client().put_item(TableName=f"{self.ferry.prefix}archive", Item=item)
        self.populate_again()

    def settle(self, worker: WorkerProcess | None = None) -> None:
        """Without faults, or in spite of those of `worker`, all of it arrives."""
        worker = worker or self.start()
        done = self.ferry.run("wait", "--timeout", f"{PATIENCE:.0f}", timeout=PATIENCE + 10, check=False)
        assert done.returncode == 0, f"{done.stderr}\n{worker.text[-6000:]}"
        self.journal.assert_same()
        self.journal.assert_nothing_confirmed_too_early()
        assert worker.stop() == 0, worker.text[-4000:]


def suffer(ferry: Ferry, arguments: Sequence[str], fault: str, **environment: str) -> int:
    """Run a command in which `fault` happens, several with semicolons between them; its exit code, 0 when it ends
    before. One that hangs for ever is killed; one that only fails is run in this process, where it is sooner done."""
    environment["DOCFERRY_FAILPOINTS"] = fault
    if not is_deadly(fault) and not hangs(fault):
        ferry._grant(tuple(arguments), environment)
        try:
            result = ferry.call(*arguments, **environment)
        finally:
            switch({})
        code, said = result.exit_code, result.stderr
    else:
        process = ferry.start(*arguments, **environment)
        deadline = time.monotonic() + PATIENCE
        while process.process.poll() is None and time.monotonic() < deadline:
            if hangs(fault) and has_struck(fault, process.text):
                process.process.kill()
            time.sleep(_PAUSE)
        code, said = process.wait(), process.text
    assert code == 0 or all(has_struck(one, said) for one in fault.split(";") if one), said[-4000:]
    return code


def name_of(fault: str) -> str:
    return fault.partition("=")[0]


def kind_of(fault: str) -> str:
    """Without the pass."""
    return fault.rpartition("=")[2].partition("@")[0]


def has_struck(fault: str, said: str) -> bool:
    """Whether a process's log tells of it."""
    return f"failpoint {name_of(fault)}: {kind_of(fault)} at pass" in said


def is_deadly(fault: str) -> bool:
    return "kill" in fault


def code_of(fault: str) -> int:
    """What a command exits with that it strikes, and that is killed when it hangs."""
    return KILLED if is_deadly(fault) or hangs(fault) else 1


def hangs(fault: str) -> bool:
    """For ever, that is."""
    return any(kind_of(one) in ("hang", "after:hang") for one in fault.split(";"))


@pytest.fixture
def scene(
    request: pytest.FixtureRequest, database: str, ministack: EmbeddedDynamoDB, tmp_path: Path
) -> Iterator[Scene]:
    """In the capture mode that the test names; nothing is applied yet."""
    with ExitStack() as stack:
        ferry = stack.enter_context(closing(Ferry(database, ministack, tmp_path)))
        made = Scene(ferry, request.param)
        stack.callback(made.journal.close)
        yield made


by_both = pytest.mark.parametrize("scene", CAPTURES, indirect=True)


def first_by(capture: str) -> pytest.MarkDecorator:
    """By this capture mode, and among the long tests by the other."""
    others = [pytest.param(one, marks=pytest.mark.soak) for one in CAPTURES if one != capture]
    return pytest.mark.parametrize("scene", [capture, *others], indirect=True)


HOLD = "backfill.write=hang:0.1"
"""So that a backfill lasts long enough to record where it is."""

CHAINS: dict[str, tuple[str, list[tuple[str, ...]]]] = {
    "stream": (
        "replication",
        [
            ("capture.read=kill@4",),
            ("capture.read=after:kill@9",),
            ("pipeline.submit=kill@3",),
            ("applier.apply=after:kill@3",),
            ("applier.reread=kill@2",),
            ("target.request=after:kill@9",),
            ("target.write=after:kill@4",),
            ("confirm.limit=kill",),
            ("confirm.limit=after:kill",),
            ("capture.confirm=kill@3",),
            ("capture.confirm=after:kill@4",),
        ],
    ),
    "what is rare": (
        "replication",
        [
            ("ledger.raise_floor=kill",),
            ("target.truncate=kill",),
            ("target.truncate=after:kill",),
            ("deadletters.add=kill",),
            ("deadletters.add=after:kill",),
            ("ledger.heartbeat=kill@2",),
            ("target.sweep=kill",),
        ],
    ),
    "backfill": (
        "replication",
        [
            ("ledger.take_start_version=after:kill",),
            ("ledger.start_backfill=after:kill",),
            ("backfill.read=kill@3",),
            ("backfill.write=after:kill@5",),
            ("ledger.advance_backfill=after:kill", HOLD),
            ("backfill.orphans=after:kill",),
            ("ledger.finish_backfill=kill",),
            ("ledger.request_backfill=after:kill",),
            ("ledger.remember_columns=kill",),
        ],
    ),
    "outbox": (
        "outbox",
        [
            ("outbox.claim=kill@3",),
            ("outbox.claim=after:kill@4",),
            ("pipeline.submit=after:kill@3",),
            ("applier.apply=kill@3",),
            ("applier.reread=after:kill",),
            ("target.request=kill@9",),
            ("target.write=kill@4",),
            ("outbox.delete=kill@2",),
            ("outbox.delete=after:kill@3",),
            ("outbox.commit=kill@2",),
            ("outbox.commit=after:kill@2",),
        ],
    ),
    "what is rare, outbox": (
        "outbox",
        [
            ("ledger.raise_floor=after:kill",),
            ("target.truncate=kill",),
            ("deadletters.add=kill",),
            ("ledger.take_start_version=kill",),
            ("ledger.advance_backfill=kill", HOLD),
            ("ledger.finish_backfill=after:kill",),
        ],
    ),
    "the rest, outbox": (
        "outbox",
        [
            ("ledger.heartbeat=after:kill",),
            ("ledger.start_backfill=kill",),
            ("backfill.read=after:kill@3",),
            ("backfill.write=kill@4",),
            ("backfill.orphans=kill",),
            ("ledger.request_backfill=kill",),
            ("ledger.remember_columns=after:kill",),
        ],
    ),
}
LONG = ("the rest, outbox",)


@pytest.mark.parametrize(
    ("scene", "faults"),
    [pytest.param(*chain, id=name, marks=pytest.mark.soak if name in LONG else ()) for name, chain in CHAINS.items()],
    indirect=["scene"],
)
def test_killed_again_and_again(scene: Scene, faults: Sequence[tuple[str, ...]]) -> None:
    """Each start of the worker is the recovery from the kill before it."""
    scene.ferry.run("apply")
    for fault in faults:
        scene.strike(*fault)
    scene.settle()


# What the worker, or whoever serves it, tries again by itself, and what only takes time.
PASSING = {
    "replication": [
        "capture.read=raise@9",
        "capture.read=after@21",
        "capture.confirm=raise@every 3",
        "capture.confirm=after@every 4",
        "confirm.limit=raise@1",
        "confirm.limit=after@2",
        "target.sweep=raise@1",
        "target.sweep=after@2",
    ],
    "outbox": [
        "outbox.claim=raise@20",
        "outbox.claim=after@40",
        "outbox.delete=raise@3",
        "outbox.delete=after@6",
        "outbox.commit=raise@5",
        "outbox.commit=after@9",
    ],
}
PASSING_EVERYWHERE = [
    "applier.apply=hang:0.1@every 7",
    "applier.reread=raise@every 3",
    "applier.reread=after@every 4",
    "backfill.read=raise@1",
    "backfill.read=after@9",
    "backfill.write=raise@5",
    "backfill.write=after@14",
    "backfill.orphans=raise@1",
    "backfill.orphans=after@2",
    "deadletters.add=raise@every 2",
    "deadletters.add=after@every 3",
    "ledger.advance_backfill=hang:0.1",
    "ledger.advance_backfill=raise@1",
    "ledger.advance_backfill=after@2",
    "ledger.finish_backfill=raise@1",
    "ledger.finish_backfill=after@3",
    "ledger.heartbeat=raise@1",
    "ledger.heartbeat=after@2",
    "ledger.raise_floor=raise@1",
    "ledger.raise_floor=after@2",
    "ledger.remember_columns=raise@1",
    "ledger.remember_columns=after@2",
    "ledger.request_backfill=raise@1",
    "ledger.request_backfill=after@2",
    "ledger.start_backfill=raise@1",
    "ledger.start_backfill=after@2",
    "ledger.take_start_version=raise@1",
    "ledger.take_start_version=after@2",
    "target.request=raise@every 31",
    "target.request=after@every 17",
    "target.truncate=hang:0.1",
]
"""They may strike at the same pass, and one that raises is the last of that: those that hang come before it."""


def hanging(capture: str) -> list[str]:
    """A short stop at the first pass of each place of a worker."""
    return [f"{name}=hang:0.05@1" for name in BY_WORKER if is_in(name, capture)]


def is_in(name: str, capture: str) -> bool:
    """Whether a worker of this capture mode passes there."""
    return all(only == capture for prefix, only in ONLY_IN.items() if name.startswith(prefix))


@by_both
def test_what_passes_is_lived_through(scene: Scene) -> None:
    """All of these at once in one worker, which never ends for them."""
    capture = scene.ferry.source["capture"]
    faults = hanging(capture) + PASSING[capture] + PASSING_EVERYWHERE
    scene.ferry.run("apply")
    worker = scene.start(*faults)
    worker.wait_for("ready: ", PATIENCE)
    missing = faults
    deadline = time.monotonic() + PATIENCE
    for number in itertools.count():
        if number % 25 == 0:
            missing = [one for one in faults if not has_struck(one, worker.text)]
            for name in {name_of(one) for one in missing}:
                scene.provoked(name)()
            assert worker.process.poll() is None, worker.text[-4000:]
            if not missing or time.monotonic() > deadline:
                break
        scene.journal.step()
        time.sleep(_PAUSE)
    assert not missing, worker.text[-4000:]
    scene.settle(worker)


FATAL = [
    "pipeline.submit=raise@3",
    "pipeline.submit=after@3",
    "applier.apply=raise@2",
    "applier.apply=after@3",
    "target.write=raise",
    "target.write=after",
    "target.truncate=raise",
    "target.truncate=after",
    "deadletters.add=raise:stop",
    "target.request=after:stop@8",
]


@pytest.mark.parametrize("scene", ["replication"], indirect=True)
def test_what_ends_or_hangs_the_worker_is_confirmed_by_nobody(scene: Scene) -> None:
    scene.ferry.run("apply")
    for fault in ("applier.apply=hang@3", "target.write=after:hang@4", "capture.confirm=after:hang@4"):
        assert scene.strike(fault) == KILLED, fault
    for fault in FATAL:
        assert scene.strike(fault, ends=True) == 1, fault
    scene.settle()


# -- commands ---------------------------------------------------------------------------------------------------------


APPLY = [
    "apply.step=raise",
    "ledger.begin_epoch=raise",
    "ledger.begin_epoch=kill",
    "ledger.begin_epoch=hang:0.05;ledger.begin_epoch=after",
    "apply.step=kill",
    "apply.step=hang:0.05;apply.step=after",
    "target.create=raise",
    "target.create=kill",
    "target.create=hang:0.05@1;target.create=after@1",
    "target.create=after:kill@2",
    "ledger.register_mirror=raise",
    "ledger.register_mirror=kill",
    "ledger.register_mirror=hang:0.05;ledger.register_mirror=after",
    "ledger.register_mirror=after:kill",
]
"""In the order in which `apply` comes there: what is done and not reported is behind the next one."""


@first_by("outbox")
def test_an_apply_that_dies_or_fails_at_each_of_its_steps(scene: Scene) -> None:
    for fault in APPLY:
        assert scene.run("apply", fault=fault) == code_of(fault), fault
    steps = apply_step_by_step(scene)
    assert steps >= 1

    scene.work(1)
    scene.settle()


@first_by("replication")
def test_new_settings_that_are_applied_by_pieces(scene: Scene) -> None:
    scene.ferry.run("apply")
    scene.work(0.5)
    scene.settle()
    scene.journal.excluded = frozenset(["order_data"])
    scene.configure(exclude=["order_data"])
    for fault in (
        "ledger.register_mirror=kill",
        "ledger.register_mirror=after:kill",
    ):
        assert scene.run("apply", fault=fault) == KILLED, fault
        assert scene.run("run", "--once") == 1, "what is applied by halves is not run"
    apply_step_by_step(scene)
    scene.work(0.5)
    scene.settle()


@first_by("replication")
def test_a_change_of_the_capture_mode_that_dies_at_each_of_its_steps(scene: Scene) -> None:
    ferry = scene.ferry
    ferry.run("apply")
    scene.work(0.5)
    scene.settle()
    ferry.source["capture"] = "outbox" if ferry.source["capture"] == "replication" else "replication"
    scene.configure()
    assert scene.run("apply", fault="ledger.begin_epoch=after:kill") == KILLED
    apply_step_by_step(scene)

    slots = len(ferry.query(f"SELECT FROM pg_replication_slots WHERE slot_name = '{ferry.slot}'"))
    triggers = len(ferry.query("SELECT FROM pg_trigger WHERE tgname LIKE 'sync%dynamodb'"))
    assert (slots > 0, triggers > 0) == (ferry.source["capture"] == "replication", ferry.source["capture"] == "outbox")
    scene.work(0.5)
    scene.settle()


def apply_step_by_step(scene: Scene) -> int:
    """Kill `apply` behind its first step, the next one behind its second and so on, until one ends before; returns how
    many were killed."""
    for killed in itertools.count():
        code = scene.run("apply", fault=f"apply.step=after:kill@{killed + 1}")
        if code == 0:
            return killed
        assert code == KILLED
        scene.journal.step()
    raise AssertionError


REPLAY = [
    "replay.write=kill",
    "replay.write=after:kill",
    "deadletters.add=kill",
    "deadletters.add=after:kill",
    "deadletters.remove=kill",
    "replay.write=raise",
    "replay.write=hang:0.05;replay.write=after",
    "deadletters.remove=raise",
    "deadletters.remove=hang:0.05;deadletters.remove=after",
    "deadletters.remove=after:kill",
]


@first_by("replication")
def test_a_replay_that_dies_or_fails(scene: Scene) -> None:
    scene.ferry.run("apply")
    worker = scene.start()
    while len(scene.journal.unstored) <= len(REPLAY):
        scene.journal.spoil()
    scene.settle(worker)
    spoilt = len(scene.journal.unstored)

    for fault in REPLAY:
        scene.journal.mend(1)
        assert scene.run("deadletters", "replay", "--yes", fault=fault) == code_of(fault), fault
        scene.journal.assert_nothing_confirmed_too_early()
    assert scene.run("deadletters", "replay", "--yes") == 3
    left = len(scene.ferry.query("SELECT FROM docferry.dead_letters"))
    assert left == len(scene.journal.unstored) == spoilt - len(REPLAY)
    scene.settle()


class DeadLetterQueue:
    """A queue with events that Lambda gave up, and the command that replays them while the source is away. Of each
    event one change can be stored and one cannot."""

    def __init__(self, ferry: Ferry) -> None:
        self.ferry = ferry
        self._client: Any = boto3.client("sqs", **ferry.dynamodb.client_options())  # type: ignore[call-overload]
        self._url = self._client.create_queue(QueueName=f"dead-{uuid.uuid4().hex}")["QueueUrl"]
        self._last = 0
        ferry.execute("CREATE TABLE orders (id int PRIMARY KEY, body text)")
        ferry.write_config({"table": "public.orders", "collection": "orders", "documents": {"body": {"format": "xml"}}})
        ferry.run("apply")
        ((self._oid,),) = ferry.query("SELECT 'orders'::regclass::oid::int")
        ferry.environment["DOCFERRY_DEAD_LETTERS_QUEUE"] = self._url
        ferry.environment["DOCFERRY_SOURCE_DSN"] = "postgresql://nobody@127.0.0.1:1/none?connect_timeout=5"

    def fail(self) -> None:
        """One more event comes."""
        self._last += 2
        changes = [
            {"TG_OP": "UPDATE", "table": "public.orders", "version": str(2**96 + key * 2**32), "NEW": f"({key},{body})"}
            for key, body in ((self._last - 1, "<a/>"), (self._last, "<a"))
        ]
        relation = {"oid": self._oid, "columns": ["id", "body"], "types": [23, 25], "key": ["id"]}
        event = {
            "docferry": 1,
            "epoch": 1,
            "transaction": "1",
            "at": datetime.now(UTC).isoformat(),
            "relations": {"public.orders": relation},
            "changes": changes,
        }
        self._client.send_message(QueueUrl=self._url, MessageBody=json.dumps(event))

    def replay(self, fault: str = "") -> int:
        return suffer(self.ferry, ("deadletters", "replay", "--yes"), fault)

    def assert_nothing_is_lost(self) -> None:
        """What could be stored is at the target, what could not is in the queue, once nobody holds its messages."""
        self.ferry.eventually(lambda: self._held() == 0, PATIENCE, what="the end of what a killed process held")
        assert self.replay() == 3
        stored = {int(item["id"]) for item in self.ferry.items("orders")}
        assert stored == set(range(1, self._last, 2))
        listed = json.loads(self.ferry.call("deadletters", "list", "--all", "--json").stdout)["dead_letters"]
        assert {int(one["key"]["id"]) for one in listed} == set(range(2, self._last + 1, 2))

    def _held(self) -> int:
        answer = self._client.get_queue_attributes(QueueUrl=self._url, AttributeNames=["All"])["Attributes"]
        return int(answer["ApproximateNumberOfMessagesNotVisible"])

    def close(self) -> None:
        self._client.delete_queue(QueueUrl=self._url)
        self._client.close()


@pytest.fixture
def queue(
    database: str, ministack: EmbeddedDynamoDB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DeadLetterQueue]:
    # A process that is killed holds its messages to the end of their time: here that is soon.
    short = "from docferry.deadletter.sqs import SqsDeadLetters\nfrom docferry.cli import main\n"
    short += "SqsDeadLetters.__init__.__kwdefaults__.update(visibility=2, wait=0)\nmain()"
    monkeypatch.setattr(acceptance, "_command", lambda arguments: [sys.executable, "-c", short, *arguments])
    defaults = SqsDeadLetters.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "wait", 0)
    with closing(Ferry(database, ministack, tmp_path)) as ferry, closing(DeadLetterQueue(ferry)) as made:
        yield made


QUEUE = [
    "deadletters.send=kill",
    "deadletters.send=after:kill",
    "deadletters.send=raise",
    "deadletters.send=hang:0.05;deadletters.send=after",
    "deadletters.delete=kill",
    "deadletters.delete=after:kill",
    "deadletters.delete=raise",
    "deadletters.delete=hang:0.05;deadletters.delete=after",
]


def test_a_replay_of_the_queue_that_dies_or_fails(queue: DeadLetterQueue) -> None:
    for fault in QUEUE:
        queue.fail()
        assert queue.replay(fault) == code_of(fault), fault
        queue.assert_nothing_is_lost()


# -- all of them ------------------------------------------------------------------------------------------------------


def test_each_place_is_among_the_tests() -> None:
    """Of each name every kind: an error, a stop, a death, and an action that is carried out and reported as failed."""
    chained = [fault for name, (_, faults) in CHAINS.items() if name not in LONG for one in faults for fault in one]
    passing = [fault for capture in CAPTURES for fault in hanging(capture) + PASSING[capture]] + PASSING_EVERYWHERE
    commands = [fault for one in APPLY + REPLAY + QUEUE for fault in one.split(";")]
    tried: dict[str, set[str]] = defaultdict(set)
    for fault in chained + passing + FATAL + commands:
        tried[name_of(fault)].add(kind_of(fault))
    assert tried.keys() == PLACES.keys()
    for name, kinds in tried.items():
        assert {"raise", "after"} <= kinds, name
        assert {"kill", "after:kill"} & kinds, name
        assert any(kind.startswith("hang") for kind in kinds), name
    assert {"kill", "after:kill"} <= tried["confirm.limit"] & tried["deadletters.send"] & tried["deadletters.delete"]


@pytest.mark.soak
@pytest.mark.parametrize("name", BY_WORKER)
@by_both
def test_every_kind_at_every_pass(scene: Scene, name: str) -> None:
    capture = scene.ferry.source["capture"]
    if not is_in(name, capture):
        pytest.skip(f"mode {capture} has no {name}")
    scene.ferry.run("apply")
    for kind in KINDS:
        for nth in range(1, 6):
            others = (HOLD,) if name == "ledger.advance_backfill" else ()
            scene.strike(f"{name}={kind}@{nth}", *others)
        scene.settle()


@pytest.mark.soak
@pytest.mark.parametrize("name", BY_APPLY)
@by_both
def test_every_kind_at_every_pass_of_an_apply(scene: Scene, name: str) -> None:
    """Each from the beginning, and once more without a fault."""
    for kind in KINDS:
        for nth in itertools.count(1):
            code = scene.run("apply", fault=f"{name}={kind}@{nth}")
            if code == 0:
                assert nth > 1, f"{name} is not passed"
                break
            assert code == code_of(kind)
            scene.ferry.run("apply")
            scene.ferry.run("destroy", "--yes")
        scene.work(0.5)
        scene.settle()
        scene.ferry.run("destroy", "--yes")


@pytest.mark.soak
@pytest.mark.parametrize("name", BY_REPLAY)
@by_both
def test_every_kind_in_a_replay(scene: Scene, name: str) -> None:
    scene.ferry.run("apply")
    worker = scene.start()
    while len(scene.journal.unstored) <= len(KINDS):
        scene.journal.spoil()
    scene.settle(worker)
    for kind in KINDS:
        scene.journal.mend(1)
        assert scene.run("deadletters", "replay", "--yes", fault=f"{name}={kind}") == code_of(kind)
        scene.journal.assert_nothing_confirmed_too_early()
    assert scene.run("deadletters", "replay", "--yes") == 3
    scene.settle()


@pytest.mark.soak
@pytest.mark.parametrize("name", BY_QUEUE)
def test_every_kind_in_a_replay_of_the_queue(queue: DeadLetterQueue, name: str) -> None:
    for kind in KINDS:
        queue.fail()
        assert queue.replay(f"{name}={kind}") == code_of(kind)
        queue.assert_nothing_is_lost()

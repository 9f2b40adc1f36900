"""Threads that run one at a time, in an order that a seed decides, under a clock that jumps.

Every call to the outside pauses for some virtual time; whoever's time comes first goes on. Nothing else ever switches,
so a seed is a schedule, and the same seed always the same one.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from heapq import heappop, heappush
from random import Random
from types import ModuleType, SimpleNamespace
from typing import Any, Final, TypeVar

from docferry import applier, pipeline, retry
from docferry.operate import backfill, grounds, passing, reread, sweeper, verify, worker

__all__ = ["Event", "Killed", "Process", "Scheduler"]

_T = TypeVar("_T")
_MODULES: Final[tuple[ModuleType, ...]] = (
    applier,
    pipeline,
    retry,
    backfill,
    grounds,
    passing,
    reread,
    sweeper,
    verify,
    worker,
)
_MOST_STEPS: Final = 1_000_000
_BEGINNING: Final = datetime(2026, 1, 1, tzinfo=UTC)


class Killed(BaseException):
    """The process of this thread was killed: nothing that it still does reaches anybody."""


class Process:
    """What dies at once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.threads = 0

    def __repr__(self) -> str:
        return self.name


class _Thread:
    """A thread of a process. `ticket` counts its waits: what would wake it from an earlier one comes too late."""

    def __init__(self, process: Process, call: Callable[[], object]) -> None:
        self.process = process
        self.call = call
        self.ticket = 0
        self.carrier: _Carrier | None = None


class _Carrier:
    """A thread of the operating system, used again and again: they take long to start."""

    idle: Final[list[_Carrier]] = []

    def __init__(self) -> None:
        self.go = threading.Lock()
        self.go.acquire()
        self.work: tuple[Scheduler, _Thread] | None = None
        threading.Thread(target=self._run, daemon=True, name="simulated").start()

    def _run(self) -> None:
        while True:
            self.go.acquire()
            assert self.work is not None
            scheduler, thread = self.work
            scheduler.carry(thread)
            self.work = None
            self.idle.append(self)
            scheduler.hand_over()


class Scheduler:
    """See the module. `failure`: the first thing that went wrong; the one who called `run` gets it."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.now = 0.0
        self.failure: BaseException | None = None
        self.switches = 0
        self._heap: list[tuple[float, int, _Thread | None, Any]] = []
        self._order = 0
        self._main = _Thread(Process("main"), lambda: None)
        self._main.carrier = SimpleNamespace(go=threading.Lock())  # type: ignore[assignment]
        self._main.carrier.go.acquire()  # type: ignore[union-attr]
        self._current: _Thread | None = self._main
        self._threads: list[_Thread] = []
        self._over = False

    # -- what happens when --------------------------------------------------------------------------------------------

    def at(self, delay: float, call: Callable[[], object]) -> None:
        """Do this later, between two steps of threads. It cannot wait."""
        self._push(delay, None, call)

    def start(self, process: Process, call: Callable[[], object]) -> None:
        """A new thread."""
        thread = _Thread(process, call)
        process.threads += 1
        self._threads.append(thread)
        self._push(0.0, thread, 0)

    def pause(self, seconds: float | None) -> None:
        """Let others go on, for so long or until somebody wakes this thread."""
        me = self._current
        assert me is not None, "only threads can wait"
        if me.process.dead:
            raise Killed
        me.ticket += 1
        if seconds is not None:
            self._push(seconds, me, me.ticket)
        after = self._next()
        if after is not me:
            self._resume(after)
            assert me.carrier is not None
            me.carrier.go.acquire()
        if me.process.dead:
            raise Killed

    def here(self) -> tuple[_Thread, int]:
        """The running thread and the wait that it is about to begin, for `wake`."""
        assert self._current is not None, "only threads can wait"
        return self._current, self._current.ticket + 1

    def wake(self, waiting: tuple[_Thread, int]) -> None:
        """End that wait."""
        self._push(0.0, *waiting)

    def kill(self, process: Process) -> None:
        """Its threads unwind, which nobody notices."""
        process.dead = True
        for thread in self._threads:
            if thread.process is process:
                self._push(0.0, thread, thread.ticket)

    def fail(self, error: BaseException) -> None:
        """The run is over."""
        if self.failure is None:
            self.failure = error
        self.end()

    def end(self) -> None:
        """Whoever called `run` goes on."""
        if not self._over:
            self._over = True
            self._heap.clear()

    def run(self) -> None:
        """Let everything happen until `end`; raises what failed."""
        self.pause(None)
        for thread in self._threads:
            thread.process.dead = True
        while self._threads:
            thread = self._threads[0]
            self._heap = [(self.now, 0, thread, thread.ticket), (self.now + 1, 0, self._main, self._main.ticket + 1)]
            self.pause(None)
        if self.failure is not None:
            raise self.failure

    # -- inside -------------------------------------------------------------------------------------------------------

    def carry(self, thread: _Thread) -> None:
        """On a carrier: run the thread to its end."""
        try:
            if not thread.process.dead:
                thread.call()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - handed to the one who runs all this
            self.fail(error)
        thread.process.threads -= 1
        self._threads.remove(thread)

    def hand_over(self) -> None:
        """On a carrier whose thread has ended."""
        self._resume(self._next())

    def _push(self, delay: float, thread: _Thread | None, what: Any) -> None:
        self._order += 1
        # Who comes first of those at the same moment is nobody's right.
        heappush(self._heap, (self.now + delay, self.random.getrandbits(20) << 40 | self._order, thread, what))

    def _next(self) -> _Thread:
        self._current = None
        while self._heap:
            if self._order > _MOST_STEPS:
                self.fail(AssertionError("it goes round in circles"))
                break
            self.now, _, thread, what = heappop(self._heap)
            if thread is None:
                try:
                    what()
                except BaseException as error:  # noqa: BLE001 - handed to the one who runs all this
                    self.fail(error)
            elif thread.ticket == what and (thread in self._threads or thread is self._main):
                thread.ticket += 1
                self._current = thread
                return thread
        if not self._over:
            self.fail(AssertionError("nothing goes on"))
        self._current = self._main
        return self._main

    def _resume(self, thread: _Thread) -> None:
        self.switches += 1
        if thread.carrier is None:
            thread.carrier = _Carrier.idle.pop() if _Carrier.idle else _Carrier()
            thread.carrier.work = (self, thread)
        thread.carrier.go.release()

    @property
    def process(self) -> Process:
        """Whose thread is running."""
        assert self._current is not None
        return self._current.process

    # -- in place of what docferry waits with -------------------------------------------------------------------------

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Everything in docferry that would wait, start threads, look at the clock or throw dice asks this instead."""
        stand_ins = {
            "threading": SimpleNamespace(
                Event=lambda: Event(self), Lock=lambda: _Lock(self), Thread=lambda **given: _Started(self, **given)
            ),
            "time": SimpleNamespace(
                monotonic=lambda: self.now,
                time=lambda: self.now,
                time_ns=lambda: int(self.now * 1e9),
                sleep=lambda seconds: self.pause(max(seconds, 0.0)),
            ),
            "random": self.random,
            "queue": SimpleNamespace(Queue=lambda size: _Queue(self, size), Empty=queue.Empty),
            "ThreadPoolExecutor": lambda workers, **_: _Pool(self, workers),
        }
        before = [
            (module, name, getattr(module, name)) for module in _MODULES for name in stand_ins if hasattr(module, name)
        ]
        try:
            for module, name, _ in before:
                setattr(module, name, stand_ins[name])
            yield
        finally:
            for module, name, was in before:
                setattr(module, name, was)

    def date(self) -> datetime:
        """The time of day."""
        return _BEGINNING + timedelta(seconds=self.now)


class Event:
    """threading.Event."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._set = False
        self._waiting: list[tuple[_Thread, int]] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            self._scheduler.wake(one)

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._set:
            self._waiting.append(self._scheduler.here())
            self._scheduler.pause(timeout)
        return self._set


class _Lock:
    """threading.Lock."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._held = False
        self._free = Event(scheduler)

    def acquire(self, timeout: float | None = None) -> bool:
        while self._held:
            self._free.clear()
            if not self._free.wait(timeout) and timeout is not None:
                return False
        self._held = True
        return True

    def release(self) -> None:
        self._held = False
        self._free.set()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class _Started:
    """threading.Thread."""

    def __init__(
        self,
        scheduler: Scheduler,
        target: Callable[..., object],
        name: str,
        args: Sequence[Any] = (),
        *,
        daemon: bool = False,
    ) -> None:
        self.name = name
        self.daemon = daemon
        self._scheduler = scheduler
        self._target = partial(target, *args)
        self._ended = Event(scheduler)

    def start(self) -> None:
        self._scheduler.start(self._scheduler.process, self._run)

    def join(self, _timeout: float | None = None) -> None:
        # Nothing waits for ever here: calls to both ends return, or break.
        self._ended.wait()

    def is_alive(self) -> bool:
        return not self._ended.is_set()

    def _run(self) -> None:
        self._target()
        self._ended.set()


class _Queue:
    """queue.Queue."""

    def __init__(self, scheduler: Scheduler, size: int) -> None:
        self._size = size
        self._held: deque[Any] = deque()
        self._changed = Event(scheduler)

    def put(self, one: Any) -> None:
        while len(self._held) >= self._size:
            self._changed.clear()
            self._changed.wait()
        self._held.append(one)
        self._changed.set()

    def get(self, timeout: float | None = None) -> Any:
        while not self._held:
            self._changed.clear()
            if not self._changed.wait(timeout) and timeout is not None:
                raise queue.Empty
        self._changed.set()
        return self._held.popleft()


class _Result(Future[Any]):
    """A future that is waited for under the scheduler."""

    scheduler: Scheduler

    def result(self, timeout: float | None = None) -> Any:
        if not self.done():
            ended = Event(self.scheduler)
            self.add_done_callback(lambda _: ended.set())
            ended.wait(timeout)
        return super().result(0)


class _Pool:
    """ThreadPoolExecutor."""

    def __init__(self, scheduler: Scheduler, workers: int) -> None:
        self._scheduler = scheduler
        self._process = scheduler.process
        self._workers = workers
        self._running = 0
        self._queue: deque[tuple[_Result, Callable[..., Any], Sequence[Any]]] = deque()
        self._all_ended = Event(scheduler)

    def submit(self, call: Callable[..., _T], *given: Any) -> Future[_T]:
        result = _Result()
        result.scheduler = self._scheduler
        self._queue.append((result, call, given))
        if self._running < self._workers:
            self._running += 1
            self._scheduler.start(self._process, self._work)
        return result

    def shutdown(self, *, wait: bool = True, cancel_futures: bool = False) -> None:
        if cancel_futures:
            for result, _, _ in self._queue:
                result.cancel()
            self._queue.clear()
        while wait and self._running:
            self._all_ended.clear()
            self._all_ended.wait()

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def _work(self) -> None:
        while self._queue:
            result, call, given = self._queue.popleft()
            try:
                result.set_result(call(*given))
            except Killed:
                raise
            except BaseException as error:  # noqa: BLE001 - as the executor does
                result.set_exception(error)
        self._running -= 1
        if not self._running:
            self._all_ended.set()

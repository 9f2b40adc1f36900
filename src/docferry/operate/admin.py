"""`apply` and `destroy`: what docferry needs at both ends, made and removed; both idempotent."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Collection as Collection_
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from docferry.capture.contract import CaptureSetup, Ledger, MirrorRecord
from docferry.capture.history import history_error, of_history
from docferry.change.model import Relation, make_version, split_version
from docferry.document.mirror import Mirror
from docferry.document.model import Collection
from docferry.errors import HistoryChanged, Interrupted, NotApplied, TimedOut
from docferry.failpoints import failpoint
from docferry.operate.backfill import NEW_COLLECTION
from docferry.operate.control import floor_of, floors_of_others, forget_floors
from docferry.operate.resync import later_than, to_resync
from docferry.target.contract import Target

__all__ = ["Admin", "AdminLedger", "EpochRecord", "MirrorPlan"]

_log = logging.getLogger(__name__)
_FIRST_LOOK, _LONGEST_LOOK = 0.02, 0.25
_PATIENCE_WITHOUT_WORKER = 3.0


class EpochRecord(Protocol):
    """An epoch as the ledger keeps it."""

    @property
    def number(self) -> int:
        """Its number, from 1."""

    @property
    def system_identifier(self) -> str:
        """Of the server it began on."""

    @property
    def timeline(self) -> int:
        """Of that server then."""

    @property
    def capture(self) -> str:
        """The capture mode."""


class AdminLedger(Ledger, Protocol):
    """The ledger, with what only setting up needs."""

    def exists(self) -> bool:
        """Whether it has been created."""

    def create(self) -> None:
        """Create what is missing of it."""

    def drop(self) -> None:
        """Remove it and all it remembers."""

    def working(self) -> AbstractContextManager[Callable[[], None]]:
        """Held by the one worker of this source. Raises AlreadyRunning."""

    def epoch(self) -> EpochRecord | None:
        """The epoch in force."""

    def begin_epoch(
        self, system_identifier: str, timeline: int, capture: str, at_least: int, populate: Mapping[str, str]
    ) -> EpochRecord:
        """The next epoch, numbered `at_least` or more. `populate`: tables whose backfills are requested anew, and why,
        in the same transaction."""

    def captures(self) -> list[str]:
        """The capture modes of all epochs so far."""


@dataclass(frozen=True, slots=True)
class MirrorPlan:
    """A mirror with what `apply` records of it. `fingerprint`: of the settings that shape its items; `layout`: see
    contract.RowReader."""

    mirror: Mirror
    relation: Relation
    fingerprint: str
    layout: str


@dataclass
class Admin:
    """Both ends of the configured mirrors. `capture`: the capture mode's name. `control`: the collection that several
    processes share. `former_setup`: of another capture mode, which goes when this one comes; None if it is the same."""

    setup: CaptureSetup
    ledger: AdminLedger
    target: Target
    plans: Sequence[MirrorPlan]
    capture: str
    on_step: Callable[[str], None] = field(default=lambda _: None)
    control: Collection | None = None
    former_setup: Callable[[str], CaptureSetup | None] = field(default=lambda _: None)
    _latest_epoch: int = field(default=0, init=False)
    _found_attributes: dict[str, frozenset[str]] = field(default_factory=dict, init=False)

    def steps(self) -> list[str]:
        """What `apply` would do, in words; nothing is touched."""
        tables = [plan.mirror.table for plan in self.plans]
        steps = []
        registered: Mapping[str, MirrorRecord] = {}
        if not self.ledger.exists():
            steps.append("create schema docferry in the source")
        else:
            registered = self._known()
        unseen = self.setup.uncaptured(tables)
        epoch = self.ledger.epoch() if registered else None
        why_all = None if epoch is None else self._why_epoch(epoch, self.setup.history(), 0)
        if epoch is not None and why_all is not None:
            steps.append(f"begin epoch {epoch.number + 1}, because {why_all}")
        steps.extend(self.setup.missing(tables))
        steps.extend(f"remove {what}, which the former capture mode used" for what in self._of_former())
        if self.control is not None and not self.target.exists(self.control):
            steps.append(f"create collection {self.control.name}, which docferry's processes share")
        for plan in self.plans:
            collection = plan.mirror.collection
            if not self.target.exists(collection):
                steps.append(f"create collection {collection.name} (key {_key(collection)})")
            known = registered.get(plan.mirror.table)
            if known is None:
                steps.append(f"register mirror {plan.mirror.table} -> {collection.name}; `run` populates it")
            elif known.fingerprint != plan.fingerprint:
                steps.append(f"populate {collection.name} again, because the mirror's settings changed")
            elif why_all is not None:
                steps.append(f"populate {collection.name} again, over its items, and remove those without a row")
            elif plan.mirror.table in unseen:
                steps.append(f"populate {collection.name} again, because changes of its table were not captured")
        steps.extend(f"forget mirror {table}; its collection stays" for table in registered if table not in tables)
        return steps

    def apply(self, resync: Collection_[str] = ()) -> list[str]:
        """Make both ends ready; returns what was done, in words. `resync`: tables whose collections are populated
        again, whatever they hold. Raises SourceRefused before anything is done when the source cannot be captured."""
        self.setup.check()
        done: list[str] = []

        def did(step: str) -> None:
            with failpoint("apply.step"):
                done.append(step)
                self.on_step(step)

        tables = [plan.mirror.table for plan in self.plans]
        if not self.ledger.exists():
            self.ledger.create()
            did("created schema docferry in the source")
        else:
            self.ledger.create()
        registered = self._known()
        self._look_into_collections(registered)
        self._look_for_later([plan for plan in self.plans if plan.mirror.table in resync])
        why_all = self._why_all(registered, did)
        again = to_resync(self.ledger, [table for table in resync if table in registered])
        unseen = {} if why_all else dict.fromkeys(self.setup.uncaptured(tables), "changes were not captured")
        self._request_all([table for table in unseen if table in registered], "changes were not captured")
        if self.control is not None and self.target.create(self.control):
            did(f"created collection {self.control.name}, which docferry's processes share")
        for step in self.setup.prepare(tables):
            did(step)
        self._remove_former(did)
        for plan in self.plans:
            table = plan.mirror.table
            self._apply_mirror(plan, registered.get(table), why_all or unseen.get(table) or again.get(table), did)
        for table in registered:
            if table not in tables:
                self.ledger.remove_mirror(table)
                did(f"forgot mirror {table}; its collection {registered[table].collection} stays")
        return done

    def _known(self) -> dict[str, MirrorRecord]:
        """The mirrors that `apply` has finished with: registered, and a backfill was requested at least once."""
        begun = {record.table for record in self.ledger.backfills()}
        return {table: record for table, record in self.ledger.mirrors().items() if table in begun}

    def _request_all(self, tables: Iterable[str], reason: str) -> None:
        """Before what shows that it is due is mended: an `apply` that is cut short must not leave it unsaid."""
        for table in tables:
            self.ledger.request_backfill(table, reason, anew=True)

    def _why_all(self, registered: Mapping[str, MirrorRecord], did: Callable[[str], None]) -> str | None:
        """Why every collection must be populated again, if so. Begins an epoch where one is due (R2)."""
        history = self.setup.history()
        epoch = self.ledger.epoch()
        above = self._latest_epoch + 1
        if epoch is None:
            epoch = self.ledger.begin_epoch(*history, self.capture, above, {})
            did(f"began epoch {epoch.number}")
            return None
        why = self._why_epoch(epoch, history, above)
        if why is None:
            return None
        epoch = self.ledger.begin_epoch(*history, self.capture, above, dict.fromkeys(registered, why))
        did(f"began epoch {epoch.number}: {why}")
        return why

    def _why_epoch(self, epoch: EpochRecord, history: tuple[str, int], above: int) -> str | None:
        """Why another epoch than the one in force is due, if so. Touches nothing."""
        # Asked in any case: `prepare` counts on it.
        gap = self.setup.gap()
        if epoch.capture != self.capture:
            return f"the capture mode changed from {epoch.capture} to {self.capture}"
        if (why := of_history(epoch, history)) is not None:
            return why
        if epoch.number < above:
            return "a collection holds items of a later one, or of positions that the source has not reached"
        # A restored copy may have been set back in its own history, which nothing else tells: a new epoch is safe.
        return None if gap is None else f"changes were missed: {gap}"

    def _look_for_later(self, plans: Sequence[MirrorPlan]) -> None:
        """Items that are later than the source itself, because it was set back by a restore of a backup, would look
        newer than whatever is written over them; below a floor that is later, whatever is written would be stale."""
        epoch = self.ledger.epoch()
        collections = [plan.mirror.collection for plan in plans if self.target.exists(plan.mirror.collection)]
        if epoch is not None and collections:
            later = later_than(self.target, collections, epoch.number, self.setup.mark, self._floor_of)
            self._latest_epoch = max(self._latest_epoch, later)

    def _remove_former(self, did: Callable[[str], None]) -> None:
        """What other capture modes left. The epoch in force does not tell: an `apply` may have been killed behind its
        beginning, and a slot that nobody reads would keep the source's log for ever."""
        for former in self._former():
            if former.present():
                for step in former.remove():
                    did(step)

    def _former(self) -> list[CaptureSetup]:
        """The setups of other capture modes that once were in force here."""
        captures = self.ledger.captures() if self.ledger.exists() else []
        setups = [self.former_setup(capture) for capture in captures if capture != self.capture]
        return [setup for setup in setups if setup is not None]

    def _of_former(self) -> list[str]:
        """What these left, in words; each once, because outbox and lambda keep the same."""
        return list(dict.fromkeys(what for former in self._former() for what in former.present()))

    def _look_into_collections(self, registered: Mapping[str, MirrorRecord]) -> None:
        """In collections that another setup left behind, items of a later epoch would look newer than ours, and may
        carry attributes that our writes have to remove."""
        for plan in self.plans:
            collection = plan.mirror.collection
            known = registered.get(plan.mirror.table)
            if known is not None and known.collection == collection.name:
                continue
            # A floor outlasts its collection, when that was removed by hand for example.
            self._latest_epoch = max(self._latest_epoch, split_version(self._floor_of(collection))[0])
            if not self.target.exists(collection):
                continue
            attributes: set[str] = set()
            for item in self.target.scan(collection):
                self._latest_epoch = max(self._latest_epoch, split_version(item.version)[0])
                attributes.update(item.document or ())
            self._found_attributes[plan.mirror.table] = frozenset(attributes)

    def _floor_of(self, collection: Collection) -> int:
        return floor_of(self.target, self.control, collection.name)

    def _apply_mirror(
        self, plan: MirrorPlan, known: MirrorRecord | None, why_all: str | None, did: Callable[[str], None]
    ) -> None:
        mirror = plan.mirror
        missing = not self.target.exists(mirror.collection)
        names = mirror.carried({name for name, _ in plan.relation.shape})
        names |= self._found_attributes.get(mirror.table, frozenset())
        record = MirrorRecord(
            mirror.table, mirror.collection.name, plan.fingerprint, names, plan.relation.shape, plan.layout
        )
        reason = _reason(record, known, why_all, created=missing)
        if known is not None and missing:
            self._request_all([mirror.table], "the collection was missing")
        if self.target.create(mirror.collection):
            did(f"created collection {mirror.collection.name} (key {_key(mirror.collection)})")
        epoch = self.ledger.epoch()
        if self.control is not None and epoch is not None:
            # A late event of an earlier epoch must not bring back a row that was deleted in between.
            self.target.raise_floor(mirror.collection, make_version(epoch.number, 0))
        # The request comes with the settings, not before: a worker that still has the former ones would do it by them.
        self.ledger.register_mirror(record, populate=reason)
        if known is None:
            did(f"registered mirror {mirror.table} -> {mirror.collection.name}")
        if reason is not None:
            did(f"requested a backfill of {mirror.table} ({reason}); `docferry run` does it")

    def destroy_steps(self, *, keep_collections: bool) -> list[str]:
        """What `destroy` would remove, in words."""
        steps = [*self.setup.present(), *self._of_former()]
        if not keep_collections:
            steps.extend(
                f"collection {collection.name} with all its items"
                for collection in self._own_collections()
                if self.target.exists(collection)
            )
            if self.control is not None and self._has_control():
                others = floors_of_others(self.target, self.control, self._registered_collections())
                steps.append(_of_control(self.control, others))
        if self.ledger.exists():
            steps.append("schema docferry in the source, with its dead letters")
        return steps

    def _own_collections(self) -> list[Collection]:
        """Those that `apply` registered: a table of the same name that it never saw is somebody else's."""
        names = self._registered_collections()
        return [plan.mirror.collection for plan in self.plans if plan.mirror.collection.name in names]

    def _orphaned(self, own: Sequence[str]) -> list[str]:
        """Registered collections that cannot be dropped, because their key is not known any more."""
        return [name for name in self._registered_collections() if name not in own]

    def _registered_collections(self) -> list[str]:
        registered = self.ledger.mirrors() if self.ledger.exists() else {}
        return list(dict.fromkeys(record.collection for record in registered.values()))

    def _has_control(self) -> bool:
        """Without a ledger `apply` was never here: then the control collection is somebody else's."""
        return self.control is not None and self.ledger.exists() and self.target.exists(self.control)

    def _leave_control(self, did: Callable[[str], None]) -> None:
        """Drop the control collection, or what it holds of ours: a floor must not outlast its collection."""
        if self.control is None or not self._has_control():
            return
        ours = self._registered_collections()
        others = floors_of_others(self.target, self.control, ours)
        if others:
            forget_floors(self.target, self.control, ours)
            did(_of_control(self.control, others))
        elif self.target.drop(self.control):
            did(f"dropped collection {self.control.name}")

    def destroy(self, *, keep_collections: bool) -> list[str]:
        """Remove what `apply` made. Raises AlreadyRunning, before anything is removed, while a worker runs."""
        done: list[str] = []

        def did(step: str) -> None:
            done.append(step)
            self.on_step(step)

        with self.ledger.working():
            for step in self.setup.remove():
                did(step)
            self._remove_former(did)
            # The ledger goes last: it knows what is left when this is interrupted.
            if not keep_collections:
                own = self._own_collections()
                for collection in own:
                    if self.target.drop(collection):
                        did(f"dropped collection {collection.name}")
                for name in self._orphaned([collection.name for collection in own]):
                    did(f"left collection {name}, whose source table cannot be found; delete it at the target yourself")
                self._leave_control(did)
            if self.ledger.exists():
                self.ledger.drop()
                did("dropped schema docferry")
        return done

    def check_applied(self) -> EpochRecord:
        """The epoch in force. Raises NotApplied or HistoryChanged when `apply` is due."""
        if not self.ledger.exists():
            raise NotApplied("docferry has not been set up in this source")
        epoch = self.ledger.epoch()
        registered = self._known()
        if epoch is None:
            raise NotApplied("docferry has not been set up completely in this source")
        for plan in self.plans:
            known = registered.get(plan.mirror.table)
            if known is None:
                raise NotApplied(f"the mirror of {plan.mirror.table} has not been set up")
            if known.fingerprint != plan.fingerprint:
                raise NotApplied(f"the settings of the mirror of {plan.mirror.table} changed since `docferry apply`")
        if epoch.capture != self.capture:
            raise HistoryChanged(
                f'this source was set up for capture = "{epoch.capture}", the configuration says "{self.capture}"',
                remedy="Run `docferry apply`: it begins a new epoch and populates every collection again.",
            )
        self._check_history(epoch)
        self.check_captured()
        return epoch

    def check_going_on(self, epoch: EpochRecord) -> None:
        """For a worker of this epoch, from time to time. Raises HistoryChanged when its positions count no more, or
        when changes of a mirrored table pass, or passed, unseen."""
        self._check_history(epoch)
        try:
            self.check_captured()
        except HistoryChanged:
            # Known here and now: somebody may mend the capture by hand, and nothing would be seen of it any more.
            self._request_all(self._unseen(), "changes were not captured")
            raise

    def _unseen(self) -> list[str]:
        return self.setup.uncaptured([plan.mirror.table for plan in self.plans])

    def _check_history(self, epoch: EpochRecord) -> None:
        error = history_error(epoch, self.setup.history(), self.ledger.epoch())
        if error is not None:
            raise error

    def check_captured(self) -> None:
        """Raises HistoryChanged when changes of a mirrored table pass, or passed, unseen."""
        gap = self.setup.gap()
        if gap:
            raise HistoryChanged(
                f"{gap}; changes since then were not seen",
                remedy="Run `docferry apply`: it mends the capture and populates every collection again.",
            )
        unseen = self._unseen()
        if unseen:
            raise HistoryChanged(
                f"changes of {', '.join(unseen)} are not captured, or not all of them (dropped and created again, or "
                "is the publication narrowed?)",
                remedy="Run `docferry apply`: it captures them again and populates their collections anew.",
            )

    def wait(self, timeout: float, *, stop: threading.Event | None = None) -> float:
        """Wait until everything committed before the call is at the target or in the dead letters, and every collection
        is populated; returns the seconds it took. Raises TimedOut, and Interrupted once `stop` is set."""
        stop = stop or threading.Event()
        began = time.monotonic()
        position = self.setup.mark()
        pause = _FIRST_LOOK
        said = False
        while True:
            state = self.setup.state()
            # Only this configuration's: what other mirrors wait for is no matter of this worker.
            tables = {plan.mirror.table for plan in self.plans}
            waiting = [one.table for one in self.ledger.backfills(unfinished_only=True) if one.table in tables]
            if state is not None and state.confirmed > position and not waiting:
                return time.monotonic() - began
            active = state is not None and state.active
            waited = time.monotonic() - began
            if waited >= timeout:
                raise _timed_out(timeout, waiting, active=active)
            if not active and not said and waited > _PATIENCE_WITHOUT_WORKER:
                said = True
                _log.warning("waiting, but no worker is streaming from this source")
            if stop.wait(min(pause, max(timeout - waited, 0.0))):
                raise Interrupted("stopped while waiting")
            # Quick answers to quick workers, few questions to the source while it takes longer.
            pause = min(pause * 1.3, _LONGEST_LOOK)


def _timed_out(timeout: float, waiting: Sequence[str], *, active: bool) -> TimedOut:
    after = f"gave up after {timeout:g} s"
    if not active:
        return TimedOut(f"{after}: no worker is streaming from this source", remedy="Start `docferry run`.")
    if waiting:
        return TimedOut(
            f"{after}: the backfill of {', '.join(waiting)} is not done yet",
            remedy="Give a longer --timeout, and see `docferry status` for its progress.",
        )
    return TimedOut(
        f"{after}: the worker is behind",
        remedy="Give a longer --timeout, and see `docferry status` and the worker's log for what holds it up.",
    )


def _reason(record: MirrorRecord, known: MirrorRecord | None, why_all: str | None, *, created: bool) -> str | None:
    if known is None:
        return NEW_COLLECTION if created else "existing collection"
    if created:
        return "the collection was missing"
    if why_all is not None:
        return why_all
    if known.fingerprint != record.fingerprint:
        return "settings changed"
    if known.layout != record.layout:
        return "schema change"
    return None


def _of_control(control: Collection, others: Sequence[str]) -> str:
    if not others:
        return f"collection {control.name}, which docferry's processes share"
    return f"collection {control.name} stays: it holds the floors of {', '.join(others)}, which are not ours"


def _key(collection: Collection) -> str:
    return ", ".join(f"{attribute.name} {attribute.kind}" for attribute in collection.key)

"""Replaying dead letters: by reading their rows again (R5), or by their events where the rows cannot be read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from docferry.capture.contract import Ledger, RowReader, TransactionGate, TransactionState
from docferry.change.model import Op, Relation, Row
from docferry.deadletter.contract import DeadLetter, DeadLetters, StoredDeadLetter
from docferry.document.mirror import Mirror
from docferry.document.model import Delete, Key, Write
from docferry.errors import EventRefused, RowRefused, SourceUnavailable, TableGone
from docferry.failpoints import failpoint
from docferry.operate.aims import Aim, Decode, Identity, aimed_keys, aims_by_row, aims_of_event, identity
from docferry.operate.replayed import SETTLED, Look, ReplayResult
from docferry.operate.truncates import replay_truncates
from docferry.target.contract import Item, Outcome, Result, Target

__all__ = ["Replay", "ReplayResult"]

_BATCH = 50
_BYTES = 32 << 20


@dataclass(slots=True)
class Replay:
    """Replays dead letters, `rate` a second at most. Nothing leaves the dead letters before it is durable.

    `reader`, `ledger`: None when the source cannot be reached; then their events are applied under their versions.
    `decode`: reads an event. `specify`: the mirror of a table by an event's description of it, None when it is not
    configured; for tables that are not in `mirrors`, which takes the source. `event_lifetime`: seconds after which an
    event is not applied unread, because a newer delete's tombstone may have expired (R4). `gate`: says whether the
    transaction of an event was committed; without one that of a row's change counts as such. `check`: raises
    HistoryChanged when the mirror of a table is no longer what it was; asked before anything is written.
    """

    mirrors: Mapping[str, Mirror]
    reader: RowReader | None
    target: Target
    dead_letters: DeadLetters
    ledger: Ledger | None
    rate: float = 200.0
    on_result: Callable[[ReplayResult], None] = field(default=lambda _: None)
    decode: Decode | None = None
    specify: Callable[[str, Mapping[str, Any]], Mirror | None] | None = None
    event_lifetime: float = 7 * 86400.0
    gate: TransactionGate | None = None
    check: Callable[[str], None] = field(default=lambda _: None)
    _ended: dict[int, TransactionState] = field(default_factory=dict, init=False, repr=False)
    _looking: bool = field(default=False, init=False, repr=False)

    def preview(self, letters: Sequence[StoredDeadLetter]) -> list[ReplayResult]:
        """What a replay of these would write beside what stands there now. Nothing is written; the documents of all are
        in memory at once."""
        self._looking = True
        try:
            return self.run(letters, dry_run=True)
        finally:
            self._looking = False

    def run(self, letters: Sequence[StoredDeadLetter], *, dry_run: bool) -> list[ReplayResult]:
        """Replay these; in a dry run nothing is written anywhere."""
        results: list[ReplayResult] = []
        # Checks at its end that it was held all the time.
        with nullcontext() if self.ledger is None else self.ledger.old_writes():
            for group in _by_table(letters):
                mirror = self._mirror(group)
                if isinstance(mirror, str):  # the outcome of all
                    self._note([ReplayResult(stored, mirror) for stored in group], results)
                    continue
                if not dry_run:
                    self.check(mirror.table)  # a TRUNCATE writes, too
                judged, done = self._judged(group)
                truncated, floor = replay_truncates(
                    mirror, judged, self._state, self.target, self.ledger, self._floor(mirror), dry_run=dry_run
                )
                ours, others = _by_key(judged, mirror.spec.key)
                done += [*truncated, *(ReplayResult(stored, "unmirrored") for stored in others)]
                self._note(done, results)
                for batch in _batches(ours, _BATCH if dry_run else max(1, min(_BATCH, int(self.rate)))):
                    began = time.monotonic()
                    self._note(self._batch(mirror, batch, floor, dry_run=dry_run), results)
                    if not dry_run:
                        time.sleep(max(0.0, len(batch) / self.rate - (time.monotonic() - began)))
        if not dry_run:
            # All at once: a message of a queue that holds several is taken apart when only some are settled.
            self._settle(results)
        return results

    def superseded(self, letters: Sequence[StoredDeadLetter]) -> set[int]:
        """The ids of those for which nothing is left to do: the target has something newer, or as new, for every key
        that they are about. Cheap: one batched read of the target for each table; no row is read."""
        found: set[int] = set()
        for group in _by_table(letters):
            mirror = self._mirror(group)
            if isinstance(mirror, str):
                continue
            floor = self._floor(mirror)
            keys = self._keys(mirror, group)
            held = self._held(mirror, {key for some in keys.values() for key in some})
            for stored in group:
                version = stored.letter.version
                items = [held.get(key) for key in keys.get(stored.id, ())]
                newer = [item is not None and item.version >= version for item in items]
                below = version <= floor if stored.letter.op is Op.TRUNCATE else version < floor
                if below or (newer and all(newer)):
                    found.add(stored.id)
        return found

    # -- one table ----------------------------------------------------------------------------------------------------

    def _mirror(self, group: Sequence[StoredDeadLetter]) -> Mirror | str:
        """The mirror of letters of one table, or the outcome that they all have without one."""
        table = group[0].letter.table
        if not table:
            return "unreadable"
        mirror = self.mirrors.get(table)
        if mirror is not None:
            return mirror
        if self.specify is None:
            return "unmirrored"
        newest = max(group, key=lambda stored: (stored.letter.payload is not None, stored.letter.version)).letter
        described = (newest.payload or {}).get("relations", {}).get(table)
        try:
            return "unreachable" if described is None else self.specify(table, described) or "unmirrored"
        except (EventRefused, SourceUnavailable):  # of a type that only the catalog knows
            return "unreachable"

    def _judged(self, group: Sequence[StoredDeadLetter]) -> tuple[list[StoredDeadLetter], list[ReplayResult]]:
        """Those that are to be replayed, and the outcome of those whose transaction did not commit, or not yet."""
        done = {TransactionState.ABORTED: "rolled-back", TransactionState.IN_PROGRESS: "pending"}
        states = [(stored, self._state(stored.letter)) for stored in group]
        return (
            [stored for stored, state in states if state not in done],
            [ReplayResult(stored, done[state]) for stored, state in states if state in done],
        )

    def _state(self, letter: DeadLetter) -> TransactionState:
        """What became of the change's transaction. Of a row that does not matter where nobody can say: what is applied
        is its present state, or what a later event corrects. A TRUNCATE takes away what nothing brings back."""
        transaction = _transaction(letter)
        if self.gate is None or transaction is None:
            return TransactionState.UNKNOWN if letter.op is Op.TRUNCATE else TransactionState.COMMITTED
        state = self._ended.get(transaction) or self.gate.state(transaction)
        if state is not TransactionState.IN_PROGRESS:
            self._ended[transaction] = state
        parts = _subtransactions(letter)
        if state is TransactionState.COMMITTED and parts and self.gate.rolled_back(parts):
            return TransactionState.ABORTED
        return state

    def _batch(self, mirror: Mirror, batch: list[StoredDeadLetter], floor: int, *, dry_run: bool) -> list[ReplayResult]:
        results: list[ReplayResult] = []
        aims = self._aims(mirror, batch, results)
        newest: dict[Identity, Aim] = {}
        outcomes: dict[int, list[ReplayResult]] = {}
        # The newest last: of several of one key it is the one to apply.
        for aim in sorted(aims, key=lambda one: one.version):
            before = newest.get(aim.identity)
            if before is not None:
                outcomes.setdefault(before.stored.id, []).append(ReplayResult(before.stored, "superseded"))
            newest[aim.identity] = aim
        for result in self._tried(mirror, list(newest.values()), floor, dry_run=dry_run):
            outcomes.setdefault(result.stored.id, []).append(result)
        results += [_of_all(of_one) for of_one in outcomes.values()]
        if not dry_run:
            floor = self._floor(mirror)
            if any(aim.version < floor for aim in newest.values()):
                # The table was truncated while we wrote what had been read before.
                self.target.truncate(mirror.collection, floor)
        return results

    def _aims(self, mirror: Mirror, batch: list[StoredDeadLetter], results: list[ReplayResult]) -> list[Aim]:
        if self.reader is not None:
            relation = self.reader.relation(mirror.table)
            return aims_by_row(mirror, relation, batch, self._read(self.reader, mirror, batch))
        aims: list[Aim] = []
        for stored in batch:
            found = aims_of_event(mirror, stored, self.decode) if self._is_young(stored) else None
            if found is None:
                results.append(ReplayResult(stored, "unreachable"))
            else:
                aims += found
        return aims

    def _is_young(self, stored: StoredDeadLetter) -> bool:
        """Whether the tombstones of all later deletes still stand."""
        try:
            at = datetime.fromisoformat((stored.letter.payload or {})["at"])
            return datetime.now(UTC) - at < timedelta(seconds=self.event_lifetime)
        except (KeyError, TypeError, ValueError):
            return False

    def _read(
        self, reader: RowReader, mirror: Mirror, batch: Sequence[StoredDeadLetter]
    ) -> dict[Identity, tuple[Relation, Row]]:
        """The current rows. Most changes are long visible: their dead letters were written after them. An event may
        have come before its commit."""
        found: dict[Identity, tuple[Relation, Row]] = {}
        sent_by = {
            transaction & 0xFFFFFFFF
            for stored in batch
            if (transaction := _transaction(stored.letter)) is not None
            and self.gate is not None
            and self._state(stored.letter) is TransactionState.COMMITTED
        }
        keys = [key for stored in batch for key in (stored.letter.key, stored.letter.old_key) if key is not None]
        asked = list(dict.fromkeys(tuple(key.get(name, "") for name in mirror.spec.key) for key in keys))
        rows, complete = reader.read_rows(mirror.table, mirror.spec.key, asked, sent_by, _BYTES)
        if complete:
            return {identity(mirror, of, row): (of, row) for of, row in rows}
        for one in asked:  # large rows
            rows, _ = reader.read_rows(mirror.table, mirror.spec.key, [one], sent_by, _BYTES)
            found.update({identity(mirror, of, row): (of, row) for of, row in rows})
        return found

    # -- the target ---------------------------------------------------------------------------------------------------

    def _tried(self, mirror: Mirror, aims: Sequence[Aim], floor: int, *, dry_run: bool) -> Iterator[ReplayResult]:
        """Write; in a dry run say what writing would do, by the limits of the target and what it holds."""
        held = self._held(mirror, [aim.key for aim in aims if aim.key is not None and (dry_run or aim.error)])
        todo: list[tuple[Aim, Write]] = []
        for aim in aims:
            item = None if aim.key is None else held.get(aim.key)
            if aim.version < floor or (item is not None and item.version >= aim.version):
                yield ReplayResult(aim.stored, "superseded", looks=self._look(aim, item, stands=True))
            elif aim.error is not None:
                yield ReplayResult(aim.stored, "refused", aim.error, self._look(aim, item, aim.error))
            elif aim.write is None:
                yield ReplayResult(aim.stored, "deleted", looks=self._look(aim, item))
            else:
                todo.append((aim, aim.write))
        if dry_run:
            answers = [Result(Outcome.APPLIED, self.target.check(write)) for _, write in todo]
        else:
            if todo:
                self.check(mirror.table)
            with failpoint("replay.write"):
                answers = self.target.write([write for _, write in todo]) if todo else []
        for (aim, write), answer in zip(todo, answers, strict=True):
            looks = self._look(aim, None if aim.key is None else held.get(aim.key), answer.error)
            if answer.error is not None:
                yield ReplayResult(aim.stored, "refused", answer.error, looks)
            elif answer.outcome is Outcome.STALE:
                yield ReplayResult(aim.stored, "superseded")
            else:
                yield ReplayResult(aim.stored, "deleted" if isinstance(write, Delete) else "applied", looks=looks)

    def _look(
        self, aim: Aim, item: Item | None, error: RowRefused | None = None, *, stands: bool = False
    ) -> tuple[Look, ...]:
        return (Look(aim.key, aim.write, item, stands, error),) if self._looking else ()

    def _keys(self, mirror: Mirror, group: Sequence[StoredDeadLetter]) -> dict[int, list[Key]]:
        """The item keys of dead letters by their id, of those where they can be known and be keys."""
        if self.reader is None:
            aims = {stored.id: aims_of_event(mirror, stored, self.decode) or [] for stored in group}
            return {id_: [one.key for one in some if one.key is not None] for id_, some in aims.items()}
        try:
            relation = self.reader.relation(mirror.table)
        except TableGone:
            return {}
        found = {}
        for stored in _by_key(group, mirror.spec.key)[0]:
            keys = aimed_keys(mirror, relation, stored.letter)
            if all(key is not None for _, _, key in keys):
                found[stored.id] = [key for _, _, key in keys if key is not None]
        return found

    def _held(self, mirror: Mirror, keys: Sequence[Key] | set[Key]) -> dict[Key, Item]:
        asked = list(dict.fromkeys(keys))
        items = self.target.read(mirror.collection, asked) if asked else []
        return {key: item for key, item in zip(asked, items, strict=True) if item is not None}

    def _floor(self, mirror: Mirror) -> int:
        return 0 if self.ledger is None else self.ledger.floor(mirror.table)

    # -- the dead letters ---------------------------------------------------------------------------------------------

    def _settle(self, results: Sequence[ReplayResult]) -> None:
        """What is refused again is kept with the cause of this time: what ails the row may have changed. Kept first,
        then removed: a store that has one for each key knows that it failed again, and one that has each apart gets rid
        of the former."""
        again = [
            replace(
                DeadLetter.of(letter.table, letter.key, letter.version, letter.op, result.error),
                payload=letter.payload,
                old_key=letter.old_key,
            )
            for result in results
            if (letter := result.stored.letter) and result.error is not None
        ]
        if again:
            self.dead_letters.add(again)
        over = [result.stored for result in results if result.outcome in SETTLED or result.error is not None]
        if over:
            self.dead_letters.remove(over, {result.stored.id: result.outcome for result in results})

    def _note(self, done: Sequence[ReplayResult], results: list[ReplayResult]) -> None:
        results.extend(done)
        for result in done:
            self.on_result(result)


def _transaction(letter: DeadLetter) -> int | None:
    """The 64-bit id of the transaction that sent the change as an event."""
    text = str((letter.payload or {}).get("transaction") or "")
    return int(text) if text.isdigit() else None


def _subtransactions(letter: DeadLetter) -> set[int]:
    """Those that recorded the change, if they did: they may have been rolled back, although the transaction was not."""
    changes = [
        one for one in (letter.payload or {}).get("changes", ()) if str(one.get("version")) == str(letter.version)
    ]
    return {int(one["subtransaction"]) for one in changes if str(one.get("subtransaction", "")).isdigit()}


def _by_table(letters: Sequence[StoredDeadLetter]) -> list[list[StoredDeadLetter]]:
    by_table: dict[str, list[StoredDeadLetter]] = {}
    for stored in letters:
        by_table.setdefault(stored.letter.table, []).append(stored)
    return list(by_table.values())


def _by_key(
    group: Sequence[StoredDeadLetter], key: Sequence[str]
) -> tuple[list[StoredDeadLetter], list[StoredDeadLetter]]:
    """The row changes among them, and of these those that were mirrored by another key."""
    rows = [stored for stored in group if stored.letter.op is not Op.TRUNCATE]
    ours = [stored for stored in rows if stored.letter.key.keys() == set(key)]
    return ours, [stored for stored in rows if stored.letter.key.keys() != set(key)]


def _batches(group: Sequence[StoredDeadLetter], size: int) -> Iterator[list[StoredDeadLetter]]:
    """Those of one key in one batch."""
    by_key: dict[tuple[tuple[str, str], ...], list[StoredDeadLetter]] = {}
    for stored in group:
        by_key.setdefault(tuple(sorted(stored.letter.key.items())), []).append(stored)
    keys = list(by_key.values())
    for start in range(0, len(keys), size):
        yield [stored for of_one in keys[start : start + size] for stored in of_one]


def _of_all(results: Sequence[ReplayResult]) -> ReplayResult:
    """Of the outcomes for several keys of one dead letter the one that matters most."""
    order = ("refused", "applied", "deleted", "superseded")
    worst = min(results, key=lambda result: order.index(result.outcome))
    return replace(worst, looks=tuple(look for result in results for look in result.looks))

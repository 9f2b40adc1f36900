"""Who writes the rows: several sessions, with documents, some of which cannot be stored."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from .checks import can_be_stored
from .scheduler import Scheduler
from .source import TABLES, Place, Source, Transaction, Values
from .weather import Weather

__all__ = ["Application"]

_DOCUMENTS = (
    "<order no='{n}'><line>a {n}</line><line>b</line></order>",
    "<order><customer id='{n}'>x</customer><note/></order>",
    "<o>{n}</o>",
)
_BAD = ("<order no='{n}'>", "<a>" * 40 + "{n}" + "</a>" * 40, "<order>&of{n};</order>")


class Application:
    """Sessions that write until their transactions are used up, then mend what cannot be stored, or most of it."""

    def __init__(self, source: Source, scheduler: Scheduler, weather: Weather, say: Callable[[str], None]) -> None:
        self._source = source
        self._scheduler = scheduler
        self._weather = weather
        self._say = say
        self._values = 0
        self._left = weather.transactions
        self._busy = weather.writers
        self.has_ended = False

    @property
    def _random(self) -> Random:
        return self._scheduler.random

    def begin(self) -> None:
        """Rows that are there before docferry, and the sessions."""
        places = [Place(table, key) for table, keys in TABLES.items() for key in keys]
        for place in self._random.sample(places, self._weather.rows_before):
            values = self._source.current[place] = self._source.visible[place] = self._some()
            self._source.states[place].append(((0, 0), values))
        for _ in range(self._weather.writers):
            self._soon(self._begin)

    def _some(self, before: Values | None = None, *, bad: bool | None = None) -> Values:
        self._values += 1
        name = f"name {self._values}".encode()
        if before is not None and self._random.random() < self._weather.keeps_document:
            return Values(name, before.doc)
        if bad is None:
            bad = self._random.random() < self._weather.bad_documents
        return Values(name, self._random.choice(_BAD if bad else _DOCUMENTS).format(n=self._values).encode())

    def _soon(self, call: Callable[[], None]) -> None:
        self._scheduler.at(self._random.random() * self._weather.pace, call)

    def _begin(self) -> None:
        if not self._left:
            self._busy -= 1
            if not self._busy:
                self._mend()
            return
        self._left -= 1
        self._go_on(self._source.begin(), self._random.randint(1, 4), 20)

    def _go_on(self, transaction: Transaction, statements: int, patience: int) -> None:
        if transaction not in self._source.open:
            self._say(f"{transaction.number} was lost")
            self._soon(self._begin)
        elif not patience:
            self._say(f"{transaction.number} waits for too long")
            self._source.roll_back(transaction)
            self._soon(self._begin)
        elif statements:
            went = self._statement(transaction)
            self._soon(lambda: self._go_on(transaction, statements - went, patience - (not went)))
        else:
            self._end(transaction)
            self._soon(self._begin)

    def _end(self, transaction: Transaction) -> None:
        if self._random.random() < self._weather.rolls_back:
            self._say(f"{transaction.number} rolls back")
            self._source.roll_back(transaction)
            return
        self._source.commit(transaction, self._scheduler.date())
        self._say(f"{transaction.number} commits at {self._source.log[-1].position}")

        def appears() -> None:
            if transaction in self._source.open:
                self._say(f"{transaction.number} is visible")
                self._source.appear(transaction)

        hidden = self._random.uniform(0.0, self._weather.hidden_for)
        self._scheduler.at(hidden if self._random.random() < 0.5 else 0.0, appears)

    def _statement(self, transaction: Transaction) -> bool:
        """Run one; False if it has to wait."""
        source, random = self._source, self._random
        table = random.choice(list(TABLES))
        if random.random() < self._weather.truncates:
            if source.may_truncate(transaction, table):
                self._say(f"{transaction.number} TRUNCATE {table}")
                source.truncate(transaction, table)
                return True
            return False
        place, to = (Place(table, random.choice(TABLES[table])) for _ in range(2))
        moves = random.random() < 0.2 and to not in source.current
        if not source.may_touch(transaction, place, *([to] if moves else [])):
            return False
        before = source.current.get(place)
        if before is None:
            source.insert(transaction, place, self._some())
        elif random.random() < 0.3 and not moves:
            source.delete(transaction, place)
        else:
            source.update(transaction, place, to if moves else place, self._some(before))
        done = transaction.statements[-1]
        self._say(f"{transaction.number} {done.op} {done.place} {done.row} from {done.left}")
        return True

    def _mend(self) -> None:
        """The last thing that the application does."""
        self._say("mends its documents")
        for place, values in sorted(self._source.current.items()):
            transaction = self._source.begin()
            if not can_be_stored(values) and self._random.random() < 0.7:
                if not self._source.may_touch(transaction, place):
                    self._source.roll_back(transaction)
                    self._soon(self._mend)
                    return
                self._source.update(transaction, place, place, self._some(bad=False))
            self._source.commit(transaction, self._scheduler.date())
            self._source.appear(transaction)
        self.has_ended = True

"""Rows waiting for an engine, of all requests together: who goes next, and with whom.

Requests share the engine by tokens (weighted fair queueing; Demers, Keshav and Shenker): virtual time advances by the
tokens served divided by the requests waiting, and what has the lowest finish tag goes next, the virtual time at which it
would be done if all requests were served side by side. A request is tagged in turns of `TURN` tokens. So a single query
that comes after a bulk request of thousands goes with the next batch or two, bulk requests share the engine, none waits
for ever; and requests of a usual size are done one after the other, none of them later than side by side and most sooner.

A batch is the row with the lowest tag and rows of similar length: rows wait in one heap per length class, and the
classes nearest to the first row's are asked in turn until the budget is used or padding would waste too much.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from bei.runtime.batching import Budget
from bei.runtime.executor import Row

CLASSES_PER_DOUBLING = 4

TURN = 4096
"""Tokens of one request that are served together: a request of 32 texts or so, a fraction of a second on two cores."""

MAX_SHARES = 8
"""A request's share never sinks below one in this many, however many wait: later ones then queue behind it."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One request in the queue. ``waiting`` counts its rows there; a dropped ticket's rows are never served."""

    waiting: int = 0
    tokens: int = 0
    dropped: bool = False


class Entry(NamedTuple):
    """A waiting row; ordered by its finish tag, then by arrival (which decides, being unique)."""

    finish: float
    arrival: int
    length: int
    ticket: Ticket
    place: int
    row: Row


class FairQueue:
    """Not thread-safe: it belongs to the event loop."""

    def __init__(self) -> None:
        self.tokens = 0
        """Tokens waiting, of tickets not dropped."""
        self._classes: dict[int, list[Entry]] = {}
        self._tickets: set[Ticket] = set()
        self._virtual = 0.0
        self._arrivals = 0
        self._entries = 0
        self._dead = 0

    def push(self, ticket: Ticket, rows: Sequence[Row]) -> None:
        """Add a request's rows; they come out as entries whose ``place`` is the row's index in ``rows``."""
        ticket.tokens = sum(len(row.ids) for row in rows)
        done = 0
        for index in sorted(range(len(rows)), key=lambda i: -len(rows[i].ids)):
            length = len(rows[index].ids)
            done += length
            finish = self._virtual + min(ticket.tokens, -(-done // TURN) * TURN)
            self._arrivals += 1
            heap = self._classes.setdefault(_length_class(length), [])
            heappush(heap, Entry(finish, self._arrivals, length, ticket, index, rows[index]))
        ticket.waiting = len(rows)
        self.tokens += ticket.tokens
        self._entries += len(rows)
        self._tickets.add(ticket)

    def drop(self, ticket: Ticket) -> None:
        """Forget a request's waiting rows."""
        if ticket.dropped:
            return
        ticket.dropped = True
        self.tokens -= ticket.tokens
        self._dead += ticket.waiting
        self._tickets.discard(ticket)
        if self._dead > self._entries // 2:
            self._sweep()

    def take(self, budget: Budget) -> list[Entry]:
        """The next batch, empty when nothing waits."""
        first = min((heap[0] for heap in self._live_heaps()), default=None)
        if first is None:
            return []
        shares = min(MAX_SHARES, len(self._tickets))
        batch = [self._pop(self._classes[_length_class(first.length)])]
        longest = tokens = first.length
        for heap in self._nearest(first.length):
            while heap:
                longest_then, tokens_then = max(longest, heap[0].length), tokens + heap[0].length
                size = len(batch) + 1
                if not budget.fits(size, longest_then, tokens_then):
                    break
                if budget.wastes(size, longest_then, tokens_then):
                    break
                batch.append(self._pop(heap))
                longest, tokens = longest_then, tokens_then
        self._virtual += tokens / shares
        return batch

    def __len__(self) -> int:
        return self._entries - self._dead

    def _nearest(self, length: int) -> list[list[Entry]]:
        """Heaps by distance from a length's class, shorter rows before longer ones."""
        home = _length_class(length)
        keys = sorted(self._classes, key=lambda key: (abs(key - home), key))
        return [self._classes[key] for key in keys]

    def _live_heaps(self) -> Iterator[list[Entry]]:
        for key in list(self._classes):
            heap = self._classes[key]
            self._bury(heap)
            if heap:
                yield heap
            else:
                del self._classes[key]

    def _bury(self, heap: list[Entry]) -> None:
        """Take dropped entries off the top."""
        while heap and heap[0].ticket.dropped:
            heappop(heap)
            self._entries -= 1
            self._dead -= 1

    def _pop(self, heap: list[Entry]) -> Entry:
        """The top entry, and no dropped one left on top."""
        entry = heappop(heap)
        self._bury(heap)
        self._entries -= 1
        self.tokens -= entry.length
        entry.ticket.tokens -= entry.length
        entry.ticket.waiting -= 1
        if not entry.ticket.waiting:
            self._tickets.discard(entry.ticket)
        return entry

    def _sweep(self) -> None:
        """Let go of every dropped entry at once."""
        for heap in self._classes.values():
            heap[:] = [entry for entry in heap if not entry.ticket.dropped]
            heapify(heap)
        self._entries -= self._dead
        self._dead = 0


def _length_class(length: int) -> int:
    return int(math.log2(length) * CLASSES_PER_DOUBLING)

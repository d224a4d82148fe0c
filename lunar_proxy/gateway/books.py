"""What is written down of calls that are over: a ledger row, the metrics, a line in the log.

None of it is awaited by anyone, so it is done for many calls at once. The code that does it is
then in the processor's caches for all of them but the first, which makes it some three times
cheaper than after each call, in between other work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from lunar_proxy.core.model import Outcome
from lunar_proxy.metrics import Metrics
from lunar_proxy.stores import Store, entries

# An outcome and when it was one, in seconds since 1970.
Closed = tuple[Outcome, float]

# How long a call may wait to be written down, how many may wait, and how many bytes of their
# bodies, which are held so long.
LONGEST_S = 0.05
MOST = 64
MOST_BYTES = 1024 * 1024


class Books:
    """Outcomes on their way to the ledger, the metrics and the log.

    Whoever reads one of these calls `enter` first, and so does whoever stops.
    """

    def __init__(
        self,
        store: Store,
        metrics: Metrics,
        log: Callable[[Sequence[Closed]], None],
        wall: Callable[[], float],
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._log = log
        self._wall = wall
        self._closed: list[Closed] = []
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, outcome: Outcome) -> None:
        self._closed.append((outcome, self._wall()))
        self._bytes += len(outcome.call.body)
        if len(self._closed) >= MOST or self._bytes >= MOST_BYTES:
            self.enter()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LONGEST_S, self.enter)

    def enter(self) -> None:
        """Write down what has not been."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        closed, self._closed, self._bytes = self._closed, [], 0
        if not closed:
            return
        if rows := entries(closed):
            self._store.add(rows)
        observe = self._metrics.observe
        for outcome, _ in closed:
            observe(outcome)
        self._log(closed)

"""One clock tick for every answer that is awaited.

Each answer has four time limits, and most end long before any of them. A timer for each would be
made and cancelled for nothing, thousands of times a second; here a set is walked ten times a
second instead, and only while there is something in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

# How late a limit may be noticed. A walk over 2,000 answers takes about half a millisecond.
TICK_S = 0.1


class Watched(Protocol):
    def tick(self, now: float) -> None:
        """`now` is in monotonic seconds; may fail, finish or leave the watch."""
        ...


class Watch:
    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._watched: set[Watched] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._watched)

    def add(self, watched: Watched) -> None:
        self._watched.add(watched)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def discard(self, watched: Watched) -> None:
        self._watched.discard(watched)

    def _tick(self) -> None:
        self._timer = None
        now = self._now()
        for watched in tuple(self._watched):
            watched.tick(now)
        if self._watched:
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

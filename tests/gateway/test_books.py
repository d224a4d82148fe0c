"""What is written down of calls that are over, and when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import pytest

from lunar_proxy.core.model import Usage
from lunar_proxy.core.pricing import Price, cost
from lunar_proxy.gateway.books import MOST, MOST_BYTES, Books, Closed
from lunar_proxy.metrics import Metrics
from lunar_proxy.stores import entries
from lunar_proxy.stores.base import HOUR_S
from lunar_proxy.stores.memory import MemoryStore
from lunar_proxy.testing import call, outcome

NOON = 1_800_000_000.0


class Desk:
    """Books over a real store and real metrics, and a log that is kept."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.metrics = Metrics(known=lambda _: True)
        self.lines: list[Closed] = []
        self.now = NOON
        self.books = Books(self.store, self.metrics, self.log, lambda: self.now)

    def log(self, closed: Sequence[Closed]) -> None:
        self.lines += closed

    @property
    def counted(self) -> int:
        rows: list[Any] = self.metrics.snapshot()["lunar_requests_total"]
        return sum(number for _, number in rows)

    async def spent(self) -> int:
        return sum(spend.requests for spend in await self.store.query(0, "key"))


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.books.enter()  # leaves no timer behind


async def test_whoever_asks_finds_all_of_it(desk: Desk) -> None:
    desk.books.add(outcome())
    desk.now += 7
    desk.books.add(outcome(status=502))
    assert (desk.counted, desk.lines) == (0, [])
    desk.books.enter()
    assert (desk.counted, await desk.spent()) == (2, 2)
    assert [(line.status, at - NOON) for line, at in desk.lines] == [(200, 0), (502, 7)]
    desk.books.enter()
    assert (desk.counted, len(desk.lines)) == (2, 2)


async def test_not_many_are_kept_waiting(desk: Desk) -> None:
    for _ in range(MOST + 1):
        desk.books.add(outcome())
    assert (desk.counted, await desk.spent(), len(desk.lines)) == (MOST,) * 3


async def test_not_much_is_held_while_it_waits(desk: Desk) -> None:
    desk.books.add(outcome(call=call(body=bytes(MOST_BYTES - 1))))
    assert desk.counted == 0
    desk.books.add(outcome(call=call(body=b"{}")))
    assert desk.counted == 2
    desk.books.add(outcome(call=call(body=b"{}")))
    assert desk.counted == 2


async def test_a_call_that_reached_nobody_has_no_row_in_the_ledger(desk: Desk) -> None:
    desk.books.add(outcome(target=None, status=404))
    desk.books.enter()
    assert (desk.counted, await desk.spent(), len(desk.lines)) == (1, 0, 1)


async def test_calls_of_one_place_and_hour_are_one_row(desk: Desk) -> None:
    price = Price(input=Decimal("0.15"), output=Decimal("0.6"))
    usages = [Usage(n, 2 * n, n // 2) for n in range(1, 9)]
    costs = [cost(usage, price) for usage in usages]
    happened = [outcome(usage=u, cost=c) for u, c in zip(usages, costs, strict=True)]
    one, other = entries(
        [(each, NOON) for each in happened] + [(outcome(priced=False), NOON + HOUR_S)]
    )
    assert one[4:] == (8, 36, 72, 16, sum(c.total for c in costs if c), 0)
    assert other.place == (one.hour + HOUR_S, *one.place[1:])
    assert other.amounts == (1, 0, 0, 0, 0, 1)

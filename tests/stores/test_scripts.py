"""The limits in Lua against the limits in Python: any history, the same states."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal
from secrets import token_hex

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lunar_proxy.core.limits import Ask, Budget, Limits, Per, Verdict
from lunar_proxy.core.money import UNITS_PER_USD
from lunar_proxy.stores.base import Reservation
from lunar_proxy.stores.memory import MemoryLimits
from lunar_proxy.stores.redis import RedisStore

from .backends import T0, Clock, RedisServer


@pytest.fixture
async def store(shared_redis: RedisServer) -> AsyncIterator[RedisStore]:
    shared_redis.empty()
    store = RedisStore(shared_redis.url, Clock(), own_time=True, deadline_s=5, lease_s=1e9)
    await store.start()
    assert store.degraded is None
    yield store
    await store.close()


async def decided(store: RedisStore, reservation: Reservation, now: float) -> Verdict:
    answer = store.take(reservation, now)
    assert not isinstance(answer, Verdict), "it was decided here, not there"
    return await answer


optional = st.none() | st.integers(1, 400)
budgets = st.builds(
    lambda units, per: Budget(Decimal(units) / 10**10, per),
    st.integers(0, 3000),
    st.sampled_from(["hour", "day", "month", "total"]),
)
calls = st.tuples(
    st.sampled_from([0.0, 0.001, 0.5, 7.0, 59.9, 4000.0, 90_000.0, 2_700_000.0]),
    st.sampled_from(["take", "take", "settle"]),
    st.integers(0, 300),
    st.integers(0, 900),
)


@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    limits=st.builds(Limits, optional, optional, st.none() | st.integers(1, 4), budgets),
    history=st.lists(calls, max_size=25),
)
async def test_lua_and_python_decide_alike(
    store: RedisStore, limits: Limits, history: list[tuple[float, str, int, int]]
) -> None:
    here, now, subject = MemoryLimits(), T0, token_hex(8)  # no example meets another's state
    held: list[tuple[Reservation, Reservation]] = []
    for gap, what, tokens, units in history:
        now += gap
        if what == "take":
            mine, theirs = (Reservation(subject, limits, Ask.of(tokens, units)) for _ in range(2))
            assert await decided(store, theirs, now) == here.take(mine, now)
            held += [(mine, theirs)] * mine.held
        elif held:
            mine, theirs = held.pop()
            here.settle(mine, tokens, units, now)
            store.settle(theirs, tokens, units, now)


@pytest.mark.parametrize("per", ["hour", "day", "month", "total"])
async def test_windows_are_the_same_at_every_edge(store: RedisStore, per: Per) -> None:
    limits = Limits(budget=Budget(Decimal(1), per))
    for month in range(60):
        for offset in (-1, 0):
            now = float(_first_of(month) + offset)
            here = MemoryLimits()
            mine, theirs = (Reservation(f"{per}{now}", limits) for _ in range(2))
            here.take(mine, now)
            await decided(store, theirs, now)
            here.settle(mine, 0, UNITS_PER_USD, now)
            store.settle(theirs, 0, UNITS_PER_USD, now)
            again = Reservation(theirs.subject, limits)
            assert await decided(store, again, now) == here.take(again, now)


def _first_of(month: int) -> int:
    return int(datetime(2027 + month // 12, month % 12 + 1, 1, tzinfo=UTC).timestamp())

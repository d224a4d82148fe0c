"""What every store keeps to, whichever it is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from lunar_proxy.core.limits import MAX_UNITS, Ask, Budget, Limits, Verdict
from lunar_proxy.core.model import Cost
from lunar_proxy.core.money import UNITS_PER_USD
from lunar_proxy.stores import scripts
from lunar_proxy.stores.base import Entry, KeyRecord, Reservation, Store, entries
from lunar_proxy.stores.redis import _KEYS
from lunar_proxy.stores.sqlite import SqliteStore
from lunar_proxy.testing import outcome

from .backends import T0, Clock

Open = Callable[..., Awaitable[Store]]

RECORD = KeyRecord(
    id="key_1",
    name="team-a",
    digest="d" * 64,
    prefix="pk_live_aaaa",
    models=("openai/*", "auto"),
    limits=Limits(60, 1000, 4, Budget(Decimal("0.05"), "day")),
    created_at=T0,
    expires_at=T0 + 90 * 86_400,
)


async def ask(store: Store, reservation: Reservation, now: float) -> Verdict:
    answer = store.take(reservation, now)
    return answer if isinstance(answer, Verdict) else await answer


async def eventually(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not happened():  # noqa: ASYNC110 - another replica polls, there is no event
            await asyncio.sleep(0.01)


# --- keys -------------------------------------------------------------------------------------


async def test_a_saved_key_is_found_as_it_was(open_replica: Open) -> None:
    store = await open_replica()
    await store.save(RECORD)
    assert store.find(RECORD.digest, T0) == RECORD
    assert store.find("e" * 64, T0) is None


async def test_a_rotated_key_is_found_by_both_digests_and_no_third(open_replica: Open) -> None:
    store = await open_replica()
    await store.save(RECORD)
    second = replace(RECORD, digest="e" * 64, old_digest=RECORD.digest, old_until=T0 + 10)
    await store.save(second)
    assert store.find("d" * 64, T0) == store.find("e" * 64, T0) == second
    third = replace(second, digest="f" * 64, old_digest="e" * 64)
    await store.save(third)
    assert store.find("d" * 64, T0) is None
    assert store.find("f" * 64, T0) == third


async def test_the_time_of_last_use_is_told(open_replica: Open) -> None:
    store = await open_replica()
    await store.save(RECORD)
    assert [key.last_used_at for key in await store.keys()] == [None]
    store.find(RECORD.digest, T0 + 7.5)
    assert [key.last_used_at for key in await store.keys()] == [T0 + 7.5]


@pytest.mark.parametrize("backend", ["sqlite", "redis"], indirect=True)
async def test_another_replica_sees_a_key_made_and_revoked(open_replica: Open) -> None:
    one, two = await open_replica(tick_s=0.01), await open_replica(tick_s=0.01)
    await one.save(RECORD)
    await eventually(lambda: two.find(RECORD.digest, T0) == RECORD)
    revoked = replace(RECORD, revoked_at=T0)
    await one.save(revoked)
    await eventually(lambda: two.find(RECORD.digest, T0) == revoked)


@pytest.mark.parametrize("backend", ["sqlite", "redis"], indirect=True)
async def test_keys_are_there_after_a_restart(open_replica: Open) -> None:
    await (await open_replica()).save(RECORD)
    assert (await open_replica()).find(RECORD.digest, T0) == RECORD


@pytest.mark.parametrize("backend", ["sqlite", "redis"], indirect=True)
@pytest.mark.parametrize("spoilt", [b"{", b"[]", b'{"id": "key_0"}', b'{"limits": 7}'])
async def test_one_record_that_cannot_be_read_hides_no_other(
    open_replica: Open, spoilt: bytes
) -> None:
    """It may be from a later version, or half a restored backup: revocations must come through."""
    one, two = await open_replica(tick_s=0.01), await open_replica(tick_s=0.01)
    await save_as(spoilt, one)
    await one.save(RECORD)
    await eventually(lambda: two.find(RECORD.digest, T0) == RECORD)
    await one.save(replace(RECORD, revoked_at=T0))
    await eventually(lambda: getattr(two.find(RECORD.digest, T0), "revoked_at", None) == T0)
    assert [key.id for key in await one.keys()] == ["key_1"]
    assert two.degraded is None
    assert (await open_replica()).find(RECORD.digest, T0) is not None


async def save_as(data: bytes, store: Any) -> None:
    """Put a record in the store that is not one of ours."""
    record = replace(RECORD, id="key_0")
    if isinstance(store, SqliteStore):
        sql = "INSERT INTO keys (id, version, record) VALUES (?, 1, ?)"
        await store._ask(lambda db: db.execute(sql, (record.id, data.decode())))
    else:
        await store._pipe.run(scripts.SAVE_KEY, _KEYS, record.id, data)


# --- limits -----------------------------------------------------------------------------------


async def test_requests_burst_and_refill(open_replica: Open, clock: Clock) -> None:
    store = await open_replica()
    limits = Limits(requests_per_minute=3)
    verdicts = [await ask(store, Reservation("s", limits), clock()) for _ in range(4)]
    assert [verdict.allowed for verdict in verdicts] == [True, True, True, False]
    assert verdicts[3].blocked is not None
    assert verdicts[3].blocked.retry_after_s == 20.0
    assert (await ask(store, Reservation("s", limits), clock.advance(20))).allowed
    assert (await ask(store, Reservation("another", limits), clock())).allowed


async def test_a_slot_comes_back_once_however_often_it_is_settled(
    open_replica: Open, clock: Clock
) -> None:
    store = await open_replica()
    limits = Limits(concurrent_requests=2)
    first, second, third = (Reservation("s", limits) for _ in range(3))
    assert (await ask(store, first, clock())).allowed
    assert (await ask(store, second, clock())).allowed
    refused = await ask(store, third, clock())
    assert refused.blocked is not None
    assert refused.blocked.limit == "concurrent"
    for reservation in (third, first, first):
        store.settle(reservation, 0, None, clock())
    allowed = [(await ask(store, Reservation("s", limits), clock())).allowed for _ in range(2)]
    assert allowed == [True, False]


async def test_tokens_are_held_and_settled(open_replica: Open, clock: Clock) -> None:
    store = await open_replica()
    limits = Limits(tokens_per_minute=1000)
    reservation = Reservation("s", limits, Ask(tokens=900))
    held = await ask(store, reservation, clock())
    assert held.tokens is not None
    assert held.tokens.remaining == 100
    assert not (await ask(store, Reservation("s", limits, Ask(tokens=101)), clock())).allowed
    store.settle(reservation, 250, None, clock())
    settled = await ask(store, Reservation("s", limits, Ask(tokens=101)), clock())
    assert settled.tokens is not None
    assert settled.tokens.remaining == 1000 - 250 - 101


async def test_a_budget_is_spent_exactly_and_comes_back(open_replica: Open, clock: Clock) -> None:
    store = await open_replica()
    limits = Limits(budget=Budget(Decimal("0.0000000003"), "hour"))
    for _ in range(3):
        reservation = Reservation("s", limits)
        assert (await ask(store, reservation, clock())).allowed
        store.settle(reservation, 0, 1, clock())
    refused = await ask(store, Reservation("s", limits), clock())
    assert refused.blocked is not None
    assert refused.blocked.limit == "budget"
    assert refused.blocked.retry_after_s == 3600 - T0 % 3600
    assert (await ask(store, Reservation("s", limits), clock.advance(3600))).allowed


async def test_no_limits_need_no_state(open_replica: Open) -> None:
    store = await open_replica()
    reservation = Reservation("s", Limits())
    assert isinstance(store.take(reservation, T0), Verdict)
    store.settle(reservation, 10, UNITS_PER_USD, T0)


async def test_a_caller_that_went_away_while_asking_holds_nothing(
    open_replica: Open, clock: Clock
) -> None:
    store = await open_replica()
    limits = Limits(concurrent_requests=1)
    gone = asyncio.ensure_future(ask(store, reservation := Reservation("s", limits), clock()))
    await asyncio.sleep(0)  # it is on its way
    gone.cancel()
    await asyncio.wait([gone])
    store.settle(reservation, 0, None, clock())
    assert (await ask(store, Reservation("s", limits), clock())).allowed


@pytest.mark.parametrize("backend", ["sqlite", "redis"], indirect=True)
async def test_replicas_share_every_limit_exactly(open_replica: Open, clock: Clock) -> None:
    replicas = [await open_replica() for _ in range(3)]
    limits = Limits(100, 5000, 40, Budget(Decimal(1), "month"))
    asks = [Reservation("s", limits, Ask.of(100, UNITS_PER_USD // 1000)) for _ in range(150)]

    async def call(n: int) -> bool:
        return (await ask(replicas[n % 3], asks[n], clock())).allowed

    assert sum(await asyncio.gather(*(call(n) for n in range(150)))) == 40  # slots
    for n, reservation in enumerate(asks):
        replicas[n % 3].settle(reservation, 100, UNITS_PER_USD // 1000, clock())
    for store in replicas:  # each sees its own settles, all of them those of all
        await ask(store, Reservation("another", limits), clock())
    asks = [Reservation("s", limits, Ask.of(100, UNITS_PER_USD // 1000)) for _ in range(150)]
    assert sum(await asyncio.gather(*(call(n) for n in range(150)))) == 10  # tokens: 50 in all


@pytest.mark.parametrize("backend", ["sqlite", "redis"], indirect=True)
async def test_slots_of_a_crashed_replica_run_out_and_of_a_living_one_do_not(
    open_replica: Open, clock: Clock
) -> None:
    crashed = await open_replica(tick_s=1e6)  # it renews nothing any more
    living = await open_replica(tick_s=0.01)
    limits = Limits(concurrent_requests=2)
    assert (await ask(crashed, Reservation("s", limits), clock())).allowed
    assert (await ask(living, Reservation("s", limits), clock())).allowed
    assert not (await ask(living, Reservation("s", limits), clock.advance(15))).allowed
    await asyncio.sleep(0.2)  # several ticks, in which it renews
    clock.advance(16)  # past what the crashed one had, and not what was renewed
    allowed = [(await ask(living, Reservation("s", limits), clock())).allowed for _ in range(2)]
    assert allowed == [True, False]


@pytest.mark.parametrize("backend", ["sqlite", "redis"], indirect=True)
async def test_a_spent_budget_survives_a_restart(open_replica: Open, clock: Clock) -> None:
    limits = Limits(budget=Budget(Decimal(1), "total"))
    first = await open_replica()
    reservation = Reservation("s", limits)
    await ask(first, reservation, clock())
    first.settle(reservation, 0, UNITS_PER_USD, clock())
    await first.close()
    second = await open_replica()
    assert not (await ask(second, Reservation("s", limits), clock.advance(9e8))).allowed


# --- ledger -----------------------------------------------------------------------------------

HOUR = int(T0) // 3600 * 3600


async def test_the_ledger_adds_up_by_key_model_and_provider(open_replica: Open) -> None:
    store = await open_replica()
    store.add([Entry(HOUR, "a", "openai", "gpt-4o", 1, 10, 5, 2, 123_456_789)])
    store.add([Entry(HOUR, "a", "openai", "gpt-4o", 1, 20, 5, 0, 1)])
    store.add([Entry(HOUR, "b", "azure", "gpt-4o", 1, 7, 7, 0, 0, unpriced=1)])
    store.add([Entry(HOUR - 3600, "b", "groq", "llama", 1, 1, 1, 0, 10**10)])
    by_key = await store.query(T0, "key")
    assert [(s.name, s.requests, s.cost, s.unpriced) for s in by_key] == [
        ("a", 2, 123_456_790, 0),
        ("b", 1, 0, 1),
    ]
    assert by_key[0].usd == Decimal("0.0123456790")
    by_model = await store.query(T0 - 3600, "model")
    assert [(s.name, s.requests, s.input_tokens) for s in by_model] == [
        ("llama", 1, 1),
        ("gpt-4o", 3, 37),
    ]
    by_provider = await store.query(T0 - 3600, "provider")
    assert [s.name for s in by_provider] == ["groq", "openai", "azure"]


@pytest.mark.parametrize("backend", ["sqlite", "redis"], indirect=True)
async def test_replicas_write_to_one_ledger_and_close_loses_nothing(open_replica: Open) -> None:
    one, two, three = [await open_replica(tick_s=1e6) for _ in range(3)]
    for store in (one, two):
        for _ in range(100):
            store.add([Entry(HOUR, "a", "openai", "gpt-4o", 1, cost=3)])
        await store.close()
    (spend,) = await three.query(T0, "key")
    assert (spend.requests, spend.cost) == (200, 600)


@pytest.mark.parametrize("backend", ["sqlite", "redis"], indirect=True)
async def test_the_ledger_is_written_without_being_asked(open_replica: Open) -> None:
    one, two = await open_replica(tick_s=0.01), await open_replica()
    one.add([Entry(HOUR, "a", "openai", "gpt-4o", 1)])
    async with asyncio.timeout(5):
        while not await two.query(T0, "key"):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)


async def test_absurd_costs_hide_no_other_row(open_replica: Open) -> None:
    """A provider says what was used, and a config what that costs."""
    store = await open_replica()
    absurd = Cost(0, 10**19, 0, 10**19)
    store.add(entries([(outcome(cost=absurd), T0), (outcome(cost=absurd), T0)]))
    store.add([Entry(HOUR, "a", "openai", "gpt-4o", 1, cost=7)])
    rows = {row.name: row.cost for row in await store.query(T0, "key")}
    assert rows == {"anonymous": MAX_UNITS, "a": 7}
    assert store.degraded is None


async def test_absurd_numbers_are_refused_or_counted_and_never_fail(
    open_replica: Open, clock: Clock
) -> None:
    store = await open_replica()
    limits = Limits(requests_per_minute=10, budget=Budget(Decimal(5), "total"))
    reservation = Reservation("s", limits, Ask.of(10**30, 10**40))
    assert (await ask(store, reservation, clock())).allowed  # alone, and there is no token limit
    store.settle(reservation, 10**30, 10**40, clock())
    refused = await ask(store, Reservation("s", limits), clock())
    assert refused.blocked is not None
    assert refused.blocked.limit == "budget"

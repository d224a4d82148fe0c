"""What redis does to us, and what we make of it: slow, dead, empty, back again."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from decimal import Decimal

import pytest
import uvloop

from lunar_proxy.core.errors import StoreUnavailable
from lunar_proxy.core.limits import Ask, Budget, Limits, Verdict
from lunar_proxy.core.money import UNITS_PER_USD
from lunar_proxy.stores import scripts
from lunar_proxy.stores.base import Entry, KeyRecord, Reservation
from lunar_proxy.stores.pipe import _sha
from lunar_proxy.stores.redis import RedisStore

from .backends import T0, Clock, RedisServer

LIMITS = Limits(requests_per_minute=1000, concurrent_requests=100)
KEY = KeyRecord("key_1", "team-a", "d" * 64, "pk_live_aaaa")


async def ask(store: RedisStore, reservation: Reservation) -> Verdict:
    answer = store.take(reservation, T0)
    return answer if isinstance(answer, Verdict) else await answer


async def until(store: RedisStore, *, degraded: bool) -> None:
    async with asyncio.timeout(10):
        while (store.degraded is not None) is not degraded:  # noqa: ASYNC110 - it probes by itself
            await asyncio.sleep(0.01)


@pytest.fixture
async def store(redis_server: RedisServer, clock: Clock) -> AsyncIterator[RedisStore]:
    store = RedisStore(redis_server.url, clock, tick_s=0.02)
    await store.start()
    await until(store, degraded=False)
    yield store
    await store.close()


async def test_a_frozen_redis_costs_one_deadline_and_then_nothing(
    store: RedisStore, redis_server: RedisServer
) -> None:
    assert not (await ask(store, Reservation("s", LIMITS))).degraded
    redis_server.freeze()
    started = time.perf_counter()
    verdicts = await asyncio.gather(*(ask(store, Reservation("s", LIMITS)) for _ in range(50)))
    assert 0.03 < time.perf_counter() - started < 0.5  # 50 ms, and what a loaded machine adds
    assert all(verdict.allowed and verdict.degraded for verdict in verdicts)
    assert isinstance(store.take(Reservation("s", LIMITS), T0), Verdict)  # no waiting any more
    assert store.degraded == "redis does not answer in time"
    assert store.failures == 1
    redis_server.thaw()
    await until(store, degraded=False)
    assert not (await ask(store, Reservation("s", LIMITS))).degraded


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_loop_that_was_held_up_itself_does_not_blame_redis(
    redis_server: RedisServer, clock: Clock, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def held_up() -> None:
        store = RedisStore(redis_server.url, clock, tick_s=1e6, deadline_s=0.05)
        await store.start()
        asked = [asyncio.ensure_future(ask(store, Reservation("s", LIMITS))) for _ in range(5)]
        await asyncio.sleep(0)  # they are on their way
        await asyncio.sleep(0)
        time.sleep(0.1)  # noqa: ASYNC251 - as a long JSON document or the collector would
        assert not any(verdict.degraded for verdict in await asyncio.gather(*asked))
        await store.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(held_up())


async def test_a_killed_redis_fails_no_call_and_is_used_again_when_it_is_back(
    store: RedisStore, redis_server: RedisServer
) -> None:
    for n in range(300):
        if n == 100:
            redis_server.kill()
        if n == 200:
            redis_server.start()
            await until(store, degraded=False)
        reservation = Reservation("s", LIMITS)
        assert (await ask(store, reservation)).allowed
        store.settle(reservation, 1, None, T0)
    assert store.failures == 1


async def test_what_was_in_flight_when_it_died_leaks_no_slot(
    store: RedisStore, redis_server: RedisServer
) -> None:
    limits = Limits(concurrent_requests=3)
    before, during = Reservation("s", limits), Reservation("s", limits)
    await ask(store, before)
    redis_server.freeze()
    await ask(store, during)
    assert during.local
    store.settle(before, 0, None, T0)
    redis_server.thaw()
    await until(store, degraded=False)
    store.settle(during, 0, None, T0)
    allowed = [(await ask(store, Reservation("s", limits))).allowed for _ in range(4)]
    assert allowed == [True, True, True, False]


async def test_a_spent_budget_stays_spent_without_redis(
    store: RedisStore, redis_server: RedisServer
) -> None:
    limits = Limits(budget=Budget(Decimal(1), "total"))
    reservation = Reservation("s", limits)
    await ask(store, reservation)
    store.settle(reservation, 0, UNITS_PER_USD, T0)
    await ask(store, Reservation("s", limits))
    redis_server.kill()
    refused = await ask(store, Reservation("s", limits))
    assert refused.degraded
    assert not refused.allowed


async def test_what_was_spent_without_redis_is_charged_when_it_is_back(
    store: RedisStore, redis_server: RedisServer, clock: Clock
) -> None:
    limits = Limits(budget=Budget(Decimal(1), "total"))
    redis_server.freeze()
    reservation = Reservation("s", limits, Ask.of(units=UNITS_PER_USD // 10))
    assert (await ask(store, reservation)).degraded
    store.settle(reservation, 0, UNITS_PER_USD, T0)
    redis_server.thaw()
    await until(store, degraded=False)
    other = RedisStore(redis_server.url, clock, deadline_s=5)
    await other.start()
    refused = await ask(other, Reservation("s", limits))
    await other.close()
    assert refused.blocked is not None
    assert refused.blocked.limit == "budget"


async def test_lost_scripts_are_sent_again(store: RedisStore, redis_server: RedisServer) -> None:
    await ask(store, Reservation("s", LIMITS))
    _, writer = await asyncio.open_connection("127.0.0.1", redis_server.port)
    writer.write(b"SCRIPT FLUSH\r\n")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert not (await ask(store, Reservation("s", LIMITS))).degraded


async def test_rows_of_an_outage_are_added_once(
    store: RedisStore, redis_server: RedisServer
) -> None:
    hour = int(T0) // 3600 * 3600
    store.add([Entry(hour, "a", "openai", "m", 1, cost=1)])
    redis_server.freeze()
    for _ in range(10):
        store.add([Entry(hour, "a", "openai", "m", 1, cost=1)])
    await until(store, degraded=True)
    redis_server.thaw()
    await until(store, degraded=False)
    (spend,) = await store.query(T0, "key")
    assert (spend.requests, spend.cost) == (11, 11)


async def test_no_decision_waits_behind_a_look_at_the_ledger(
    redis_server: RedisServer, clock: Clock
) -> None:
    store = RedisStore(redis_server.url, clock, tick_s=1e6, deadline_s=5)
    await store.start()
    hour = int(T0) // 3600 * 3600
    hours = [hour - 3600 * n for n in range(50)]
    store.add(Entry(at, f"k{n}", "openai", "m", 1, cost=1) for at in hours for n in range(100))
    query = asyncio.ensure_future(store.query(hours[-1], "key"))
    # It is written first.
    while (store._ledger or store._batches) and not query.done():  # noqa: ASYNC110
        await asyncio.sleep(0)
    for _ in range(5):
        assert not (await ask(store, Reservation("s", LIMITS))).degraded
    assert not query.done()
    assert sum(spend.cost for spend in await query) == 5_000
    await store.close()


async def test_a_ledger_that_cannot_be_read_leaves_the_limits_shared(
    store: RedisStore, redis_server: RedisServer
) -> None:
    hour = int(T0) // 3600 * 3600
    await _command(redis_server, f"SET lunar:{{ledger}}:{hour} nonsense")
    await _command(redis_server, f"ZADD lunar:{{ledger}}:hours {hour} {hour}")
    with pytest.raises(StoreUnavailable):
        await store.query(T0, "key")
    assert store.degraded is None


async def test_a_redis_that_is_quick_only_when_it_is_probed_is_left_alone_for_longer_each_time(
    redis_server: RedisServer, clock: Clock
) -> None:
    async with slow_to_decide(redis_server) as url:
        store = RedisStore(url, clock, tick_s=0.01, deadline_s=0.02)
        await store.start()
        for _ in range(100):
            assert (await ask(store, Reservation("s", LIMITS))).allowed
            await asyncio.sleep(0.01)
        assert 2 <= store.failures <= 8  # of 100 calls
        await store.close()


@contextlib.asynccontextmanager
async def slow_to_decide(redis_server: RedisServer) -> AsyncIterator[str]:
    """In front of a Redis: a connection works until it carries a `take`, and then hangs."""
    relays: set[asyncio.Task[None]] = set()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        relays.add(task)
        with contextlib.suppress(asyncio.CancelledError):
            await _relay_until(f"EVALSHA\r\n$40\r\n{_sha(scripts.TAKE)}", reader, writer)
        writer.close()

    async def _relay_until(
        stop: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        answers, back = await asyncio.open_connection("127.0.0.1", redis_server.port)
        answering = asyncio.ensure_future(_pass_on(answers, writer))
        try:
            while (data := await reader.read(65536)) and stop.encode() not in data:
                back.write(data)
            while data:
                data = await reader.read(65536)
        finally:
            answering.cancel()
            back.close()

    server = await asyncio.start_server(relay, "127.0.0.1")
    yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    server.close()
    for task in relays:
        task.cancel()
    await asyncio.wait(relays)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)


async def _command(redis_server: RedisServer, line: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", redis_server.port)
    writer.write(line.encode() + b"\r\n")
    answer = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_keys_known_before_an_outage_stay_known(
    store: RedisStore, redis_server: RedisServer
) -> None:
    await store.save(KEY)
    redis_server.kill()
    await until(store, degraded=True)
    assert store.find(KEY.digest, T0) == KEY
    with pytest.raises(StoreUnavailable):
        await store.save(KEY)


async def test_a_server_that_lost_its_keys_is_believed(
    store: RedisStore, redis_server: RedisServer
) -> None:
    await store.save(KEY)
    redis_server.empty()
    async with asyncio.timeout(5):
        while store.find(KEY.digest, T0) is not None:  # noqa: ASYNC110 - it polls by itself
            await asyncio.sleep(0.01)


async def test_a_proxy_may_start_before_its_redis(redis_server: RedisServer, clock: Clock) -> None:
    redis_server.kill()
    store = RedisStore(redis_server.url, clock, tick_s=0.02)
    await store.start()
    assert store.degraded == "redis cannot be reached"
    assert (await ask(store, Reservation("s", LIMITS))).degraded
    with pytest.raises(StoreUnavailable):  # not "unknown key": it may be a good one
        store.find(KEY.digest, T0)
    redis_server.start()
    await until(store, degraded=False)
    assert store.find(KEY.digest, T0) is None
    await store.close()


async def test_a_settled_slot_is_free_for_the_very_next_call(store: RedisStore) -> None:
    limits = Limits(concurrent_requests=1)
    for _ in range(200):
        reservation = Reservation("s", limits)
        assert (await ask(store, reservation)).allowed
        store.settle(reservation, 0, None, T0)


async def test_a_decision_is_one_command(store: RedisStore, redis_server: RedisServer) -> None:
    async def commands() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", redis_server.port)
        writer.write(b"INFO commandstats\r\n")
        text = (await reader.readuntil(b"\r\n\r\n")).decode()
        writer.close()
        await writer.wait_closed()
        (line,) = [row for row in text.splitlines() if row.startswith("cmdstat_evalsha:")]
        return int(line.partition("calls=")[2].partition(",")[0])

    quiet = RedisStore(redis_server.url, Clock(), tick_s=1e6, deadline_s=5)
    await store.close()  # its polling counts too
    await quiet.start()
    before = await commands()
    for _ in range(10):
        await ask(quiet, Reservation("s", LIMITS))
    assert await commands() - before == 10
    await quiet.close()


async def test_a_brace_in_a_subject_does_not_split_its_keys(store: RedisStore) -> None:
    limits = Limits(concurrent_requests=1)
    assert (await ask(store, Reservation("}a{b}", limits))).allowed
    assert not (await ask(store, Reservation("}a{b}", limits))).allowed

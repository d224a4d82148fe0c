"""What is SQLite's own: the file, its lock, and what happens while another holds it."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from lunar_proxy.core.errors import StoreUnavailable
from lunar_proxy.core.limits import Budget, Limits, Verdict
from lunar_proxy.core.money import UNITS_PER_USD
from lunar_proxy.stores.base import Entry, KeyRecord, Reservation
from lunar_proxy.stores.sqlite import SqliteStore

from .backends import T0, Clock

LIMITS = Limits(budget=Budget(Decimal(1), "total"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lunar.db"


@pytest.fixture
async def store(path: Path, clock: Clock) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(str(path), clock, tick_s=0.02, busy_timeout_s=0.02)
    await store.start()
    yield store
    await store.close()


async def ask(store: SqliteStore, reservation: Reservation) -> Verdict:
    answer = store.take(reservation, T0)
    return answer if isinstance(answer, Verdict) else await answer


async def until(store: SqliteStore, *, degraded: bool) -> None:
    async with asyncio.timeout(5):
        while (store.degraded is not None) is not degraded:  # noqa: ASYNC110 - it tries by itself
            await asyncio.sleep(0.01)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def spoil(path: Path, content: bytes | None) -> None:
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)


def lock(path: Path) -> sqlite3.Connection:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    return other


async def test_the_file_is_private_and_in_wal_mode(store: SqliteStore, path: Path) -> None:
    assert mode(path) == 0o600
    reader = sqlite3.connect(path)
    assert reader.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    reader.close()


async def test_a_locked_file_is_said_and_what_was_to_be_written_is_written_later(
    store: SqliteStore, path: Path
) -> None:
    reservation = Reservation("s", LIMITS)
    await ask(store, reservation)
    other = lock(path)
    store.settle(reservation, 0, UNITS_PER_USD, T0)
    store.add([Entry(int(T0) // 3600 * 3600, "a", "openai", "m", 1, cost=1)])
    with pytest.raises(StoreUnavailable):
        await ask(store, Reservation("s", LIMITS))
    await until(store, degraded=True)
    other.execute("ROLLBACK")
    other.close()
    await until(store, degraded=False)
    assert [spend.cost for spend in await store.query(T0, "key")] == [1]
    async with asyncio.timeout(5):
        while (await ask(store, Reservation("s", LIMITS))).allowed:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)


async def test_what_cannot_be_written_keeps_nobody_from_a_revoked_key(
    store: SqliteStore, path: Path, clock: Clock
) -> None:
    record = KeyRecord("key_1", "team-a", "d" * 64, "pk_live_aaaa")
    store.add([Entry(int(T0) // 3600 * 3600, "a", "openai", "m", 1, cost=2**64)])
    await until(store, degraded=True)
    other = SqliteStore(str(path), clock, tick_s=1e6)
    await other.start()
    for known in (record, replace(record, revoked_at=T0)):
        await other.save(known)
        async with asyncio.timeout(5):
            while store.find(record.digest, T0) != known:  # noqa: ASYNC110 - it polls by itself
                await asyncio.sleep(0.01)
    await other.close()


@pytest.mark.parametrize("content", [b"this is not a database, it is a text file" * 100, None])
async def test_what_is_no_database_is_told_at_start(
    path: Path, clock: Clock, content: bytes | None
) -> None:
    spoil(path, content)
    store = SqliteStore(str(path), clock)
    with pytest.raises(StoreUnavailable, match="cannot be opened"):
        await store.start()
    await store.close()

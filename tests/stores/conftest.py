"""Backends: where the replicas of one store meet, with a real redis-server for redis."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lunar_proxy.stores.base import Store
from lunar_proxy.stores.memory import MemoryStore
from lunar_proxy.stores.redis import RedisStore
from lunar_proxy.stores.sqlite import SqliteStore

from .backends import Clock, RedisServer


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """One for a test that stops or kills it."""
    server = RedisServer(tmp_path)
    yield server
    with contextlib.suppress(AssertionError):
        server.thaw()
    server.kill()


@pytest.fixture
def clock() -> Clock:
    return Clock()


Open = Callable[..., Awaitable[Any]]


@pytest.fixture(params=["memory", "sqlite", "redis"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def open_replica(
    backend: str, clock: Clock, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Open]:
    """Opens one more replica of the same store; all are closed at the end."""
    opened: list[Store] = []

    def make(**options: Any) -> Store:
        if backend == "memory":
            return MemoryStore()
        if backend == "sqlite":
            return SqliteStore(str(tmp_path / "lunar.db"), clock, **options)
        server: RedisServer = request.getfixturevalue("shared_redis")
        if not opened:
            server.empty()
        # A loaded machine may stall for longer than what a call waits in production.
        options = {"own_time": True, "deadline_s": 5.0, **options}
        return RedisStore(server.url, clock, **options)

    async def open_one(**options: Any) -> Store:
        store = make(**options)
        opened.append(store)
        await store.start()
        return store

    yield open_one
    for store in opened:
        await store.close()

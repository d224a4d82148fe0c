"""`store:` of the config -> a store."""

from __future__ import annotations

from collections.abc import Callable

from .base import Store
from .memory import MemoryStore

Clock = Callable[[], float]


def _memory(url: str, _clock: Clock) -> Store:
    if url != "memory":
        raise ValueError("the store `memory` takes nothing after its name")
    return MemoryStore()


def _sqlite(url: str, clock: Clock) -> Store:
    from .sqlite import SqliteStore  # the library of SQLite is loaded for those who use it

    path = url.removeprefix("sqlite:")
    path = path.removeprefix("//") if path.startswith("///") else path
    if not path or path == ":memory:":
        raise ValueError("the store `sqlite:PATH` needs the path of a file")
    return SqliteStore(path, clock)


def _redis(url: str, clock: Clock) -> Store:
    try:
        import redis.asyncio  # noqa: F401 - an extra, told apart here from a server that is down
    except ModuleNotFoundError:
        raise ValueError(
            "the store redis:// needs the extra: pip install 'lunar-proxy[redis]'"
        ) from None
    from .redis import RedisStore

    return RedisStore(url, clock)


_OPENERS: dict[str, Callable[[str, Clock], Store]] = {
    "memory": _memory,
    "sqlite": _sqlite,
    "redis": _redis,
    "rediss": _redis,  # TLS
    "unix": _redis,  # a socket of this machine
    "valkey": lambda url, clock: _redis(url.replace("valkey", "redis", 1), clock),
}


def open_store(url: str, clock: Clock) -> Store:
    """`memory`, `sqlite:PATH` or `redis://HOST:PORT/DB`, not started yet; `clock` tells seconds
    since 1970.

    Raises ValueError with a sentence that does not repeat the URL, which may hold a password.
    """
    opener = _OPENERS.get(url.partition(":")[0])
    if opener is None:
        raise ValueError("unknown store: it is memory, sqlite:PATH or redis://HOST:PORT/DB")
    return opener(url, clock)

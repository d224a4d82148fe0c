"""`store:` of the config -> a store."""

from __future__ import annotations

from collections.abc import Callable

from .base import Store
from .memory import MemoryStore

Opener = Callable[[str], Store]


def _memory(url: str) -> Store:
    if url != "memory":
        raise ValueError("the store `memory` takes nothing after its name")
    return MemoryStore()


OPENERS: dict[str, Opener] = {
    "memory": _memory,
}


def open_store(url: str) -> Store:
    """`memory`, `sqlite:PATH` or `redis://HOST:PORT/DB`, not started yet.

    Raises ValueError with a sentence that never repeats a password in the URL.
    """
    scheme = url.partition(":")[0]
    opener = OPENERS.get(scheme)
    if opener is None:
        raise ValueError(
            f"unknown store {scheme!r}: it is memory, sqlite:PATH or redis://HOST:PORT/DB"
        )
    return opener(url)

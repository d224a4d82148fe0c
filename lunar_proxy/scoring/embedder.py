"""Embedding off the event loop, with a memory of what was embedded lately.

The loop never waits for a network: `onnxruntime` drops the GIL while it computes, in a thread
pool of our own. Two requests for the same text share one computation. A table of token vectors is
read on the loop, in less time than the way to a thread and back; one text a turn.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .encoder import EmbedderId, Encodes, Vector
from .static import open_encoder
from .text import crop

# 384 float32 are 1.5 kB: 4,096 of them are 6 MB.
CACHE_ENTRIES = 4096


# Beyond what the process has: a third of a core's share where the loop wants all of it.
NICER = 5


class Embedder:
    """Built on the loop's thread in no time; `start` (or the first `embed`) loads the model."""

    def __init__(
        self, directory: Path, *, threads: int | None = None, cache_entries: int = CACHE_ENTRIES
    ) -> None:
        self._directory = directory
        # One core stays free for the event loop; beyond two, calls no longer scale.
        workers = threads or max(1, min(2, (os.cpu_count() or 1) - 1))
        self._pool = ThreadPoolExecutor(
            workers, thread_name_prefix="embedder", initializer=give_way
        )
        self._cache: OrderedDict[bytes, Vector] = OrderedDict()
        self._cache_entries = cache_entries
        self._running: dict[bytes, asyncio.Future[Vector]] = {}
        self._loading: asyncio.Future[Encodes] | None = None
        self._encoder: Encodes | None = None
        self._read_here = False

    @property
    def id(self) -> EmbedderId | None:
        """None until the model is loaded."""
        return self._encoder.id if self._encoder else None

    async def start(self) -> EmbedderId:
        """Load the model if it is not. Raises ScoringError when its files are no good."""
        if self._encoder is None:
            if self._loading is None:
                loop = asyncio.get_running_loop()
                self._loading = loop.run_in_executor(self._pool, open_encoder, self._directory)
            try:
                self._encoder = await asyncio.shield(self._loading)
            finally:
                self._loading = None  # a failure is tried again by the next caller
        return self._encoder.id

    def cached(self, text: str) -> Vector | None:
        key = _key(text)
        if (vector := self._cache.get(key)) is not None:
            self._cache.move_to_end(key)
        return vector

    async def embed(self, text: str) -> Vector:
        """float32 [dimension], norm 1. Cancelling a caller does not disturb the others."""
        if (vector := self.cached(text)) is not None:
            return vector
        key = _key(text)
        if key not in self._running:
            await self.start()
        assert self._encoder is not None
        if self._encoder.quick and not self._read_here:
            # Once a turn of the loop: many at a time would hold it up.
            self._read_here = True
            asyncio.get_running_loop().call_soon(self._turned)
            vector = self._encoder.encode(text)
            self._keep(key, vector)
            return vector
        if (running := self._running.get(key)) is None:
            running = self._submit(self._encoder, key, crop(text))
        return await asyncio.shield(running)

    def _submit(self, encoder: Encodes, key: bytes, text: str) -> asyncio.Future[Vector]:
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._pool, encoder.encode, text)
        self._running[key] = running
        running.add_done_callback(lambda done: self._done(key, done))
        return running

    def _done(self, key: bytes, done: asyncio.Future[Vector]) -> None:
        del self._running[key]
        if not done.cancelled() and done.exception() is None:
            self._keep(key, done.result())

    def _turned(self) -> None:
        self._read_here = False

    def _keep(self, key: bytes, vector: Vector) -> None:
        self._cache[key] = vector
        while len(self._cache) > self._cache_entries:
            self._cache.popitem(last=False)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __repr__(self) -> str:
        return f"<Embedder {self._directory.name} cached={len(self._cache)}>"


def give_way() -> None:
    """Lower the priority of the calling thread, so that the loop goes first where cores are short.

    On two busy cores the loop was 22 ms late at p99 while 16 texts waited, and 13 ms with this.
    Elsewhere than on Linux a thread has no priority of its own (setpriority(2)).
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        nice = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, min(19, nice + NICER))


def _key(text: str) -> bytes:
    # The text itself is not kept: a cache must not be a store of prompts.
    return hashlib.blake2b(crop(text).encode(), digest_size=16).digest()

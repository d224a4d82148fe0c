"""A thread that owns a SQLite connection: jobs in, results out, many jobs to a transaction.

SQLite blocks, and a connection belongs to one thread, so the event loop hands over functions and
gets futures. Whatever has queued up while one transaction ran becomes the next one: under load a
commit is shared by many decisions, and each is still alone in the database while it runs.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

# Another process holds the file for the time of a transaction, some 100 us; seconds mean a fault.
BUSY_TIMEOUT_S = 2.0

# How many jobs share one transaction at most, so that other processes get their turn.
MAX_BATCH = 256

_PRAGMAS = (
    # Readers and a writer do not wait for each other, and a killed process loses nothing committed.
    "PRAGMA journal_mode=WAL",
    # The commit is in the page cache, which outlives `kill -9`. FULL would add a disk flush to each
    # decision to also outlive a power cut; after one, the last moments may be missing.
    "PRAGMA synchronous=NORMAL",
)


@dataclass(frozen=True, slots=True)
class _Job:
    run: Callable[[sqlite3.Connection], Any]
    future: asyncio.Future[Any]


_Result = tuple[asyncio.Future[Any], Any, Exception | None]


class DatabaseThread:
    """`submit` from the loop that called `start`; jobs run in the order they were submitted."""

    def __init__(self, path: str, schema: str, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self._busy_timeout_s = busy_timeout_s
        self._path = path
        self._schema = schema
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Open the file, or make one private to its owner. Raises sqlite3.Error, OSError."""
        self._loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(
            target=self._main, args=(opened,), name="sqlite", daemon=True
        )
        self._thread.start()
        await opened

    def submit(self, run: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        assert self._loop is not None, "start() comes first"
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put(_Job(run, future))
        return future

    async def close(self) -> None:
        """Finish what was submitted, then close the file."""
        if self._thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    # --- on the thread ------------------------------------------------------------------------

    def _main(self, opened: asyncio.Future[None]) -> None:
        try:
            database = self._open()
        except (sqlite3.Error, OSError) as error:
            self._answer([(opened, None, error)])
            return
        self._answer([(opened, None, None)])
        while batch := self._next_batch():
            self._answer(self._transact(database, batch))
        database.close()

    def _open(self) -> sqlite3.Connection:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        database = sqlite3.connect(self._path, timeout=self._busy_timeout_s, isolation_level=None)
        for pragma in _PRAGMAS:
            database.execute(pragma)
        database.executescript(self._schema)
        return database

    def _next_batch(self) -> list[_Job]:
        """Wait for a job, and take those behind it along; empty at the end."""
        batch: list[_Job] = []
        while len(batch) < MAX_BATCH and (not batch or not self._jobs.empty()):
            job = self._jobs.get()
            if job is None:
                self._jobs.put(None)  # seen again once this batch is done
                break
            batch.append(job)
        return batch

    def _transact(self, database: sqlite3.Connection, batch: list[_Job]) -> list[_Result]:
        """All or nothing; when it is nothing, every job of the batch is told why.

        IMMEDIATE takes the write lock first, so what is read is still true when it is written.
        """
        try:
            database.execute("BEGIN IMMEDIATE")
            results: list[_Result] = [(job.future, job.run(database), None) for job in batch]
            database.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the waiting tasks
            if database.in_transaction:
                database.execute("ROLLBACK")
            return [(job.future, None, error) for job in batch]
        return results

    def _answer(self, results: list[_Result]) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_resolve, results)


def _resolve(results: list[_Result]) -> None:
    for future, value, error in results:
        if future.done():  # its task was cancelled
            continue
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

"""The store of one machine: `sqlite:PATH`, shared by its processes, there after a restart.

Every decision is one transaction on a thread of its own (`thread`), so processes on one file
share every limit exactly, and a budget that was settled survives `kill -9`. The ledger and the
times of use are buffered and written at least each second; a kill loses that second of them.

A call in flight is a lease, renewed while its process lives: the slots of one that was killed come
free when their leases run out.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from itertools import count
from secrets import token_hex
from typing import TypeVar

from lunar_proxy.core import limits
from lunar_proxy.core.errors import StoreUnavailable
from lunar_proxy.core.limits import State, Verdict, Window
from lunar_proxy.tasks import spawn

from .base import HOUR_S, Dimension, Entry, KeyRecord, Reservation, Spend
from .codec import dump_key, readable
from .memory import MemoryKeys, MemoryLedger
from .thread import BUSY_TIMEOUT_S, DatabaseThread

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Well under the second within which a change of keys must be seen, and the ledger written.
TICK_S = 0.4

# How long a killed process keeps its slots; renewed at a third, so two misses do no harm.
LEASE_S = 30.0

# A subject that was not seen for so long, and has no open budget window, is forgotten.
FORGET_S = 3600

_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY, version INTEGER NOT NULL UNIQUE, record TEXT NOT NULL, used_at REAL);
CREATE TABLE IF NOT EXISTS limits (
    subject TEXT PRIMARY KEY, at_ms INTEGER NOT NULL, requests INTEGER NOT NULL,
    tokens INTEGER NOT NULL, per TEXT, start INTEGER, end INTEGER, spent INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leases (
    id TEXT PRIMARY KEY, subject TEXT NOT NULL, tokens INTEGER NOT NULL, usd INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS leases_by_subject ON leases (subject);
CREATE TABLE IF NOT EXISTS ledger (
    hour INTEGER NOT NULL, key TEXT NOT NULL, provider TEXT NOT NULL, model TEXT NOT NULL,
    requests INTEGER NOT NULL, input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL, cost INTEGER NOT NULL, unpriced INTEGER NOT NULL,
    PRIMARY KEY (hour, key, provider, model)) WITHOUT ROWID;
"""


class SqliteStore:
    """`clock` is the wall clock, seconds since 1970: for the work that no request asks for."""

    shared = True

    def __init__(
        self,
        path: str,
        clock: Callable[[], float],
        *,
        lease_s: float = LEASE_S,
        tick_s: float = TICK_S,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
    ) -> None:
        self.degraded: str | None = None
        self._clock = clock
        self._lease_ms = int(lease_s * 1000)
        self._tick_s = tick_s
        self._thread = DatabaseThread(path, _SCHEMA, busy_timeout_s)
        self._keys = MemoryKeys()
        self._version: int | None = None  # of the newest key seen; None: never read
        self._ledger = MemoryLedger()
        self._held: dict[str, float] = {}  # lease id -> when to renew it
        self._unsettled: list[Callable[[sqlite3.Connection], None]] = []
        self._ids = (f"{token_hex(6)}-{n}" for n in count())
        self._ticker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises StoreUnavailable when the file cannot be opened."""
        try:
            await self._thread.start()
            await self._read_keys()
        except (sqlite3.Error, OSError) as error:
            raise StoreUnavailable(f"the store cannot be opened: {error}") from error
        self._ticker = spawn(self._tick_forever(), name="sqlite-store")

    async def close(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.wait([self._ticker])
            self._ticker = None
            await self._tick()
        await self._thread.close()

    # --- keys ---------------------------------------------------------------------------------

    def find(self, digest: str, now: float) -> KeyRecord | None:
        if self._version is None:
            raise StoreUnavailable("the API keys could not be read yet", retry_after_s=1.0)
        return self._keys.find(digest, now)

    async def keys(self) -> list[KeyRecord]:
        await self._read_keys()
        await self._write_use()
        return await self._ask(_all_keys)

    async def save(self, record: KeyRecord) -> None:
        await self._ask(lambda db: _save_key(db, record))
        await self._read_keys()

    async def _read_keys(self) -> None:
        seen = self._version or 0
        changed = await self._ask(lambda db: _keys_after(db, seen))
        for record in readable(data for _, data in changed):
            self._keys.put(record)
        self._version = max([seen, *(version for version, _ in changed)])

    async def _write_use(self) -> None:
        used = self._keys.drain_use()
        if used:
            await self._ask(lambda db: _write_use(db, used))

    # --- limits -------------------------------------------------------------------------------

    def take(self, reservation: Reservation, now: float) -> Verdict | Awaitable[Verdict]:
        if reservation.limits.empty:
            return limits.UNLIMITED
        return self._take(reservation, now)

    async def _take(self, reservation: Reservation, now: float) -> Verdict:
        reservation.id = next(self._ids)
        expires_ms = int(now * 1000) + self._lease_ms
        job = self._thread.submit(lambda db: _take(db, reservation, now, expires_ms))
        try:
            verdict = await self._answer(job)
        except asyncio.CancelledError:
            # The caller is gone, and never learns of what was taken: undo it behind the take.
            self._write(lambda db: _settle(db, reservation, 0, None, now))
            raise
        if verdict.allowed:
            reservation.held = True
            self._held[reservation.id] = self._clock() + self._lease_ms / 3000
        return verdict

    def settle(self, reservation: Reservation, tokens: int, cost: int | None, now: float) -> None:
        if reservation.held:
            reservation.held = False
            self._held.pop(reservation.id, None)
            self._write(lambda db: _settle(db, reservation, tokens, cost, now))

    def _write(self, job: Callable[[sqlite3.Connection], None]) -> None:
        """Run it without waiting; should it fail, the next tick tries again."""

        def ended(future: asyncio.Future[None]) -> None:
            if not future.cancelled() and future.exception() is not None:
                self._unsettled.append(job)

        self._thread.submit(job).add_done_callback(ended)

    # --- ledger -------------------------------------------------------------------------------

    def add(self, entries: Iterable[Entry]) -> None:
        self._ledger.add(entries)

    async def query(self, since: float, by: Dimension) -> list[Spend]:
        await self._flush()
        return await self._ask(lambda db: _query(db, since, by))

    async def _flush(self) -> None:
        entries = self._ledger.drain()
        if not entries:
            return
        try:
            await self._ask(lambda db: _add(db, entries))
        except StoreUnavailable:
            self._ledger.add(entries)
            raise

    # --- beside the requests ------------------------------------------------------------------

    async def _ask(self, job: Callable[[sqlite3.Connection], T]) -> T:
        return await self._answer(self._thread.submit(job))

    async def _answer(self, answer: asyncio.Future[T]) -> T:
        try:
            result = await answer
        except Exception as error:
            self.degraded = f"sqlite: {error}"
            raise StoreUnavailable("the store does not answer", retry_after_s=1.0) from error
        self.degraded = None
        return result

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(self._tick_s)
            await self._tick()

    async def _tick(self) -> None:
        try:
            await self._read_keys()  # first, since it tells of revocations
            await self._write_use()
            await self._renew()
            await self._flush()
        except StoreUnavailable:
            logger.warning("the store does not answer: %s", self.degraded)
            return
        failed, self._unsettled = self._unsettled, []
        for job in failed:
            self._write(job)

    async def _renew(self) -> None:
        now = self._clock()
        due = [id for id, renew_at in self._held.items() if renew_at <= now]
        await self._ask(lambda db: _housekeep(db, due, now, self._lease_ms))
        renew_at = now + self._lease_ms / 3000
        self._held.update((id, renew_at) for id in due if id in self._held)


# --- on the thread, inside a transaction ----------------------------------------------------------


def _keys_after(db: sqlite3.Connection, seen: int) -> list[tuple[int, str]]:
    return db.execute("SELECT version, record FROM keys WHERE version > ?", (seen,)).fetchall()


def _all_keys(db: sqlite3.Connection) -> list[KeyRecord]:
    rows = db.execute("SELECT record, used_at FROM keys ORDER BY rowid").fetchall()
    return [
        replace(record, last_used_at=used_at)
        for data, used_at in rows
        for record in readable([data])
    ]


def _save_key(db: sqlite3.Connection, record: KeyRecord) -> None:
    """Each change takes the next version; who polls asks for what is newer than it has seen."""
    db.execute(
        "INSERT INTO keys (id, version, record)"
        " VALUES (?, (SELECT coalesce(max(version), 0) + 1 FROM keys), ?)"
        " ON CONFLICT (id) DO UPDATE SET version = excluded.version, record = excluded.record",
        (record.id, dump_key(record).decode()),
    )


def _write_use(db: sqlite3.Connection, used: dict[str, float]) -> None:
    db.executemany(
        "UPDATE keys SET used_at = max(coalesce(used_at, 0), ?) WHERE id = ?",
        [(used_at, id) for id, used_at in used.items()],
    )


def _take(db: sqlite3.Connection, reservation: Reservation, now: float, expires_ms: int) -> Verdict:
    ask = reservation.ask
    state, verdict = limits.take(_state(db, reservation.subject, now), reservation.limits, ask, now)
    if verdict.allowed:
        _remember(db, reservation.subject, state)
        db.execute(
            "INSERT INTO leases (id, subject, tokens, usd, expires_ms) VALUES (?, ?, ?, ?, ?)",
            (reservation.id, reservation.subject, ask.tokens, ask.units, expires_ms),
        )
    return verdict


def _settle(
    db: sqlite3.Connection, reservation: Reservation, tokens: int, cost: int | None, now: float
) -> None:
    db.execute("DELETE FROM leases WHERE id = ?", (reservation.id,))
    state = _state(db, reservation.subject, now)
    state = limits.charge(state, reservation.limits, tokens, cost, now)
    _remember(db, reservation.subject, state)


def _state(db: sqlite3.Connection, subject: str, now: float) -> State:
    held = db.execute(
        "SELECT count(*), coalesce(sum(tokens), 0), coalesce(sum(usd), 0) FROM leases"
        " WHERE subject = ? AND expires_ms > ?",
        (subject, int(now * 1000)),
    ).fetchone()
    row = db.execute(
        "SELECT at_ms, requests, tokens, per, start, end, spent FROM limits WHERE subject = ?",
        (subject,),
    ).fetchone()
    calls, held_tokens, held_usd = held
    at_ms, requests, tokens, per, start, end, spent = row or (0, 0, 0, None, 0, 0, 0)
    window = None if per is None else Window(per, start, end)
    return State(at_ms, requests, tokens, calls, held_tokens, held_usd, window, spent)


def _remember(db: sqlite3.Connection, subject: str, state: State) -> None:
    opened = state.window
    window = (None, None, None) if opened is None else (opened.per, opened.start, opened.end)
    db.execute(
        "INSERT OR REPLACE INTO limits (subject, at_ms, requests, tokens, per, start, end, spent)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (subject, state.at_ms, state.requests, state.tokens, *window, state.spent),
    )


def _add(db: sqlite3.Connection, entries: list[Entry]) -> None:
    db.executemany(
        "INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (hour, key, provider, model) DO UPDATE SET"
        " requests = requests + excluded.requests,"
        " input_tokens = input_tokens + excluded.input_tokens,"
        " output_tokens = output_tokens + excluded.output_tokens,"
        " cached_tokens = cached_tokens + excluded.cached_tokens,"
        " cost = cost + excluded.cost, unpriced = unpriced + excluded.unpriced",
        [(*entry.place, *entry.amounts) for entry in entries],
    )


def _housekeep(db: sqlite3.Connection, due: list[str], now: float, lease_ms: int) -> None:
    now_ms = int(now * 1000)
    renewed = [(now_ms + lease_ms, id) for id in due]
    db.executemany("UPDATE leases SET expires_ms = ? WHERE id = ?", renewed)
    db.execute("DELETE FROM leases WHERE expires_ms <= ?", (now_ms,))
    forgotten = (now_ms - FORGET_S * 1000, now)
    db.execute("DELETE FROM limits WHERE at_ms < ? AND coalesce(end, 0) <= ?", forgotten)


_SUMS = {
    by: f"SELECT {by}, sum(requests), sum(input_tokens), sum(output_tokens), sum(cached_tokens),"
    f" sum(cost), sum(unpriced) FROM ledger WHERE hour >= ? GROUP BY {by}"
    f" ORDER BY sum(cost) DESC, sum(requests) DESC, {by}"
    for by in ("key", "model", "provider")
}


def _query(db: sqlite3.Connection, since: float, by: Dimension) -> list[Spend]:
    first = int(since) // HOUR_S * HOUR_S
    return [Spend(*row) for row in db.execute(_SUMS[by], (first,))]

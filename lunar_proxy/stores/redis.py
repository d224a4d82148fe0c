"""The store of many replicas: `redis://`, Redis or Valkey.

`take` is one script in one round trip, on the server's clock, so replicas share every limit
exactly. A call in flight is a lease that its process renews; slots of a crashed one run out.

When Redis does not answer within `DEADLINE_S`, or is gone, one call has waited that long, and from
then on limits are decided from local state (`degraded` says why) until a probe gets through. A
server that passes its probes and fails again costs that wait each time, so it is probed ever more
rarely. The local state mirrors what Redis said last of each subject, so a spent budget stays spent;
requests and tokens are then limited by each replica on its own. After healing:

- calls taken from Redis and settled meanwhile are settled there, if their lease is still held;
- what calls taken locally have cost is charged to their budgets;
- their requests and tokens are not: within a minute they would have drained anyway.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from secrets import token_hex
from typing import Any, TypeVar

from lunar_proxy.core import limits
from lunar_proxy.core.errors import StoreUnavailable
from lunar_proxy.core.limits import Blocked, Limits, State, Verdict, Window
from lunar_proxy.tasks import in_task, spawn

from . import scripts
from .base import HOUR_S, Dimension, Entry, KeyRecord, Reservation, Spend
from .codec import dump_key, readable
from .memory import MemoryKeys, MemoryLedger, MemoryLimits, total
from .pipe import Argument, NotConnected, Pipe, PipeBroken

logger = logging.getLogger(__name__)

T = TypeVar("T")

# What one call may wait for a decision. A healthy Redis answers in under a millisecond; a slow one
# is worse than none (LESSONS 20: 30 s of authentication behind one).
DEADLINE_S = 0.05

# For what no request waits for: dialling, with TLS perhaps, reading keys, writing the ledger.
PATIENCE_S = 1.0

TICK_S = 0.4  # keys are polled, the ledger written and a lost server probed this often
MAX_REST = 63  # ticks without a probe, at most, for a server that relapses (some 25 s)
STEADY = 25  # ticks of health after which that is forgotten
LEASE_S = 30.0  # how long a crashed process keeps its slots; renewed at a third
MAX_ROWS = 200  # of the ledger to a script, which is some milliseconds; decisions wait for it
KEEP_LEDGER_S = 400 * 86_400  # a year and the month it is looked at

_KEYS = ["lunar:{keys}:version", "lunar:{keys}:records", "lunar:{keys}:changed"]
_USED = "lunar:{keys}:used"
_HOURS = "lunar:{ledger}:hours"
_SEPARATOR = "\x1f"  # ASCII "unit separator"; taken out of names


@dataclass(frozen=True, slots=True)
class _Settlement:
    """`sure`: it was not sent before, so it counts even if the lease has run out meanwhile."""

    lease: str
    subject: str
    limits: Limits
    tokens: int
    cost: int | None  # in units
    sure: bool


class RedisStore:
    """`clock` is the wall clock. `own_time`: decide by the `now` that is passed in, as tests must,
    instead of the server's.
    """

    shared = True

    def __init__(
        self,
        url: str,
        clock: Callable[[], float],
        *,
        own_time: bool = False,
        lease_s: float = LEASE_S,
        tick_s: float = TICK_S,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self.degraded: str | None = "not connected yet"
        self.failures = 0  # how often it became degraded
        self._clock = clock
        self._own_time = own_time
        self._lease_ms = int(lease_s * 1000)
        self._tick_s = tick_s
        self._deadline_s = deadline_s
        self._url = url
        self._pipe = Pipe(url)
        self._rest = self._next_rest = 0  # ticks to leave it alone: now, and when it next fails
        self._well = 0  # ticks since it failed
        self._local = MemoryLimits()
        self._keys = MemoryKeys()
        self._version: int | None = None  # of the keys; None: never read
        self._ledger = MemoryLedger()
        self._batches: list[tuple[str, list[Entry]]] = []  # drained, perhaps not yet written
        self._flushing = asyncio.Lock()
        self._held: dict[str, tuple[str, float]] = {}  # lease -> (subject, when to renew)
        self._owed: list[_Settlement] = []
        self._owed_cost: dict[str, tuple[Limits, int]] = {}  # by subject, of local calls
        self._ids = (f"{token_hex(6)}-{n}" for n in count())
        self._ticker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Never fails: a proxy that starts before its Redis serves what it can."""
        await self._heal()
        if self.degraded is not None:
            logger.warning("limits are decided from local state: %s", self.degraded)
        self._ticker = spawn(self._tick_forever(), name="redis-store")

    async def close(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.wait([self._ticker])
            self._ticker = None
            self._rest = 0
            await self._tick()
        await self._pipe.close()

    # --- keys ---------------------------------------------------------------------------------

    def find(self, digest: str, now: float) -> KeyRecord | None:
        if self._version is None:
            raise StoreUnavailable("the API keys could not be read yet", retry_after_s=1.0)
        return self._keys.find(digest, now)

    async def keys(self) -> list[KeyRecord]:
        await self._ask(self._read_keys())
        await self._ask(self._write_use())
        used = await self._ask(self._uses())
        return [
            replace(record, last_used_at=float(used[record.id]) if record.id in used else None)
            for record in self._keys.records()
        ]

    async def save(self, record: KeyRecord) -> None:
        await self._ask(self._pipe.run(scripts.SAVE_KEY, _KEYS, record.id, dump_key(record)))
        await self._ask(self._read_keys())

    async def _read_keys(self) -> None:
        seen = -1 if self._version is None else self._version
        version, everything, *records = await self._pipe.run(scripts.KEYS_SINCE, _KEYS, seen)
        if everything:
            self._keys.clear()
        for record in readable(records):
            self._keys.put(record)
        self._version = version

    async def _write_use(self) -> None:
        used = self._keys.drain_use()
        if used:
            fields = [part for id, at in used.items() for part in (id, repr(at))]
            await self._pipe.send("HSET", _USED, *fields)

    async def _uses(self) -> dict[str, bytes]:
        return _pairs(await self._pipe.send("HGETALL", _USED))

    # --- limits -------------------------------------------------------------------------------

    def take(self, reservation: Reservation, now: float) -> Verdict | Awaitable[Verdict]:
        if reservation.limits.empty:
            return limits.UNLIMITED
        if self.degraded is not None:
            return self._take_locally(reservation, now)
        return self._take(reservation, now)

    def _take_locally(self, reservation: Reservation, now: float) -> Verdict:
        return self._local.take(reservation, now)._replace(degraded=True)

    async def _take(self, reservation: Reservation, now: float) -> Verdict:
        ask, subject = reservation.ask, reservation.subject
        reservation.id = f"{next(self._ids)}:{ask.tokens}:{ask.units}"
        await in_task()
        try:
            answer = await self._pipe.run(
                scripts.TAKE,
                _limit_keys(subject),
                *self._rules(reservation.limits, now),
                ask.tokens,
                ask.units,
                reservation.id,
                self._lease_ms,
                within_s=self._deadline_s,
            )
            fits, state = _answer(answer)
        except asyncio.CancelledError:
            self._give_back(reservation, now)
            raise
        except Exception as error:  # noqa: BLE001 - no fault of the store may fail a call
            self._trip(error)
            self._give_back(reservation, now)
            return self._take_locally(reservation, now)
        if fits:
            reservation.held, reservation.local = True, False
            self._held[reservation.id] = (subject, self._clock() + self._lease_ms / 3000)
        self._mirror(reservation, state, now)
        return _verdict(state, reservation, fits)

    def _give_back(self, reservation: Reservation, now: float) -> None:
        """Nobody learned whether the server took it, so undo it if it did."""
        self._settle_there(
            _Settlement(
                reservation.id, reservation.subject, reservation.limits, 0, None, sure=False
            ),
            now,
        )

    def _mirror(self, reservation: Reservation, there: State, now: float) -> None:
        """Keep what Redis knows of the subject, but in flight only what this process has."""
        mine = self._local.state(reservation.subject)
        state = there._replace(
            calls=mine.calls, held_tokens=mine.held_tokens, held_usd=mine.held_usd
        )
        if reservation.held:
            state = limits.hold(state, reservation.ask)
        self._local.remember(reservation.subject, state, reservation.limits, now)

    def settle(self, reservation: Reservation, tokens: int, cost: int | None, now: float) -> None:
        if not reservation.held:
            return
        self._local.settle(reservation, tokens, cost, now)
        self._held.pop(reservation.id, None)
        subject, of = reservation.subject, reservation.limits
        if not reservation.local:
            settlement = _Settlement(reservation.id, subject, of, tokens, cost, sure=True)
            self._settle_there(settlement, now)
        elif cost and of.budget is not None:
            self._owed_cost[subject] = (of, self._owed_cost.get(subject, (of, 0))[1] + cost)

    def _settle_there(self, settlement: _Settlement, now: float) -> None:
        """Sent at once, so a `take` that comes next finds it done; when it fails, owed."""

        def ended(answer: asyncio.Future[Any]) -> None:
            if answer.cancelled() or answer.exception() is not None:
                self._owed.append(replace(settlement, sure=False))

        try:
            self._send(settlement, now).add_done_callback(ended)
        except NotConnected:
            self._owed.append(settlement)

    def _send(self, settlement: _Settlement, now: float) -> asyncio.Future[Any]:
        return self._pipe.send_script(
            scripts.SETTLE,
            _limit_keys(settlement.subject),
            *self._rules(settlement.limits, now),
            settlement.lease,
            min(settlement.tokens, limits.MAX_TOKENS),
            limits.bounded(settlement.cost),
            int(settlement.sure),
        )

    def _rules(self, of: Limits, now: float) -> list[Argument]:
        budget = of.budget
        return [
            int(now * 1000) if self._own_time else 0,
            of.requests_per_minute or 0,
            of.tokens_per_minute or 0,
            of.concurrent_requests or 0,
            -1 if budget is None else budget.units,
            "" if budget is None else budget.per,
        ]

    # --- ledger -------------------------------------------------------------------------------

    def add(self, entries: Iterable[Entry]) -> None:
        self._ledger.add(entries)

    async def query(self, since: float, by: Dimension) -> list[Spend]:
        """Over a connection of its own: a year of rows would hold up every decision behind them."""
        await self._ask(self._flush(), patience_s=None)  # each batch has its own
        pipe = Pipe(self._url)
        try:
            await pipe.connect((), PATIENCE_S)
            return total(await self._rows(pipe, since), by)
        except Exception as error:
            raise StoreUnavailable("the ledger cannot be read", retry_after_s=1.0) from error
        finally:
            await pipe.close()

    async def _flush(self) -> None:
        """A batch keeps its name until the server has confirmed it, and is added there once."""
        by_hour: dict[int, list[Entry]] = {}
        for entry in self._ledger.drain():
            by_hour.setdefault(entry.hour, []).append(entry)
        self._batches += [
            (token_hex(12), entries[n : n + MAX_ROWS])
            for entries in by_hour.values()
            for n in range(0, len(entries), MAX_ROWS)
        ]
        async with self._flushing:  # the ticker and a query may both be here
            while self._batches:
                async with asyncio.timeout(PATIENCE_S):
                    await self._add_batch(*self._batches[0])
                del self._batches[0]

    async def _add_batch(self, name: str, entries: list[Entry]) -> None:
        hour = entries[0].hour
        amounts: list[Argument] = []
        for entry in entries:
            place = _SEPARATOR.join(map(_plain, (entry.key, entry.provider, entry.model)))
            for index, amount in enumerate(entry.amounts):
                if amount:
                    amounts += (f"{place}{_SEPARATOR}{index}", amount)
        keys = [f"lunar:{{ledger}}:batch:{name}", _hour_key(hour), _HOURS]
        await self._pipe.run(scripts.ADD_ROWS, keys, hour, KEEP_LEDGER_S, *amounts)

    async def _rows(self, pipe: Pipe, since: float) -> list[Entry]:
        first = int(since) // HOUR_S * HOUR_S
        rows: list[Entry] = []
        async with asyncio.timeout(PATIENCE_S) as patience:
            for hour in map(int, await pipe.send("ZRANGEBYSCORE", _HOURS, first, "+inf")):
                rows += _entries(hour, _pairs(await pipe.send("HGETALL", _hour_key(hour))))
                patience.reschedule(asyncio.get_running_loop().time() + PATIENCE_S)
        return rows

    # --- beside the requests ------------------------------------------------------------------

    async def _ask(self, answer: Awaitable[T], patience_s: float | None = PATIENCE_S) -> T:
        """For what no call waits for. Raises StoreUnavailable."""
        try:
            async with asyncio.timeout(patience_s):
                return await answer
        except Exception as error:
            self._trip(error)
            raise StoreUnavailable("the store does not answer", retry_after_s=1.0) from error

    def _trip(self, error: Exception) -> None:
        if self.degraded is None:
            self.failures += 1
            self.degraded = _reason(error)
            logger.warning("limits are decided from local state: %s", self.degraded)
            self._rest, self._well = self._next_rest, 0
            self._next_rest = min(2 * self._next_rest + 1, MAX_REST)
        self._pipe.abort()

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(self._tick_s)
            await self._tick()

    async def _tick(self) -> None:
        if self._rest:
            self._rest -= 1
            return
        if self.degraded is not None:
            await self._heal()
        if self.degraded is None:
            self._well += 1
            if self._well == STEADY:
                self._next_rest = 0
            with suppress(StoreUnavailable):
                await self._ask(self._maintain())

    async def _maintain(self) -> None:
        await self._read_keys()
        await self._write_use()
        await self._flush()
        await self._renew()
        await self._pay()

    async def _heal(self) -> None:
        """Dial, read what was missed, pay what is owed; and serve again if it is quick by then."""
        try:
            await self._pipe.connect(scripts.ALL, PATIENCE_S)
            async with asyncio.timeout(PATIENCE_S):
                await self._read_keys()
                await self._pay()
            async with asyncio.timeout(self._deadline_s):
                await self._read_keys()  # a script, as a decision is: PING may pass where none does
        except Exception as error:  # noqa: BLE001 - whatever it is, it is not well yet
            self._pipe.abort()
            self.degraded = _reason(error)
            return
        if self.failures:
            logger.warning("limits are shared again: redis answers")
        self.degraded = None

    async def _pay(self) -> None:
        now = self._clock()
        owed, self._owed = self._owed, []
        by_subject, self._owed_cost = self._owed_cost, {}
        for subject, (of, cost) in by_subject.items():
            owed.append(_Settlement("", subject, of, 0, cost, sure=True))
        for settlement in owed:
            self._settle_there(settlement, now)

    async def _renew(self) -> None:
        now = self._clock()
        due: dict[str, list[str]] = {}
        for lease, (subject, renew_at) in self._held.items():
            if renew_at <= now:
                due.setdefault(subject, []).append(lease)
        at_ms = int(now * 1000) if self._own_time else 0
        for subject, leases in due.items():
            keys = _limit_keys(subject)[::-1]
            await self._pipe.run(scripts.RENEW, keys, at_ms, self._lease_ms, *leases)
            renewed = (subject, now + self._lease_ms / 3000)
            self._held.update((lease, renewed) for lease in leases if lease in self._held)


def _limit_keys(subject: str) -> list[str]:
    """The hash tag ends at the first brace (redis.io, cluster specification), so none is inside."""
    tag = subject.replace("%", "%25").replace("}", "%7D")
    return [f"lunar:{{{tag}}}:state", f"lunar:{{{tag}}}:leases"]


def _hour_key(hour: int) -> str:
    return f"lunar:{{ledger}}:{hour}"


def _answer(line: bytes) -> tuple[bool, State]:
    """What `scripts.TAKE` says: whether it fits, and the state after it."""
    fits, *numbers, per = line.split()
    at_ms, requests, tokens, calls, held_tokens, held_usd, spent, start, end = map(int, numbers)
    window = None if per == b"-" else Window(per.decode(), start, end)  # type: ignore[arg-type]
    state = State(at_ms, requests, tokens, calls, held_tokens, held_usd, window, spent)
    return fits == b"1", state


def _verdict(state: State, reservation: Reservation, fits: bool) -> Verdict:
    """The script says whether; which limit, and for how long, follows from the state it left."""
    of = reservation.limits
    if fits:
        return Verdict(None, state, of)
    blocked = limits.blocking(state, of, reservation.ask)
    return Verdict(blocked or _UNEXPLAINED, state, of)


_UNEXPLAINED = Blocked("requests", limits.RELEASE_WAIT_S, "limit")


def _plain(name: str) -> str:
    return name.replace(_SEPARATOR, "")


def _entries(hour: int, fields: dict[str, bytes]) -> list[Entry]:
    rows: dict[tuple[str, str, str], list[int]] = {}
    for field, amount in fields.items():
        key, provider, model, index = field.split(_SEPARATOR)
        rows.setdefault((key, provider, model), [0] * 6)[int(index)] = int(amount)
    return [Entry(hour, *place, *row) for place, row in rows.items()]


def _pairs(flat: list[bytes]) -> dict[str, bytes]:
    return {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


def _reason(error: Exception) -> str:
    """Without the text of a connection error, which may hold an address."""
    if isinstance(error, TimeoutError):
        return "redis does not answer in time"
    if isinstance(error, PipeBroken):
        return "redis cannot be reached"
    return f"redis refuses: {type(error).__name__}"

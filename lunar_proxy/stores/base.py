"""What the gateway asks of a store: three protocols, and the nouns they speak.

A method that decides answers at once where it can (`memory` always does), and with an awaitable
where it has to ask someone: `answer = store.take(...)`, then `await` only what is not a `Verdict`.
One method with two ways to answer keeps the one decision in one place, and the memory path free
of a task switch.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal, NamedTuple, Protocol

from lunar_proxy.core import money
from lunar_proxy.core.limits import NOTHING, Ask, Limits, Verdict, bounded
from lunar_proxy.core.model import Identity, Outcome, Target

HOUR_S = 3600

Dimension = Literal["key", "model", "provider"]


@dataclass(slots=True)
class Reservation:
    """What one call asks for. The caller makes it before it asks, so that it can be settled even
    when the caller is cancelled while the answer is on its way.

    `subject` names whose limits they are: `Identity.id`, or the client's address.
    The other fields belong to the store.
    """

    subject: str
    limits: Limits
    ask: Ask = NOTHING
    id: str = ""
    held: bool = False  # taken and not yet settled
    local: bool = False  # held by this process, not by the shared store


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One key as it is stored: never the key itself. Times are seconds since 1970.

    `id` stays the same when a key is rotated, so its limits and its ledger go on.
    """

    id: str
    name: str
    digest: str  # SHA-256 of the key, hex
    prefix: str  # its first 12 characters, to recognise it by
    models: tuple[str, ...] = ()  # globs; empty: all
    limits: Limits | None = None  # None: the configured default
    created_at: float = 0.0
    expires_at: float | None = None
    revoked_at: float | None = None
    last_used_at: float | None = None
    old_digest: str | None = None  # the key before the last rotation
    old_until: float | None = None  # and until when it is still good
    identity: Identity = field(init=False, repr=False, compare=False)  # who a call by it is from

    def __post_init__(self) -> None:
        identity = Identity(self.id, self.name, self.models, self.limits)
        object.__setattr__(self, "identity", identity)


class Entry(NamedTuple):
    """One row of the ledger: what one key spent on one model of one provider in one hour.

    `cost` is in units of 1e-10 USD, the decimals a client is told, so that sums are exact.
    """

    hour: int  # its first second since 1970, UTC
    key: str
    provider: str
    model: str
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0  # of input_tokens
    cost: int = 0
    unpriced: int = 0  # requests whose cost is not known, so not in `cost`

    @property
    def place(self) -> tuple[int, str, str, str]:
        return self[:4]

    @property
    def amounts(self) -> tuple[int, ...]:
        return self[4:]


@dataclass(frozen=True, slots=True)
class Spend:
    """A sum over the ledger, of one key, model or provider."""

    name: str
    requests: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost: int  # 1e-10 USD
    unpriced: int

    @property
    def usd(self) -> Decimal:
        return money.usd(self.cost)


def entries(closed: Iterable[tuple[Outcome, float]]) -> list[Entry]:
    """The ledger rows of finished calls, each with when it was over on the wall clock.

    Calls that end together are mostly of one place, and so one row.
    """
    rows: dict[tuple[int, str, Target], _Row] = {}
    for outcome, at in closed:
        call, target, _, _, _, usage, cost, priced, *_ = outcome
        if target is None:  # it reached nobody
            continue
        identity = call.identity
        key = "anonymous" if identity is None else identity.id
        place = (int(at) // HOUR_S, key, target)
        row = rows.get(place)
        if row is None:
            row = rows[place] = _Row()
        row.requests += 1
        if usage is not None:
            prompt, output, cached, *_ = usage
            row.input_tokens += prompt
            row.output_tokens += output
            row.cached_tokens += cached
        if cost is not None:
            row.cost += cost.total
        if not priced:
            row.unpriced += 1
    return [row.at(hour * HOUR_S, key, target) for (hour, key, target), row in rows.items()]


@dataclass(slots=True)
class _Row:
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost: int = 0
    unpriced: int = 0

    def at(self, hour: int, key: str, target: Target) -> Entry:
        used = self.requests, self.input_tokens, self.output_tokens, self.cached_tokens
        return Entry(hour, key, *target, *used, bounded(self.cost), self.unpriced)


class KeyStore(Protocol):
    """The keys that were made at run time.

    `find` is called once per request with a key and answers from memory, in constant time by
    construction: a digest is looked up, never a key compared. It notes the time of use. A change
    made by any process is seen within a second, by polling apart from requests. Raises
    `StoreUnavailable` while the keys were never read.

    `keys` and `save` serve the administrator. `save` inserts, or replaces the record of that id.
    """

    def find(self, digest: str, now: float) -> KeyRecord | None: ...

    async def keys(self) -> list[KeyRecord]: ...

    async def save(self, record: KeyRecord) -> None: ...


class LimitStore(Protocol):
    """The state of every subject's limits; the rules are `core.limits`.

    `take` is called once per call, before anything is sent, and decides all limits at once and
    atomically over every process that shares the store. `settle` is called once per reservation,
    whatever became of it (`tokens=0, cost=None` when nothing was used); again, or for one that was
    refused, it does nothing. It never waits and never fails: the next `take` of this process sees
    it. `now` is seconds since 1970; a store with a clock of its own may prefer that.
    """

    def take(self, reservation: Reservation, now: float) -> Verdict | Awaitable[Verdict]: ...

    def settle(
        self, reservation: Reservation, tokens: int, cost: int | None, now: float
    ) -> None: ...


class Ledger(Protocol):
    """What was spent, by hour, key, provider and model.

    `add` is called for some finished calls at a time and must not wait; they are on disk, or with
    the server, within a second, and at `close`. `query` sums the rows of the hours since the one
    `since` is in, dearest first.
    """

    def add(self, entries: Iterable[Entry]) -> None: ...

    async def query(self, since: float, by: Dimension) -> list[Spend]: ...


class Store(KeyStore, LimitStore, Ledger, Protocol):
    """One store is all three, with one life.

    `shared`: other processes see it too. `degraded`: why limits are decided from local state at
    the moment, for `/-/ready`; None while all is well. Between `start` and `close` it may own
    tasks and a thread.
    """

    @property
    def shared(self) -> bool: ...

    @property
    def degraded(self) -> str | None: ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...

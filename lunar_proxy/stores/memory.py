"""The store of one process: plain dicts, gone when it ends. The parts serve the others too.

`MemoryKeys` is also the index that a shared store keeps of its keys, `MemoryLimits` the state it
falls back on, and `MemoryLedger` the buffer it flushes.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from operator import add

from lunar_proxy.core import limits
from lunar_proxy.core.limits import Limits, State, Verdict

from .base import HOUR_S, Dimension, Entry, KeyRecord, Reservation, Spend

# Without auth every client address is a subject. A state is some 300 bytes.
MAX_SUBJECTS = 100_000


class MemoryKeys:
    """Records by digest, by the old digest of a rotated key, and by id."""

    def __init__(self, records: Iterable[KeyRecord] = ()) -> None:
        self._by_id: dict[str, KeyRecord] = {}
        self._by_digest: dict[str, KeyRecord] = {}
        self.used_at: dict[str, float] = {}
        for record in records:
            self.put(record)

    def __len__(self) -> int:
        return len(self._by_id)

    def find(self, digest: str, now: float) -> KeyRecord | None:
        record = self._by_digest.get(digest)
        if record is None:
            return None
        # The dict compared hashes of keys, which tells a prober nothing about a key; this compares
        # once more in constant time, so that nobody has to trust that argument.
        if not hmac.compare_digest(record.digest, digest) and not hmac.compare_digest(
            record.old_digest or "", digest
        ):
            return None
        self.used_at[record.id] = now
        return record

    def put(self, record: KeyRecord) -> None:
        self.drop(record.id)
        self._by_id[record.id] = record
        self._by_digest[record.digest] = record
        if record.old_digest is not None:
            self._by_digest[record.old_digest] = record

    def drop(self, id: str) -> None:
        record = self._by_id.pop(id, None)
        if record is not None:
            self._by_digest.pop(record.digest, None)
            self._by_digest.pop(record.old_digest or "", None)

    def clear(self) -> None:
        self._by_id.clear()
        self._by_digest.clear()

    def drain_use(self) -> dict[str, float]:
        """Times of use by id, since the last call."""
        used, self.used_at = self.used_at, {}
        return used

    def records(self) -> list[KeyRecord]:
        return [self._with_use(record) for record in self._by_id.values()]

    def _with_use(self, record: KeyRecord) -> KeyRecord:
        used_at = self.used_at.get(record.id, record.last_used_at)
        return record if used_at == record.last_used_at else replace(record, last_used_at=used_at)


class MemoryLimits:
    """One state per subject, the least recently used first."""

    def __init__(self, max_subjects: int = MAX_SUBJECTS) -> None:
        self._max_subjects = max_subjects
        self._states: OrderedDict[str, tuple[State, Limits]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    def take(self, reservation: Reservation, now: float) -> Verdict:
        if reservation.limits.empty:
            return limits.UNLIMITED
        state = self.state(reservation.subject)
        state, verdict = limits.take(state, reservation.limits, reservation.ask, now)
        reservation.held = reservation.local = verdict.blocked is None
        self.remember(reservation.subject, state, reservation.limits, now)
        return verdict

    def settle(self, reservation: Reservation, tokens: int, cost: int | None, now: float) -> None:
        if not reservation.held:
            return
        reservation.held = False
        state = limits.settle(
            self.state(reservation.subject), reservation.limits, reservation.ask, tokens, cost, now
        )
        self.remember(reservation.subject, state, reservation.limits, now)

    def state(self, subject: str) -> State:
        known = self._states.get(subject)
        return State() if known is None else known[0]

    def remember(self, subject: str, state: State, of: Limits, now: float) -> None:
        if subject in self._states:
            self._states.move_to_end(subject)
        else:
            self._make_room(now)
        self._states[subject] = (state, of)

    def _make_room(self, now: float) -> None:
        """Look at two for each that comes, so the idle go at the rate the new arrive."""
        for _ in range(min(2, len(self._states))):
            subject, (state, of) = self._states.popitem(last=False)
            full = len(self._states) + 1 >= self._max_subjects  # with the one that comes
            if not full and not limits.forward(state, of, now).idle:
                self._states[subject] = (state, of)


# Rows of the ledger before models that are not in it yet are counted as one: names come from
# clients, and a day of a thousand keys with ten models each is well below.
MOST_ROWS = 250_000
OTHER = "other"


class MemoryLedger:
    """Sums of amounts by place, which is (hour, key, provider, model)."""

    def __init__(self, most_rows: int = MOST_ROWS) -> None:
        self._most_rows = most_rows
        self._rows: dict[tuple[int, str, str, str], tuple[int, ...]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            place, amounts = entry.place, entry.amounts
            known = self._rows.get(place)
            if known is None and len(self._rows) >= self._most_rows:
                place = (*place[:3], OTHER)
                known = self._rows.get(place)
            self._rows[place] = amounts if known is None else tuple(map(add, known, amounts))

    def drain(self) -> list[Entry]:
        """All rows; the buffer is empty afterwards."""
        rows, self._rows = self._rows, {}
        return [Entry(*place, *amounts) for place, amounts in rows.items()]

    def rows(self, since: float) -> list[Entry]:
        first = int(since) // HOUR_S * HOUR_S
        return [Entry(*p, *amounts) for p, amounts in self._rows.items() if p[0] >= first]


def total(entries: Iterable[Entry], by: Dimension) -> list[Spend]:
    """One sum per key, model or provider, dearest first."""
    sums: dict[str, tuple[int, ...]] = {}
    for entry in entries:
        name = getattr(entry, by)
        sums[name] = tuple(map(add, sums.get(name, (0,) * 6), entry.amounts))
    spends = [Spend(name, *amounts) for name, amounts in sums.items()]
    return sorted(spends, key=lambda spend: (-spend.cost, -spend.requests, spend.name))


class MemoryStore:
    """`store: memory`: keys, limits and ledger of this process only."""

    shared = False
    degraded: str | None = None

    def __init__(self) -> None:
        self._keys = MemoryKeys()
        self._limits = MemoryLimits()
        self._ledger = MemoryLedger()
        self.take = self._limits.take
        self.settle = self._limits.settle
        self.find = self._keys.find
        self.add = self._ledger.add

    async def start(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to flush."""

    async def keys(self) -> list[KeyRecord]:
        return self._keys.records()

    async def save(self, record: KeyRecord) -> None:
        self._keys.put(record)

    async def query(self, since: float, by: Dimension) -> list[Spend]:
        return total(self._ledger.rows(since), by)

"""What real traffic says of each target: its breaker, its speed, its error rate.

The breaker is the classic one (Nygard, Release It!): CLOSED while failures within the window stay
under the limit, OPEN for `open_s` after, then HALF_OPEN for exactly one probe whose end decides.
Speed and error rate are exponentially weighted, so that an old bad minute fades.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from lunar_proxy.core.errors import (
    Blame,
    ContextTooLong,
    KeyRefused,
    ProxyError,
    UnknownModel,
)
from lunar_proxy.core.keyring import ONE_PLACE, Keyring
from lunar_proxy.core.model import Target

# A sample's weight: the last twenty or so calls make the picture.
_WEIGHT = 0.1
# A caller may name models without end (PROVIDER/ANYTHING); of no more than this is there a record.
MAX_RECORDS = 4096
# Failures that say nothing about whether the target works.
_NOT_COUNTED = (KeyRefused, UnknownModel, ContextTooLong)


class State(IntEnum):
    """Values as `lunar_target_state` shows them (CONTRACT 8)."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


@dataclass(frozen=True, slots=True)
class Breaker:
    """CONTRACT 2 `breaker`."""

    failures: int = 5
    window_s: float = 30.0
    open_s: float = 15.0


@dataclass(slots=True)
class Record:
    """One target's history. `ttft_s` and `error_rate` are None before the first call."""

    state: State = State.CLOSED
    opened_at: float = 0.0
    probing: bool = False
    failed_at: deque[float] = field(default_factory=deque)
    ttft_s: float | None = None
    error_rate: float | None = None
    key_refused: bool = False  # the provider does not take our key: someone must act
    ttfts: deque[float] = field(default_factory=lambda: deque(maxlen=100))

    def p95_ttft_s(self) -> float | None:
        """The hedging delay; None until there are enough samples for a 95th percentile."""
        if len(self.ttfts) < 20:
            return None
        return sorted(self.ttfts)[int(len(self.ttfts) * 0.95)]


class Health:
    """The records of all targets that have answered, or failed so that it counts."""

    def __init__(self, breaker: Breaker, now: Callable[[], float]) -> None:
        self.breaker = breaker
        self._now = now
        self._records: dict[Target, Record] = {}
        self._keyring = Keyring()

    def of(self, target: Target) -> Record:
        record = self._records.get(target)
        if record is None:
            if len(self._records) >= MAX_RECORDS:
                self._make_room()
            record = self._records[target] = Record()
        return record

    def snapshot(self) -> dict[Target, Record]:
        for record in self._records.values():
            self._ripen(record)
        return dict(self._records)

    def available(self, target: Target) -> bool:
        record = self._records.get(target)
        if record is None or record.state is State.CLOSED:
            return True
        self._ripen(record)
        return record.state is State.HALF_OPEN and not record.probing

    def closed(self, target: Target) -> bool:
        """Whether it may be asked without a thought: its breaker is closed."""
        record = self._records.get(target)
        return record is None or record.state is State.CLOSED

    def acquire(self, target: Target) -> float | None:
        """None: ask it, and say how it went. A number: do not, for that many seconds."""
        record = self._records.get(target)
        if record is None or record.state is State.CLOSED:
            return None
        self._ripen(record)
        if record.state is State.HALF_OPEN and not record.probing:
            record.probing = True
            return None
        waited = self._now() - record.opened_at
        return max(1.0, self.breaker.open_s - waited)

    def keys_in_turn(self, target: Target, keys: Sequence[bytes]) -> Sequence[int]:
        """The places of the provider's keys, in the order in which to try them."""
        if len(keys) < 2:
            return ONE_PLACE
        return self._keyring.in_turn(target.provider, keys, self._now())

    def succeeded(self, target: Target, ttft_s: float | None, key: bytes | None = None) -> None:
        record = self.of(target)
        if key is not None:
            self._keyring.succeeded(target.provider, key)
        record.error_rate = _blend(record.error_rate, 0.0)
        if ttft_s is not None:
            record.ttft_s = _blend(record.ttft_s, ttft_s)
            record.ttfts.append(ttft_s)
        record.key_refused = False
        if record.state is not State.CLOSED:
            self._close(record)

    def failed(self, target: Target, error: ProxyError, key: bytes | None = None) -> None:
        """`key`: the one of ours that it was asked with, which may be what is at fault."""
        self.released(target)
        if key is not None:
            usual_s = self.breaker.open_s
            self._keyring.failed(target.provider, key, error, self._now(), usual_s)
        if isinstance(error, KeyRefused):
            self.of(target).key_refused = True
        if error.blame is not Blame.UPSTREAM or isinstance(error, _NOT_COUNTED):
            return
        record = self.of(target)
        record.error_rate = _blend(record.error_rate, 1.0)
        now = self._now()
        record.failed_at.append(now)
        while record.failed_at and record.failed_at[0] <= now - self.breaker.window_s:
            record.failed_at.popleft()
        if record.state is not State.CLOSED or len(record.failed_at) >= self.breaker.failures:
            record.state, record.opened_at = State.OPEN, now

    def released(self, target: Target) -> None:
        """It is asked no longer, and that says nothing of it: the client left, or was at fault."""
        if (record := self._records.get(target)) is not None:
            record.probing = False

    def _make_room(self) -> None:
        """Forget half of them: breakers at work last, and of the others the first seen first."""
        records = sorted(self._records.items(), key=lambda item: item[1].state is not State.CLOSED)
        self._records = dict(records[len(records) // 2 :])

    def _ripen(self, record: Record) -> None:
        if record.state is State.OPEN and self._now() - record.opened_at >= self.breaker.open_s:
            record.state, record.probing = State.HALF_OPEN, False

    def _close(self, record: Record) -> None:
        record.state, record.probing = State.CLOSED, False
        record.failed_at.clear()


def _blend(old: float | None, sample: float) -> float:
    return sample if old is None else old + _WEIGHT * (sample - old)

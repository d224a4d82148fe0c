"""The rules of fallback and retry, and the point of no return.

An `Exchange` holds one call's plan, the targets in the order they may answer. It is told what
happened and says what to do; it never waits, and the loop in `relay.carry` does what it says.

    exchange = Exchange([A, B], Rules(), deadline=600)
    exchange.start(now=0)                       -> Send(A)
    exchange.failed(ConnectFailed("refused"))   -> Send(B)
    exchange.commit()                           the client has seen an answer begin
    exchange.failed(StreamBroken("cut"))        -> Refuse: B's failure is final

`committed` is the property to learn first. Before it every target is open, and the client knows
nothing of what failed. After it the client holds bytes that cannot be taken back: the call can
only end well, end with an error event, or (stream_recovery: splice) be carried on word for word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .errors import (
    ContextTooLong,
    NoHealthyTarget,
    ProviderError,
    ProxyError,
    TotalTimeout,
)
from .keyring import ONE_PLACE, is_about_the_key
from .model import Target


class Send(NamedTuple):
    """Ask this target, after `delay_s`, with the provider's key at the place `key`."""

    target: Target
    index: int  # type: ignore[assignment]
    delay_s: float = 0.0
    key: int = 0


class Resume(NamedTuple):
    """Committed and broken: ask this target and carry on where the text stopped (splice)."""

    target: Target
    index: int  # type: ignore[assignment]
    key: int = 0


class Refuse(NamedTuple):
    """Nothing is left to try: this is what the client is told."""

    error: ProxyError


Step = Send | Resume | Refuse


@dataclass(frozen=True, slots=True)
class Rules:
    """CONTRACT 2 `retries` and `stream_recovery`."""

    attempts: int = 2  # tries on one target, the first included
    backoff_s: float = 0.5
    max_backoff_s: float = 8.0
    retry_after_cap_s: float = 60.0
    splice: bool = False


@dataclass
class Exchange:
    """One call's walk along its plan.

    `keys` gives the places of a target's keys in the order to try them, never none; `window` its
    context window in tokens, where that is known.
    """

    plan: Sequence[Target]
    rules: Rules
    deadline: float  # monotonic seconds; over the whole chain
    keys: Callable[[Target], Sequence[int]] = lambda _target: ONE_PLACE
    window: Callable[[Target], int | None] = lambda _target: None
    committed: bool = field(init=False, default=False)
    index: int = field(init=False, default=0)
    tries: int = field(init=False, default=0)  # on the target at `index`, key rotations not counted
    _keys: Sequence[int] = field(init=False, default=ONE_PLACE)  # of that target, in turn
    _last: ProxyError | None = field(init=False, default=None)
    # What ended the answer that the client has begun to read.
    _broke: ProxyError | None = field(init=False, default=None)
    _open_for_s: tuple[float, ...] = field(init=False, default=())

    def start(self, now: float) -> Step:
        if not self.plan:
            return Refuse(NoHealthyTarget("no target is configured for this model"))
        return self._send(now)

    def commit(self) -> None:
        """The first content goes out: from here on only this target can answer."""
        self.committed = True

    def failed(self, error: ProxyError, now: float, draw: float = 0.5) -> Step:
        """What follows from a failed attempt; `draw` in [0, 1) jitters the backoff."""
        self._last = error
        if self.committed:
            return self._recover(error, now)
        if now >= self.deadline:
            return Refuse(self._out_of_time())
        if is_about_the_key(error) and len(self._keys) > 1:
            self._keys = self._keys[1:]
            return self._ask()
        if error.retryable and self.tries < self.rules.attempts:
            delay = self._delay(error, draw)
            if delay is not None and now + delay < self.deadline:
                self.tries += 1
                return self._ask(delay)
        if isinstance(error, ContextTooLong):
            return self._larger(error)
        return self._next(now) if error.moves_on else Refuse(error)

    def hedge(self) -> Send | None:
        """The target to ask beside the present one; if both fail, the walk goes on behind it."""
        if self.committed or self.index + 1 >= len(self.plan):
            return None
        self._go_to(self.index + 1)
        self.tries = self.rules.attempts
        return self._ask()

    def place(self, target: Target) -> int:
        return self.plan.index(target)

    def skipped(self, retry_after_s: float, now: float) -> Step:
        """The target's breaker is open for that long, so it was not asked at all."""
        self._open_for_s += (retry_after_s,)
        if self.committed:
            return self._recover(self._last or self._all_open(), now)
        return self._next(now)

    def _send(self, now: float) -> Step:
        if now >= self.deadline:
            return Refuse(self._out_of_time())
        # What every call does, so without `_go_to` and `_ask`.
        target = self.plan[self.index]
        self.tries, self._keys = 1, self.keys(target)
        return Send(target, self.index, 0.0, self._keys[0])

    def _ask(self, delay_s: float = 0.0) -> Send:
        return Send(self.plan[self.index], self.index, delay_s, self._keys[0])

    def _go_to(self, index: int) -> None:
        self.index, self.tries, self._keys = index, 1, self.keys(self.plan[index])

    def _next(self, now: float) -> Step:
        if self.index + 1 >= len(self.plan):
            return Refuse(self._last or self._all_open())
        self.index += 1
        return self._send(now)

    def _larger(self, error: ContextTooLong) -> Step:
        """To the next target whose window is known to be larger; else the client learns of it."""
        here = self.window(self.plan[self.index])
        for index in range(self.index + 1, len(self.plan)):
            there = self.window(self.plan[index])
            if here is not None and there is not None and there > here:
                self._go_to(index)
                return self._ask()
        return Refuse(error)

    def _delay(self, error: ProxyError, draw: float) -> float | None:
        """Seconds before the same target is tried again; None: it asks for more than the cap.

        Without a wish of the provider's: exponential, half of it fixed and half drawn, so that
        clients which failed together do not return together.
        """
        asked = error.retry_after_s if isinstance(error, ProviderError) else None
        if asked is not None:
            return asked if asked <= self.rules.retry_after_cap_s else None
        full = min(self.rules.max_backoff_s, self.rules.backoff_s * 2.0 ** (self.tries - 1))
        return full * (0.5 + draw / 2)

    def _recover(self, error: ProxyError, now: float) -> Step:
        """To the next target, if it may go on with what the client has; else the end of it.

        A target that was asked to go on and said no never spoke to this client: its no neither
        stops the walk nor is what the client is told.
        """
        said_no = isinstance(error, ProviderError) and not error.moves_on
        if not said_no or self._broke is None:
            self._broke = error
        spliceable = self.rules.splice and (error.moves_on or said_no)
        if not spliceable or now >= self.deadline or self.index + 1 >= len(self.plan):
            return Refuse(self._broke)
        self._go_to(self.index + 1)
        return Resume(self.plan[self.index], self.index, self._keys[0])

    def _out_of_time(self) -> ProxyError:
        return TotalTimeout("the call did not finish within its total time (timeouts.total_s)")

    def _all_open(self) -> ProxyError:
        return NoHealthyTarget(
            "every target for this model is failing at the moment; try again later",
            retry_after_s=min(self._open_for_s, default=1.0),
        )

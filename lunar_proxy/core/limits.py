"""The arithmetic of limits: (state, limits, ask, now) -> (state, verdict), all limits at once.

Requests and tokens per minute are leaky buckets used as meters, which is GCRA written as a level
instead of a time (ITU-T I.371 annex A; brandur.org/rate-limiting): a full minute's burst passes at
once, then the bucket drains evenly. Levels are whole 60 000ths of a request or token and times
whole milliseconds, so that draining `limit` per minute is `limit` per millisecond, exactly.

A call *holds* its tokens and dollars (estimate + max_tokens) from `take` until `settle`, and pays
the real use then. What is held does not drain: if it did, refunding the unused part of a call
whose hold had drained meanwhile would hand out the same tokens twice.

A budget is a calendar window in UTC. While other calls are in flight one more may start only if
its worst case still fits, so concurrency cannot overrun a budget. Alone, a call may start while
anything is left, since a worst case must not lock the last cents away for good; the overrun is at
most that one call.

`now` is seconds since 1970 on the wall clock. A clock that steps back drains nothing and reopens
no window.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Literal, NamedTuple

from .errors import BudgetExceeded, LimitExceeded
from .model import Headers
from .money import UNITS_PER_USD

Per = Literal["hour", "day", "month", "total"]
Name = Literal["requests", "tokens", "concurrent", "budget"]  # label of lunar_rate_limited_total

MINUTE_MS = 60_000

# When a slot or a held reservation comes free depends on calls in flight, so the wait is a guess.
RELEASE_WAIT_S = 1.0

# A budget without a window never comes back by itself; ask again tomorrow, someone may raise it.
TOTAL_WAIT_S = 86_400.0

NEVER = 1 << 62  # end of a window that does not end


# More than any call is or costs, so that whatever number a client or a provider writes stays exact
# in every store: levels fit SQLite's 64 bits, sums the 53 of Redis' Lua.
MAX_TOKENS = 10**10
MAX_UNITS = 10**15  # 100 000 USD


def bounded(units: int | None) -> int:
    """What one call costs, and no more than any does; unknown is 0."""
    return 0 if units is None else min(units, MAX_UNITS)


@dataclass(frozen=True, slots=True)
class Budget:
    """US dollars per calendar window (UTC)."""

    usd: Decimal
    per: Per = "month"
    units: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", math.ceil(self.usd * UNITS_PER_USD))


@dataclass(frozen=True, slots=True)
class Limits:
    """What one key may do; None: no such limit. `tokens_per_minute` counts input and output."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    budget: Budget | None = None

    empty: bool = field(init=False, repr=False, compare=False)  # asked of every call

    def __post_init__(self) -> None:
        counts = (self.requests_per_minute, self.tokens_per_minute, self.concurrent_requests)
        empty = counts == (None, None, None) and self.budget is None
        object.__setattr__(self, "empty", empty)


class Ask(NamedTuple):
    """The worst case of one call: tokens of the prompt plus max_tokens, and what they cost in
    units (`core.money`), neither above its most (`Ask.of`).
    """

    tokens: int = 0
    units: int = 0

    @classmethod
    def of(cls, tokens: int = 0, units: int | None = None) -> Ask:
        return cls(min(tokens, MAX_TOKENS), bounded(units))


NOTHING = Ask()


@dataclass(frozen=True, slots=True)
class Window:
    """One budget window: [start, end) in whole seconds since 1970."""

    per: Per
    start: int
    end: int


class State(NamedTuple):
    """What is remembered of one subject. `State()` is one that was never seen.

    This, the ask and the verdict are named tuples because every call makes some: a tuple takes a
    quarter of the time of a frozen dataclass.
    """

    at_ms: int = 0  # when the levels were last drained
    requests: int = 0  # level, in 60 000ths
    tokens: int = 0  # level, in 60 000ths
    calls: int = 0  # in flight
    held_tokens: int = 0  # by the calls in flight
    held_usd: int = 0  # by the calls in flight, in units
    window: Window | None = None
    spent: int = 0  # in `window`, in units

    @property
    def idle(self) -> bool:
        """Nothing is remembered that a new state would not say too."""
        return not (self.requests or self.tokens or self.calls or self.spent)


# What a named tuple is made by is a function in Python around this; a call makes five states.
_state: Callable[[tuple[int, int, int, int, int, int, Window | None, int]], State] = partial(
    tuple.__new__, State
)


class Gauge(NamedTuple):
    """One limit as the x-ratelimit headers tell it."""

    limit: int
    remaining: int
    reset_s: float  # until all of it is there again


class Blocked(NamedTuple):
    """The limit that said no. `final`: the same request cannot pass by waiting."""

    limit: Name
    retry_after_s: float
    message: str
    final: bool = False


class Verdict(NamedTuple):
    """The answer to one ask: the state after it, under the limits it was decided by."""

    blocked: Blocked | None
    state: State
    limits: Limits
    degraded: bool = False  # decided from local state, because the shared store does not answer

    @property
    def allowed(self) -> bool:
        return self.blocked is None

    @property
    def requests(self) -> Gauge | None:
        rpm = self.limits.requests_per_minute
        return None if rpm is None else _gauge(self.state.requests, rpm)

    @property
    def tokens(self) -> Gauge | None:
        tpm = self.limits.tokens_per_minute
        return None if tpm is None else _gauge(_token_level(self.state), tpm)


UNLIMITED = Verdict(None, State(), Limits())


def window(per: Per, now: float) -> Window:
    """The calendar window that `now` falls in."""
    match per:
        case "total":
            return Window(per, 0, NEVER)
        case "hour" | "day":
            length = 3600 if per == "hour" else 86_400
            start = int(now) // length * length
            return Window(per, start, start + length)
        case "month":
            first = datetime.fromtimestamp(now, UTC).replace(
                day=1, hour=0, minute=0, second=0, microsecond=0
            )
            year, month = divmod(first.year * 12 + first.month, 12)
            after = first.replace(year=year, month=month + 1)
            return Window(per, int(first.timestamp()), int(after.timestamp()))


def forward(state: State, limits: Limits, now: float) -> State:
    """The state at `now`: levels drained, an ended budget window opened anew."""
    at_ms, requests, tokens, calls, held_tokens, held_usd, opened, spent = state
    now_ms = max(int(now * 1000), at_ms)
    passed_ms = now_ms - at_ms
    budget = limits.budget
    if budget is not None and (opened is None or opened.per != budget.per or now >= opened.end):
        opened, spent = window(budget.per, now), 0
    requests = _drained(requests, limits.requests_per_minute, passed_ms)
    tokens = _drained(tokens, limits.tokens_per_minute, passed_ms)
    return _state((now_ms, requests, tokens, calls, held_tokens, held_usd, opened, spent))


def _drained(level: int, per_minute: int | None, passed_ms: int) -> int:
    if per_minute is None:
        return 0
    left = level - passed_ms * per_minute
    return left if left > 0 else 0


def take(state: State, limits: Limits, ask: Ask, now: float) -> tuple[State, Verdict]:
    """One decision over all limits: everything is taken, or nothing is."""
    state = forward(state, limits, now)
    blocked = blocking(state, limits, ask)
    if blocked is None:
        state = hold(state, ask, requests=1)
    return state, Verdict(blocked, state, limits)


def hold(state: State, ask: Ask, *, requests: int = 0) -> State:
    """One more call in flight, and `requests` more of this minute's."""
    at_ms, level, tokens, calls, held_tokens, held_usd, opened, spent = state
    level += requests * MINUTE_MS
    held_tokens += ask.tokens
    held_usd += ask.units
    return _state((at_ms, level, tokens, calls + 1, held_tokens, held_usd, opened, spent))


def settle(
    state: State, limits: Limits, ask: Ask, tokens: int, cost: int | None, now: float
) -> State:
    """The call is over: what it held is given back, and what it used is paid."""
    at_ms, requests, level, calls, held_tokens, held_usd, opened, spent = charge(
        state, limits, tokens, cost, now
    )
    calls = max(0, calls - 1)
    held_tokens = max(0, held_tokens - ask.tokens)
    held_usd = max(0, held_usd - ask.units)
    return _state((at_ms, requests, level, calls, held_tokens, held_usd, opened, spent))


def charge(state: State, limits: Limits, tokens: int, cost: int | None, now: float) -> State:
    """Pay for real use, which may leave a level above its limit: the next call waits it out.

    `cost` is in units; None: not known.
    """
    at_ms, requests, level, calls, held_tokens, held_usd, opened, spent = forward(
        state, limits, now
    )
    level += min(tokens, MAX_TOKENS) * MINUTE_MS
    spent += bounded(cost)
    return _state((at_ms, requests, level, calls, held_tokens, held_usd, opened, spent))


def blocking(state: State, limits: Limits, ask: Ask) -> Blocked | None:
    """Of a state brought `forward`: the limit with the longest wait, so that who waits as told
    gets through; None: it fits.
    """
    blocks = _blocks(state, limits, ask)
    return max(blocks, key=lambda b: (b.final, b.retry_after_s)) if blocks else None


def _blocks(state: State, limits: Limits, ask: Ask) -> list[Blocked]:
    blocks = []
    rpm, tpm = limits.requests_per_minute, limits.tokens_per_minute
    slots, budget = limits.concurrent_requests, limits.budget
    if rpm is not None and (over := state.requests + (1 - rpm) * MINUTE_MS) > 0:
        blocks.append(
            Blocked("requests", _drain_s(over, rpm), f"limit of {rpm} requests per minute")
        )
    if tpm is not None and (over := _token_level(state) + (ask.tokens - tpm) * MINUTE_MS) > 0:
        blocks.append(_tokens_blocked(over, tpm, ask))
    if slots is not None and state.calls >= slots:
        blocks.append(
            Blocked("concurrent", RELEASE_WAIT_S, f"limit of {slots} concurrent requests")
        )
    if budget is not None:
        if state.spent >= budget.units:
            blocks.append(Blocked("budget", _until_next_window_s(state), _budget_of(budget)))
        elif state.calls and state.spent + state.held_usd + ask.units > budget.units:
            message = f"{_budget_of(budget)}, with the calls in flight,"
            blocks.append(Blocked("budget", RELEASE_WAIT_S, message))
    return blocks


_PER = {"hour": "per hour", "day": "per day", "month": "per month", "total": "in total"}


def _tokens_blocked(over: int, tpm: int, ask: Ask) -> Blocked:
    limit = f"limit of {tpm} tokens per minute"
    if ask.tokens <= tpm:
        return Blocked("tokens", _drain_s(over, tpm), f"{limit} (this request: {ask.tokens})")
    message = f"{limit} is smaller than this request, which needs {ask.tokens}; lower max_tokens"
    return Blocked("tokens", MINUTE_MS / 1000, message, final=True)


def _budget_of(budget: Budget) -> str:
    return f"budget of {budget.usd} USD {_PER[budget.per]}"


def _until_next_window_s(state: State) -> float:
    if state.window is None or state.window.end == NEVER:
        return TOTAL_WAIT_S
    return (state.window.end * 1000 - state.at_ms) / 1000


def _token_level(state: State) -> int:
    return state.tokens + state.held_tokens * MINUTE_MS


def _drain_s(level: int, per_minute: int) -> float:
    """Seconds until `level` has drained: whole milliseconds, rounded up."""
    return _drain_ms(level, per_minute) / 1000


def _drain_ms(level: int, per_minute: int) -> int:
    return -(-level // per_minute)


def _remaining(level: int, limit: int) -> int:
    left = limit + -level // MINUTE_MS
    return left if left > 0 else 0


def _gauge(level: int, limit: int) -> Gauge:
    return Gauge(limit, _remaining(level, limit), _drain_s(level, limit))


def rate_limit_headers(verdict: Verdict) -> Headers:
    """The `x-ratelimit-*` headers of an answer; none for a limit that is not set."""
    state, limits = verdict.state, verdict.limits
    rpm, tpm = limits.requests_per_minute, limits.tokens_per_minute
    headers = () if rpm is None else _gauge_headers(_REQUESTS, state.requests, rpm)
    if tpm is None:
        return headers
    return headers + _gauge_headers(_TOKENS, _token_level(state), tpm)


_REQUESTS, _TOKENS = (
    tuple(f"x-ratelimit-{said}-{what}".encode() for said in ("limit", "remaining", "reset"))
    for what in ("requests", "tokens")
)


def _gauge_headers(names: tuple[bytes, ...], level: int, limit: int) -> Headers:
    limit_name, remaining, reset = names
    return (
        (limit_name, b"%d" % limit),
        (remaining, b"%d" % _remaining(level, limit)),
        (reset, _duration(_drain_ms(level, limit)).encode()),
    )


def duration(seconds: float) -> str:
    """As OpenAI writes them, which is as Go does: `0s`, `17ms`, `8.64s`, `6m0s`, `1h0m30s`."""
    return _duration(round(seconds * 1000))


def _duration(ms: int) -> str:
    if 0 < ms < 1000:
        return f"{ms}ms"
    minutes, ms = divmod(ms, MINUTE_MS)
    hours, minutes = divmod(minutes, 60)
    whole, fraction = divmod(ms, 1000)
    tail = f"{whole}.{fraction:03d}".rstrip("0") if fraction else str(whole)
    if hours:
        return f"{hours}h{minutes}m{tail}s"
    return f"{minutes}m{tail}s" if minutes else f"{tail}s"


# The OpenAI clients wait as told up to a minute; told to wait longer they come back after half a
# second instead (openai-python `_calculate_retry_timeout`), unless told not to come back at all.
_WORTH_RETRYING_S = 60.0


def refusal(verdict: Verdict) -> LimitExceeded:
    """The error of a verdict that is not allowed."""
    blocked = verdict.blocked
    assert blocked is not None, "an allowed call is not refused"
    wait_s = blocked.retry_after_s
    headers = tuple((name.decode(), value.decode()) for name, value in rate_limit_headers(verdict))
    if blocked.final or wait_s > _WORTH_RETRYING_S:
        headers = (*headers, ("x-should-retry", "false"))
    again = "" if blocked.final else f" is reached; try again in {duration(wait_s)}"
    kind = BudgetExceeded if blocked.limit == "budget" else LimitExceeded
    error = kind(blocked.message + again, retry_after_s=wait_s, headers=headers)
    error.limit = blocked.limit
    return error

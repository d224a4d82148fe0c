"""Limits are arithmetic: an ask, a clock, a verdict."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lunar_proxy.core.errors import BudgetExceeded, LimitExceeded
from lunar_proxy.core.limits import (
    Ask,
    Budget,
    Gauge,
    Limits,
    Per,
    State,
    duration,
    forward,
    rate_limit_headers,
    refusal,
    settle,
    take,
    window,
)
from lunar_proxy.core.money import UNITS_PER_USD

T0 = 1_800_000_000.0


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def admitted(limits: Limits, ask: Ask, times: int, state: State | None = None) -> tuple[State, int]:
    state, count = state or State(), 0
    for _ in range(times):
        state, verdict = take(state, limits, ask, T0)
        count += verdict.allowed
    return state, count


def test_a_full_minute_may_burst_and_then_refills_evenly() -> None:
    limits = Limits(requests_per_minute=60)
    state, count = admitted(limits, Ask(), 100)
    assert count == 60
    state, verdict = take(state, limits, Ask(), T0 + 0.999)
    assert not verdict.allowed
    state, verdict = take(state, limits, Ask(), T0 + 1)
    assert verdict.allowed


def test_who_waits_as_told_gets_through_and_a_millisecond_earlier_does_not() -> None:
    limits = Limits(requests_per_minute=7)  # no whole number of milliseconds
    state, _ = admitted(limits, Ask(), 7)
    _, verdict = take(state, limits, Ask(), T0)
    assert verdict.blocked is not None
    wait = verdict.blocked.retry_after_s
    assert take(state, limits, Ask(), T0 + wait)[1].allowed
    assert not take(state, limits, Ask(), T0 + wait - 0.001)[1].allowed


@given(
    rpm=st.integers(1, 500),
    gaps_ms=st.lists(st.integers(0, 5000), max_size=200),
)
def test_no_minute_admits_more_than_a_burst_and_a_refill(rpm: int, gaps_ms: list[int]) -> None:
    limits, state, now, passed = Limits(requests_per_minute=rpm), State(), 0, []
    for gap in gaps_ms:
        now += gap
        state, verdict = take(state, limits, Ask(), now / 1000)
        if verdict.allowed:
            passed.append(now)
    for i, first in enumerate(passed):
        for j, last in enumerate(passed[i:], i):
            assert j - i + 1 <= rpm + (last - first) * rpm / 60_000 + 1e-6


def test_a_concurrent_call_over_the_limit_is_refused_until_one_ends() -> None:
    limits = Limits(concurrent_requests=2)
    state, count = admitted(limits, Ask(), 3)
    assert count == 2
    state = settle(state, limits, Ask(), 0, None, T0)
    assert take(state, limits, Ask(), T0)[1].allowed


def test_tokens_are_held_at_their_worst_case_and_settled_as_used() -> None:
    limits = Limits(tokens_per_minute=1000)
    state, _ = take(State(), limits, Ask(tokens=900), T0)
    assert not take(state, limits, Ask(tokens=200), T0)[1].allowed
    state = settle(state, limits, Ask(tokens=900), 50, None, T0)
    _, verdict = take(state, limits, Ask(tokens=200), T0)
    assert verdict.tokens == Gauge(1000, 750, 15.0)


def test_what_is_held_does_not_drain_so_a_refund_cannot_be_had_twice() -> None:
    limits = Limits(tokens_per_minute=1000)
    state, _ = take(State(), limits, Ask(tokens=1000), T0)
    assert not take(state, limits, Ask(tokens=1), T0 + 59)[1].allowed
    state = settle(state, limits, Ask(tokens=1000), 0, None, T0 + 59)
    assert take(state, limits, Ask(tokens=1000), T0 + 59)[1].allowed


def test_using_more_than_was_held_is_a_debt_for_the_next_call() -> None:
    limits = Limits(tokens_per_minute=1000)
    state, _ = take(State(), limits, Ask(tokens=10), T0)
    state = settle(state, limits, Ask(tokens=10), 3000, None, T0)
    _, verdict = take(state, limits, Ask(tokens=0), T0)
    assert verdict.blocked is not None
    assert verdict.blocked.retry_after_s == 120.0
    assert verdict.tokens == Gauge(1000, 0, 180.0)


def test_a_request_larger_than_the_limit_is_told_so_and_not_to_come_back() -> None:
    _, verdict = take(State(), Limits(tokens_per_minute=1000), Ask(tokens=1001), T0)
    error = refusal(verdict)
    assert isinstance(error, LimitExceeded)
    assert "smaller than this request" in error.message
    assert error.retry_after_s == 60.0
    assert ("x-should-retry", "false") in error.headers


@pytest.mark.parametrize(
    ("per", "now", "start", "end"),
    [
        ("hour", "2026-11-22T19:56:01", "2026-11-22T19:00", "2026-11-22T20:00"),
        ("day", "2026-11-22T19:56:01", "2026-11-22", "2026-11-23"),
        ("month", "2026-12-31T23:59:59", "2026-12-01", "2027-01-01"),
        ("month", "2028-02-29T00:00:00", "2028-02-01", "2028-03-01"),
    ],
)
def test_windows_are_calendar_ones_in_utc(per: Per, now: str, start: str, end: str) -> None:
    opened = window(per, at(now))
    assert (opened.start, opened.end) == (at(start), at(end))


def test_a_spent_budget_opens_again_with_the_next_window() -> None:
    limits = Limits(budget=Budget(Decimal(1), "day"))
    now = at("2026-11-22T18:00")
    state, _ = take(State(), limits, Ask(), now)
    state = settle(state, limits, Ask(), 0, UNITS_PER_USD, now)
    state, verdict = take(state, limits, Ask(), now)
    error = refusal(verdict)
    assert isinstance(error, BudgetExceeded)
    assert error.retry_after_s == 6 * 3600
    assert error.message == "budget of 1 USD per day is reached; try again in 6h0m0s"
    assert take(state, limits, Ask(), now + 6 * 3600)[1].allowed


def test_a_total_budget_never_opens_again() -> None:
    limits = Limits(budget=Budget(Decimal(1), "total"))
    state, _ = take(State(), limits, Ask(), T0)
    state = settle(state, limits, Ask(), 0, 2 * UNITS_PER_USD, T0)
    _, verdict = take(state, limits, Ask(), T0 + 1e9)
    assert verdict.blocked is not None
    assert verdict.blocked.retry_after_s == 86_400


def test_calls_in_flight_cannot_overrun_a_budget() -> None:
    limits = Limits(budget=Budget(Decimal(1), "month"))
    _, count = admitted(limits, Ask.of(units=3 * UNITS_PER_USD // 10), 10)
    assert count == 3


def test_alone_a_call_may_use_the_last_cents_though_its_worst_case_is_more() -> None:
    limits = Limits(budget=Budget(Decimal(1), "month"))
    _, count = admitted(limits, Ask.of(units=5 * UNITS_PER_USD), 10)
    assert count == 1


def test_the_longest_wait_is_the_one_told() -> None:
    limits = Limits(requests_per_minute=60, tokens_per_minute=10)
    state, _ = admitted(limits, Ask(tokens=0), 60)
    state = settle(state, limits, Ask(), 20, None, T0)
    _, verdict = take(state, limits, Ask(tokens=1), T0)
    assert verdict.blocked is not None
    assert (verdict.blocked.limit, verdict.blocked.retry_after_s) == ("tokens", 66.0)


def test_a_clock_that_steps_back_gives_nothing() -> None:
    limits = Limits(requests_per_minute=1, budget=Budget(Decimal(1), "day"))
    state, _ = take(State(), limits, Ask(), T0)
    state = settle(state, limits, Ask(), 0, UNITS_PER_USD, T0)
    back = forward(state, limits, T0 - 86_400)
    assert back == state


def test_a_refused_ask_takes_nothing() -> None:
    limits = Limits(requests_per_minute=5, concurrent_requests=1)
    state, _ = take(State(), limits, Ask(tokens=7), T0)
    after, verdict = take(state, limits, Ask(tokens=7), T0)
    assert not verdict.allowed
    assert after == state


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 900), st.integers(0, 900)), max_size=60))
def test_when_every_call_is_settled_nothing_is_held(
    calls: list[tuple[bool, int, int]],
) -> None:
    limits = Limits(tokens_per_minute=1000, concurrent_requests=5, budget=Budget(Decimal(1)))
    state, open_asks, paid = State(), [], 0
    for start, held, used in calls:
        if start:
            ask = Ask.of(held, held * 10**6)
            state, verdict = take(state, limits, ask, T0)
            open_asks += [ask] * verdict.allowed
        elif open_asks:
            state = settle(state, limits, open_asks.pop(), used, used, T0)
            paid += used
    for ask in open_asks:
        state = settle(state, limits, ask, 0, None, T0)
    assert (state.calls, state.held_tokens, state.held_usd) == (0, 0, 0)
    assert (state.spent, state.tokens) == (paid, paid * 60_000)


def test_headers_are_those_of_openai_and_only_for_limits_that_are_set() -> None:
    _, verdict = take(State(), Limits(requests_per_minute=60), Ask(), T0)
    assert rate_limit_headers(verdict) == (
        (b"x-ratelimit-limit-requests", b"60"),
        (b"x-ratelimit-remaining-requests", b"59"),
        (b"x-ratelimit-reset-requests", b"1s"),
    )
    _, verdict = take(State(), Limits(tokens_per_minute=100), Ask(tokens=30), T0)
    assert rate_limit_headers(verdict) == (
        (b"x-ratelimit-limit-tokens", b"100"),
        (b"x-ratelimit-remaining-tokens", b"70"),
        (b"x-ratelimit-reset-tokens", b"18s"),
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.017, "17ms"),
        (1, "1s"),
        (8.64, "8.64s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (86.4, "1m26.4s"),
        (3630, "1h0m30s"),
    ],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_no_limit_is_always_allowed() -> None:
    _, verdict = take(State(), Limits(), Ask.of(10**9, 10**6 * UNITS_PER_USD), T0)
    assert verdict.allowed
    assert rate_limit_headers(verdict) == ()

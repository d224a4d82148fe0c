"""The breaker's life, with the clock in the hand."""

from __future__ import annotations

import pytest

from lunar_proxy.core.errors import (
    ContextTooLong,
    KeyRefused,
    ProxyError,
    Refused,
    StreamBroken,
    UnknownModel,
)
from lunar_proxy.core.model import Target
from lunar_proxy.relay.health import MAX_RECORDS, Breaker, Health, State
from lunar_proxy.testing import FakeClock

T = Target("a", "m")
CUT = StreamBroken("cut")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def health(clock: FakeClock) -> Health:
    return Health(Breaker(failures=3, window_s=30, open_s=15), clock.now)


def fail(health: Health, times: int, error: ProxyError = CUT) -> None:
    for _ in range(times):
        health.failed(T, error)


def test_opens_after_failures_within_the_window(health: Health) -> None:
    fail(health, 2)
    assert health.acquire(T) is None
    fail(health, 1)
    assert health.of(T).state is State.OPEN
    assert health.acquire(T) == 15
    assert not health.available(T)


def test_failures_outside_the_window_do_not_count(health: Health, clock: FakeClock) -> None:
    fail(health, 2)
    clock.advance(30)
    fail(health, 2)
    assert health.of(T).state is State.CLOSED


def test_half_opens_for_exactly_one_probe(health: Health, clock: FakeClock) -> None:
    fail(health, 3)
    clock.advance(15)
    assert health.available(T)
    assert health.acquire(T) is None
    assert health.of(T).state is State.HALF_OPEN
    assert health.acquire(T) is not None
    assert not health.available(T)


def test_a_good_probe_closes_it_and_a_bad_one_opens_it_again(
    health: Health, clock: FakeClock
) -> None:
    fail(health, 3)
    clock.advance(15)
    health.acquire(T)
    health.failed(T, CUT)
    assert health.of(T).state is State.OPEN
    clock.advance(15)
    health.acquire(T)
    health.succeeded(T, 0.1)
    assert health.of(T).state is State.CLOSED
    assert health.acquire(T) is None


def test_a_probe_whose_client_left_leaves_room_for_another(
    health: Health, clock: FakeClock
) -> None:
    fail(health, 3)
    clock.advance(15)
    health.acquire(T)
    health.released(T)
    assert health.acquire(T) is None


@pytest.mark.parametrize(
    "error",
    [
        Refused("x", status=400),
        KeyRefused("x", status=401),
        UnknownModel("x", status=404),
        ContextTooLong("x", status=400),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_says_nothing_about_the_target_is_not_counted(
    health: Health, error: ProxyError
) -> None:
    fail(health, 5, error)
    assert health.of(T).state is State.CLOSED
    assert health.of(T).error_rate is None
    assert health.of(T).key_refused is isinstance(error, KeyRefused)


def test_speed_and_error_rate_follow_the_traffic(health: Health) -> None:
    health.succeeded(T, 1.0)
    assert (health.of(T).ttft_s, health.of(T).error_rate) == (1.0, 0.0)
    health.succeeded(T, 2.0)
    assert health.of(T).ttft_s == pytest.approx(1.1)
    fail(health, 1)
    assert health.of(T).error_rate == pytest.approx(0.1)


def test_the_95th_percentile_needs_samples(health: Health) -> None:
    for i in range(19):
        health.succeeded(T, float(i))
    assert health.of(T).p95_ttft_s() is None
    health.succeeded(T, 19.0)
    assert health.of(T).p95_ttft_s() == 19.0


# --- names without end ----------------------------------------------------------------------------


def invent(health: Health, count: int, *, good: bool) -> None:
    for n in range(count):
        made_up = Target("a", f"made-up-{n}")
        if good:
            health.succeeded(made_up, 0.1)
        else:
            health.failed(made_up, UnknownModel("x", status=404))


def test_models_that_nobody_serves_leave_nothing(health: Health) -> None:
    invent(health, 10, good=False)
    health.acquire(T)
    health.released(T)
    assert health.snapshot() == {}


def test_models_that_callers_make_up_do_not_pile_up(health: Health) -> None:
    invent(health, 3 * MAX_RECORDS, good=True)
    assert MAX_RECORDS // 2 <= len(health.snapshot()) <= MAX_RECORDS


def test_an_open_breaker_is_not_forgotten_for_them(health: Health) -> None:
    fail(health, 3)
    invent(health, 2 * MAX_RECORDS, good=True)
    assert not health.available(T)


def test_nor_do_open_breakers_pile_up(health: Health) -> None:
    for n in range(2 * MAX_RECORDS):
        for _ in range(3):
            health.failed(Target("a", f"made-up-{n}"), CUT)
    assert len(health.snapshot()) <= MAX_RECORDS

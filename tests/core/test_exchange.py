"""The rules of CONTRACT 6, as conversations: what happened, what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lunar_proxy.core.errors import (
    BadAnswer,
    ConnectFailed,
    ConnectTimeout,
    ContextTooLong,
    FirstTokenTimeout,
    IdleTimeout,
    InBandError,
    KeyRefused,
    NoAnswer,
    NoHealthyTarget,
    ProxyError,
    Refused,
    StreamBroken,
    TlsFailed,
    TotalTimeout,
    UnknownModel,
    UpstreamBusy,
)
from lunar_proxy.core.exchange import Exchange, Refuse, Resume, Rules, Send
from lunar_proxy.core.model import Target

A, B, C = Target("a", "m"), Target("b", "m"), Target("c", "m")
RULES = Rules(attempts=2, backoff_s=0.5, max_backoff_s=8.0, retry_after_cap_s=60.0)


def exchange(*plan: Target, rules: Rules = RULES, deadline: float = 600.0) -> Exchange:
    return Exchange(plan, rules, deadline)


def busy(status: int = 503, retry_after_s: float | None = None) -> UpstreamBusy:
    return UpstreamBusy("busy", status=status, retry_after_s=retry_after_s)


MOVES_ON_AT_ONCE: dict[str, ProxyError] = {
    "connect": ConnectFailed("x"),
    "connect timeout": ConnectTimeout("x"),
    "tls": TlsFailed("x"),
    "silence": FirstTokenTimeout("x"),
    "our key": KeyRefused("x", status=401),
    "no such model there": UnknownModel("x", status=404),
    "not an answer": BadAnswer("x"),
}


@pytest.mark.parametrize("error", MOVES_ON_AT_ONCE.values(), ids=MOVES_ON_AT_ONCE.keys())
def test_moves_on_at_once(error: ProxyError) -> None:
    walk = exchange(A, B)
    assert walk.start(0) == Send(A, 0)
    assert walk.failed(error, 1) == Send(B, 1)
    assert walk.failed(error, 2) == Refuse(error)


RETRIED: dict[str, ProxyError] = {
    "429": busy(429),
    "500": busy(500),
    "503": busy(503),
    "reset before headers": NoAnswer("x"),
    "cut before content": StreamBroken("x"),
    "an error in a 200": InBandError("x", status=502),
}


@pytest.mark.parametrize("error", RETRIED.values(), ids=RETRIED.keys())
def test_retries_the_same_target_then_moves_on(error: ProxyError) -> None:
    walk = exchange(A, B)
    walk.start(0)
    again = walk.failed(error, 1)
    assert isinstance(again, Send)
    assert (again.target, again.delay_s > 0) == (A, True)
    assert walk.failed(error, 2) == Send(B, 1)


@pytest.mark.parametrize("status", [400, 409, 413, 422])
def test_a_refusal_of_the_request_is_passed_on(status: int) -> None:
    refused = Refused("content_filter", status=status)
    walk = exchange(A, B)
    walk.start(0)
    assert walk.failed(refused, 1) == Refuse(refused)


WAITS = {
    "as asked": (busy(429, 3.0), 0.5, 3.0),
    "up to the cap": (busy(503, 60.0), 0.5, 60.0),
    "backoff at its least": (busy(500), 0.0, 0.25),
    "backoff at its most": (busy(500), 1.0, 0.5),
}


@pytest.mark.parametrize(("error", "draw", "delay_s"), WAITS.values(), ids=WAITS.keys())
def test_waits_before_the_retry(error: ProxyError, draw: float, delay_s: float) -> None:
    walk = exchange(A, B)
    walk.start(0)
    assert walk.failed(error, 0, draw) == Send(A, 0, delay_s)


def test_a_longer_retry_after_than_the_cap_moves_on() -> None:
    walk = exchange(A, B)
    walk.start(0)
    assert walk.failed(busy(429, 61.0), 0) == Send(B, 1)


def test_backoff_doubles_up_to_its_limit() -> None:
    walk = exchange(A, rules=replace(RULES, attempts=7))
    walk.start(0)
    delays = [walk.failed(busy(500), 0, 1.0) for _ in range(6)]
    assert [step.delay_s for step in delays if isinstance(step, Send)] == [0.5, 1, 2, 4, 8, 8]


def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    walk = exchange(A, B, deadline=10)
    walk.start(0)
    assert walk.failed(busy(429, 20.0), 5) == Send(B, 1)


def test_out_of_time_ends_the_whole_chain() -> None:
    walk = exchange(A, B, deadline=10)
    walk.start(0)
    step = walk.failed(ConnectFailed("x"), 10)
    assert isinstance(step, Refuse)
    assert isinstance(step.error, TotalTimeout)


@pytest.mark.parametrize("error", [busy(429), KeyRefused("x", status=401)])
def test_other_keys_are_tried_before_other_targets(error: ProxyError) -> None:
    keys = {A: [1, 0], B: [2]}
    walk = Exchange([A, B], RULES, 600, keys=keys.__getitem__)
    assert walk.start(0) == Send(A, 0, key=1)
    assert walk.failed(error, 0) == Send(A, 0, key=0)
    step = walk.failed(KeyRefused("x", status=403), 0)
    assert step == Send(B, 1, key=2)


def test_a_retry_is_made_with_the_last_key() -> None:
    walk = Exchange([A], RULES, 600, keys=lambda _target: [2, 0])
    walk.start(0)
    walk.failed(busy(429), 0)
    assert walk.failed(busy(429, 3.0), 0) == Send(A, 0, 3.0, key=0)


def test_whatever_the_way_to_a_target_its_first_key_comes_first() -> None:
    keys = {A: [0], B: [3], C: [4]}
    rules = replace(RULES, splice=True)
    walk = Exchange([A, B, C], rules, 600, keys=keys.__getitem__, window=WINDOWS.get)
    walk.start(0)
    assert walk.hedge() == Send(B, 1, key=3)
    walk = Exchange([A, B, C], rules, 600, keys=keys.__getitem__, window=WINDOWS.get)
    walk.start(0)
    assert walk.failed(ContextTooLong("x", status=400), 0) == Send(C, 2, key=4)
    walk = Exchange([A, B, C], rules, 600, keys=keys.__getitem__)
    walk.start(0)
    walk.commit()
    assert walk.failed(StreamBroken("x"), 0) == Resume(B, 1, key=3)


WINDOWS = {A: 8_000, B: 4_000, C: 128_000}


def test_a_prompt_too_long_goes_to_a_larger_window() -> None:
    too_long = ContextTooLong("x", status=400)
    walk = Exchange([A, B, C], RULES, 600, window=WINDOWS.get)
    walk.start(0)
    assert walk.failed(too_long, 0) == Send(C, 2)
    assert walk.failed(too_long, 0) == Refuse(too_long)


def test_a_prompt_too_long_is_passed_on_where_windows_are_unknown() -> None:
    too_long = ContextTooLong("x", status=400)
    walk = exchange(A, B)
    walk.start(0)
    assert walk.failed(too_long, 0) == Refuse(too_long)


def test_after_the_commit_every_failure_is_final() -> None:
    broken = StreamBroken("cut")
    walk = exchange(A, B)
    walk.start(0)
    walk.commit()
    assert walk.committed
    assert walk.failed(broken, 1) == Refuse(broken)


def test_splice_goes_on_with_the_next_target_after_the_commit() -> None:
    walk = exchange(A, B, rules=replace(RULES, splice=True))
    walk.start(0)
    walk.commit()
    assert walk.failed(IdleTimeout("x"), 1) == Resume(B, 1)
    last = StreamBroken("x")
    assert walk.failed(last, 2) == Refuse(last)


SAYS_NO: dict[str, ProxyError] = {
    "to the request": Refused("x", status=400),
    "to its length": ContextTooLong("x", status=400),
    "to our key": KeyRefused("x", status=401),
    "to the model": UnknownModel("x", status=404),
    "for now": busy(429, 1.0),
}


@pytest.mark.parametrize("error", SAYS_NO.values(), ids=SAYS_NO)
def test_splice_goes_past_a_target_that_says_no(error: ProxyError) -> None:
    walk = exchange(A, B, C, rules=replace(RULES, splice=True))
    walk.start(0)
    walk.commit()
    assert walk.failed(StreamBroken("cut"), 1) == Resume(B, 1)
    assert walk.failed(error, 2) == Resume(C, 2)


def test_a_no_to_going_on_does_not_hide_what_broke_the_answer() -> None:
    """LESSONS 4: the client never asked for that, and cannot act on it."""
    broken, refused = StreamBroken("cut"), Refused("x", status=400)
    walk = exchange(A, B, rules=replace(RULES, splice=True))
    walk.start(0)
    walk.commit()
    walk.failed(broken, 1)
    assert walk.failed(refused, 2) == Refuse(broken)


def test_targets_with_an_open_breaker_are_passed_over() -> None:
    walk = exchange(A, B)
    walk.start(0)
    assert walk.skipped(15.0, 0) == Send(B, 1)
    step = walk.skipped(7.0, 0)
    assert isinstance(step, Refuse)
    assert isinstance(step.error, NoHealthyTarget)
    assert step.error.retry_after_s == 7.0


def test_a_real_failure_says_more_than_an_open_breaker() -> None:
    failed = ConnectFailed("x")
    walk = exchange(A, B)
    walk.start(0)
    walk.failed(failed, 0)
    assert walk.skipped(15.0, 0) == Refuse(failed)


def test_an_empty_plan_has_no_healthy_target() -> None:
    step = exchange().start(0)
    assert isinstance(step, Refuse)
    assert isinstance(step.error, NoHealthyTarget)

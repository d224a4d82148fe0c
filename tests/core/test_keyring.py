"""Which key is asked first, with the clock in the hand."""

from __future__ import annotations

import pytest

from lunar_proxy.core.errors import (
    BadAnswer,
    ConnectFailed,
    ContextTooLong,
    InBandError,
    KeyRefused,
    NoAnswer,
    ProxyError,
    Refused,
    UnknownModel,
    UpstreamBusy,
)
from lunar_proxy.core.keyring import Keyring, is_about_the_key

P = "provider"
X, Y, Z = b"x", b"y", b"z"
USUAL_S = 15.0
REFUSED = KeyRefused("no", status=401)


def spent(retry_after_s: float | None = None) -> UpstreamBusy:
    return UpstreamBusy("no quota", status=429, retry_after_s=retry_after_s)


ABOUT: dict[str, tuple[ProxyError, bool]] = {
    "refused": (REFUSED, True),
    "no credit": (KeyRefused("no", status=402), True),
    "no quota": (spent(), True),
    "overloaded": (UpstreamBusy("no", status=503), False),
    "a refusal of the request": (Refused("no", status=400), False),
    "no such model": (UnknownModel("no", status=404), False),
    "too long": (ContextTooLong("no", status=400), False),
    "an error in a 200": (InBandError("no", status=502), False),
    "no connection": (ConnectFailed("no"), False),
    "no answer": (NoAnswer("no"), False),
    "nonsense": (BadAnswer("no"), False),
}


@pytest.mark.parametrize(("error", "about"), ABOUT.values(), ids=ABOUT)
def test_only_some_failures_are_about_the_key(error: ProxyError, about: bool) -> None:
    assert is_about_the_key(error) is about
    ring = Keyring()
    ring.failed(P, X, error, 0, USUAL_S)
    assert list(ring.in_turn(P, [X, Y], 0)) == ([1, 0] if about else [0, 1])


# failures, as (key, error, at) -> the order at 100
LIVES: dict[str, tuple[list[tuple[bytes, ProxyError, float]], list[int]]] = {
    "as listed": ([], [0, 1, 2]),
    "a refused one is last": ([(X, REFUSED, 90)], [1, 2, 0]),
    "it rests no longer than usual": ([(X, REFUSED, 100 - USUAL_S)], [0, 1, 2]),
    "and not less": ([(X, REFUSED, 101 - USUAL_S)], [1, 2, 0]),
    "quota is back when the provider says": ([(X, spent(60), 40)], [0, 1, 2]),
    "and not before": ([(X, spent(60), 41)], [1, 2, 0]),
    "at once": ([(X, spent(0), 100)], [0, 1, 2]),
    "quota with no word of when": ([(X, spent(), 90)], [1, 2, 0]),
    "the soonest back is first of those at rest": (
        [(X, spent(60), 90), (Y, spent(30), 90)],
        [2, 1, 0],
    ),
    "all at rest": ([(X, spent(60), 90), (Y, spent(30), 90), (Z, REFUSED, 95)], [2, 1, 0]),
    "the last word counts": ([(X, spent(60), 40), (X, spent(60), 90)], [1, 2, 0]),
}


@pytest.mark.parametrize(("failures", "order"), LIVES.values(), ids=LIVES)
def test_keys_that_worked_come_before_those_at_rest(
    failures: list[tuple[bytes, ProxyError, float]], order: list[int]
) -> None:
    ring = Keyring()
    for key, error, at in failures:
        ring.failed(P, key, error, at, USUAL_S)
    assert list(ring.in_turn(P, [X, Y, Z], 100)) == order


def test_one_that_works_again_rests_no_more() -> None:
    ring = Keyring()
    ring.failed(P, X, spent(3600), 0, USUAL_S)
    ring.succeeded(P, X)
    ring.succeeded(P, Y)
    assert list(ring.in_turn(P, [X, Y], 1)) == [0, 1]


def test_the_key_rests_and_not_its_place() -> None:
    ring = Keyring()
    ring.failed(P, X, REFUSED, 0, USUAL_S)
    assert list(ring.in_turn(P, [Y, X], 1)) == [0, 1]
    assert list(ring.in_turn(P, [Z, Y], 1)) == [0, 1]
    assert list(ring.in_turn("another provider", [X, Y], 1)) == [0, 1]


@pytest.mark.parametrize("keys", [[], [X]], ids=["no key", "one key"])
def test_there_is_always_one_place_to_try(keys: list[bytes]) -> None:
    ring = Keyring()
    ring.failed(P, X, REFUSED, 0, USUAL_S)
    assert list(ring.in_turn(P, keys, 1)) == [0]

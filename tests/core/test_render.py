from __future__ import annotations

import orjson
import pytest

from lunar_proxy.core.errors import InvalidRequest, LimitExceeded, NoHealthyTarget, ProxyError
from lunar_proxy.core.render import error_answer, error_doc, masked, retry_headers

ERRORS = {
    "bare": (
        NoHealthyTarget("none"),
        {
            "error": {
                "message": "none",
                "type": "no_healthy_target",
                "code": "no_healthy_target",
                "param": None,
            },
            "detail": "none",
        },
    ),
    "with all there is": (
        InvalidRequest("no", code="MISSING", param="models", details={"missing_profiles": ["a"]}),
        {
            "error": {
                "message": "no",
                "type": "invalid_request_error",
                "code": "MISSING",
                "param": "models",
                "missing_profiles": ["a"],
            },
            "detail": "no",
        },
    ),
    "with a wait": (
        LimitExceeded("slow down", retry_after_s=12),
        {
            "error": {
                "message": "slow down",
                "type": "rate_limit_exceeded",
                "code": "rate_limit_exceeded",
                "param": None,
            },
            "detail": "slow down",
            "retry_after": 12.0,
        },
    ),
}


@pytest.mark.parametrize(("error", "doc"), ERRORS.values(), ids=ERRORS.keys())
def test_every_error_has_the_one_shape(error: ProxyError, doc: object) -> None:
    assert error_doc(error) == doc


def test_an_answer_carries_what_the_error_and_the_caller_add() -> None:
    error = LimitExceeded("no", retry_after_s=0.25, headers=(("x-ratelimit-limit-requests", "5"),))
    status, headers, body = error_answer(error, [(b"x-request-id", b"r-1")])
    assert status == 429
    assert headers == [
        (b"content-type", b"application/json"),
        (b"x-request-id", b"r-1"),
        (b"x-ratelimit-limit-requests", b"5"),
        (b"retry-after", b"1"),
        (b"retry-after-ms", b"250"),
    ]
    assert orjson.loads(body)["retry_after"] == 0.25


def test_without_a_wait_nothing_is_said_of_one() -> None:
    _, headers, body = error_answer(InvalidRequest("no"), [])
    assert headers == [(b"content-type", b"application/json")]
    assert "retry_after" not in orjson.loads(body)


@pytest.mark.parametrize(
    ("seconds", "whole", "milliseconds"),
    [(0.0, b"0", b"0"), (0.0001, b"1", b"1"), (2.0, b"2", b"2000"), (2.5, b"3", b"2500")],
)
def test_a_wait_is_never_told_too_short(seconds: float, whole: bytes, milliseconds: bytes) -> None:
    assert retry_headers(seconds) == [(b"retry-after", whole), (b"retry-after-ms", milliseconds)]


def test_our_key_is_masked_wherever_it_is_echoed() -> None:
    body = b"Incorrect API key provided: sk-1. You sent sk-1."
    assert masked(body, b"sk-1") == b"Incorrect API key provided: ****. You sent ****."
    assert masked(body, b"") == body

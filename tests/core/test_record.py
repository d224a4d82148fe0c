from __future__ import annotations

from typing import Any

import orjson
import pytest

from lunar_proxy.core.model import Attempt, Cost, Identity, Outcome, Phase, Target, Usage
from lunar_proxy.core.record import LONGEST_NAME, MOST_KINDS, Lines
from lunar_proxy.testing import call, outcome

NOTHING: dict[str, Any] = {
    "time": "now",
    "event": "call",
    "request_id": "req-1",
    "endpoint": "chat/completions",
    "model_asked": "openai/gpt-4o",
    "provider": "openai",
    "model": "gpt-4o",
    "status": 200,
    "error": None,
    "stream": False,
    "input_tokens": None,
    "output_tokens": None,
    "cache_read_tokens": None,
    "cache_write_tokens": None,
    "reasoning_tokens": None,
    "estimated": None,
    "cost_usd": None,
    "latency_ms": 1000.0,
    "ttft_ms": None,
    "overhead_ms": 1.0,
    "attempts": 0,
    "fallback_index": 0,
    "tried": [],
    "key": None,
    "key_id": None,
    "disconnected": None,
}
A, B = Target("openai", "gpt-4o"), Target("groq", "llama")

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bare": ({}, {}),
    "refused at the door": (
        {"target": None, "status": 401, "error": "authentication_error"},
        {"provider": None, "model": None, "status": 401, "error": "authentication_error"},
    ),
    "used": (
        {
            "usage": Usage(5, 7, 3, 1, 2, estimated=True),
            "cost": Cost(10**9, 2 * 10**9, 0, 3 * 10**9 + 1),
            "ttft_s": 0.1234567,
        },
        {
            "input_tokens": 5,
            "output_tokens": 7,
            "cache_read_tokens": 3,
            "cache_write_tokens": 1,
            "reasoning_tokens": 2,
            "estimated": True,
            "cost_usd": 0.3000000001,
            "ttft_ms": 123.457,
        },
    ),
    "fell back": (
        {
            "target": B,
            "index": 1,
            "attempts": (Attempt(A, 503, "upstream_busy", 0.25), Attempt(B, 200, None, 0.5)),
        },
        {
            "provider": "groq",
            "model": "llama",
            "attempts": 2,
            "fallback_index": 1,
            "tried": [
                {
                    "provider": "openai",
                    "model": "gpt-4o",
                    "status": 503,
                    "error": "upstream_busy",
                    "ms": 250.0,
                }
            ],
        },
    ),
    "with a key": (
        {"call": call(identity=Identity("k_1", "team-a"))},
        {"key": "team-a", "key_id": "k_1"},
    ),
    "hung up on": (
        {"status": 499, "disconnected": Phase.STREAM},
        {"status": 499, "disconnected": "stream"},
    ),
}


def line(happened: Outcome) -> bytes:
    return Lines().line(happened, b"now")


@pytest.mark.parametrize(("happened", "said"), CASES.values(), ids=CASES.keys())
def test_says_what_an_operator_asks(happened: dict[str, Any], said: dict[str, Any]) -> None:
    written = orjson.loads(line(outcome(**happened)))
    assert written == NOTHING | said
    assert list(written) == list(NOTHING)


def test_what_is_remembered_of_one_call_is_told_of_none_unlike_it() -> None:
    lines = Lines()
    one = Attempt(A, 200, None, 0.5)
    unlike = [happened | {"attempts": (one,)} for happened, _ in CASES.values()]
    unlike += [{}, {"attempts": (one,), "index": 1}, {"call": call(stream=True)}]
    unlike += [{"attempts": (one,), "call": call(model=m, stream=s)} for m in "ab" for s in (0, 1)]
    for each in unlike * 2:
        happened = outcome(**each)
        assert lines.line(happened, b"now") == line(happened)


def test_a_long_name_is_not_kept() -> None:
    lines = Lines()
    for n in range(3):
        lines.line(
            outcome(call=call(model=f"{n}" * 10**6), attempts=(Attempt(A, 1, None, 1),)), b""
        )
    assert not lines._kinds


def test_kinds_of_calls_are_remembered_up_to_a_number() -> None:
    lines = Lines()
    for n in range(MOST_KINDS + 1):
        lines.line(outcome(call=call(model=str(n)), attempts=(Attempt(A, 1, None, 1),)), b"")
    assert len(lines._kinds) == 1


def test_keeps_what_was_said_and_who_said_it_to_itself() -> None:
    secret = "s3cret"
    asked = call(
        doc={"model": "m", "messages": [{"role": "user", "content": secret}]},
        headers=((b"authorization", secret.encode()),),
        query=b"?key=s3cret",
        client=secret,
    )
    assert secret.encode() not in line(outcome(call=asked))


def test_a_client_can_neither_forge_a_line_nor_flood_it() -> None:
    forged = 'x\n{"event":"call"}\r\u2028\x1b[31m' + "y" * 10_000
    names = {"id": forged, "model": forged, "endpoint": forged}
    identity = Identity(forged, forged)
    happened = outcome(call=call(identity=identity, **names), error=forged)
    written = line(happened)
    assert len(written) < 10 * LONGEST_NAME + len(orjson.dumps(NOTHING))
    assert not {b"\n", b"\r", b"\x1b"} & {bytes([byte]) for byte in written[:-1]}
    assert orjson.loads(written)["model_asked"] == forged[:LONGEST_NAME]

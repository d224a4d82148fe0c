from __future__ import annotations

from decimal import Decimal
from typing import Any

import orjson
import pytest

from lunar_proxy.core.model import Attempt, Cost, Identity, Phase, Target, Usage
from lunar_proxy.core.record import LONGEST_NAME, record
from lunar_proxy.testing import call, outcome

NOTHING: dict[str, Any] = {
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
            "cost": Cost(Decimal("0.1"), Decimal("0.2"), Decimal(0), Decimal("0.3000000001")),
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


@pytest.mark.parametrize(("happened", "said"), CASES.values(), ids=CASES.keys())
def test_says_what_an_operator_asks(happened: dict[str, Any], said: dict[str, Any]) -> None:
    assert record(outcome(**happened)) == NOTHING | said


def test_keeps_what_was_said_and_who_said_it_to_itself() -> None:
    secret = "s3cret"
    asked = call(
        doc={"model": "m", "messages": [{"role": "user", "content": secret}]},
        headers=((b"authorization", secret.encode()),),
        query=b"?key=s3cret",
        client=secret,
    )
    assert secret.encode() not in orjson.dumps(record(outcome(call=asked)))


def test_a_client_can_neither_forge_a_line_nor_flood_it() -> None:
    forged = 'x\n{"event":"call"}\r\u2028\x1b[31m' + "y" * 10_000
    names = {"id": forged, "model": forged, "endpoint": forged}
    identity = Identity(forged, forged)
    happened = outcome(call=call(identity=identity, **names), error=forged)
    line = orjson.dumps(record(happened))
    assert len(line) < 10 * LONGEST_NAME + len(orjson.dumps(NOTHING))
    assert not {b"\n", b"\r", b"\x1b"} & {bytes([byte]) for byte in line}
    assert orjson.loads(line)["model_asked"] == forged[:LONGEST_NAME]

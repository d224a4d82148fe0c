"""The one structured log record of a call: what an operator asks about it, and nothing it said.

Every value is a number, a flag, or a name that is ours, the config's or a model's; the names are
cut to a length and written as JSON, so that no client can forge a line. No prompt, no completion,
no header, no key, no client address.
"""

from __future__ import annotations

from typing import Any

from .model import Attempt, Cost, Identity, Outcome, Usage

# Longer than any model or request id seen; a name is all a client can put into the log.
LONGEST_NAME = 128


def record(outcome: Outcome) -> dict[str, Any]:
    """The record of a call that is over. Times are in milliseconds, costs in US dollars.

    What does not apply is None, so that every line has the same members: no provider was chosen,
    nothing was used, no price is known, the client had no key.
    """
    call, target = outcome.call, outcome.target
    return {
        "event": "call",
        "request_id": _name(call.id),
        "endpoint": _name(call.endpoint),
        "model_asked": _name(call.model),
        "provider": _name(target.provider) if target is not None else None,
        "model": _name(target.model) if target is not None else None,
        "status": outcome.status,
        "error": _name(outcome.error),
        "stream": call.stream,
        **_usage(outcome.usage),
        **_cost(outcome.cost),
        "latency_ms": _ms(outcome.latency_s),
        "ttft_ms": _ms(outcome.ttft_s),
        "overhead_ms": _ms(outcome.overhead_s),
        "attempts": len(outcome.attempts),
        "fallback_index": outcome.index,
        "tried": [_attempt(attempt) for attempt in outcome.attempts[:-1]],
        **_caller(call.identity),
        "disconnected": outcome.disconnected.value if outcome.disconnected is not None else None,
    }


def _usage(usage: Usage | None) -> dict[str, Any]:
    if usage is None:
        names = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
        return dict.fromkeys((*names, "reasoning_tokens", "estimated"))
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "estimated": usage.estimated,
    }


def _cost(cost: Cost | None) -> dict[str, float | None]:
    return {"cost_usd": float(cost.total) if cost is not None else None}


def _caller(identity: Identity | None) -> dict[str, str | None]:
    """Which key, by the name it was given; `id` is made from its hash, never from the key."""
    if identity is None:
        return {"key": None, "key_id": None}
    return {"key": _name(identity.name), "key_id": _name(identity.id)}


def _attempt(attempt: Attempt) -> dict[str, Any]:
    """An attempt that was given up: the last one is the call itself."""
    return {
        "provider": _name(attempt.target.provider),
        "model": _name(attempt.target.model),
        "status": attempt.status,
        "error": _name(attempt.error),
        "ms": _ms(attempt.duration_s),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _name(value: str | None) -> str | None:
    return None if value is None else value[:LONGEST_NAME]

"""The one structured log record of a call: what an operator asks about it, and nothing it said.

Every value is a number, a flag, or a name that is ours, the config's or a model's; the names are
cut to a length and written as JSON, so that no client can forge a line. No prompt, no completion,
no header, no key, no client address.
"""

from __future__ import annotations

from typing import Any

from .model import Attempt, Outcome, Usage

# Longer than any model or request id seen; a name is all a client can put into the log.
LONGEST_NAME = 128


def record(outcome: Outcome) -> dict[str, Any]:
    """The record of a call that is over. Times are in milliseconds, costs in US dollars.

    What does not apply is None, so that every line has the same members: no provider was chosen,
    nothing was used, no price is known, the client had no key.
    """
    call, target, identity = outcome.call, outcome.target, outcome.call.identity
    return {
        "event": "call",
        "request_id": call.id[:LONGEST_NAME],
        "endpoint": call.endpoint[:LONGEST_NAME],
        "model_asked": call.model[:LONGEST_NAME],
        "provider": target.provider[:LONGEST_NAME] if target is not None else None,
        "model": target.model[:LONGEST_NAME] if target is not None else None,
        "status": outcome.status,
        "error": _name(outcome.error),
        "stream": call.stream,
        **(_usage(outcome.usage) if outcome.usage is not None else _NO_USAGE),
        "cost_usd": float(outcome.cost.total) if outcome.cost is not None else None,
        "latency_ms": _ms(outcome.latency_s),
        "ttft_ms": _ms(outcome.ttft_s) if outcome.ttft_s is not None else None,
        "overhead_ms": _ms(outcome.overhead_s),
        "attempts": len(outcome.attempts),
        "fallback_index": outcome.index,
        # The last one is the call itself.
        "tried": [_attempt(attempt) for attempt in outcome.attempts[:-1]],
        # Which key, by the name it was given; `id` is made from its hash, never from the key.
        "key": identity.name[:LONGEST_NAME] if identity is not None else None,
        "key_id": identity.id[:LONGEST_NAME] if identity is not None else None,
        "disconnected": outcome.disconnected.value if outcome.disconnected is not None else None,
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "estimated": usage.estimated,
    }


_NO_USAGE: dict[str, Any] = dict.fromkeys(_usage(Usage()))


def _attempt(attempt: Attempt) -> dict[str, Any]:
    """An attempt that was given up."""
    return {
        "provider": attempt.target.provider[:LONGEST_NAME],
        "model": attempt.target.model[:LONGEST_NAME],
        "status": attempt.status,
        "error": _name(attempt.error),
        "ms": _ms(attempt.duration_s),
    }


def _ms(seconds: float) -> float:
    """Milliseconds with three decimals; round() takes twice as long."""
    return int(seconds * 1_000_000 + 0.5) / 1000


def _name(value: str | None) -> str | None:
    return None if value is None else value[:LONGEST_NAME]

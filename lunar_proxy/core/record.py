"""The one structured log record of a call: what an operator asks about it, and nothing it said.

Every value is a number, a flag, or a name that is ours, the config's or a model's; the names are
cut to a length and written as JSON, so that no client can forge a line. No prompt, no completion,
no header, no key, no client address.

Most of a line is the same for all calls of one kind: only its figures are written each time.
"""

from __future__ import annotations

from typing import Any

import orjson

from .figures import dollars, milliseconds
from .model import Attempt, Cost, Outcome, Usage

# Longer than any model or request id seen; a name is all a client can put into the log.
LONGEST_NAME = 128
# Kinds of calls whose members are remembered, each some 500 bytes.
MOST_KINDS = 1024

_LINE = b'{"time":"%b","event":"call","request_id":%b,%b,%b,%b}\n'
# What stands before the figures, and what behind them, as members of an object.
_Around = tuple[bytes, bytes]


class Lines:
    """Records of calls that are over, as JSON."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[object, ...], _Around] = {}

    def line(self, outcome: Outcome, time: bytes) -> bytes:
        """The record of a call. Times are in milliseconds, costs in US dollars.

        What does not apply is null, so that every line has the same members: no provider was
        chosen, nothing was used, no price is known, the client had no key.
        """
        # At once: to ask a named tuple for four of its members takes as long.
        call, target, index, status, error, usage, cost, _, latency, ttft, own, tries, gone = (
            outcome
        )
        identity = call.identity
        # The names of an identity and not itself, whose hash is worked out in Python.
        who = None if identity is None else (identity.id, identity.name)
        kind = (call.endpoint, call.model, call.stream, target, index, status, error, who)
        if gone is not None or len(tries) != 1:
            before, behind = _around(outcome)  # these are few, or each its own
        else:
            before, behind = self._kinds.get(kind) or self._remember(kind, outcome)
        figures = orjson.dumps(_figures(usage, cost, latency, ttft, own))[1:-1]
        return _LINE % (time, orjson.dumps(call.id[:LONGEST_NAME]), before, figures, behind)

    def _remember(self, kind: tuple[object, ...], outcome: Outcome) -> _Around:
        around = _around(outcome)
        if len(self._kinds) >= MOST_KINDS:
            self._kinds.clear()
        # Names that were cut would keep what was cut off alive.
        call, target, identity = outcome.call, outcome.target, outcome.call.identity
        names = [call.endpoint, call.model, outcome.error or "", *(target or ())]
        if identity is not None:
            names += identity.id, identity.name
        if max(map(len, names)) <= LONGEST_NAME:
            self._kinds[kind] = around
        return around


def _around(outcome: Outcome) -> _Around:
    call, target, identity = outcome.call, outcome.target, outcome.call.identity
    before = {
        "endpoint": call.endpoint[:LONGEST_NAME],
        "model_asked": call.model[:LONGEST_NAME],
        "provider": target.provider[:LONGEST_NAME] if target is not None else None,
        "model": target.model[:LONGEST_NAME] if target is not None else None,
        "status": outcome.status,
        "error": _name(outcome.error),
        "stream": call.stream,
    }
    behind = {
        "attempts": len(outcome.attempts),
        "fallback_index": outcome.index,
        # The last one is the call itself.
        "tried": [_attempt(attempt) for attempt in outcome.attempts[:-1]],
        # Which key, by the name it was given; `id` is made from its hash, never from the key.
        "key": identity.name[:LONGEST_NAME] if identity is not None else None,
        "key_id": identity.id[:LONGEST_NAME] if identity is not None else None,
        "disconnected": outcome.disconnected.value if outcome.disconnected is not None else None,
    }
    return orjson.dumps(before)[1:-1], orjson.dumps(behind)[1:-1]


def _figures(
    usage: Usage | None,
    cost: Cost | None,
    latency_s: float,
    ttft_s: float | None,
    own_s: float,
) -> dict[str, Any]:
    prompt = output = read = write = reasoning = estimated = None
    if usage is not None:
        prompt, output, read, write, reasoning, _, _, _, estimated = usage
    return {
        "input_tokens": prompt,
        "output_tokens": output,
        "cache_read_tokens": read,
        "cache_write_tokens": write,
        "reasoning_tokens": reasoning,
        "estimated": estimated,
        "cost_usd": None if cost is None else dollars(cost.total),
        "latency_ms": milliseconds(latency_s),
        "ttft_ms": None if ttft_s is None else milliseconds(ttft_s),
        "overhead_ms": milliseconds(own_s),
    }


def _attempt(attempt: Attempt) -> dict[str, Any]:
    """An attempt that was given up."""
    return {
        "provider": attempt.target.provider[:LONGEST_NAME],
        "model": attempt.target.model[:LONGEST_NAME],
        "status": attempt.status,
        "error": _name(attempt.error),
        "ms": milliseconds(attempt.duration_s),
    }


def _name(value: str | None) -> str | None:
    return None if value is None else value[:LONGEST_NAME]

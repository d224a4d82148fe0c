"""What one answer used, cost and took: worked out once, told the same to everyone.

The first to need the figures (the splice into a stream, the JSON answer, the ledger) fixes them;
whoever comes later reads what was fixed, so body, headers, metrics and ledger cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from lunar_proxy.core import annotate
from lunar_proxy.core.model import Call, Cost, Usage
from lunar_proxy.core.pricing import HourlyPrice, Price, cost
from lunar_proxy.core.transcript import Said
from lunar_proxy.core.usage import read_usage

# For text so long that only its length was kept.
CHARS_PER_TOKEN = 4


class Counter(Protocol):
    """Counts tokens where a provider does not (`pricing.tokens.TokenCounter`)."""

    def count(self, text: str) -> int: ...

    def count_request(self, doc: dict[str, Any], endpoint: str) -> int: ...


@dataclass(slots=True)
class Meter:
    call: Call
    price: Price | HourlyPrice | None
    counter: Counter
    now: Callable[[], float]
    ttft_s: float | None = None
    usage: Usage | None = None
    cost: Cost | None = None
    latency_s: float = 0.0

    def first_token(self) -> None:
        if self.ttft_s is None:
            self.ttft_s = self.now() - self.call.accepted_at

    def fix(self, raw: dict[str, Any] | None, said: Iterable[Said]) -> Usage:
        """Settle on the figures: the provider's, or our own count of what was relayed."""
        if self.usage is None:
            self.latency_s = self.now() - self.call.accepted_at
            self.usage = (read_usage(raw) if raw else None) or self._count(said)
            if self.price is not None:
                self.cost = cost(self.usage, self.price, duration_s=self.latency_s)
        return self.usage

    def added(self) -> bytes:
        """The members that `usage` gains (CONTRACT 5); call `fix` first."""
        assert self.usage is not None
        return annotate.usage_members(self.usage, self.cost, self.latency_s, self.ttft_s)

    def counts(self) -> bytes:
        """The counts, for an answer whose provider gave none."""
        assert self.usage is not None
        return annotate.token_members(self.usage, responses=self.call.endpoint == "responses")

    def _count(self, said: Iterable[Said]) -> Usage:
        doc = self.call.doc or {}
        output = 0
        for choice in said:
            text = choice.text
            output += self.counter.count(text) if text else 0
            output += (choice.chars - len(text)) // CHARS_PER_TOKEN
        return Usage(
            input_tokens=self.counter.count_request(doc, self.call.endpoint),
            output_tokens=output,
            estimated=True,
        )

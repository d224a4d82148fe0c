"""What a call holds while it runs, and what it pays when it is over."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from lunar_proxy.core.errors import BudgetExceeded, LimitExceeded
from lunar_proxy.core.limits import Budget, Limits
from lunar_proxy.core.model import Attempt, Cost, Target, Usage
from lunar_proxy.core.pricing import Price
from lunar_proxy.gateway.admission import USUAL_OUTPUT, Limiter, max_tokens
from lunar_proxy.stores.memory import MemoryStore
from lunar_proxy.testing import call, outcome

T0 = 1_800_000_000.0
TARGET, OTHER = Target("openai", "gpt-4o"), Target("groq", "llama")
PRICE = Price(input=Decimal(0), output=Decimal(1_000_000))  # a dollar a token


def cost(usd: int) -> Cost:
    return Cost(Decimal(0), Decimal(usd), Decimal(0), Decimal(usd))


def used(tokens: int) -> Usage:
    return Usage(input_tokens=0, output_tokens=tokens)


def asking(**doc: Any) -> Any:
    return call(body=b"", doc=doc)


@pytest.fixture
def limiter() -> Limiter:
    return Limiter(MemoryStore(), lambda: T0)


async def left(limiter: Limiter, limits: Limits) -> int:
    """Tokens of this minute that a call of one token finds."""
    reservation, verdict = await limiter.take(asking(max_tokens=1), limits, TARGET, None)
    limiter.settle(reservation, outcome())
    assert verdict.tokens is not None
    return verdict.tokens.remaining + 1


async def test_a_call_pays_for_its_lost_attempts_too(limiter: Limiter) -> None:
    limits = Limits(tokens_per_minute=1000, budget=Budget(Decimal(10), "total"))
    reservation, _ = await limiter.take(asking(max_tokens=5), limits, TARGET, PRICE)
    lost = Attempt(OTHER, 200, "upstream_cut", 1.0, used(30), cost(4))
    won = Attempt(TARGET, 200, None, 1.0, used(20), cost(6))
    over = outcome(usage=used(20), cost=cost(6), attempts=(lost, won))
    limiter.settle(reservation, over)
    with pytest.raises(BudgetExceeded):
        await limiter.take(asking(max_tokens=1), limits, TARGET, PRICE)
    assert await left(limiter, Limits(tokens_per_minute=1000)) == 950


async def test_a_hold_without_max_tokens_is_what_the_model_usually_says(limiter: Limiter) -> None:
    limits = Limits(tokens_per_minute=1000)
    reservation, verdict = await limiter.take(asking(), limits, TARGET, None)
    assert verdict.tokens is not None
    assert verdict.tokens.remaining == 1000 - USUAL_OUTPUT
    limiter.settle(reservation, outcome(usage=used(100)))
    reservation, verdict = await limiter.take(asking(), limits, TARGET, None)
    assert verdict.tokens is not None
    assert verdict.tokens.remaining == 800  # 100 paid, 100 held
    limiter.settle(reservation, outcome())


async def test_a_refused_call_names_its_limit_and_holds_nothing(limiter: Limiter) -> None:
    limits = Limits(requests_per_minute=10, concurrent_requests=1)
    reservation, _ = await limiter.take(asking(), limits, TARGET, None)
    for _ in range(3):
        with pytest.raises(LimitExceeded) as caught:
            await limiter.take(asking(), limits, TARGET, None)
        assert caught.value.limit == "concurrent"
    limiter.settle(reservation, outcome())
    _, verdict = await limiter.take(asking(), limits, TARGET, None)
    assert verdict.requests is not None
    assert verdict.requests.remaining == 8


@pytest.mark.parametrize(
    ("doc", "most"),
    [
        ({"max_tokens": 10}, 10),
        ({"max_completion_tokens": 20, "max_tokens": 10}, 20),
        ({"max_output_tokens": 30}, 30),
        ({"max_tokens": 10, "n": 3}, 30),
        ({"max_tokens": 10, "n": 0}, 10),
        ({"max_tokens": "10"}, None),
        ({"max_tokens": -1}, None),
        ({}, None),
    ],
)
def test_the_longest_answer_a_request_allows(doc: dict[str, Any], most: int | None) -> None:
    assert max_tokens(asking(**doc)) == most

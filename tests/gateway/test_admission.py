"""Who calls, what a call holds while it runs, and what it pays when it is over."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable
from decimal import Decimal
from typing import Any

import jwt
import pytest

from lunar_proxy.config import Config
from lunar_proxy.core.attachment import Attachment
from lunar_proxy.core.connect import Authority
from lunar_proxy.core.errors import BudgetExceeded, LimitExceeded, Unauthorized
from lunar_proxy.core.intake import Incoming
from lunar_proxy.core.limits import Budget, Limits
from lunar_proxy.core.model import Attempt, Cost, Fields, Identity, Target, Usage
from lunar_proxy.core.money import UNITS_PER_USD
from lunar_proxy.core.pricing import Price
from lunar_proxy.gateway.admission import (
    ATTACHED,
    USUAL_OUTPUT,
    Caller,
    Callers,
    Limiter,
    Taken,
    limits_for,
    max_tokens,
)
from lunar_proxy.stores.jwt import JwtSettings, JwtVerifier
from lunar_proxy.stores.memory import MemoryStore
from lunar_proxy.testing import call, outcome

T0 = 1_800_000_000.0
TARGET, OTHER = Target("openai", "gpt-4o"), Target("groq", "llama")
PRICE = Price(input=Decimal(0), output=Decimal(1_000_000))  # a dollar a token


KEY, UNKNOWN = (f"pk_live_{letter * 32}" for letter in "ab")
SECRET = "a secret of at least thirty-two bytes"
TOKEN = jwt.encode({"sub": "ann", "exp": T0 + 600}, SECRET, "HS256")
FORGED = jwt.encode({"sub": "ann", "exp": T0 + 600}, SECRET[::-1], "HS256")


def callers(*, required: bool = False) -> Callers:
    auth = {"required": required, "keys": [{"name": "team-a", "key": KEY}]}
    config = Config.model_validate({"auth": auth})
    verifier = JwtVerifier(JwtSettings(("HS256",), secret=SECRET), fetch, lambda: T0)
    return Callers(config, MemoryStore(), lambda: T0, verifier)


async def fetch(_url: str) -> bytes:
    raise OSError("there is nothing to fetch")


def sent(*headers: tuple[str, str], proxy: str | None = None) -> Incoming:
    pairs = tuple((name.encode(), value.encode()) for name, value in headers)
    connect = None if proxy is None else proxy.encode()
    via = None if proxy is None else Attachment(Authority("api.openai.com", 443), True, connect)
    return Incoming(b"POST", b"/v1/x", b"", Fields(pairs), b"", "10.0.0.9", 0.0, via=via)


def bearer(value: str) -> tuple[str, str]:
    return "authorization", f"Bearer {value}"


def at_once(caller: Caller | Awaitable[Caller]) -> Caller:
    assert isinstance(caller, Caller), "there is nothing to wait for"
    return caller


def name(caller: Caller) -> str | None:
    return caller.identity.name if caller.identity is not None else None


# what a request carries -> who it is from, their own key, whether the request itself said it
CALLERS: dict[str, tuple[Incoming, tuple[str | None, bytes | None, bool]]] = {
    "nothing": (sent(), (None, None, False)),
    "an own key": (sent(bearer("sk-1")), (None, b"sk-1", False)),
    "a key": (sent(bearer(KEY)), ("team-a", None, True)),
    "both": (sent(bearer("sk-1"), ("x-api-key", KEY)), ("team-a", b"sk-1", True)),
    "a key with the CONNECT": (sent(proxy=f"Bearer {KEY}"), ("team-a", None, False)),
    "it, and an own key": (
        sent(bearer("sk-1"), proxy=f"Bearer {KEY}"),
        ("team-a", b"sk-1", False),
    ),
    "one in each": (sent(bearer(KEY), proxy=f"Bearer {UNKNOWN}"), ("team-a", None, True)),
    "a CONNECT by nobody": (sent(proxy="Basic eDp5"), (None, None, False)),
}


@pytest.mark.parametrize(("incoming", "expected"), CALLERS.values(), ids=CALLERS.keys())
def test_a_request_says_who_it_is_from_and_nobody_waits_for_it(
    incoming: Incoming, expected: tuple[str | None, bytes | None, bool]
) -> None:
    caller = at_once(callers().of(incoming))
    assert (name(caller), caller.own_key, caller.keyed) == expected
    assert "sk-1" not in repr(caller)


@pytest.mark.parametrize(
    "incoming",
    [sent(), sent(bearer("sk-1")), sent(bearer(UNKNOWN)), sent(proxy=f"Bearer {UNKNOWN}")],
    ids=["nothing", "an own key", "an unknown key", "an unknown key with the CONNECT"],
)
def test_where_a_key_is_needed_who_has_none_is_told_and_held_up_in_the_end(
    incoming: Incoming,
) -> None:
    guarded = callers(required=True)
    for _ in range(60):
        with pytest.raises(Unauthorized):
            guarded.of(incoming)
    with pytest.raises(LimitExceeded) as caught:
        guarded.of(incoming)
    assert caught.value.limit == "authentication"


def test_who_says_nothing_costs_nothing() -> None:
    known, incoming = callers(), sent(("content-type", "application/json"))
    assert known.of(incoming) == Caller(None, None)
    assert known.of(incoming) is known.of(incoming), "it is found out once"


async def test_a_token_is_waited_for_once() -> None:
    known = callers(required=True)
    first = known.of(sent(bearer(TOKEN)))
    assert not isinstance(first, Caller)
    assert name(await first) == name(at_once(known.of(sent(bearer(TOKEN))))) == "ann"


async def test_bad_tokens_count_as_failures_too() -> None:
    known = callers()
    for _ in range(60):
        with pytest.raises(Unauthorized, match="signature"):
            await later(known.of(sent(bearer(FORGED))))
    with pytest.raises(LimitExceeded):
        await later(known.of(sent(bearer(FORGED))))
    assert name(await later(known.of(sent(bearer(TOKEN))))) == "ann"


def later(caller: Caller | Awaitable[Caller]) -> Awaitable[Caller]:
    assert not isinstance(caller, Caller)
    return caller


def test_a_caller_is_held_to_its_own_limits_where_it_has_some() -> None:
    default, own = Limits(requests_per_minute=1), Limits()
    assert limits_for(None, default) is default
    assert limits_for(Identity("k", "k"), default) is default
    assert limits_for(Identity("k", "k", limits=own), default) is own


def cost(usd: int) -> Cost:
    return Cost(0, usd * UNITS_PER_USD, 0, usd * UNITS_PER_USD)


def used(tokens: int) -> Usage:
    return Usage(input_tokens=0, output_tokens=tokens)


def asking(**doc: Any) -> Any:
    return call(body=b"", doc=doc)


def take(limiter: Limiter, *args: Any) -> Taken:
    taken = limiter.take(*args)
    assert isinstance(taken, Taken), "memory has nothing to wait for"
    return taken


@pytest.fixture
def limiter() -> Limiter:
    return Limiter(MemoryStore(), lambda: T0)


def left(limiter: Limiter, limits: Limits) -> int:
    """Tokens of this minute that a call of one token finds."""
    reservation, verdict = take(limiter, asking(max_tokens=1), limits, TARGET, None)
    limiter.settle(reservation, outcome())
    assert verdict.tokens is not None
    return verdict.tokens.remaining + 1


def test_a_call_pays_for_its_lost_attempts_too(limiter: Limiter) -> None:
    limits = Limits(tokens_per_minute=1000, budget=Budget(Decimal(10), "total"))
    reservation, _ = take(limiter, asking(max_tokens=5), limits, TARGET, PRICE)
    lost = Attempt(OTHER, 200, "upstream_cut", 1.0, used(30), cost(4))
    won = Attempt(TARGET, 200, None, 1.0, used(20), cost(6))
    over = outcome(usage=used(20), cost=cost(6), attempts=(lost, won))
    limiter.settle(reservation, over)
    with pytest.raises(BudgetExceeded):
        take(limiter, asking(max_tokens=1), limits, TARGET, PRICE)
    assert left(limiter, Limits(tokens_per_minute=1000)) == 950


def test_a_hold_without_max_tokens_is_what_the_model_usually_says(limiter: Limiter) -> None:
    limits = Limits(tokens_per_minute=1000)
    reservation, verdict = take(limiter, asking(), limits, TARGET, None)
    assert verdict.tokens is not None
    assert verdict.tokens.remaining == 1000 - USUAL_OUTPUT
    limiter.settle(reservation, outcome(usage=used(100)))
    reservation, verdict = take(limiter, asking(), limits, TARGET, None)
    assert verdict.tokens is not None
    assert verdict.tokens.remaining == 800  # 100 paid, 100 held
    limiter.settle(reservation, outcome())


TEXT = "four of them. " * 5000
BASE64 = base64.b64encode(bytes(range(256)) * 2000).decode()
IMAGE = {"image_url": {"url": f"data:image/png;base64,{BASE64}"}}

# what a message says -> about how many tokens it is held as
PROMPTS: dict[str, tuple[Any, int]] = {
    "text": (TEXT, len(TEXT) // 4),
    "text in Chinese": ("\u6708\u4eae" * 20_000, 120_000 // 4),
    "text without a space": ("word," * 20_000, 25_000),
    "text with a long word in it": (TEXT + BASE64[:80] * 60 + TEXT, (2 * len(TEXT) + 4800) // 4),
    "an image": ([IMAGE], ATTACHED),
    "an image, as Anthropic has it": ([{"source": {"data": BASE64}}], ATTACHED),
    "two, and text": ([{"text": TEXT}, IMAGE, IMAGE], len(TEXT) // 4 + 2 * ATTACHED),
}


@pytest.mark.parametrize("escaped", [False, True], ids=["UTF-8", "escaped"])
@pytest.mark.parametrize(("content", "tokens"), PROMPTS.values(), ids=PROMPTS.keys())
def test_a_prompt_is_held_by_its_text_and_not_by_what_is_attached(
    limiter: Limiter, content: Any, tokens: int, escaped: bool
) -> None:
    doc = {"messages": [{"role": "user", "content": content}], "max_tokens": 1}
    body = json.dumps(doc, ensure_ascii=escaped).encode()
    limits = Limits(tokens_per_minute=10**6)
    reservation, _ = take(limiter, call(doc=doc, body=body), limits, TARGET, None)
    if escaped and not str(content).isascii():
        tokens *= 2  # six bytes for three
    assert reservation.ask.tokens == pytest.approx(tokens, rel=0.05, abs=60)


def test_a_refused_call_names_its_limit_and_holds_nothing(limiter: Limiter) -> None:
    limits = Limits(requests_per_minute=10, concurrent_requests=1)
    reservation, _ = take(limiter, asking(), limits, TARGET, None)
    for _ in range(3):
        with pytest.raises(LimitExceeded) as caught:
            take(limiter, asking(), limits, TARGET, None)
        assert caught.value.limit == "concurrent"
    limiter.settle(reservation, outcome())
    _, verdict = take(limiter, asking(), limits, TARGET, None)
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

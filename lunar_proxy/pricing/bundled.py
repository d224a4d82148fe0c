"""genai-prices -> our shelves; the only module that knows that package.

Its data is turned into flat entries once, at the start, for the providers we have. Nothing of it
is kept but names, numbers and rules, and nothing is fetched: prices are as old as the installed
package, and the config's `prices:` come first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import partial
from typing import Any

from lunar_proxy.core.pricing import Price

from .shelf import Daily, Entry, Shelf, Since, Test

# Our built-in ids -> theirs. SambaNova and Ollama have no list there; what Hugging Face charges
# for SambaNova is Hugging Face's price, so it is not used.
THEIR_IDS: Mapping[str, str] = {
    "openai": "openai",
    "anthropic": "anthropic",
    "gemini": "google",
    "mistral": "mistral",
    "groq": "groq",
    "deepseek": "deepseek",
    "perplexity": "perplexity",
    "cerebras": "cerebras",
    "together": "together",
    "fireworks": "fireworks",
    "cohere": "cohere",
    "xai": "x-ai",
    "openrouter": "openrouter",
    "azure": "azure",
    "bedrock": "aws",
}

# Whose models are sold at the maker's price. genai-prices has Azure borrow DeepSeek's too, but an
# off-peak discount is the maker's own.
_LENDERS: Mapping[str, tuple[str, ...]] = {"azure": ("openai", "anthropic", "x-ai")}

# Listed under the maker, yet not to be had from the endpoint we call: Vertex has Claude, the Gemini
# API has not; OpenAI publishes the weights of gpt-oss and does not serve it.
_NOT_SOLD: Mapping[str, str] = {"google": "claude", "openai": "gpt-oss"}

_RATES: Mapping[str, str] = {
    "input": "input_mtok",
    "output": "output_mtok",
    "cache_read": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
    "reasoning": "output_reasoning_mtok",
    "input_audio": "input_audio_mtok",
    "output_audio": "output_audio_mtok",
    "cache_audio_read": "cache_audio_read_mtok",
}

# Pictures and films cost many times a text token, and `usage` seldom says which a token was: the
# text price would be a lie by a factor of ten, so their output has no price at all.
_OUTPUT_WE_CANNOT_TELL_APART = ("output_image_mtok", "output_video_mtok")

_PER_THOUSAND = Decimal("0.001")


def load() -> dict[str, Shelf]:
    """The shelves of our built-in providers. Takes about 0.1 s; do it once."""
    # 0.1 s and 7 MB (pydantic, an HTTP client): nothing else pays for it.
    from genai_prices.data import providers

    theirs = {provider.id: provider for provider in providers}
    seen: dict[Price, Price] = {}  # equal prices are one object: a third of them are
    alone = {id_: Shelf(_entries(theirs[id_], seen)) for id_ in _wanted() if id_ in theirs}
    return {
        ours: _with_lenders(alone, their_id)
        for ours, their_id in THEIR_IDS.items()
        if their_id in alone
    }


def _wanted() -> set[str]:
    return {*THEIR_IDS.values(), *(id_ for lenders in _LENDERS.values() for id_ in lenders)}


def _with_lenders(alone: Mapping[str, Shelf], id_: str) -> Shelf:
    if id_ not in _LENDERS:
        return alone[id_]
    lenders = tuple(alone[lender] for lender in _LENDERS[id_] if lender in alone)
    return Shelf(alone[id_].entries, lenders)


def _entries(provider: Any, seen: dict[Price, Price]) -> Iterator[Entry]:
    not_sold = _NOT_SOLD.get(provider.id)
    for model in provider.models:
        if not_sold is not None and not_sold in model.id:
            continue
        clauses = list(_alternatives(model.match))
        names = [clause.equals.lower() for clause in clauses if hasattr(clause, "equals")]
        stems = [clause.starts_with.lower() for clause in clauses if hasattr(clause, "starts_with")]
        yield Entry(
            id=model.id,
            prices=tuple(_prices(model, seen)),
            max_input_tokens=model.context_window,
            names=tuple(names),
            rules=tuple(_test(clause) for clause in clauses if not hasattr(clause, "equals")),
            stems=tuple(stems),
        )


# --- which ids an entry answers to ------------------------------------------------------------


def _alternatives(clause: Any) -> Iterator[Any]:
    if hasattr(clause, "or_"):
        for branch in clause.or_:
            yield from _alternatives(branch)
    else:
        yield clause


def _test(clause: Any) -> Test:
    return _TESTS[type(clause).__name__](clause)


def _starts_with(clause: Any) -> Test:
    prefix = clause.starts_with.lower()
    return lambda model: model.startswith(prefix)


def _ends_with(clause: Any) -> Test:
    suffix = clause.ends_with.lower()
    return lambda model: model.endswith(suffix)


def _contains(clause: Any) -> Test:
    part = clause.contains.lower()
    return lambda model: part in model


def _equals(clause: Any) -> Test:
    name = clause.equals.lower()
    return lambda model: model == name


def _regex(clause: Any) -> Test:
    # Compiled when first tried: most never are, and compiling them all costs the start 20 ms.
    return partial(_search, clause.regex)


def _search(pattern: str, model: str) -> bool:
    return re.search(pattern, model) is not None


def _any(clause: Any) -> Test:
    tests = tuple(_test(branch) for branch in clause.or_)
    return lambda model: any(test(model) for test in tests)


def _all(clause: Any) -> Test:
    tests = tuple(_test(branch) for branch in clause.and_)
    return lambda model: all(test(model) for test in tests)


_TESTS: Mapping[str, Callable[[Any], Test]] = {
    "ClauseStartsWith": _starts_with,
    "ClauseEndsWith": _ends_with,
    "ClauseContains": _contains,
    "ClauseEquals": _equals,
    "ClauseRegex": _regex,
    "ClauseOr": _any,
    "ClauseAnd": _all,
}


# --- what it costs ----------------------------------------------------------------------------


def _prices(
    model: Any, seen: dict[Price, Price]
) -> Iterator[tuple[Since | Daily | None, Price | None]]:
    if not isinstance(model.prices, list):
        yield None, _price(model, model.prices, seen)
        return
    for dated in model.prices:
        yield _constraint(dated.constraint), _price(model, dated.prices, seen)


def _constraint(theirs: Any) -> Since | Daily | None:
    if theirs is None:
        return None
    if hasattr(theirs, "start_date"):
        return Since(theirs.start_date)
    return Daily(_utc(theirs.start_time), _utc(theirs.end_time))


def _utc(clock: time) -> time:
    """A time of day in UTC, which is what one without a zone is in this data."""
    if clock.tzinfo is None:
        return clock
    return datetime.combine(date(1970, 1, 1), clock).astimezone(UTC).time()


def _price(model: Any, theirs: Any, seen: dict[Price, Price]) -> Price | None:
    listed = {name: value for name, value in vars(theirs).items() if value is not None}
    if not listed:
        # ":free" in the provider's own id is a promise; an empty list elsewhere is a gap.
        listed = dict.fromkeys(("input_mtok", "output_mtok"), Decimal(0)) if _free(model) else {}
    if "input_mtok" not in listed and "output_mtok" not in listed:
        return None
    price = _flat(listed, model.context_window, tiers=tuple(_tiers(listed)))
    return seen.setdefault(price, price)


def _free(model: Any) -> bool:
    return bool(model.id.endswith(":free"))


def _tiers(listed: Mapping[str, Any]) -> Iterator[tuple[int, Price]]:
    starts = {tier.start for value in listed.values() for tier in getattr(value, "tiers", ())}
    for start in sorted(starts):
        at_start = {name: _at(value, start) for name, value in listed.items()}
        yield start, _flat(at_start, None, tiers=())


def _at(value: Any, start: int) -> Decimal:
    rate: Decimal = getattr(value, "base", value)
    for tier in getattr(value, "tiers", ()):
        if tier.start <= start:
            rate = tier.price
    return rate


def _flat(
    listed: Mapping[str, Any], window: int | None, tiers: tuple[tuple[int, Price], ...]
) -> Price:
    rates = {ours: _base(listed.get(theirs)) for ours, theirs in _RATES.items()}
    if any(name in listed for name in _OUTPUT_WE_CANNOT_TELL_APART):
        rates["output"] = None
    fee = _base(listed.get("requests_kcount"))
    return Price(
        **rates,
        per_request=None if fee is None else fee * _PER_THOUSAND,
        max_input_tokens=window,
        tiers=tiers,
    )


def _base(value: Any) -> Decimal | None:
    base: Decimal | None = getattr(value, "base", value)
    return base

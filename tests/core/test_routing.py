"""CONTRACT 4, as a table: a name, what the config knows, who may answer."""

from __future__ import annotations

import pytest

from lunar_proxy.core.errors import InvalidRequest, ModelNotFound
from lunar_proxy.core.model import Target
from lunar_proxy.core.routing import Alias, Asked, Catalogue, Facts, Known, plan, resolve, serves

SERVED = {"gpt-4o": [Target("openai", "gpt-4o"), Target("azure", "gpt-4o")]}
PROVIDERS = {
    "openai": Known(),
    "azure": Known(),
    "groq": Known(globs=("llama-*", "meta-llama/*")),
    "off": Known(enabled=False, bring_key=True, why_disabled="OFF_API_KEY is not set"),
    "gone": Known(enabled=False, why_disabled="api_key is empty", globs=("gone-1",)),
}
CATALOGUE = Catalogue(
    providers=PROVIDERS,
    deployments=frozenset({"support-bot"}),
    aliases={
        "smart": Alias((("openai/gpt-4o", 1.0), ("groq/llama-3", 1.0))),
        "spread": Alias((("openai/a", 3.0), ("azure/b", 1.0), ("groq/c", 0.0)), "weighted"),
        "cheap": Alias((("openai/a", 1.0), ("azure/b", 1.0), ("groq/c", 1.0)), "cheapest"),
        "fast": Alias((("openai/a", 1.0), ("azure/b", 1.0), ("groq/c", 1.0)), "fastest"),
        "well": Alias((("openai/a", 1.0), ("azure/b", 1.0), ("groq/c", 1.0)), "healthy"),
        "outer": Alias((("smart", 1.0), ("azure/x", 1.0))),
        "half": Alias((("gone/x", 1.0), ("azure/x", 1.0))),
    },
    fallbacks=(("gpt-4o", ("groq/llama-3", "gone/x")), ("o1*", ("azure/o1",))),
    serves=lambda model: serves(model, PROVIDERS, SERVED.get(model, ())),
)
MEASURED = {"a": 3.0, "b": 1.0, "c": 2.0}
FACTS = Facts(
    price=lambda t: MEASURED.get(t.model),
    ttft_s=lambda t: MEASURED.get(t.model),
    error_rate=lambda t: MEASURED.get(t.model),
)

NAMES = {
    "prefix": ("openai/gpt-5", ["openai/gpt-5"]),
    "split at the first slash": ("openai/a/b", ["openai/a/b"]),
    "a slash id of no provider": ("meta-llama/Llama-3", ["groq/meta-llama/Llama-3"]),
    "bare id": ("gpt-4o", ["openai/gpt-4o", "azure/gpt-4o"]),
    "bare id by glob": ("llama-3", ["groq/llama-3"]),
    "a new model of a known family": ("gpt-99", ["openai/gpt-99"]),
    "deployment": ("lunar/support-bot", ["lunar/support-bot"]),
    "deployment by its other prefix": ("pureai/support-bot", ["lunar/support-bot"]),
    "alias in order": ("smart", ["openai/gpt-4o", "groq/llama-3"]),
    "alias of an alias": ("outer", ["openai/gpt-4o", "groq/llama-3", "azure/x"]),
    "alias with a target that is off": ("half", ["azure/x"]),
    "cheapest": ("cheap", ["azure/b", "groq/c", "openai/a"]),
    "fastest": ("fast", ["azure/b", "groq/c", "openai/a"]),
    "healthy": ("well", ["azure/b", "groq/c", "openai/a"]),
}


@pytest.mark.parametrize(("name", "expected"), NAMES.values(), ids=NAMES.keys())
def test_resolves(name: str, expected: list[str]) -> None:
    assert [str(t) for t in resolve(Asked(name), CATALOGUE, FACTS)] == expected


REFUSED = {
    "unknown": (Asked("nope"), ModelNotFound, "not known here"),
    "a prefix alone": (Asked("openai/"), ModelNotFound, "a provider alone"),
    "unknown prefix": (Asked("nope/x"), ModelNotFound, "not known here"),
    "a misspelt alias": (Asked("smrt"), ModelNotFound, "did you mean 'smart'"),
    "off for want of a key": (Asked("off/x"), ModelNotFound, "OFF_API_KEY is not set"),
    "bare id of a provider that is off": (Asked("gone-1"), ModelNotFound, "api_key is empty"),
    "no such deployment": (Asked("lunar/supprt-bot"), ModelNotFound, "'support-bot'"),
    "conflict": (Asked("openai/x", provider="groq"), InvalidRequest, "send one"),
    "unknown provider": (Asked("x", provider="opnai"), InvalidRequest, "did you mean 'openai'"),
}


@pytest.mark.parametrize(("asked", "kind", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_refuses(asked: Asked, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        resolve(asked, CATALOGUE, FACTS)


def test_provider_field_means_the_same_as_the_prefix() -> None:
    assert resolve(Asked("gpt-5", provider="azure"), CATALOGUE, FACTS) == [Target("azure", "gpt-5")]
    assert resolve(Asked("azure/x", provider="azure"), CATALOGUE, FACTS) == [Target("azure", "x")]


def test_a_callers_own_key_opens_a_provider_without_one() -> None:
    assert resolve(Asked("off/x", own_key=True), CATALOGUE, FACTS) == [Target("off", "x")]


OWN_KEY = Catalogue(
    providers={
        "maker": Known(enabled=False, bring_key=True, why_disabled="no key"),
        "seller": Known(enabled=False, bring_key=True, why_disabled="no key"),
        "ours": Known(),
    },
    fallbacks=(("m", ("seller/m", "ours/m")),),
    serves=lambda model: [Target("maker", model), Target("seller", model)],
)


def test_a_callers_own_key_is_shown_to_one_provider_only() -> None:
    found = plan(Asked("m", own_key=True), OWN_KEY, FACTS)
    assert [str(t) for t in found] == ["maker/m", "ours/m"]


def test_weights_share_the_first_place() -> None:
    draws = iter([0.9, 0.1, 0.1] * 2)
    facts = Facts(draw=lambda: next(draws))
    assert [t.provider for t in resolve(Asked("spread"), CATALOGUE, facts)][::2] == [
        "openai",
        "groq",
    ]
    counts = {"openai": 0, "azure": 0}
    for i in range(400):
        pair = iter([(i % 20 + 0.5) / 20, (i // 20 + 0.5) / 20])
        first = resolve(Asked("spread"), CATALOGUE, Facts(draw=lambda pair=pair: next(pair)))[0]  # type: ignore[misc]
        counts[first.provider] += 1
    assert counts["openai"] / 400 == pytest.approx(0.75, abs=0.02)


def test_targets_with_an_open_breaker_come_last() -> None:
    facts = Facts(available=lambda t: t.provider != "openai")
    assert [t.provider for t in resolve(Asked("gpt-4o"), CATALOGUE, facts)] == ["azure", "openai"]


PLANS = {
    "configured fallbacks, those that are off left out": (
        Asked("gpt-4o"),
        ["openai/gpt-4o", "azure/gpt-4o", "groq/llama-3"],
    ),
    "the key means any provider's model": (
        Asked("azure/gpt-4o"),
        ["azure/gpt-4o", "groq/llama-3"],
    ),
    "a glob": (Asked("openai/o1-mini"), ["openai/o1-mini", "azure/o1"]),
    "the request's list wins": (
        Asked("openai/gpt-4o", fallbacks=["azure/z"]),
        ["openai/gpt-4o", "azure/z"],
    ),
    "no repetition": (
        Asked("openai/a", fallbacks=["openai/a", "azure/z", "azure/z"]),
        ["openai/a", "azure/z"],
    ),
}


@pytest.mark.parametrize(("asked", "expected"), PLANS.values(), ids=PLANS.keys())
def test_plans(asked: Asked, expected: list[str]) -> None:
    assert [str(t) for t in plan(asked, CATALOGUE, FACTS)] == expected


def test_a_fallback_the_request_names_must_exist() -> None:
    with pytest.raises(ModelNotFound):
        plan(Asked("openai/a", fallbacks=["nope"]), CATALOGUE, FACTS)

"""What the router may choose among, by a config and the public profiles."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from lunar_proxy.config import Config
from lunar_proxy.core.model import Identity, Target, Usage
from lunar_proxy.core.routing import Facts
from lunar_proxy.gateway import compile_config
from lunar_proxy.gateway.choices import PER_1K, Served, Size, allowed, expected_cost, usable
from lunar_proxy.gateway.runtime import Runtime
from lunar_proxy.scoring.router import DEFAULT_PROFILES, Router

PRICE = {"input_per_million": 2, "output_per_million": 10}
CONFIG: dict[str, Any] = {
    "providers": {
        "openai": {"api_key": "sk-x", "models": ["gpt-4o", "gpt-4o-mini", "gemini-1.5-pro"]},
        "local": {
            "base_url": "http://127.0.0.1:9/v1",
            "models": ["meta-llama/gemma-2-9b-it", "gpt-4o"],
            "prices": {"gpt-4o": PRICE},
        },
        "groq": {},  # without a key: off
    },
    "deployments": {"bot": {"base_url": "http://127.0.0.1:9/v1", "model": "qwen2-7b-instruct"}},
}


@pytest.fixture(scope="module")
def router() -> Router:
    return Router.load(DEFAULT_PROFILES)


@pytest.fixture(scope="module")
def served(router: Router) -> Served:
    return Served(router, runtime(CONFIG))


def runtime(config: Mapping[str, Any]) -> Runtime:
    now = lambda: datetime(2026, 1, 1, tzinfo=UTC)  # noqa: E731
    return compile_config(Config.model_validate(config), {}, {}, generation=1, now=now)


def test_every_profiled_model_that_somebody_serves_is_there_once(served: Served) -> None:
    found = {choice.name: choice for choice in served.all()}
    assert found["gpt-4o"].targets == (Target("openai", "gpt-4o"), Target("local", "gpt-4o"))
    assert found["gpt-4o"].profile.id == "gpt-4o-2024-08-06"
    assert found["meta-llama/gemma-2-9b-it"].profile.id == "gemma-2-9b-it"
    assert found["lunar/bot"].profile.id == "qwen2-7b-instruct"
    assert not any("groq" in str(t) for choice in found.values() for t in choice.targets)


def test_a_retired_model_is_there_where_the_operator_lists_it(served: Served) -> None:
    stale = {choice.name for choice in served.all() if choice.profile.stale}
    assert stale == {"gemini-1.5-pro"}


NAMES = {
    "gpt-4o": ("gpt-4o-2024-08-06", ["openai/gpt-4o", "local/gpt-4o"]),
    "local/gpt-4o": ("gpt-4o-2024-08-06", ["local/gpt-4o"]),
    "gpt-4o-mini-2024-07-18": ("gpt-4o-mini-2024-07-18", ["openai/gpt-4o-mini-2024-07-18"]),
    "lunar/bot": ("qwen2-7b-instruct", ["lunar/bot"]),
    "qwen2-7b-instruct": ("qwen2-7b-instruct", ["lunar/bot"]),
    "claude-3-opus-latest": ("claude-3-opus-20240229", []),
    "groq/gemma-2-9b-it": ("gemma-2-9b-it", []),
}


@pytest.mark.parametrize(("name", "profile", "targets"), [(k, *v) for k, v in NAMES.items()])
def test_a_client_names_a_model_in_many_ways(
    served: Served, name: str, profile: str, targets: list[str]
) -> None:
    (choice,), missing = served.named([name], Facts())
    assert (choice.name, choice.profile.id) == (name, profile)
    assert [str(target) for target in choice.targets] == targets
    assert missing == []


def test_names_without_a_profile_are_given_back(served: Served) -> None:
    found, missing = served.named(["gpt-4o", "nobody", "gpt-4o"], Facts())
    assert ([choice.name for choice in found], missing) == (["gpt-4o"], ["nobody"])


def test_targets_of_an_alias_are_choices_of_their_own(served: Served) -> None:
    targets = [Target("local", "gpt-4o"), Target("openai", "o9"), Target("openai", "gpt-4o")]
    assert [choice.name for choice in served.each(targets)] == ["local/gpt-4o", "openai/gpt-4o"]


def test_what_is_failing_now_is_left_out_as_long_as_anything_is_left(served: Served) -> None:
    up = Facts(available=lambda target: target.provider != "openai")
    names = {choice.name: choice.targets for choice in usable(served.all(), up)}
    assert "gpt-4o-mini" not in names
    assert names["gpt-4o"][0] == Target("local", "gpt-4o")
    down = Facts(available=lambda target: False)
    assert len(usable(served.all(), down)) == len(served.all())


KEYS: dict[str, tuple[tuple[str, ...], set[str]]] = {
    "no list": ((), {"gpt-4o", "gpt-4o-mini"}),
    "auto alone": (("auto",), {"gpt-4o", "gpt-4o-mini"}),
    "auto and an alias": (("auto", "smart"), {"gpt-4o", "gpt-4o-mini"}),
    "auto and models": (("auto", "*-mini"), {"gpt-4o-mini"}),
    "models alone": (("openai/gpt-4o",), {"gpt-4o"}),
    "other models": (("anthropic/*",), set()),
}


@pytest.mark.parametrize(("globs", "names"), KEYS.values(), ids=KEYS.keys())
def test_a_key_is_routed_among_what_it_lists(
    served: Served, globs: tuple[str, ...], names: set[str]
) -> None:
    choices, _ = served.named(["gpt-4o", "gpt-4o-mini"], Facts())
    kept = allowed(choices, Identity("id", "name", globs), {"smart"})
    assert {choice.name for choice in kept} == names
    if globs == ("openai/gpt-4o",):
        assert kept[0].targets == (Target("openai", "gpt-4o"),)


def test_a_call_is_expected_to_cost_its_prompt_and_the_models_usual_answer(
    served: Served,
) -> None:
    (choice,), _ = served.named(["local/gpt-4o"], Facts())
    assert choice.profile.output_tokens == pytest.approx(237.2)
    assert Size(1000).usage(choice.profile) == Usage(input_tokens=1000, output_tokens=237)
    assert Size(1000, 5).usage(choice.profile) == Usage(input_tokens=1000, output_tokens=5)
    usd = expected_cost(choice, served.runtime, Size(1000).usage(choice.profile))
    assert usd == pytest.approx((1000 * 2 + 237 * 10) / 1e6)
    assert expected_cost(choice, served.runtime, PER_1K) == pytest.approx(0.004)


def test_a_model_without_a_price_has_no_expected_cost(served: Served) -> None:
    (choice,), _ = served.named(["lunar/bot"], Facts())
    assert expected_cost(choice, served.runtime, PER_1K) is None

"""Which plans are remembered, and for whom they hold."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from lunar_proxy.config import Config
from lunar_proxy.core.errors import Forbidden
from lunar_proxy.core.model import Call, Identity
from lunar_proxy.core.routing import Facts
from lunar_proxy.gateway import compile_config
from lunar_proxy.gateway.decider import Decider
from lunar_proxy.gateway.planner import MAX_PLANS, Planner
from lunar_proxy.gateway.router import Router
from lunar_proxy.metrics import Metrics
from lunar_proxy.testing import call

CONFIG: dict[str, Any] = {
    "providers": {
        "openai": {"api_key": "sk-x", "models": ["gpt-4o"]},
        "local": {"base_url": "http://127.0.0.1:9/v1", "models": ["gpt-4o", "bring"]},
        "groq": {},  # without a key: off, but for who brings one
    },
    "models": {
        "one": {"targets": ["openai/gpt-4o"]},
        "two": {"targets": ["openai/gpt-4o", "local/gpt-4o"], "strategy": "fastest"},
        "smart": {"targets": ["openai/gpt-4o"], "strategy": "router"},
    },
}


@pytest.fixture
def planner() -> Planner:
    now = lambda: datetime(2026, 1, 1, tzinfo=UTC)  # noqa: E731
    config = Config.model_validate(CONFIG)
    runtime = compile_config(config, {}, {}, generation=1, now=now)
    metrics = Metrics(known=runtime.known)
    return Planner(runtime, Facts(), Router(Decider(config.router, lambda: 0.0), metrics))


def named(model: str, **changes: Any) -> Call:
    return call(model=model, by_name=True, **changes)


@pytest.mark.parametrize("model", ["openai/gpt-4o", "one", "local/whatever"])
def test_a_name_has_the_same_plan_the_next_time(planner: Planner, model: str) -> None:
    assert planner.known(named(model)) is None
    plan = planner.plan(named(model))
    assert planner.known(named(model)) is plan


NOT_REMEMBERED: dict[str, Call] = {
    "what is measured": named("two"),
    "more than one who serves it": named("gpt-4o"),
    "what is said besides": call(model="openai/gpt-4o", by_name=False),
    "what the router orders": named("smart", endpoint="embeddings"),
}


@pytest.mark.parametrize("asked", NOT_REMEMBERED.values(), ids=NOT_REMEMBERED.keys())
def test_is_not_remembered(planner: Planner, asked: Call) -> None:
    planner.plan(asked)
    assert planner.known(named(asked.model)) is None


def test_a_plan_is_for_those_who_bring_a_key_or_for_those_who_do_not(planner: Planner) -> None:
    planner.plan(named("groq/llama", own_key=b"gsk"))
    assert planner.known(named("groq/llama", own_key=b"gsk"))
    assert planner.known(named("groq/llama")) is None


def test_a_key_that_may_not_ask_for_everything_is_looked_at_each_time(planner: Planner) -> None:
    planner.plan(named("openai/gpt-4o"))
    free, bound = Identity("a", "a"), Identity("b", "b", models=("local/*",))
    assert planner.known(named("openai/gpt-4o", identity=free))
    assert planner.known(named("openai/gpt-4o", identity=bound)) is None
    with pytest.raises(Forbidden):
        planner.plan(named("openai/gpt-4o", identity=bound))


def test_names_that_clients_make_up_are_remembered_within_bounds(planner: Planner) -> None:
    for number in range(MAX_PLANS + 10):
        planner.plan(named(f"openai/m-{number}"))
    assert planner.known(named(f"openai/m-{MAX_PLANS - 1}"))
    assert planner.known(named(f"openai/m-{MAX_PLANS + 9}")) is None

"""One proxy and one stage for all tests that can share them; the others start their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from .harness import DOORS, Proxy, Stage, serving

# Secrets that must never be seen again, wherever something is written.
PLANTED = {
    "openai": "sk-planted-openai",
    "azure": "planted-azure-key",
    "groq": "gsk_planted_groq",
    "caller": "sk-planted-caller",
    "prompt": "planted-prompt-c0ffee",
}


def config(upstream: str) -> dict[str, Any]:
    """Every kind of provider, all of them the stage: the path tells which was meant."""
    keyed = {"mistral": "m", "deepseek": "d", "gemini": "g", "openrouter": "o"}
    providers: dict[str, Any] = {
        id: {"base_url": f"{upstream}/{id}/v1", "api_key": f"sk-{key}"} for id, key in keyed.items()
    }
    providers |= {
        "openai": {"base_url": f"{upstream}/openai/v1", "api_key": PLANTED["openai"]},
        "groq": {"base_url": f"{upstream}/groq/v1", "api_key": PLANTED["groq"]},
        "azure": {
            "base_url": f"{upstream}/azure",
            "api_key": PLANTED["azure"],
            "api_version": "2024-10-21",
        },
        "ollama": {"base_url": f"{upstream}/ollama/v1"},
        "my-vllm": {
            "base_url": f"{upstream}/my-vllm/v1",
            "models": ["llama-3-70b", "meta-llama/Llama-3"],
            "prices": {
                "llama-3-70b": {
                    "input_per_million": 1000,
                    "output_per_million": 2000,
                    "cache_input_per_million": 100,
                }
            },
        },
        "stubborn": {"base_url": f"{upstream}/stubborn/v1"},
        "together": {"base_url": f"{upstream}/together/v1"},  # without a key: the caller's own
    }
    return {
        "providers": providers,
        "deployments": {
            "support-bot": {
                "base_url": f"{upstream}/bot/v1",
                "model": "support-bot-v2",
                "cost_per_hour": 3600,
            }
        },
        "models": {"smart": {"targets": ["my-vllm/llama-3-70b", "openai/gpt-4o"]}},
        "max_body_mb": 1,
        # Tests of errors must not close a target for the tests after them.
        "breaker": {"failures": 100000},
        "retries": {"attempts": 1},
        "timeouts": {"connect_s": 2, "first_token_s": 10, "idle_s": 10},
    }


@pytest.fixture(scope="session")
def shared_stage() -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


@pytest.fixture(scope="session")
def proxy(shared_stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("proxy")
    with serving(folder, config(shared_stage.upstream.url), "--demo") as running:
        yield running


@pytest.fixture
def stage(shared_stage: Stage) -> Iterator[Stage]:
    shared_stage.clear()
    yield shared_stage
    shared_stage.clear()


@pytest.fixture(params=DOORS)
def door(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found

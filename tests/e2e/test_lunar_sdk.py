"""lunar-sdk 0.2.0 against the running proxy: what its README shows, and its error classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lunar
import pytest
from lunar import AsyncLunar, Lunar

from lunar_proxy.testing import Script, chat, chat_stream, error_answer, json_answer

from .harness import Proxy, Stage

USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
MODEL = "my-vllm/llama-3-70b"


@pytest.fixture
def client(proxy: Proxy) -> Iterator[Lunar]:
    with Lunar(api_key="your-api-key", base_url=proxy.url, num_retries=0) as made:
        yield made


def test_chat_and_its_cost(client: Lunar, stage: Stage) -> None:
    stage.play(chat("Hello there", USAGE))
    response = client.chat.completions.create(model=MODEL, messages=HELLO)
    assert response.choices[0].message.content == "Hello there"
    usage = response.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (5, 7)
    assert (usage.input_cost_usd, usage.output_cost_usd) == (0.005, 0.014)
    assert (usage.cache_input_cost_usd, usage.total_cost_usd) == (0.0, 0.019)
    assert usage.latency_ms is not None
    assert usage.ttft_ms is not None
    assert 0 < usage.ttft_ms <= usage.latency_ms


@pytest.mark.parametrize("usage", [None, USAGE], ids=["none given", "usage given"])
def test_the_documented_streaming_loop(client: Lunar, stage: Stage, usage: object) -> None:
    stage.play(chat("A short story", USAGE) if usage else chat_stream("A short story"))
    stream = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    told = ""
    for chunk in stream:
        if chunk.choices[0].delta.content:
            told += chunk.choices[0].delta.content
    assert told == "A short story"


async def test_the_documented_async_loop(proxy: Proxy, stage: Stage) -> None:
    stage.play(chat("A short story", USAGE))
    async with AsyncLunar(api_key="your-api-key", base_url=proxy.url) as client:
        response = await client.chat.completions.create(model=MODEL, messages=HELLO)
        assert response.usage is not None
        assert response.usage.total_cost_usd == 0.019
        stream: Any = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        told = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(told) == "A short story"


def test_text_completions(client: Lunar, stage: Stage) -> None:
    choice = {"index": 0, "text": " there was", "finish_reason": "stop", "logprobs": None}
    doc = {"id": "c", "object": "text_completion", "created": 1, "model": "llama-3-70b"}
    stage.play(json_answer(doc | {"choices": [choice], "usage": USAGE}))
    response = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=100)
    assert response.choices[0].text == " there was"
    assert response.usage is not None
    assert response.usage.total_cost_usd == 0.019


def test_fallbacks_of_the_sdk(client: Lunar, stage: Stage) -> None:
    stage.play(
        lambda request: (
            error_answer(503, "down") if request.model == "gpt-4o" else chat("Hi", USAGE)(request)
        )
    )
    response = client.chat.completions.create(
        model="openai/gpt-4o", messages=HELLO, fallbacks=[MODEL]
    )
    assert response.choices[0].message.content == "Hi"


def test_models_and_providers(client: Lunar, stage: Stage) -> None:
    owners = {model.id: model.owned_by for model in client.models.list()}
    assert owners["gpt-4o-mini"] == "openai"
    providers = {row.id: row for row in client.providers.list(model="gpt-4o-mini")}
    assert providers["openai"].enabled
    assert providers["openai"].type == "openai"
    assert providers["openai"].params["model"] == "gpt-4o-mini"
    everyone = {row.id: row.enabled for row in client.providers.list()}
    assert everyone["openai"]
    assert not everyone["anthropic"]
    assert stage.requests == []


ERRORS: dict[str, tuple[Script, str, type[lunar.APIError]]] = {
    "bad request": (error_answer(400, "bad"), MODEL, lunar.BadRequestError),
    "unknown model": ((), "nobody-7b", lunar.NotFoundError),
    "server error": (error_answer(500, "oh"), MODEL, lunar.ServerError),
    "unavailable": (error_answer(503, "down"), MODEL, lunar.ServerError),
    "rate limit": (error_answer(429, "slow down"), MODEL, lunar.RateLimitError),
}


@pytest.mark.parametrize(("script", "model", "expected"), ERRORS.values(), ids=ERRORS)
def test_errors_are_the_sdks_own_classes(
    client: Lunar, stage: Stage, script: Script, model: str, expected: type[lunar.APIError]
) -> None:
    stage.play(script)
    with pytest.raises(expected) as caught:
        client.chat.completions.create(model=model, messages=HELLO)
    assert caught.value.message != "API request failed"


def test_a_wrong_key_is_an_authentication_error(proxy: Proxy, stage: Stage) -> None:
    with (
        Lunar(api_key="pk_live_" + "x" * 32, base_url=proxy.url) as client,
        pytest.raises(lunar.AuthenticationError),
    ):
        client.chat.completions.create(model=MODEL, messages=HELLO)
    assert stage.requests == []

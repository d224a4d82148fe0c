"""POST /v1/completions at providers that only have chat, on the wire and by the usual clients."""

from __future__ import annotations

import warnings
from typing import Any

import openai
import orjson
import pytest

from lunar_proxy.testing import (
    Request,
    Script,
    chat,
    chat_answer,
    chat_stream,
    error_answer,
    json_answer,
    sse,
)

from .harness import Answer, Proxy, Stage, ask

PATH = "/v1/completions"
GROQ = "groq/llama-3.3-70b-versatile"
SPENT = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
# What OpenAI answers for a model that has only chat.
NOT_HERE = error_answer(
    404,
    "This is a chat model and not supported in the v1/completions endpoint. "
    "Did you mean to use v1/chat/completions?",
    type="invalid_request_error",
)


def asked(model: str = GROQ, **more: Any) -> dict[str, Any]:
    return {"model": model, "prompt": "Say hi"} | more


def events(answer: Answer) -> list[Any]:
    lines = [line[6:] for line in answer.body.split(b"\n\n") if line]
    assert lines.pop() == b"[DONE]"
    return [orjson.loads(line) for line in lines]


def test_the_prompt_is_one_user_message_and_the_answer_a_text(
    proxy: Proxy, stage: Stage, door: str
) -> None:
    stage.play(chat_answer("hello there", usage=SPENT, id="chatcmpl-7"))
    answer = ask(proxy.url, asked(max_tokens=9), path=PATH, door=door)
    assert answer.status == 200
    assert stage.request.path == "/groq/v1/chat/completions"
    assert stage.request.doc == {
        "model": "llama-3.3-70b-versatile",
        "messages": [{"role": "user", "content": "Say hi"}],
        "max_tokens": 9,
    }
    doc = answer.doc
    assert (doc["id"], doc["object"]) == ("chatcmpl-7", "text_completion")
    assert doc["choices"] == [
        {"text": "hello there", "index": 0, "finish_reason": "stop", "logprobs": None}
    ]
    assert doc["usage"].items() >= SPENT.items()
    assert doc["usage"]["total_cost_usd"] > 0


@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": True}}])
def test_a_stream_is_one_of_texts_with_its_usage_where_it_was_asked_for(
    proxy: Proxy, stage: Stage, door: str, options: dict[str, Any]
) -> None:
    stage.play(chat("one two", SPENT))
    seen = events(ask(proxy.url, asked(stream=True, **options), path=PATH, door=door))
    assert {doc["object"] for doc in seen} == {"text_completion"}
    assert "".join(doc["choices"][0]["text"] for doc in seen if doc["choices"]) == "one two"
    (usage,) = [doc["usage"] for doc in seen if doc.get("usage")]
    assert usage["total_cost_usd"] > 0
    assert bool(options) == any(doc["choices"] == [] for doc in seen)


def test_a_thinking_model_is_not_silent(proxy: Proxy, stage: Stage) -> None:
    thought = {"index": 0, "delta": {"reasoning": "hm"}, "finish_reason": None}
    said = {"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}
    stage.play(sse({"choices": [thought]}, {"choices": [said]}, "[DONE]"))
    seen = events(ask(proxy.url, asked(stream=True), path=PATH))
    assert [doc["choices"][0]["text"] for doc in seen] == ["", "hi"]
    assert seen[0]["choices"][0]["reasoning"] == "hm"


def test_a_cut_stream_ends_with_an_error_of_the_clients_own_api(proxy: Proxy, stage: Stage) -> None:
    stage.play(chat_stream("one two", finish_reason=None, done=False))
    *_, last = events(ask(proxy.url, asked(stream=True), path=PATH))
    assert last["object"] == "text_completion"
    assert last["error"]["type"] == "upstream_error"
    assert last["choices"][0]["finish_reason"] == "error"


@pytest.mark.parametrize("stream", [False, True])
def test_what_chat_cannot_do_is_refused_before_anyone_is_asked(
    proxy: Proxy, stage: Stage, door: str, stream: bool
) -> None:
    doc = asked(prompt=["a", "b"], stream=stream)
    answer = ask(proxy.url, doc, path=PATH, door=door)
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    assert answer.error["param"] == "prompt"
    assert stage.requests == []


def test_a_providers_own_error_is_passed_on(proxy: Proxy, stage: Stage) -> None:
    stage.play(error_answer(400, "temperature is too high", code="bad_temperature"))
    answer = ask(proxy.url, asked(temperature=9), path=PATH)
    assert (answer.status, answer.doc["error"]["code"]) == (400, "bad_temperature")


@pytest.mark.parametrize("model", ["openai/gpt-3.5-turbo-instruct", "my-vllm/llama-3-70b"])
def test_a_provider_with_the_endpoint_is_asked_there(
    proxy: Proxy, stage: Stage, model: str
) -> None:
    choice = {"text": "hi", "index": 0, "finish_reason": "stop", "logprobs": None}
    stage.play(json_answer({"id": "c", "object": "text_completion", "choices": [choice]}))
    answer = ask(proxy.url, asked(model, prompt=["a", "b"], echo=True), path=PATH)
    assert answer.status == 200
    assert stage.request.path.endswith("/v1/completions")
    assert stage.request.doc["prompt"] == ["a", "b"]


def test_a_model_that_says_it_has_only_chat_is_asked_there_from_then_on(
    proxy: Proxy, stage: Stage
) -> None:
    def play(request: Request) -> Script:
        return NOT_HERE if request.path.endswith("/v1/completions") else chat("hi")(request)

    stage.play(play)
    first, second = (ask(proxy.url, asked("openai/gpt-4.1-nano"), path=PATH) for _ in range(2))
    assert [first.doc["choices"][0]["text"], second.doc["choices"][0]["text"]] == ["hi", "hi"]
    assert [request.path.removeprefix("/openai/v1/") for request in stage.requests] == [
        "completions",
        "chat/completions",
        "chat/completions",
    ]
    assert first.headers["x-lunar-attempts"] == "2"


def test_a_model_nobody_knows_is_not_asked_for_twice(proxy: Proxy, stage: Stage) -> None:
    stage.play(error_answer(404, "The model does not exist", code="model_not_found"))
    assert ask(proxy.url, asked("openai/gpt-none"), path=PATH).status == 404
    assert len(stage.requests) == 1


# --- the clients people use ---------------------------------------------------------------------


def test_the_openai_client_completes(proxy: Proxy, stage: Stage) -> None:
    stage.play(chat("one two", SPENT))
    with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="sk-mine", max_retries=0) as client:
        whole = client.completions.create(model=GROQ, prompt="Say hi", max_tokens=5)
        chunks = list(client.completions.create(model=GROQ, prompt="Say hi", stream=True))
    assert whole.choices[0].text == "one two"
    assert whole.usage is not None
    assert whole.usage.total_tokens == 12
    assert "".join(chunk.choices[0].text for chunk in chunks) == "one two"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_the_lunar_client_completes(proxy: Proxy, stage: Stage) -> None:
    stage.play(chat("one two", SPENT))
    with warnings.catch_warnings(category=DeprecationWarning, action="ignore"):
        import lunar  # its pydantic models are declared in a way that is going out

    client = lunar.Lunar(api_key="sk-mine", base_url=proxy.url, num_retries=0)
    try:
        made = client.completions.create(model=GROQ, prompt="Say hi", max_tokens=5)
    finally:
        client.close()
    assert made.choices[0].text == "one two"
    assert made.usage is not None
    assert made.usage.total_cost_usd

"""OpenAI's own SDK, pointed at the proxy: what an application sees is OpenAI, with its cost."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import orjson
import pytest
from pydantic import BaseModel

from lunar_proxy.testing import (
    Chunk,
    End,
    Head,
    Request,
    Script,
    chat,
    chat_answer,
    chat_stream,
    error_answer,
    json_answer,
)
from tests.core.streams import cassette

from .harness import DOORS, Proxy, Stage

USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
HELLO: Any = [{"role": "user", "content": "Hello"}]
MODEL = "my-vllm/llama-3-70b"


def options(proxy: Proxy, door: str) -> dict[str, Any]:
    """`Connection: close` is not for the fast door."""
    headers = {"Connection": "close"} if door == "aiohttp" else {}
    return {
        "base_url": f"{proxy.url}/v1",
        "api_key": "sk-mine",
        "max_retries": 0,
        "default_headers": headers,
    }


@pytest.fixture(params=DOORS)
def client(proxy: Proxy, request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(**options(proxy, request.param)) as made:
        yield made


@pytest.fixture(params=DOORS)
async def aclient(
    proxy: Proxy, request: pytest.FixtureRequest
) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(**options(proxy, request.param)) as made:
        yield made


def cost(usage: Any) -> float:
    """The fields we add are not in the SDK's types; it keeps what it does not know."""
    found: float = usage.model_extra["total_cost_usd"]
    return found


def test_chat(client: openai.OpenAI, stage: Stage) -> None:
    stage.play(chat("Hello there", USAGE))
    answer = client.chat.completions.create(model=MODEL, messages=HELLO)
    assert answer.choices[0].message.content == "Hello there"
    assert answer.usage is not None
    assert (answer.usage.total_tokens, cost(answer.usage)) == (12, 0.019)


def test_a_stream_and_its_cost(client: openai.OpenAI, stage: Stage) -> None:
    stage.play(chat("Hello there", USAGE))
    chunks = list(client.chat.completions.create(model=MODEL, messages=HELLO, stream=True))
    assert all(chunk.choices for chunk in chunks)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Hello there"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert cost(chunks[-1].usage) == 0.019


def test_a_stream_with_usage_asked_for(client: openai.OpenAI, stage: Stage) -> None:
    stage.play(chat("Hello there", USAGE))
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    *_, last = stream
    assert last.choices == []
    assert last.usage is not None
    assert cost(last.usage) == 0.019


async def test_async_chat_and_stream(aclient: openai.AsyncOpenAI, stage: Stage) -> None:
    stage.play(chat("Hello there", USAGE))
    answer = await aclient.chat.completions.create(model=MODEL, messages=HELLO)
    assert answer.choices[0].message.content == "Hello there"
    stream = await aclient.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == "Hello there"


def test_the_stream_helper(client: openai.OpenAI, stage: Stage) -> None:
    stage.play(chat("Hello there", USAGE))
    with client.chat.completions.stream(model=MODEL, messages=HELLO) as stream:
        done = stream.get_final_completion()
    assert done.choices[0].message.content == "Hello there"


def test_tools(client: openai.OpenAI, stage: Stage) -> None:
    tape = cassette("openai_tools_usage.sse")
    stage.play([Head(200, {"content-type": "text/event-stream"}), Chunk(tape), End()])
    tools: Any = [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]
    stream = client.chat.completions.create(
        model="openai/gpt-4o", messages=HELLO, tools=tools, stream=True
    )
    calls = [
        call
        for chunk in stream
        if chunk.choices
        for call in chunk.choices[0].delta.tool_calls or []
        if call.function is not None
    ]
    named = [call.function.name for call in calls if call.function and call.function.name]
    assert named
    assert orjson.loads("".join(c.function.arguments or "" for c in calls if c.function))
    assert stage.request.doc["tools"] == tools


class City(BaseModel):
    name: str
    people: int


def test_structured_output(client: openai.OpenAI, stage: Stage) -> None:
    stage.play(chat_answer('{"name":"Bonn","people":336465}', usage=USAGE))
    answer = client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=City)
    assert answer.choices[0].message.parsed == City(name="Bonn", people=336465)
    assert stage.request.doc["response_format"]["type"] == "json_schema"


def test_raw_response_headers(client: openai.OpenAI, stage: Stage) -> None:
    stage.play(chat("Hi", USAGE))
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=HELLO, extra_headers={"x-request-id": "mine-7"}
    )
    assert raw.headers["x-request-id"] == "mine-7"
    assert raw.headers["x-lunar-provider"] == "my-vllm"
    assert raw.headers["x-lunar-model"] == "llama-3-70b"
    assert raw.parse().choices[0].message.content == "Hi"


def test_a_file_is_uploaded(client: openai.OpenAI, stage: Stage) -> None:
    stage.play(json_answer({"id": "file-1", "object": "file", "bytes": 9, "created_at": 1}))
    content = bytes(range(256)) * 300
    made = client.files.create(file=("a.jsonl", io.BytesIO(content)), purpose="batch")
    assert made.id == "file-1"
    assert stage.request.path == "/openai/v1/files"
    assert content in stage.request.body
    assert b'name="purpose"\r\n\r\nbatch' in stage.request.body


def test_speech_is_sent_to_the_provider_its_form_names(client: openai.OpenAI, stage: Stage) -> None:
    stage.play(json_answer({"text": "Hello"}))
    sound = b"RIFF" + bytes(range(256)) * 200
    said = client.audio.transcriptions.create(
        model="groq/whisper-large-v3", file=("a.wav", io.BytesIO(sound))
    )
    assert said.text == "Hello"
    assert stage.request.path == "/groq/v1/audio/transcriptions"
    assert sound in stage.request.body
    assert b'name="model"\r\n\r\nwhisper-large-v3\r\n' in stage.request.body
    assert stage.request.header("content-length") == str(len(stage.request.body))


def test_speech_comes_back(client: openai.OpenAI, stage: Stage) -> None:
    sound = bytes(range(256)) * 500
    stage.play([Head(200, {"content-type": "audio/mpeg"}), Chunk(sound), End()])
    spoken = client.audio.speech.create(model="openai/tts-1", voice="alloy", input="Hello")
    assert spoken.read() == sound


def test_embeddings(client: openai.OpenAI, stage: Stage) -> None:
    doc = orjson.loads(cassette("openai_embeddings.json"))
    stage.play(json_answer(doc))
    answer = client.embeddings.create(
        model="openai/text-embedding-3-small", input="Hello", encoding_format="float"
    )
    assert answer.data[0].embedding == doc["data"][0]["embedding"]
    assert cost(answer.usage) == pytest.approx(8 * 0.02 / 1e6, abs=1e-10)


def test_responses(client: openai.OpenAI, stage: Stage) -> None:
    stage.play(json_answer(orjson.loads(cassette("openai_responses.json"))))
    answer = client.responses.create(model="openai/gpt-4.1", input="Hello")
    assert answer.output_text
    assert answer.usage is not None
    assert cost(answer.usage) > 0


def test_a_stream_of_responses(client: openai.OpenAI, stage: Stage) -> None:
    tape = cassette("openai_responses.sse")
    stage.play([Head(200, {"content-type": "text/event-stream"}), Chunk(tape), End()])
    *_, last = client.responses.create(model="openai/gpt-4.1", input="Hello", stream=True)
    assert last.type == "response.completed"
    assert last.response.usage is not None
    assert cost(last.response.usage) > 0


def test_images(client: openai.OpenAI, stage: Stage) -> None:
    stage.play(json_answer({"created": 1, "data": [{"b64_json": "aGk="}]}))
    answer = client.images.generate(model="openai/gpt-image-1", prompt="a lighthouse")
    assert answer.data is not None
    assert answer.data[0].b64_json == "aGk="
    assert stage.request.path == "/openai/v1/images/generations"
    assert stage.request.model == "gpt-image-1"


def test_moderations_and_legacy_completions(client: openai.OpenAI, stage: Stage) -> None:
    stage.play(json_answer({"id": "m", "model": "omni", "results": []}))
    assert client.moderations.create(input="Hello").results == []
    stage.play(
        json_answer(
            {
                "id": "c",
                "object": "text_completion",
                "created": 1,
                "model": "x",
                "choices": [{"index": 0, "text": "Hi", "finish_reason": "stop", "logprobs": None}],
                "usage": USAGE,
            }
        )
    )
    done = client.completions.create(model=MODEL, prompt="Hello")
    assert done.choices[0].text == "Hi"


def test_models(client: openai.OpenAI, stage: Stage) -> None:
    known = {model.id for model in client.models.list()}
    assert {"smart", "demo/echo", "my-vllm/llama-3-70b", "lunar/support-bot"} <= known
    assert client.models.retrieve("demo/echo").id == "demo/echo"
    assert stage.requests == []


# What the provider, or the proxy, says -> what the SDK makes of it.
ERRORS: dict[str, tuple[Script, str, type[openai.APIStatusError]]] = {
    "400": (error_answer(400, "bad"), MODEL, openai.BadRequestError),
    "404 of ours": ((), "nobody-7b", openai.NotFoundError),
    "422": (error_answer(422, "hm"), MODEL, openai.UnprocessableEntityError),
    "429": (
        error_answer(429, "slow down", headers={"retry-after": "7"}),
        MODEL,
        openai.RateLimitError,
    ),
    "500": (error_answer(500, "oh"), MODEL, openai.InternalServerError),
}


@pytest.mark.parametrize(("script", "model", "expected"), ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_the_sdks_own_classes(
    client: openai.OpenAI,
    stage: Stage,
    script: Script,
    model: str,
    expected: type[openai.APIStatusError],
    stream: bool,
) -> None:
    stage.play(script)
    with pytest.raises(expected) as caught:
        client.chat.completions.create(model=model, messages=HELLO, stream=stream)
    assert caught.value.request_id
    if expected is openai.RateLimitError:
        assert caught.value.response.headers["retry-after"] == "7"


def test_a_wrong_key_of_ours_is_an_authentication_error(proxy: Proxy, stage: Stage) -> None:
    with (
        openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="pk_live_" + "x" * 32) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.chat.completions.create(model=MODEL, messages=HELLO)
    assert stage.requests == []


def test_a_cut_stream_raises(client: openai.OpenAI, stage: Stage) -> None:
    def play(request: Request) -> Script:
        return chat_stream("Hello there", finish_reason=None, done=False)

    stage.play(play)
    stream = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    with pytest.raises(openai.APIError) as caught:
        list(stream)
    assert caught.value.code == "upstream_cut"

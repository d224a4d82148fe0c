"""What providers are known to send, through both doors: the same bytes, but for one splice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest

from lunar_proxy.core.sse import SSEParser
from lunar_proxy.testing import Chunk, End, Head, Request, Script, Step, Until
from tests.core.streams import CASSETTES, bytewise, cassette, documents, halves

from .harness import Proxy, Stage, ask, chat, opened

How = Callable[[bytes], Iterator[bytes]]

FAILING = {"gemini_error.sse", "openai_responses_failed.sse", "openrouter_error.sse"}
STREAMS = sorted(path.name for path in CASSETTES.glob("*.sse") if path.name not in FAILING)
DOCUMENTS = sorted(path.name for path in CASSETTES.glob("*.json"))

# Who a cassette is from, by the first word of its name, and a model to ask them for.
MODELS = {
    "openai": "openai/gpt-4o",
    "azure": "azure/gpt-4o",
    "groq": "groq/llama-3.3-70b-versatile",
    "mistral": "mistral/mistral-small-latest",
    "deepseek": "deepseek/deepseek-reasoner",
    "gemini": "gemini/gemini-2.0-flash",
    "openrouter": "openrouter/meta-llama/llama-3.3-70b-instruct",
    "vllm": "my-vllm/llama-3-70b",
    "server": "my-vllm/llama-3-70b",
    "ollama": "ollama/llama3.2",
}
ADDED = {
    "input_cost_usd",
    "output_cost_usd",
    "cache_input_cost_usd",
    "total_cost_usd",
    "latency_ms",
    "ttft_ms",
}


def asked_for(tape: str, **more: Any) -> tuple[str, dict[str, Any]]:
    """The endpoint a cassette is of, and a request that it answers."""
    model = MODELS[tape.partition("_")[0]]
    if "responses" in tape:
        return "/v1/responses", {"model": model, "input": "Hello"} | more
    if "completions" in tape:
        return "/v1/completions", {"model": model, "prompt": "Hello"} | more
    if "embeddings" in tape:
        return "/v1/embeddings", {"model": model, "input": "Hello"} | more
    if "two_choices" in tape:
        more = {"n": 2} | more
    return "/v1/chat/completions", chat(model, **more)


def streamed(chunks: Iterator[bytes]) -> Script:
    head = Head(200, {"content-type": "text/event-stream; charset=utf-8"})
    return [head, *(Chunk(chunk) for chunk in chunks if chunk), End()]


def without_usage_event(raw: bytes) -> bytes:
    """The stream as a provider sends it whom nobody asked for usage."""

    def kept(data: bytes) -> bool:
        if not data or data == b"[DONE]":
            return True
        doc = orjson.loads(data)
        return bool(doc.get("choices") != [] or not doc.get("usage"))

    parser = SSEParser()
    return b"".join(event.raw for event in parser.feed(raw) if kept(event.data)) + parser.pending


def spliced(ours: bytes, theirs: bytes) -> int:
    """How many events gained bytes; fails when anything else is different."""
    pairs = zip(SSEParser().feed(ours), SSEParser().feed(theirs), strict=True)
    return sum(_gained(a.raw, b.raw) for a, b in pairs)


def _gained(ours: bytes, theirs: bytes) -> bool:
    """Whether one run of bytes was put in, or put in the place of a null."""
    if ours == theirs:
        return False
    at = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), 0)
    inserted = ours.endswith(theirs[at:])
    replaced = theirs[at:].startswith(b"null") and ours.endswith(theirs[at + 4 :])
    assert inserted or replaced, f"more than a splice:\n{ours!r}\n{theirs!r}"
    return True


def replay(stage: Stage, raw: bytes, how: How = halves) -> None:
    stage.play(streamed(how(raw)))


@pytest.mark.parametrize("how", [halves, bytewise])
@pytest.mark.parametrize("tape", STREAMS)
def test_a_stream_is_the_providers_but_for_its_usage(
    proxy: Proxy, stage: Stage, door: str, tape: str, how: How
) -> None:
    replay(stage, cassette(tape), how)
    path, doc = asked_for(tape, stream=True)
    answer = ask(proxy.url, doc, path=path, door=door)
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert spliced(answer.body, seen_unasked(tape))
    assert figures(answer.body).keys() > ADDED


@pytest.mark.parametrize("tape", [tape for tape in STREAMS if "usage" in tape])
def test_the_usage_event_a_client_asked_for_gains_the_fields(
    proxy: Proxy, stage: Stage, door: str, tape: str
) -> None:
    replay(stage, cassette(tape))
    path, doc = asked_for(tape, stream=True, stream_options={"include_usage": True})
    answer = ask(proxy.url, doc, path=path, door=door)
    assert stage.request.doc["stream_options"] == {"include_usage": True}
    assert spliced(answer.body, cassette(tape))
    assert figures(answer.body).keys() > ADDED


@pytest.mark.parametrize("mode", ["headers", "off"])
@pytest.mark.parametrize("tape", STREAMS)
def test_without_annotation_a_stream_is_not_touched(
    proxy: Proxy, stage: Stage, door: str, tape: str, mode: str
) -> None:
    replay(stage, cassette(tape))
    path, doc = asked_for(tape, stream=True)
    answer = ask(proxy.url, doc, path=path, door=door, headers={"x-lunar-annotate": mode})
    assert answer.body == (seen_unasked(tape) if mode == "headers" else cassette(tape))
    assert asks_for_usage(stage.request) == (mode == "headers" and path != "/v1/responses")


@pytest.mark.parametrize("tape", [tape for tape in STREAMS if "responses" not in tape])
def test_a_client_that_refuses_usage_gets_none(
    proxy: Proxy, stage: Stage, door: str, tape: str
) -> None:
    replay(stage, cassette(tape))
    path, doc = asked_for(tape, stream=True, stream_options={"include_usage": False})
    answer = ask(proxy.url, doc, path=path, door=door)
    assert answer.body == cassette(tape)
    assert not asks_for_usage(stage.request)


def asks_for_usage(request: Request) -> bool:
    return bool((request.doc.get("stream_options") or {}).get("include_usage"))


def seen_unasked(tape: str) -> bytes:
    """What a client that did not ask for usage may see: not the event that only we asked for."""
    return cassette(tape) if "responses" in tape else without_usage_event(cassette(tape))


def figures(body: bytes) -> dict[str, Any]:
    """The `usage` that says what the stream cost; the same wherever the provider has one."""
    usages = [_usage(event) for event in documents(body) if event]
    found, *more = [usage for usage in usages if usage and "total_cost_usd" in usage]
    assert all(usage == found for usage in more)
    assert isinstance(found, dict)
    return found


def _usage(event: dict[str, Any]) -> Any:
    return event.get("usage") or (event.get("response") or {}).get("usage")


@pytest.mark.parametrize("mode", ["full", "headers", "off"])
@pytest.mark.parametrize("tape", DOCUMENTS)
def test_a_document_gains_its_fields_and_nothing_else(
    proxy: Proxy, stage: Stage, door: str, tape: str, mode: str
) -> None:
    raw = cassette(tape)
    head = {"content-type": "application/json", "content-length": str(len(raw))}
    stage.play([Head(200, head), Chunk(raw), End()])
    path, doc = asked_for(tape)
    answer = ask(proxy.url, doc, path=path, door=door, headers={"x-lunar-annotate": mode})
    assert answer.status == 200
    assert _gained(answer.body, raw) == (mode == "full")
    assert ("x-lunar-usage" in answer.headers) == (mode == "headers")
    if mode == "full":
        assert answer.doc["usage"].keys() > ADDED
    if mode == "headers":
        said = orjson.loads(answer.headers["x-lunar-usage"])
        assert said.keys() > ADDED
        cost = answer.headers.get("x-lunar-cost-usd", "null")
        assert said["total_cost_usd"] == orjson.loads(cost)


def test_each_event_arrives_before_the_next_is_sent(proxy: Proxy, stage: Stage, door: str) -> None:
    words = (b"one", b"two", b"three")
    events = [b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % w for w in words]
    events.append(b"data: [DONE]\n\n")
    gates = [asyncio.Event() for _ in events]
    steps: list[Step] = [Head(200, {"content-type": "text/event-stream"})]
    for event, gate in zip(events, gates, strict=True):
        steps += [Chunk(event), Until(gate)]
    stage.play([*steps, End()])
    with opened(proxy.url, chat(stream=True), door=door) as response:
        for event, gate in zip(events, gates, strict=True):
            assert response.read(len(event)) == event
            stage.set(gate)
        assert response.read() == b""

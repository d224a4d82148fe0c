"""A plain call that goes wrong after it was asked by the shortcut ends as on the long way.

The fast door takes the shortcut on a connection that is open; the other door never does.
"""

from __future__ import annotations

import gzip
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from lunar_proxy.testing import (
    Break,
    Chunk,
    Close,
    End,
    Head,
    Pause,
    Raw,
    Request,
    Script,
    error_answer,
    json_answer,
)

from .harness import (
    PATIENCE_S,
    Answer,
    Proxy,
    Stage,
    answer_on,
    ask,
    chat,
    eventually,
    request_bytes,
    serving,
)

SHORT_S = 1.0  # and yet a machine at work with other tests is quicker
JSON = {"content-type": "application/json"}
DOC = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 0,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello"},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
}
GOOD = json_answer(DOC)
BODY = orjson.dumps(DOC)
FRAMED = JSON | {"content-length": str(len(BODY))}
TIMES = re.compile(rb'"(?:latency_ms|ttft_ms)":[0-9.]+')


def raw(head: bytes, body: bytes) -> Script:
    return (Raw(b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (head, len(body), body)), End())


PLAIN = b"200 OK\r\ncontent-type: application/json"

SCRIPTS: dict[str, Script] = {
    "all is well": GOOD,
    "an error": error_answer(500, "oh"),
    "busy": error_answer(429, "wait"),
    "a refusal": error_answer(400, "no"),
    "a bad key": error_answer(401, "who"),
    "an error in a 200": json_answer({"error": {"message": "oh"}}),
    "no usage": json_answer({name: value for name, value in DOC.items() if name != "usage"}),
    "an empty usage": json_answer(DOC | {"usage": {}}),
    "usage that is none": json_answer(DOC | {"usage": {"prompt_tokens": "x"}}),
    "a list": json_answer([1]),
    "half a document": raw(PLAIN, BODY[:-1]),
    "NaN in it": raw(PLAIN, BODY[:-1] + b',"x":NaN}'),
    "nothing": raw(PLAIN, b""),
    "no content type": raw(b"200 OK", BODY),
    "a page": raw(b"200 OK\r\ncontent-type: text/html", b"<p>"),
    "a redirect": raw(b"302 Found\r\nlocation: /", b""),
    "compressed": raw(PLAIN + b"\r\ncontent-encoding: gzip", gzip.compress(BODY)),
    "in chunks": (Head(200, JSON), Chunk(BODY[:20]), Chunk(BODY[20:]), End()),
    "in two reads": (Head(200, FRAMED), Chunk(BODY[:20]), Pause(0.05), Chunk(BODY[20:]), End()),
    "an event stream": (
        Head(200, {"content-type": "text/event-stream"}),
        Chunk(b"data: [DONE]\n\n"),
        End(),
    ),
    "closed at once": (Close(),),
    "reset at once": (Break(),),
    "cut": (Head(200, FRAMED), Chunk(BODY[:20]), Close()),
    "reset in the middle": (Head(200, FRAMED), Chunk(BODY[:20]), Break()),
    "no HTTP": (Raw(b"SSH-2.0-x\r\n\r\n"), Close()),
    "silence": (Pause(30),),
    "silence in the middle": (Head(200, JSON), Chunk(BODY[:20]), Pause(30)),
}


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage() as running:
        yield running


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, stage: Stage) -> Iterator[Proxy]:
    provider: dict[str, Any] = {"base_url": f"{stage.upstream.url}/v1", "api_key": "k"}
    config = {
        "providers": {
            "a": provider | {"timeouts": {"first_token_s": SHORT_S, "idle_s": SHORT_S}},
            "b": provider,
        },
        "retries": {"attempts": 1},
        "breaker": {"failures": 1000},
    }
    with serving(tmp_path_factory.mktemp("shortcut"), config) as running:
        yield running


def outcome(
    proxy: Proxy, stage: Stage, script: Script, door: str, **more: Any
) -> tuple[int, bytes, dict[str, str], list[str], bool]:
    """What the client sees, whom the proxy asked, and whether it was on an open connection."""
    stage.clear()
    stage.play(GOOD)
    assert ask(proxy.url, chat("a/warm")).status == 200

    def play(request: Request) -> Script:
        return script if request.doc["model"] == "m" else GOOD

    stage.play(play)
    answer: Answer = ask(proxy.url, chat("a/m", **more), door=door)
    warm, *asked = stage.requests
    told = {
        name: value
        for name, value in answer.headers.items()
        if name.startswith("x-lunar-") or name == "retry-after"
    }
    told.pop("x-lunar-overhead-ms", None)
    body = TIMES.sub(b"", answer.body)
    names = [request.doc["model"] for request in asked]
    return answer.status, body, told, names, asked[0].connection == warm.connection


@pytest.mark.parametrize("more", [{}, {"fallbacks": ["b/n"]}], ids=["alone", "with a fallback"])
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_ends_as_on_the_long_way(
    proxy: Proxy, stage: Stage, script: Script, more: dict[str, Any]
) -> None:
    short = outcome(proxy, stage, script, "fast", **more)
    assert short == outcome(proxy, stage, script, "aiohttp", **more)
    assert short[-1], "it was asked on the connection that was open"


def test_a_client_that_leaves_takes_its_question_along(proxy: Proxy, stage: Stage) -> None:
    stage.clear()
    stage.play(GOOD)
    ask(proxy.url, chat("b/m"))
    stage.play((Pause(30),))
    with socket.create_connection(proxy.address) as client:
        client.sendall(request_bytes(chat("b/m")))
        eventually(lambda: len(stage.requests) == 2)
    warm, asked = stage.requests
    assert asked.connection == warm.connection
    stage.closed_by_proxy(asked)
    (record,) = eventually(lambda: [call for call in proxy.calls() if call["status"] == 499])
    assert record["disconnected"] == "headers"


def test_a_shutdown_lets_it_end(tmp_path: Path, stage: Stage) -> None:
    stage.clear()
    stage.play(GOOD)
    provider = {"base_url": f"{stage.upstream.url}/v1", "api_key": "k"}
    with serving(tmp_path, {"providers": {"a": provider}}) as short_lived:
        ask(short_lived.url, chat("a/m"))
        stage.play((Pause(SHORT_S), *GOOD))
        with socket.create_connection(short_lived.address) as client:
            client.sendall(request_bytes(chat("a/m")))
            eventually(lambda: len(stage.requests) == 2)
            short_lived.signal(signal.SIGTERM)
            assert answer_on(client).status == 200
        assert short_lived.process.wait(PATIENCE_S) == 0

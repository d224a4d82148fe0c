"""What providers receive: the client's bytes, with the model replaced and nothing else touched."""

from __future__ import annotations

import gzip
import http.client
import re
import socket
import zlib

import orjson
import pytest

from lunar_proxy.testing import (
    Chunk,
    End,
    Head,
    Raw,
    Request,
    Script,
    chat_answer,
    chat_stream,
    error_answer,
    json_answer,
)

from .conftest import PLANTED
from .harness import CHAT, Proxy, Stage, ask, chat, request_bytes, talk

JSON = {"content-type": "application/json"}
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}

# name -> what the client sends, what the provider must get
BODIES = {
    "compact": (
        b'{"model":"openai/gpt-4o","messages":[]}',
        b'{"model":"gpt-4o","messages":[]}',
    ),
    "weird spacing": (
        b'\t{ "messages" :[ ] ,\r\n"model"\t:\n "openai/gpt-4o" , "n":1 }\n',
        b'\t{ "messages" :[ ] ,\r\n"model"\t:\n "gpt-4o" , "n":1 }\n',
    ),
    "numbers keep their spelling": (
        b'{"model":"openai/gpt-4o","messages":[],"seed":18446744073709551615,"a":1e-7,"b":1.0,"c":-0}',
        b'{"model":"gpt-4o","messages":[],"seed":18446744073709551615,"a":1e-7,"b":1.0,"c":-0}',
    ),
    "a number no double can hold": (
        b'{"big":1E400,"model":"openai/gpt-4o","messages":[]}',
        b'{"big":1E400,"model":"gpt-4o","messages":[]}',
    ),
    "unknown members and escapes": (
        rb'{"x_new":{"model":"openai/gpt-4o"},"model":"openai/gpt-4o","messages":[],"e":"\u00e9\/"}',
        rb'{"x_new":{"model":"openai/gpt-4o"},"model":"gpt-4o","messages":[],"e":"\u00e9\/"}',
    ),
    "the model in a prompt": (
        rb'{"messages":[{"role":"user","content":"\"model\":\"a\""}],"model":"openai/gpt-4o"}',
        rb'{"messages":[{"role":"user","content":"\"model\":\"a\""}],"model":"gpt-4o"}',
    ),
    "an escaped key": (
        rb'{"mod\u0065l":"openai/gpt-4o","messages":[]}',
        rb'{"mod\u0065l":"gpt-4o","messages":[]}',
    ),
    "a model given twice": (
        b'{"model":"evil","messages":[],"model":"openai/gpt-4o"}',
        b'{"model":"gpt-4o","messages":[],"model":"gpt-4o"}',
    ),
    "raw UTF-8": (
        '{"model":"openai/gpt-4o","messages":[{"role":"user","content":"grüße 你好 😀"}]}'.encode(),
        '{"model":"gpt-4o","messages":[{"role":"user","content":"grüße 你好 😀"}]}'.encode(),
    ),
    "what is ours is removed": (
        b'{"provider":"openai","model":"gpt-4o","messages":[],"cost_weight":0.5,'
        b'"fallbacks":["groq/llama-3.3-70b-versatile"]}',
        b'{"model":"gpt-4o","messages":[]}',
    ),
    "OpenRouter's provider object is not ours": (
        b'{"provider":{"order": ["azure"]},"model":"openai/gpt-4o","messages":[],"cost_weight":1}',
        b'{"provider":{"order": ["azure"]},"model":"gpt-4o","messages":[]}',
    ),
    "usage is asked for in a stream": (
        b'{"model":"openai/gpt-4o","messages":[],"stream":true,"stream_options":{"x":1}}',
        b'{"model":"gpt-4o","messages":[],"stream":true,'
        b'"stream_options":{"x":1,"include_usage":true}}',
    ),
}

# name asked for -> where the request goes, and the model it names
TARGETS = {
    "openai/gpt-4o": ("/openai/v1/chat/completions", "gpt-4o"),
    "gpt-4o": ("/openai/v1/chat/completions", "gpt-4o"),
    "smart": ("/my-vllm/v1/chat/completions", "llama-3-70b"),
    "llama-3-70b": ("/my-vllm/v1/chat/completions", "llama-3-70b"),
    "my-vllm/anything": ("/my-vllm/v1/chat/completions", "anything"),
    "meta-llama/Llama-3": ("/my-vllm/v1/chat/completions", "meta-llama/Llama-3"),
    "openrouter/meta-llama/llama-3.3-70b-instruct": (
        "/openrouter/v1/chat/completions",
        "meta-llama/llama-3.3-70b-instruct",
    ),
    "lunar/support-bot": ("/bot/v1/chat/completions", "support-bot-v2"),
    "pureai/support-bot": ("/bot/v1/chat/completions", "support-bot-v2"),
    "azure/gpt-4o": (
        "/azure/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21",
        "gpt-4o",
    ),
}


@pytest.mark.parametrize(("sent", "received"), BODIES.values(), ids=BODIES)
def test_only_the_model_is_replaced(
    proxy: Proxy, stage: Stage, door: str, sent: bytes, received: bytes
) -> None:
    stage.play(chat_stream("Hi") if b'"stream":true' in sent else chat_answer("Hi", usage=USAGE))
    assert ask(proxy.url, sent, door=door).status == 200
    assert stage.request.body == received
    assert stage.request.header("content-length") == str(len(received))


@pytest.mark.parametrize("model", TARGETS)
def test_a_name_leads_to_its_provider(proxy: Proxy, stage: Stage, model: str) -> None:
    path, theirs = TARGETS[model]
    stage.play(chat_answer("Hi", usage=USAGE, model=theirs))
    answer = ask(proxy.url, chat(model))
    assert (stage.request.path, stage.request.model) == (path, theirs)
    assert answer.headers["x-lunar-model"] == theirs
    assert answer.doc["model"] == theirs
    assert answer.headers["x-lunar-attempts"] == "1"
    assert answer.headers["x-lunar-fallback-index"] == "0"
    assert 0 <= float(answer.headers["x-lunar-overhead-ms"]) < 5000


def test_a_deployment_costs_its_time(proxy: Proxy, stage: Stage) -> None:
    stage.play(chat_answer("Hi", usage=USAGE))
    usage = ask(proxy.url, chat("lunar/support-bot")).doc["usage"]  # a dollar a second
    assert usage["total_cost_usd"] == pytest.approx(usage["latency_ms"] / 1000, abs=1e-6)
    assert [usage[f"{part}_cost_usd"] for part in ("input", "output", "cache_input")] == [None] * 3


def test_cached_tokens_are_paid_once(proxy: Proxy, stage: Stage) -> None:
    stage.play(chat_answer("Hi", usage=USAGE | {"prompt_tokens_details": {"cached_tokens": 4}}))
    usage = ask(proxy.url, chat("my-vllm/llama-3-70b")).doc["usage"]
    assert usage["input_cost_usd"] == 0.006
    assert usage["cache_input_cost_usd"] == 0.0004
    assert usage["output_cost_usd"] == 0.01
    assert usage["total_cost_usd"] == 0.0164


def test_an_unknown_price_is_null(proxy: Proxy, stage: Stage) -> None:
    stage.play(chat_answer("Hi", usage=USAGE))
    usage = ask(proxy.url, chat("my-vllm/nobody-sells-this")).doc["usage"]
    assert {usage[name] for name in usage if name.endswith("_usd")} == {None}
    assert usage["latency_ms"] > 0


def test_prefix_and_provider_must_agree(proxy: Proxy, stage: Stage, door: str) -> None:
    answer = ask(proxy.url, chat("openai/gpt-4o", provider="groq"), door=door)
    assert answer.status == 400
    assert answer.error["code"] == "provider_conflict"
    assert stage.requests == []


def test_credentials_are_the_providers_own(proxy: Proxy, stage: Stage, door: str) -> None:
    stage.play(chat_answer("Hi"))
    own = {"authorization": f"Bearer {PLANTED['caller']}", "cookie": "a=b", "x-keep": "me"}
    ask(proxy.url, chat(), door=door, headers=own)
    ask(proxy.url, chat("azure/gpt-4o"), door=door, headers=own)
    ask(proxy.url, chat("together/x"), door=door, headers=own)
    first, second, third = stage.requests
    assert first.header("authorization") == f"Bearer {PLANTED['openai']}"
    assert (second.header("api-key"), second.header("authorization")) == (PLANTED["azure"], None)
    assert third.header("authorization") == f"Bearer {PLANTED['caller']}"
    assert {request.header("cookie") for request in stage.requests} == {None}
    assert {request.header("x-keep") for request in stage.requests} == {"me"}


def test_our_own_keys_never_leave(proxy: Proxy, stage: Stage, door: str) -> None:
    key = "pk_live_" + "a" * 32
    answer = ask(proxy.url, chat("together/x"), door=door, headers={"x-api-key": key})
    assert answer.status == 401
    assert answer.error["type"] == "authentication_error"
    assert stage.requests == []


def test_hop_by_hop_headers_stay_on_their_hop(proxy: Proxy, stage: Stage) -> None:
    body = orjson.dumps(chat())
    stage.play(
        [
            Head(
                200,
                {
                    "content-type": "application/json",
                    "content-length": "2",
                    "connection": "x-hop",
                    "x-hop": "1",
                    "keep-alive": "timeout=5",
                    "proxy-authenticate": "Basic",
                    "x-request-id": "req-of-the-provider",
                    "x-kept": "yes",
                },
            ),
            Chunk(b"{}"),
            End(),
        ]
    )
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: somewhere.else\r\n"
        "Connection: close, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 3\r\n"
        "TE: trailers\r\nProxy-Authorization: Basic eA==\r\n"
        "X-Forwarded-For: 10.0.0.1\r\nX-Lunar-Annotate: off\r\nX-Request-Id: mine-1\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    raw = talk(proxy.address, head.encode() + body)
    sent = {name.decode() for name, _ in stage.request.headers}
    assert not sent & {"connection", "x-mine", "keep-alive", "te", "proxy-authorization"}
    assert not sent & {"x-forwarded-for", "x-lunar-annotate", "transfer-encoding"}
    assert stage.request.header("host") == f"127.0.0.1:{stage.upstream.port}"
    assert stage.request.header("x-request-id") == "mine-1"
    fields = raw.partition(b"\r\n\r\n")[0].lower()
    assert b"\r\nx-kept: yes" in fields
    assert b"\r\nx-request-id: mine-1" in fields
    assert b"x-hop" not in fields
    assert b"proxy-authenticate" not in fields


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_compressed_answer_is_decoded(
    proxy: Proxy, stage: Stage, door: str, coding: str, stream: bool
) -> None:
    plain = _body(chat_stream("Hi you") if stream else chat_answer("Hi you", usage=USAGE))
    kind = "text/event-stream" if stream else "application/json"
    stage.play(
        [
            Head(200, {"content-type": kind, "content-encoding": coding}),
            Chunk(gzip.compress(plain) if coding == "gzip" else zlib.compress(plain)),
            End(),
        ]
    )
    off = {"x-lunar-annotate": "off", "accept-encoding": "gzip"}
    answer = ask(proxy.url, chat(stream=stream), door=door, headers=off)
    assert stage.request.header("accept-encoding") == "identity"
    assert "content-encoding" not in answer.headers
    assert answer.body == plain


def _body(script: Script) -> bytes:
    return b"".join(step.data for step in script if isinstance(step, Chunk))


@pytest.mark.parametrize("odd", [rb'"\ud83d"', b"NaN", b"-Infinity", b"1e400"])
def test_an_answer_that_clients_can_read_is_not_refused(
    proxy: Proxy, stage: Stage, door: str, odd: bytes
) -> None:
    said = b'{"choices":[{"message":{"content":"Hi"},"odd":' + odd + b"}],"
    usage = b'"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2'
    stage.play([Head(200, JSON), Chunk(said + usage + b"}}"), End()])
    answer = ask(proxy.url, chat("my-vllm/llama-3-70b"), door=door)
    assert answer.status == 200
    assert answer.body.startswith(said + usage + b',"input_cost_usd":0.001,')


def test_what_is_not_counted_there_is_counted_here_whole_and_streamed_alike(
    proxy: Proxy, stage: Stage
) -> None:
    said = "The quick brown fox jumps over the lazy dog, again and again and again."
    stage.play(chat_answer(said))
    whole = ask(proxy.url, chat("my-vllm/llama-3-70b")).doc["usage"]
    stage.play(chat_stream(said))
    stream = ask(proxy.url, chat("my-vllm/llama-3-70b", stream=True)).body
    (spliced,) = [event for event in stream.split(b"\n\n") if b'"usage"' in event]
    for usage in (whole, orjson.loads(spliced.removeprefix(b"data: "))["usage"]):
        assert usage["estimated"] is True
        assert 15 <= usage["completion_tokens"] <= 20  # o200k_base says 16
        assert usage["output_cost_usd"] == pytest.approx(usage["completion_tokens"] * 0.002)
        assert usage["completion_tokens"] == whole["completion_tokens"]


def test_a_provider_that_refuses_stream_options_is_remembered(proxy: Proxy, stage: Stage) -> None:
    def play(request: Request) -> Script:
        if "stream_options" in request.doc:
            return error_answer(400, "unknown field: stream_options", type="invalid_request_error")
        return chat_stream("Hi there")

    stage.play(play)
    first = ask(proxy.url, chat("stubborn/x", stream=True))
    assert first.status == 200
    assert b'"estimated":true' in first.body
    asked = len(stage.requests)
    ask(proxy.url, chat("stubborn/x", stream=True))
    assert ["stream_options" in request.doc for request in stage.requests] == [True, False, False]
    assert asked == 2


def test_a_client_that_asks_itself_gets_the_refusal(proxy: Proxy, stage: Stage) -> None:
    refusal = error_answer(400, "unknown field: stream_options", type="invalid_request_error")
    stage.play(refusal)
    answer = ask(proxy.url, chat(stream=True, stream_options={"include_usage": True}))
    assert answer.status == 400
    assert answer.body == _body(refusal)
    assert len(stage.requests) == 1


def test_a_refusal_is_passed_on_as_it_is_with_our_key_masked(
    proxy: Proxy, stage: Stage, door: str
) -> None:
    theirs = {"x-their": "1", "retry-after": "7"}
    stage.play(error_answer(400, f"bad key {PLANTED['openai']}?", headers=theirs))
    answer = ask(proxy.url, chat(), door=door)
    assert answer.status == 400
    assert PLANTED["openai"] not in answer.body.decode()
    assert answer.doc["error"]["message"] == "bad key ****?"
    assert theirs.items() <= answer.headers.items()
    assert answer.headers["x-lunar-provider"] == "openai"


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "PUT", "PATCH", "OPTIONS"])
def test_any_method_passes(proxy: Proxy, stage: Stage, method: str) -> None:
    stage.play(json_answer({"id": "file-1"}) if method != "HEAD" else [Head(200, {}), End()])
    body = b'{"a": 1.0}' if method in ("PUT", "PATCH") else None
    answer = ask(proxy.url, body, path="/v1/files/file-1?limit=2", method=method)
    assert answer.status == 200
    assert (stage.request.method, stage.request.path) == (method, "/openai/v1/files/file-1?limit=2")
    assert stage.request.body == (body or b"")
    assert answer.body == (b"" if method == "HEAD" else b'{"id":"file-1"}')


# name -> the provider's answer without a body, the status and the length that arrive
BODILESS = {
    "HEAD of JSON": ("HEAD", Head(200, JSON | {"content-length": "377"}), 200, "377"),
    "HEAD of JSON without a length": ("HEAD", Head(200, JSON), 200, None),
    "HEAD of what is compressed": (
        "HEAD",
        Head(200, JSON | {"content-encoding": "gzip", "content-length": "37"}),
        200,
        None,
    ),
    "HEAD of audio": (
        "HEAD",
        Head(200, {"content-type": "audio/mpeg", "content-length": "9"}),
        200,
        "9",
    ),
    "HEAD of what the provider refuses": ("HEAD", Head(404, JSON), 404, "0"),
    "HEAD of a redirect": ("HEAD", Head(302, {"location": "/"}), 502, None),
    "not modified": ("GET", Head(304, {"etag": "x"}), 304, None),
}


@pytest.mark.parametrize(
    ("method", "head", "status", "length"), BODILESS.values(), ids=BODILESS.keys()
)
def test_an_answer_without_a_body_leaves_the_connection_clean(
    proxy: Proxy, stage: Stage, method: str, head: Head, status: int, length: str | None
) -> None:
    stage.play([head, End()])
    asked = f"{method} /v1/files/file-1 HTTP/1.1\r\nHost: proxy\r\n\r\n"
    next_asked = "GET /health HTTP/1.1\r\nHost: proxy\r\nConnection: close\r\n\r\n"
    said = talk(proxy.address, (asked + next_asked).encode())
    fields, _, rest = said.partition(b"\r\n\r\n")
    assert fields.startswith(b"HTTP/1.1 %d " % status)
    assert rest.startswith(b"HTTP/1.1 200 OK")  # what is between them would be read as its answer
    found = re.search(rb"\r\ncontent-length: (\d+)", fields, re.IGNORECASE)
    if status < 500:
        assert (found[1].decode() if found else None) == length


@pytest.mark.parametrize("keep_alive", ["", "Connection: keep-alive\r\n"])
def test_http_1_0_gets_a_stream_without_chunks(proxy: Proxy, stage: Stage, keep_alive: str) -> None:
    played = chat_stream("Hello there")
    stage.play(played)
    sent = request_bytes(chat(stream=True), headers="x-lunar-annotate: off\r\n" + keep_alive)
    said = talk(proxy.address, sent.replace(b"HTTP/1.1", b"HTTP/1.0"))
    fields, _, body = said.partition(b"\r\n\r\n")
    assert fields.startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"transfer-encoding" not in fields.lower()
    assert body == _body(played)


def test_the_header_names_the_provider(proxy: Proxy, stage: Stage) -> None:
    stage.play(json_answer({"data": []}))
    path = "/v1/batches"
    assert (
        ask(proxy.url, path=path, method="GET", headers={"x-lunar-provider": "groq"}).status == 200
    )
    assert stage.request.path == "/groq/v1/batches"
    unknown = ask(proxy.url, path=path, method="GET", headers={"x-lunar-provider": "nobody"})
    assert unknown.status == 404
    assert len(stage.requests) == 1


def test_binary_audio_is_relayed(proxy: Proxy, stage: Stage, door: str) -> None:
    sound = bytes(range(256)) * 500
    stage.play(
        [Head(200, {"content-type": "audio/mpeg"}), Chunk(sound[:9]), Chunk(sound[9:]), End()]
    )
    spoken = {"model": "openai/tts-1", "input": "Hello", "voice": "alloy"}
    answer = ask(proxy.url, spoken, path="/v1/audio/speech", door=door)
    assert answer.body == sound
    assert answer.headers["content-type"] == "audio/mpeg"
    assert stage.request.model == "tts-1"


def test_an_upgrade_is_refused_and_nothing_is_sent(proxy: Proxy, stage: Stage) -> None:
    answer = ask(
        proxy.url,
        path="/v1/realtime?model=gpt-4o-realtime",
        method="GET",
        headers={
            "connection": "upgrade",
            "upgrade": "websocket",
            "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
            "sec-websocket-version": "13",
        },
    )
    assert answer.status == 400
    assert "WebSocket" in answer.error["message"]
    assert stage.requests == []


def test_a_connection_is_kept_and_used_again(proxy: Proxy, stage: Stage) -> None:
    stage.play(chat_answer("Hi"))
    connection = http.client.HTTPConnection(*proxy.address, timeout=20)
    for _ in range(5):
        connection.request("POST", CHAT, orjson.dumps(chat()))
        assert connection.getresponse().read()
    connection.close()
    assert len({request.connection for request in stage.requests}) == 1


def test_pipelined_requests_are_answered_in_order(proxy: Proxy, stage: Stage, door: str) -> None:
    stage.play(lambda request: chat_answer(request.doc["messages"][0]["content"]))
    ask_for = [chat() | {"messages": [{"role": "user", "content": f"word{n}"}]} for n in range(3)]
    wire = [request_bytes(doc, door=door, close=doc is ask_for[-1]) for doc in ask_for]
    raw = talk(proxy.address, b"".join(wire))
    places = [raw.index(b'"word%d"' % n) for n in range(3)]
    assert places == sorted(places)
    assert raw.count(b"HTTP/1.1 200") == 3


def test_an_answer_that_is_not_http_is_a_bad_gateway(proxy: Proxy, stage: Stage) -> None:
    stage.play([Raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")])
    answer = ask(proxy.url, chat())
    assert answer.status == 502
    assert answer.error["type"] == "upstream_error"


def test_a_client_that_waits_for_100_continue_gets_it(proxy: Proxy, stage: Stage) -> None:
    stage.play(chat_answer("Hi"))
    body = orjson.dumps(chat())
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Expect: 100-continue\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(proxy.address, timeout=20) as sock:
        sock.sendall(head.encode())
        assert sock.recv(100).startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
        sock.sendall(body)
        assert sock.recv(100).startswith(b"HTTP/1.1 200")


def test_a_list_of_models_names_the_model_that_is_asked(
    proxy: Proxy, stage: Stage, door: str
) -> None:
    stage.play(chat_answer("Hi"))
    doc = {"models": ["openai/gpt-4o", "groq/llama-3.3-70b-versatile"], "messages": []}
    assert ask(proxy.url, doc, door=door).status == 200
    assert stage.request.doc == {"messages": [], "model": "gpt-4o"}

"""What no well-behaved client sends, over bare sockets: a clear error, and nothing is forwarded."""

from __future__ import annotations

import select
import socket
import ssl
import time

import orjson
import pytest

from .harness import CHAT, Proxy, Stage, answer_on, ask, chat, request_bytes, say, talk

GOOD = orjson.dumps(chat())
DEEP = b'{"model":"openai/gpt-4o","messages":' + b"[" * 200 + b"]" * 200 + b"}"
TOO_LARGE = orjson.dumps(chat(x="x" * (1024 * 1024)))

# name -> body, status, code
BODIES = {
    "not JSON": (b"{model: 1}", 400, "invalid_json"),
    "cut JSON": (GOOD[:-5], 400, "invalid_json"),
    "empty": (b"", 400, "invalid_json"),
    "two documents": (GOOD + GOOD, 400, "invalid_json"),
    "invalid UTF-8": (GOOD.replace(b"Hello", b"\xff\xfe"), 400, "invalid_json"),
    "a lone surrogate": (GOOD.replace(b"Hello", rb"\ud800"), 400, "invalid_json"),
    "NaN": (GOOD.replace(b'"Hello"', b"NaN"), 400, "invalid_json"),
    "nested 200 deep": (DEEP, 400, "too_deeply_nested"),
    "nested 100000 deep": (b"[" * 100_000 + b"]" * 100_000, 400, "invalid_json"),
    "a list": (b"[]", 400, "invalid_json"),
    "a string": (b'"x"', 400, "invalid_json"),
    "null": (b"null", 400, "invalid_json"),
    "no model": (b'{"messages":[]}', 400, "missing_model"),
    "model null": (b'{"model":null,"messages":[]}', 400, "missing_model"),
    "model a number": (b'{"model":7,"messages":[]}', 400, "invalid_request_error"),
    "model empty": (b'{"model":"","messages":[]}', 400, "invalid_request_error"),
    "no messages": (b'{"model":"openai/gpt-4o"}', 400, "invalid_request_error"),
    "messages a string": (
        b'{"model":"openai/gpt-4o","messages":"hi"}',
        400,
        "invalid_request_error",
    ),
    "stream a string": (orjson.dumps(chat(stream="yes")), 400, "invalid_request_error"),
    "stream_options a list": (
        orjson.dumps(chat(stream=True, stream_options=[])),
        400,
        "invalid_request_error",
    ),
    "six fallbacks": (orjson.dumps(chat(fallbacks=["a"] * 6)), 400, "invalid_request_error"),
    "unknown provider": (
        orjson.dumps(chat("gpt-4o", provider="nobody")),
        400,
        "unknown_provider",
    ),
    "unknown model": (orjson.dumps(chat("no-such-model-7b")), 404, "model_not_found"),
    "a path for a model": (orjson.dumps(chat("azure/..")), 400, "invalid_request_error"),
    "unknown deployment": (orjson.dumps(chat("lunar/nobody")), 404, "model_not_found"),
    "a provider that is off": (orjson.dumps(chat("xai/grok-4")), 404, "model_not_found"),
    "too large": (TOO_LARGE, 413, "body_too_large"),
}


def head(*fields: str, line: str = f"POST {CHAT} HTTP/1.1") -> bytes:
    return "\r\n".join([line, "Host: x", "Content-Type: application/json", *fields, "", ""]).encode(
        "latin-1"
    )


CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD)
LENGTH = f"Content-Length: {len(GOOD)}"

# name -> bytes on the wire, the statuses that may answer them
WIRE = {
    "both CL and TE": (head(LENGTH, "Transfer-Encoding: chunked") + GOOD, {400}),
    "TE and CL": (head("Transfer-Encoding: chunked", LENGTH) + b"0\r\n\r\n", {400}),
    "TE hidden by a space": (head(LENGTH, "Transfer-Encoding : chunked") + GOOD, {400}),
    "TE of another kind": (head("Transfer-Encoding: xchunked") + GOOD, {400, 501}),
    "TE twice": (
        head("Transfer-Encoding: chunked", "Transfer-Encoding: identity") + b"0\r\n\r\n",
        {400, 501},
    ),
    "TE of two kinds": (head("Transfer-Encoding: gzip, chunked") + CHUNKED, {400, 501}),
    "TE in HTTP/1.0": (
        head("Transfer-Encoding: chunked", line=f"POST {CHAT} HTTP/1.0") + CHUNKED,
        {400},
    ),
    "two equal CLs": (head(LENGTH, LENGTH) + GOOD, {400}),
    "two CLs": (head(LENGTH, "Content-Length: 5") + GOOD, {400}),
    "a list of CLs": (head("Content-Length: 5, 5") + GOOD, {400}),
    "a negative CL": (head("Content-Length: -1") + GOOD, {400}),
    "a signed CL": (head(f"Content-Length: +{len(GOOD)}") + GOOD, {400}),
    "a hex CL": (head("Content-Length: 0x10") + GOOD, {400}),
    "a CL of words": (head("Content-Length: many") + GOOD, {400}),
    "an empty CL": (head("Content-Length:") + GOOD, {400}),
    "a CL with an underscore": (head("Content-Length: 1_0") + GOOD, {400}),
    "a huge CL": (head("Content-Length: 999999999999999999999999") + GOOD, {400, 413}),
    "a CL over the limit": (head("Content-Length: 99999999") + GOOD, {413}),
    "a chunk size that is none": (head("Transfer-Encoding: chunked") + b"zz\r\n\r\n", {400}),
    "a chunk size too large": (
        head("Transfer-Encoding: chunked") + b"fffffffffffffffffff\r\n",
        {400, 413},
    ),
    "chunks beyond the limit": (
        head("Transfer-Encoding: chunked") + b"200000\r\n" + b" " * 0x200000 + b"\r\n0\r\n\r\n",
        {413},
    ),
    "a folded header": (head(LENGTH, "X-A: 1", " folded") + GOOD, {400}),
    "a header without a colon": (head(LENGTH, "nonsense") + GOOD, {400}),
    "a NUL in a header": (head(LENGTH, "X-A: a\0b") + GOOD, {400}),
    "a bare CR in a header": (head(LENGTH, "X-A: a\rb") + GOOD, {400}),
    "lines that end in LF alone": ((head(LENGTH).replace(b"\r", b"") + GOOD), {400}),
    "a NUL in the path": (head(line="GET /v1/fi\0les HTTP/1.1"), {400}),
    "a space in the path": (head(line="GET /v1/fi les HTTP/1.1"), {400}),
    "an unknown version": (head(LENGTH, line=f"POST {CHAT} HTTP/9.9") + GOOD, {400, 505}),
    "HTTP/0.9": (b"GET /v1/models\r\n\r\n", {400}),
    "an HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(64), {400, 505}),
    "garbage": (bytes(range(256)) * 16 + b"\r\n\r\n", {400}),
    "a head of 100 KB": (head(LENGTH, "X-Big: " + "a" * 100_000) + GOOD, {400, 431}),
    "a head of many fields": (head(LENGTH, *["X-A: 1"] * 20_000) + GOOD, {400, 431}),
    "a head without an end": (b"POST " + b"a" * 200_000, {400, 431}),
    "a path with ..": (head(line="GET /v1/../admin HTTP/1.1"), {400}),
    "a path with %2e%2e": (head(line="GET /v1/%2e%2E/admin HTTP/1.1"), {400}),
    "a path with %2f": (head(line="GET /v1/..%2fadmin HTTP/1.1"), {400}),
    "a path with a backslash": (head(line="GET /v1/..\\admin HTTP/1.1"), {400}),
    "a dotted chat path": (head(LENGTH, line="POST /v1/./chat/completions HTTP/1.1") + GOOD, {400}),
}

ELSEWHERE = {
    "an echo of our key": ("TRACE", "/v1/files", 405, "method_not_allowed"),
    "outside of /v1": ("GET", "/v2/chat", 404, "not_found"),
    "the root": ("GET", "/", 404, "not_found"),
    "admin paths": ("GET", "/metrics", 404, "not_found"),
    "a local endpoint's other method": ("DELETE", "/v1/pricing/models", 405, "method_not_allowed"),
    "an unknown model's card": ("GET", "/v1/models/nobody", 404, "model_not_found"),
    "providers of an unknown model": (
        "GET",
        "/v1/providers?model=nobody-7b",
        404,
        "model_not_found",
    ),
}

HEADERS = {
    "x-lunar-annotate": "loudly",
    "x-lunar-timeout-s": "soon",
    "x-lunar-fallbacks": "a,b,c,d,e,f",
    "content-encoding": "gzip",
}


@pytest.fixture(autouse=True)
def _nothing_is_forwarded_and_the_proxy_lives(proxy: Proxy, stage: Stage) -> object:
    yield
    assert stage.requests == []
    assert ask(proxy.url, chat("demo/echo")).status == 200


@pytest.mark.parametrize(("body", "status", "code"), BODIES.values(), ids=BODIES)
def test_a_bad_body_is_refused(
    proxy: Proxy, door: str, body: bytes, status: int, code: str
) -> None:
    with socket.create_connection(proxy.address, timeout=20) as sock:
        say(sock, request_bytes(body, door=door))
        answer = answer_on(sock)
    assert answer.status == status
    assert answer.error["code"] == code
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(("wire", "statuses"), WIRE.values(), ids=WIRE)
def test_bad_http_is_refused(proxy: Proxy, wire: bytes, statuses: set[int]) -> None:
    with socket.create_connection(proxy.address, timeout=20) as sock:
        say(sock, wire)
        answer = answer_on(sock)
    assert answer.status in statuses
    assert answer.error["type"] == "invalid_request_error"
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(("method", "path", "status", "code"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_what_is_not_there_is_said(
    proxy: Proxy, method: str, path: str, status: int, code: str
) -> None:
    answer = ask(proxy.url, path=path, method=method, headers={"x-request-id": "mine"})
    assert answer.status == status
    assert answer.error["code"] == code
    assert answer.headers["x-request-id"] == "mine"


@pytest.mark.parametrize(("name", "value"), HEADERS.items(), ids=HEADERS)
def test_a_bad_header_is_refused(proxy: Proxy, door: str, name: str, value: str) -> None:
    answer = ask(proxy.url, chat(), door=door, headers={name: value})
    assert answer.status == 400
    assert answer.error["message"]


def test_a_misspelt_provider_gets_a_hint(proxy: Proxy) -> None:
    answer = ask(proxy.url, chat("gpt-4o", provider="opnai"))
    assert "openai" in answer.error["message"]


@pytest.mark.parametrize("wire", ["both CL and TE", "TE in HTTP/1.0"])
def test_a_request_behind_a_refused_one_is_not_read(proxy: Proxy, wire: str) -> None:
    raw = talk(proxy.address, WIRE[wire][0] + request_bytes(chat()))
    assert raw.count(b"HTTP/1.") == 1


def test_tls_on_the_plain_port_does_no_harm(proxy: Proxy) -> None:
    context = ssl.create_default_context()
    with (
        socket.create_connection(proxy.address, timeout=20) as sock,
        pytest.raises(OSError, match=r"(?i)ssl|reset|wrong version|eof"),
    ):
        context.wrap_socket(sock, server_hostname="localhost")


def test_a_head_that_dawdles_is_timed_out(proxy: Proxy) -> None:
    """The one test that waits: the limit is for the whole head, however its bytes trickle."""
    began = time.monotonic()
    with socket.create_connection(proxy.address, timeout=20) as sock:
        sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\n")
        while not select.select([sock], [], [], 3)[0]:
            sock.sendall(b"X-Slow: 1\r\n")
        answer = answer_on(sock)
    assert time.monotonic() - began < 15
    assert answer.status == 408
    assert answer.error["code"] == "request_timeout"

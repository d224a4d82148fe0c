"""The client goes: the provider's connection is closed within a second, wherever the call was.

And the client dawdles: the provider is made to wait, and nothing piles up in between.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson
import pytest

from lunar_proxy.testing import Chunk, End, Head, Request, Script, Stall, Step, Until

from .harness import CHAT, Proxy, Stage, answer_on, ask, chat, eventually, request_bytes, say

EVENT = (
    b'data: {"id":"c1","choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}\n\n'
)
SSE = Head(200, {"content-type": "text/event-stream"})
JSON = Head(200, {"content-type": "application/json"})

# name -> what the provider has said so far, whether a stream was asked for, what the client saw
PHASES: dict[str, tuple[Sequence[Step], bool, bytes]] = {
    "before the head of a document": ([], False, b""),
    "within a document": ([JSON, Chunk(b'{"choices":')], False, b""),
    "before the head of a stream": ([], True, b""),
    "before the first content": ([SSE, Chunk(b": keep-alive\n\n")], True, b""),
    "within a stream": ([SSE, Chunk(EVENT)], True, b'"content":"Hi"'),
}


@pytest.mark.parametrize("reset", [False, True], ids=["closes", "resets"])
@pytest.mark.parametrize(("said", "stream", "seen"), PHASES.values(), ids=PHASES)
def test_the_provider_is_let_go_within_a_second(
    proxy: Proxy,
    stage: Stage,
    door: str,
    said: Sequence[Step],
    stream: bool,
    seen: bytes,
    reset: bool,
) -> None:
    stage.play(said)  # and then silence
    id = f"hang-up-{os.urandom(4).hex()}"
    with socket.create_connection(proxy.address, timeout=20) as sock:
        say(sock, request_bytes(chat(stream=stream), door=door, headers=f"X-Request-Id: {id}\r\n"))
        request = stage.arrived()
        received = b""
        while seen not in received:
            received += sock.recv(65536)
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
    stage.closed_by_proxy(request)
    record = eventually(lambda: [call for call in proxy.calls() if call["request_id"] == id])[0]
    assert record["status"] == 499 or (seen and record["status"] == 200)
    assert record["disconnected"] is not None


def test_a_target_is_not_blamed_for_it(proxy: Proxy, stage: Stage) -> None:
    stage.play([SSE, Chunk(EVENT)])
    with socket.create_connection(proxy.address, timeout=20) as sock:
        say(sock, request_bytes(chat("my-vllm/left-alone", stream=True)))
        request = stage.arrived()
        sock.recv(65536)
    stage.closed_by_proxy(request)
    (row,) = ask(proxy.url, path="/v1/providers?model=my-vllm/left-alone", method="GET").doc
    assert row["params"]["error_rate"] in (None, 0.0)


def test_an_upload_that_stops_lets_go(proxy: Proxy, stage: Stage) -> None:
    stage.play([Head(200, {"content-type": "application/json"}), Chunk(b"{}"), End()])
    with socket.create_connection(proxy.address, timeout=20) as sock:
        say(
            sock,
            b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
            b"Content-Length: 900000\r\n\r\n" + bytes(400_000),
        )
        eventually(lambda: stage.upstream.connections and _unfinished(stage))
        number = len(stage.upstream.connections) - 1
    stage.run(stage.upstream.closed_by_peer(number, within_s=1.0))
    assert stage.requests == []


def _unfinished(stage: Stage) -> bool:
    last = stage.upstream.connections[-1]
    return bool(last._incoming.body) and not last.left_by_peer


@pytest.mark.parametrize("stream", [True, False], ids=["events", "a file"])
def test_a_slow_reader_makes_the_provider_wait(
    proxy: Proxy, stage: Stage, door: str, stream: bool
) -> None:
    """64 MB are on offer and nobody reads: what left the provider is what the sockets hold."""
    piece = EVENT * 700  # some 64 KB, dear to parse: reading it must not keep the loop from writing
    kind = "text/event-stream" if stream else "application/octet-stream"
    stage.play([Head(200, {"content-type": kind}), *[Chunk(piece)] * 1000, End()])
    path = CHAT if stream else "/v1/audio/speech"
    doc = chat(stream=True) if stream else {"model": "openai/tts-1", "input": "x"}
    before = resident_kb(proxy)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(proxy.address)
        say(sock, request_bytes(doc, path=path, door=door))
        request = stage.arrived()
        connection = stage.upstream.connections[request.connection]
        settled(lambda: connection.bytes_sent)
        assert connection.bytes_sent < 16 * 1024 * 1024  # mostly the kernel's socket buffers
        assert resident_kb(proxy) - before < 4 * 1024
    stage.closed_by_proxy(request, within_s=5)


def settled(read: Callable[[], int]) -> None:
    """Return once a number has stopped growing."""
    seen = [read()]

    def still() -> bool:
        seen.append(read())
        return len(seen) > 20 and seen[-1] == seen[-20]

    eventually(still, within_s=15)


def resident_kb(proxy: Proxy) -> int:
    status = Path(f"/proc/{proxy.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def test_a_whole_answer_is_not_lost_to_a_slow_reader(proxy: Proxy, stage: Stage, door: str) -> None:
    stage.play([SSE, *[Chunk(EVENT * 700)] * 40, Chunk(b"data: [DONE]\n\n"), End()])
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(20)
        sock.connect(proxy.address)
        say(sock, request_bytes(chat(stream=True), door=door, headers="X-Lunar-Annotate: off\r\n"))
        answer = answer_on(sock)
    assert answer.body == EVENT * 700 * 40 + b"data: [DONE]\n\n"


def test_the_connection_of_a_slow_reader_can_be_used_again(
    proxy: Proxy, stage: Stage, door: str
) -> None:
    for size in (1, 700 * 40, 1):
        stage.play([SSE, Chunk(EVENT * size), Chunk(b"data: [DONE]\n\n"), End()])
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.settimeout(5)
            sock.connect(proxy.address)
            say(sock, request_bytes(chat(stream=True), door=door))
            assert answer_on(sock).status == 200
    assert len({request.connection for request in stage.requests}) == 1


def test_silence_is_ended_by_the_timeout(proxy: Proxy, stage: Stage, door: str) -> None:
    def play(request: Request) -> Script:
        return [SSE, Chunk(EVENT), Stall(60)]

    stage.play(play)
    quick = "X-Lunar-Timeout-S: 0.5\r\n"
    with socket.create_connection(proxy.address, timeout=20) as sock:
        say(sock, request_bytes(chat(stream=True), door=door, headers=quick))
        received = b""
        while b"[DONE]" not in received:
            received += sock.recv(65536)
    event = next(line for line in received.split(b"\n") if b'"error"' in line)
    last = orjson.loads(event.removeprefix(b"data: "))
    assert last["id"] == "c1"
    assert last["choices"][0]["finish_reason"] == "error"
    assert last["error"]["code"] == "total_timeout"
    stage.closed_by_proxy(stage.requests[0])


def test_held_streams_are_all_let_go(proxy: Proxy, stage: Stage) -> None:
    gate = asyncio.Event()
    stage.play([SSE, Chunk(EVENT), Until(gate), End()])
    first = len(stage.upstream.connections)
    socks = [socket.create_connection(proxy.address, timeout=20) for _ in range(50)]
    for sock in socks:
        say(sock, request_bytes(chat(stream=True)))
    for sock in socks:
        assert b"200 OK" in sock.recv(65536)
        sock.close()
    held = {request.connection for request in stage.requests}
    assert len(held) == 50
    for number in held:
        stage.run(stage.upstream.closed_by_peer(number, within_s=1.0))
    assert len(stage.upstream.connections) - first <= 50

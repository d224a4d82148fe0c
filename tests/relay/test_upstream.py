"""Connections that end between two steps of ours, and answers that came whole."""

from __future__ import annotations

import asyncio
import time

import pytest

from lunar_proxy.core.errors import NoAnswer, ProxyError
from lunar_proxy.core.model import Headers
from lunar_proxy.providers.base import Origin, UpstreamRequest
from lunar_proxy.relay.upstream import Pool, read_whole
from lunar_proxy.testing import Break, ScriptedUpstream


class Ear:
    """A receiver that hears how it ended."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[ProxyError | None] = asyncio.get_running_loop().create_future()

    def at_once(self, status: int, headers: Headers, body: bytes) -> None:
        self.end()

    def head(self, status: int, headers: Headers) -> None: ...

    def body(self, data: bytes) -> None: ...

    def end(self) -> None:
        self.ended.set_result(None)

    def broken(self, error: ProxyError) -> None:
        self.ended.set_result(error)


async def test_asking_a_connection_that_was_just_lost_fails_at_once() -> None:
    pool = Pool(time.monotonic)
    async with ScriptedUpstream(on_connect=[Break()]) as upstream:
        origin = Origin("http", "127.0.0.1", upstream.port)
        connection = await pool.connect(origin, timeout_s=5)
        for _ in range(10_000):
            if pool.statistics()["open"] == 0:
                break
            await asyncio.sleep(0)
        assert not connection.usable
        ear = Ear()
        connection.ask(UpstreamRequest(origin, b"POST / HTTP/1.1\r\n", b"{}"), ear)
        async with asyncio.timeout(1):
            assert isinstance(await ear.ended, NoAnswer)
    pool.close()


OK = b"HTTP/1.1 200 OK\r\n"
PLAIN = OK + b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"

WHOLE = {
    "plain": PLAIN,
    "an error": PLAIN.replace(b"200 OK", b"503 Busy"),
    "no reason": PLAIN.replace(b"200 OK", b"200 "),
    "says keep-alive": PLAIN.replace(b"\r\n\r\n", b"\r\nConnection: Keep-Alive\r\n\r\n"),
    "a field twice": PLAIN.replace(b"\r\n\r\n", b"\r\nset-cookie: a\r\nset-cookie: b\r\n\r\n"),
    "no body": OK + b"content-length: 0\r\n\r\n",
}


@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE.keys())
def test_reads_a_plain_answer_at_once(data: bytes) -> None:
    whole = read_whole(data)
    assert whole is not None
    head, _, body = data.partition(b"\r\n\r\n")
    status, headers, read = whole
    assert (status, read) == (int(head.split(b" ")[1]), body)
    assert len(headers) == head.count(b"\r\n")


UNSURE = {
    "half a body": PLAIN[:-1],
    "more than the body": PLAIN + b" ",
    "a second answer behind it": PLAIN + PLAIN,
    "half a head": PLAIN[:40],
    "no length": OK + b"a: b\r\n\r\n{}",
    "two lengths": PLAIN.replace(b"\r\n\r\n", b"\r\ncontent-length: 2\r\n\r\n"),
    "a signed length": PLAIN.replace(b": 2", b": +2"),
    "chunked": PLAIN.replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\n\r\n"),
    "closes": PLAIN.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"),
    "an upgrade": PLAIN.replace(b"\r\n\r\n", b"\r\nupgrade: h2c\r\n\r\n"),
    "HTTP/1.0": PLAIN.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "informational": PLAIN.replace(b"200 OK", b"103 Early"),
    "no content": PLAIN.replace(b"200 OK", b"204 No"),
    "not modified": PLAIN.replace(b"200 OK", b"304 Not"),
    "a folded line": PLAIN.replace(b"\r\n\r\n", b"\r\n folded\r\n\r\n"),
    "a bare LF": PLAIN.replace(b"\r\nContent-Length", b"\nContent-Length"),
    "a space before the colon": PLAIN.replace(b"Length:", b"Length :"),
    "not HTTP": b"SSH-2.0-x\r\n\r\n",
}


@pytest.mark.parametrize("data", UNSURE.values(), ids=UNSURE.keys())
def test_leaves_to_llhttp_what_is_not_plain(data: bytes) -> None:
    assert read_whole(data) is None

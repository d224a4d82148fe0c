"""What the fast door takes, and what it leaves to the other one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from lunar_proxy.core.intake import Incoming
from lunar_proxy.relay.client import Client
from lunar_proxy.servers.bounds import MAX_HEAD
from lunar_proxy.servers.door import Door, Doorway, Head, known, read_head
from lunar_proxy.tasks import Drive

LINE = b"POST /v1/chat/completions HTTP/1.1\r\n"
USUAL = LINE + b"Host: a\r\nContent-Length: 12\r\nX-Thing:  b c \r\n"

TAKEN = {
    "usual": USUAL,
    "no space behind a colon": LINE + b"content-length:12\r\n",
    "an empty value": LINE + b"content-length: 12\r\nx-empty:\r\n",
    "keep-alive": LINE + b"connection: Keep-Alive\r\ncontent-length: 12\r\n",
    "a field twice": LINE + b"x-a: 1\r\ncontent-length: 12\r\nX-A: 2\r\n",
    "bytes beyond ASCII": LINE + b"x-a: \xff\xc3\xa9\r\ncontent-length: 12\r\n",
}


@pytest.mark.parametrize("head", TAKEN.values(), ids=TAKEN.keys())
def test_takes(head: bytes) -> None:
    read = read_head(head)
    assert read is not None
    assert (read.path, read.length) == (b"/v1/chat/completions", 12)


LEFT = {
    "another method": b"GET /v1/chat/completions HTTP/1.1\r\ncontent-length: 1\r\n",
    "another path": b"POST /v1/files HTTP/1.1\r\ncontent-length: 1\r\n",
    "a query": b"POST /v1/chat/completions?a HTTP/1.1\r\ncontent-length: 1\r\n",
    "HTTP/1.0": b"POST /v1/chat/completions HTTP/1.0\r\ncontent-length: 1\r\n",
    "no length": LINE + b"host: a\r\n",
    "two lengths": LINE + b"content-length: 1\r\ncontent-length: 2\r\n",
    "the same length twice": LINE + b"content-length: 1\r\nContent-Length: 1\r\n",
    "a list of lengths": LINE + b"content-length: 1, 1\r\n",
    "a signed length": LINE + b"content-length: +1\r\n",
    "a length in other digits": LINE + "content-length: ٣\r\n".encode(),
    "a huge length": LINE + b"content-length: 1234567890123\r\n",
    "chunked": LINE + b"content-length: 1\r\ntransfer-encoding: chunked\r\n",
    "expect": LINE + b"content-length: 1\r\nexpect: 100-continue\r\n",
    "upgrade": LINE + b"content-length: 1\r\nupgrade: websocket\r\n",
    "close": LINE + b"content-length: 1\r\nconnection: close\r\n",
    "two connections": LINE + b"connection: keep-alive\r\nconnection: x\r\ncontent-length: 1\r\n",
    "a space before the colon": LINE + b"content-length : 1\r\n",
    "a folded line": LINE + b"x-a: 1\r\n b\r\ncontent-length: 1\r\n",
    "a bare LF": LINE + b"x-a: 1\nx-b: 2\r\ncontent-length: 1\r\n",
    "a bare CR": LINE + b"x-a: 1\rx-b: 2\r\ncontent-length: 1\r\n",
    "a NUL": LINE + b"x-a: \x00\r\ncontent-length: 1\r\n",
    "no name": LINE + b": 1\r\ncontent-length: 1\r\n",
}


@pytest.mark.parametrize("head", LEFT.values(), ids=LEFT.keys())
def test_leaves(head: bytes) -> None:
    assert read_head(head) is None


def test_reads_names_in_lower_case_and_values_without_the_space_around() -> None:
    read = read_head(USUAL)
    assert read is not None
    assert read.fields.pairs == ((b"host", b"a"), (b"content-length", b"12"), (b"x-thing", b"b c"))


def seen(head: bytes) -> Head:
    read = read_head(head)
    assert read is not None
    return read


AGAIN = {
    "the same": (USUAL, 12),
    "another length": (USUAL.replace(b"12", b"4096"), 4096),
    "a length that is none": (USUAL.replace(b"12", b"1 2"), None),
    "no length at all": (USUAL.replace(b"12", b""), None),
    "more than any length": (USUAL.replace(b"12", b"1" * 13), None),
    "more behind the length": (USUAL.replace(b"12\r\n", b"12\r\nexpect: 100-continue\r\n"), None),
    "another header": (USUAL.replace(b"b c", b"b d"), None),
    "one header more": (USUAL + b"X-More: 1\r\n", None),
    "one header fewer": (LINE + b"Host: a\r\nContent-Length: 12\r\n", None),
    "half of it": (USUAL[:60], None),
    "up to the length": (USUAL[: USUAL.index(b"12")], None),
    "half of the length": (USUAL[: USUAL.index(b"2\r")], None),
}


@pytest.mark.parametrize(("head", "length"), AGAIN.values(), ids=AGAIN.keys())
def test_knows_a_head_again_but_for_its_length(head: bytes, length: int | None) -> None:
    memory = known(USUAL, seen(USUAL))
    assert memory is not None
    assert memory.head.path == b"/v1/chat/completions"
    body = b"\r\n\r\n{}"
    expected = None if length is None else (length, len(head) + 2)
    assert memory.again(head + b"\r\n" + body) == expected
    assert memory.again(head) is None, "the empty line may still have to come"


def test_does_not_keep_a_head_that_could_grow_beyond_what_is_allowed() -> None:
    padding = b"X-Padding: " + b"x" * (MAX_HEAD - len(USUAL) - 20) + b"\r\n"
    assert known(USUAL + padding, seen(USUAL + padding)) is None


def half(client: Client) -> None:
    client.head(200, [], 5)
    client.write(b"half")


def wrong(client: Client) -> None:
    nothing: Any = None
    with pytest.raises(TypeError):
        client.answer(200, [(b"x-a", nothing)], b"{}")


@pytest.mark.parametrize(
    "answer", [lambda client: None, half, wrong], ids=["none", "half", "wrong"]
)
async def test_a_call_that_ends_without_an_answer_leaves_nobody_waiting(
    answer: Callable[[Client], None],
) -> None:
    async def call(client: Client, over: Callable[[], None]) -> None:
        answer(client)
        over()

    def begin(_incoming: Incoming, client: Client, over: Callable[[], None]) -> Drive:
        return Drive(call(client, over), name="call")

    loop = asyncio.get_running_loop()
    doorway = Doorway(begin, lambda *_: None, loop.time, 1024, set(), lambda: "r-1")
    server = await loop.create_server(lambda: Door(doorway), "127.0.0.1", 0)
    async with server, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(USUAL + b"\r\n" + bytes(12))
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await reader.readexactly(1024)
        writer.close()

"""What the CONNECT tests share: a stand-in for the door, and peers on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import cast

import orjson

from lunar_proxy.core.connect import Authority
from lunar_proxy.core.errors import ProxyError
from lunar_proxy.servers.forward import ConnectRequest, Forward

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class DoorStandIn(asyncio.Protocol):
    """Reads a CONNECT head as the door does and hands the connection over."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._head += data
        head, end, early = self._head.partition(b"\r\n\r\n")
        if end:
            request, *lines = head.split(b"\r\n")
            pairs = (line.partition(b":") for line in lines)
            headers = tuple((name.lower(), value.strip()) for name, _, value in pairs)
            connect = ConnectRequest(request.split(b" ")[1], headers)
            self._forward.handle(self._transport, connect, early)


def render(error: ProxyError) -> bytes:
    body = orjson.dumps({"error": {"message": error.message, "code": error.code}})
    extra = "".join(f"{name}: {value}\r\n" for name, value in error.headers)
    return (
        f"HTTP/1.1 {error.status} Error\r\n{extra}connection: close\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode() + body


@contextlib.asynccontextmanager
async def proxy(forward: Forward, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """The port of a listener that serves CONNECT with `forward`."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: DoorStandIn(forward), host, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        forward.close()
        await eventually(lambda: not forward.open_tunnels)


@contextlib.asynccontextmanager
async def peer(
    serve: Serve, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Authority]:
    """A server on a real socket; `serve` gets each of its connections."""
    writers: list[asyncio.StreamWriter] = []

    async def kept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await serve(reader, writer)

    server = await asyncio.start_server(kept, host, 0, ssl=tls)
    address = server.sockets[0].getsockname()
    try:
        yield Authority(address[0], address[1])
    finally:
        server.close()
        for writer in writers:
            if not writer.is_closing():  # Python 3.11 cannot abort one that has closed by itself
                writer.transport.abort()
        await asyncio.sleep(0.01)  # so that nothing is lost only after the loop has ended


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Gives back what it gets, and ends when its client has."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def connect(
    port: int, target: Authority | str, headers: str = "", early: bytes = b""
) -> tuple[bytes, Streams]:
    """Send a CONNECT; the head of the answer, and the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{headers}\r\n".encode() + early)
    head = await reader.readuntil(b"\r\n\r\n")
    return head, (reader, writer)


async def established(port: int, target: Authority | str, early: bytes = b"") -> Streams:
    head, streams = await connect(port, target, early=early)
    assert head == b"HTTP/1.1 200 Connection established\r\n\r\n", head
    return streams


async def eventually(holds: Callable[[], bool], within_s: float = 5.0) -> None:
    """Wait for what another connection brings about."""
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.005)

"""HTTP/1.1 towards the providers: connections, their pool, and TLS.

Rules:
1. A connection carries one request at a time; nothing is pipelined. Bytes nobody asked for end it.
2. Parsing is llhttp's (httptools); framing rules of RFC 9112 6 are therefore not ours to get wrong.
   What llhttp cannot know (an answer that ends with the connection, HEAD) is handled here. Spared
   it is an answer that came whole in one read and has nothing unusual about it (`read_whole`).
3. A pooled connection may have been closed by the provider at the very moment it is used. If not
   one byte came back, `Stale` says so, and the caller asks once more on a fresh connection: this is
   no failed attempt, since the provider cannot have answered (RFC 9112 9.3.1).
4. Errors of sockets and TLS become ours here and nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from abc import abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from functools import lru_cache
from typing import Protocol, cast

import httptools

from lunar_proxy.core.connect import Authority, Listener, Parent, is_self, through_parent
from lunar_proxy.core.errors import (
    BadAnswer,
    ConnectFailed,
    ConnectTimeout,
    NoAnswer,
    ProxyError,
    StreamBroken,
    TlsFailed,
)
from lunar_proxy.core.headers import parse_answer
from lunar_proxy.core.model import Headers
from lunar_proxy.providers.base import Origin, UpstreamRequest
from lunar_proxy.tasks import in_task

from .landing import open_through

logger = logging.getLogger(__name__)

# No provider sends heads of this size; nginx allows 8 KiB a line, Node 16 KiB in all.
MAX_HEAD = 64 * 1024
# Under the idle limit of the front ends seen (AWS ALB 60 s, nginx 75 s), so that we close first.
IDLE_S = 50.0
# Connections kept for a rush to come; more than this are closed when they fall idle.
MAX_IDLE = 512


# libuv reads up to 32 times from one socket before anyone else gets a turn, and what we write goes
# out, or tells us to wait, only then. After this much from one provider the loop turns once.
BURST = 256 * 1024
# Up to here it takes less to copy a body behind its head than to write two pieces.
COPIED = 8 * 1024


_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([2-5][0-9]{2}) .*")


@lru_cache(maxsize=256)
def _status(line: bytes) -> int:
    """0: no status line of a final answer in HTTP/1.1."""
    match = _STATUS_LINE.fullmatch(line)
    return int(match[1]) if match is not None else 0


def read_whole(data: bytes) -> tuple[int, Headers, bytes] | None:
    """A keep-alive answer that is all there, with one Content-Length: its status, fields and body.
    None: not so, or not sure.

    Most answers that are no streams are that, and so are read in a few steps.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0 or (head := parse_answer(data[:end])) is None:
        return None
    line, headers = head
    status, framing = _status(line), dict(headers)
    length = framing.get(b"content-length", b"")
    if not status or not length.isdigit() or len(data) - end - 4 != int(length):
        return None
    if status == 204 or status == 304 or not _UNUSUAL.isdisjoint(framing):
        return None
    if framing.get(b"connection", b"keep-alive").lower() != b"keep-alive":
        return None
    if len(framing) != len(headers) and [name for name, _ in headers].count(b"content-length") > 1:
        return None
    return status, headers, data[end + 4 :]


_UNUSUAL = frozenset({b"transfer-encoding", b"upgrade"})


class Stale(NoAnswer):
    """A reused connection was already closed at the other end; see rule 3."""


class Receiver(Protocol):
    """Who an answer is for. Called on the event loop, in this order, and never after `close`:
    `head` once, `body` any number of times, then `end` or `broken` exactly once; or `at_once`, for
    an answer that came in one piece. By then its connection is free again.
    """

    def at_once(self, status: int, headers: Headers, body: bytes) -> None:
        self.head(status, headers)
        self.body(body)
        self.end()

    @abstractmethod
    def head(self, status: int, headers: Headers) -> None: ...

    @abstractmethod
    def body(self, data: bytes) -> None: ...

    @abstractmethod
    def end(self) -> None: ...

    @abstractmethod
    def broken(self, error: ProxyError) -> None: ...


class Connection(asyncio.Protocol):
    """One connection to a provider, idle in the pool or busy with one receiver."""

    __slots__ = (
        "_breathing",
        "_burst",
        "_complete",
        "_drained",
        "_ends",
        "_head",
        "_head_size",
        "_headers",
        "_held",
        "_informational",
        "_keep_alive",
        "_no_body",
        "_parser",
        "_parts",
        "_pool",
        "_receiver",
        "_sending",
        "_through",
        "_to_eof",
        "_transport",
        "_writable",
        "answered",
        "idle_since",
        "on_body",
        "origin",
        "reused",
    )

    def __init__(self, origin: Origin, pool: Pool, through: Parent | None = None) -> None:
        """`through`: a parent proxy at the other end, which is asked in absolute form."""
        self.origin = origin
        self._through = through
        self.reused = False
        self.answered = False  # a byte came back for the current request
        self.idle_since = 0.0
        self._pool = pool
        self._receiver: Receiver | None = None
        self._transport: asyncio.Transport | None = None
        self._parts: list[bytes] = []  # of the body, out of the read that is being parsed
        self._ends = 0  # how many of them belong to the answer, when it is complete
        self.on_body = self._parts.append  # httptools' callback; no frame for each chunk
        self._parser = httptools.HttpResponseParser(self)
        self._writable = True
        self._drained: asyncio.Future[None] | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._head = True
        self._head_size = 0
        self._informational = False
        self._complete = False
        self._keep_alive = False
        self._no_body = False
        self._to_eof = False
        self._sending = False
        self._held = False  # the client asked us to wait
        self._burst = 0
        self._breathing = False

    # --- for the caller -----------------------------------------------------------------------

    def ask(self, request: UpstreamRequest, receiver: Receiver) -> None:
        """Send a request whose body is at hand."""
        self._begin(receiver, request.head.startswith(b"HEAD "))
        transport = cast(asyncio.Transport, self._transport)
        body = request.body
        head = request.head if self._through is None else self._absolute(request.head)
        if 0 < len(body) < COPIED:
            transport.write(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body))
        elif body:
            transport.writelines([head, b"content-length: %d\r\n\r\n" % len(body), body])
        elif request.head.startswith((b"GET ", b"HEAD ", b"DELETE ", b"OPTIONS ")):
            transport.write(head + b"\r\n")
        else:
            transport.write(head + b"content-length: 0\r\n\r\n")

    def tell(self, receiver: Receiver) -> None:
        self._receiver = receiver

    async def ask_streaming(
        self,
        request: UpstreamRequest,
        chunks: AsyncIterator[bytes],
        length: int | None,
        receiver: Receiver,
    ) -> None:
        """Send a request whose body is still arriving, at the pace at which it is taken.

        Returns early when the answer is there before the body is through, as a refusal may be.
        """
        self._begin(receiver, no_body=False)
        self._sending = True
        framing = (
            b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
        )
        head = request.head if self._through is None else self._absolute(request.head)
        self._write(head + framing + b"\r\n\r\n")
        async for chunk in chunks:
            if self._receiver is not receiver or self._closing:
                return
            if chunk:
                self._write(chunk if length is not None else b"%x\r\n%b\r\n" % (len(chunk), chunk))
            await self._drain()
        if length is None:
            self._write(b"0\r\n\r\n")
        self._sending = False

    def close(self) -> None:
        """Forget the receiver and drop the connection, whatever it is doing."""
        self._receiver = None
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        self._held = True
        if self.usable:
            cast(asyncio.Transport, self._transport).pause_reading()

    def resume(self) -> None:
        self._held = False
        if self.usable and not self._breathing:
            cast(asyncio.Transport, self._transport).resume_reading()

    def _breathe(self) -> None:
        """Let the loop turn before more is read: see BURST."""
        if self.usable:
            self._breathing = True
            cast(asyncio.Transport, self._transport).pause_reading()
            asyncio.get_running_loop().call_soon(self._breathed)

    def _breathed(self) -> None:
        self._burst, self._breathing = 0, False
        if self.usable and not self._held:
            cast(asyncio.Transport, self._transport).resume_reading()

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    # --- asyncio.Protocol ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._receiver is None:
            self._pool.forget(self)
            self.close()
            return
        fresh, self.answered = not self.answered, True
        if fresh:
            if not self._no_body and (whole := read_whole(data)) is not None:
                receiver, self._receiver = self._receiver, None
                self._free(reusable=True)
                receiver.at_once(*whole)
                return
            self._expect_head()
        if self._head and not self._informational:
            self._head_size += len(data)
            if self._head_size > MAX_HEAD and b"\r\n\r\n" not in data:
                self._fail(BadAnswer("the provider's response head is too large"))
                return
        error = self._parse(data)
        if self._parts:
            self._deliver()
        if self._complete:  # whatever came behind it
            self._finish(reusable=self._keep_alive and error is None)
        elif error is not None:
            self._fail(error)
        self._burst += len(data)
        if self._burst > BURST:
            self._breathe()

    def _parse(self, data: bytes) -> ProxyError | None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return BadAnswer("the provider switched protocols unasked")
        except httptools.HttpParserCallbackError:
            logger.exception("reading a provider's answer failed inside the proxy")
            return ProxyError("internal error")
        except httptools.HttpParserError:
            return BadAnswer("the provider's answer is not valid HTTP")
        return None

    def _deliver(self) -> None:
        """What came of the body in this read, in one piece: providers send an event a chunk, and a
        read brings many when they are quicker than we."""
        parts = self._parts[: self._ends] if self._complete else self._parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self._parts.clear()
        if data and self._receiver is not None:
            self._receiver.body(data)

    def eof_received(self) -> bool:
        return False  # the transport closes itself; connection_lost tells the rest

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.forget(self)
        self._release_writers()
        receiver = self._receiver
        if receiver is None:
            return
        if self._to_eof and not self._head and exc is None:
            self._finish(reusable=False)
        elif not self.answered:
            cause = Stale if self.reused else NoAnswer
            self._fail(cause("the provider closed the connection without an answer"))
        elif self._head:
            self._fail(NoAnswer("the provider closed the connection in the middle of its answer"))
        else:
            self._fail(
                StreamBroken("the provider closed the connection before its answer was complete")
            )

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._release_writers()

    # --- httptools callbacks ------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._complete:  # behind a whole answer: it must not meet the next call
            self._keep_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        status = self._parser.get_status_code()
        self._informational = 100 <= status < 200
        if self._informational:
            self._headers = []
            return
        # After the message has ended httptools answers for the next one, so it is asked here.
        self._keep_alive = self._parser.should_keep_alive()
        self._to_eof = not self._no_body and self._ends_with_connection(status)
        self._head = False
        receiver = self._receiver
        if receiver is not None:
            receiver.head(status, tuple(self._headers))
        if self._no_body:
            self._finish(reusable=False)

    def on_message_complete(self) -> None:
        # What follows from it has to wait until all that was read is parsed: see rule 1.
        if not self._complete and not self._informational:
            self._complete, self._ends = True, len(self._parts)

    # --- inside -------------------------------------------------------------------------------

    @property
    def _closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def _expect_head(self) -> None:
        """What the answer before left here ends with the first byte of one that is to be parsed."""
        self._headers = []
        self._head = True
        self._head_size = 0
        self._informational = self._keep_alive = self._to_eof = self._complete = False

    def _begin(self, receiver: Receiver, no_body: bool) -> None:
        self._no_body = no_body
        self.answered = False
        self._receiver = receiver
        if self._closing:  # lost between connecting and asking: nothing else would tell
            asyncio.get_running_loop().call_soon(self.connection_lost, None)

    def _absolute(self, head: bytes) -> bytes:
        """The head as a proxy wants it for plain HTTP (RFC 9112 3.2.2)."""
        method, target, rest = head.split(b" ", 2)
        line, _, fields = rest.partition(b"\r\n")
        if self._through is not None and (authorization := self._through.authorization):
            fields = b"proxy-authorization: %b\r\n%b" % (authorization, fields)
        authority = self.origin.authority.encode()
        return b"%b http://%b%b %b\r\n%b" % (method, authority, target, line, fields)

    def _ends_with_connection(self, status: int) -> bool:
        """Neither length nor chunks: the body is all that comes (RFC 9112 6.3, item 8)."""
        if status in (204, 304):
            return False
        framed = dict(self._headers)
        return b"content-length" not in framed and b"transfer-encoding" not in framed

    def _finish(self, *, reusable: bool) -> None:
        receiver, self._receiver = self._receiver, None
        self._free(reusable=reusable)
        if receiver is not None:
            receiver.end()

    def _free(self, *, reusable: bool) -> None:
        # With half of a request on it, a connection would take the next one for the other half.
        if reusable and self.usable and not self._sending:
            if self._held:  # the end may have been read while a slow client had us paused
                self.resume()
            self._pool.put(self)
        elif self._transport is not None:
            self._transport.abort()

    def _fail(self, error: ProxyError) -> None:
        receiver, self._receiver = self._receiver, None
        self._pool.forget(self)
        if self._transport is not None:
            self._transport.abort()
        if receiver is not None:
            receiver.broken(error)

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    async def _drain(self) -> None:
        if not self._writable and not self._closing:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    def _release_writers(self) -> None:
        self._writable = True
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)


class Pool:
    """Idle connections by origin, newest first, so that a lull lets the others expire."""

    def __init__(
        self,
        now: Callable[[], float],
        tls: ssl.SSLContext | None = None,
        listeners: Callable[[], Sequence[Listener]] = lambda: (),
    ) -> None:
        """`listeners`: where the proxy itself listens, so that it never asks itself."""
        self._now = now
        self._tls = tls
        self._listeners = listeners
        self._parent: Parent | None = None
        self._idle: dict[Origin, deque[Connection]] = {}
        self._all: set[Connection] = set()

    def __repr__(self) -> str:
        idle = sum(len(connections) for connections in self._idle.values())
        return f"<Pool {len(self._all)} open, {idle} idle>"

    def statistics(self) -> dict[str, int]:
        idle = sum(len(connections) for connections in self._idle.values())
        return {"open": len(self._all), "idle": idle}

    def trust(self, tls: ssl.SSLContext) -> None:
        """Use this context from now on; connections made under the old one finish their work."""
        self._tls = tls
        self.close_idle()

    def go_through(self, parent: Parent | None) -> None:
        """Reach providers through this proxy from now on, but for those on this very machine."""
        if parent != self._parent:
            self._parent = parent
            self.close_idle()

    def idle(self, origin: Origin) -> Connection | None:
        """A connection that was used before and is free."""
        idle = self._idle.get(origin)
        expired = self._now() - IDLE_S
        while idle:
            connection = idle.pop()
            if connection.usable and connection.idle_since > expired:
                connection.reused = True
                return connection
            connection.close()
        return None

    async def connect(self, origin: Origin, *, timeout_s: float) -> Connection:
        """A new connection. Raises ConnectFailed, ConnectTimeout or TlsFailed."""
        await in_task()
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._open(origin)
        except TimeoutError:
            raise ConnectTimeout("the provider did not accept a connection in time") from None
        except ssl.SSLError as error:
            raise TlsFailed(f"TLS with the provider failed: {_tls_reason(error)}") from None
        except OSError:
            raise ConnectFailed("no connection to the provider could be made") from None
        self._all.add(connection)
        return connection

    def put(self, connection: Connection) -> None:
        connection.idle_since = self._now()
        idle = self._idle.setdefault(connection.origin, deque())
        idle.append(connection)
        if len(idle) > MAX_IDLE:
            idle.popleft().close()

    def forget(self, connection: Connection) -> None:
        self._all.discard(connection)
        idle = self._idle.get(connection.origin)
        if idle is not None:
            try:
                idle.remove(connection)
            except ValueError:
                return
            if not idle:
                del self._idle[connection.origin]

    def close_idle(self, older_than_s: float = 0.0) -> None:
        limit = self._now() - older_than_s
        for idle in list(self._idle.values()):
            for connection in [c for c in idle if c.idle_since <= limit]:
                self.forget(connection)
                connection.close()

    def close(self) -> None:
        for connection in list(self._all):
            connection.close()
        self._all.clear()
        self._idle.clear()

    async def _open(self, origin: Origin) -> Connection:
        loop = asyncio.get_running_loop()
        parent = self._parent if through_parent(origin.host) else None
        if parent is not None and origin.scheme == "https":
            return await self._tunnel(parent, origin)
        secure = origin.scheme == "https"
        at = parent or origin
        transport, connection = await loop.create_connection(
            lambda: Connection(origin, self, parent),
            at.host,
            at.port,
            ssl=self._context() if secure else None,
            server_hostname=origin.host if secure else None,
        )
        self._check_loop(transport)
        return connection

    async def _tunnel(self, parent: Parent, origin: Origin) -> Connection:
        transport, landing = await open_through(parent, Authority(origin.host, origin.port))
        connection = Connection(origin, self)
        try:
            if landing.data:
                raise ConnectFailed("the upstream proxy spoke out of turn", code="upstream_proxy")
            secure = await asyncio.get_running_loop().start_tls(
                transport, connection, self._context(), server_hostname=origin.host
            )
            if secure is None:  # what it gives where the connection broke in the last moment
                raise ConnectFailed("the upstream proxy hung up", code="upstream_proxy")
        except BaseException:
            transport.abort()
            raise
        connection.connection_made(secure)
        return connection

    def _check_loop(self, transport: asyncio.Transport) -> None:
        listeners = self._listeners()
        if not listeners:
            return
        peer, near = (transport.get_extra_info(end) for end in ("peername", "sockname"))
        if peer and near and is_self(peer[0], near[0], peer[1], listeners):
            transport.abort()
            raise ConnectFailed("the base URL leads back to this proxy itself", code="proxy_loop")

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls


def _tls_reason(error: ssl.SSLError) -> str:
    """What may be told to a client: the reason OpenSSL names, without addresses or files."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate does not verify ({error.verify_message})"
    return str(error.reason or "handshake failure").lower().replace("_", " ")

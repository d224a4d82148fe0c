"""The fast door: the strict common case of an LLM call, with as little between as can be.

It takes HTTP/1.1 POSTs to the JSON endpoints that have exactly one Content-Length and nothing
unusual about them. Whatever it does not fully understand is handed over, bytes and all, to the
aiohttp door on the same transport, before anything was answered. So request smuggling has no room:
nothing is guessed here, and a request is never read by two parsers.

Rules:
1. A head is handed on only when it is complete, so slow heads end here, for both doors.
2. One request at a time; what a client sends ahead waits in the buffer, which is bounded.
3. While an answer runs the client is still read, since that is how its leaving shows.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, cast

from lunar_proxy.core.attachment import Attachment
from lunar_proxy.core.errors import ProxyError, RequestTimeout
from lunar_proxy.core.headers import parse, render
from lunar_proxy.core.intake import JSON_ENDPOINTS, Incoming
from lunar_proxy.core.model import Fields, Headers, noun
from lunar_proxy.core.render import error_answer
from lunar_proxy.relay.client import Client, Source

from .bounds import (
    BODY_IDLE_S,
    HEAD_TIMEOUT_S,
    KEEP_ALIVE_S,
    MAX_AHEAD,
    MAX_HEAD,
    head_too_large,
    status_line,
    too_large,
)

FAST_PATHS = frozenset(f"/v1/{name}".encode() for name in JSON_ENDPOINTS)
REQUEST_LINE = re.compile(rb"POST (/[!-~]*+) HTTP/1\.1")
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)\r\n", re.IGNORECASE)
# More digits are no length of anything.
MAX_DIGITS = 12
# What ends a head, if the connection is kept alive or not.
HEAD_ENDS = {True: b"\r\n", False: b"connection: close\r\n\r\n"}
BODILESS = frozenset({204, 304})  # answers that end with their head (RFC 9112 6.3)
# Their presence makes the request something for the other door.
UNUSUAL = frozenset(
    {b"transfer-encoding", b"expect", b"upgrade", b"content-encoding", b"trailer", b"te"}
)


@noun
class Head:
    length: int
    path: bytes
    fields: Fields


def read_head(head: bytes) -> Head | None:
    """A head of the strict common case, up to and with its last CRLF; None: not for this door."""
    parsed = parse(head[:-2])
    if parsed is None:
        return None
    line, headers = parsed
    match = REQUEST_LINE.fullmatch(line)
    if match is None or match[1] not in FAST_PATHS:
        return None
    fields = Fields(headers)
    length = fields.get(b"content-length", b"")
    if not length.isdigit() or len(length) > MAX_DIGITS or not UNUSUAL.isdisjoint(fields.first):
        return None
    if fields.get(b"connection", b"keep-alive").lower() != b"keep-alive":
        return None
    if len(fields.first) != len(headers) and _repeats_framing(headers):
        return None
    return Head(int(length), match[1], fields)


@noun
class Known:
    """A head that was read, but for its Content-Length, so that the next like it need not be.

    On one connection a client sends the same head again and again. What stands before and behind
    the digits was found good; other digits in their place change nothing about that.
    """

    before: bytes
    behind: bytes  # with the empty line that ends the head
    head: Head

    def again(self, data: bytes) -> tuple[int, int] | None:
        """If `data` begins with such a head: the length of the body, and where that begins."""
        if not data.startswith(self.before):
            return None
        start = len(self.before)
        end = data.find(b"\r", start, start + MAX_DIGITS + 1)
        digits = data[start:end]
        if not data.startswith(self.behind, end) or not digits.isdigit():
            return None
        return int(digits), end + len(self.behind)


def known(raw: bytes, head: Head) -> Known | None:
    """What is kept of a head that was read; `raw` is all of it up to and with its last CRLF."""
    place = LENGTH.search(raw)
    if place is None or len(raw) + MAX_DIGITS > MAX_HEAD:
        return None
    return Known(raw[: place.start(1)], raw[place.end(1) :] + b"\r\n", head)


def _repeats_framing(headers: Headers) -> bool:
    names = [name for name, _ in headers]
    return names.count(b"content-length") > 1 or names.count(b"connection") > 1


class UnderWay(Protocol):
    """A call that a door can start and cancel; `tasks.Drive` is one."""

    def go_on(self) -> None: ...

    def cancel(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Doorway:
    """What all doors of one listener share."""

    # What answers a request; the last is to be called when that is over.
    begin: Callable[[Incoming, Client, Callable[[], None]], UnderWay]
    hand_over: Callable[[asyncio.Transport, bytes], None]
    now: Callable[[], float]
    max_body: int
    doors: set[Door]
    new_id: Callable[[], str]  # for an answer that is given here
    # Takes a connection over whose head, whole, asks for CONNECT; and what came after the head.
    connect: Callable[[asyncio.Transport, bytes, bytes], None] | None = None
    via: Attachment | None = None  # whom these connections were opened for (HTTPS_PROXY)
    trusted_peer: str = ""  # the address to show for connections that have none of their own


class Door(asyncio.Protocol):
    """One client connection, and the `Client` of each of its calls in turn."""

    __slots__ = (
        "_answering",
        "_body",
        "_buffer",
        "_call",
        "_chunked",
        "_doorway",
        "_due",
        "_head",
        "_keep_alive",
        "_known",
        "_missing",
        "_out",
        "_peer",
        "_reading_paused",
        "_rings_at",
        "_source",
        "_timer",
        "_transport",
        "_write_paused",
    )

    def __init__(self, doorway: Doorway) -> None:
        self._doorway = doorway
        self._transport: asyncio.Transport | None = None
        self._peer = doorway.trusted_peer
        self._buffer = b""
        self._head: Head | None = None
        self._known: Known | None = None
        self._body: list[bytes] = []
        self._missing = 0
        self._call: UnderWay | None = None
        self._source: Source | None = None
        self._write_paused = False
        self._reading_paused = False
        self._chunked = False
        self._keep_alive = True
        self._answering = False  # a call is owed an end
        self._out = b""
        self._due = math.inf  # when this connection has been too slow
        self._rings_at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    @property
    def busy(self) -> bool:
        return self._call is not None

    # --- asyncio.Protocol ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            self._peer = str(peer[0])
        self._doorway.doors.add(self)
        self._watch(KEEP_ALIVE_S)

    def data_received(self, data: bytes) -> None:
        if self._call is not None:
            self._buffer += data
            if len(self._buffer) > MAX_AHEAD and self._transport is not None:
                self._transport.pause_reading()
                self._reading_paused = True
        elif self._head is not None:
            self._more_body(data)
        else:
            self._begin(self._buffer + data if self._buffer else data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._doorway.doors.discard(self)
        self._transport = None
        self._forget_timer()
        if self._call is not None:
            self._call.cancel()

    def pause_writing(self) -> None:
        self._write_paused = True
        if self._source is not None:
            self._source.pause()

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._source is not None:
            self._source.resume()

    # --- reading a request ----------------------------------------------------------------------

    def _begin(self, data: bytes) -> None:
        known = self._known
        if known is not None and (again := known.again(data)) is not None:
            self._head = known.head
            length, start = again
            self._begin_body(length, data[start:])
        else:
            self._begin_unknown(data)

    def _begin_unknown(self, data: bytes) -> None:
        """A head that is not the one of before, or not complete yet."""
        end = data.find(b"\r\n\r\n")
        if (len(data) if end < 0 else end) > MAX_HEAD:
            self._refuse(head_too_large())
            return
        if end < 0 and b"\n\n" in data:  # ended by LF alone: waiting would be for nothing
            self._leave(data, len(data))
            return
        if end < 0:
            if not self._buffer:
                self._watch(HEAD_TIMEOUT_S)
            self._buffer = data
            return
        raw = data[: end + 2]
        head = read_head(raw)
        if head is None:
            self._leave(data, end + 4)
            return
        self._head, self._known = head, known(raw, head)
        self._begin_body(head.length, data[end + 4 :])

    def _begin_body(self, length: int, data: bytes) -> None:
        if length > self._doorway.max_body:
            self._refuse(too_large(self._doorway.max_body))
            return
        self._buffer = b""
        self._missing = length
        self._more_body(data)

    def _more_body(self, data: bytes) -> None:
        missing = self._missing
        if len(data) < missing:
            self._body.append(data)
            self._missing = missing - len(data)
            self._watch(BODY_IDLE_S)
            return
        if len(data) > missing:
            self._buffer = data[missing:]
            data = data[:missing]
        if self._body:
            data = b"".join([*self._body, data])
            self._body = []
        self._serve(data)

    def _serve(self, body: bytes) -> None:
        head, doorway = self._head, self._doorway
        assert head is not None
        incoming = Incoming(
            b"POST",
            head.path,
            b"",
            head.fields,
            body,
            self._peer,
            doorway.now(),
            doorway.via,
        )
        self._due = math.inf  # an answer may take its time
        self._answering = True
        self._call = call = doorway.begin(incoming, self, self._served)
        call.go_on()

    def _served(self) -> None:
        self._call = None
        self._head = None
        self._source = None
        transport = self._transport
        if transport is None:
            return
        if self._answering:  # something failed where nobody could say so: no one may wait for it
            transport.abort()
            return
        if not self._keep_alive:
            transport.close()
            return
        if self._reading_paused:
            self._reading_paused = False
            transport.resume_reading()
        # It need not be `_watch`: no limit is longer, so the timer rings early enough for this one.
        self._due = self._doorway.now() + KEEP_ALIVE_S
        if self._buffer:  # not at once: a thousand that fail at once would be a deep stack
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        if self._buffer and self._transport is not None and self._call is None:
            data, self._buffer = self._buffer, b""
            self._begin(data)

    def _leave(self, data: bytes, end: int) -> None:
        """Hand the connection over, for good, with all that has not been answered."""
        transport = self._transport
        assert transport is not None
        self._forget_timer()
        self._doorway.doors.discard(self)
        self._transport = None
        if self._doorway.connect is not None and data.startswith(b"CONNECT "):
            self._doorway.connect(transport, data[:end], data[end:])
        else:
            self._doorway.hand_over(transport, data)

    def _refuse(self, error: ProxyError) -> None:
        """Answer a request that was not read to its end; the connection cannot go on after."""
        self._keep_alive = False
        id = (self._head.fields.said.id if self._head else None) or self._doorway.new_id()
        status, headers, body = error_answer(error, [(b"x-request-id", id.encode())])
        self.answer(status, headers, body)
        if self._transport is not None:
            self._transport.close()

    def finish_and_close(self) -> None:
        """For a shutdown: close now, or after the answer that is running."""
        self._keep_alive = False
        if self._call is None and self._transport is not None:
            self._transport.close()

    # --- relay.client.Client ----------------------------------------------------------------------

    def answer(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        if status in BODILESS:
            self.head(status, headers, None)
            self.end()
            return
        self._chunked = False
        if self._transport is not None:
            line, fields, end = status_line(status), render(headers), HEAD_ENDS[self._keep_alive]
            self._transport.write(
                b"%b%bcontent-length: %d\r\n%b%b" % (line, fields, len(body), end, body)
            )
        self._answering = False

    def head(self, status: int, headers: Iterable[tuple[bytes, bytes]], length: int | None) -> None:
        end = HEAD_ENDS[self._keep_alive]
        self._chunked = False
        if status in BODILESS:
            pass
        elif length is not None:
            end = b"content-length: %d\r\n%b" % (length, end)
        else:
            self._chunked = True
            end = b"transfer-encoding: chunked\r\n" + end
        self._out = status_line(status) + render(headers) + end

    def write(self, data: bytes) -> None:
        if not data:
            return
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self._out:
            data = self._out + data
            self._out = b""
        if self._transport is not None:
            self._transport.write(data)

    def end(self) -> None:
        self._answering = False
        if not (self._chunked or self._out):
            return
        data, self._out = self._out, b""
        if self._transport is not None:
            self._transport.write(data + b"0\r\n\r\n" if self._chunked else data)

    def cut(self) -> None:
        self._answering = False
        self._keep_alive = False
        if self._transport is not None:
            self._transport.abort()

    def follow(self, source: Source | None) -> None:
        self._source = source
        if source is not None and self._write_paused:
            source.pause()

    # --- time -------------------------------------------------------------------------------------

    # One timer a connection, moved only when it has to ring earlier: per request, a time is noted.

    def _watch(self, limit_s: float) -> None:
        self._due = self._doorway.now() + limit_s
        if self._timer is None or self._due < self._rings_at:
            self._ring_in(limit_s)

    def _ring_in(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = self._doorway.now() + delay_s
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._transport is None:
            return
        left_s = self._due - self._doorway.now()
        if left_s > 0:
            self._ring_in(min(left_s, KEEP_ALIVE_S))
        elif self._buffer or self._head is not None:
            self._refuse(RequestTimeout("the request did not arrive in time"))
        else:
            self._transport.close()

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

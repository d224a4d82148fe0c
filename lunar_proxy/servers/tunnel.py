"""A blind tunnel: two connections, each writing to the other what it reads.

    client -> End.data_received -> upstream.write          and the other way round

No task and no copy per chunk. Back-pressure: an End whose transport is full pauses its peer's
reading. Half-close: the end of one direction is passed on and the other goes on; when both have
ended, or either connection is gone, the rest is flushed and both are closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lunar_proxy.core.client_hello import Hello, HelloReader, Malformed
from lunar_proxy.relay.landing import Landing

# Above this much unsent data the other side stops reading. A read brings up to 256 KiB at once, so
# less would stop and start at every read; more only fills memory.
HIGH_WATER = 262_144
# A tunnel is idle when so many looks in a row, spread over `idle_s`, saw no byte move. Looking at
# the byte counts now and then costs nothing where it would hurt, at every chunk.
LOOKS = 4


class Tunnel:
    """Both ends and their idle timer. `on_end` is called once, when both connections are gone."""

    __slots__ = (
        "_idle_looks",
        "_loop",
        "_on_end",
        "_step_s",
        "_timer",
        "_was",
        "client",
        "upstream",
    )

    def __init__(
        self,
        client: asyncio.Transport,
        upstream: asyncio.Transport,
        *,
        idle_s: float,
        on_end: Callable[[Tunnel], None],
        only_name: str | None = None,
    ) -> None:
        """`only_name`: TLS inside may ask for this host and no other."""
        self._loop = asyncio.get_running_loop()
        self._step_s = idle_s / LOOKS
        self._on_end = on_end
        self._idle_looks = 0
        self._was = (0, 0)
        near = End(client, upstream) if only_name is None else Gate(client, upstream, only_name)
        far = End(upstream, client)
        near.join(self, far)
        far.join(self, near)
        self.client, self.upstream = near, far
        self._timer = self._loop.call_later(self._step_s, self._look)

    def start(self, client: Landing, upstream: Landing) -> None:
        """Take over from the landings: what they hold goes first, then what comes."""
        _take_over(self.client, client)
        _take_over(self.upstream, upstream)

    def abort(self) -> None:
        self.client.transport.abort()
        self.upstream.transport.abort()

    def lost(self) -> None:
        if self.client.lost and self.upstream.lost:
            self._timer.cancel()
            self._on_end(self)

    def _look(self) -> None:
        now = self.client.bytes_read, self.upstream.bytes_read
        self._idle_looks = self._idle_looks + 1 if now == self._was else 0
        self._was = now
        if self._idle_looks >= LOOKS:
            self.abort()
        else:
            self._timer = self._loop.call_later(self._step_s, self._look)


def _take_over(end: End, landing: Landing) -> None:
    end.transport.set_protocol(end)
    end.transport.set_write_buffer_limits(high=HIGH_WATER)
    if data := landing.take():
        end.data_received(data)
    if landing.lost:
        end.connection_lost(None)
    elif landing.ended:
        end.eof_received()
    end.transport.resume_reading()


class End(asyncio.Protocol):
    """One side: reads from `transport`, writes to the transport of the other side."""

    __slots__ = ("_peer", "_to", "_tunnel", "bytes_read", "ended", "lost", "transport")
    _tunnel: Tunnel
    _peer: End

    def __init__(self, transport: asyncio.Transport, to: asyncio.Transport) -> None:
        self.transport = transport
        self._to = to
        self.bytes_read = 0
        self.ended = False  # it sends nothing more
        self.lost = False

    def join(self, tunnel: Tunnel, peer: End) -> None:
        self._tunnel = tunnel
        self._peer = peer

    def data_received(self, data: bytes) -> None:
        self.bytes_read += len(data)
        self._to.write(data)

    def eof_received(self) -> bool:
        self.ended = True
        if self._peer.ended:
            self.close()
        elif not self._to.is_closing():
            self._to.write_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._to.close()  # once what was read is written; the idle timer bounds that
        self._tunnel.lost()

    def pause_writing(self) -> None:
        self._to.pause_reading()

    def resume_writing(self) -> None:
        if not self._peer.ended:
            self._to.resume_reading()

    def close(self) -> None:
        self.transport.close()
        self._to.close()


class Gate(End):
    """The client's side where only some hosts may pass: nothing is sent on until it is known that
    TLS asks for the host of the CONNECT, or that it is not TLS. What comes back is never held.
    """

    __slots__ = ("_name", "_reader")

    def __init__(self, transport: asyncio.Transport, to: asyncio.Transport, name: str) -> None:
        super().__init__(transport, to)
        self._name = name
        self._reader: HelloReader | None = HelloReader()

    def data_received(self, data: bytes) -> None:
        if self._reader is None:
            super().data_received(data)
            return
        match self._reader.feed(data):
            case None:
                pass
            case Malformed():
                self.close()
            case Hello(name=str() as name) if name != self._name:
                self.close()
            case _:
                held, self._reader = bytes(self._reader.data), None
                super().data_received(held)

    def eof_received(self) -> bool:
        if self._reader is not None and self._reader.data:
            self.close()  # it broke off in the middle of a ClientHello
            return True
        return super().eof_received()

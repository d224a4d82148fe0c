"""Opening a connection by hand: every address judged by the caller, a parent proxy asked the way.

    addresses -> connect -> (transport, paused; Landing, which holds what it said already)

Used where a name must be resolved once and no second answer of the name server may count, and
where TLS begins only after another conversation.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

from lunar_proxy.core.connect import Authority, ConnectReply, Parent, connect_request
from lunar_proxy.core.errors import ConnectFailed
from lunar_proxy.tasks import spawn

logger = logging.getLogger(__name__)

# How long one address may keep the next one waiting (RFC 8305 5).
STAGGER_S = 0.25

# (host, port) -> IP addresses, best first; raises OSError
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


async def resolve(host: str, port: int) -> list[str]:
    """The system's resolver, off the event loop."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Landing(asyncio.Protocol):
    """Holds what a connection says until it is known who listens.

    Bounded: above LIMIT the transport is paused. `on_lost` is called when it breaks.
    """

    LIMIT = 65_536

    def __init__(self, transport: asyncio.Transport | None = None) -> None:
        self.data = bytearray()
        self.on_lost: Callable[[], object] | None = None
        self.ended = False  # nothing more will come: EOF, or the connection is lost
        self.lost = False
        self._transport = transport
        self._waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.data += data
        if len(self.data) >= self.LIMIT and self._transport is not None:
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        self.ended = True
        self._wake()
        if not self.data and self.on_lost is not None:
            self.on_lost()  # it ends and has said nothing: nobody waits for an answer
        return True  # otherwise the other direction may still be of use

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = self.lost = True
        self._wake()
        if self.on_lost is not None:
            self.on_lost()

    async def more(self) -> bytes:
        """What has come and was not taken yet; waits for some. Empty: nothing will."""
        while not self.data and not self.ended:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self.take()

    def take(self) -> bytes:
        data = bytes(self.data)
        self.data.clear()
        return data

    def push_back(self, data: bytes) -> None:
        self.data[:0] = data

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


Connected = tuple[asyncio.Transport, Landing]


async def open_through(parent: Parent, target: Authority, resolve: Resolve = resolve) -> Connected:
    """A tunnel to `target` through the parent proxy, as `Dialer.open` gives it; no time limit."""
    at = Authority(parent.host, parent.port)
    transport, landing = await connect(await addresses_of(resolve, at), at)
    try:
        transport.write(connect_request(target, parent))
        await _established(transport, landing)
    except BaseException:
        transport.abort()
        raise
    return transport, landing


async def _established(transport: asyncio.Transport, landing: Landing) -> None:
    reply = ConnectReply()
    transport.resume_reading()
    while True:
        data = await landing.more()
        if not data:
            raise ConnectFailed("the upstream proxy hung up", code="upstream_proxy")
        if (rest := reply.feed(data)) is not None:
            transport.pause_reading()
            landing.push_back(rest)
            return


async def addresses_of(resolve: Resolve, target: Authority) -> list[str]:
    try:
        addresses = list(await resolve(target.host, target.port))
    except (OSError, UnicodeError) as error:  # UnicodeError: a label the IDNA codec refuses
        raise ConnectFailed(f"{target.host} cannot be resolved", code="upstream_dns") from error
    if not addresses:
        raise ConnectFailed(f"{target.host} has no address", code="upstream_dns")
    return addresses


async def connect(addresses: Sequence[str], target: Authority) -> Connected:
    """The first of the addresses that answers; each has a head start on the next (RFC 8305)."""
    attempts: set[asyncio.Task[Connected | None]] = set()
    waiting = list(addresses)
    try:
        while waiting or attempts:
            if waiting:
                attempts.add(spawn(_attempt(waiting.pop(0), target), name=f"connect {target}"))
            done, _ = await asyncio.wait(
                attempts,
                timeout=STAGGER_S if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for attempt in done:
                attempts.remove(attempt)
                if winner := attempt.result():
                    return winner
    finally:
        for attempt in attempts:
            attempt.cancel()
            attempt.add_done_callback(_discard)
    raise ConnectFailed(f"no connection to {target}")


async def _attempt(address: str, target: Authority) -> Connected | None:
    loop = asyncio.get_running_loop()
    try:
        transport, landing = await loop.create_connection(Landing, address, target.port)
    except OSError as error:
        logger.debug("connect to %s: %s", target, error)
        return None
    transport.pause_reading()
    return transport, landing


def _discard(attempt: asyncio.Task[Connected | None]) -> None:
    """A second connection that came up in the same instant as the first."""
    if not attempt.cancelled() and (late := attempt.result()):
        late[0].abort()

"""Opening a connection for a tunnel: resolve once, judge every address, dial exactly that one.

A name server's second answer is never asked for, so it cannot lead elsewhere than the first, which
was checked (DNS rebinding). With a parent proxy the parent resolves, and answers for what it finds.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import cast

from lunar_proxy.core.connect import (
    Authority,
    ConnectReply,
    Parent,
    connect_request,
    is_private,
    private_address,
    through_parent,
)
from lunar_proxy.core.errors import ConnectFailed, ConnectTimeout, Forbidden
from lunar_proxy.tasks import spawn

logger = logging.getLogger(__name__)

# How long one address may keep the next one waiting (RFC 8305 5).
STAGGER_S = 0.25

# (host, port) -> IP addresses, best first; raises OSError
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
Listener = tuple[str, int]


async def resolve(host: str, port: int) -> list[str]:
    """The system's resolver, off the event loop."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def no_listeners() -> Sequence[Listener]:
    return ()


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


@dataclass(frozen=True, slots=True)
class Dialer:
    """`exposed`: private addresses are out of reach. `listeners` gives the addresses the proxy
    itself listens on, which are never dialled.
    """

    exposed: bool = False
    parent: Parent | None = None
    listeners: Callable[[], Sequence[Listener]] = no_listeners
    resolve: Resolve = resolve
    connect_s: float = 5.0

    async def open(self, target: Authority) -> Connected:
        """A connection to `target`, paused, with the Landing that holds what it said already.

        Raises Forbidden for an address out of reach, ConnectFailed and ConnectTimeout otherwise.
        """
        try:
            async with asyncio.timeout(self.connect_s):
                if self.parent is not None and through_parent(target.host):
                    return await open_through(self.parent, target, self.resolve)
                return await self._direct(target)
        except TimeoutError as error:
            raise ConnectTimeout(f"no connection to {target} in time") from error

    async def _direct(self, target: Authority) -> Connected:
        addresses = await _addresses(self.resolve, target)
        if self.exposed:
            addresses = [address for address in addresses if not is_private(address)]
            if not addresses:
                raise private_address(target)
        transport, landing = await connect(addresses, target)
        peer, near = (transport.get_extra_info(end) for end in ("peername", "sockname"))
        if is_self(peer[0], near[0], peer[1], self.listeners()):
            transport.abort()
            raise Forbidden(f"{target} is this proxy itself", code="proxy_loop")
        return transport, landing


async def open_through(parent: Parent, target: Authority, resolve: Resolve = resolve) -> Connected:
    """A tunnel to `target` through the parent proxy, as `Dialer.open` gives it; no time limit."""
    at = Authority(parent.host, parent.port)
    transport, landing = await connect(await _addresses(resolve, at), at)
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


async def _addresses(resolve: Resolve, target: Authority) -> list[str]:
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


def is_self(peer: str, near: str, port: int, listeners: Sequence[Listener]) -> bool:
    """Whether a connection from `near` to `peer`:`port` ends at one of our own listeners.

    Told by the connected socket, because a wildcard listener has more addresses than it names: a
    connection within this machine has one address at both ends, or a loopback one at the far end.
    """
    there, here = _ip(peer), _ip(near)
    within = there == here or there.is_loopback
    for host, bound in listeners:
        at = _ip(host)
        if bound == port and (there == at or (within and at.is_unspecified)):
            return True
    return False


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    ip = ipaddress.ip_address(text)
    return ip if isinstance(ip, ipaddress.IPv4Address) else ip.ipv4_mapped or ip

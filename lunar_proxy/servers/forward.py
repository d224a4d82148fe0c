"""CONNECT: the door hands over a client's transport, and gets no more of it.

    handle -> authenticate -> decide -> Tunnel     dial, 200, two protocols back to back
                                     -> Intercept  200, TLS, the door's own protocol
                                     -> Refuse     an error in JSON

One task per CONNECT, which ends where the tunnel or the door takes over; the client's hanging up
cancels it.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, assert_never

from lunar_proxy.core.connect import (
    Authority,
    Intercept,
    Policy,
    Refuse,
    Tunnel,
    decide,
    is_address,
    parse_authority,
)
from lunar_proxy.core.errors import (
    Forbidden,
    InvalidRequest,
    ProxyAuthRequired,
    ProxyError,
    Unauthorized,
)
from lunar_proxy.core.headers import get
from lunar_proxy.core.model import Headers, Identity
from lunar_proxy.relay.landing import Landing
from lunar_proxy.tasks import spawn

from . import tunnel
from .certs import LeafStore
from .dial import Dialer
from .intercept import HandshakeFailed, goodbye, hand_over, unwrap

logger = logging.getLogger(__name__)

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


@dataclass(frozen=True, slots=True)
class ConnectRequest:
    authority: bytes
    headers: Headers = ()


_REQUEST_LINE = re.compile(rb"CONNECT ([!-~]+) HTTP/1\.[01]\r\n")
# RFC 9110 5.6.2 tokens; a value has no control characters and no obsolete folding (RFC 9112 5.2).
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([^\x00-\x08\x0a-\x1f\x7f]*)\r\n")


def read_connect(head: bytes) -> ConnectRequest:
    """Read a whole head, up to and with its empty line. Raises InvalidRequest."""
    line = _REQUEST_LINE.match(head)
    position = line.end() if line is not None else 0
    headers = []
    while line is not None and (field := _FIELD.match(head, position)):
        headers.append((field[1].lower(), field[2].strip(b" \t")))
        position = field.end()
    if line is None or head[position:] != b"\r\n":
        raise InvalidRequest("the CONNECT is not valid HTTP", code="bad_http")
    return ConnectRequest(line[1], tuple(headers))


@dataclass(frozen=True, slots=True)
class Intercepted:
    """What the door needs to know of a connection it gets decrypted."""

    authority: Authority
    provider: str | None  # None: the host is to be opened, but no configured provider lives there
    identity: Identity | None  # who the CONNECT was by, if it said
    proxy_authorization: bytes | None  # what it said, for who has to ask again
    tls: bool  # False: plain HTTP through CONNECT, as some clients do for http:// URLs


@dataclass(slots=True)
class Counts:
    """Plain numbers for the metrics. Bytes are added when a tunnel ends."""

    tunnels: int = 0
    intercepted: int = 0
    refused: int = 0
    failed_handshakes: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


# Proxy-Authorization, the client's address -> who that is
Authenticate = Callable[[bytes | None, str], Awaitable[Identity | None]]


async def nobody(_authorization: bytes | None, _address: str) -> None:
    """The default `authenticate`: no credentials are known."""


class Forward:
    """Serves CONNECT for a data listener.

    `make_protocol` gives what serves one decrypted connection. `render` makes a whole HTTP answer
    (with `Connection: close`) of an error. `authenticate` reads Proxy-Authorization: an identity,
    None when there is none to read, Unauthorized when it is wrong. Without `leaves` nothing can be
    opened. `policy`, `leaves` and `dialer` may be replaced at any time, for the
    CONNECTs to come.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        make_protocol: Callable[[Intercepted], asyncio.Protocol],
        render: Callable[[ProxyError], bytes],
        leaves: LeafStore | None = None,
        dialer: Dialer | None = None,
        authenticate: Authenticate = nobody,
        idle_s: float = 300.0,
        handshake_s: float = 10.0,
    ) -> None:
        self.policy = policy
        self.leaves = leaves
        self.counts = Counts()
        self._make_protocol = make_protocol
        self._render = render
        self.dialer = dialer or Dialer(exposed=policy.exposed)
        self._authenticate = authenticate
        self._idle_s = idle_s
        self._handshake_s = handshake_s
        self._tunnels: set[tunnel.Tunnel] = set()
        self._pending: set[asyncio.Task[Any]] = set()

    @property
    def open_tunnels(self) -> int:
        return len(self._tunnels)

    def connect(self, transport: asyncio.Transport, head: bytes, early: bytes) -> None:
        """The same for a head that nobody has read yet."""
        try:
            request = read_connect(head)
        except InvalidRequest as error:
            self._refuse(transport, error)
        else:
            self.handle(transport, request, early)

    def handle(
        self, transport: asyncio.Transport, head: ConnectRequest, early: bytes = b""
    ) -> None:
        """Take over `transport`. `early` is what came after the head. Returns at once."""
        landing = Landing(transport)
        landing.push_back(early)
        transport.set_protocol(landing)
        task = spawn(self._serve(transport, landing, head), name="CONNECT")
        landing.on_lost = task.cancel
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def quiet(self, pause_s: float = 1.0) -> None:
        """Until no tunnel has moved a byte for so long; what idles is nothing to wait for."""
        before = -1
        while self._tunnels and (moved := self._moved()) != before:
            before = moved
            await asyncio.sleep(pause_s)

    def _moved(self) -> int:
        here = sum(each.client.bytes_read + each.upstream.bytes_read for each in self._tunnels)
        return here + self.counts.bytes_up + self.counts.bytes_down

    def close(self) -> None:
        """Drop every tunnel and everything that is about to become one."""
        for task in self._pending:
            task.cancel()
        for each in list(self._tunnels):
            each.abort()

    async def _serve(
        self, client: asyncio.Transport, landing: Landing, head: ConnectRequest
    ) -> None:
        try:
            await self._decide(client, landing, head)
        except ProxyError as error:
            self._refuse(client, error)
        except BaseException:
            client.abort()
            raise

    def _refuse(self, client: asyncio.Transport, error: ProxyError) -> None:
        self.counts.refused += 1
        client.write(self._render(error))
        client.close()

    async def _decide(
        self, client: asyncio.Transport, landing: Landing, head: ConnectRequest
    ) -> None:
        """Raises until the client has been told 200, never after."""
        authority = parse_authority(head.authority)
        authorization = get(head.headers, b"proxy-authorization")
        identity = await self._identify(authorization, _address(client))
        match decide(authority, self.policy):
            case Refuse(error):
                raise error
            case Tunnel() as decision:
                await self._tunnel(client, landing, decision)
            case Intercept() as decision:
                await self._intercept(client, landing, decision, identity, authorization)
            case never:
                assert_never(never)

    async def _identify(self, authorization: bytes | None, address: str) -> Identity | None:
        try:
            identity = await self._authenticate(authorization, address)
        except Unauthorized as error:
            raise ProxyAuthRequired(error.message) from error
        if identity is None and self.policy.exposed:
            raise ProxyAuthRequired("CONNECT needs Proxy-Authorization with a key of this proxy")
        return identity

    async def _tunnel(self, client: asyncio.Transport, landing: Landing, decision: Tunnel) -> None:
        target = decision.authority
        upstream, far = await self.dialer.open(target)
        client.write(ESTABLISHED)
        joined = tunnel.Tunnel(
            client,
            upstream,
            idle_s=self._idle_s,
            on_end=self._ended,
            only_name=target.host if decision.check_name and not is_address(target.host) else None,
        )
        self.counts.tunnels += 1
        self._tunnels.add(joined)
        joined.start(landing, far)

    def _ended(self, ended: tunnel.Tunnel) -> None:
        self._tunnels.discard(ended)
        self.counts.bytes_up += ended.client.bytes_read
        self.counts.bytes_down += ended.upstream.bytes_read

    async def _intercept(
        self,
        client: asyncio.Transport,
        landing: Landing,
        decision: Intercept,
        identity: Identity | None,
        authorization: bytes | None,
    ) -> None:
        authority = decision.authority
        if self.leaves is None:
            raise Forbidden(f"{authority} is to be opened, but there is no CA", code="no_ca")
        context = await self.leaves.context(authority.host)  # may fail, so before the 200
        client.write(ESTABLISHED)
        try:
            transport, held = await unwrap(
                client, landing, authority.host, context, within_s=self._handshake_s
            )
        except HandshakeFailed as error:
            self.counts.failed_handshakes += 1
            logger.warning("TLS with a client for %s failed: %s", authority, error)
            goodbye(client, error)
            return
        self.counts.intercepted += 1
        tls = transport is not client
        seen = Intercepted(authority, decision.provider, identity, authorization, tls)
        hand_over(transport, held, self._make_protocol(seen))


def _address(client: asyncio.Transport) -> str:
    peer = client.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) else ""

"""From a client that was told "200 Connection established" to a transport that speaks plain HTTP.

The first flight is read before TLS is started, so that a wrong name, a client without HTTP/1.1 and
plain HTTP are told apart without a handshake; then it is given to the TLS that follows. Works the
same on asyncio and uvloop: both read TLS through the public BufferedProtocol methods.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from typing import cast

from lunar_proxy.core.client_hello import (
    DECODE_ERROR,
    Hello,
    HelloReader,
    Malformed,
    Verdict,
    fatal_alert,
    objection,
)
from lunar_proxy.relay.landing import Connected, Landing

logger = logging.getLogger(__name__)

# How long the goodbye of TLS may take before the connection is simply dropped.
SHUTDOWN_S = 2.0
# Some clients use CONNECT for http:// URLs too (undici does): a method opens plain HTTP.
_METHOD = re.compile(rb"[A-Z]{3,20} ")
# Some clients hang up without a word when they do not trust us, asyncio's for one.
_HINT = "if it does not trust the CA: `lunar-proxy ca show` says how it can"
# What others say (OpenSSL's names; curl, Go and Java differ).
_DISTRUST = ("UNKNOWN_CA", "CERTIFICATE_UNKNOWN", "BAD_CERTIFICATE")


class HandshakeFailed(Exception):
    """There is nothing to speak HTTP on. `alert` is what the client is to be told, if anything."""

    def __init__(self, reason: str, alert: int | None = None) -> None:
        super().__init__(reason)
        self.alert = alert


async def unwrap(
    client: asyncio.Transport,
    landing: Landing,
    host: str,
    context: ssl.SSLContext,
    *,
    within_s: float,
) -> Connected:
    """The decrypted transport and what came on it meanwhile, or the same ones for plain HTTP."""
    try:
        async with asyncio.timeout(within_s):
            flight, verdict = await _first_flight(landing)
            if isinstance(verdict, Hello):
                _check(verdict, host)
                return await _start_tls(client, flight, context, within_s)
    except TimeoutError as error:
        raise HandshakeFailed("too slow") from error
    except ssl.SSLError as error:
        raise HandshakeFailed(_explain(error)) from error
    except OSError as error:
        raise HandshakeFailed(f"the client hung up; {_HINT}") from error
    if isinstance(verdict, Malformed):
        raise HandshakeFailed(verdict.reason, DECODE_ERROR)
    if not _METHOD.match(flight):
        raise HandshakeFailed("neither TLS nor HTTP")
    landing.push_back(flight)
    return client, landing


def hand_over(transport: asyncio.Transport, landing: Landing, protocol: asyncio.Protocol) -> None:
    """Let `protocol` serve the transport as if it had from the start."""
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    if data := landing.take():
        protocol.data_received(data)
    if landing.lost:
        protocol.connection_lost(None)
    elif landing.ended:
        if not protocol.eof_received():
            transport.close()
    else:
        transport.resume_reading()


class _Decrypted(Landing):
    def eof_received(self) -> bool:
        super().eof_received()
        return False  # TLS cannot be half-closed


async def _first_flight(landing: Landing) -> tuple[bytes, Verdict | None]:
    """The bytes that decide what this is, and what it is; None: they broke off."""
    reader = HelloReader()
    verdict = None
    while verdict is None and (data := await landing.more()):
        verdict = reader.feed(data)
    return bytes(reader.data), verdict


def _check(hello: Hello, host: str) -> None:
    if (alert := objection(hello, host)) is not None:
        raise HandshakeFailed("it asks for another host, or not for HTTP/1.1", alert)


async def _start_tls(
    client: asyncio.Transport, flight: bytes, context: ssl.SSLContext, within_s: float
) -> Connected:
    loop = asyncio.get_running_loop()
    # start_tls sets the protocol before it first waits, and reads from the socket only after what
    # is queued now: so the flight is fed to the right protocol, before anything that follows it.
    loop.call_soon(_feed, client, flight)
    # The client's request may come with the last bytes of its handshake, before we know of the new
    # transport; so the real protocol comes later and this one holds the request for it.
    landing = _Decrypted()
    secure = await loop.start_tls(
        client,
        landing,
        context,
        server_side=True,
        ssl_handshake_timeout=within_s,
        ssl_shutdown_timeout=SHUTDOWN_S,
    )
    if secure is None:  # what start_tls gives where the connection broke in the last moment
        raise HandshakeFailed(f"the client hung up; {_HINT}")
    return secure, landing


def _feed(client: asyncio.Transport, data: bytes) -> None:
    tls = cast(asyncio.BufferedProtocol, client.get_protocol())
    while data:
        buffer = memoryview(tls.get_buffer(len(data)))
        count = min(len(buffer), len(data))
        buffer[:count] = data[:count]
        tls.buffer_updated(count)
        data = data[count:]


def _explain(error: ssl.SSLError) -> str:
    reason = error.reason or "unknown"
    if any(word in reason for word in _DISTRUST):
        return f"{reason}; {_HINT}"
    return reason


def goodbye(client: asyncio.Transport, error: HandshakeFailed) -> None:
    if error.alert is not None and not client.is_closing():
        client.write(fatal_alert(error.alert))
    client.close()

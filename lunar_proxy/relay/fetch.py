"""One small document of a server that no call is for: an issuer's keys."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from lunar_proxy.core.errors import BadAnswer, ProxyError
from lunar_proxy.core.model import Headers
from lunar_proxy.providers.base import Origin, UpstreamRequest, static_head

from .upstream import Pool, Receiver

# A JWK set is a few kilobytes; what is larger is something else.
MAX_DOCUMENT = 1024 * 1024

_HEADERS: Headers = (
    (b"accept", b"application/json"),
    (b"user-agent", b"lunar-proxy"),
    (b"connection", b"close"),
)


async def fetch(pool: Pool, url: str, *, connect_s: float = 5.0) -> bytes:
    """The body of a 200. Raises ProxyError; the caller bounds the whole with a timeout.

    Redirects are not followed: what the config names is what is trusted.
    """
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    origin = Origin(parts.scheme, parts.hostname or "", port)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    head = b"GET %b HTTP/1.1\r\n%b" % (target.encode(), static_head(origin, _HEADERS))
    connection = await pool.connect(origin, timeout_s=connect_s)
    document = _Document()
    try:
        connection.ask(UpstreamRequest(origin, head, b""), document)
        return await document.whole
    finally:
        connection.close()  # asked for so rarely, it is not worth keeping


class _Document(Receiver):
    """Keeps what comes."""

    def __init__(self) -> None:
        self.whole: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._parts: list[bytes] = []
        self._size = 0

    def head(self, status: int, headers: Headers) -> None:
        if status != 200:
            self._fail(BadAnswer(f"the answer has status {status}"))

    def body(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > MAX_DOCUMENT:
            self._fail(BadAnswer(f"the answer is larger than {MAX_DOCUMENT} bytes"))
        else:
            self._parts.append(data)

    def end(self) -> None:
        if not self.whole.done():
            self.whole.set_result(b"".join(self._parts))

    def broken(self, error: ProxyError) -> None:
        self._fail(error)

    def _fail(self, error: ProxyError) -> None:
        if not self.whole.done():
            self.whole.set_exception(error)

"""A request that is none of our business, on its way to the host it was sent to, and the answer.

What an application that uses HTTPS_PROXY says to a provider's host besides calls to models: lists,
files, dashboards, other APIs. Nothing is read, retried, annotated or counted; only hop-by-hop
headers end here, and what could be a key of ours never leaves.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from lunar_proxy.core import headers as h
from lunar_proxy.core.errors import IdleTimeout, NoAnswer, ProxyError, Unauthorized
from lunar_proxy.core.intake import Incoming
from lunar_proxy.core.model import Attempt, Headers, Phase, Target
from lunar_proxy.providers.base import Origin, UpstreamRequest

from .client import Client
from .engine import Line, Lines, Upload
from .meter import Meter
from .upstream import Receiver, Stale

CONNECT_S = 10.0
# As for a tunnel: whoever waits longer for a byte has a time limit of his own.
SILENCE_S = 300.0
_OURS = re.compile(rb"pk_(?:live|test)_[0-9A-Za-z]{16}")


class Passage(Receiver):
    """`run` it once. What the gateway needs to write it down is that of a `Carrier`."""

    index = 0
    waited_s = 0.0
    meter: Meter | None = None
    skipped: list[tuple[Target, Target]] = []  # noqa: RUF012  # there never are any

    def __init__(
        self,
        lines: Lines,
        now: Callable[[], float],
        origin: Origin,
        path: bytes,
        incoming: Incoming,
        client: Client,
        *,
        provider: str,
        upload: Upload | None = None,
    ) -> None:
        self.target = Target(provider, "")
        self.status = 0
        self.phase = Phase.CONNECT
        self.attempts: list[Attempt] = []
        self._lines = lines
        self._now = now
        self._started = now()
        self._client = client
        self._upload = upload
        self._request = request_of(incoming, origin, path)
        self._line: Line | None = None
        self._last = self._started
        self._paused = False
        self._finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def committed(self) -> bool:
        """The client has the head of the host's answer."""
        return self.status != 0

    def answer_headers(self) -> list[tuple[bytes, bytes]]:
        return []

    async def run(self) -> None:
        """Raises ProxyError, also when the client has seen its part."""
        error: ProxyError | None = None
        try:
            try:
                await self._once(fresh=self._upload is not None)
            except Stale:
                if self._upload is not None:
                    raise NoAnswer("the host closed the connection without an answer") from None
                await self._once(fresh=True)
        except ProxyError as problem:
            error = problem
            if self.committed:
                self._client.cut()
            raise
        finally:
            self._client.follow(None)
            if self._line is not None:
                self._line.close()
            duration_s = self._now() - self._started
            code = error.code if error is not None else None
            self.attempts.append(Attempt(self.target, self.status or None, code, duration_s))

    async def _once(self, *, fresh: bool) -> None:
        request = self._request
        line = None if fresh else self._lines.idle(request.origin)
        if line is None:
            line = await self._lines.connect(request.origin, timeout_s=CONNECT_S)
        self._line = line
        self._finished = asyncio.get_running_loop().create_future()
        self.phase = Phase.HEADERS
        if self._upload is None:
            line.ask(request, self)
        else:
            chunks, length = self._upload.untouched()
            await line.ask_streaming(request, chunks, length, self)
        await self._until_finished()
        self._client.end()

    async def _until_finished(self) -> None:
        while True:
            done, _ = await asyncio.wait({self._finished}, timeout=SILENCE_S / 4)
            if done:
                self._finished.result()
                return
            if not self._paused and self._now() - self._last > SILENCE_S:
                raise IdleTimeout("the host fell silent")

    # --- what the connection tells ----------------------------------------------------------------

    def at_once(self, status: int, headers: Headers, body: bytes) -> None:
        self._line = None  # the next call may have it already
        super().at_once(status, headers, body)

    def head(self, status: int, headers: Headers) -> None:
        self.status, self._last = status, self._now()
        self.phase = Phase.STREAM
        raw = h.get(headers, b"content-length")
        length = int(raw) if raw is not None and raw.isdigit() else None
        self._client.head(status, h.untouched(headers), length)
        self._client.follow(self)

    def body(self, data: bytes) -> None:
        self._last = self._now()
        self._client.write(data)

    def end(self) -> None:
        self._line = None  # it is back in the pool
        if not self._finished.done():
            self._finished.set_result(None)

    def broken(self, error: ProxyError) -> None:
        self._line = None
        if not self._finished.done():
            self._finished.set_exception(error)

    # --- what the client tells --------------------------------------------------------------------

    def pause(self) -> None:
        self._paused = True
        if self._line is not None:
            self._line.pause()

    def resume(self) -> None:
        self._paused, self._last = False, self._now()
        if self._line is not None:
            self._line.resume()


def request_of(incoming: Incoming, origin: Origin, path: bytes) -> UpstreamRequest:
    """Raises Unauthorized where a key of ours would go along, wherever it may stand."""
    kept = [pair for pair in h.untouched(incoming.fields.pairs) if pair[0] not in _RENEWED]
    if _OURS.search(incoming.query) or any(_OURS.search(value) for _, value in kept):
        raise Unauthorized(
            "a key of this proxy goes where the provider's key goes, or to Proxy-Authorization"
        )
    host = (b"host", origin.authority.encode())
    target = path + incoming.query
    head = b"%b %b HTTP/1.1\r\n%b" % (incoming.method, target, h.render([host, *kept]))
    return UpstreamRequest(origin, head, incoming.body)


# Written afresh, or answered by us already.
_RENEWED = frozenset({b"host", b"expect"})

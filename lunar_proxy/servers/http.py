"""The aiohttp door: every request that the fast door hands over, and the local endpoints.

Uploads, odd framings, other methods and HTTP/1.0 end up here, and feed the same engine: the
request becomes an `Incoming`, the answer comes back through a `Client`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import orjson
from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from multidict import CIMultiDict

from lunar_proxy.core import headers as h
from lunar_proxy.core import multipart
from lunar_proxy.core.attachment import Attachment
from lunar_proxy.core.connect import Authority, parse_absolute
from lunar_proxy.core.errors import (
    Forbidden,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    ProxyError,
    RequestTimeout,
)
from lunar_proxy.core.intake import Incoming, check_path
from lunar_proxy.core.model import Fields, Headers
from lunar_proxy.core.render import error_answer
from lunar_proxy.relay.client import Client, Source
from lunar_proxy.relay.engine import Upload
from lunar_proxy.tasks import spawn

from .bounds import BODY_IDLE_S, KEEP_ALIVE_S, MAX_HEAD, too_large

# What an answer may pile up between the engine and a slow client, per call.
MAX_QUEUE = 128 * 1024
# Read whole, whatever the content type says: a JSON document is needed here.
JSON_PATHS = (b"/chat/completions", b"/completions", b"/responses", b"/v1/router")
SERVER = "lunar-proxy"
# aiohttp's own access log is off: the engine writes one line a call.
_SILENT = cast(logging.Logger, None)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a local endpoint says."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


Route = Callable[[Incoming], Awaitable[Answer]]


def json_answer(doc: Any, status: int = 200) -> Answer:
    return Answer(status, [(b"content-type", b"application/json")], orjson.dumps(doc))


class Serve(Protocol):
    """The engine, as a door sees it (`gateway.Gateway.serve`)."""

    async def __call__(
        self, incoming: Incoming, client: Client, upload: Upload | None = None
    ) -> None: ...


class HttpDoor(web.Server):
    """One for the listener; called, it makes the protocol of one connection."""

    def __init__(
        self,
        serve: Serve,
        routes: Mapping[tuple[bytes, bytes], Route],
        now: Callable[[], float],
        max_body: int,
        *,
        new_id: Callable[[], str],
        is_provider: Callable[[Authority], bool] = lambda _: False,
        is_here: Callable[[Authority], bool] = lambda _: False,
    ) -> None:
        """`is_provider`, `is_here`: what a request in absolute form may be for."""
        super().__init__(self._handle, handler_cancellation=True)
        self.new_id = new_id
        self._is_provider = is_provider
        self._is_here = is_here
        self._serve = serve
        self._routes = routes
        self._paths = frozenset(path for _, path in routes)
        self._now = now
        self._max_body = max_body

    def __call__(self) -> _Handler:
        handler = _Handler(
            self,
            loop=self._loop,
            keepalive_timeout=KEEP_ALIVE_S,
            auto_decompress=False,  # an upload travels on as it came
            access_log=_SILENT,
            max_line_size=MAX_HEAD,
            max_field_size=MAX_HEAD,
        )
        handler.via = None
        return handler

    def hand_over(
        self, transport: asyncio.Transport, data: bytes, via: Attachment | None = None
    ) -> None:
        """Go on with a connection whose first bytes another protocol has read; `via`: whom it was
        opened for (HTTPS_PROXY).
        """
        protocol = self()
        protocol.via = via
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(data)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            response = await self._answer(request)
        except ProxyError as error:
            response = _response(Answer(*error_answer(error, [])))
        if not response.prepared:  # what was answered here, and not by `serve`
            raw = request.headers.get("x-request-id", "").encode("latin-1", "replace")
            id = Fields(((b"x-request-id", raw),)).said.id or self.new_id()
            response.headers.setdefault("x-request-id", id)
        return response

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.version < (1, 0):
            raise InvalidRequest("HTTP/1.0 or newer is needed", code="bad_http")
        headers: Headers = tuple((k.lower(), v) for k, v in request.raw_headers)
        _check_framing(request, headers)
        if request.method == "TRACE":  # its answer is the request, our key in it (RFC 9110 9.3.8)
            raise MethodNotAllowed("TRACE is not passed on")
        via, target = self._target(request, headers)
        path, mark, query = target.partition(b"?")
        check_path(path)
        method = request.method.encode()
        route = self._route(method, path) if via is None else None
        if via is None and route is None and not path.startswith(b"/v1/"):
            raise NotFound(
                f"there is nothing at {path.decode('latin-1')[:200]}; the API is under /v1/"
            )
        if (h.get(headers, b"upgrade") or b"").strip().lower() == b"websocket":
            raise InvalidRequest("WebSocket connections are not supported", code="no_websocket")
        incoming, upload = await self._read(request, method, path, mark + query, headers, via)
        if route is not None:
            return _response(await route(incoming))
        return await self._relay(request, incoming, upload)

    def _target(
        self, request: web.BaseRequest, headers: Headers
    ) -> tuple[Attachment | None, bytes]:
        """Whom the request is for (None: us), and its target in origin form."""
        raw = request.raw_path.encode("latin-1", "replace")
        opened_for = request.protocol.via if isinstance(request.protocol, _Handler) else None
        if raw.startswith((b"/", b"*")) or request.method == "CONNECT":
            return opened_for, raw
        secure, authority, target = parse_absolute(raw)
        if opened_for is not None or self._is_here(authority):
            return opened_for, target
        if not self._is_provider(authority):
            raise Forbidden(
                f"only the hosts of providers are asked for plain HTTP, not {authority}; "
                "everything else goes by CONNECT",
                code="not_proxied",
            )
        return Attachment(authority, secure, h.get(headers, b"proxy-authorization")), target

    def _route(self, method: bytes, path: bytes) -> Route | None:
        if method == b"HEAD":  # a GET but for its body, which aiohttp leaves out (RFC 9110 9.3.2)
            method = b"GET"
        route = self._routes.get((method, path))
        if route is None and path in self._paths:
            allowed = sorted(m.decode() for m, p in self._routes if p == path)
            raise MethodNotAllowed(
                f"{path.decode()} takes {', '.join(allowed)}",
                headers=(("allow", ", ".join(allowed)),),
            )
        if route is None and path.startswith(b"/v1/models/"):
            route = self._routes.get((method, b"/v1/models/"))
        return route

    # --- the request ----------------------------------------------------------------------------

    async def _read(
        self,
        request: web.BaseRequest,
        method: bytes,
        path: bytes,
        query: bytes,
        headers: Headers,
        via: Attachment | None,
    ) -> tuple[Incoming, Upload | None]:
        length = request.content_length
        if length is not None and length > self._max_body:
            raise too_large(self._max_body)
        fields = Fields(headers)
        if fields.get(b"expect", b"").lower() == b"100-continue" and request.transport:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")  # RFC 9110 10.1.1
        content_type = fields.get(b"content-type", b"").lower()
        uploading = request.can_read_body and b"json" not in content_type and method != b"GET"
        if path.endswith(JSON_PATHS):
            uploading = False
        body = b"" if uploading else await self._whole(request)
        peer = request.remote or ""
        now = self._now()
        incoming = Incoming(
            method, path, query, fields, body, peer, now, uploading=uploading, via=via
        )
        if not uploading:
            return incoming, None
        return incoming, await self._upload(request, fields.get(b"content-type", b""))

    async def _whole(self, request: web.BaseRequest) -> bytes:
        return b"".join([chunk async for chunk in self._chunks(request)])

    async def _chunks(self, request: web.BaseRequest) -> AsyncIterator[bytes]:
        """The body as it arrives, within the limit, as long as it keeps coming."""
        size = 0
        while True:
            try:
                async with asyncio.timeout(BODY_IDLE_S):
                    chunk = await request.content.readany()
            except TimeoutError:
                raise RequestTimeout("the request body stopped arriving") from None
            except web.RequestPayloadError as error:
                raise InvalidRequest("the request body is not framed correctly") from error
            if not chunk:
                return
            size += len(chunk)
            if size > self._max_body:
                raise too_large(self._max_body)
            yield chunk

    async def _upload(self, request: web.BaseRequest, content_type: bytes) -> Upload:
        """A body to be passed on as it comes; of a form, as much is read as names the model."""
        chunks = self._chunks(request)
        boundary = multipart.boundary(content_type)
        if boundary is None:
            return Upload(chunks, request.content_length)
        finder, model = multipart.ModelFinder(boundary), None
        async for chunk in chunks:
            if (model := finder.feed(chunk)) is not None:
                break
        return Upload(chunks, request.content_length, bytes(finder.held), model)

    # --- the answer -----------------------------------------------------------------------------

    async def _relay(
        self, request: web.BaseRequest, incoming: Incoming, upload: Upload | None
    ) -> web.StreamResponse:
        client = QueueClient()
        task = spawn(self._serve(incoming, client, upload), name="call")
        task.add_done_callback(client.task_ended)
        try:
            return await client.pump(request)
        finally:
            # The handler is cancelled when the client leaves; so is the call it made.
            if not task.done():
                task.cancel()


class QueueClient(Client):
    """The engine's `Client` before an aiohttp response: callbacks in, awaits out."""

    def __init__(self) -> None:
        self._begun: tuple[int, list[tuple[bytes, bytes]], int | None] | None = None
        self._queue: deque[bytes] = deque()
        self._size = 0
        self._source: Source | None = None
        self._ended = False
        self._cut = False
        self._news = asyncio.Event()

    def head(self, status: int, headers: Iterable[tuple[bytes, bytes]], length: int | None) -> None:
        self._begun = (status, list(headers), length)
        self._news.set()

    def write(self, data: bytes) -> None:
        if data:
            self._queue.append(data)
            self._size += len(data)
            if self._size > MAX_QUEUE and self._source is not None:
                self._source.pause()
            self._news.set()

    def end(self) -> None:
        self._ended = True
        self._news.set()

    def cut(self) -> None:
        self._cut = self._ended = True
        self._news.set()

    def follow(self, source: Source | None) -> None:
        self._source = source
        if source is not None and self._size > MAX_QUEUE:
            source.pause()

    def task_ended(self, _task: asyncio.Task[None]) -> None:
        if not self._ended:
            self.cut()

    async def pump(self, request: web.BaseRequest) -> web.StreamResponse:
        """Send what the engine says, at the client's pace."""
        while self._begun is None and not self._ended:
            await self._wait()
        if self._begun is None:
            raise ConnectionResetError("the call ended without an answer")
        status, headers, length = self._begun
        if self._ended and not self._cut and length == self._size > 0:
            # All of it is here: head and body leave together, in one write to the socket.
            whole = web.Response(status=status, headers=_fields(headers), body=self._taken())
            await whole.prepare(request)
            await whole.write_eof()
            return whole
        response = web.StreamResponse(status=status, headers=_fields(headers))
        if length is not None:
            response.content_length = length
        elif request.version < (1, 1):
            response.force_close()  # HTTP/1.0 has no chunks: the body ends with the connection
        elif status not in (204, 304):
            response.enable_chunked_encoding()
        await response.prepare(request)
        while self._queue or not self._ended:
            if not self._queue:
                await self._wait()
                continue
            data = self._taken()
            if request.method != "HEAD":  # its client would take a body for the next answer
                await response.write(data)
            if self._source is not None:
                self._source.resume()
        if self._cut:
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the provider's answer was cut off")
        await response.write_eof()
        return response

    def _taken(self) -> bytes:
        data = b"".join(self._queue)
        self._queue.clear()
        self._size = 0
        return data

    async def _wait(self) -> None:
        self._news.clear()
        await self._news.wait()


class _Handler(RequestHandler):
    """One connection. Refusals of aiohttp itself (bad HTTP, a failed handler) get our shape."""

    __slots__ = ("via",)
    via: Attachment | None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun already")
        if status >= 500:
            self.log_exception("error handling a request", exc_info=exc)
            error: ProxyError = ProxyError("internal error")
        else:
            error = InvalidRequest("the request is not valid HTTP", code="bad_http")
        door = cast(HttpDoor, self._manager)
        extra = [(b"x-request-id", door.new_id().encode())]
        response = _response(Answer(*error_answer(error, extra)))
        response.force_close()
        return response


def _check_framing(request: web.BaseRequest, headers: Headers) -> None:
    """aiohttp unwraps the last transfer coding and leaves the others in the body; and HTTP/1.0,
    which has none, may have been read differently in front of us (RFC 9112 6.1)."""
    codings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
    if codings and (codings != [b"chunked"] or request.version < (1, 1)):
        raise InvalidRequest(
            "the only Transfer-Encoding understood is chunked, of HTTP/1.1", code="bad_http"
        )


def _response(answer: Answer) -> web.Response:
    return web.Response(status=answer.status, headers=_fields(answer.headers), body=answer.body)


def _fields(headers: Iterable[tuple[bytes, bytes]]) -> CIMultiDict[str]:
    fields = CIMultiDict(
        (name.decode("latin-1"), value.decode("utf-8", "replace")) for name, value in headers
    )
    fields.setdefault("Server", SERVER)
    return fields

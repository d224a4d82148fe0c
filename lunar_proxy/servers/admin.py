"""The admin listener: metrics, health, the config in force, reload. For operators, not clients."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, Protocol
from urllib.parse import urlsplit

import orjson
from aiohttp import web

from lunar_proxy.config import Config, ConfigError, resolved
from lunar_proxy.core.errors import (
    Forbidden,
    InvalidRequest,
    NotFound,
    ProxyError,
    Unauthorized,
)
from lunar_proxy.core.policy import AuthFailures
from lunar_proxy.core.render import error_answer
from lunar_proxy.gateway import Gateway
from lunar_proxy.metrics import Snapshot, render
from lunar_proxy.stores import Store

from .admin_keys import KeyDesk
from .admin_router import RouterDesk

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

# Asked by probes and scrapers that hold no token; they tell nothing that is secret.
_OPEN = frozenset({"/-/health", "/-/ready"})


class Process(Protocol):
    """The running proxy, as an operator may see and change it (`app.App`)."""

    config: Config
    gateway: Gateway
    store: Store
    ready: bool

    async def all_numbers(self) -> Snapshot: ...

    async def reload_all(self) -> int: ...


class Admin:
    def __init__(self, process: Process) -> None:
        self._process = process
        self._server = web.Server(self._handle, access_log=None)
        self._routes: dict[tuple[str, str], Handler] = {
            ("GET", "/metrics"): self._metrics,
            ("GET", "/-/health"): self._health,
            ("GET", "/-/ready"): self._ready,
            ("GET", "/-/config"): self._config,
            ("GET", "/-/snapshot"): self._snapshot,
            ("POST", "/-/reload"): self._reload,
        }
        self._keys = KeyDesk(process)
        self._router = RouterDesk(process.gateway)
        self._failures = AuthFailures()

    def protocol(self) -> asyncio.BaseProtocol:
        return self._server()

    async def close(self, server: asyncio.Server) -> None:
        server.close()
        await self._server.shutdown(timeout=1.0)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            if request.path not in _OPEN:
                self._authenticate(request)
            return await self._answer(request)
        except ProxyError as error:
            status, headers, body = error_answer(error, [])
            fields = {name.decode(): value.decode() for name, value in headers}
            return web.Response(status=status, headers=fields, body=body)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        # aiohttp leaves the body of a HEAD's answer out.
        method = "GET" if request.method == "HEAD" else request.method
        if (handler := self._routes.get((method, request.path))) is not None:
            return await handler(request)
        if (about_keys := self._keys.route(method, request.path)) is not None:
            status, body, content_type = await about_keys(request)
            headers = {"content-type": content_type, "cache-control": "no-store"}
            return web.Response(status=status, headers=headers, body=body)
        if (about_routes := self._router.route(method, request.path)) is not None:
            return _json(await about_routes(request))
        raise NotFound(f"there is nothing at {request.method} {request.path[:200]}")

    def _authenticate(self, request: web.BaseRequest) -> None:
        """The token where there is one. Without one, whoever is on this machine may ask, but not
        a web page that its browser shows: not from another origin, nor by a name that was made to
        resolve to loopback (DNS rebinding)."""
        token = self._process.config.admin.token
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise Forbidden("requests of other web pages are not answered here")
        if not token:
            if not _is_local_name(host):
                raise Forbidden("ask by address or as localhost, or set admin.token")
            return
        sent = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not hmac.compare_digest(sent.encode(errors="replace"), token.reveal().encode()):
            self._refuse_token(request.remote or "")

    def _refuse_token(self, address: str) -> NoReturn:
        now = self._process.gateway.ports.wall()
        raise self._failures.failed(address, now) or Unauthorized(
            "send the admin token as `Authorization: Bearer TOKEN`"
        )

    async def _metrics(self, request: web.BaseRequest) -> web.StreamResponse:
        numbers = await self._process.all_numbers()
        body, content_type = render(numbers, request.headers.get("accept", ""))
        return web.Response(body=body, headers={"content-type": content_type})

    async def _health(self, request: web.BaseRequest) -> web.StreamResponse:
        return _json({"status": "ok"})

    async def _ready(self, request: web.BaseRequest) -> web.StreamResponse:
        process = self._process
        detail: dict[str, Any] = {"store": process.store.degraded or "ok"}
        ready = process.ready and not process.gateway.draining
        status = "ready" if ready else "not ready"
        return _json({"status": status, "detail": detail}, 200 if ready else 503)

    async def _config(self, request: web.BaseRequest) -> web.StreamResponse:
        return _json(resolved(self._process.config))

    async def _snapshot(self, request: web.BaseRequest) -> web.StreamResponse:
        return _json(self._process.gateway.snapshot())

    async def _reload(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            generation = await self._process.reload_all()
        except ConfigError as error:
            raise InvalidRequest(f"nothing was changed: {error}", code="bad_config") from None
        return _json({"status": "reloaded", "generation": generation})


def _is_local_name(host: str) -> bool:
    """Of a Host header: an address, or a name that is never looked up elsewhere (RFC 6761 6.3)."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name.rpartition(".")[2] == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _json(doc: Any, status: int = 200) -> web.Response:
    return web.Response(
        status=status, body=orjson.dumps(doc), headers={"content-type": "application/json"}
    )

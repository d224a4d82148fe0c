"""The admin listener: metrics, health, the config in force, reload. For operators, not clients."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import orjson
from aiohttp import web

from lunar_proxy.config import Config, ConfigError, resolved
from lunar_proxy.core.errors import InvalidRequest, NotFound, ProxyError, Unauthorized
from lunar_proxy.core.render import error_answer
from lunar_proxy.gateway import Gateway
from lunar_proxy.metrics import Metrics, render
from lunar_proxy.stores import Store

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

# Asked by probes and scrapers that hold no token; they tell nothing that is secret.
_OPEN = frozenset({"/-/health", "/-/ready"})


class Process(Protocol):
    """The running proxy, as an operator may see and change it (`app.App`)."""

    config: Config
    gateway: Gateway
    metrics: Metrics
    store: Store
    ready: bool

    def reload(self) -> int: ...


class Admin:
    def __init__(self, process: Process) -> None:
        self._process = process
        self._server = web.Server(self._handle, access_log=None)
        self._routes: dict[tuple[str, str], Handler] = {
            ("GET", "/metrics"): self._metrics,
            ("GET", "/-/health"): self._health,
            ("GET", "/-/ready"): self._ready,
            ("GET", "/-/config"): self._config,
            ("POST", "/-/reload"): self._reload,
        }

    def protocol(self) -> asyncio.BaseProtocol:
        return self._server()

    async def close(self, server: asyncio.Server) -> None:
        server.close()
        await self._server.shutdown(timeout=1.0)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            handler = self._routes.get((request.method, request.path))
            if handler is None:
                raise NotFound(f"there is nothing at {request.method} {request.path}")
            if request.path not in _OPEN:
                self._authenticate(request)
            return await handler(request)
        except ProxyError as error:
            status, headers, body = error_answer(error, [])
            fields = {name.decode(): value.decode() for name, value in headers}
            return web.Response(status=status, headers=fields, body=body)

    def _authenticate(self, request: web.BaseRequest) -> None:
        token = self._process.config.admin.token
        if not token:
            return
        sent = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not hmac.compare_digest(sent.encode(), token.reveal().encode()):
            raise Unauthorized("send the admin token as `Authorization: Bearer TOKEN`")

    async def _metrics(self, request: web.BaseRequest) -> web.StreamResponse:
        process = self._process
        states = process.gateway.health.snapshot()
        process.metrics.targets(
            {target: int(seen.state) for target, seen in states.items()},
            degraded=[target for target, seen in states.items() if seen.key_refused],
        )
        process.metrics.inflight = process.gateway.inflight
        process.metrics.config_generation = process.gateway.runtime.generation
        process.metrics.store_degraded = process.store.degraded is not None
        body, content_type = render(process.metrics.snapshot(), request.headers.get("accept", ""))
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

    async def _reload(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            generation = self._process.reload()
        except ConfigError as error:
            raise InvalidRequest(f"nothing was changed: {error}", code="bad_config") from None
        return _json({"status": "reloaded", "generation": generation})


def _json(doc: Any, status: int = 200) -> web.Response:
    return web.Response(
        status=status, body=orjson.dumps(doc), headers={"content-type": "application/json"}
    )

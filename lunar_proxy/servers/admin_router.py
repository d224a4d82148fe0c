"""`/-/route/explain` and `/-/feedback` of the admin listener: why the router decides as it does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from lunar_proxy.core.errors import BodyTooLarge, InvalidRequest
from lunar_proxy.core.intake import Incoming, parse
from lunar_proxy.core.model import Fields
from lunar_proxy.gateway import Gateway, explain

# A prompt may be long; what is longer than this is not asked for an explanation.
MAX_BODY = 4 * 1024 * 1024

Answerer = Callable[[web.BaseRequest], Awaitable[dict[str, Any]]]


class RouterDesk:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._routes: Mapping[tuple[str, str], Answerer] = {
            ("POST", "/-/route/explain"): self._explain,
            ("GET", "/-/feedback"): self._feedback,
            ("POST", "/-/feedback"): self._score,
            ("DELETE", "/-/feedback"): self._forget,
        }

    def route(self, method: str, path: str) -> Answerer | None:
        return self._routes.get((method, path))

    async def _explain(self, request: web.BaseRequest) -> dict[str, Any]:
        headers = tuple((name.lower(), value) for name, value in request.raw_headers)
        incoming = Incoming(
            method=b"POST",
            path=b"/v1/chat/completions",
            query=b"",
            fields=Fields(headers),
            body=await _body(request),
            client=request.remote or "",
            accepted_at=self._gateway.ports.now(),
        )
        return await explain(self._gateway, incoming)

    async def _feedback(self, request: web.BaseRequest) -> dict[str, Any]:
        return self._gateway.learner.snapshot()

    async def _score(self, request: web.BaseRequest) -> dict[str, Any]:
        doc = parse(await _body(request))
        if not isinstance(doc, dict) or not isinstance(doc.get("request_id"), str):
            raise InvalidRequest('send {"request_id": "...", "score": 0.0 to 1.0}')
        answered = await self._gateway.learner.score(doc["request_id"], doc.get("score"))
        return {"status": "learned", "model": answered.profile, "cluster": answered.cluster}

    async def _forget(self, request: web.BaseRequest) -> dict[str, Any]:
        model, cluster = request.query.get("model"), request.query.get("cluster")
        if cluster is not None and (model is None or not cluster.isdecimal()):
            raise InvalidRequest("cluster is a number, and goes with model", param="cluster")
        await self._gateway.learner.forget(model, int(cluster) if cluster is not None else None)
        return self._gateway.learner.snapshot()


async def _body(request: web.BaseRequest) -> bytes:
    if (request.content_length or 0) > MAX_BODY:
        raise BodyTooLarge(f"more than {MAX_BODY} bytes")
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > MAX_BODY:
            raise BodyTooLarge(f"more than {MAX_BODY} bytes")
    return bytes(body)

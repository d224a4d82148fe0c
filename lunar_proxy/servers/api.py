"""The local endpoints of the data listener: documents about what the proxy can do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qs, unquote

from lunar_proxy.core.intake import Incoming
from lunar_proxy.core.model import Identity
from lunar_proxy.gateway import Caller, Gateway, views

from .http import Answer, Route, json_answer

Identified = Callable[[Identity | None, Incoming], Any]


def routes(gateway: Gateway) -> Mapping[tuple[bytes, bytes], Route]:
    async def caller_of(incoming: Incoming) -> Caller:
        caller = gateway.callers.of(incoming)
        return caller if isinstance(caller, Caller) else await caller

    def known_caller(make: Identified) -> Route:
        async def route(incoming: Incoming) -> Answer:
            return json_answer(make((await caller_of(incoming)).identity, incoming))

        return route

    async def profiles(incoming: Incoming) -> Answer:
        await caller_of(incoming)
        return json_answer(await gateway.router.profiles(gateway.runtime))

    return {
        (b"GET", b"/health"): _always(lambda: {"status": "ok"}),
        (b"GET", b"/v1/models"): known_caller(lambda who, _: views.models(gateway, who)),
        (b"GET", b"/v1/models/"): known_caller(
            lambda who, asked: views.model(gateway, who, _tail(asked.path, b"/v1/models/"))
        ),
        (b"GET", b"/v1/providers"): known_caller(
            lambda _, asked: views.providers(gateway, _query(asked.query, "model"))
        ),
        (b"GET", b"/v1/router/profiles"): profiles,
        (b"GET", b"/v1/pricing/models"): _always(lambda: views.pricing(gateway)),
    }


def _always(make: Callable[[], Any]) -> Callable[[Incoming], Awaitable[Answer]]:
    async def route(_incoming: Incoming) -> Answer:
        return json_answer(make())

    return route


def _tail(path: bytes, prefix: bytes) -> str:
    return unquote(path.removeprefix(prefix).decode("latin-1"))


def _query(query: bytes, name: str) -> str | None:
    values = parse_qs(query.removeprefix(b"?").decode("latin-1")).get(name)
    return values[0] if values else None
